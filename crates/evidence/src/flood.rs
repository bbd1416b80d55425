//! A flood of refusals in evidence: some are recorded one by one, the rest is counted and the count
//! recorded, so that nothing is forgotten and whoever floods us does not flood the ledger.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use caracal_model::Ticks;
use parking_lot::Mutex;

/// Counts by key. Keys are of what is known to exist (zones, applications), so there are few; those
/// whose window has closed are taken out by [`Flood::overdue`].
#[derive(Debug)]
pub struct Flood<K> {
    one_by_one: u32,
    window: Duration,
    windows: Mutex<HashMap<K, Window>>,
}

#[derive(Debug)]
struct Window {
    opened: Ticks,
    recorded: u32,
    counted: u64,
}

impl<K: Clone + Eq + Hash> Flood<K> {
    /// Within each `window` the first `one_by_one` of a key are recorded one by one.
    pub fn new(one_by_one: u32, window: Duration) -> Self {
        Self {
            one_by_one,
            window,
            windows: Mutex::default(),
        }
    }

    /// How long a count runs.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// Whether to record this one, and how many before it were only counted.
    pub fn admit(&self, key: &K, now: Ticks) -> Option<u64> {
        let mut windows = self.windows.lock();
        let fresh = Window {
            opened: now,
            recorded: 0,
            counted: 0,
        };
        let window = windows.entry(key.clone()).or_insert(fresh);
        let before = if now.since(window.opened) < self.window {
            0
        } else {
            window.opened = now;
            window.recorded = 0;
            std::mem::take(&mut window.counted)
        };
        if window.recorded < self.one_by_one {
            window.recorded += 1;
            return Some(before);
        }
        window.counted += 1;
        None
    }

    /// The counts whose window has closed (or all of them), taken out.
    pub fn overdue(&self, now: Ticks, all: bool) -> Vec<(K, u64)> {
        let mut over = Vec::new();
        self.windows.lock().retain(|key, window| {
            let closed = all || now.since(window.opened) >= self.window;
            if closed && window.counted > 0 {
                over.push((key.clone(), window.counted));
            }
            !closed
        });
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_forgotten_in_a_flood() {
        let flood = Flood::new(20, Duration::from_secs(10));
        let at = |seconds: u64| Ticks::from_micros(seconds * 1_000_000);
        let recorded = (0..50).filter(|_| flood.admit(&"z", at(1)).is_some());
        assert_eq!(recorded.count(), 20);
        assert_eq!(flood.admit(&"y", at(1)), Some(0), "each has its own");
        assert_eq!(flood.overdue(at(5), false), []);
        assert_eq!(flood.admit(&"z", at(11)), Some(30), "the next one tells");
        for _ in 0..30 {
            flood.admit(&"z", at(12));
        }
        assert_eq!(flood.overdue(at(21), false), [("z", 11)]);
        assert_eq!(flood.overdue(at(22), true), []);
    }
}
