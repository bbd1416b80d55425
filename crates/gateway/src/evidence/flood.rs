//! Denials in number: some are recorded, the rest is counted and the count recorded.

use std::collections::HashMap;
use std::time::Duration;

use caracal_model::{Ticks, ZoneId};
use parking_lot::Mutex;

use crate::denial::Cause;

/// Denials of one zone and cause that are recorded one by one within [`WINDOW`].
const ONE_BY_ONE: u32 = 20;
/// How long a count runs.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Counts by zone and cause. Only proven mandates get here, so there are few.
#[derive(Debug, Default)]
pub struct Flood(Mutex<HashMap<(ZoneId, Cause), Window>>);

#[derive(Debug)]
struct Window {
    opened: Ticks,
    recorded: u32,
    counted: u64,
}

impl Flood {
    /// Whether to record this denial, and how many before it were only counted.
    pub fn admit(&self, zone: &ZoneId, cause: Cause, now: Ticks) -> Option<u64> {
        let mut windows = self.0.lock();
        let fresh = Window {
            opened: now,
            recorded: 0,
            counted: 0,
        };
        let window = windows.entry((zone.clone(), cause)).or_insert(fresh);
        let before = if now.since(window.opened) < WINDOW {
            0
        } else {
            window.opened = now;
            window.recorded = 0;
            std::mem::take(&mut window.counted)
        };
        if window.recorded < ONE_BY_ONE {
            window.recorded += 1;
            return Some(before);
        }
        window.counted += 1;
        None
    }

    /// The counts whose window has closed (or all of them), taken out.
    pub fn overdue(&self, now: Ticks, all: bool) -> Vec<(ZoneId, Cause, u64)> {
        let mut over = Vec::new();
        self.0.lock().retain(|(zone, cause), window| {
            let closed = all || now.since(window.opened) >= WINDOW;
            if closed && window.counted > 0 {
                over.push((zone.clone(), *cause, window.counted));
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
        let flood = Flood::default();
        let (zone, other) = (ZoneId::trusted("z"), ZoneId::trusted("y"));
        let at = |seconds: u64| Ticks::from_micros(seconds * 1_000_000);
        let recorded = (0..50).filter(|_| flood.admit(&zone, Cause::Revoked, at(1)).is_some());
        assert_eq!(recorded.count(), 20);
        assert_eq!(flood.admit(&zone, Cause::JtiReplay, at(1)), Some(0));
        assert_eq!(flood.admit(&other, Cause::Revoked, at(1)), Some(0));
        assert_eq!(flood.overdue(at(5), false), []);
        assert_eq!(
            flood.admit(&zone, Cause::Revoked, at(11)),
            Some(30),
            "the next one tells"
        );
        for _ in 0..30 {
            flood.admit(&zone, Cause::Revoked, at(12));
        }
        assert_eq!(
            flood.overdue(at(21), false),
            [(zone.clone(), Cause::Revoked, 11)]
        );
        assert_eq!(flood.overdue(at(22), true), []);
    }
}
