//! The keeper thread: shortly after something was written it syncs the write-ahead log, has deleted
//! what was acknowledged meanwhile, and now and then has the log folded. Asleep otherwise.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::backlog::Backlog;
use crate::disk;
use crate::error::OpenError;
use crate::log::Durability;
use crate::writer::Command;

/// From the first write to the sync of everything written until then. With the sync itself this
/// stays below the 20 ms that `AUDIT_DURABILITY=process` promises.
const SYNC_AFTER: Duration = Duration::from_millis(10);
/// Events after which the write-ahead log is folded into its file. Most are gone before, and what is
/// gone is not folded.
const FOLD_AFTER: u64 = 8_000;

/// Wakes the keeper. Raising it again before the keeper has looked costs nothing.
#[derive(Debug, Default)]
pub struct Alarm {
    raised: AtomicBool,
    ended: AtomicBool,
    keeper: Mutex<Option<Thread>>,
}

impl Alarm {
    pub fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(keeper) = self.keeper.lock().as_ref() {
            keeper.unpark();
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

pub struct Keeper {
    alarm: Arc<Alarm>,
    backlog: Arc<Backlog>,
    /// Weak: the keeper does not keep the writer alive.
    writer: mpsc::WeakSender<Command>,
    /// The write-ahead log, when syncing it is left to us.
    wal: Option<File>,
    folder: SyncSender<()>,
    /// How many events had been written at the last fold.
    folded: u64,
}

impl Keeper {
    pub fn new(
        path: &Path,
        durability: Durability,
        alarm: Arc<Alarm>,
        backlog: Arc<Backlog>,
        writer: mpsc::WeakSender<Command>,
        folder: SyncSender<()>,
    ) -> Result<Self, OpenError> {
        let wal = match durability {
            Durability::Process => {
                let wal = disk::wal(path);
                let open = File::open(&wal);
                Some(open.map_err(|source| OpenError::Directory { path: wal, source })?)
            }
            Durability::Machine => None,
        };
        Ok(Self {
            alarm,
            backlog,
            writer,
            wal,
            folder,
            folded: 0,
        })
    }

    /// The body of the thread; ends with the writer.
    pub fn run(mut self) {
        *self.alarm.keeper.lock() = Some(thread::current());
        while !self.alarm.has_ended() {
            if !self.alarm.raised.load(Ordering::Acquire) {
                thread::park();
                continue;
            }
            thread::park_timeout(SYNC_AFTER);
            self.alarm.raised.store(false, Ordering::Release);
            self.sync();
            self.settle();
            self.fold();
        }
        self.sync();
    }

    fn sync(&self) {
        let Some(wal) = &self.wal else { return };
        let synced = wal.sync_data();
        self.backlog
            .sync_failed
            .store(synced.is_err(), Ordering::Relaxed);
        if let Err(error) = synced {
            // The kernel may have dropped the pages: the next sync can succeed without them.
            tracing::error!(%error, "evidence not synced: a power failure may lose it");
            self.backlog
                .counters
                .sync_errors
                .fetch_add(1, Ordering::Relaxed);
        }
    }

    fn fold(&mut self) {
        let written = self.backlog.counters.persisted.load(Ordering::Relaxed);
        if written.saturating_sub(self.folded) < FOLD_AFTER {
            return;
        }
        // While it is still at it, it is asked again later.
        if self.folder.try_send(()).is_ok() {
            self.folded = written;
        }
    }

    fn settle(&self) {
        // A full queue means that commits are on their way, which delete in passing.
        if let Some(writer) = self.writer.upgrade() {
            let _ = writer.try_send(Command::Settle);
        }
    }
}
