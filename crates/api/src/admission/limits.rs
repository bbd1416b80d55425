//! Requests a minute, by key, in this process (spec: admin-api §4.3, §20.1). A replica counts for
//! itself: what is shared would cost a round trip a request and protects this process no better.

use std::collections::HashMap;
use std::sync::Arc;

use caracal_model::Clock;
use parking_lot::Mutex;

const MINUTE: u64 = 60_000_000;
/// Past this many keys in a minute, further ones share one count: memory stays bounded, and those
/// who spray addresses limit each other.
const MOST_KEYS: usize = 65_536;
const OVERFLOW: &str = "";

/// Counts that start again every minute.
pub struct Windows {
    limit: u32,
    clock: Arc<dyn Clock>,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    minute: u64,
    counts: HashMap<String, u32>,
}

impl std::fmt::Debug for Windows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Windows")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Windows {
    /// At most `limit` a minute for one key; 0 is no limit.
    pub fn new(limit: u32, clock: Arc<dyn Clock>) -> Self {
        Self {
            limit,
            clock,
            window: Mutex::default(),
        }
    }

    /// Counts one.
    ///
    /// # Errors
    /// Seconds until the next minute, when it was one too many.
    pub fn count(&self, key: &str) -> Result<(), u32> {
        if self.limit == 0 {
            return Ok(());
        }
        let now = self.clock.ticks().micros();
        let minute = now / MINUTE;
        let mut window = self.window.lock();
        if window.minute != minute {
            window.minute = minute;
            window.counts.clear();
        }
        let is_known = window.counts.contains_key(key);
        let key = if is_known || window.counts.len() < MOST_KEYS {
            key
        } else {
            OVERFLOW
        };
        let count = window.counts.entry(key.to_owned()).or_default();
        *count = count.saturating_add(1);
        if *count <= self.limit {
            return Ok(());
        }
        let left = MINUTE - now % MINUTE;
        Err(u32::try_from(left.div_ceil(1_000_000)).unwrap_or(60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::TestClock;
    use std::time::Duration;

    #[test]
    fn a_minute_has_its_own_count_for_each_key() {
        let clock = Arc::new(TestClock::default());
        let windows = Windows::new(2, clock.clone());
        clock.advance(Duration::from_secs(15));
        assert_eq!([windows.count("a"), windows.count("a")], [Ok(()), Ok(())]);
        assert_eq!(windows.count("a"), Err(45));
        assert_eq!(windows.count("b"), Ok(()));
        clock.advance(Duration::from_secs(45));
        assert_eq!(windows.count("a"), Ok(()));
    }

    #[test]
    fn no_limit_counts_nothing() {
        let windows = Windows::new(0, Arc::new(TestClock::default()));
        assert!((0..1000).all(|_| windows.count("a").is_ok()));
    }
}
