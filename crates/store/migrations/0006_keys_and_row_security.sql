-- Numbers that operators set for the whole deployment, below what its environment allows. Row
-- security is Postgres's own and is laid over the tables after every migration (migrate.rs).

CREATE TABLE platform_settings (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL,
    updated_by TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);
