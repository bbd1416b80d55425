//! Migrations: embedded, each in one transaction, safe to run from several processes at once.
//!
//! A released file never changes: its hash is recorded, and another text under the same version is
//! refused rather than guessed at.

use std::collections::BTreeMap;

use caracal_crypto::digest::sha256_hex;
use rusqlite::Connection;

use crate::error::StoreError;
use crate::lite::{Lite, statement};
use crate::pg::{self, Pg};
use crate::store::{Engine, Store};

struct Migration {
    version: u32,
    name: &'static str,
    text: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "foundation",
        text: include_str!("../migrations/0001_foundation.sql"),
    },
    Migration {
        version: 2,
        name: "approvals",
        text: include_str!("../migrations/0002_approvals.sql"),
    },
    Migration {
        version: 3,
        name: "provider_connections",
        text: include_str!("../migrations/0003_provider_connections.sql"),
    },
    Migration {
        version: 4,
        name: "federation",
        text: include_str!("../migrations/0004_federation.sql"),
    },
    Migration {
        version: 5,
        name: "workloads",
        text: include_str!("../migrations/0005_workloads.sql"),
    },
    Migration {
        version: 6,
        name: "keys and row security",
        text: include_str!("../migrations/0006_keys_and_row_security.sql"),
    },
    Migration {
        version: 7,
        name: "outside secrets",
        text: include_str!("../migrations/0007_outside_secrets.sql"),
    },
    Migration {
        version: 12,
        name: "audit exports",
        text: include_str!("../migrations/0012_audit_exports.sql"),
    },
];

/// Row security of Postgres, for every table that has zones (`pg`): a row is there only for who
/// said its zone, or said `*`. Laid over after the migrations, and so over tables that are yet to
/// come; what has it already is left alone. It holds for the owner of the tables as well, but not
/// for a superuser.
const ROW_SECURITY: &str = "DO $$
DECLARE it record;
BEGIN
    FOR it IN
        SELECT c.oid::regclass AS name,
            CASE WHEN c.relname = 'zones' THEN 'id' ELSE 'zone_id' END AS zone
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p')
            AND (c.relname = 'zones' OR EXISTS (
                SELECT 1 FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname = 'zone_id' AND NOT a.attisdropped))
            AND NOT EXISTS (
                SELECT 1 FROM pg_policy p
                WHERE p.polrelid = c.oid AND p.polname = 'caracal_zone')
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', it.name);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', it.name);
        EXECUTE format('CREATE POLICY caracal_zone ON %s USING '
            '((SELECT current_setting(''caracal.zone_id'', true)) IN (''*'', %I))',
            it.name, it.zone);
    END LOOP;
END $$";

/// Serialises migrations of every process that shares a Postgres.
const ADVISORY_LOCK: &str = "SELECT pg_advisory_xact_lock(4732518903281471)";

const TABLE: &str = "CREATE TABLE IF NOT EXISTS schema_migrations (
    version BIGINT PRIMARY KEY,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    applied_at BIGINT NOT NULL
)";

crate::statements! { pub(crate) mod sql {
    FIND = "SELECT sha256 FROM schema_migrations WHERE version = $1";
    RECORD = "INSERT INTO schema_migrations (version, name, sha256, applied_at)
              VALUES ($1, $2, $3, $4)";
} }

/// The hash of every migration that this program has, by version.
pub(crate) fn texts() -> BTreeMap<u32, String> {
    let hashed = |migration: &Migration| sha256_hex(migration.text.as_bytes());
    let texts = MIGRATIONS.iter();
    texts
        .map(|migration| (migration.version, hashed(migration)))
        .collect()
}

pub(crate) async fn run(store: &Store) -> Result<Vec<u32>, StoreError> {
    let applied = apply_all(store, MIGRATIONS).await?;
    if let Engine::Pg(pg) = store.engine() {
        Box::pin(secure_rows(pg)).await?;
    }
    Ok(applied)
}

async fn apply_all(
    store: &Store,
    migrations: &'static [Migration],
) -> Result<Vec<u32>, StoreError> {
    let mut applied = Vec::new();
    for migration in migrations {
        let at = store.clock().now().unix_micros();
        let done = match store.engine() {
            Engine::Lite(lite) => on_lite(lite, migration, at).await?,
            Engine::Pg(pg) => Box::pin(on_pg(pg, migration, at)).await?,
        };
        if done {
            tracing::info!(
                version = migration.version,
                name = migration.name,
                "schema migrated"
            );
            applied.push(migration.version);
        }
    }
    Ok(applied)
}

/// Whether a recorded migration is the one that we hold.
fn compare(migration: &Migration, recorded: &str) -> Result<(), StoreError> {
    if recorded == sha256_hex(migration.text.as_bytes()) {
        return Ok(());
    }
    Err(StoreError::Migration {
        version: migration.version,
        why: "was applied with another text; released migrations never change".into(),
    })
}

async fn on_lite(lite: &Lite, migration: &'static Migration, at: i64) -> Result<bool, StoreError> {
    let doing = "migrating";
    lite.writer
        .exclusive(doing, move |connection| {
            let fails = |connection: &Connection, error| statement::error(connection, error, doing);
            let done = connection
                .execute_batch("BEGIN IMMEDIATE")
                .map_err(|error| fails(connection, error))
                .and_then(|()| within_lite(connection, migration, at));
            let end = if matches!(done, Ok(true)) {
                "COMMIT"
            } else {
                "ROLLBACK"
            };
            if connection.is_autocommit() {
                return done;
            }
            let ended = connection.execute_batch(end);
            let done = done?;
            ended.map_err(|error| fails(connection, error))?;
            Ok(done)
        })
        .await
}

fn within_lite(
    connection: &Connection,
    migration: &Migration,
    at: i64,
) -> Result<bool, StoreError> {
    let fails = |error| statement::error(connection, error, migration.name);
    connection.execute_batch(TABLE).map_err(fails)?;
    let recorded = connection
        .prepare(sql::FIND.lite)
        .and_then(|mut find| {
            let mut rows = find.query([migration.version])?;
            rows.next()?.map(|row| row.get::<_, String>(0)).transpose()
        })
        .map_err(fails)?;
    if let Some(recorded) = recorded {
        return compare(migration, &recorded).map(|()| false);
    }
    connection.execute_batch(migration.text).map_err(fails)?;
    let sha256 = sha256_hex(migration.text.as_bytes());
    connection
        .execute(
            sql::RECORD.lite,
            (migration.version, migration.name, sha256, at),
        )
        .map_err(fails)?;
    Ok(true)
}

async fn on_pg(pg: &Pg, migration: &Migration, at: i64) -> Result<bool, StoreError> {
    let fails = |error| pg::error(error, "migrating");
    let mut client = pg.client("migrating").await?;
    let tx = client.transaction().await.map_err(fails)?;
    // Waiting for another runner, and building an index, may take longer than a statement should.
    tx.batch_execute("SET LOCAL statement_timeout = 0")
        .await
        .map_err(fails)?;
    tx.batch_execute(ADVISORY_LOCK).await.map_err(fails)?;
    tx.batch_execute(TABLE).await.map_err(fails)?;
    let version = i64::from(migration.version);
    if let Some(row) = tx
        .query_opt(sql::FIND.pg, &[&version])
        .await
        .map_err(fails)?
    {
        let recorded: String = row.try_get(0).map_err(fails)?;
        return compare(migration, &recorded).map(|()| false);
    }
    tx.batch_execute(migration.text).await.map_err(fails)?;
    let sha256 = sha256_hex(migration.text.as_bytes());
    tx.execute(sql::RECORD.pg, &[&version, &migration.name, &sha256, &at])
        .await
        .map_err(fails)?;
    tx.commit().await.map_err(fails)?;
    Ok(true)
}

async fn secure_rows(pg: &Pg) -> Result<(), StoreError> {
    let fails = |error| pg::error(error, "securing the rows of zones");
    let mut client = pg.client("migrating").await?;
    let tx = client.transaction().await.map_err(fails)?;
    tx.batch_execute("SET LOCAL statement_timeout = 0")
        .await
        .map_err(fails)?;
    tx.batch_execute(ADVISORY_LOCK).await.map_err(fails)?;
    tx.batch_execute(ROW_SECURITY).await.map_err(fails)?;
    tx.commit().await.map_err(fails)
}
