//! How full something is, roughly: counting rows for every request would cost more than the request.
//! A count is trusted for a few seconds and while it is far from the limit; near the limit every
//! request counts. A hint and no more: what must not be exceeded is held to by the store.

use std::collections::HashMap;
use std::time::Duration;

use caracal_model::{ApplicationId, Ticks, ZoneId};
use parking_lot::Mutex;

/// What is counted: something of an application, or of a whole zone.
pub type Scope = (ZoneId, ApplicationId, &'static str);

/// What was counted, by what it was.
#[derive(Debug, Default)]
pub struct Room(Mutex<HashMap<Scope, (Ticks, u64)>>);

impl Room {
    const TRUSTED: Duration = Duration::from_secs(10);
    const KEPT: usize = 4_096;

    /// Whether there is surely room; takes a place of it.
    pub fn is_known(&self, scope: &Scope, most: u64, now: Ticks) -> bool {
        let mut known = self.0.lock();
        let Some((at, live)) = known.get_mut(scope) else {
            return false;
        };
        *live += 1;
        now.since(*at) < Self::TRUSTED && *live < most / 10 * 9
    }

    /// What was counted just now; whoever counted takes a place.
    pub fn learn(&self, scope: Scope, live: u64, now: Ticks) {
        let mut known = self.0.lock();
        if known.len() >= Self::KEPT {
            known.clear();
        }
        known.insert(scope, (now, live + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_trusted_for_a_while_and_far_from_the_limit() {
        let room = Room::default();
        let scope = || {
            (
                ZoneId::trusted("z"),
                ApplicationId::trusted("a"),
                "sessions",
            )
        };
        let at = |seconds: u64| Ticks::from_micros(seconds * 1_000_000);
        assert!(!room.is_known(&scope(), 20, at(0)), "nobody counted yet");
        room.learn(scope(), 15, at(0));
        assert!(room.is_known(&scope(), 20, at(1)), "17 of 20");
        assert!(!room.is_known(&scope(), 20, at(1)), "18 of 20");
        room.learn(scope(), 0, at(1));
        assert!(!room.is_known(&scope(), 20, at(11)), "ten seconds old");
    }
}
