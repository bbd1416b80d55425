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
    text: Text,
}

/// One text wherever both engines understand it.
enum Text {
    Both(&'static str),
    Each {
        pg: &'static str,
        lite: &'static str,
    },
}

impl Text {
    const fn pg(&self) -> &'static str {
        match self {
            Self::Both(text) | Self::Each { pg: text, .. } => text,
        }
    }

    const fn lite(&self) -> &'static str {
        match self {
            Self::Both(text) | Self::Each { lite: text, .. } => text,
        }
    }
}

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "foundation",
        text: Text::Both(include_str!("../migrations/0001_foundation.sql")),
    },
    Migration {
        version: 2,
        name: "approvals",
        text: Text::Both(include_str!("../migrations/0002_approvals.sql")),
    },
    Migration {
        version: 3,
        name: "provider_connections",
        text: Text::Both(include_str!("../migrations/0003_provider_connections.sql")),
    },
    Migration {
        version: 4,
        name: "federation",
        text: Text::Both(include_str!("../migrations/0004_federation.sql")),
    },
    Migration {
        version: 5,
        name: "workloads",
        text: Text::Both(include_str!("../migrations/0005_workloads.sql")),
    },
    Migration {
        version: 6,
        name: "keys and row security",
        text: Text::Both(include_str!("../migrations/0006_keys_and_row_security.sql")),
    },
    Migration {
        version: 7,
        name: "outside secrets",
        text: Text::Both(include_str!("../migrations/0007_outside_secrets.sql")),
    },
    Migration {
        version: 9,
        name: "audit checkpoints",
        text: Text::Both(include_str!("../migrations/0009_audit_checkpoints.sql")),
    },
    Migration {
        version: 10,
        name: "ledger",
        text: Text::Each {
            pg: include_str!("../migrations/0010_ledger.pg.sql"),
            lite: include_str!("../migrations/0010_ledger.lite.sql"),
        },
    },
    Migration {
        version: 11,
        name: "audit retention",
        text: Text::Both(include_str!("../migrations/0011_audit_retention.sql")),
    },
    Migration {
        version: 12,
        name: "audit exports",
        text: Text::Both(include_str!("../migrations/0012_audit_exports.sql")),
    },
    Migration {
        version: 13,
        name: "admin audit",
        text: Text::Both(include_str!("../migrations/0013_admin_audit.sql")),
    },
    Migration {
        version: 14,
        name: "notification sinks",
        text: Text::Both(include_str!("../migrations/0014_notification_sinks.sql")),
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
pub(crate) const ADVISORY_LOCK: &str = "SELECT pg_advisory_xact_lock(4732518903281471)";

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

/// The hash of every migration that this program has for this engine, by version.
pub(crate) fn texts(engine: &Engine) -> BTreeMap<u32, String> {
    let hashed = |migration: &Migration| {
        let text = match engine {
            Engine::Lite(_) => migration.text.lite(),
            Engine::Pg(_) => migration.text.pg(),
        };
        sha256_hex(text.as_bytes())
    };
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
fn compare(migration: &Migration, text: &str, recorded: &str) -> Result<(), StoreError> {
    if recorded == sha256_hex(text.as_bytes()) {
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
    let text = migration.text.lite();
    connection.execute_batch(TABLE).map_err(fails)?;
    let recorded = connection
        .prepare(sql::FIND.lite)
        .and_then(|mut find| {
            let mut rows = find.query([migration.version])?;
            rows.next()?.map(|row| row.get::<_, String>(0)).transpose()
        })
        .map_err(fails)?;
    if let Some(recorded) = recorded {
        return compare(migration, text, &recorded).map(|()| false);
    }
    connection.execute_batch(text).map_err(fails)?;
    let sha256 = sha256_hex(text.as_bytes());
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
    let text = migration.text.pg();
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
        return compare(migration, text, &recorded).map(|()| false);
    }
    tx.batch_execute(text).await.map_err(fails)?;
    let sha256 = sha256_hex(text.as_bytes());
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

#[cfg(test)]
mod tests {
    use caracal_model::ZoneId;

    use super::*;
    use crate::params;
    use crate::testing::{Database, raw};

    const EVENT: &str = "INSERT INTO audit_events (zone_id, chain_seq, id, event_type, request_id,
            decision, evaluation_status, application_id, agent_session_id, authority_record_id,
            labels, occurred_at, ingested_at, event, content_sha256, chain_hash, chain_hmac)
        VALUES ($1, $2, $3, 'token_exchange', 'request', 'allow', 'complete', $4, NULL, 'record',
            $5, 7, $6, $7, $8, $8, '')";
    const HEAD: &str = "INSERT INTO audit_heads (zone_id, chain_seq, chain_hash)
        VALUES ($1, $2, $3)";
    const UUID: &str = "0198f000-0000-7000-8000-000000000001";
    /// 5 and 1 March 2026.
    const LATER: i64 = 1_772_668_800_000_000;
    const EARLIER: i64 = 1_772_323_200_000_000;

    async fn old_ledger(store: &Store) {
        apply_all(store, &MIGRATIONS[..6]).await.unwrap();
        let hash = "ab".repeat(32);
        let mut tx = store.begin("test").await.unwrap();
        for (zone, seq, id, application, labels, at) in [
            ("z1", 1, UUID, Some("app-1"), "\u{1f}desk\u{1f}", LATER),
            ("z1", 2, "fifteen-letters", None, "", EARLIER),
            ("z2", 1, "evt-é", Some(UUID), "", EARLIER),
        ] {
            let text = format!("{{\"id\":\"{id}\",\"evaluation_status\":\"complete\"}}");
            let params = params![zone, seq, id, application, labels, at, text, &hash];
            tx.execute(&raw(EVENT), &params).await.unwrap();
        }
        for (zone, seq) in [("z1", 2), ("z2", 1), ("empty", 0)] {
            tx.execute(&raw(HEAD), &params![zone, seq, &hash])
                .await
                .unwrap();
        }
        tx.commit().await.unwrap();
    }

    async fn check_converted(store: &Store) {
        let z1 = ZoneId::trusted("z1");
        let rows = store.zone(&z1).audit().chain(0, 10).await.unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!((&*rows[0].id, &*rows[1].id), (UUID, "fifteen-letters"));
        assert_eq!(rows[0].application_id.as_deref(), Some("app-1"));
        assert_eq!(
            (&rows[0].agent_session_id, &rows[1].application_id),
            (&None, &None)
        );
        assert_eq!(rows[0].authority_record_id.as_deref(), Some("record"));
        assert_eq!(
            (&*rows[0].labels, rows[1].labels.len()),
            (&["desk".to_owned()][..], 0)
        );
        assert!(rows[0].event.contains(UUID));
        assert_eq!(
            (&rows[0].chain_hash, &*rows[0].chain_hmac),
            (&"ab".repeat(32), "")
        );
        let at: Vec<i64> = rows
            .iter()
            .map(|row| row.ingested_at.unix_micros())
            .collect();
        assert_eq!(
            at,
            [LATER, LATER],
            "time of ingestion does not go back any more"
        );
        let known = store
            .known_audit_events(&["evt-é", UUID, "none"])
            .await
            .unwrap();
        assert_eq!(known.len(), 2);
        let z2 = ZoneId::trusted("z2");
        let other = store.zone(&z2).audit().by_request("request").await.unwrap();
        assert_eq!(other[0].application_id.as_deref(), Some(UUID));
        let heads = store.all_audit_heads().await.unwrap();
        assert_eq!(heads.len(), 3);
        let (head, at) = store.audit_tips(&["z1"]).await.unwrap().remove(0);
        assert_eq!((head.chain_seq, at.unix_micros()), (2, LATER));
        assert_eq!(store.audit_zones().await.unwrap().len(), 3);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_ledger_of_before_is_converted() {
        for database in Database::each("converted").await {
            let store = database.open().await;
            old_ledger(&store).await;
            store.migrate().await.unwrap();
            check_converted(&store).await;
            assert_eq!(store.migrate().await.unwrap(), Vec::<u32>::new());
            store.shutdown().await;
            database.remove().await;
        }
    }
}
