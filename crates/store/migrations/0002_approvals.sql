-- Holds that wait for a human. What happened is in the times, never in a state of its own: which
-- state that makes depends on when one looks. `live` holds are the ones that a repeated request
-- finds; `binding` is the digest that clients know, `terms` covers what it leaves open.
CREATE TABLE approvals (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    principal_id TEXT NOT NULL,
    application_id TEXT,
    -- Empty when none was presented: NULL would be distinct from itself in the index below.
    record_id TEXT NOT NULL,
    agent_session_id TEXT,
    tier TEXT NOT NULL,
    approver_class TEXT NOT NULL,
    privacy_mode TEXT NOT NULL,
    subject_anchor TEXT,
    -- Records whose holders may not approve: JSON list.
    own_records TEXT NOT NULL,
    binding TEXT NOT NULL,
    terms TEXT NOT NULL,
    policy_set_version_id TEXT NOT NULL,
    metadata_json TEXT NOT NULL,
    live BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    satisfied_at BIGINT,
    rejected_at BIGINT,
    approver TEXT,
    approver_record_id TEXT,
    decision_reason TEXT,
    consumed_at BIGINT,
    issued_record_id TEXT
);
CREATE UNIQUE INDEX approvals_live ON approvals (zone_id, principal_id, record_id, binding) WHERE live;
CREATE INDEX approvals_page ON approvals (zone_id, created_at, id);
CREATE INDEX approvals_binding ON approvals (zone_id, binding);
CREATE INDEX approvals_expiry ON approvals (expires_at);
CREATE INDEX approvals_consumed ON approvals (consumed_at) WHERE consumed_at IS NOT NULL;

-- Evidence of what was committed with it, until it is in the evidence log: whoever finds a row
-- that was left behind by a crash records it under the same id.
CREATE TABLE approval_evidence (
    event_id TEXT PRIMARY KEY,
    event TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX approval_evidence_age ON approval_evidence (created_at);
