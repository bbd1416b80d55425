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
    waiting: Mutex<VecDeque<Copy>>,
    lost: AtomicU64,
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
            waiting.push_back(Copy {
                topic,
                id: id.clone(),
                fields: fields.clone(),
            });
        }
        while waiting.len() > BOUND {
            waiting.pop_front();
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What must not be recorded as sent yet.
    pub fn holds_back(&self) -> HashSet<String> {
        let waiting = self.waiting.lock();
        if waiting.len() > HELD_BACK {
            return HashSet::new();
        }
        waiting.iter().map(|copy| copy.id.clone()).collect()
    }

    /// Sends what waits, as far as the mirror takes it.
    pub async fn catch_up(&self) {
        while let Some((topic, entries)) = self.next() {
            match self.bus.append(topic.name(), &entries).await {
                Ok(_) => drop(self.waiting.lock().drain(..entries.len())),
                Err(error) if error.is_outage() => {
                    tracing::warn!(%error, waiting = self.waiting(), "mirror not reached");
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, topic = topic.name(), "mirror refused entries");
                    let count = self.waiting.lock().drain(..entries.len()).count();
                    self.lost
                        .fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
                }
            }
        }
    }

    /// The entries at the front that go to one topic.
    fn next(&self) -> Option<(Topic, Vec<Fields>)> {
        let waiting = self.waiting.lock();
        let topic = waiting.front()?.topic;
        let same = waiting
            .iter()
            .take_while(|copy| copy.topic == topic)
            .take(BATCH);
        Some((topic, same.map(|copy| copy.fields.clone()).collect()))
    }

    pub fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }

    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
