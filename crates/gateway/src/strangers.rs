//! Zones that do not exist: anybody may name one in a token that is not signed, and each name
//! would cost a question to the store. For a few seconds the answer is remembered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use caracal_model::{Clock, Ticks, ZoneId};
use parking_lot::Mutex;

const MEMORY: Duration = Duration::from_secs(5);
const NAMES: usize = 4096;

/// Names that were asked for in vain.
pub struct Strangers {
    clock: Arc<dyn Clock>,
    seen: Mutex<HashMap<ZoneId, Ticks>>,
}

impl Strangers {
    /// None yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            seen: Mutex::default(),
        }
    }

    /// Whether this zone was not there a moment ago.
    pub fn knows(&self, zone: &ZoneId) -> bool {
        let seen = self.seen.lock();
        // Nearly always empty: then a request costs no lookup.
        !seen.is_empty()
            && seen
                .get(zone)
                .is_some_and(|at| self.clock.ticks().since(*at) < MEMORY)
    }

    /// This zone is not there.
    pub fn remember(&self, zone: ZoneId) {
        let now = self.clock.ticks();
        let mut seen = self.seen.lock();
        if seen.len() >= NAMES {
            seen.retain(|_, at| now.since(*at) < MEMORY);
            if seen.len() >= NAMES {
                seen.clear();
            }
        }
        seen.insert(zone, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::TestClock;

    #[test]
    fn a_stranger_is_remembered_for_a_moment_and_their_number_is_bounded() {
        let clock = Arc::new(TestClock::default());
        let strangers = Strangers::new(clock.clone());
        let zone = ZoneId::trusted("z9");
        assert!(!strangers.knows(&zone));
        strangers.remember(zone.clone());
        assert!(strangers.knows(&zone));
        clock.advance(MEMORY);
        assert!(!strangers.knows(&zone));
        for number in 0..=NAMES {
            strangers.remember(ZoneId::trusted(format!("z{number}")));
        }
        assert!(strangers.seen.lock().len() <= NAMES);
    }
}
