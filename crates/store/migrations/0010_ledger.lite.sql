-- The ledger at its cost: an event is kept packed (audit_events/pack.rs), ids of ours are their 16
-- bytes, hashes their 32, a zone is a number, and no column repeats what only the text is asked for.
-- Rows of before are converted; their texts stay as they are, which is one of the forms.
--
-- `ingested_at` never goes back along the chain of a zone (audit_heads remembers it), so that a month
-- of it is a contiguous stretch of every chain: what retention drops is always a beginning, and the
-- rest verifies from where that ended. By `occurred_at`, which producers choose, it would be holes.

CREATE TABLE audit_zones (
    zone_no INTEGER PRIMARY KEY,
    zone_id TEXT NOT NULL
);
CREATE UNIQUE INDEX audit_zones_zone ON audit_zones (zone_id);
INSERT INTO audit_zones (zone_id)
    SELECT zone_id FROM audit_events UNION SELECT zone_id FROM audit_heads ORDER BY zone_id;

DROP INDEX audit_events_id;
DROP INDEX audit_events_time;
DROP INDEX audit_events_request;
ALTER TABLE audit_events RENAME TO audit_events_1;

-- In the order of ingestion, so that retention deletes from one end.
CREATE TABLE audit_events (
    place INTEGER PRIMARY KEY,
    zone_no INTEGER NOT NULL,
    chain_seq INTEGER NOT NULL,
    occurred_at INTEGER NOT NULL,
    ingested_at INTEGER NOT NULL,
    id BLOB NOT NULL,
    request_id BLOB NOT NULL,
    event_type TEXT NOT NULL,
    decision TEXT NOT NULL,
    application_id BLOB,
    agent_session_id BLOB,
    authority_record_id BLOB,
    labels TEXT,
    content_sha256 BLOB NOT NULL,
    chain_hash BLOB NOT NULL,
    chain_hmac BLOB NOT NULL,
    event BLOB NOT NULL
);
INSERT INTO audit_events (zone_no, chain_seq, occurred_at, ingested_at, id, request_id, event_type,
        decision, application_id, agent_session_id, authority_record_id, labels, content_sha256,
        chain_hash, chain_hmac, event)
    SELECT (SELECT zone_no FROM audit_zones WHERE audit_zones.zone_id = old.zone_id), chain_seq,
        occurred_at, MAX(ingested_at) OVER (PARTITION BY zone_id ORDER BY chain_seq),
        CASE WHEN length(id) = 36 AND id NOT GLOB '*[^0-9a-f-]*'
            AND substr(id, 9, 1) || substr(id, 14, 1) || substr(id, 19, 1) || substr(id, 24, 1) = '----'
            AND length(replace(id, '-', '')) = 32
        THEN unhex(replace(id, '-', ''))
        WHEN length(CAST(id AS BLOB)) = 15 THEN unhex('0000' || hex(id))
        WHEN id IS NOT NULL THEN unhex('00' || hex(id)) END,
        CASE WHEN length(request_id) = 36 AND request_id NOT GLOB '*[^0-9a-f-]*'
            AND substr(request_id, 9, 1) || substr(request_id, 14, 1) || substr(request_id, 19, 1) || substr(request_id, 24, 1) = '----'
            AND length(replace(request_id, '-', '')) = 32
        THEN unhex(replace(request_id, '-', ''))
        WHEN length(CAST(request_id AS BLOB)) = 15 THEN unhex('0000' || hex(request_id))
        WHEN request_id IS NOT NULL THEN unhex('00' || hex(request_id)) END,
        event_type, decision,
        CASE WHEN length(application_id) = 36 AND application_id NOT GLOB '*[^0-9a-f-]*'
            AND substr(application_id, 9, 1) || substr(application_id, 14, 1) || substr(application_id, 19, 1) || substr(application_id, 24, 1) = '----'
            AND length(replace(application_id, '-', '')) = 32
        THEN unhex(replace(application_id, '-', ''))
        WHEN length(CAST(application_id AS BLOB)) = 15 THEN unhex('0000' || hex(application_id))
        WHEN application_id IS NOT NULL THEN unhex('00' || hex(application_id)) END,
        CASE WHEN length(agent_session_id) = 36 AND agent_session_id NOT GLOB '*[^0-9a-f-]*'
            AND substr(agent_session_id, 9, 1) || substr(agent_session_id, 14, 1) || substr(agent_session_id, 19, 1) || substr(agent_session_id, 24, 1) = '----'
            AND length(replace(agent_session_id, '-', '')) = 32
        THEN unhex(replace(agent_session_id, '-', ''))
        WHEN length(CAST(agent_session_id AS BLOB)) = 15 THEN unhex('0000' || hex(agent_session_id))
        WHEN agent_session_id IS NOT NULL THEN unhex('00' || hex(agent_session_id)) END,
        CASE WHEN length(authority_record_id) = 36 AND authority_record_id NOT GLOB '*[^0-9a-f-]*'
            AND substr(authority_record_id, 9, 1) || substr(authority_record_id, 14, 1) || substr(authority_record_id, 19, 1) || substr(authority_record_id, 24, 1) = '----'
            AND length(replace(authority_record_id, '-', '')) = 32
        THEN unhex(replace(authority_record_id, '-', ''))
        WHEN length(CAST(authority_record_id AS BLOB)) = 15 THEN unhex('0000' || hex(authority_record_id))
        WHEN authority_record_id IS NOT NULL THEN unhex('00' || hex(authority_record_id)) END,
        NULLIF(labels, ''), unhex(content_sha256), unhex(chain_hash), unhex(chain_hmac),
        CAST(event AS BLOB)
    FROM audit_events_1 old ORDER BY 4, chain_seq;
DROP TABLE audit_events_1;
CREATE UNIQUE INDEX audit_events_chain ON audit_events (zone_no, chain_seq);
CREATE UNIQUE INDEX audit_events_id ON audit_events (id);
CREATE INDEX audit_events_time ON audit_events (zone_no, occurred_at);
CREATE INDEX audit_events_request ON audit_events (request_id);
CREATE INDEX audit_events_session ON audit_events (agent_session_id)
    WHERE agent_session_id IS NOT NULL;
CREATE INDEX audit_events_record ON audit_events (authority_record_id)
    WHERE authority_record_id IS NOT NULL;

CREATE TABLE audit_heads_2 (
    zone_id TEXT PRIMARY KEY,
    chain_seq INTEGER NOT NULL,
    chain_hash BLOB NOT NULL,
    ingested_at INTEGER NOT NULL
);
INSERT INTO audit_heads_2 (zone_id, chain_seq, chain_hash, ingested_at)
    SELECT zone_id, chain_seq, unhex(chain_hash), COALESCE((
        SELECT MAX(ingested_at) FROM audit_events JOIN audit_zones USING (zone_no)
        WHERE audit_zones.zone_id = audit_heads.zone_id), 0)
    FROM audit_heads;
DROP TABLE audit_heads;
ALTER TABLE audit_heads_2 RENAME TO audit_heads;
