//! What was recorded and not yet taken: shared by the writer, the relay and whoever asks for
//! numbers.
//!
//! The window holds the newest part of the log in memory, so that the relay need not read the file
//! while it keeps up. It is bounded: when the relay falls behind, the oldest entries leave the
//! window, never the file.
//!
//! INVARIANT (contiguous): sequence numbers are given out without gaps, and an entry enters the
//! window only after its commit. So the entry after `n` is in the window exactly when the front of
//! the window is `n + 1`; otherwise it is in the file, or does not exist.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use caracal_model::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::sink::Pending;

/// Most entries in the window, and most bytes.
const WINDOW: (usize, usize) = (4_096, 8 << 20);
/// Most events that the disk refused and that wait for a direct delivery.
const UNLOGGED: usize = 10_000;
/// Most bytes in one batch for a sink.
const BATCH_BYTES: u64 = 4 << 20;

/// An event with its place in the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its place.
    pub seq: u64,
    /// When it was committed.
    pub at: Timestamp,
    /// The event.
    pub event: Pending,
}

/// A stretch of the log, without its events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    /// The place of the first.
    first: u64,
    /// The place of the last.
    last: u64,
    /// When the first was committed.
    first_at: Timestamp,
    /// When the last was committed.
    last_at: Timestamp,
    /// How many.
    count: u64,
    /// How long together.
    bytes: u64,
}

impl Span {
    pub fn last(&self) -> u64 {
        self.last
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// This one and the one that follows it.
    #[must_use]
    pub fn and(self, next: Self) -> Self {
        Self {
            last: next.last,
            last_at: next.last_at,
            count: self.count + next.count,
            bytes: self.bytes + next.bytes,
            ..self
        }
    }

    fn count_upto(&self, seq: u64) -> u64 {
        let before_first = self.first.saturating_sub(1);
        let beyond = self.last.saturating_sub(seq.max(before_first));
        self.count.saturating_sub(beyond)
    }
}

/// Entries that go to the sink together.
#[derive(Debug, Default)]
pub struct Batch {
    /// The events, as the sink wants them.
    pub events: Vec<Pending>,
    /// Where they are.
    pub span: Span,
}

impl Batch {
    /// Whether another entry may join.
    pub fn has_room(&self, limit: usize) -> bool {
        self.events.len() < limit && self.span.bytes < BATCH_BYTES
    }

    pub fn push(&mut self, entry: Entry) {
        if self.events.is_empty() {
            self.span.first = entry.seq;
            self.span.first_at = entry.at;
        }
        self.span.last = entry.seq;
        self.span.last_at = entry.at;
        self.span.count += 1;
        self.span.bytes += length(&entry.event);
        self.events.push(entry.event);
    }
}

/// What to deliver next.
#[derive(Debug)]
pub enum Next {
    /// These.
    Batch(Batch),
    /// What the file has after the position that was asked for.
    OnDisk,
    /// Nothing is left.
    Nothing,
}

/// What the file held when it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recovered {
    /// The place before the first entry.
    pub before_first: u64,
    /// The place of the last.
    pub last: u64,
    /// How many.
    pub count: u64,
    /// How long together.
    pub bytes: u64,
    /// When the first was committed.
    pub oldest: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Held {
    window: VecDeque<Entry>,
    window_bytes: usize,
    last: u64,
    pending: u64,
    bytes: u64,
    oldest: Option<Timestamp>,
    /// Sent, and not known to have arrived.
    on_the_way: u64,
    unlogged: VecDeque<Pending>,
}

/// The numbers of [`crate::Stats`] that only rise.
#[derive(Debug, Default)]
pub struct Counters {
    pub persisted: AtomicU64,
    pub delivered: AtomicU64,
    pub replayed: AtomicU64,
    pub sink_errors: AtomicU64,
    pub sync_errors: AtomicU64,
    pub dropped: AtomicU64,
    pub resent: AtomicU64,
}

#[derive(Debug)]
pub struct Backlog {
    held: Mutex<Held>,
    appended: Notify,
    /// Everything up to here was taken by the sink.
    acknowledged: AtomicU64,
    /// Everything up to here was in the file when it was opened.
    recovered: u64,
    /// The last commit failed.
    pub write_failed: AtomicBool,
    /// The last sync failed.
    pub sync_failed: AtomicBool,
    pub counters: Counters,
}

impl Backlog {
    pub fn new(recovered: &Recovered) -> Self {
        let held = Held {
            last: recovered.last,
            pending: recovered.count,
            bytes: recovered.bytes,
            oldest: recovered.oldest,
            ..Held::default()
        };
        Self {
            held: Mutex::new(held),
            appended: Notify::new(),
            acknowledged: AtomicU64::new(recovered.before_first),
            recovered: recovered.last,
            write_failed: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    /// Takes over what was committed.
    pub fn committed(&self, entries: Vec<Entry>) {
        let mut held = self.held.lock();
        for entry in entries {
            held.last = entry.seq;
            held.pending += 1;
            held.bytes += length(&entry.event);
            held.oldest.get_or_insert(entry.at);
            held.window_bytes += entry.event.wire.len();
            held.window.push_back(entry);
            self.counters.persisted.fetch_add(1, Ordering::Relaxed);
        }
        held.shrink();
        drop(held);
        self.appended.notify_one();
    }

    /// Keeps what the disk refused for one direct delivery.
    pub fn refused_by_disk(&self, events: impl Iterator<Item = Pending>) {
        let mut held = self.held.lock();
        for event in events {
            if held.unlogged.len() < UNLOGGED {
                held.unlogged.push_back(event);
            } else {
                self.lost(1);
            }
        }
        drop(held);
        self.appended.notify_one();
    }

    /// Up to `limit` events that the disk refused.
    pub fn take_unlogged(&self, limit: usize) -> Vec<Pending> {
        let mut held = self.held.lock();
        let count = limit.min(held.unlogged.len());
        held.unlogged.drain(..count).collect()
    }

    /// These could be neither logged nor sent.
    pub fn lost(&self, events: u64) {
        self.counters.dropped.fetch_add(events, Ordering::Relaxed);
    }

    /// Up to `limit` entries after `after`.
    pub fn after(&self, after: u64, limit: usize) -> Next {
        self.held.lock().take(after, limit)
    }

    /// The place before the first entry that memory knows of: for a file that lost entries.
    pub fn before_window(&self) -> u64 {
        let held = self.held.lock();
        held.window
            .front()
            .map_or(held.last, |front| front.seq.saturating_sub(1))
    }

    /// The sink has taken these, which followed what it had taken before.
    pub fn sent(&self, span: &Span) {
        let mut held = self.held.lock();
        held.pending = held.pending.saturating_sub(span.count);
        held.bytes = held.bytes.saturating_sub(span.bytes);
        // What comes next is not older than what has just left, which is near enough.
        held.oldest = (held.pending > 0).then_some(span.last_at);
        held.on_the_way += span.count;
    }

    /// What was sent is where it shall be: everything up to its end may be deleted.
    pub fn arrived(&self, span: &Span) {
        {
            let mut held = self.held.lock();
            held.on_the_way = held.on_the_way.saturating_sub(span.count);
        }
        self.acknowledged.store(span.last, Ordering::Release);
        let replayed = span.count_upto(self.recovered);
        self.counters
            .delivered
            .fetch_add(span.count, Ordering::Relaxed);
        self.counters
            .replayed
            .fetch_add(replayed, Ordering::Relaxed);
    }

    /// What was sent may never arrive: it waits again, in the file.
    pub fn returned(&self, span: &Span) {
        let mut held = self.held.lock();
        held.on_the_way = held.on_the_way.saturating_sub(span.count);
        held.pending += span.count;
        held.bytes += span.bytes;
        held.oldest = Some(span.first_at);
        drop(held);
        self.counters
            .resent
            .fetch_add(span.count, Ordering::Relaxed);
    }

    /// Everything up to here may be deleted.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Returns when something was appended since the last return.
    pub async fn appended(&self) {
        self.appended.notified().await;
    }

    /// Whether nothing waits for the sink.
    pub fn is_empty(&self) -> bool {
        let held = self.held.lock();
        held.pending == 0 && held.unlogged.is_empty()
    }

    /// How many were sent and are not known to have arrived.
    pub fn on_the_way(&self) -> u64 {
        self.held.lock().on_the_way
    }

    /// How many are pending, how long they are together, and since when the oldest is.
    pub fn depth(&self) -> (u64, u64, Option<Timestamp>) {
        let held = self.held.lock();
        (held.pending, held.bytes, held.oldest)
    }
}

fn length(event: &Pending) -> u64 {
    event.wire.len() as u64
}

impl Held {
    /// Lets the oldest entries go to what the file alone holds.
    fn shrink(&mut self) {
        let (most, most_bytes) = WINDOW;
        while self.window.len() > most || self.window_bytes > most_bytes {
            let Some(gone) = self.window.pop_front() else {
                return;
            };
            self.window_bytes -= gone.event.wire.len();
        }
    }

    fn take(&mut self, after: u64, limit: usize) -> Next {
        while self.window.front().is_some_and(|front| front.seq <= after) {
            self.pop();
        }
        match self.window.front() {
            Some(front) if front.seq == after + 1 => Next::Batch(self.batch(limit)),
            None if self.last <= after => Next::Nothing,
            Some(_) | None => Next::OnDisk,
        }
    }

    fn batch(&mut self, limit: usize) -> Batch {
        let mut batch = Batch::default();
        while batch.has_room(limit)
            && let Some(entry) = self.pop()
        {
            batch.push(entry);
        }
        batch
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.window.pop_front()?;
        self.window_bytes -= entry.event.wire.len();
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::EventId;

    fn entries(range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
        range
            .map(|seq| Entry {
                seq,
                at: Timestamp::from_unix_micros(seq.cast_signed()),
                event: Pending {
                    id: EventId::trusted(format!("e{seq}")),
                    wire: "{}".to_owned(),
                },
            })
            .collect()
    }

    fn span(range: std::ops::RangeInclusive<u64>) -> Span {
        let mut batch = Batch::default();
        entries(range)
            .into_iter()
            .for_each(|entry| batch.push(entry));
        batch.span
    }

    fn seqs(next: Next) -> Vec<u64> {
        match next {
            Next::Batch(Batch { span, .. }) => (span.first..=span.last).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reader_that_keeps_up_is_fed_from_memory() {
        let backlog = Backlog::new(&Recovered::default());
        assert!(matches!(backlog.after(0, 10), Next::Nothing));
        backlog.committed(entries(1..=3));
        assert_eq!(seqs(backlog.after(0, 2)), [1, 2]);
        assert_eq!(seqs(backlog.after(2, 2)), [3]);
        assert!(matches!(backlog.after(3, 2), Next::Nothing));
    }

    #[test]
    fn a_reader_that_fell_behind_is_sent_to_the_file_until_it_has_caught_up() {
        let backlog = Backlog::new(&Recovered::default());
        let most = WINDOW.0 as u64;
        backlog.committed(entries(1..=most + 5));
        assert!(matches!(backlog.after(0, 10), Next::OnDisk));
        assert!(matches!(backlog.after(4, 10), Next::OnDisk));
        assert_eq!(seqs(backlog.after(5, 2)), [6, 7]);
    }

    #[test]
    fn what_was_recovered_is_on_disk() {
        let recovered = Recovered {
            before_first: 4,
            last: 6,
            count: 2,
            bytes: 4,
            ..Recovered::default()
        };
        let backlog = Backlog::new(&recovered);
        assert_eq!(backlog.acknowledged(), 4);
        backlog.committed(entries(7..=7));
        assert!(matches!(backlog.after(4, 10), Next::OnDisk));
        assert_eq!(backlog.depth().0, 3);
        let arrive = |span: Span| {
            backlog.sent(&span);
            backlog.arrived(&span);
        };
        arrive(span(5..=5));
        assert!(matches!(backlog.after(5, 10), Next::OnDisk));
        arrive(span(6..=7));
        assert_eq!((backlog.depth(), backlog.on_the_way()), ((0, 0, None), 0));
        assert_eq!(backlog.counters.replayed.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_was_sent_and_returned_waits_again_and_only_what_arrived_may_be_deleted() {
        let backlog = Backlog::new(&Recovered::default());
        backlog.committed(entries(1..=4));
        let all = backlog.depth();
        assert_eq!(seqs(backlog.after(0, 2)), [1, 2]);
        backlog.sent(&span(1..=2));
        assert_eq!(seqs(backlog.after(2, 2)), [3, 4]);
        backlog.sent(&span(3..=4));
        assert_eq!((backlog.depth(), backlog.on_the_way()), ((0, 0, None), 4));
        assert_eq!(backlog.acknowledged(), 0);
        backlog.arrived(&span(1..=2));
        assert_eq!((backlog.acknowledged(), backlog.on_the_way()), (2, 2));
        backlog.returned(&span(3..=4));
        let (pending, bytes, oldest) = backlog.depth();
        assert_eq!((pending, bytes * 2), (2, all.1));
        assert_eq!(oldest, Some(Timestamp::from_unix_micros(3)));
        assert!(matches!(backlog.after(2, 2), Next::OnDisk));
        assert_eq!(backlog.counters.resent.load(Ordering::Relaxed), 2);
        assert_eq!(span(1..=2).and(span(3..=4)).count_upto(3), 3);
    }
}
