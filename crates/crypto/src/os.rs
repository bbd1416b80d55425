//! The real clock and the real randomness: the one place that asks the operating system.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use caracal_model::{Clock, Rng, Ticks, Timestamp};

/// The clock of this machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Ticks count from now.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the home of the real clock"
    )]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the home of the real clock"
    )]
    fn now(&self) -> Timestamp {
        // A machine whose clock stands before 1970 gets 1970: every token is then not yet valid,
        // which denies.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp::from_unix_micros(0).plus(since)
    }

    fn ticks(&self) -> Ticks {
        let micros = self.start.elapsed().as_micros();
        Ticks::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

/// The library's generator, seeded by the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsRng;

impl Rng for OsRng {
    fn fill(&self, out: &mut [u8]) {
        if aws_lc_rs::rand::fill(out).is_err() {
            // Without randomness every key, nonce and id from here on would be guessable. There is
            // no answer that a caller could give, so no caller gets to go on.
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_in_this_era_and_never_back() {
        let clock = SystemClock::new();
        assert!(clock.now() > Timestamp::from_unix_seconds(1_700_000_000));
        let first = clock.ticks();
        assert!(clock.ticks() >= first);
    }

    #[test]
    fn two_fills_differ() {
        let (mut one, mut two) = ([0u8; 32], [0u8; 32]);
        OsRng.fill(&mut one);
        OsRng.fill(&mut two);
        assert_ne!(one, two);
        assert_ne!(one, [0u8; 32]);
    }
}
