//! A circuit breaker: consecutive failures open it, one probe at a time closes it.
//!
//! **Forces.** Callers of a dead dependency must not each wait out its timeout; a dependency that
//! comes back must not be met by everyone at once. **Choice.** `threshold` failures in a row open
//! the circuit for `open_for`; then a single call is let through, and its outcome decides. Calls whose
//! connections break at the same time fail for one reason, such as one replica of several that was
//! killed: they count as one failure, and the next call tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caracal_model::{Clock, Ticks};
use parking_lot::Mutex;

/// One circuit, shared by all calls to one dependency.
pub struct Breaker {
    clock: Arc<dyn Clock>,
    threshold: u32,
    open_for: Duration,
    state: Mutex<State>,
    opened: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    opened_at: Option<Ticks>,
    probing: bool,
    /// When a broken connection was counted last.
    broke_at: Option<Ticks>,
}

impl std::fmt::Debug for Breaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Breaker")
            .field("state", &*self.state.lock())
            .finish_non_exhaustive()
    }
}

/// What metrics show of a circuit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circuit {
    /// Whether it is open now.
    pub open: bool,
    /// How often it has opened.
    pub opened: u64,
    /// Calls that were refused without being tried.
    pub fast_failed: u64,
}

impl Breaker {
    /// A closed circuit.
    pub fn new(clock: Arc<dyn Clock>, threshold: u32, open_for: Duration) -> Self {
        Self {
            clock,
            threshold,
            open_for,
            state: Mutex::default(),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Asks to make a call; `None` while the circuit is open.
    pub fn enter(&self) -> Option<Pass<'_>> {
        let entered_at = self.clock.ticks();
        let pass = |probe| Pass {
            breaker: self,
            probe,
            entered_at,
        };
        let mut state = self.state.lock();
        let Some(opened_at) = state.opened_at else {
            return Some(pass(false));
        };
        let waited = entered_at.since(opened_at) >= self.open_for;
        if waited && !state.probing {
            state.probing = true;
            return Some(pass(true));
        }
        drop(state);
        self.refused.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// For metrics.
    pub fn circuit(&self) -> Circuit {
        Circuit {
            open: self.state.lock().opened_at.is_some(),
            opened: self.opened.load(Ordering::Relaxed),
            fast_failed: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// Leave for one call. Dropped without an outcome (the caller went away), it changes nothing,
/// except that the next call may probe.
#[derive(Debug)]
#[must_use]
pub struct Pass<'a> {
    breaker: &'a Breaker,
    probe: bool,
    entered_at: Ticks,
}

impl Pass<'_> {
    /// The call went through: the circuit closes and the count starts anew.
    pub fn succeeded(self) {
        *self.breaker.state.lock() = State::default();
    }

    /// The dependency answered with a refusal of this one call: it is alive, which is all that a
    /// probe asks. Outside a probe it says nothing about earlier failures (gateway §9.4).
    pub fn answered(self) {
        if self.probe {
            self.succeeded();
        }
    }

    /// The connection broke, or there was none: a failure, unless one has been counted since this call
    /// began.
    pub fn broke(self) {
        let now = self.breaker.clock.ticks();
        {
            let mut state = self.breaker.state.lock();
            if !self.probe && state.broke_at.is_some_and(|at| self.entered_at < at) {
                return;
            }
            state.broke_at = Some(now);
        }
        self.failed();
    }

    /// The dependency failed.
    pub fn failed(self) {
        let mut state = self.breaker.state.lock();
        state.failures = state.failures.saturating_add(1);
        if self.probe || (state.failures >= self.breaker.threshold && state.opened_at.is_none()) {
            state.opened_at = Some(self.breaker.clock.ticks());
            self.breaker.opened.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.breaker.state.lock().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::TestClock;

    const OPEN: Duration = Duration::from_secs(10);

    fn breaker() -> (Arc<TestClock>, Breaker) {
        let clock = Arc::new(TestClock::default());
        (clock.clone(), Breaker::new(clock, 3, OPEN))
    }

    fn fail(breaker: &Breaker, times: usize) {
        for _ in 0..times {
            breaker.enter().unwrap().failed();
        }
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let (_, breaker) = breaker();
        fail(&breaker, 2);
        breaker.enter().unwrap().succeeded();
        fail(&breaker, 2);
        breaker.enter().unwrap().answered();
        assert!(breaker.enter().is_some());
        fail(&breaker, 1);
        assert!(breaker.enter().is_none());
        assert_eq!(
            breaker.circuit(),
            Circuit {
                open: true,
                opened: 1,
                fast_failed: 1
            }
        );
    }

    #[test]
    fn after_the_wait_one_probe_decides() {
        let (clock, breaker) = breaker();
        fail(&breaker, 3);
        clock.advance(OPEN);
        let probe = breaker.enter().unwrap();
        assert!(breaker.enter().is_none(), "one probe at a time");
        probe.failed();
        assert!(breaker.enter().is_none(), "a failed probe opens it again");
        clock.advance(OPEN);
        breaker.enter().unwrap().answered();
        assert!(!breaker.circuit().open, "a refusal is an answer");
        fail(&breaker, 2);
        assert!(breaker.enter().is_some());
    }

    #[test]
    fn a_probe_whose_caller_left_makes_way_for_another() {
        let (clock, breaker) = breaker();
        fail(&breaker, 3);
        clock.advance(OPEN);
        drop(breaker.enter().unwrap());
        assert!(breaker.enter().is_some());
    }

    #[test]
    fn calls_that_were_under_way_when_it_opened_do_not_count_twice() {
        let (_, breaker) = breaker();
        let late: Vec<_> = (0..5).map(|_| breaker.enter().unwrap()).collect();
        late.into_iter().for_each(Pass::failed);
        assert_eq!(breaker.circuit().opened, 1);
    }

    #[test]
    fn connections_that_break_at_the_same_time_are_one_failure() {
        let (clock, breaker) = breaker();
        let broken: Vec<_> = (0..9).map(|_| breaker.enter().unwrap()).collect();
        clock.advance(Duration::from_millis(1));
        broken.into_iter().for_each(Pass::broke);
        assert!(!breaker.circuit().open, "others may live");
        // Nobody does: each call that begins now finds that out anew.
        for _ in 0..2 {
            assert!(!breaker.circuit().open);
            clock.advance(Duration::from_millis(1));
            breaker.enter().unwrap().broke();
        }
        assert!(breaker.circuit().open);
        clock.advance(OPEN);
        breaker.enter().unwrap().broke();
        assert!(breaker.enter().is_none(), "a probe always counts");
    }
}
