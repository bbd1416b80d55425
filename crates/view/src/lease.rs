//! The freshness lease: may this replica answer from memory?
//!
//! **Forces.** Reading the store for every exchange costs more than the decision itself. Trusting
//! memory for ever lets a replica that lost the feed allow what another has revoked.
//!
//! **Choice.** Memory is trusted for `FEED_MAX_LAG` after the feed was last confirmed. Past that we
//! read through to the store; if the store is gone too, we deny with `sts_unavailable`.
//!
//! **Rejected.** A lifetime per entry: each is a window of its own, and nobody can state the bound.
//! Polling revocations: the bound is the period.
//!
//! **Consequence.** A replica that loses the feed gets slower, then refuses.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use caracal_model::{Clock, Ticks};

/// When the feed was never confirmed.
const NEVER: u64 = 0;

pub(crate) struct Lease {
    clock: Arc<dyn Clock>,
    max_lag: Duration,
    /// Micros of the last confirmation plus one, or [`NEVER`].
    asked_at: AtomicU64,
    /// Micros before which no confirmation counts.
    after: AtomicU64,
    /// A second condition: whether news of this process reaches its feed at all.
    condition: OnceLock<Arc<AtomicBool>>,
}

impl Lease {
    pub fn new(clock: Arc<dyn Clock>, max_lag: Duration) -> Self {
        let asked_at = AtomicU64::new(NEVER);
        Self {
            clock,
            max_lag,
            asked_at,
            after: AtomicU64::new(0),
            condition: OnceLock::new(),
        }
    }

    /// Trusts memory only while `condition` is true as well; the first condition stays.
    pub fn only_while(&self, condition: Arc<AtomicBool>) {
        let _ = self.condition.set(condition);
    }

    /// Everything that the feed held at `asked_at` has been applied.
    ///
    /// INVARIANT (lease): `asked_at` is when we asked for the feed's news, not when the answer
    /// came, so a slow answer can only shorten the lease.
    pub fn confirm(&self, asked_at: Ticks) {
        self.asked_at
            .fetch_max(asked_at.micros().saturating_add(1), Ordering::SeqCst);
    }

    /// Something is known to be missing: no trust until the next confirmation.
    pub fn void(&self) {
        self.asked_at.store(NEVER, Ordering::SeqCst);
    }

    /// News of before `now` may not have been applied: no trust until the feed has been confirmed
    /// by a question asked later. One that is under way may have been asked before the news came,
    /// so voiding is not enough.
    pub fn distrust(&self, now: Ticks) {
        let after = now.micros().saturating_add(1);
        self.after.fetch_max(after, Ordering::SeqCst);
    }

    /// Whether memory may answer now.
    pub fn holds(&self) -> bool {
        let known = self
            .condition
            .get()
            .is_none_or(|known| known.load(Ordering::SeqCst));
        let after = self.after.load(Ordering::SeqCst);
        known
            && self.asked_at.load(Ordering::SeqCst) > after
            && self.lag().is_some_and(|lag| lag <= self.max_lag)
    }

    /// Whether something read at `read_at` is no older than memory may be.
    pub fn covers(&self, read_at: Ticks) -> bool {
        let after = self.after.load(Ordering::SeqCst);
        read_at.micros() >= after && self.clock.ticks().since(read_at) <= self.max_lag
    }

    /// How long ago the feed was confirmed; `None` when it never was.
    pub fn lag(&self) -> Option<Duration> {
        let asked_at = self.asked_at.load(Ordering::SeqCst).checked_sub(1)?;
        Some(self.clock.ticks().since(Ticks::from_micros(asked_at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::TestClock;

    #[test]
    fn memory_is_trusted_from_the_question_on_and_not_from_the_answer() {
        let clock = Arc::new(TestClock::default());
        let lease = Lease::new(clock.clone(), Duration::from_secs(1));
        assert!(!lease.holds(), "never confirmed");
        let asked_at = clock.ticks();
        clock.advance(Duration::from_millis(900));
        lease.confirm(asked_at);
        assert!(lease.holds());
        clock.advance(Duration::from_millis(101));
        assert!(!lease.holds(), "the answer was slow");
    }

    #[test]
    fn distrust_lasts_until_a_question_asked_later_is_answered() {
        let clock = Arc::new(TestClock::default());
        let lease = Lease::new(clock.clone(), Duration::from_secs(10));
        lease.confirm(clock.ticks());
        assert!(lease.holds());
        clock.advance(Duration::from_secs(1));
        let under_way = clock.ticks();
        clock.advance(Duration::from_secs(1));
        lease.distrust(clock.ticks());
        assert!(!lease.holds());
        lease.confirm(under_way);
        assert!(!lease.holds(), "asked before");
        assert!(!lease.covers(under_way), "read before");
        clock.advance(Duration::from_millis(1));
        assert!(lease.covers(clock.ticks()));
        lease.confirm(clock.ticks());
        assert!(lease.holds());
    }

    #[test]
    fn an_older_confirmation_does_not_shorten_and_a_void_lease_needs_a_new_one() {
        let clock = Arc::new(TestClock::default());
        let lease = Lease::new(clock.clone(), Duration::from_secs(1));
        let early = clock.ticks();
        clock.advance(Duration::from_secs(5));
        lease.confirm(clock.ticks());
        lease.confirm(early);
        assert!(lease.holds());
        lease.void();
        assert!(!lease.holds());
        let condition = Arc::new(AtomicBool::new(true));
        lease.only_while(condition.clone());
        lease.confirm(clock.ticks());
        assert!(lease.holds());
        condition.store(false, Ordering::SeqCst);
        assert!(!lease.holds());
    }
}
