//! What an operator wants to know of a store before trusting it: its version, its clock, its schema,
//! and whether row security holds for whom we log in as.

use std::collections::BTreeMap;

use caracal_model::Timestamp;

use crate::error::StoreError;
use crate::migrate;
use crate::statements;
use crate::store::{Engine, Store};

statements! { pub(crate) mod sql {
    ENGINE = pg: "SELECT current_setting('server_version') AS version,
                      CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) AS now,
                      CAST((SELECT COUNT(*) FROM pg_roles WHERE rolname = current_user
                          AND (rolsuper OR rolbypassrls)) AS BIGINT) AS unbound",
             lite: "SELECT sqlite_version() AS version,
                      CAST(unixepoch('subsec') * 1000000 AS INTEGER) AS now, 0 AS unbound";
    IS_MIGRATED = pg: "SELECT COUNT(*) AS tables FROM pg_class
                          WHERE oid = to_regclass('schema_migrations')",
                  lite: "SELECT COUNT(*) AS tables FROM sqlite_master
                          WHERE type = 'table' AND name = 'schema_migrations'";
    PRESSURE = pg: "SELECT CAST(current_setting('max_connections') AS BIGINT)
                        - CAST(current_setting('superuser_reserved_connections') AS BIGINT) AS most,
                      COUNT(datname) AS connections,
                      COUNT(*) FILTER (WHERE runs) AS active,
                      COUNT(*) FILTER (WHERE runs AND (wait_event_type = 'IO'
                          OR wait_event = 'WALWrite')) AS io,
                      COUNT(*) FILTER (WHERE runs AND wait_event_type = 'Lock') AS locks
                    FROM (SELECT datname, wait_event_type, wait_event,
                            state = 'active' AND datname = current_database()
                                AND pid <> pg_backend_pid() AS runs
                          FROM pg_stat_activity) AS activity",
               lite: "SELECT 0 AS most, 0 AS connections, 0 AS active, 0 AS io, 0 AS locks";
    RECORDED = "SELECT version, sha256 FROM schema_migrations ORDER BY version";
} }

/// What answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineFacts {
    /// `Postgres` or `SQLite`.
    pub name: &'static str,
    /// As it tells it.
    pub version: String,
    /// Its clock when it answered.
    pub now: Timestamp,
    /// Whether row security holds for whom we log in as; SQLite has none and is one file anyway.
    pub is_row_security_bound: bool,
}

/// How busy a Postgres server is, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// Connections that there may be, without those kept for superusers.
    pub max_connections: u64,
    /// Connections of all clients, to all databases.
    pub connections: u64,
    /// Statements that run in our database; those of other logins are seen with `pg_monitor` only.
    pub active: u64,
    /// Of these, those that wait for the disk.
    pub waiting_io: u64,
    /// Of these, those that wait for a lock of another.
    pub waiting_lock: u64,
}

/// How the schema stands to this program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schema {
    /// The newest migration that was applied.
    pub version: u32,
    /// Migrations of this program that were not applied.
    pub missing: Vec<u32>,
    /// Applied by a newer program.
    pub unknown: Vec<u32>,
    /// Applied with another text than this program has.
    pub changed: Vec<u32>,
}

impl Store {
    /// What answers, and what its clock says.
    pub async fn engine_facts(&self) -> Result<EngineFacts, StoreError> {
        let row = self.query_opt(&sql::ENGINE, &[]).await?;
        let row = row.ok_or_else(|| StoreError::Corrupt {
            what: "the engine tells nothing about itself".to_owned(),
        })?;
        Ok(EngineFacts {
            name: match self.engine() {
                Engine::Pg(_) => "Postgres",
                Engine::Lite(_) => "SQLite",
            },
            version: row.string("version")?,
            now: Timestamp::from_unix_micros(row.int("now")?),
            is_row_security_bound: row.int("unbound")? == 0,
        })
    }

    /// How busy the server is; `None` for SQLite, which is no server.
    pub async fn pressure(&self) -> Result<Option<Pressure>, StoreError> {
        let row = self.query_opt(&sql::PRESSURE, &[]).await?;
        let Some(row) = row else { return Ok(None) };
        let count = |name| Ok::<_, StoreError>(u64::try_from(row.int(name)?).unwrap_or(0));
        let pressure = Pressure {
            max_connections: count("most")?,
            connections: count("connections")?,
            active: count("active")?,
            waiting_io: count("io")?,
            waiting_lock: count("locks")?,
        };
        Ok((pressure.max_connections > 0).then_some(pressure))
    }

    /// How the schema stands to this program; nothing is changed.
    pub async fn schema(&self) -> Result<Schema, StoreError> {
        let tables = self.query_opt(&sql::IS_MIGRATED, &[]).await?;
        let tables = tables.map(|row| row.int("tables")).transpose()?;
        let mut recorded = BTreeMap::new();
        if tables.is_some_and(|tables| tables > 0) {
            for row in self.query(&sql::RECORDED, &[]).await? {
                let version = u32::try_from(row.int("version")?).unwrap_or(u32::MAX);
                recorded.insert(version, row.string("sha256")?);
            }
        }
        Ok(compare(&recorded, &migrate::texts(self.engine())))
    }
}

fn compare(recorded: &BTreeMap<u32, String>, ours: &BTreeMap<u32, String>) -> Schema {
    let known = |version: &&u32| ours.contains_key(version);
    Schema {
        version: recorded.keys().last().copied().unwrap_or(0),
        missing: ours
            .keys()
            .filter(|version| !recorded.contains_key(version))
            .copied()
            .collect(),
        unknown: recorded
            .keys()
            .filter(|version| !known(version))
            .copied()
            .collect(),
        changed: recorded
            .iter()
            .filter(|(version, text)| ours.get(version).is_some_and(|own| own != *text))
            .map(|(version, _)| *version)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::on_each_engine! {
        async fn a_migrated_store_is_up_to_date_and_tells_its_clock(store: Store) {
            let schema = store.schema().await.unwrap();
            assert!(schema.version > 0);
            assert_eq!(schema, Schema { version: schema.version, ..Schema::default() });
            let facts = store.engine_facts().await.unwrap();
            assert!(!facts.version.is_empty());
            // A test server shares our clock; minutes apart would be a wrong unit.
            let apart = facts.now.unix_micros() - store.clock().now().unix_micros();
            assert!(apart.abs() < 600_000_000, "{apart}");
            if let Some(pressure) = store.pressure().await.unwrap() {
                assert_eq!(facts.name, "Postgres");
                assert!((1..=pressure.max_connections).contains(&pressure.connections), "{pressure:?}");
                assert!(pressure.waiting_io + pressure.waiting_lock <= pressure.active);
            } else {
                assert_eq!(facts.name, "SQLite");
            }
        }
    }

    #[test]
    fn a_schema_may_be_behind_ahead_or_another() {
        let texts = |pairs: &[(u32, &str)]| {
            let owned = pairs.iter().map(|(at, text)| (*at, (*text).to_owned()));
            owned.collect::<BTreeMap<_, _>>()
        };
        let ours = texts(&[(1, "a"), (2, "b")]);
        assert_eq!(
            compare(&ours, &ours),
            Schema {
                version: 2,
                ..Schema::default()
            }
        );
        let behind = compare(&texts(&[(1, "a")]), &ours);
        assert_eq!((behind.version, behind.missing), (1, vec![2]));
        let ahead = compare(&texts(&[(1, "a"), (2, "b"), (3, "c")]), &ours);
        assert_eq!((ahead.version, ahead.unknown), (3, vec![3]));
        let other = compare(&texts(&[(1, "x"), (2, "b")]), &ours);
        assert_eq!(other.changed, vec![1]);
    }
}
