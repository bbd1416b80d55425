-- Accounts of subjects at OAuth providers (spec: admin-api 7.6, sts 6.3). Tokens are envelopes,
-- bound to their column. One active connection for each (zone, provider, subject).

CREATE TABLE provider_connections (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    provider_id TEXT NOT NULL REFERENCES providers (id),
    subject_id TEXT NOT NULL,
    status TEXT NOT NULL,
    access_token BYTEA NOT NULL,
    refresh_token BYTEA,
    expires_at BIGINT,
    refreshed_at BIGINT,
    refresh_token_version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX provider_connections_active ON provider_connections (zone_id, provider_id, subject_id)
    WHERE status = 'active';
CREATE INDEX provider_connections_page ON provider_connections (zone_id, created_at, id);
CREATE INDEX provider_connections_subject ON provider_connections (zone_id, subject_id);
