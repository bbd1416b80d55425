//! The SQLite engine: readers that execute where they are called, and one writer thread.
//!
//! **Forces.** SQLite has one writer at a time and answers a read in 5 us, so a queue per read
//! costs more than the read. A commit costs a sync when it must survive the machine.
//!
//! **Choice.** A few reader connections, used inline; a read never waits for a write (WAL). All
//! writes go through one thread, which commits together whatever has gathered ([`writer`]).

pub(crate) mod statement;
pub(crate) mod writer;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use caracal_model::{Clock, Histogram};
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::StoreError;
use crate::param::Param;
use crate::row::Row;
use crate::sql::Sql;
use crate::store::{Durability, PoolStats};
use writer::Writer;

const READERS: usize = 4;
/// Another process may hold the database for the length of its transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const CACHED_STATEMENTS: usize = 256;

pub(crate) struct Lite {
    readers: Readers,
    pub(crate) writer: Writer,
}

impl Lite {
    pub(crate) fn open(
        path: &Path,
        durability: Durability,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        create_private(path)?;
        let writing = connect(path, durability)?;
        let mut idle = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            let reading = connect(path, durability)?;
            pragma(&reading, "query_only", "ON")?;
            idle.push(reading);
        }
        Ok(Self {
            readers: Readers {
                idle: Arc::new(Mutex::new(idle)),
                permits: Arc::new(Semaphore::new(READERS)),
                clock: Arc::clone(&clock),
                waits: Histogram::durations(),
            },
            writer: Writer::start(writing, clock)?,
        })
    }

    pub(crate) async fn query(
        &self,
        sql: &Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        self.readers.take(sql.name).await?.query(sql, params)
    }

    /// A reader that sees one state of the database until it is dropped.
    pub(crate) async fn snapshot(&self, doing: &'static str) -> Result<Reader, StoreError> {
        let mut reader = self.readers.take(doing).await?;
        reader.execute_batch("BEGIN", doing)?;
        reader.in_transaction = true;
        Ok(reader)
    }

    pub(crate) fn pool(&self) -> PoolStats {
        PoolStats {
            in_use: READERS - self.readers.permits.available_permits(),
            max: READERS,
        }
    }

    pub(crate) const fn waits(&self) -> &Histogram {
        &self.readers.waits
    }

    pub(crate) async fn shutdown(&self) {
        self.writer.stop().await;
        self.readers.permits.close();
        self.readers.idle.lock().clear();
    }
}

struct Readers {
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
    waits: Histogram,
}

impl Readers {
    async fn take(&self, doing: &'static str) -> Result<Reader, StoreError> {
        let permit = self.permit().await;
        let permit = permit.ok_or_else(|| StoreError::closed(doing))?;
        let connection = self.idle.lock().pop();
        Ok(Reader {
            connection: Some(connection.ok_or_else(|| StoreError::closed(doing))?),
            home: Arc::clone(&self.idle),
            in_transaction: false,
            _permit: permit,
        })
    }

    /// Nearly always there at once, and then nobody looks at the clock. A loop of reads gives way to
    /// its neighbours even so: nothing else in a read waits.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            tokio::task::coop::consume_budget().await;
            self.waits.took(Duration::ZERO);
            return Some(permit);
        }
        let since = self.clock.ticks();
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        self.waits.took(self.clock.ticks().since(since));
        permit
    }
}

/// A reader connection, which goes home when it is dropped.
pub(crate) struct Reader {
    connection: Option<Connection>,
    home: Arc<Mutex<Vec<Connection>>>,
    in_transaction: bool,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    pub(crate) fn query(&self, sql: &Sql, params: &[Param<'_>]) -> Result<Vec<Row>, StoreError> {
        let connection = self
            .connection
            .as_ref()
            .ok_or_else(|| StoreError::closed(sql.name))?;
        statement::query(connection, sql, params)
    }

    fn execute_batch(&self, text: &str, doing: &'static str) -> Result<(), StoreError> {
        let connection = self
            .connection
            .as_ref()
            .ok_or_else(|| StoreError::closed(doing))?;
        connection
            .execute_batch(text)
            .map_err(|error| statement::error(connection, error, doing))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            if self.in_transaction && connection.execute_batch("ROLLBACK").is_err() {
                tracing::warn!("a reader did not end its snapshot");
            }
            self.home.lock().push(connection);
        }
    }
}

/// Pages of the write-ahead log after which a commit folds it into the file: 16 MiB. A page of an
/// index is written by many commits, and folded once.
const FOLDED_AFTER: &str = "4000";

fn connect(path: &Path, durability: Durability) -> Result<Connection, StoreError> {
    let opening = |error| unreachable("opening the database", error);
    let connection = Connection::open(path).map_err(opening)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(opening)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    pragma(&connection, "journal_mode", "WAL")?;
    pragma(&connection, "foreign_keys", "ON")?;
    let synchronous = match durability {
        Durability::Process => "NORMAL",
        Durability::Machine => "FULL",
    };
    pragma(&connection, "synchronous", synchronous)?;
    pragma(&connection, "wal_autocheckpoint", FOLDED_AFTER)?;
    Ok(connection)
}

fn pragma(connection: &Connection, name: &str, value: &str) -> Result<(), StoreError> {
    connection
        .pragma_update(None, name, value)
        .map_err(|error| unreachable("setting up a connection", error))
}

fn unreachable(doing: &'static str, error: rusqlite::Error) -> StoreError {
    StoreError::Unreachable {
        doing,
        source: error.into(),
    }
}

/// Creates the file readable by its owner only; SQLite gives its WAL the same mode.
fn create_private(path: &Path) -> Result<(), StoreError> {
    let fails = |error: std::io::Error| StoreError::Unreachable {
        doing: "creating the database",
        source: format!("{}: {error}", path.display()).into(),
    };
    if let Some(parent) = path.parent().map(PathBuf::from) {
        std::fs::create_dir_all(parent).map_err(fails)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop).map_err(fails)
}
