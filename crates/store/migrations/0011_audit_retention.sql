-- How much of the beginning of each chain retention has dropped: the rest verifies from there. The
-- code is that of the holder of the audit key, so that nobody else can say where a chain begins.
CREATE TABLE audit_floors (
    zone_id TEXT PRIMARY KEY,
    chain_seq BIGINT NOT NULL,
    chain_hash BYTEA NOT NULL,
    code TEXT NOT NULL,
    dropped_at BIGINT NOT NULL
);

-- Evidence that can never be appended, where no bus keeps it. Its place has the form of a position
-- on the bus, so that both are read the same way.
CREATE TABLE audit_dead_letters (
    millis BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    fields_json TEXT NOT NULL,
    PRIMARY KEY (millis, seq)
);
