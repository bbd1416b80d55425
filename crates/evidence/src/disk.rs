//! The file: one table of events that wait, in the order in which they were committed.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use caracal_model::{EventId, Timestamp};
use rusqlite::{Connection, OpenFlags, params};

use crate::backlog::{Batch, Entry, Recovered};
use crate::error::OpenError;
use crate::log::Durability;
use crate::sink::Pending;

/// A file that has grown past this in an outage is given back when it is next opened empty.
const SHRINK_ABOVE_PAGES: i64 = 16_384;

/// How long to begin the log anew may wait for readers, which are done in milliseconds.
const READERS_WAIT: Duration = Duration::from_millis(50);

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS pending (
    seq INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    id TEXT NOT NULL,
    event TEXT NOT NULL
)";

/// The writing end, held by the writer thread. The lock goes with it.
#[derive(Debug)]
pub struct Disk {
    connection: Connection,
    path: PathBuf,
    durability: Durability,
    _lock: File,
}

/// Creates the directory (0700), as the reference has it.
pub fn prepare(dir: &Path) -> Result<(), OpenError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| OpenError::Directory {
        path: dir.to_owned(),
        source,
    })
}

fn private(path: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let opened = options.open(path);
    opened.map_err(|source| OpenError::Directory {
        path: path.to_owned(),
        source,
    })
}

impl Disk {
    pub fn open(path: &Path, durability: Durability) -> Result<Self, OpenError> {
        let lock = private(&path.with_extension("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::InUse {
                path: path.to_owned(),
            },
            TryLockError::Error(source) => OpenError::Directory {
                path: path.to_owned(),
                source,
            },
        })?;
        private(path)?;
        let connect = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(path)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            // Every open begins with what must not be lost: recovery and the import of old files.
            connection.pragma_update(None, "synchronous", "FULL")?;
            // Folding takes milliseconds, in which no caller would be answered: the folder does it.
            connection.pragma_update(None, "wal_autocheckpoint", 0)?;
            connection.busy_timeout(READERS_WAIT)?;
            connection.execute_batch(SCHEMA)?;
            Ok(connection)
        };
        let connection = connect().map_err(|source| OpenError::Log {
            path: path.to_owned(),
            source,
        })?;
        sync_directory(path)?;
        Ok(Self {
            connection,
            path: path.to_owned(),
            durability,
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is there. From here on commits are as durable as was asked for.
    pub fn recover(&self) -> Result<Recovered, OpenError> {
        let found = self.count().and_then(|recovered| {
            if self.durability == Durability::Process {
                // A commit reaches the operating system; the keeper syncs it shortly after.
                self.connection
                    .pragma_update(None, "synchronous", "NORMAL")?;
            }
            if recovered.count == 0 {
                self.shrink()?;
            }
            Ok(recovered)
        });
        found.map_err(|source| OpenError::Log {
            path: self.path.clone(),
            source,
        })
    }

    fn count(&self) -> rusqlite::Result<Recovered> {
        count(&self.connection)
    }

    /// The place of the last entry; 0 when there is none.
    pub fn recover_last(&self) -> rusqlite::Result<u64> {
        let sql = "SELECT coalesce(max(seq), 0) FROM pending";
        self.connection
            .query_row(sql, [], |row| row.get(0))
            .map(unsigned)
    }

    fn shrink(&self) -> rusqlite::Result<()> {
        let pages: i64 = self
            .connection
            .query_row("PRAGMA page_count", [], |row| row.get(0))?;
        if pages > SHRINK_ABOVE_PAGES {
            self.connection.execute_batch("VACUUM")?;
        }
        Ok(())
    }

    /// Deletes everything up to `forget`, then writes these: all of it, or nothing.
    pub fn commit(&self, forget: Option<u64>, entries: &[Entry]) -> rusqlite::Result<()> {
        self.run("BEGIN IMMEDIATE")?;
        let written = self
            .write(forget, entries)
            .and_then(|()| self.run("COMMIT"));
        if written.is_err() && !self.connection.is_autocommit() {
            // Some errors have rolled back by themselves; then there is nothing to do. If this
            // fails, every later commit fails and says so.
            let _ = self.run("ROLLBACK");
        }
        written
    }

    fn write(&self, forget: Option<u64>, entries: &[Entry]) -> rusqlite::Result<()> {
        if let Some(upto) = forget {
            let sql = "DELETE FROM pending WHERE seq <= ?1";
            self.connection
                .prepare_cached(sql)?
                .execute([upto.cast_signed()])?;
        }
        let sql = "INSERT INTO pending (seq, at, id, event) VALUES (?1, ?2, ?3, ?4)";
        let mut insert = self.connection.prepare_cached(sql)?;
        for Entry { seq, at, event } in entries {
            let at = at.unix_micros();
            insert.execute(params![
                seq.cast_signed(),
                at,
                event.id.as_str(),
                event.wire
            ])?;
        }
        Ok(())
    }

    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([])?;
        Ok(())
    }

    /// Whether the disk takes a write, without an event.
    pub fn probe(&self) -> rusqlite::Result<()> {
        self.connection.pragma_update(None, "user_version", 1)
    }

    /// Folds what is left of the write-ahead log, which then begins anew.
    pub fn restart(&self) -> rusqlite::Result<()> {
        checkpoint(&self.connection, "RESTART").map(drop)
    }

    /// Folds the write-ahead log into the file, at the end.
    pub fn finish(&self) -> rusqlite::Result<()> {
        checkpoint(&self.connection, "TRUNCATE").map(drop)
    }

    #[cfg(test)]
    pub fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.execute_batch(sql)
    }
}

/// Folds the write-ahead log into the file; answers with the pages that it has.
pub fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<i64> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    connection.query_row(&sql, [], |row| row.get(1))
}

fn count(connection: &Connection) -> rusqlite::Result<Recovered> {
    let sql = "SELECT count(*), coalesce(min(seq), 1), coalesce(max(seq), 0),
        coalesce(sum(length(CAST(event AS BLOB))), 0), min(at) FROM pending";
    connection.query_row(sql, [], |row| {
        let oldest: Option<i64> = row.get(4)?;
        Ok(Recovered {
            count: unsigned(row.get(0)?),
            before_first: unsigned(row.get(1)?).saturating_sub(1),
            last: unsigned(row.get(2)?),
            bytes: unsigned(row.get(3)?),
            oldest: oldest.map(Timestamp::from_unix_micros),
        })
    })
}

/// The write-ahead log beside a file.
pub fn wal(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// A file that was just created is durable once its directory is.
fn sync_directory(path: &Path) -> Result<(), OpenError> {
    let Some(dir) = path.parent() else {
        return Ok(());
    };
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| OpenError::Directory {
        path: dir.to_owned(),
        source,
    })
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The reading end, for what is no longer in memory.
#[derive(Debug)]
pub struct Reader(Connection);

impl Reader {
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(1))?;
        Ok(Self(connection))
    }

    /// How much there is.
    pub fn count(&self) -> rusqlite::Result<Recovered> {
        count(&self.0)
    }

    /// Up to `limit` entries after `after`.
    pub fn after(&self, after: u64, limit: usize) -> rusqlite::Result<Batch> {
        let sql = "SELECT seq, at, id, event FROM pending WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut select = self.0.prepare_cached(sql)?;
        let mut rows = select.query(params![after.cast_signed(), most])?;
        let mut batch = Batch::default();
        while batch.has_room(limit)
            && let Some(row) = rows.next()?
        {
            let id = EventId::trusted(row.get::<_, String>(2)?);
            batch.push(Entry {
                seq: unsigned(row.get(0)?),
                at: Timestamp::from_unix_micros(row.get(1)?),
                event: Pending {
                    id,
                    wire: row.get(3)?,
                },
            });
        }
        Ok(batch)
    }
}
