//! The revocation table: anchors that died within a day.
//!
//! **Forces.** A mandate outlives the moment in which its authority is taken away; whoever verifies
//! one must know, without asking anybody, and must not forget before the last such mandate has
//! expired. Reads may lag behind (a snapshot, a read replica): what was loaded after a revocation
//! may still look alive.
//!
//! **Choice.** A set of marks by anchor, each kept for 24 h (spec: gateway §8). Marks are only ever
//! added: by the feed, and by a snapshot of the store that is read after the feed's position was
//! taken. They also serve as tombstones: facts of a marked entity are dead whatever was read.
//!
//! INVARIANT (position first, snapshot second): every revocation is either in the snapshot or
//! after the position, so none falls between.
//!
//! **Consequence.** The table grows with revocations, not with traffic, and nothing is evicted:
//! forgetting a mark is an allow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caracal_model::limits::REVOCATION_MEMORY;
use caracal_model::{DelegationId, Mandate, RecordId, SessionId, Timestamp};
use caracal_store::live::Anchor;
use tokio::sync::watch;

/// What a mandate or a request hangs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anchors<'a> {
    /// Authority records.
    pub records: &'a [&'a RecordId],
    /// The governed Session.
    pub session: Option<&'a SessionId>,
    /// Delegations.
    pub edges: &'a [&'a DelegationId],
}

impl Anchors<'_> {
    fn each(&self) -> impl Iterator<Item = Anchor> {
        let records = self.records.iter().map(|id| Anchor::Record((*id).clone()));
        let session = self.session.map(|id| Anchor::Session(id.clone()));
        let edges = self
            .edges
            .iter()
            .map(|id| Anchor::Delegation((*id).clone()));
        records.chain(session).chain(edges)
    }
}

/// Everything that a mandate hangs on: its records, its Session, its Delegation and all that this
/// one narrows.
pub struct MandateAnchors<'a> {
    records: [&'a RecordId; 2],
    session: Option<&'a SessionId>,
    edges: Vec<&'a DelegationId>,
}

impl<'a> MandateAnchors<'a> {
    /// The anchors of this mandate.
    pub fn of(mandate: &'a Mandate) -> Self {
        let path = mandate.delegation_path.iter();
        let leaf = mandate
            .delegation_edge_id
            .iter()
            .filter(|id| mandate.delegation_path.last() != Some(id));
        Self {
            records: [&mandate.sid, &mandate.root_sid],
            session: mandate.agent_session_id.as_ref(),
            edges: path.chain(leaf).collect(),
        }
    }

    /// As [`Anchors`].
    pub fn as_anchors(&self) -> Anchors<'_> {
        Anchors {
            records: &self.records,
            session: self.session,
            edges: &self.edges,
        }
    }
}

pub(crate) struct Revocations {
    marks: papaya::HashMap<Anchor, Timestamp>,
    changed: watch::Sender<u64>,
    refused: AtomicU64,
}

impl Revocations {
    pub fn new() -> Self {
        Self {
            marks: papaya::HashMap::new(),
            changed: watch::Sender::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Remembers that these died at the given times, and wakes whoever watches.
    pub fn mark(&self, dead: impl IntoIterator<Item = (Anchor, Timestamp)>) {
        let mut added = false;
        let marks = self.marks.pin();
        for (anchor, at) in dead {
            let until = at.plus(REVOCATION_MEMORY);
            // A repetition may extend a mark, never shorten it.
            let before = marks.get(&anchor).copied();
            if before.is_none_or(|before| before < until) {
                marks.insert(anchor, until);
            }
            added |= before.is_none();
        }
        if added {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    pub fn is_dead(&self, anchor: &Anchor, now: Timestamp) -> bool {
        self.marks
            .pin()
            .get(anchor)
            .is_some_and(|until| *until > now)
    }

    pub fn first_dead(&self, anchors: &Anchors<'_>, now: Timestamp) -> Option<Anchor> {
        anchors.each().find(|anchor| self.is_dead(anchor, now))
    }

    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn prune(&self, now: Timestamp) {
        self.marks.pin().retain(|_, until| *until > now);
    }

    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Counts a message whose signature was wrong.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// How far back a snapshot of the store has to reach.
pub(crate) const SNAPSHOT_REACH: Duration = REVOCATION_MEMORY;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_remembered_for_a_day_and_a_repetition_never_shortens_it() {
        let table = Revocations::new();
        let mut watch = table.watch();
        let at = |hours: i64| Timestamp::from_unix_seconds(hours * 3600);
        let session = SessionId::trusted("s1");
        let anchor = Anchor::Session(session.clone());
        table.mark([(anchor.clone(), at(10))]);
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        table.mark([(anchor.clone(), at(2))]);
        assert!(!watch.has_changed().unwrap(), "nothing new");
        let asked = Anchors {
            session: Some(&session),
            ..Anchors::default()
        };
        assert_eq!(table.first_dead(&asked, at(33)), Some(anchor.clone()));
        assert_eq!(table.first_dead(&asked, at(34)), None);
        let record = RecordId::trusted("s1");
        let other_kind = Anchors {
            records: &[&record],
            ..Anchors::default()
        };
        assert_eq!(table.first_dead(&other_kind, at(11)), None);
        table.prune(at(33));
        assert_eq!(table.len(), 1);
        table.prune(at(34));
        assert_eq!(table.len(), 0);
    }
}
