//! What every handler works with.

use std::sync::Arc;
use std::time::Duration;

use caracal_bus::Bus;
use caracal_crypto::envelope::Keyring;
use caracal_evidence::EvidenceLog;
use caracal_model::{Change, Clock, Ids, Rng, ZoneId};
use caracal_net::egress::Fetcher;
use caracal_net::metrics::Registry;
use caracal_store::custody::Custody;
use caracal_store::{Store, StoreError, Tx};
use caracal_trail::Trail;
use caracal_view::{Announce, ReplicaStatus, Views};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admission::{Tokens, Windows, ZoneCache};
use crate::audit::Tails;
use crate::catalogue::CATALOGUE;
use crate::config::Config;
use crate::failure::Failure;
use crate::notifications::Hooks;
use crate::notifications::dispatch::Counters;
use crate::reseal::Left;

/// How long a question to the replicas may take.
const REPLICAS_WITHIN: Duration = Duration::from_millis(100);
/// Slow hashes at once: each takes 64 MiB and a core.
const SLOW_HASHES: usize = 2;
/// Requests a minute to foreign endpoints that a zone may have us make, of each sort.
const PROBES: u32 = 10;

/// What the deployment hands to this service.
pub struct Deps {
    /// The system of record.
    pub store: Store,
    /// What this process holds of the zones, for activation status.
    pub views: Views,
    /// Sends the news of a commit on its way.
    pub announce: Arc<dyn Announce>,
    /// Only pinged, for readiness.
    pub bus: Bus,
    /// Seals secrets and signing keys, and derives the peppers.
    pub keyring: Arc<Keyring>,
    /// Where sealed secrets are kept.
    pub custody: Custody,
    /// Asks token endpoints and issuers.
    pub fetch: Fetcher,
    /// The ways out to webhooks.
    pub hooks: Hooks,
    /// Where the revealing of a secret is recorded before it happens.
    pub evidence: EvidenceLog,
    /// Where changes are recorded.
    pub trail: Trail,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ids of everything that is made here.
    pub ids: Arc<Ids>,
    /// Secrets.
    pub rng: Arc<dyn Rng>,
    /// Cancelled when the process starts to drain.
    pub draining: CancellationToken,
}

/// The service.
pub struct Api {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) views: Views,
    pub(crate) bus: Bus,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) custody: Custody,
    pub(crate) fetch: Fetcher,
    pub(crate) hooks: Hooks,
    pub(crate) notifications: Counters,
    pub(crate) evidence: EvidenceLog,
    pub(crate) trail: Trail,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<Ids>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) draining: CancellationToken,
    pub(crate) tokens: Tokens,
    pub(crate) zones: ZoneCache,
    pub(crate) limits: Limits,
    pub(crate) slow_hashes: Arc<Semaphore>,
    pub(crate) reseal_left: Left,
    pub(crate) tails: Arc<Tails>,
    pub(crate) registry: Registry,
    announce: Arc<dyn Announce>,
}

/// The limits of this process.
#[derive(Debug)]
pub(crate) struct Limits {
    pub v1_by_ip: Windows,
    pub v1_by_actor: Windows,
    pub auth_failures: Windows,
    pub ready: Windows,
    /// Tests of providers, by zone.
    pub provider_tests: Windows,
    /// Discoveries, by zone.
    pub discoveries: Windows,
    /// Tests of notification sinks, by zone.
    pub sink_tests: Windows,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Api {
    /// The service with these settings.
    pub fn new(config: Config, deps: Deps) -> Arc<Self> {
        let windows = |limit| Windows::new(limit, Arc::clone(&deps.clock));
        let limits = Limits {
            v1_by_ip: windows(config.v1_rate_limit),
            v1_by_actor: windows(config.v1_rate_limit),
            auth_failures: windows(config.auth_failure_limit),
            ready: windows(config.ready_rate_limit),
            provider_tests: windows(PROBES),
            discoveries: windows(PROBES),
            sink_tests: windows(PROBES),
        };
        Arc::new(Self {
            tokens: Tokens::new(&deps.keyring),
            zones: ZoneCache::default(),
            limits,
            slow_hashes: Arc::new(Semaphore::new(SLOW_HASHES)),
            reseal_left: Left::default(),
            tails: Arc::default(),
            registry: Registry::new(&CATALOGUE, Arc::clone(&deps.clock)),
            config,
            store: deps.store,
            views: deps.views,
            bus: deps.bus,
            keyring: deps.keyring,
            custody: deps.custody,
            fetch: deps.fetch,
            hooks: deps.hooks,
            notifications: Counters::default(),
            evidence: deps.evidence,
            trail: deps.trail,
            clock: deps.clock,
            ids: deps.ids,
            rng: deps.rng,
            draining: deps.draining,
            announce: deps.announce,
        })
    }

    /// Commits a change of a zone with its news, and lets the news go out before the answer does.
    pub(crate) async fn commit(&self, mut tx: Tx, zone: &ZoneId) -> Result<(), StoreError> {
        tx.change(&Change::Zone(zone.clone()));
        tx.commit().await?;
        self.announce().await;
        Ok(())
    }

    /// Commits a change that has named its own news.
    pub(crate) async fn commit_own(&self, tx: Tx) -> Result<(), StoreError> {
        tx.commit().await?;
        self.announce().await;
        Ok(())
    }

    /// Lets the news of a commit go out before the answer does.
    pub(crate) async fn announce(&self) {
        self.announce.announce().await;
    }

    /// Which replicas have applied what was committed in this zone so far; none when nobody can tell.
    pub(crate) async fn replicas(&self, zone: &ZoneId) -> Vec<ReplicaStatus> {
        self.announce.prove(zone, REPLICAS_WITHIN).await
    }

    /// Seals a secret for the place where it is kept.
    pub(crate) fn seal(&self, at: &str, plain: &[u8]) -> Result<Vec<u8>, Failure> {
        self.keyring
            .seal(self.rng.as_ref(), at, plain)
            .map_err(|error| {
                tracing::error!(%error, "secret not sealed");
                Failure::internal()
            })
    }
}

/// Refuses when there is no such zone, before anything else is looked at.
pub(crate) async fn open_zone(api: &Api, zone: &ZoneId) -> Result<(), Failure> {
    if api.store.zones().get(zone).await?.is_some() {
        Ok(())
    } else {
        Err(no_zone(zone))
    }
}

/// Refuses when `id` names no open zone; the zone cannot be archived before the transaction ends.
pub(crate) async fn in_open_zone(tx: &mut Tx, zone: &ZoneId) -> Result<(), Failure> {
    if tx.zones().is_open(zone).await? {
        Ok(())
    } else {
        Err(no_zone(zone))
    }
}

/// No such zone.
pub(crate) fn no_zone(zone: &ZoneId) -> Failure {
    Failure::absent("zone_not_found", format!("there is no zone {zone}"))
}

/// Turns a refusal of the unique index `index` into `failure`.
pub(crate) fn unless_taken(
    index: &'static str,
    failure: impl FnOnce() -> Failure,
) -> impl FnOnce(StoreError) -> Failure {
    move |error| {
        if error.is_conflict_on(index) {
            failure()
        } else {
            error.into()
        }
    }
}
