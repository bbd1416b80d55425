//! Mints that this replica took out of a limit beforehand (spec: sts §20.4).
//!
//! **Forces.** A limit is one for all replicas, so it is kept on the bus; to ask there for every mint
//! is a round trip for each. What a replica takes beforehand and does not spend is lost to others
//! until the window ends.
//!
//! **Choice.** A replica takes a hundredth of what is left, one at least, and spends it in memory. So
//! a low limit is counted one by one, as is the last stretch of a high one, and a replica that goes
//! idle withholds a hundredth. That a limit is used up is remembered too: whoever goes on asking costs
//! nothing.
//!
//! INVARIANT (never more): only what the bus gave out is spent, and only within the window in which it
//! did: a lease counts from when the question was asked.
//!
//! **Rejected.** Giving back what is not spent: a replica that dies gives nothing back, so the bound
//! would be no better, and every mint of an idle application would cost two trips.

use std::collections::HashMap;
use std::time::Duration;

use caracal_bus::{Bus, BusError, Taken};
use caracal_model::{Clock, Ticks};
use parking_lot::Mutex;

/// The part of what is left that is taken at once.
const SHARE: u64 = 100;
/// Keys of which something is held, about; more are counted one by one.
const MANY: usize = 10_000;
/// What the bus rounds.
const ROUNDING: Duration = Duration::from_millis(1);

#[derive(Default)]
pub struct Leases(Mutex<HashMap<String, Lease>>);

/// What is known of one limit until its window ends.
struct Lease {
    limit: u64,
    until: Ticks,
    /// Not spent yet.
    held: u64,
    /// Given out to all, when the bus was last asked.
    total: u64,
    /// Whether more is asked for at this moment.
    asking: bool,
}

/// What to do about one mint.
enum Next {
    Spent,
    UsedUp,
    /// Ask for so many.
    Ask(u64),
}

impl Leases {
    /// Spends one of `limit` in `window`; `false` when it is used up. Without `trusted` memory, the
    /// bus is asked.
    ///
    /// # Errors
    /// When nothing is held and the bus does not answer.
    pub async fn spend(
        &self,
        bus: &Bus,
        clock: &dyn Clock,
        (key, limit, window): (&str, u32, Duration),
        trusted: bool,
    ) -> Result<bool, BusError> {
        let limit = u64::from(limit);
        let asked_at = clock.ticks();
        let most = match self.next(key, limit, asked_at) {
            Next::Spent if trusted => return Ok(true),
            Next::UsedUp if trusted => return Ok(false),
            Next::Ask(most) if trusted => most,
            Next::Spent | Next::UsedUp | Next::Ask(_) => 1,
        };
        // Whatever ends the question ends it here.
        let _asking = Asking { leases: self, key };
        let taken = bus.take(key, most, limit, window).await?;
        self.keep(key, limit, asked_at, taken);
        Ok(taken.granted > 0)
    }

    fn next(&self, key: &str, limit: u64, now: Ticks) -> Next {
        let mut leases = self.0.lock();
        let lease = leases.get_mut(key);
        let Some(lease) = lease.filter(|lease| lease.stands(limit, now)) else {
            return Next::Ask(1);
        };
        if lease.held > 0 {
            lease.held -= 1;
            return Next::Spent;
        }
        if lease.total >= limit {
            return Next::UsedUp;
        }
        if std::mem::replace(&mut lease.asking, true) {
            // One asks for all that come later; who is here already asks for itself.
            return Next::Ask(1);
        }
        Next::Ask(share(lease.total, limit))
    }

    fn keep(&self, key: &str, limit: u64, asked_at: Ticks, taken: Taken) {
        let until = later(asked_at, taken.left.saturating_sub(ROUNDING));
        let held = taken.granted.saturating_sub(1);
        let mut leases = self.0.lock();
        if let Some(lease) = leases.get_mut(key)
            && lease.stands(limit, asked_at)
        {
            // Of an answer that is late, in the next window, this makes too little, never too much.
            lease.held = lease.held.saturating_add(held);
            lease.total = lease.total.max(taken.total);
            lease.until = lease.until.min(until);
            return;
        }
        if taken.total < limit && share(taken.total, limit) == 1 {
            leases.remove(key);
            return;
        }
        if leases.len() >= MANY {
            leases.retain(|_, lease| lease.until > asked_at);
        }
        if leases.len() < MANY {
            let lease = Lease {
                limit,
                until,
                held,
                total: taken.total,
                asking: false,
            };
            leases.insert(key.to_owned(), lease);
        }
    }
}

impl Lease {
    /// A limit that was changed is another limit.
    fn stands(&self, limit: u64, now: Ticks) -> bool {
        self.until > now && self.limit == limit
    }
}

const fn share(total: u64, limit: u64) -> u64 {
    let share = limit.saturating_sub(total) / SHARE;
    if share == 0 { 1 } else { share }
}

fn later(at: Ticks, by: Duration) -> Ticks {
    let by = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
    Ticks::from_micros(at.micros().saturating_add(by))
}

struct Asking<'a> {
    leases: &'a Leases,
    key: &'a str,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(lease) = self.leases.0.lock().get_mut(self.key) {
            lease.asking = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use caracal_model::TestClock;
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    fn spend(leases: &Leases, bus: &Bus, clock: &TestClock, limit: u32) -> bool {
        let spending = leases.spend(bus, clock, ("rl:z:r:a", limit, WINDOW), true);
        spending.now_or_never().unwrap().unwrap()
    }

    #[test]
    fn one_replica_gets_all_of_a_limit_and_no_more() {
        for limit in [1, 5, 199, 200, 1_000, 60_000] {
            let clock = Arc::new(TestClock::default());
            let (bus, leases) = (Bus::memory(clock.clone()), Leases::default());
            for _ in 0..2 {
                let granted = (0..limit + 50).filter(|_| spend(&leases, &bus, &clock, limit));
                assert_eq!(granted.count(), usize::try_from(limit).unwrap());
                clock.advance(WINDOW);
            }
        }
    }

    #[test]
    fn most_mints_of_a_high_limit_do_not_ask_the_bus() {
        let clock = Arc::new(TestClock::default());
        let (bus, leases) = (Bus::memory(clock.clone()), Leases::default());
        let taken = || {
            let total = bus.take("rl:z:r:a", 0, 1_000, WINDOW).now_or_never();
            total.unwrap().unwrap().total
        };
        let mut trips = 0;
        for _ in 0..500 {
            let before = taken();
            assert!(spend(&leases, &bus, &clock, 1_000));
            trips += u32::from(taken() != before);
        }
        assert!(trips <= 100, "{trips} trips for 500 mints");
    }

    #[test]
    fn a_limit_that_is_lowered_holds_at_once_where_it_is_known() {
        let clock = Arc::new(TestClock::default());
        let (bus, leases) = (Bus::memory(clock.clone()), Leases::default());
        for _ in 0..20 {
            assert!(spend(&leases, &bus, &clock, 1_000));
        }
        assert!(!spend(&leases, &bus, &clock, 5));
        assert!(spend(&leases, &bus, &clock, 1_000), "and is raised at once");
    }

    #[test]
    fn who_cannot_trust_memory_asks_the_bus() {
        let clock = Arc::new(TestClock::default());
        let (bus, leases) = (Bus::memory(clock.clone()), Leases::default());
        for _ in 0..5 {
            assert!(spend(&leases, &bus, &clock, 1_000));
        }
        let total = || {
            let taken = bus.take("rl:z:r:a", 0, 1_000, WINDOW).now_or_never();
            taken.unwrap().unwrap().total
        };
        let before = total();
        let asking = leases.spend(&bus, &*clock, ("rl:z:r:a", 1_000, WINDOW), false);
        assert!(asking.now_or_never().unwrap().unwrap());
        assert_eq!(total(), before + 1);
    }

    proptest! {
        /// Whoever asks, in whatever order, and however the time passes.
        #[test]
        fn replicas_together_never_spend_more_than_the_limit(
            limit in prop_oneof![1u32..20, 190u32..230, 900u32..1_100],
            asks in prop::collection::vec((0usize..4, 0u64..2_000, 1u32..200), 1..120),
        ) {
            let clock = Arc::new(TestClock::default());
            let bus = Bus::memory(clock.clone());
            let replicas: [Leases; 4] = Default::default();
            let (mut ends, mut spent) = (clock.ticks(), 0);
            for (who, pause, times) in asks {
                clock.advance(Duration::from_millis(pause));
                for _ in 0..times {
                    if clock.ticks() >= ends {
                        (ends, spent) = (later(clock.ticks(), WINDOW), 0);
                    }
                    spent += u32::from(spend(&replicas[who], &bus, &clock, limit));
                    prop_assert!(spent <= limit, "{spent} of {limit}");
                }
            }
        }
    }
}
