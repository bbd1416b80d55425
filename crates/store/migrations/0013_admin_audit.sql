-- What administrators did. `record` is the exact text that was hashed; the other columns are for
-- finding it. The chain of what has no zone is that of the zone ''.
CREATE TABLE admin_audit_events (
    zone_id TEXT NOT NULL,
    chain_seq BIGINT NOT NULL,
    id TEXT NOT NULL,
    actor_id TEXT,
    method TEXT NOT NULL,
    entity_type TEXT,
    entity_id TEXT,
    occurred_at BIGINT NOT NULL,
    record TEXT NOT NULL,
    content_sha256 TEXT NOT NULL,
    chain_hash TEXT NOT NULL,
    chain_hmac TEXT NOT NULL,
    PRIMARY KEY (zone_id, chain_seq)
);
CREATE UNIQUE INDEX admin_audit_events_id ON admin_audit_events (id);
CREATE INDEX admin_audit_events_page ON admin_audit_events (zone_id, occurred_at, id);

CREATE TABLE admin_audit_heads (
    zone_id TEXT PRIMARY KEY,
    chain_seq BIGINT NOT NULL,
    chain_hash TEXT NOT NULL
);

-- Written in the transaction of the change itself, and gone once the record is in its chain. `mac`
-- shows that a service wrote it: whoever can write here must not be able to have it signed.
CREATE TABLE admin_audit_intents (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL,
    record TEXT NOT NULL,
    mac TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    refused BOOLEAN NOT NULL
);
CREATE INDEX admin_audit_intents_age ON admin_audit_intents (created_at);
