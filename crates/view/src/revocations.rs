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
//! A subject is cut off in another way: what was issued to it up to a time is dead, whatever it hangs
//! on, and what comes later is not (spec: sts §20.2).
//!
//! **Consequence.** The table grows with revocations, not with traffic, and nothing is evicted:
//! forgetting a mark is an allow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caracal_model::limits::REVOCATION_MEMORY;
use caracal_model::{DelegationId, Mandate, RecordId, SessionId, Timestamp, ZoneId};
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
    /// Subjects, and when it was issued to them.
    pub subjects: &'a [IssuedTo<'a>],
}

/// A subject that something was issued to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IssuedTo<'a> {
    /// The zone of the subject.
    pub zone: &'a ZoneId,
    /// `sub`.
    pub subject: &'a str,
    /// When, Unix milliseconds.
    pub at_ms: i64,
}

impl IssuedTo<'_> {
    /// Whether this is dead for a subject whose mandates are good only if issued after `cutoff`.
    /// The millisecond of the cut belongs to the dead: which came first in it is unknown.
    pub(crate) fn is_cut_by(&self, cutoff: Timestamp) -> bool {
        self.at_ms <= cutoff.unix_millis()
    }

    pub(crate) fn anchor(&self) -> Anchor {
        Anchor::Subject(self.zone.clone(), self.subject.into())
    }
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

/// Everything that a mandate hangs on: its records and those of its actors, its Session, its
/// Delegation and all that this one narrows, its subject and those that act.
pub struct MandateAnchors<'a> {
    records: Vec<&'a RecordId>,
    subjects: Vec<IssuedTo<'a>>,
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
        let actors = || mandate.actors();
        let issued_to = |subject: &'a str| IssuedTo {
            zone: &mandate.zone_id,
            subject,
            at_ms: mandate.issued_ms(),
        };
        let own = [&mandate.sid, &mandate.root_sid];
        let subjects = std::iter::once(&mandate.sub).chain(actors().map(|actor| &actor.sub));
        Self {
            records: own.into_iter().chain(actors().map(|a| &a.sid)).collect(),
            subjects: subjects.map(|subject| issued_to(subject)).collect(),
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
            subjects: &self.subjects,
        }
    }
}

pub(crate) struct Revocations {
    marks: papaya::HashMap<Anchor, Timestamp>,
    /// Up to when mandates of a subject are dead; the keys are subjects only.
    cutoffs: papaya::HashMap<Anchor, Timestamp>,
    changed: watch::Sender<u64>,
    refused: AtomicU64,
}

impl Revocations {
    pub fn new() -> Self {
        Self {
            marks: papaya::HashMap::new(),
            cutoffs: papaya::HashMap::new(),
            changed: watch::Sender::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Remembers that these died at the given times, and wakes whoever watches.
    pub fn mark(&self, dead: impl IntoIterator<Item = (Anchor, Timestamp)>) {
        let mut added = false;
        let marks = self.marks.pin();
        for (anchor, at) in dead {
            if let Anchor::Subject(..) = anchor {
                added |= self.cut(anchor, at);
                continue;
            }
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

    /// Raises the cut-off of a subject; answers whether it was lower.
    fn cut(&self, subject: Anchor, not_before: Timestamp) -> bool {
        let cutoffs = self.cutoffs.pin();
        let before = cutoffs.get(&subject).copied();
        let rises = before.is_none_or(|before| before < not_before);
        if rises {
            // INVARIANT (cut-off): compared and raised in one step, so that of two at once the
            // higher stays.
            cutoffs.update_or_insert(subject, |held| (*held).max(not_before), not_before);
        }
        rises
    }

    /// The first of these subjects that what was issued to it is dead for.
    pub fn first_cut(&self, subjects: &[IssuedTo<'_>]) -> Option<Anchor> {
        if self.cutoffs.is_empty() {
            return None;
        }
        let cutoffs = self.cutoffs.pin();
        let anchors = subjects.iter().map(|issued| (issued, issued.anchor()));
        anchors
            .filter(|(issued, anchor)| cutoffs.get(anchor).is_some_and(|at| issued.is_cut_by(*at)))
            .map(|(_, anchor)| anchor)
            .next()
    }

    pub fn is_dead(&self, anchor: &Anchor, now: Timestamp) -> bool {
        self.marks
            .pin()
            .get(anchor)
            .is_some_and(|until| *until > now)
    }

    pub fn first_dead(&self, anchors: &Anchors<'_>, now: Timestamp) -> Option<Anchor> {
        let marked = anchors.each().find(|anchor| self.is_dead(anchor, now));
        marked.or_else(|| self.first_cut(anchors.subjects))
    }

    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Wakes whoever watches, though nobody died.
    pub fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn prune(&self, now: Timestamp) {
        self.marks.pin().retain(|_, until| *until > now);
        let longest = now.minus(REVOCATION_MEMORY);
        self.cutoffs.pin().retain(|_, at| *at > longest);
    }

    pub fn len(&self) -> usize {
        self.marks.len() + self.cutoffs.len()
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
    fn what_was_issued_up_to_a_cut_off_is_dead_and_what_comes_later_is_not() {
        let table = Revocations::new();
        let (zone, other) = (ZoneId::trusted("z1"), ZoneId::trusted("z2"));
        let at = |ms: i64| Timestamp::from_unix_micros(ms * 1000);
        let dead = |zone, subject, at_ms| {
            let subjects = [IssuedTo {
                zone,
                subject,
                at_ms,
            }];
            let anchors = Anchors {
                subjects: &subjects,
                ..Anchors::default()
            };
            table.first_dead(&anchors, at(2_000)).is_some()
        };
        assert!(!dead(&zone, "u1", 0));
        let mut watch = table.watch();
        table.mark([(Anchor::Subject(zone.clone(), "u1".into()), at(1_000))]);
        assert!(watch.has_changed().unwrap(), "calls under way look again");
        watch.mark_unchanged();
        table.mark([(Anchor::Subject(zone.clone(), "u1".into()), at(900))]);
        assert!(!watch.has_changed().unwrap(), "a cut-off never falls");
        assert!(dead(&zone, "u1", 999) && dead(&zone, "u1", 1_000));
        assert!(!dead(&zone, "u1", 1_001));
        assert!(!dead(&other, "u1", 1) && !dead(&zone, "u2", 1));
        table.prune(at(1_000).plus(REVOCATION_MEMORY));
        assert!(!dead(&zone, "u1", 1), "the last such mandate has expired");
    }

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
