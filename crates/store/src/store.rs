//! The facade: one set of statements, two engines, chosen when the store is opened and nowhere
//! else.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caracal_model::{Clock, Histogram, Ids, Secret, ZoneId};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::error::StoreError;
use crate::lite::{Lite, Reader};
use crate::migrate;
use crate::param::Param;
use crate::pg::{self, Mode, Pg, PgTx, Sight};
use crate::row::Row;
use crate::secure::PgTls;
use crate::sql::Sql;
use crate::tx::Tx;

/// Where the data is.
#[derive(Debug)]
pub enum StoreUrl {
    /// A SQLite file; created when it does not exist.
    Lite(PathBuf),
    /// A Postgres database.
    Pg {
        /// `postgres://…`
        url: Secret<String>,
        /// How connections are made secure; in the clear without.
        tls: Option<PgTls>,
        /// How many there are, and how long anything may take.
        pool: PoolOptions,
    },
}

/// The connections of a process to Postgres (spec: operations §2.1, §2.2, §17.7).
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Most of them.
    pub max: usize,
    /// So many are kept open though idle; never more than `max`.
    pub min: usize,
    /// Longest wait for one, and longest time to make one.
    pub connect_timeout: Duration,
    /// Longest run of one statement.
    pub statement_timeout: Duration,
    /// How long a transaction may do nothing before the server ends it.
    pub idle_in_tx: Duration,
    /// An idle one is closed after this, unless it is among `min`.
    pub idle: Duration,
    /// One as old as this is not used again.
    pub lifetime: Duration,
    /// How often idle ones are looked at.
    pub look_every: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            max: 8,
            min: 0,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(15),
            idle_in_tx: Duration::from_secs(30),
            idle: Duration::from_secs(300),
            lifetime: Duration::from_secs(1800),
            look_every: Duration::from_secs(30),
        }
    }
}

/// What a SQLite commit survives. Postgres keeps its own counsel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Any kill of the process.
    #[default]
    Process,
    /// A power cut.
    Machine,
}

/// What it takes to open a store.
#[derive(Debug)]
pub struct StoreConfig {
    /// Where the data is.
    pub url: StoreUrl,
    /// What a SQLite commit survives.
    pub durability: Durability,
}

/// How busy the connections are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStats {
    /// Connections in use.
    pub in_use: usize,
    /// Most that there can be.
    pub max: usize,
}

/// The system of record. Clones share one set of connections.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    clock: Arc<dyn Clock>,
    ids: Arc<Ids>,
    outbox_wake: Notify,
    audit_appended: watch::Sender<()>,
    visits: AtomicU64,
    audit_months_made: Mutex<HashSet<i64>>,
}

pub(crate) enum Engine {
    Lite(Lite),
    Pg(Pg),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.engine() {
            Engine::Lite(_) => "Store(SQLite)",
            Engine::Pg(_) => "Store(Postgres)",
        })
    }
}

impl Store {
    /// Opens the store. Postgres is not contacted yet: [`Store::ping`] does.
    pub async fn open(
        config: StoreConfig,
        clock: Arc<dyn Clock>,
        ids: Arc<Ids>,
    ) -> Result<Self, StoreError> {
        let engine = match &config.url {
            StoreUrl::Lite(path) => {
                Engine::Lite(Lite::open(path, config.durability, Arc::clone(&clock))?)
            }
            StoreUrl::Pg { url, tls, pool } => {
                Engine::Pg(Pg::open(url, *pool, tls.as_ref(), Arc::clone(&clock))?)
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                engine,
                clock,
                ids,
                outbox_wake: Notify::new(),
                audit_appended: watch::Sender::new(()),
                visits: AtomicU64::new(0),
                audit_months_made: Mutex::default(),
            }),
        })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        self.inner.clock.as_ref()
    }

    pub(crate) fn ids(&self) -> &Ids {
        &self.inner.ids
    }

    /// Months of the ledger (their first microsecond) that this process knows to have a place.
    pub(crate) fn audit_months_made(&self) -> &Mutex<HashSet<i64>> {
        &self.inner.audit_months_made
    }

    /// Brings the schema up to date; answers with the versions that were applied now. Safe to run
    /// from several processes at once.
    pub async fn migrate(&self) -> Result<Vec<u32>, StoreError> {
        migrate::run(self).await
    }

    /// How often the store was asked for anything: reads, snapshots and transactions. What is warm
    /// does not ask.
    pub fn visits(&self) -> u64 {
        self.inner.visits.load(Ordering::Relaxed)
    }

    fn visit(&self) {
        self.inner.visits.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the store answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.query(&sql::PING, &[]).await.map(drop)
    }

    /// How busy the connections are.
    pub fn pool(&self) -> PoolStats {
        match self.engine() {
            Engine::Lite(lite) => lite.pool(),
            Engine::Pg(pg) => pg.pool(),
        }
    }

    /// How long connections were waited for.
    pub fn waits(&self) -> &Histogram {
        match self.engine() {
            Engine::Lite(lite) => lite.waits(),
            Engine::Pg(pg) => pg.waits(),
        }
    }

    /// Begins a transaction that may write. `doing` names it in errors and logs. See [`Tx`].
    pub async fn begin(&self, doing: &'static str) -> Result<Tx, StoreError> {
        self.visit();
        Tx::begin(self.clone(), doing).await
    }

    /// Reads outside of a transaction: every statement sees the latest commit.
    pub async fn query(&self, sql: &Sql, params: &[Param<'_>]) -> Result<Vec<Row>, StoreError> {
        self.look(Sight::All, sql, params).await
    }

    async fn look(
        &self,
        sight: Sight<'_>,
        sql: &Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        self.visit();
        check(sql, params)?;
        match self.engine() {
            Engine::Lite(lite) => lite.query(sql, params).await,
            Engine::Pg(pg) => Box::pin(pg.query(sight, sql, params)).await,
        }
    }

    /// Reads one row, the first when there are several.
    pub async fn query_opt(
        &self,
        sql: &Sql,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Several reads of one state of the store.
    pub async fn snapshot(&self, doing: &'static str) -> Result<Snapshot, StoreError> {
        self.visit();
        let reading = match self.engine() {
            Engine::Lite(lite) => Reading::Lite(lite.snapshot(doing).await?),
            Engine::Pg(pg) => {
                Reading::Pg(Box::new(Box::pin(pg.begin(doing, Mode::Snapshot)).await?))
            }
        };
        Ok(Snapshot {
            reading,
            within: None,
        })
    }

    /// What belongs to this zone: repositories hang off it.
    pub fn zone<'s>(&'s self, zone: &'s ZoneId) -> ZoneScope<'s> {
        ZoneScope { store: self, zone }
    }

    /// Rings after a commit of this process that announced something.
    pub fn outbox_wake(&self) -> &Notify {
        &self.inner.outbox_wake
    }

    /// Changes after a commit of this process that appended to the ledger.
    pub fn audit_appended(&self) -> watch::Receiver<()> {
        self.inner.audit_appended.subscribe()
    }

    pub(crate) fn tell_audit_appended(&self) {
        self.inner.audit_appended.send_replace(());
    }

    /// Prepares statements without running them; answers with each that the engine refuses.
    pub async fn refused_statements(
        &self,
        statements: impl IntoIterator<Item = &'static Sql>,
    ) -> Result<Vec<StoreError>, StoreError> {
        let mut refused = Vec::new();
        for sql in statements {
            let prepared = match self.engine() {
                Engine::Lite(lite) => {
                    let prepare =
                        |on: &mut rusqlite::Connection| crate::lite::statement::prepare(on, sql);
                    lite.writer.exclusive(sql.name, prepare).await
                }
                Engine::Pg(pg) => {
                    let client = pg.client(sql.name).await?;
                    pg::prepare(&client, sql).await.map(drop)
                }
            };
            refused.extend(prepared.err());
        }
        Ok(refused)
    }

    /// Finishes what was begun and closes the connections.
    pub async fn shutdown(&self) {
        match self.engine() {
            Engine::Lite(lite) => lite.shutdown().await,
            Engine::Pg(pg) => pg.shutdown(),
        }
    }
}

crate::statements! { pub(crate) mod sql {
    PING = "SELECT 1 AS one";
} }

pub(crate) fn check(sql: &Sql, params: &[Param<'_>]) -> Result<(), StoreError> {
    params.iter().try_for_each(|param| param.check(sql.name))
}

/// Reads of one state of the store. Short-lived: it holds a connection.
pub struct Snapshot {
    reading: Reading,
    within: Option<ZoneId>,
}

enum Reading {
    Lite(Reader),
    Pg(Box<PgTx>),
}

impl Snapshot {
    /// Reads.
    pub async fn query(&mut self, sql: &Sql, params: &[Param<'_>]) -> Result<Vec<Row>, StoreError> {
        check(sql, params)?;
        let sight = self.within.as_ref().map_or(Sight::All, Sight::Zone);
        match &mut self.reading {
            Reading::Lite(reader) => reader.query(sql, params),
            Reading::Pg(tx) => Box::pin(tx.query(sight, sql, params)).await,
        }
    }

    /// Reads one row, the first when there are several.
    pub async fn query_opt(
        &mut self,
        sql: &Sql,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }
}

/// One zone of the store. No method of a repository takes a `ZoneId`: it has one.
#[derive(Clone, Copy, Debug)]
pub struct ZoneScope<'s> {
    store: &'s Store,
    zone: &'s ZoneId,
}

impl<'s> ZoneScope<'s> {
    /// The zone.
    pub fn id(&self) -> &'s ZoneId {
        self.zone
    }

    /// The store, for what a repository of this crate does with it.
    pub(crate) fn store(&self) -> &'s Store {
        self.store
    }

    /// Reads outside of a transaction; `$1` is the zone by convention.
    pub(crate) async fn query(
        &self,
        sql: &Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        self.store.look(Sight::Zone(self.zone), sql, params).await
    }

    /// Several reads of one state of this zone.
    pub(crate) async fn reading(&self, doing: &'static str) -> Result<Snapshot, StoreError> {
        let mut snapshot = self.store.snapshot(doing).await?;
        snapshot.within = Some(self.zone.clone());
        Ok(snapshot)
    }

    /// Reads one row.
    pub(crate) async fn query_opt(
        &self,
        sql: &Sql,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }
}
