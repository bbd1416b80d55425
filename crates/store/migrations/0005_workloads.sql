-- Launcher identities. `bindings` is JSON text: it is read and written whole, and nothing is looked
-- up by what is in it. A workload is deleted, never archived: nothing else refers to it.

CREATE TABLE workloads (
    id TEXT PRIMARY KEY,
    zone_id TEXT NOT NULL REFERENCES zones (id),
    name TEXT NOT NULL,
    name_key TEXT NOT NULL,
    secret_verifier TEXT,
    bindings TEXT NOT NULL,
    created_by TEXT,
    created_via_operator BOOLEAN NOT NULL,
    updated_by TEXT,
    updated_via_operator BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX workloads_name ON workloads (zone_id, name_key);
CREATE INDEX workloads_page ON workloads (zone_id, created_at, id);
