//! Pauses between attempts: they double, up to a bound, and are spread so that replicas that were
//! cut off together do not come back together.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    attempts: u32,
}

impl Backoff {
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            attempts: 0,
        }
    }

    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    pub fn next(&mut self) -> Duration {
        let pause = spread(self.first, self.most, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        pause
    }
}

/// The pause after so many attempts: between half of it and all of it.
pub(crate) fn spread(first: Duration, most: Duration, attempts: u32) -> Duration {
    let whole = first
        .saturating_mul(2u32.saturating_pow(attempts.min(20)))
        .min(most);
    // Spreading needs no randomness fit for keys, only a different one each time.
    let part = u32::try_from(RandomState::new().hash_one(attempts) % 1_000).unwrap_or(0);
    whole / 2 + whole / 2 * part / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_bound_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        let first = backoff.next();
        assert!((Duration::from_millis(10)..=Duration::from_millis(20)).contains(&first));
        for _ in 0..40 {
            backoff.next();
        }
        let last = backoff.next();
        assert!((Duration::from_millis(500)..=Duration::from_secs(1)).contains(&last));
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(20));
    }
}
