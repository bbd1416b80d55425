//! The change feed as this replica has it: where it reads on, what it has applied, and how an
//! entry is applied.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caracal_bus::{Entry, Position};
use caracal_crypto::stream_signature_is_valid;
use caracal_model::change::Fields;
use caracal_model::{
    ApprovalId, Change, DelegationId, Histogram, RecordId, SessionId, Ticks, Timestamp, Topic,
    ZoneId,
};
use caracal_store::live::Anchor;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::ViewError;
use crate::revocations::SNAPSHOT_REACH;
use crate::views::Inner;

/// What every view follows.
pub const FOLLOWED: [Topic; 4] = [
    Topic::ViewChanges,
    Topic::SessionsRevoke,
    Topic::PolicyInvalidate,
    Topic::KeysInvalidate,
];

/// A position in each of several topics.
pub type Positions = BTreeMap<Topic, Position>;

/// Where to read on.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The history that the positions belong to.
    pub incarnation: String,
    /// The last entries that were applied.
    pub positions: Positions,
}

pub(crate) struct Feed {
    /// `None` before the first snapshot and after a gap.
    next: Mutex<Option<Place>>,
    applied: watch::Sender<Positions>,
    count: AtomicU64,
    resnapshots: AtomicU64,
    delays: Histogram,
    last: Mutex<Option<(Ticks, Duration)>>,
}

impl Feed {
    pub fn new() -> Self {
        Self {
            next: Mutex::new(None),
            applied: watch::Sender::new(Positions::new()),
            count: AtomicU64::new(0),
            resnapshots: AtomicU64::new(0),
            delays: Histogram::durations(),
            last: Mutex::new(None),
        }
    }

    pub fn is_started(&self) -> bool {
        self.next.lock().is_some()
    }

    pub fn next(&self) -> Option<Place> {
        self.next.lock().clone()
    }

    /// Entries may be missing after where we read on: only a snapshot helps.
    pub fn lose(&self) {
        *self.next.lock() = None;
    }

    /// A snapshot was taken after this place.
    fn begin(&self, at: Place) {
        self.applied
            .send_modify(|applied| applied.clone_from(&at.positions));
        *self.next.lock() = Some(at);
    }

    /// Everything up to these positions has been applied.
    pub fn advance(&self, to: &Positions) {
        if to.is_empty() {
            return;
        }
        if let Some(next) = self.next.lock().as_mut() {
            next.positions.extend(to);
        }
        self.applied.send_modify(|applied| applied.extend(to));
    }

    pub fn applied_now(&self) -> Positions {
        self.applied.borrow().clone()
    }

    pub async fn applied(&self, upto: &Positions, wait: Duration) -> bool {
        let mut applied = self.applied.subscribe();
        let reached = applied.wait_for(|applied| covers(applied, upto));
        matches!(timeout(wait, reached).await, Ok(Ok(_)))
    }

    pub fn applied_count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// From the writing of an entry until it was applied.
    pub const fn delays(&self) -> &Histogram {
        &self.delays
    }

    /// The delay of the last entry, if it was applied no longer ago than that.
    pub fn delay_within(&self, time: Duration, now: Ticks) -> Option<Duration> {
        let last = *self.last.lock();
        last.filter(|(at, _)| now.since(*at) <= time)
            .map(|(_, delay)| delay)
    }

    fn delayed(&self, delay: Duration, now: Ticks) {
        self.delays.took(delay);
        *self.last.lock() = Some((now, delay));
    }

    pub fn resnapshots(&self) -> u64 {
        self.resnapshots.load(Ordering::Relaxed)
    }
}

/// Whether `applied` has reached `upto` in every topic that is followed.
pub(crate) fn covers(applied: &Positions, upto: &Positions) -> bool {
    upto.iter()
        .filter(|(topic, _)| FOLLOWED.contains(topic))
        .all(|(topic, position)| applied.get(topic).is_some_and(|at| at >= position))
}

impl Inner {
    /// Drops what is held and starts over from a snapshot.
    ///
    /// INVARIANT (position first, snapshot second): the positions are taken before anything is
    /// dropped or read, so a change is either seen by a read or comes after the position.
    pub async fn resnapshot(&self) -> Result<(), ViewError> {
        let asked_at = self.clock.ticks();
        let incarnation = self.bus.incarnation().await?;
        let mut positions = Positions::new();
        for topic in FOLLOWED {
            positions.insert(topic, self.bus.last(topic.name()).await?);
        }
        self.forget_everything();
        let since = self.clock.now().minus(SNAPSHOT_REACH);
        let dead = self.store.dead_since(since).await?;
        self.revocations
            .mark(dead.into_iter().map(|dead| (dead.anchor, dead.at)));
        self.versions.raise_all();
        self.feed.begin(Place {
            incarnation,
            positions,
        });
        self.feed.resnapshots.fetch_add(1, Ordering::Relaxed);
        self.lease.confirm(asked_at);
        Ok(())
    }

    fn forget_everything(&self) {
        self.homeless.forget();
        self.sessions.clear();
        self.edges.clear();
        self.records.clear();
        self.epochs.clear();
        self.connections.clear();
        self.zones.invalidate_all();
        self.tell_of_approvals(None);
    }

    fn tell_of_approvals(&self, news: Option<ApprovalId>) {
        // Nobody listening is no failure: only the STS does.
        let _ = self.approvals.send(news);
    }

    /// Applies one entry; answers with the zone that has to be loaded anew, if it is in use here.
    pub fn apply(&self, entry: &Entry) -> Option<ZoneId> {
        self.feed.count.fetch_add(1, Ordering::Relaxed);
        let topic = Topic::from_name(&entry.topic)?;
        if let Some(key) = &self.config.streams_key
            && !stream_signature_is_valid(key, topic.name(), &entry.fields)
        {
            self.revocations.refuse();
            tracing::warn!(topic = topic.name(), position = %entry.position, "bad signature, ignored");
            return None;
        }
        let written = Duration::from_millis(entry.position.millis);
        let written = Timestamp::from_unix_seconds(0).plus(written);
        let delay = self.clock.now().since(written);
        self.feed.delayed(delay, self.clock.ticks());
        let of = zone(&entry.fields);
        let changed = match topic {
            Topic::SessionsRevoke => self.apply_revocation(&entry.fields),
            Topic::ViewChanges => self.apply_change(&entry.fields),
            Topic::PolicyInvalidate | Topic::KeysInvalidate => {
                of.clone().and_then(|zone| self.apply_zone(zone))
            }
            _ => None,
        };
        // INVARIANT (raised last).
        match of {
            Some(zone) => self.versions.raise(&zone),
            None => self.versions.raise_all(),
        }
        changed
    }

    /// Answers as [`Inner::apply_change`] does: no zone is to be loaded for it.
    fn apply_revocation(&self, fields: &Fields) -> Option<ZoneId> {
        let now = self.clock.now();
        self.revocations
            .mark(anchors(fields).map(|anchor| (anchor, now)));
        None
    }

    fn apply_change(&self, fields: &Fields) -> Option<ZoneId> {
        match Change::parse(fields) {
            Some(Change::Zone(zone)) => return self.apply_zone(zone),
            Some(Change::Session(zone, id)) => self.sessions.forget(&(zone, id)),
            Some(Change::Delegation(zone, id)) => self.edges.forget(&(zone, id)),
            Some(Change::Record(zone, id)) => self.records.forget(&(zone, id)),
            Some(Change::Subject(zone, subject, at)) => {
                let anchor = Anchor::Subject(zone, subject.into());
                self.revocations.mark([(anchor, at)]);
            }
            Some(Change::Epoch(zone, _)) => self.epochs.forget(&zone),
            Some(Change::Approval(_, id)) => self.tell_of_approvals(Some(id)),
            Some(Change::Connection(zone, provider, subject)) => {
                self.connections.forget(&(zone, provider, subject));
            }
            // A newer release speaks of something that we do not know: it may be anything.
            None => {
                tracing::warn!("unknown change, everything is read anew");
                self.forget_everything();
                self.versions.raise_all();
            }
        }
        None
    }

    fn apply_zone(&self, zone: ZoneId) -> Option<ZoneId> {
        // It may have got an application.
        self.homeless.forget();
        let is_held = self.zones.invalidate(&zone);
        (is_held || self.config.warm).then_some(zone)
    }
}

fn zone(fields: &Fields) -> Option<ZoneId> {
    ZoneId::parse(fields.get("zone_id")?).ok()
}

/// Every anchor that a message of the revocation stream names (spec: gateway §8, §18.2).
fn anchors(fields: &Fields) -> impl Iterator<Item = Anchor> {
    fields.iter().filter_map(|(name, id)| match name.as_str() {
        "session_id" | "sid" | "root_sid" => Some(Anchor::Record(RecordId::parse(id).ok()?)),
        "agent_session_id" => Some(Anchor::Session(SessionId::parse(id).ok()?)),
        "delegation_edge_id" | "edge_id" => Some(Anchor::Delegation(DelegationId::parse(id).ok()?)),
        _ => None,
    })
}
