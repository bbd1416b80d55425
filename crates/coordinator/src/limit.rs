//! Rate limits (spec: coordinator §13, §17.12; README decision 5): a bucket for each application
//! once it has been authenticated, a bucket for each address for whoever has not.
//!
//! **Choice.** In process, a bucket being one number: the time at which it would be full again
//! (GCRA). It survives the loss of every other service and costs no round trip. With several
//! replicas a caller has the limit at each of them.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use caracal_model::{ApplicationId, Clock, ZoneId};
use parking_lot::Mutex;

use crate::failure::{Code, Failure};

const MINUTE: u64 = 60_000_000;
/// Buckets kept before those that are full again are forgotten.
const KEPT: usize = 16_384;

/// Whose bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// An application with a valid token.
    Application(ZoneId, ApplicationId),
    /// The operator token.
    Operator,
    /// Whoever has not been authenticated.
    Address(IpAddr),
}

/// One limit for many holders.
pub struct Limit {
    clock: Arc<dyn Clock>,
    /// Microseconds that one request costs; 0 is no limit.
    cost: u64,
    buckets: Mutex<HashMap<Holder, u64>>,
}

impl std::fmt::Debug for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limit")
            .field("cost", &self.cost)
            .finish_non_exhaustive()
    }
}

impl Limit {
    /// So many requests a minute for each holder; 0 is no limit.
    pub fn per_minute(clock: Arc<dyn Clock>, requests: u32) -> Self {
        let cost = MINUTE.checked_div(u64::from(requests)).unwrap_or(0);
        Self {
            clock,
            cost,
            buckets: Mutex::default(),
        }
    }

    /// Charges one request.
    ///
    /// # Errors
    /// `rate_limited`, with the seconds to wait.
    pub fn charge(&self, holder: Holder) -> Result<(), Failure> {
        if self.cost == 0 {
            return Ok(());
        }
        let now = self.clock.ticks().micros();
        let mut buckets = self.buckets.lock();
        forget_full(&mut buckets, now);
        let full_again = buckets.entry(holder).or_insert(now);
        let next = (*full_again).max(now) + self.cost;
        let over = next.saturating_sub(now + MINUTE);
        if over > 0 {
            let seconds = u32::try_from(over.div_ceil(1_000_000)).unwrap_or(60);
            return Err(Code::RateLimited.refuse().retry_after(seconds.max(1)));
        }
        *full_again = next;
        Ok(())
    }

    /// Gives a charged request back.
    pub fn refund(&self, holder: &Holder) {
        if let Some(full_again) = self.buckets.lock().get_mut(holder) {
            *full_again = full_again.saturating_sub(self.cost);
        }
    }
}

fn forget_full<K: Eq + Hash>(buckets: &mut HashMap<K, u64>, now: u64) {
    if buckets.len() >= KEPT {
        buckets.retain(|_, full_again| *full_again > now);
        // A flood from more addresses than we keep: forgetting them all keeps memory bounded, and
        // what protects the service then is that a forged token costs one verification.
        if buckets.len() >= KEPT {
            buckets.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use caracal_model::TestClock;

    use super::*;

    #[test]
    fn a_minute_holds_so_many_requests_and_says_when_the_next_is_due() {
        let clock = Arc::new(TestClock::default());
        let limit = Limit::per_minute(clock.clone(), 30);
        for _ in 0..30 {
            limit.charge(Holder::Operator).unwrap();
        }
        let refused = limit.charge(Holder::Operator).unwrap_err();
        assert_eq!(
            (refused.error(), refused.status().as_u16()),
            ("rate_limited", 429)
        );
        let other = Holder::Address(IpAddr::from([192, 0, 2, 1]));
        limit.charge(other).unwrap();
        clock.advance(Duration::from_secs(2));
        limit.charge(Holder::Operator).unwrap();
        limit.charge(Holder::Operator).unwrap_err();
        limit.refund(&Holder::Operator);
        limit.charge(Holder::Operator).unwrap();
    }

    #[test]
    fn zero_is_no_limit() {
        let limit = Limit::per_minute(Arc::new(TestClock::default()), 0);
        assert!((0..10_000).all(|_| limit.charge(Holder::Operator).is_ok()));
    }
}
