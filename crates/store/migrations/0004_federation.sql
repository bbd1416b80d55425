-- Issuers whose ID tokens a zone trusts, what is known of a federated record, who was cut off and
-- when, and whether a zone takes actor tokens. Times are UTC microseconds.

CREATE TABLE subject_issuers (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    issuer TEXT NOT NULL,
    jwks_url TEXT NOT NULL,
    audience TEXT NOT NULL,
    created_by TEXT,
    created_via_operator BOOLEAN NOT NULL,
    updated_by TEXT,
    updated_via_operator BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    archived_at BIGINT
);
CREATE UNIQUE INDEX subject_issuers_issuer ON subject_issuers (zone_id, issuer)
    WHERE archived_at IS NULL;
CREATE INDEX subject_issuers_page ON subject_issuers (zone_id, created_at, id);

-- Provenance of a record: `{"iss": …}` for a federated user.
ALTER TABLE authority_records ADD COLUMN claims_json TEXT;

-- Mandates with this `sub` that were issued up to `not_before` are dead, row or no row.
CREATE TABLE subject_cutoffs (
    zone_id TEXT NOT NULL REFERENCES zones (id),
    subject_id TEXT NOT NULL,
    not_before BIGINT NOT NULL,
    PRIMARY KEY (zone_id, subject_id)
);
CREATE INDEX subject_cutoffs_since ON subject_cutoffs (not_before);

ALTER TABLE zones ADD COLUMN actor_tokens BOOLEAN NOT NULL DEFAULT FALSE;

CREATE INDEX authority_records_page ON authority_records (zone_id, created_at, id);
