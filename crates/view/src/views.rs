//! What the hot path reads, behind one handle.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use caracal_authority::{EdgeFacts, RecordFacts, RecordStatus, SessionFacts, SessionStatus};
use caracal_bus::{Bus, Position};
use caracal_crypto::{HmacKey, Keyring};
use caracal_model::id::uuid7_millis;
use caracal_model::{
    ApplicationId, ApprovalId, Clock, DelegationId, Histogram, Mandate, ProviderId, RecordId,
    SessionId, Topic, ZoneId,
};
use caracal_store::Store;
use caracal_store::custody::{BackendStats, Custody, SecretBackend};
use caracal_store::live::Anchor;
use tokio::sync::{broadcast, watch};

use crate::absent::Absent;
use crate::connections::UserConnection;
use crate::feed::{Feed, Positions};
use crate::lease::Lease;
use crate::live::LiveTable;
use crate::revocations::{Anchors, IssuedTo, MandateAnchors, Revocations};
use crate::secrets::Cells;
use crate::versions::Versions;
use crate::zones::Zones;
use crate::{Follower, ViewError, ZoneView, facts};

/// For how long the delay of an entry says something about now.
const LATELY: Duration = Duration::from_secs(60);
/// News of approvals that a listener may be behind.
const APPROVAL_NEWS: usize = 1_024;

/// How a view behaves.
#[derive(Clone, Debug)]
pub struct ViewConfig {
    /// How long memory is trusted after the feed was last confirmed (`FEED_MAX_LAG`).
    pub feed_max_lag: Duration,
    /// Verifies the streams (`STREAMS_HMAC_KEY`); without it, everything on them is believed.
    pub streams_key: Option<HmacKey>,
    /// The name of this replica, under which it reports what it has applied.
    pub replica: String,
    /// Entries that each live table holds, about.
    pub table_size: usize,
    /// Keeps the secrets of providers, where our own database does not.
    pub backend: Option<Arc<dyn SecretBackend>>,
    /// How long a call waits for it: less than a Gateway waits for its STS (`STS_TIMEOUT`, 5 s).
    pub backend_patience: Duration,
    /// Whether zones are loaded before anybody asks for them: those with an active policy at the
    /// start, and every one that changes.
    pub warm: bool,
}

impl Default for ViewConfig {
    fn default() -> Self {
        Self {
            feed_max_lag: Duration::from_secs(1),
            streams_key: None,
            replica: "local".to_owned(),
            table_size: 100_000,
            backend: None,
            backend_patience: Duration::from_secs(4),
            warm: true,
        }
    }
}

/// The memory of a replica. Clones share it.
#[derive(Clone)]
pub struct Views(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub store: Store,
    pub bus: Bus,
    pub clock: Arc<dyn Clock>,
    pub config: ViewConfig,
    pub lease: Lease,
    pub zones: Zones,
    pub cells: Option<Arc<Cells>>,
    pub homes: LiveTable<ApplicationId, ZoneId>,
    /// Applications that no zone has.
    pub homeless: Absent<ApplicationId>,
    pub sessions: LiveTable<(ZoneId, SessionId), SessionFacts>,
    pub edges: LiveTable<(ZoneId, DelegationId), EdgeFacts>,
    pub records: LiveTable<(ZoneId, RecordId), RecordFacts>,
    pub epochs: LiveTable<ZoneId, u64>,
    pub connections: LiveTable<(ZoneId, ProviderId, String), Option<Arc<UserConnection>>>,
    pub keyring: Option<Arc<Keyring>>,
    pub revocations: Revocations,
    pub versions: Versions,
    pub approvals: broadcast::Sender<Option<ApprovalId>>,
    /// Whether nobody can tell of revocations any more.
    pub blind: AtomicBool,
    pub feed: Feed,
}

/// How much a view holds, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewStats {
    /// Zones.
    pub zones: usize,
    /// Sessions.
    pub sessions: usize,
    /// Delegations.
    pub edges: usize,
    /// Revoked anchors.
    pub revoked: usize,
    /// Messages of the streams that were ignored for their signature.
    pub invalid_signatures: u64,
    /// Entries of the streams that were applied.
    pub applied: u64,
    /// Times that everything was dropped and read again.
    pub resnapshots: u64,
}

impl std::fmt::Debug for Views {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Views")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Views {
    /// A view of this store, fed by this bus. Services that sign or hold provider secrets hand in
    /// their keyring. The [`Follower`] has to run for the view to answer from memory.
    pub fn new(
        store: Store,
        bus: Bus,
        clock: Arc<dyn Clock>,
        keyring: Option<Arc<Keyring>>,
        config: ViewConfig,
    ) -> (Self, Follower) {
        let outside = config.backend.clone().zip(keyring.clone());
        let cells = outside.map(|(backend, keyring)| {
            let custody = Custody::new(store.clone(), Some(backend));
            let patience = config.backend_patience;
            Arc::new(Cells::new(custody, keyring, clock.clone(), patience))
        });
        let (sealed, held) = (keyring.clone(), cells.clone());
        let views = Self(Arc::new(Inner {
            lease: Lease::new(clock.clone(), config.feed_max_lag),
            zones: Zones::new(store.clone(), clock.clone(), sealed, held),
            cells,
            keyring,
            connections: LiveTable::new(config.table_size),
            homes: LiveTable::new(config.table_size),
            homeless: Absent::new(),
            sessions: LiveTable::new(config.table_size),
            edges: LiveTable::new(config.table_size),
            records: LiveTable::new(config.table_size),
            epochs: LiveTable::new(config.table_size),
            revocations: Revocations::new(),
            versions: Versions::new(),
            approvals: broadcast::Sender::new(APPROVAL_NEWS),
            blind: AtomicBool::new(false),
            feed: Feed::new(),
            store,
            bus,
            clock,
            config,
        }));
        let follower = Follower::new(views.clone());
        (views, follower)
    }

    /// Takes the positions of the feed, then the revocations of the last day. Until this has
    /// succeeded once, every answer comes from the store; the follower tries again by itself.
    ///
    /// # Errors
    /// When bus or store cannot be reached.
    pub async fn start(&self) -> Result<(), ViewError> {
        if self.0.feed.is_started() {
            return Ok(());
        }
        self.0.resnapshot().await
    }

    /// Drops what is held and takes it anew, as an operator in doubt asks for.
    ///
    /// # Errors
    /// When bus or store cannot be reached.
    pub async fn reload(&self) -> Result<(), ViewError> {
        self.0.resnapshot().await
    }

    /// The zone as it is now.
    ///
    /// # Errors
    /// [`ViewError`]; an unreachable store matters only when memory may not answer.
    pub async fn zone(&self, zone: &ZoneId) -> Result<Arc<ZoneView>, ViewError> {
        Box::pin(self.0.zones.get(zone, &self.0.lease)).await
    }

    /// Loads the zones that have an active policy, before the first request asks for them.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn warm(&self) -> Result<usize, ViewError> {
        let zones = self.0.store.bound_zones().await?;
        for zone in &zones {
            self.zone(zone).await?;
        }
        Ok(zones.len())
    }

    /// Asks the store which policies are in force, and drops every zone that is held with another:
    /// what stands behind a feed that missed something, such as a database that was restored. Answers
    /// which zones.
    ///
    /// # Errors
    /// When the store cannot be reached; what is held stays.
    pub async fn check_policies(&self) -> Result<Vec<ZoneId>, ViewError> {
        let in_force = self.0.store.policies_in_force().await?;
        let missed = self.0.zones.invalidate_policies(&in_force);
        for zone in &missed {
            self.0.versions.raise(zone);
        }
        Ok(missed)
    }

    /// Asks the backend for the secrets of providers that are due, as the follower does all the time.
    /// Nothing is to be done where our own database keeps them.
    pub async fn confirm_secrets(&self) {
        if let Some(cells) = &self.0.cells {
            Box::pin(cells.turn()).await;
        }
    }

    /// What was asked of the backend that keeps the secrets of providers.
    pub fn backend_stats(&self) -> BackendStats {
        let cells = self.0.cells.as_ref();
        cells
            .map(|cells| cells.custody().stats())
            .unwrap_or_default()
    }

    /// The zone of an application. An archived application may still be found here, but not in its
    /// zone.
    ///
    /// # Errors
    /// When memory has no answer and the store cannot be reached.
    pub async fn zone_of_application(
        &self,
        application: &ApplicationId,
    ) -> Result<Option<ZoneId>, ViewError> {
        // An application never moves, so what is known stays true whatever the feed does.
        if let Some(zone) = self.0.homes.get(application) {
            return Ok(Some(zone.as_ref().clone()));
        }
        if self.0.lease.holds() && self.0.homeless.holds(application) {
            return Ok(None);
        }
        let ticket = self.0.homes.begin(application);
        let asked = self.0.homeless.begin();
        let Some(zone) = self.0.store.zone_of_application(application).await? else {
            self.0.homeless.remember(application.clone(), asked);
            return Ok(None);
        };
        self.0
            .homes
            .insert(application.clone(), ticket, Arc::new(zone.clone()));
        Ok(Some(zone))
    }

    /// A Session.
    ///
    /// # Errors
    /// When memory has no answer and the store cannot be reached.
    pub async fn session(
        &self,
        zone: &ZoneId,
        id: &SessionId,
    ) -> Result<Option<Arc<SessionFacts>>, ViewError> {
        let at = &self.0;
        let key = (zone.clone(), id.clone());
        let load = async || {
            let row = at.store.zone(zone).sessions().get(id).await?;
            row.map(facts::session).transpose()
        };
        let found = at.held_or(&at.sessions, &key, load).await?;
        let dead = at.is_dead(|| Anchor::Session(id.clone()));
        Ok(found.map(|facts| match facts.status {
            SessionStatus::Active | SessionStatus::Suspended if dead => Arc::new(SessionFacts {
                status: SessionStatus::Terminated,
                ..(*facts).clone()
            }),
            _ => facts,
        }))
    }

    /// A Delegation.
    ///
    /// # Errors
    /// When memory has no answer and the store cannot be reached.
    pub async fn edge(
        &self,
        zone: &ZoneId,
        id: &DelegationId,
    ) -> Result<Option<Arc<EdgeFacts>>, ViewError> {
        let at = &self.0;
        let key = (zone.clone(), id.clone());
        let load = async || {
            let row = at.store.zone(zone).delegations().get(id).await?;
            row.map(facts::edge).transpose()
        };
        let found = at.held_or(&at.edges, &key, load).await?;
        Ok(found.map(|facts| at.buried(facts)))
    }

    /// An authority record that can be listed or revoked. Records of single mandates are evidence,
    /// not rows: they are not found, and are alive unless [`Views::revoked`] names them.
    ///
    /// # Errors
    /// When memory has no answer and the store cannot be reached.
    pub async fn record(
        &self,
        zone: &ZoneId,
        id: &RecordId,
    ) -> Result<Option<Arc<RecordFacts>>, ViewError> {
        let at = &self.0;
        let key = (zone.clone(), id.clone());
        let load = async || {
            let row = at.store.zone(zone).authority_record(id).await?;
            row.map(facts::record).transpose()
        };
        let found = at.held_or(&at.records, &key, load).await?;
        let Some(facts) = found else {
            return Ok(None);
        };
        let dead = facts.status == RecordStatus::Active
            && (at.is_dead(|| Anchor::Record(id.clone())) || self.is_cut(zone, &facts).await?);
        if !dead {
            return Ok(Some(facts));
        }
        Ok(Some(Arc::new(RecordFacts {
            status: RecordStatus::Revoked,
            ..(*facts).clone()
        })))
    }

    /// Whether the subject of a record was cut off after the record was made. One that was on its way
    /// into the store at that moment was not there to be revoked with the others.
    async fn is_cut(&self, zone: &ZoneId, record: &RecordFacts) -> Result<bool, ViewError> {
        let at = &self.0;
        let made = uuid7_millis(record.id.as_str()).and_then(|made| i64::try_from(made).ok());
        let Some(at_ms) = made else {
            // Not an id of ours: it was imported, and is revoked by its row.
            return Ok(false);
        };
        let issued = [IssuedTo {
            zone,
            subject: &record.subject_id,
            at_ms,
        }];
        // As in `revoked`.
        let trusted = at.lease.holds();
        let cut = at.revocations.first_cut(&issued).is_some();
        if trusted || cut {
            return Ok(cut);
        }
        Ok(at.first_cut(&issued).await?.is_some())
    }

    /// The epoch of the zone's authority graph; 0 before its first edge.
    ///
    /// # Errors
    /// When memory has no answer and the store cannot be reached.
    pub async fn epoch(&self, zone: &ZoneId) -> Result<u64, ViewError> {
        let at = &self.0;
        let load = async || Ok(Some(at.store.zone(zone).epoch().await?.unwrap_or(0)));
        let found = at.held_or(&at.epochs, zone, load).await?;
        Ok(found.map_or(0, |epoch| *epoch))
    }

    /// The edges from the root of a lineage down to this leaf, whatever their state: at most
    /// eleven, so a path that is too long or circular shows as such. Empty when the leaf does not
    /// exist; a root with a parent is one whose parent is gone.
    ///
    /// # Errors
    /// When memory has no answer and the store cannot be reached.
    pub async fn lineage(
        &self,
        zone: &ZoneId,
        leaf: &DelegationId,
    ) -> Result<Vec<Arc<EdgeFacts>>, ViewError> {
        if let Some(held) = self.0.held_lineage(zone, leaf) {
            return Ok(held);
        }
        self.0.load_lineage(zone, leaf).await
    }

    /// The first of these anchors that has died: from memory while the lease holds, else from the
    /// store as well.
    ///
    /// # Errors
    /// [`ViewError::Unreachable`] when neither may or can answer: deny.
    pub async fn revoked(&self, anchors: &Anchors<'_>) -> Result<Option<Anchor>, ViewError> {
        let at = &self.0;
        // Asked before memory is read, so memory is at least as fresh as the lease says.
        let trusted = at.lease.holds();
        let dead = at.revocations.first_dead(anchors, at.clock.now());
        if trusted || dead.is_some() {
            return Ok(dead);
        }
        let sessions: Vec<&SessionId> = anchors.session.into_iter().collect();
        let dead = at
            .store
            .first_dead(anchors.records, &sessions, anchors.edges)
            .await?;
        match dead {
            Some(dead) => Ok(Some(dead)),
            None => at.first_cut(anchors.subjects).await,
        }
    }

    /// As [`Views::revoked`], for everything that this mandate hangs on.
    ///
    /// # Errors
    /// As [`Views::revoked`].
    pub async fn mandate_revoked(&self, mandate: &Mandate) -> Result<Option<Anchor>, ViewError> {
        self.revoked(&MandateAnchors::of(mandate).as_anchors())
            .await
    }

    /// Whether a mark names one of these, without asking the store: for a response that is already
    /// under way. Says nothing about freshness; see [`Views::lease_holds`].
    pub fn is_marked(&self, anchors: &Anchors<'_>) -> bool {
        self.0
            .revocations
            .first_dead(anchors, self.0.clock.now())
            .is_some()
    }

    /// Changes with every new mark: whoever has a response under way looks again.
    pub fn revocation_watch(&self) -> watch::Receiver<u64> {
        self.0.revocations.watch()
    }

    /// Hears of approvals that were decided or consumed, as the feed tells of them; `None` when
    /// entries may have been missed, as may a listener that lags: then any of them may have changed.
    pub fn approval_news(&self) -> broadcast::Receiver<Option<ApprovalId>> {
        self.0.approvals.subscribe()
    }

    /// Whether everything up to `position` of the topic has been applied here; waits for it at
    /// most `wait`.
    pub async fn applied(&self, topic: Topic, position: Position, wait: Duration) -> bool {
        self.applied_all(&Positions::from([(topic, position)]), wait)
            .await
    }

    /// As [`Views::applied`], for several topics. Topics that a view does not follow do not count.
    pub async fn applied_all(&self, upto: &Positions, wait: Duration) -> bool {
        self.0.feed.applied(upto, wait).await
    }

    /// Whether memory may answer now.
    pub fn lease_holds(&self) -> bool {
        self.0.lease.holds()
    }

    /// How long ago the feed was confirmed; `None` when it never was.
    pub fn lag(&self) -> Option<Duration> {
        self.0.lease.lag()
    }

    /// How far behind the writers this replica is: while the feed is confirmed, the delay of the last
    /// entry, and nought once a minute has passed without one; else the time since it was confirmed,
    /// without bound when it never was.
    pub fn propagation(&self) -> Duration {
        let at = &self.0;
        if at.lease.holds() {
            let lately = at.feed.delay_within(LATELY, at.clock.ticks());
            return lately.unwrap_or_default();
        }
        at.lease.lag().unwrap_or(Duration::MAX)
    }

    /// From the writing of an entry of the feed until it was applied here.
    pub fn propagation_delays(&self) -> &Histogram {
        self.0.feed.delays()
    }

    /// How long memory is trusted after the feed was last confirmed.
    pub fn feed_max_lag(&self) -> Duration {
        self.0.config.feed_max_lag
    }

    /// Trusts memory only while `condition` is true as well: whether what this process commits
    /// reaches the feed that it follows.
    pub(crate) fn only_while(&self, condition: Arc<AtomicBool>) {
        self.0.lease.only_while(condition);
    }

    /// What was committed up to now may not have been applied: memory answers again once the feed
    /// has been asked after this.
    pub(crate) fn distrust(&self) {
        self.0.lease.distrust(self.0.clock.ticks());
    }

    /// How much is held.
    pub fn stats(&self) -> ViewStats {
        let at = &self.0;
        ViewStats {
            zones: at.zones.len(),
            sessions: at.sessions.len(),
            edges: at.edges.len(),
            revoked: at.revocations.len(),
            invalid_signatures: at.revocations.refused(),
            applied: at.feed.applied_count(),
            resnapshots: at.feed.resnapshots(),
        }
    }
}
