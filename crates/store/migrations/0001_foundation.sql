-- One text for SQLite and Postgres. Times are UTC microseconds, ids are text, JSON is text that we
-- never query into: what is filtered on has a column of its own.

CREATE TABLE zones (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    slug TEXT NOT NULL,
    dcr_enabled BOOLEAN NOT NULL,
    owner_account_id TEXT,
    operator_coauthor_badge BOOLEAN NOT NULL,
    operator_governed BOOLEAN NOT NULL,
    created_by TEXT,
    created_via_operator BOOLEAN NOT NULL,
    updated_by TEXT,
    updated_via_operator BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    archived_at BIGINT
);
CREATE UNIQUE INDEX zones_slug ON zones (slug);

CREATE TABLE zone_keys (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    public_x TEXT NOT NULL,
    public_y TEXT NOT NULL,
    sealed_private BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    signs_from BIGINT NOT NULL
);
CREATE INDEX zone_keys_zone ON zone_keys (zone_id, signs_from);

CREATE TABLE applications (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    name TEXT NOT NULL,
    name_key TEXT NOT NULL,
    registration_method TEXT NOT NULL,
    secret_verifier TEXT,
    traits TEXT NOT NULL,
    expires_at BIGINT,
    created_by TEXT,
    created_via_operator BOOLEAN NOT NULL,
    updated_by TEXT,
    updated_via_operator BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    archived_at BIGINT
);
CREATE UNIQUE INDEX applications_name ON applications (zone_id, name_key)
    WHERE archived_at IS NULL AND registration_method = 'managed';
CREATE INDEX applications_page ON applications (zone_id, created_at, id);

CREATE TABLE providers (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    name TEXT NOT NULL,
    identifier TEXT NOT NULL,
    kind TEXT NOT NULL,
    config_json TEXT NOT NULL,
    secret_config_keys TEXT NOT NULL,
    connectivity_failed_at BIGINT,
    created_by TEXT,
    created_via_operator BOOLEAN NOT NULL,
    updated_by TEXT,
    updated_via_operator BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    archived_at BIGINT
);
CREATE UNIQUE INDEX providers_identifier ON providers (zone_id, identifier) WHERE archived_at IS NULL;
CREATE INDEX providers_page ON providers (zone_id, created_at, id);

CREATE TABLE resources (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    name TEXT NOT NULL,
    identifier TEXT NOT NULL,
    upstream_url TEXT,
    credential_provider_id TEXT NOT NULL REFERENCES providers (id),
    scopes TEXT NOT NULL,
    operations TEXT NOT NULL,
    operation_enforcement TEXT NOT NULL,
    created_by TEXT,
    created_via_operator BOOLEAN NOT NULL,
    updated_by TEXT,
    updated_via_operator BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    archived_at BIGINT
);
CREATE UNIQUE INDEX resources_identifier ON resources (zone_id, identifier) WHERE archived_at IS NULL;
CREATE INDEX resources_page ON resources (zone_id, created_at, id);

CREATE TABLE policies (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    name TEXT NOT NULL,
    description TEXT,
    created_by TEXT,
    created_via_operator BOOLEAN NOT NULL,
    updated_by TEXT,
    updated_via_operator BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    archived_at BIGINT
);
CREATE UNIQUE INDEX policies_name ON policies (zone_id, name) WHERE archived_at IS NULL;

CREATE TABLE policy_versions (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    policy_id TEXT NOT NULL REFERENCES policies (id),
    version BIGINT NOT NULL,
    content TEXT NOT NULL,
    content_sha256 TEXT NOT NULL,
    schema_version TEXT NOT NULL,
    created_by TEXT,
    created_via_operator BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX policy_versions_number ON policy_versions (policy_id, version);

CREATE TABLE policy_sets (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    name TEXT NOT NULL,
    description TEXT,
    created_by TEXT,
    created_via_operator BOOLEAN NOT NULL,
    updated_by TEXT,
    updated_via_operator BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    archived_at BIGINT
);
CREATE UNIQUE INDEX policy_sets_name ON policy_sets (zone_id, name) WHERE archived_at IS NULL;

CREATE TABLE policy_set_versions (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    policy_set_id TEXT NOT NULL REFERENCES policy_sets (id),
    version BIGINT NOT NULL,
    manifest_json TEXT NOT NULL,
    manifest_sha256 TEXT NOT NULL,
    schema_version TEXT NOT NULL,
    created_by TEXT,
    created_via_operator BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX policy_set_versions_number ON policy_set_versions (policy_set_id, version);

-- The active version of a zone: one row at most, so "one active set" needs no check.
CREATE TABLE policy_bindings (
    zone_id TEXT PRIMARY KEY REFERENCES zones (id),
    policy_set_id TEXT NOT NULL REFERENCES policy_sets (id),
    version_id TEXT NOT NULL REFERENCES policy_set_versions (id),
    activated_at BIGINT NOT NULL
);

CREATE TABLE admin_tokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    verifier TEXT NOT NULL,
    scope TEXT NOT NULL,
    capability TEXT NOT NULL,
    zone_id TEXT REFERENCES zones (id),
    created_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT,
    revoked_at BIGINT
);
CREATE UNIQUE INDEX admin_tokens_verifier ON admin_tokens (verifier) WHERE revoked_at IS NULL;

CREATE TABLE secret_store (
    ref TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    envelope BYTEA NOT NULL,
    version BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX secret_store_zone ON secret_store (zone_id);

CREATE TABLE authority_records (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    record_type TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    client_id TEXT NOT NULL,
    parent_id TEXT,
    status TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT,
    revoked_reason TEXT
);
CREATE INDEX authority_records_subject ON authority_records (zone_id, subject_id, status);
CREATE INDEX authority_records_expiry ON authority_records (expires_at);

CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    application_id TEXT NOT NULL REFERENCES applications (id),
    parent_id TEXT,
    subject_record_id TEXT NOT NULL,
    subject_type TEXT NOT NULL,
    lifecycle TEXT NOT NULL,
    labels TEXT NOT NULL,
    metadata_json TEXT NOT NULL,
    status TEXT NOT NULL,
    depth BIGINT NOT NULL,
    live_children BIGINT NOT NULL,
    ttl_seconds BIGINT,
    started_at BIGINT NOT NULL,
    ends_at BIGINT,
    last_active_at BIGINT NOT NULL,
    last_heartbeat_at BIGINT,
    heartbeat_deadline_at BIGINT,
    lease_generation BIGINT NOT NULL,
    terminated_at BIGINT,
    termination_reason TEXT,
    updated_at BIGINT NOT NULL
);
CREATE INDEX sessions_zone ON sessions (zone_id, id);
CREATE INDEX sessions_parent ON sessions (parent_id, status);
CREATE INDEX sessions_live_tasks ON sessions (ends_at) WHERE status IN ('active', 'suspended');
CREATE INDEX sessions_live_leases ON sessions (heartbeat_deadline_at) WHERE status = 'active';
CREATE INDEX sessions_subject ON sessions (subject_record_id) WHERE status IN ('active', 'suspended');
CREATE INDEX sessions_ended ON sessions (terminated_at) WHERE terminated_at IS NOT NULL;

-- Live Sessions of a zone (holder = 'zone') and of an application (holder = its id): quotas are
-- conditional updates of these rows.
CREATE TABLE session_counts (
    zone_id TEXT NOT NULL REFERENCES zones (id),
    holder TEXT NOT NULL,
    live BIGINT NOT NULL,
    PRIMARY KEY (zone_id, holder)
);

CREATE TABLE delegations (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    source_session_id TEXT NOT NULL REFERENCES sessions (id),
    target_session_id TEXT NOT NULL REFERENCES sessions (id),
    issuer_application_id TEXT NOT NULL,
    receiver_application_id TEXT NOT NULL,
    parent_edge_id TEXT,
    mirrored BOOLEAN NOT NULL,
    resource_id TEXT,
    scopes TEXT NOT NULL,
    constraints_json TEXT NOT NULL,
    status TEXT NOT NULL,
    edge_version BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT
);
CREATE INDEX delegations_zone ON delegations (zone_id, id);
CREATE INDEX delegations_target ON delegations (target_session_id, status);
CREATE INDEX delegations_source ON delegations (source_session_id, status);
CREATE INDEX delegations_parent ON delegations (parent_edge_id) WHERE parent_edge_id IS NOT NULL;
CREATE INDEX delegations_lapse ON delegations (expires_at) WHERE status = 'active';
CREATE INDEX delegations_revoked ON delegations (revoked_at) WHERE revoked_at IS NOT NULL;

CREATE TABLE delegation_epochs (
    zone_id TEXT PRIMARY KEY REFERENCES zones (id),
    epoch BIGINT NOT NULL
);

CREATE TABLE idempotency_receipts (
    operation TEXT NOT NULL,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    application_id TEXT NOT NULL,
    key_hash TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    result_id TEXT NOT NULL,
    status BIGINT NOT NULL,
    body_json TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (operation, zone_id, application_id, key_hash)
);
CREATE INDEX idempotency_receipts_expiry ON idempotency_receipts (expires_at);

CREATE TABLE outbox (
    id TEXT PRIMARY KEY,
    topic TEXT NOT NULL,
    zone_id TEXT NOT NULL,
    urgent BOOLEAN NOT NULL,
    fields_json TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    available_at BIGINT NOT NULL,
    last_error TEXT,
    dispatched_at BIGINT
);
CREATE INDEX outbox_pending ON outbox (urgent, available_at, id) WHERE dispatched_at IS NULL;
CREATE INDEX outbox_dispatched ON outbox (dispatched_at) WHERE dispatched_at IS NOT NULL;

-- `event` is the exact text that was signed and hashed; the other columns are for reading.
CREATE TABLE audit_events (
    zone_id TEXT NOT NULL,
    chain_seq BIGINT NOT NULL,
    id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    request_id TEXT NOT NULL,
    decision TEXT NOT NULL,
    evaluation_status TEXT NOT NULL,
    application_id TEXT,
    agent_session_id TEXT,
    authority_record_id TEXT,
    labels TEXT,
    occurred_at BIGINT NOT NULL,
    ingested_at BIGINT NOT NULL,
    event TEXT NOT NULL,
    content_sha256 TEXT NOT NULL,
    chain_hash TEXT NOT NULL,
    chain_hmac TEXT NOT NULL,
    PRIMARY KEY (zone_id, chain_seq)
);
CREATE UNIQUE INDEX audit_events_id ON audit_events (id);
CREATE INDEX audit_events_time ON audit_events (zone_id, occurred_at, id);
CREATE INDEX audit_events_request ON audit_events (zone_id, request_id);

CREATE TABLE audit_heads (
    zone_id TEXT PRIMARY KEY,
    chain_seq BIGINT NOT NULL,
    chain_hash TEXT NOT NULL
);

-- Events that came again under a known id with another text. What was kept first stays; this is
-- the proof that somebody tried.
CREATE TABLE audit_alerts (
    event_id TEXT NOT NULL,
    incoming_sha256 TEXT NOT NULL,
    zone_id TEXT NOT NULL,
    stored_sha256 TEXT NOT NULL,
    event TEXT NOT NULL,
    detected_at BIGINT NOT NULL,
    PRIMARY KEY (event_id, incoming_sha256)
);

-- Small facts of the deployment that must outlive a process (boot floor, for one).
CREATE TABLE service_state (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);
