//! The writer thread: whatever has gathered is committed once, then everyone is answered.
//!
//! While one commit runs, the next callers gather; the busier it is, the larger the groups and the
//! cheaper each event. While events come one by one there is no timer: a caller alone waits for one
//! commit and no more. When they come so fast that several of them fall into a short wait, the writer
//! takes that wait before a commit ([`Pace`]), because a commit costs more than an event.
//!
//! INVARIANT (no allow without its decision): what the disk refuses is offered to the sink once,
//! except an allow that its caller has to take back for want of evidence: nothing was allowed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use caracal_model::{Clock, Ticks};
use tokio::sync::{mpsc, oneshot};

use crate::backlog::{Backlog, Entry};
use crate::disk::Disk;
use crate::error::EvidenceError;
use crate::keeper::Alarm;
use crate::sink::Pending;

/// Most commands in one commit.
const GROUP: usize = 1_024;
/// How many acknowledged entries may stay before a commit deletes them in passing. When it is
/// quiet, the keeper has them deleted at once.
const FORGET_AFTER: u64 = 256;

/// How long a commit waits for company when events come fast. A sleep of the system adds some 50 us.
const GATHER: Duration = Duration::from_micros(250);
/// They come fast when more than so many come in a millisecond: two or three fall into [`GATHER`].
const FAST: u32 = 10;
/// A group of so many does not wait for more.
const ENOUGH: usize = 8;
/// Over which time their number is averaged.
const MEASURED: Duration = Duration::from_millis(5);

/// Events of one caller, and where to answer.
#[derive(Debug)]
pub struct Append {
    pub events: Vec<Pending>,
    /// When the disk refuses, these are true no longer: their decision does not leave.
    pub conditional: bool,
    pub done: oneshot::Sender<Result<(), EvidenceError>>,
}

#[derive(Debug)]
pub enum Command {
    Append(Append),
    /// Delete what was acknowledged.
    Settle,
    /// Begin the write-ahead log anew, and say so.
    Restart(SyncSender<()>),
    /// Write what is queued and end.
    Close,
    #[cfg(test)]
    Execute(&'static str),
}

pub struct Writer {
    pub disk: Disk,
    pub commands: mpsc::Receiver<Command>,
    pub backlog: Arc<Backlog>,
    pub alarm: Arc<Alarm>,
    pub clock: Arc<dyn Clock>,
    pub last: u64,
    pub forgotten: u64,
}

impl Writer {
    /// The body of the thread; ends when the log is closed and everything queued is written.
    pub fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP);
        let mut pace = Pace::default();
        loop {
            // Returns as soon as there is one; takes all that are there, up to the bound.
            if self.commands.blocking_recv_many(&mut group, GROUP) == 0 {
                break;
            }
            if pace.is_worth_a_wait(group.len()) {
                std::thread::sleep(GATHER);
                while let Some(more) = self.next_at_once(group.len()) {
                    group.push(more);
                }
            }
            pace.count(group.len(), self.clock.ticks());
            self.serve(&mut group);
        }
        self.settle();
        if let Err(error) = self.disk.finish() {
            tracing::warn!(%error, "evidence log not folded into its file; the next start does it");
        }
        self.alarm.end();
    }

    fn next_at_once(&mut self, gathered: usize) -> Option<Command> {
        (gathered < GROUP).then(|| self.commands.try_recv().ok())?
    }

    fn serve(&mut self, group: &mut Vec<Command>) {
        let mut appends = Vec::with_capacity(group.len());
        let (mut settle, mut restart) = (false, None);
        for command in group.drain(..) {
            match command {
                Command::Append(append) => appends.push(append),
                Command::Settle => settle = true,
                Command::Restart(done) => restart = Some(done),
                Command::Close => self.commands.close(),
                #[cfg(test)]
                Command::Execute(sql) => self.disk.execute(sql).unwrap(),
            }
        }
        if !appends.is_empty() {
            self.append(appends);
        } else if settle {
            self.settle();
        }
        if let Some(done) = restart {
            if let Err(error) = self.disk.restart() {
                tracing::warn!(%error, "evidence log not begun anew; it grows until it is");
            }
            drop(done);
        }
    }

    fn append(&mut self, appends: Vec<Append>) {
        let at = self.clock.now();
        let mut waiting = Vec::with_capacity(appends.len());
        let mut entries = Vec::with_capacity(appends.len());
        let mut conditional = Vec::with_capacity(appends.len());
        for append in appends {
            let next = self.last + 1 + entries.len() as u64;
            conditional.extend(append.events.iter().map(|_| append.conditional));
            let places = (next..).zip(append.events);
            entries.extend(places.map(|(seq, event)| Entry { seq, at, event }));
            waiting.push(append.done);
        }
        let acknowledged = self.backlog.acknowledged();
        let forget = acknowledged >= self.forgotten + FORGET_AFTER;
        let outcome = self.commit(forget.then_some(acknowledged), entries, &conditional);
        for done in waiting {
            // Whoever no longer waits has its event on record all the same.
            let _ = done.send(outcome.clone());
        }
    }

    fn commit(
        &mut self,
        forget: Option<u64>,
        entries: Vec<Entry>,
        conditional: &[bool],
    ) -> Result<(), EvidenceError> {
        match self.disk.commit(forget, &entries) {
            Ok(()) => {
                self.forgotten = forget.unwrap_or(self.forgotten);
                self.last += entries.len() as u64;
                self.backlog.write_failed.store(false, Ordering::Relaxed);
                self.backlog.committed(entries);
                self.alarm.raise();
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, events = entries.len(), "evidence not written");
                self.backlog.write_failed.store(true, Ordering::Relaxed);
                // INVARIANT (no allow without its decision).
                let still_true = entries
                    .into_iter()
                    .zip(conditional)
                    .filter(|(_, conditional)| !**conditional)
                    .map(|(entry, _)| entry.event);
                self.backlog.refused_by_disk(still_true);
                Err(EvidenceError::Unwritable {
                    detail: error.to_string().into(),
                })
            }
        }
    }

    fn settle(&mut self) {
        if self.backlog.write_failed.load(Ordering::Relaxed) {
            // Readiness turned callers away after a failed write, so none of them would find out
            // that the disk is back.
            let failed = self.disk.probe().is_err();
            self.backlog.write_failed.store(failed, Ordering::Relaxed);
        }
        let acknowledged = self.backlog.acknowledged();
        if acknowledged <= self.forgotten {
            return;
        }
        match self.disk.commit(Some(acknowledged), &[]) {
            Ok(()) => self.forgotten = acknowledged,
            // They stay; at worst they are delivered once more, and Audit knows their ids.
            Err(error) => tracing::warn!(%error, "acknowledged evidence not deleted"),
        }
    }
}

/// How fast commands come.
#[derive(Debug, Default)]
struct Pace {
    since: Option<Ticks>,
    count: u32,
    fast: bool,
}

impl Pace {
    /// Whether so small a group should wait for others.
    fn is_worth_a_wait(&self, gathered: usize) -> bool {
        self.fast && gathered < ENOUGH
    }

    /// These have come.
    fn count(&mut self, commands: usize, now: Ticks) {
        let since = *self.since.get_or_insert(now);
        self.count = self
            .count
            .saturating_add(u32::try_from(commands).unwrap_or(u32::MAX));
        let took = now.since(since);
        if took < MEASURED {
            return;
        }
        // A pause ends a fast time by itself: its average is low.
        self.fast = FAST * took < self.count * Duration::from_millis(1);
        (self.since, self.count) = (Some(now), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backlog::{Next, Recovered};
    use crate::disk::Reader;
    use crate::log::Durability;
    use caracal_crypto::SystemClock;
    use caracal_model::EventId;

    fn events(count: usize) -> (Append, oneshot::Receiver<Result<(), EvidenceError>>) {
        let id = EventId::trusted("e");
        let event = Pending {
            id,
            wire: "{}".to_owned(),
        };
        let (done, waiting) = oneshot::channel();
        (
            Append {
                events: vec![event; count],
                conditional: true,
                done,
            },
            waiting,
        )
    }

    #[test]
    fn only_what_comes_fast_waits_for_company() {
        let at = |micros: u64| Ticks::from_micros(micros);
        let mut pace = Pace::default();
        for millisecond in 0..20 {
            assert!(!pace.is_worth_a_wait(1), "one a millisecond");
            pace.count(1, at(millisecond * 1_000));
        }
        for step in 200..300 {
            pace.count(2, at(step * 100));
        }
        assert!(pace.is_worth_a_wait(1), "twenty a millisecond");
        assert!(!pace.is_worth_a_wait(ENOUGH));
        pace.count(1, at(40_000));
        assert!(!pace.is_worth_a_wait(1), "after a pause");
    }

    #[test]
    fn a_commit_deletes_what_was_acknowledged_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("evidence-test.db");
        let mut writer = Writer {
            disk: Disk::open(&path, Durability::Process).unwrap(),
            commands: mpsc::channel(1).1,
            backlog: Arc::new(Backlog::new(&Recovered::default())),
            alarm: Arc::default(),
            clock: Arc::new(SystemClock::new()),
            last: 0,
            forgotten: 0,
        };
        let reader = Reader::open(&path).unwrap();
        let left = || {
            let batch = reader.after(0, 1_000).unwrap();
            let last = batch.span.last();
            (last + 1 - batch.span.count(), last)
        };
        let deliver = |writer: &Writer, after: u64, count: usize| {
            let Next::Batch(batch) = writer.backlog.after(after, count) else {
                panic!()
            };
            writer.backlog.sent(&batch.span);
            writer.backlog.arrived(&batch.span);
        };

        let (append, mut answer) = events(300);
        writer.append(vec![append]);
        assert!(matches!(answer.try_recv(), Ok(Ok(()))));
        assert_eq!(left(), (1, 300));

        deliver(&writer, 0, 255);
        writer.append(vec![events(1).0, events(1).0]);
        assert_eq!(left(), (1, 302), "too few to be worth a deletion");

        deliver(&writer, 255, 5);
        writer.append(vec![events(1).0]);
        assert_eq!(left(), (261, 303));

        deliver(&writer, 260, 2);
        writer.settle();
        assert_eq!(left(), (263, 303));
    }
}
