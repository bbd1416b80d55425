//! The log as its producers see it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use caracal_ledger::Event;
use caracal_model::Clock;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::backlog::Backlog;
use crate::disk::{self, Disk};
use crate::error::{EvidenceError, OpenError};
use crate::folder::{Folder, LONG};
use crate::keeper::{Alarm, Keeper};
use crate::relay::Drain;
use crate::sink::Pending;
use crate::spool;
use crate::writer::{Append, Command, Writer};

/// How many callers may wait for the writer. Past this, [`EvidenceError::Overloaded`].
const QUEUE: usize = 10_000;

/// When an event counts as recorded (`AUDIT_DURABILITY`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Handed to the operating system, and synced within 20 ms: survives any kill of the process.
    #[default]
    Process,
    /// Synced before the answer: survives a loss of power.
    Machine,
}

/// The numbers of the log, for metrics and readiness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Events that no sink has taken yet.
    pub pending: u64,
    /// Their length together.
    pub bytes: u64,
    /// How long the oldest of them has waited.
    pub oldest_age: Duration,
    /// Files that hold such events: the log, when it does, and old files that were set aside.
    pub files: u64,
    /// Callers in the queue of the writer.
    pub queue_depth: usize,
    /// How many fit.
    pub queue_capacity: usize,
    /// Events written since the start.
    pub persisted: u64,
    /// Events that were sent and are not yet known to have arrived: they are kept.
    pub on_the_way: u64,
    /// Events that have arrived since the start.
    pub delivered: u64,
    /// Events that were sent again, because what they were sent on may have lost them.
    pub resent: u64,
    /// Those among them that an earlier process had left.
    pub replayed: u64,
    /// Deliveries that a sink refused.
    pub sink_errors: u64,
    /// Syncs that the disk refused.
    pub sync_errors: u64,
    /// Events that could be neither logged nor sent.
    pub dropped: u64,
}

/// A producer's evidence log. Clones share it.
#[derive(Clone)]
pub struct EvidenceLog {
    writer: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for EvidenceLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EvidenceLog({})", self.shared.path.display())
    }
}

struct Shared {
    path: PathBuf,
    backlog: Arc<Backlog>,
    clock: Arc<dyn Clock>,
    set_aside: u64,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl EvidenceLog {
    /// Opens `evidence-<name>.db` in `dir` (`AUDIT_REPLAY_DIR`), with everything that an earlier
    /// process left undelivered; events in files of the old format are taken over. The [`Drain`] is
    /// the one reading end, for a [`crate::Relay`].
    ///
    /// # Errors
    /// [`OpenError`] when the directory, the log or an old file cannot be used, or when another
    /// process holds the log.
    pub fn open(
        dir: &Path,
        name: &str,
        durability: Durability,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Drain), OpenError> {
        Self::open_with(dir, name, durability, clock, QUEUE)
    }

    pub(crate) fn open_with(
        dir: &Path,
        name: &str,
        durability: Durability,
        clock: Arc<dyn Clock>,
        queue: usize,
    ) -> Result<(Self, Drain), OpenError> {
        disk::prepare(dir)?;
        let path = dir.join(format!("evidence-{name}.db"));
        let disk = Disk::open(&path, durability)?;
        let set_aside = spool::import(dir, name, &disk, clock.now())?;
        let recovered = disk.recover()?;
        let backlog = Arc::new(Backlog::new(&recovered));
        let alarm = Arc::new(Alarm::default());
        let (sender, commands) = mpsc::channel(queue);
        let (ask_to_fold, asked_to_fold) = sync_channel(1);
        let keeper = Keeper::new(
            &path,
            durability,
            alarm.clone(),
            backlog.clone(),
            sender.downgrade(),
            ask_to_fold,
        )?;
        let folder = Folder::new(&path, asked_to_fold, sender.downgrade(), LONG)?;
        let writer = Writer {
            disk,
            commands,
            backlog: backlog.clone(),
            alarm: alarm.clone(),
            clock: clock.clone(),
            last: recovered.last,
            forgotten: recovered.before_first,
        };
        let named = |role: &str| thread::Builder::new().name(format!("evidence-{role}"));
        let threads = [
            named("writer").spawn(move || writer.run()),
            named("keeper").spawn(move || keeper.run()),
            named("folder").spawn(move || folder.run()),
        ];
        let threads = threads.into_iter().collect::<std::io::Result<Vec<_>>>();
        let threads = threads.map_err(|source| OpenError::Directory {
            path: path.clone(),
            source,
        })?;
        if recovered.count > 0 {
            let events = recovered.count;
            tracing::info!(
                events,
                "evidence of an earlier process is still to be delivered"
            );
        }
        let drain = Drain::new(path.clone(), backlog.clone(), alarm);
        let threads = Mutex::new(threads);
        let shared = Arc::new(Shared {
            path,
            backlog,
            clock,
            set_aside,
            threads,
        });
        Ok((
            Self {
                writer: sender,
                shared,
            },
            drain,
        ))
    }

    /// Records events of one decision: all of them, or none. Returns once they are as durable as
    /// the log is; only then may the decision leave the process.
    ///
    /// What the disk refuses is offered to the sink directly, unless it allows: nothing was allowed
    /// then.
    ///
    /// # Errors
    /// [`EvidenceError`]: the decision must be refused.
    pub async fn record(&self, events: &[Event]) -> Result<(), EvidenceError> {
        let Some((command, done)) = append(events, Certainty::Conditional) else {
            return Ok(());
        };
        self.writer.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => EvidenceError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => EvidenceError::Closed,
        })?;
        done.await.unwrap_or(Err(EvidenceError::Closed))
    }

    /// As [`EvidenceLog::record`], of what has already happened and cannot be refused any more:
    /// waits for room in the queue, which slows the caller down instead of losing the event.
    ///
    /// # Errors
    /// [`EvidenceError::Unwritable`], [`EvidenceError::Closed`]. The latter counts as a loss.
    pub async fn record_after_the_fact(&self, events: &[Event]) -> Result<(), EvidenceError> {
        let Some((command, done)) = append(events, Certainty::Happened) else {
            return Ok(());
        };
        let recorded = match self.writer.send(command).await {
            Ok(()) => done.await.unwrap_or(Err(EvidenceError::Closed)),
            Err(_) => Err(EvidenceError::Closed),
        };
        if matches!(recorded, Err(EvidenceError::Closed)) {
            self.shared.backlog.lost(events.len() as u64);
        }
        recorded
    }

    /// The numbers of this moment.
    pub fn stats(&self) -> Stats {
        let backlog = &self.shared.backlog;
        let (pending, bytes, oldest) = backlog.depth();
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let capacity = self.writer.max_capacity();
        Stats {
            pending,
            bytes,
            oldest_age: oldest
                .map(|at| self.shared.clock.now().since(at))
                .unwrap_or_default(),
            files: self.shared.set_aside + u64::from(pending > 0),
            queue_depth: capacity - self.writer.capacity(),
            queue_capacity: capacity,
            persisted: of(&backlog.counters.persisted),
            on_the_way: backlog.on_the_way(),
            delivered: of(&backlog.counters.delivered),
            resent: of(&backlog.counters.resent),
            replayed: of(&backlog.counters.replayed),
            sink_errors: of(&backlog.counters.sink_errors),
            sync_errors: of(&backlog.counters.sync_errors),
            dropped: of(&backlog.counters.dropped),
        }
    }

    /// Whether an event could be neither logged nor sent. Stays so until the next start
    /// (`audit_evidence_lost`).
    pub fn lost(&self) -> bool {
        self.shared.backlog.counters.dropped.load(Ordering::Relaxed) > 0
    }

    /// Whether the directory takes a file and the last write succeeded; if not,
    /// `audit_replay_unavailable`. Touches the disk: for readiness, not for each call.
    pub fn is_writable(&self) -> bool {
        let path = &self.shared.path;
        let probe = path
            .file_stem()
            .map(|stem| path.with_file_name(format!(".ready-{}", stem.to_string_lossy())));
        let takes_a_file = probe.is_some_and(|probe| {
            let removed = || match std::fs::remove_file(&probe) {
                // Somebody else who asks has removed it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            };
            std::fs::write(&probe, b"").and_then(|()| removed()).is_ok()
        });
        let backlog = &self.shared.backlog;
        let failing = backlog.write_failed.load(Ordering::Relaxed);
        if failing {
            // Have it tried again, for the next time that somebody asks.
            let _ = self.writer.try_send(Command::Settle);
        }
        let unsynced = backlog.sync_failed.load(Ordering::Relaxed);
        takes_a_file && !failing && !unsynced && path.exists()
    }

    /// Writes what is queued, ends the threads and closes the file. What no sink has taken stays in
    /// the file. Recording afterwards answers [`EvidenceError::Closed`].
    pub async fn close(&self) {
        let _ = self.writer.send(Command::Close).await;
        let threads = std::mem::take(&mut *self.shared.threads.lock());
        let joined = tokio::task::spawn_blocking(move || {
            threads
                .into_iter()
                .filter_map(|thread| thread.join().err())
                .count()
        });
        if joined.await.unwrap_or(1) > 0 {
            tracing::error!("a thread of the evidence log ended in a panic");
        }
    }

    #[cfg(test)]
    pub(crate) async fn execute(&self, sql: &'static str) {
        self.writer.send(Command::Execute(sql)).await.unwrap();
    }
}

/// Whether a decision has left already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Certainty {
    /// It leaves once it is recorded. An allow that cannot be recorded becomes a refusal.
    Conditional,
    /// It happened, whatever becomes of its record.
    Happened,
}

type Recorded = oneshot::Receiver<Result<(), EvidenceError>>;

/// Serialized here, in the caller: the writer thread is the narrow place. `None` for no events.
fn append(events: &[Event], certainty: Certainty) -> Option<(Command, Recorded)> {
    let allows = events.iter().any(|event| event.decision == "allow");
    let pending = |event: &Event| Pending {
        id: event.id.clone(),
        wire: event.to_wire(),
    };
    let (done, waiting) = oneshot::channel();
    let append = Append {
        events: events.iter().map(pending).collect(),
        conditional: allows && certainty == Certainty::Conditional,
        done,
    };
    (!events.is_empty()).then(|| (Command::Append(append), waiting))
}
