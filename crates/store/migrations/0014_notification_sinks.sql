-- Where a zone's approvals are told of, and what is on its way there. `secret` is sealed;
-- `cursor_seq` is the place in the zone's ledger up to which events were looked at. A delivery holds
-- the exact body, so that neither the retention of the ledger nor a restart changes what is sent.

CREATE TABLE notification_sinks (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    name TEXT NOT NULL,
    url TEXT NOT NULL,
    event_types TEXT NOT NULL,
    active BOOLEAN NOT NULL,
    in_order BOOLEAN NOT NULL,
    secret BYTEA NOT NULL,
    cursor_seq BIGINT NOT NULL,
    consecutive_failures BIGINT NOT NULL,
    last_success_at BIGINT,
    last_failure_at BIGINT,
    last_error TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX notification_sinks_page ON notification_sinks (zone_id, created_at, id);

CREATE TABLE notification_deliveries (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL,
    sink_id TEXT NOT NULL REFERENCES notification_sinks (id),
    chain_seq BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    body TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    available_at BIGINT NOT NULL,
    delivered_at BIGINT,
    abandoned_at BIGINT,
    response_status BIGINT,
    last_error TEXT,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX notification_deliveries_event ON notification_deliveries (sink_id, event_id);
CREATE INDEX notification_deliveries_page ON notification_deliveries (sink_id, created_at, id);
CREATE INDEX notification_deliveries_open ON notification_deliveries (sink_id, chain_seq)
    WHERE delivered_at IS NULL AND abandoned_at IS NULL;
