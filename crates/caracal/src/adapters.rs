//! What the services stand on. The two deployments differ here and nowhere else: services are handed
//! adapters and never ask which.
//!
//! | | embedded | distributed |
//! | --- | --- | --- |
//! | store | SQLite | Postgres |
//! | bus | memory, the published topics mirrored to Redis if there is one | Redis |
//! | announce | drains the outbox, waits until the own memory has it | drains the outbox |
//! | evidence | straight into the ledger (through Redis if there is one) | the audit stream |
//! | single use across a restart | the boot floor | Redis, which notes since when it remembers |

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use caracal_audit::Ingest;
use caracal_bus::Bus;
use caracal_crypto::envelope::Keyring;
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_evidence::{BusSink, EvidenceLog, Sink};
use caracal_model::{Clock, Ids, Rng};
use caracal_net::Tasks;
use caracal_net::egress::{Fetcher, trusted_pem};
use caracal_net::settings::Mode;
use caracal_store::Store;
use caracal_store::custody::{Custody, SecretBackend};
use caracal_trail::Trail;
use caracal_vaults::Chosen;
use caracal_view::{Announce, Distributed, Local, Relay, RelayOptions, ViewConfig, Views};
use tokio::runtime::Handle;

use crate::config::Environment;
use crate::database::{self, DatabaseConfig};
use crate::floor::Floor;
use crate::home::Home;
use crate::platform::{Settings, holds_secrets};
use crate::roles::Role;
use crate::streams::StreamSettings;
use crate::witness::IntoEvidence;
use crate::{config, term};

/// How long a start waits for a database that is not there yet.
const DATABASE_PATIENCE: Duration = Duration::from_secs(30);
/// How long the last batch of evidence may take, and then everything else.
const FLUSH: Duration = Duration::from_secs(6);

/// How long a start waits until new mandates can be claimed: longer only when Redis's clock was set
/// back.
const CLAIMS_PATIENCE: Duration = Duration::from_secs(2);

/// The adapters of a process, and the loops behind them.
pub struct Adapters {
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub ids: Arc<Ids>,
    pub store: Store,
    pub bus: Bus,
    pub views: Views,
    pub announce: Arc<dyn Announce>,
    pub evidence: EvidenceLog,
    /// Where changes are recorded.
    pub trail: Trail,
    /// Only for roles that hold secrets.
    pub keyring: Option<Arc<Keyring>>,
    /// Where sealed secrets are kept.
    pub custody: Custody,
    /// Asks what tenants configure: token endpoints, issuers.
    pub fetch: Fetcher,
    /// Asks webhooks on this machine; none where that is not allowed.
    pub loopback: Option<Fetcher>,
    pub ingest: Arc<Ingest>,
    /// The stream that Audit reads; none when evidence goes straight into the ledger.
    pub stream: Option<Bus>,
    /// Ids at or below it are from before this start; only where claims die with the process.
    pub floor_ms: Option<u64>,
    /// Loops that end before evidence is flushed.
    pub loops: Tasks,
    /// The way of evidence: ends last.
    flush: Tasks,
}

impl Adapters {
    /// One process, one directory.
    pub async fn embedded(
        environment: &Environment,
        home: &Home,
        settings: &Settings,
        background: &Handle,
    ) -> anyhow::Result<Self> {
        let (store, clock) = open(environment, home, &Role::ALL).await?;
        store
            .migrate()
            .await
            .context("the database cannot be brought up to date")?;
        let floor = Floor::take(store.clone(), clock.clone())
            .await
            .context("the boot floor cannot be kept")?;
        let streams = config::load(environment, StreamSettings::load)?;
        let mirror = match &settings.redis_url {
            Some(_) => Some(redis(settings, &streams).await?),
            None => None,
        };
        let (backend, leaving) = secret_backend(environment, settings, &Role::ALL, &clock)?;
        let base = Base {
            bus: Bus::memory(clock.clone()),
            stream: mirror.clone(),
            mirror,
            background: Some(background.clone()),
            log: "caracal".to_owned(),
            relay: streams.relay(),
            backend,
            leaving,
            store,
            clock,
            settings,
        };
        base.assemble(&Role::ALL, Some(floor)).await
    }

    /// Some of the services of many processes.
    pub async fn distributed(
        environment: &Environment,
        home: &Home,
        settings: &Settings,
        roles: &[Role],
    ) -> anyhow::Result<Self> {
        let (store, clock) = open(environment, home, roles).await?;
        let schema = store.schema().await;
        let schema = schema.context("the schema may not be read: run `caracal migrate` first")?;
        if schema.version == 0 {
            bail!("the schema is not there: run `caracal migrate` first");
        }
        let streams = config::load(environment, StreamSettings::load)?;
        let bus = redis(settings, &streams).await?;
        let soon = bus
            .open_claims()
            .await
            .context("Redis cannot be used for claims")?;
        // On a Redis that has just begun to remember, mandates made before are refused.
        tokio::time::sleep(soon.min(CLAIMS_PATIENCE)).await;
        let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
        let (backend, leaving) = secret_backend(environment, settings, roles, &clock)?;
        let base = Base {
            stream: Some(bus.clone()),
            bus,
            mirror: None,
            background: None,
            log: names.join("-"),
            relay: streams.relay(),
            backend,
            leaving,
            store,
            clock,
            settings,
        };
        base.assemble(roles, None).await
    }

    /// Flushes evidence, ends every loop and closes the store. The servers have drained before.
    pub async fn shutdown(self) {
        self.loops.shutdown(FLUSH).await;
        self.flush.shutdown(FLUSH).await;
        self.evidence.close().await;
        self.store.shutdown().await;
    }

    /// Resolves with the name of the first loop that panicked.
    pub async fn failed(&self) -> String {
        tokio::select! {
            name = self.loops.failed() => name.into_owned(),
            name = self.flush.failed() => name.into_owned(),
        }
    }
}

async fn open(
    environment: &Environment,
    home: &Home,
    roles: &[Role],
) -> anyhow::Result<(Store, Arc<dyn Clock>)> {
    let config = config::load(environment, DatabaseConfig::read)?;
    let store = database::open(config, home, roles, DATABASE_PATIENCE).await?;
    Ok((store, Arc::new(SystemClock::new())))
}

/// Where the deployments differ, before the loops are started.
struct Base<'s> {
    settings: &'s Settings,
    clock: Arc<dyn Clock>,
    store: Store,
    bus: Bus,
    /// Where the published topics are copied to.
    mirror: Option<Bus>,
    /// The bus of evidence; without one, evidence goes straight into the ledger.
    stream: Option<Bus>,
    /// Where the ledger works, when that is not where requests are served.
    background: Option<Handle>,
    /// Names the evidence log of this process.
    log: String,
    /// How news gets out of the outbox.
    relay: RelayOptions,
    /// Keeps sealed secrets, where the database does not.
    backend: Option<Arc<dyn SecretBackend>>,
    /// Whether what is there is to come back.
    leaving: bool,
}

impl Base<'_> {
    /// With a floor, claims and memory are this process's alone.
    async fn assemble(self, roles: &[Role], floor: Option<Floor>) -> anyhow::Result<Adapters> {
        let tasks = || Tasks::with_background(self.background.clone());
        let (loops, flush) = (tasks(), tasks());
        let rng: Arc<dyn Rng> = Arc::new(OsRng);
        let floor_ms = floor.as_ref().map(Floor::ms);
        let ids = Arc::new(Ids::above(
            self.clock.clone(),
            rng.clone(),
            floor_ms.unwrap_or(0),
        ));
        let keyring = self.settings.keyring()?;
        let custody = self.custody(roles).await?;
        let key = self.settings.audit_key.clone();
        let ingest = Ingest::new(self.store.clone(), key, self.clock.clone());
        let ingest = Arc::new(match &self.stream {
            Some(bus) => ingest.with_bus(bus.clone()),
            None => ingest,
        });
        let evidence = self.evidence(&ingest, &rng, &flush)?;
        // Audit decides about nothing, and may read nothing that decisions are made by.
        let warm = roles != [Role::Audit];
        let (views, announce) =
            self.feed(keyring.clone(), floor.is_some(), warm, &evidence, &loops);
        views
            .start()
            .await
            .context("the revocations of the last day cannot be read")?;
        if let Some(floor) = floor {
            loops.spawn("boot floor", floor.keep(ids.clone(), loops.stop()));
        }
        let trail = self.trail(roles, &ids, &flush);
        let on_this_machine = self.allows_loopback(floor_ms.is_some());
        let loopback = on_this_machine.then(|| Fetcher::loopback(self.clock.clone()));
        let stream = self.stream.filter(|_| roles.contains(&Role::Audit));
        let (private, extra_ca) = (&self.settings.private_hosts, &self.settings.extra_ca);
        let clock = self.clock.clone();
        let fetch = Fetcher::strict(private.iter().cloned(), extra_ca.as_deref(), clock);
        Ok(Adapters {
            fetch,
            loopback,
            clock: self.clock,
            rng,
            ids,
            store: self.store,
            bus: self.bus,
            views,
            announce,
            evidence,
            trail,
            keyring,
            custody,
            ingest,
            stream,
            floor_ms,
            loops,
            flush,
        })
    }

    /// The secrets, wherever they are; none may be where this process does not look.
    async fn custody(&self, roles: &[Role]) -> anyhow::Result<Custody> {
        let over = if self.leaving {
            Custody::leaving
        } else {
            Custody::new
        };
        let custody = over(self.store.clone(), self.backend.clone());
        if !holds_secrets(roles) {
            return Ok(custody);
        }
        let elsewhere = custody.elsewhere().await;
        let elsewhere = elsewhere.context("the secrets of this deployment cannot be counted")?;
        if let Some((backend, count)) = elsewhere.first() {
            bail!(
                "CARACAL_SECRET_BACKEND: {count} secrets are kept in {backend}, and this process is \
                 set to {}: set it as it was",
                custody.backend()
            );
        }
        Ok(custody)
    }

    /// The memory of the process, what keeps it true, and what tells the others.
    fn feed(
        &self,
        keyring: Option<Arc<Keyring>>,
        alone: bool,
        warm: bool,
        evidence: &EvidenceLog,
        loops: &Tasks,
    ) -> (Views, Arc<dyn Announce>) {
        let settings = self.settings;
        let config = ViewConfig {
            feed_max_lag: settings.feed_max_lag,
            streams_key: settings.streams_key.clone(),
            replica: settings.replica(),
            backend: self.backend.clone(),
            warm,
            ..ViewConfig::default()
        };
        let (store, bus, clock) = (self.store.clone(), self.bus.clone(), self.clock.clone());
        let (views, follower) =
            Views::new(store.clone(), bus.clone(), clock.clone(), keyring, config);
        let key = settings.streams_key.clone();
        let relay = Relay::new(store, bus, clock, key, self.mirror.clone(), self.relay);
        relay.witnessed_by(Arc::new(IntoEvidence(evidence.clone())));
        let announce: Arc<dyn Announce> = if alone {
            Arc::new(Local::new(relay.clone(), views.clone()))
        } else {
            Arc::new(Distributed::new(relay.clone(), views.clone()))
        };
        loops.spawn("outbox relay", relay.run(loops.stop()));
        loops.spawn("feed", follower.run(loops.stop()));
        (views, announce)
    }

    /// Whether webhooks may be on this machine: on one that is the whole deployment, in development,
    /// and where the operator lists it.
    fn allows_loopback(&self, is_alone: bool) -> bool {
        let listed = |host: &String| matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1");
        let settings = self.settings;
        is_alone || settings.mode == Mode::Dev || settings.private_hosts.iter().any(listed)
    }

    /// The record of changes. It is written until the last change was answered, so its loop ends
    /// with the evidence.
    fn trail(&self, roles: &[Role], ids: &Arc<Ids>, flush: &Tasks) -> Trail {
        let key = self.settings.audit_key.clone();
        let (trail, chainer) = Trail::new(self.store.clone(), key, self.clock.clone(), ids.clone());
        if roles.contains(&Role::Api) || roles.contains(&Role::Coordinator) {
            flush.spawn("admin audit", chainer.run(flush.stop()));
        }
        trail
    }

    /// The local log, and the loop that empties it into the ledger or the stream.
    fn evidence(
        &self,
        ingest: &Arc<Ingest>,
        rng: &Arc<dyn Rng>,
        flush: &Tasks,
    ) -> anyhow::Result<EvidenceLog> {
        let settings = self.settings;
        let sink: Arc<dyn Sink> = match &self.stream {
            None => ingest.clone(),
            Some(bus) => Arc::new(BusSink::new(bus.clone(), settings.audit_key.clone())),
        };
        let durability = settings.durability();
        let clock = self.clock.clone();
        let opened = EvidenceLog::open(&settings.replay_dir, &self.log, durability, clock);
        let (log, drain) = opened.with_context(|| {
            let directory = settings.replay_dir.display();
            format!("the evidence log in {directory} cannot be opened; see AUDIT_REPLAY_DIR")
        })?;
        let relay = caracal_evidence::Relay::new(drain, sink, rng.clone());
        match self.stream {
            // What fills the ledger is most of what a process does besides serving.
            None => flush.spawn_background("evidence relay", relay.run(flush.stop())),
            Some(_) => flush.spawn("evidence relay", relay.run(flush.stop())),
        }
        Ok(log)
    }
}

/// What keeps sealed secrets outside of the database, if these roles open any, and whether it is to be
/// left.
pub fn secret_backend(
    environment: &Environment,
    settings: &Settings,
    roles: &[Role],
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<(Option<Arc<dyn SecretBackend>>, bool)> {
    if !holds_secrets(roles) {
        return Ok((None, false));
    }
    let chosen = config::load(environment, Chosen::load)?;
    let fetch = Fetcher::operator(settings.extra_ca.as_deref(), clock.clone());
    let leaving = chosen.leaves();
    Ok((chosen.open(fetch, clock.clone(), Arc::new(OsRng)), leaving))
}

async fn redis(settings: &Settings, streams: &StreamSettings) -> anyhow::Result<Bus> {
    let url = settings
        .redis_url
        .as_ref()
        .context("REDIS_URL is required, for example redis://redis:6379")?;
    let roots = trusted_pem(settings.extra_ca.as_deref())
        .context("CARACAL_TLS_EXTRA_CA_FILE cannot be used")?;
    let connecting = Bus::redis(url, streams.redis(roots));
    let bus = term::patiently("waiting for Redis", connecting).await;
    bus.context("Redis cannot be reached; is it running, and is REDIS_URL right?")
}
