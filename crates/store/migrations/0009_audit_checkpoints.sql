-- What proves the ledger to others: the Merkle tree of each zone's events, cut into tiles, and the
-- checkpoints that were signed of it (crates/tlog). Hashes only; they stay when events are dropped.

-- Keys that sign checkpoints, the newest last, each sealed. `deployment` is how all logs of this
-- deployment are called, with the zone behind it.
CREATE TABLE audit_keys (
    id TEXT PRIMARY KEY,
    deployment TEXT NOT NULL,
    public_key BYTEA NOT NULL,
    sealed_private BYTEA NOT NULL,
    created_at BIGINT NOT NULL
);

-- How far each zone was verified and put into its tree, and how far the round of verifying it again
-- has come. `signed_size` repeats the largest checkpoint, to find what is due without reading them.
CREATE TABLE audit_trees (
    zone_id TEXT PRIMARY KEY,
    size BIGINT NOT NULL,
    chain_hash TEXT NOT NULL,
    signed_size BIGINT NOT NULL,
    signed_at BIGINT NOT NULL,
    again_size BIGINT NOT NULL,
    again_hash TEXT NOT NULL
);

-- Up to 256 hashes of 32 bytes, side by side.
CREATE TABLE audit_tiles (
    zone_id TEXT NOT NULL,
    level BIGINT NOT NULL,
    tile BIGINT NOT NULL,
    hashes BYTEA NOT NULL,
    PRIMARY KEY (zone_id, level, tile)
);

CREATE TABLE audit_checkpoints (
    zone_id TEXT NOT NULL,
    size BIGINT NOT NULL,
    note TEXT NOT NULL,
    made_at BIGINT NOT NULL,
    PRIMARY KEY (zone_id, size)
);

-- Zones of which somebody wants a checkpoint now.
CREATE TABLE audit_checkpoint_wishes (
    zone_id TEXT PRIMARY KEY,
    wished_at BIGINT NOT NULL
);

-- Where a ledger was found not to hold, once each.
CREATE TABLE audit_findings (
    zone_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    flaw TEXT NOT NULL,
    found_at BIGINT NOT NULL,
    PRIMARY KEY (zone_id, seq, flaw)
);
