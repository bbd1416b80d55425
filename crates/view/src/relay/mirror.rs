//! Copies for readers outside of an embedded deployment (spec README, decision 24).
//!
//! The mirror never holds up the bus. While few entries wait for it, they are not recorded as sent,
//! so a crash sends them again; when it is away for longer they wait in memory only, and past the
//! bound the oldest are lost and counted. Readers that missed something recover from the epoch, and by
//! the lifetime of mandates; what the mirror itself has lost is sent to it again.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use caracal_bus::Bus;
use caracal_model::Topic;
use caracal_model::change::Fields;
use parking_lot::Mutex;

const MIRRORED: [Topic; 5] = [
    Topic::SessionsRevoke,
    Topic::DelegationsInvalidate,
    Topic::PolicyInvalidate,
    Topic::KeysInvalidate,
    Topic::AgentsLifecycle,
];
/// Entries that may hold back their own recording.
const HELD_BACK: usize = 1_000;
/// Entries that may wait.
const BOUND: usize = 100_000;
/// Entries that are sent at once.
const BATCH: usize = 500;

pub(super) struct Mirror {
    bus: Bus,
    waiting: Mutex<Waiting>,
    lost: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    copies: VecDeque<Copy>,
    /// So many at the front are being sent: they are not lost before it is known what came of it.
    in_flight: usize,
}

struct Copy {
    topic: Topic,
    id: String,
    fields: Fields,
}

impl Mirror {
    pub fn new(bus: Bus) -> Self {
        Self {
            bus,
            waiting: Mutex::default(),
            lost: AtomicU64::new(0),
        }
    }

    /// Where the copies go.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    pub fn add(&self, topic: &str, ids: &[String], entries: &[Fields]) {
        let Some(topic) = Topic::from_name(topic).filter(|topic| MIRRORED.contains(topic)) else {
            return;
        };
        let mut waiting = self.waiting.lock();
        for (id, fields) in ids.iter().zip(entries) {
            waiting.copies.push_back(Copy {
                topic,
                id: id.clone(),
                fields: fields.clone(),
            });
        }
        let oldest = waiting.in_flight;
        while waiting.copies.len() > BOUND && waiting.copies.remove(oldest).is_some() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What must not be recorded as sent yet.
    pub fn holds_back(&self) -> HashSet<String> {
        let waiting = self.waiting.lock();
        if waiting.copies.len() > HELD_BACK {
            return HashSet::new();
        }
        waiting.copies.iter().map(|copy| copy.id.clone()).collect()
    }

    /// Sends what waits, as far as the mirror takes it. One caller at a time.
    pub async fn catch_up(&self) {
        while let Some((topic, entries)) = self.next() {
            match self.bus.append(topic.name(), &entries).await {
                Ok(_) => drop(self.settled()),
                Err(error) if error.is_outage() => {
                    self.waiting.lock().in_flight = 0;
                    tracing::warn!(%error, waiting = self.waiting(), "mirror not reached");
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, topic = topic.name(), "mirror refused entries");
                    let count = u64::try_from(self.settled()).unwrap_or(u64::MAX);
                    self.lost.fetch_add(count, Ordering::Relaxed);
                }
            }
        }
    }

    /// The entries at the front that go to one topic; they are in flight from now on.
    fn next(&self) -> Option<(Topic, Vec<Fields>)> {
        let mut waiting = self.waiting.lock();
        let topic = waiting.copies.front()?.topic;
        let same = waiting
            .copies
            .iter()
            .take_while(|copy| copy.topic == topic)
            .take(BATCH);
        let entries: Vec<Fields> = same.map(|copy| copy.fields.clone()).collect();
        waiting.in_flight = entries.len();
        Some((topic, entries))
    }

    /// What is in flight waits no longer; answers how many that were.
    fn settled(&self) -> usize {
        let mut waiting = self.waiting.lock();
        let count = std::mem::take(&mut waiting.in_flight);
        waiting.copies.drain(..count).count()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.lock().copies.len()
    }

    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use caracal_bus::Position;
    use caracal_model::TestClock;

    fn add(mirror: &Mirror, numbers: std::ops::Range<usize>) {
        let ids: Vec<String> = numbers.map(|n| format!("{n:06}")).collect();
        let fields = |id: &String| Fields::from([("n".to_owned(), id.clone())]);
        let entries: Vec<Fields> = ids.iter().map(fields).collect();
        mirror.add(Topic::SessionsRevoke.name(), &ids, &entries);
    }

    /// What comes while a batch is being sent is sent or counted as lost, and the batch is neither
    /// sent twice nor counted.
    #[tokio::test]
    async fn what_does_not_fit_any_more_is_counted_also_while_a_batch_is_in_flight() {
        let mirror = Mirror::new(Bus::memory(Arc::new(TestClock::default())));
        add(&mirror, 0..BOUND);
        let (topic, in_flight) = mirror.next().unwrap();
        add(&mirror, BOUND..BOUND + 2 * BATCH);
        let lost = u64::try_from(2 * BATCH).unwrap();
        assert_eq!((mirror.waiting(), mirror.lost()), (BOUND, lost));
        mirror.bus.append(topic.name(), &in_flight).await.unwrap();
        assert_eq!(mirror.settled(), BATCH);
        let (_, next) = mirror.next().unwrap();
        let first = format!("{:06}", 3 * BATCH);
        assert_eq!(next[0]["n"], first, "those between them were lost");
        assert_eq!((mirror.waiting(), mirror.lost()), (BOUND - BATCH, lost));
        let from = [(topic.name(), Position::START)];
        let wait = std::time::Duration::ZERO;
        let sent = mirror.bus.tail(&from, wait, BOUND).await.unwrap();
        assert_eq!(sent.len(), BATCH);
        assert_eq!(sent[0].fields["n"], "000000");
    }
}
