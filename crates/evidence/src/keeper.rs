//! The keeper thread: shortly after something was written it syncs the write-ahead log, and has
//! deleted what was acknowledged meanwhile. Asleep otherwise.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::backlog::Backlog;
use crate::disk;
use crate::log::Durability;
use crate::writer::Command;

/// From the first write to the sync of everything written until then. With the sync itself this
/// stays below the 20 ms that `AUDIT_DURABILITY=process` promises.
const SYNC_AFTER: Duration = Duration::from_millis(10);

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
}

impl Keeper {
    pub fn new(
        path: &Path,
        durability: Durability,
        alarm: Arc<Alarm>,
        backlog: Arc<Backlog>,
        writer: mpsc::WeakSender<Command>,
    ) -> std::io::Result<Self> {
        let wal = match durability {
            Durability::Process => Some(File::open(disk::wal(path))?),
            Durability::Machine => None,
        };
        Ok(Self {
            alarm,
            backlog,
            writer,
            wal,
        })
    }

    /// The body of the thread; ends with the writer.
    pub fn run(self) {
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

    fn settle(&self) {
        // A full queue means that commits are on their way, which delete in passing.
        if let Some(writer) = self.writer.upgrade() {
            let _ = writer.try_send(Command::Settle);
        }
    }
}
