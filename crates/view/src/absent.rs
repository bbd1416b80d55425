//! What is known not to exist.
//!
//! **Forces.** Anybody may name a zone or an application in a request that proves nothing, and what
//! does not exist is in no snapshot: each such request would cost the store a read. But what did
//! not exist a moment ago may come into being, and has to work at once.
//!
//! **Choice.** A bounded set of names that were looked for in vain, believed only while the lease
//! holds, and dropped by the change that the feed brings when something is made.
//!
//! INVARIANT (load): a name is put down only if no change came since before the store was asked.

use std::collections::HashSet;
use std::hash::Hash;

use parking_lot::Mutex;

/// Names that are remembered; whoever sends more of them finds the set emptied, not grown.
const NAMES: usize = 4096;

pub(crate) struct Absent<K>(Mutex<Known<K>>);

struct Known<K> {
    names: HashSet<K>,
    changes: u64,
}

/// Taken before the store is asked.
#[derive(Clone, Copy)]
pub(crate) struct Asked(u64);

impl<K: Eq + Hash> Absent<K> {
    pub fn new() -> Self {
        Self(Mutex::new(Known {
            names: HashSet::new(),
            changes: 0,
        }))
    }

    pub fn begin(&self) -> Asked {
        Asked(self.0.lock().changes)
    }

    pub fn holds(&self, name: &K) -> bool {
        let known = self.0.lock();
        !known.names.is_empty() && known.names.contains(name)
    }

    pub fn remember(&self, name: K, asked: Asked) {
        let mut known = self.0.lock();
        if known.changes != asked.0 {
            return;
        }
        if known.names.len() >= NAMES {
            known.names.clear();
        }
        known.names.insert(name);
    }

    /// Something may have come into being.
    pub fn forget(&self) {
        let mut known = self.0.lock();
        known.changes = known.changes.wrapping_add(1);
        known.names.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_before_a_change_is_not_put_down_after_it() {
        let absent = Absent::new();
        let asked = absent.begin();
        absent.remember("z", asked);
        assert!(absent.holds(&"z"));
        let asked = absent.begin();
        absent.forget();
        assert!(!absent.holds(&"z"));
        absent.remember("z", asked);
        assert!(!absent.holds(&"z"));
    }

    #[test]
    fn ever_new_names_do_not_grow_memory() {
        let absent = Absent::new();
        for name in 0..NAMES * 2 + 1 {
            absent.remember(name, absent.begin());
        }
        assert!(absent.0.lock().names.len() <= NAMES);
    }
}
