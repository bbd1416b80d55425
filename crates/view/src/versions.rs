//! Whether memory has changed since something was read from it.
//!
//! **Forces.** A decision rests on several reads, and its answer leaves after waits of other kinds.
//! Whoever wants to know whether all of it is still true should not have to read it again, let alone
//! ask the store.
//!
//! **Choice.** A count for each of some groups of zones, raised by every change that is applied. While
//! the count stands, so does everything that was read.
//!
//! INVARIANT (raised last): a count is raised after its change was applied. Whoever reads the count
//! first and then a fact from before a change finds the count raised; the other way round, a change
//! could fall between the two.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use caracal_model::ZoneId;

use crate::Views;

/// Zones share counts: a change of one makes others look again, which costs them a few reads.
const GROUPS: usize = 256;

pub(crate) struct Versions {
    groups: Vec<AtomicU64>,
    hasher: RandomState,
}

/// What memory was like at a moment, for one zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(u64);

impl Versions {
    pub fn new() -> Self {
        Self {
            groups: (0..GROUPS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }

    pub fn of(&self, zone: &ZoneId) -> Seen {
        let group = self.group(zone);
        Seen(group.map_or(0, |group| group.load(Ordering::SeqCst)))
    }

    /// A change of this zone was applied.
    pub fn raise(&self, zone: &ZoneId) {
        if let Some(group) = self.group(zone) {
            group.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A change was applied that may be of any zone.
    pub fn raise_all(&self) {
        for group in &self.groups {
            group.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn group(&self, zone: &ZoneId) -> Option<&AtomicU64> {
        let hash = usize::try_from(self.hasher.hash_one(zone) >> 32).unwrap_or(0);
        self.groups.get(hash % GROUPS)
    }
}

impl Views {
    /// What memory is like now, for this zone: to be asked before anything is read on which a
    /// decision will rest.
    pub fn seen(&self, zone: &ZoneId) -> Seen {
        self.0.versions.of(zone)
    }

    /// Whether all that was read of a zone since then is what memory still says. `false` may be
    /// without a reason: then read again, and compare.
    pub fn stands_since(&self, zone: &ZoneId, seen: Seen) -> bool {
        self.0.lease.holds() && self.0.versions.of(zone) == seen
    }
}
