//! Claims, counters, leadership and boards in memory.
//!
//! **Forces.** A claim must have one winner among all threads, and must not be forgotten before it
//! expires: forgetting one makes a used mandate usable again. Yet memory is finite.
//!
//! **Choice.** Shards of a map with an expiry heap beside it; each use prunes what is due in its
//! shard. When the bound is reached, a claim fails, which callers turn into a denial.
//!
//! INVARIANT (both clocks): a claim ends once its time is over by the monotonic clock *and* by the
//! wall clock. What it protects expires by the wall clock, so stepping that back must not let the
//! claim end first.
//!
//! **Rejected.** Evicting the oldest claim: that is the replay an attacker would wait for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use caracal_model::{Clock, Ticks, Timestamp};
use parking_lot::Mutex;

use crate::{BusError, Taken};

const SHARDS: usize = 64;
/// Leases, or boards, past which those that have ended are forgotten.
const MANY: usize = 1024;

pub(super) struct Keys {
    clock: Arc<dyn Clock>,
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
    shard_bound: usize,
    held: Mutex<HashMap<String, (String, Ticks)>>,
    boards: Mutex<HashMap<String, Board>>,
}

/// What each member said, and until when it stands.
type Board = BTreeMap<String, (String, Ticks)>;

#[derive(Default)]
struct Shard {
    values: HashMap<Arc<str>, Held>,
    due: BinaryHeap<Reverse<(Ticks, Arc<str>)>>,
}

#[derive(Clone, Copy)]
struct Held {
    count: u64,
    until: Ticks,
    /// Claims only: not before this.
    not_before: Option<Timestamp>,
}

impl Shard {
    fn prune(&mut self, now: Ticks, wall: Timestamp) {
        while self
            .due
            .peek()
            .is_some_and(|Reverse((until, _))| *until <= now)
        {
            let Some(Reverse((_, key))) = self.due.pop() else {
                return;
            };
            let Some(held) = self.values.get_mut(&key) else {
                continue;
            };
            if held.until > now {
                continue; // set again since: only its own end removes it
            }
            match held.not_before.filter(|at| *at > wall) {
                // INVARIANT (both clocks).
                Some(at) => {
                    held.until = later(now, at.since(wall));
                    self.due.push(Reverse((held.until, key)));
                }
                None => drop(self.values.remove(&key)),
            }
        }
    }
}

impl Keys {
    pub fn new(clock: Arc<dyn Clock>, bound: usize) -> Self {
        Self {
            clock,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_bound: bound.div_ceil(SHARDS),
            held: Mutex::default(),
            boards: Mutex::default(),
        }
    }

    pub fn claim(&self, key: &str, ttl: Duration) -> Result<bool, BusError> {
        let not_before = self.clock.now().plus(ttl);
        let (claims, _) = self.add("claim", key, ttl, Some(not_before), |count| count + 1)?;
        Ok(claims == 1)
    }

    pub fn count(&self, key: &str, window: Duration) -> Result<u64, BusError> {
        Ok(self
            .add("count", key, window, None, |count| count.saturating_add(1))?
            .0)
    }

    pub fn take(
        &self,
        key: &str,
        most: u64,
        limit: u64,
        window: Duration,
    ) -> Result<Taken, BusError> {
        let mut granted = 0;
        let (total, left) = self.add("count", key, window, None, |count| {
            granted = most.min(limit.saturating_sub(count));
            count.saturating_add(granted)
        })?;
        Ok(Taken {
            granted,
            total,
            left,
        })
    }

    /// Raises the count of `key`, which ends `ttl` after its first; answers it and how long it stands.
    fn add(
        &self,
        kind: &str,
        key: &str,
        ttl: Duration,
        not_before: Option<Timestamp>,
        raise: impl FnOnce(u64) -> u64,
    ) -> Result<(u64, Duration), BusError> {
        let (now, wall) = (self.clock.ticks(), self.clock.now());
        let hash = usize::try_from(self.hasher.hash_one((kind, key)) >> 32).unwrap_or(0);
        let Some(shard) = self.shards.get(hash % SHARDS) else {
            return Err(full());
        };
        let name = format!("{kind}:{key}");
        let mut shard = shard.lock();
        shard.prune(now, wall);
        if let Some(held) = shard.values.get_mut(name.as_str()) {
            held.count = raise(held.count);
            return Ok((held.count, held.until.since(now)));
        }
        if shard.values.len() >= self.shard_bound {
            return Err(full());
        }
        let name: Arc<str> = name.into();
        let until = later(now, ttl);
        shard.due.push(Reverse((until, name.clone())));
        let count = raise(0);
        let held = Held {
            count,
            until,
            not_before,
        };
        shard.values.insert(name, held);
        Ok((count, until.since(now)))
    }

    pub fn lead(&self, name: &str, holder: &str, ttl: Duration) -> bool {
        let now = self.clock.ticks();
        let mut held = self.held.lock();
        if held.len() >= MANY {
            held.retain(|_, (_, until)| *until > now);
        }
        let free = held
            .get(name)
            .is_none_or(|(who, until)| who == holder || *until <= now);
        if free {
            held.insert(name.to_owned(), (holder.to_owned(), later(now, ttl)));
        }
        free
    }

    pub fn post(&self, board: &str, member: &str, note: &str, ttl: Duration) {
        let now = self.clock.ticks();
        let until = later(now, ttl);
        let mut boards = self.boards.lock();
        if boards.len() >= MANY {
            boards.retain(|_, notes| notes.values().any(|(_, until)| *until > now));
        }
        let notes = boards.entry(board.to_owned()).or_default();
        notes.insert(member.to_owned(), (note.to_owned(), until));
    }

    pub fn posts(&self, board: &str) -> Vec<(String, String)> {
        let now = self.clock.ticks();
        let mut boards = self.boards.lock();
        let Some(notes) = boards.get_mut(board) else {
            return Vec::new();
        };
        notes.retain(|_, (_, until)| *until > now);
        notes
            .iter()
            .map(|(member, (note, _))| (member.clone(), note.clone()))
            .collect()
    }
}

fn later(now: Ticks, by: Duration) -> Ticks {
    let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
    Ticks::from_micros(now.micros().saturating_add(micros))
}

fn full() -> BusError {
    BusError::Full {
        what: "the claims of this process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::TestClock;

    #[test]
    fn a_full_table_refuses_and_never_forgets() {
        let clock = Arc::new(TestClock::default());
        let keys = Keys::new(clock.clone(), SHARDS);
        let minute = Duration::from_secs(60);
        let claimed: Vec<String> = (0..1_000)
            .map(|n| format!("jti-{n}"))
            .filter(|key| matches!(keys.claim(key, minute), Ok(true)))
            .collect();
        assert!(claimed.len() <= SHARDS);
        assert!(
            claimed
                .iter()
                .all(|key| matches!(keys.claim(key, minute), Ok(false)))
        );
        clock.advance(minute);
        assert!(
            claimed
                .iter()
                .all(|key| matches!(keys.claim(key, minute), Ok(true)))
        );
    }

    #[test]
    fn leases_and_boards_that_ended_take_no_memory() {
        let clock = Arc::new(TestClock::default());
        let keys = Keys::new(clock.clone(), SHARDS);
        let second = Duration::from_secs(1);
        for n in 0..MANY {
            assert!(keys.lead(&format!("lease-{n}"), "me", second));
            keys.post(&format!("board-{n}"), "me", "here", second);
        }
        clock.advance(second);
        assert!(keys.lead("lease", "me", second));
        keys.post("board", "me", "here", second);
        assert_eq!((keys.held.lock().len(), keys.boards.lock().len()), (1, 1));
    }

    #[test]
    fn a_claim_outlives_a_wall_clock_that_steps_back() {
        let clock = Arc::new(TestClock::default());
        let keys = Keys::new(clock.clone(), MANY);
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        assert_eq!(keys.claim("jti", minute).ok(), Some(true));
        assert_eq!(keys.count("rate", minute).ok(), Some(1));
        clock.step_back(hour);
        clock.advance(minute);
        // By the wall clock, which is what a mandate expires by, an hour is left.
        assert_eq!(keys.claim("jti", minute).ok(), Some(false));
        assert_eq!(keys.count("rate", minute).ok(), Some(1), "a new window");
        clock.advance(hour);
        assert_eq!(keys.claim("jti", minute).ok(), Some(true));
    }
}
