-- Sealed secrets that a backend outside of this database keeps (CARACAL_SECRET_BACKEND). Of an
-- envelope that is outside, `envelope` keeps the first 12 bytes, which name its key, and
-- `outside_sha256` tells it from any other. A row without either is a secret that was forgotten, and
-- stays until the backend has forgotten it as well.
ALTER TABLE secret_store ADD COLUMN outside_sha256 TEXT;
ALTER TABLE secret_store ADD COLUMN backend TEXT;
-- Whoever writes to the backend holds the row: nobody else writes there under the same reference.
ALTER TABLE secret_store ADD COLUMN held_by TEXT;
ALTER TABLE secret_store ADD COLUMN held_until BIGINT;
CREATE INDEX secret_store_here ON secret_store (ref) WHERE outside_sha256 IS NULL;
