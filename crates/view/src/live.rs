//! Live tables: what was loaded of Sessions, Delegations and records, until the feed says that it
//! changed.
//!
//! **Forces.** A read must cost next to nothing. A load takes time, and what it read may be
//! overtaken by a change before it is put down.
//!
//! **Choice.** A lock-free map for readers; beside it, shards that only loads and changes lock.
//! A load takes the generation of its shard before it reads the store and is put down only when
//! that generation has not moved; a change moves it and removes the entry in one step.
//!
//! INVARIANT (load): under the lock of a shard, an entry is inserted only when no change of that
//! shard was applied since its load began. So nothing that was read before a change is ever found
//! after it.
//!
//! **Rejected.** Checking again after an insert without a lock: between the two somebody reads the
//! stale entry.
//!
//! **Consequence.** A change makes a load of a neighbour in its shard go to waste now and then; the
//! next reader loads again.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

const SHARDS: usize = 64;

pub(crate) struct LiveTable<K, V> {
    entries: papaya::HashMap<K, Arc<Entry<V>>>,
    shards: Vec<Mutex<Shard<K>>>,
    hasher: RandomState,
    shard_bound: usize,
}

struct Entry<V> {
    value: Arc<V>,
    /// Read since eviction last looked at it.
    used: AtomicBool,
}

struct Shard<K> {
    generation: u64,
    /// Keys in the order in which eviction looks at them.
    order: VecDeque<K>,
}

/// Proof that a load began at this generation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket(u64);

impl<K: Clone + Eq + Hash, V> LiveTable<K, V> {
    /// Holds about `bound` entries; more make it forget those that were not read for a while.
    pub fn new(bound: usize) -> Self {
        let shard = || {
            Mutex::new(Shard {
                generation: 0,
                order: VecDeque::new(),
            })
        };
        Self {
            entries: papaya::HashMap::new(),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            shard_bound: bound.div_ceil(SHARDS).max(1),
        }
    }

    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        let entries = self.entries.pin();
        let entry = entries.get(key)?;
        if !entry.used.load(Ordering::Relaxed) {
            entry.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(&entry.value))
    }

    /// To be called before the store is read.
    pub fn begin(&self, key: &K) -> Ticket {
        self.with_shard(key, |shard| Ticket(shard.generation))
    }

    /// As [`LiveTable::begin`], when it is not known yet which entries the store will answer.
    pub fn begin_all(&self) -> Vec<Ticket> {
        self.shards
            .iter()
            .map(|shard| Ticket(shard.lock().generation))
            .collect()
    }

    /// As [`LiveTable::insert`], with the ticket of the key's shard.
    pub fn insert_with(&self, key: K, tickets: &[Ticket], value: Arc<V>) -> bool {
        tickets
            .get(self.shard_of(&key))
            .is_some_and(|ticket| self.insert(key, *ticket, value))
    }

    /// Puts down what was read, unless a change came in between; answers whether it was put down.
    pub fn insert(&self, key: K, ticket: Ticket, value: Arc<V>) -> bool {
        self.with_shard(&key, |shard| {
            // INVARIANT (load).
            if shard.generation != ticket.0 {
                return false;
            }
            let entries = self.entries.pin();
            let entry = Arc::new(Entry {
                value,
                used: AtomicBool::new(false),
            });
            if entries.insert(key.clone(), entry).is_none() {
                shard.order.push_back(key.clone());
            }
            self.evict(shard);
            true
        })
    }

    /// Applies a change: what is held of the key, or being loaded, is no longer true.
    pub fn forget(&self, key: &K) {
        self.with_shard(key, |shard| {
            shard.generation += 1;
            self.entries.pin().remove(key);
            // Its place in the order stays behind and is dropped when eviction meets it.
            if shard.order.len() > self.shard_bound.saturating_mul(2) {
                self.tidy(shard);
            }
        });
    }

    /// Forgets everything, loads in flight included.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.generation += 1;
            let entries = self.entries.pin();
            for key in shard.order.drain(..) {
                entries.remove(&key);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn evict(&self, shard: &mut Shard<K>) {
        let entries = self.entries.pin();
        // Every key gets a second chance, so one round may pass before anything goes.
        let mut looks = shard.order.len().saturating_mul(2);
        while shard.order.len() > self.shard_bound && looks > 0 {
            looks -= 1;
            let Some(key) = shard.order.pop_front() else {
                return;
            };
            match entries.get(&key) {
                None => {}
                Some(entry) if entry.used.swap(false, Ordering::Relaxed) => {
                    shard.order.push_back(key);
                }
                Some(_) => drop(entries.remove(&key)),
            }
        }
    }

    /// Drops places in the order that belong to no entry, or to one that has another place.
    fn tidy(&self, shard: &mut Shard<K>) {
        let entries = self.entries.pin();
        let mut seen = std::collections::HashSet::new();
        shard
            .order
            .retain(|key| entries.contains_key(key) && seen.insert(key.clone()));
    }

    fn shard_of(&self, key: &K) -> usize {
        usize::try_from(self.hasher.hash_one(key) >> 32).unwrap_or(0) % SHARDS
    }

    fn with_shard<T>(&self, key: &K, act: impl FnOnce(&mut Shard<K>) -> T) -> T {
        match self.shards.get(self.shard_of(key)) {
            Some(shard) => act(&mut shard.lock()),
            // There is a shard for every remainder.
            None => act(&mut Shard {
                generation: u64::MAX,
                order: VecDeque::new(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    fn table(bound: usize) -> LiveTable<u64, u64> {
        LiveTable::new(bound)
    }

    #[test]
    fn what_was_read_before_a_change_is_not_put_down_after_it() {
        let table = table(100);
        let ticket = table.begin(&1);
        table.forget(&1);
        assert!(!table.insert(1, ticket, Arc::new(7)));
        assert_eq!(table.get(&1), None);
        let ticket = table.begin(&1);
        assert!(table.insert(1, ticket, Arc::new(8)));
        assert_eq!(table.get(&1).as_deref(), Some(&8));
        let ticket = table.begin(&1);
        table.clear();
        assert_eq!(table.get(&1), None);
        assert!(!table.insert(1, ticket, Arc::new(9)));
    }

    /// The store is a counter that only grows; a change raises it and is applied before the next.
    /// Whoever reads after a change was applied must not see an older value.
    #[test]
    fn no_reader_sees_a_value_from_before_a_change_that_was_applied() {
        let table = Arc::new(table(100));
        let stored = Arc::new(AtomicU64::new(0));
        let applied = Arc::new(AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let (table, stored, applied) = (table.clone(), stored.clone(), applied.clone());
                scope.spawn(move || {
                    while applied.load(Ordering::SeqCst) < 20_000 {
                        let floor = applied.load(Ordering::SeqCst);
                        let value = table.get(&1).map_or_else(
                            || {
                                let ticket = table.begin(&1);
                                let value = stored.load(Ordering::SeqCst);
                                std::thread::yield_now();
                                table.insert(1, ticket, Arc::new(value));
                                value
                            },
                            |value| *value,
                        );
                        assert!(value >= floor, "read {value} after {floor} was applied");
                    }
                });
            }
            for change in 1..=20_000 {
                stored.store(change, Ordering::SeqCst);
                table.forget(&1);
                applied.store(change, Ordering::SeqCst);
            }
        });
    }

    #[test]
    fn a_full_table_forgets_what_is_not_read() {
        let table = table(SHARDS * 4);
        for key in 0..10_000 {
            let ticket = table.begin(&key);
            table.insert(key, ticket, Arc::new(key));
            assert!(table.get(&0).is_some(), "read all the time, at {key}");
        }
        assert!(table.len() <= SHARDS * 4, "{}", table.len());
    }

    #[test]
    fn forgetting_one_key_for_ever_does_not_grow_the_table() {
        let table = table(SHARDS);
        for _ in 0..1_000 {
            let ticket = table.begin(&1);
            table.insert(1, ticket, Arc::new(1));
            table.forget(&1);
        }
        let held: usize = table
            .shards
            .iter()
            .map(|shard| shard.lock().order.len())
            .sum();
        assert!(held <= 3, "{held}");
    }
}
