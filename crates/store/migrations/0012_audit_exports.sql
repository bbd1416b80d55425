-- What of the ledger is exported. An object is planned before it is written: which stretch of which
-- chain it holds is settled in the transaction that moves the positions, so whoever goes on after a
-- crash writes the same object again.

CREATE TABLE audit_exports (
    object TEXT PRIMARY KEY,
    hour BIGINT NOT NULL,
    part BIGINT NOT NULL,
    ends_hour BOOLEAN NOT NULL,
    events BIGINT NOT NULL,
    planned_at BIGINT NOT NULL,
    sha256 TEXT,
    exported_at BIGINT
);
CREATE INDEX audit_exports_hour ON audit_exports (hour, part);

-- Kept while the object is not there yet; then its manifest says the same.
CREATE TABLE audit_export_ranges (
    object TEXT NOT NULL,
    zone_id TEXT NOT NULL,
    after_seq BIGINT NOT NULL,
    after_hash TEXT NOT NULL,
    to_seq BIGINT NOT NULL,
    to_hash TEXT NOT NULL,
    PRIMARY KEY (object, zone_id)
);

CREATE TABLE audit_export_positions (
    zone_id TEXT PRIMARY KEY,
    chain_seq BIGINT NOT NULL,
    chain_hash TEXT NOT NULL
);
