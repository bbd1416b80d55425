//! The five services, and how each is put on its adapters.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use caracal_audit::{
    CheckpointOptions, Checkpoints, Consumer, ConsumerOptions, Health, Retention, Retry, Sealing,
};
use caracal_bus::Bus;
use caracal_client::{Exchange, RemoteExchange};
use caracal_crypto::envelope::Keyring;
use caracal_net::egress::{
    AddressGuard, Egress, Forwarder, PoolSettings, SystemResolver, client_config, server_config,
};
use caracal_net::metrics::Registry;
use caracal_net::settings::{Mistakes, Mode, Strings};
use caracal_net::{Limits, Pattern, RequestIds, request_id};
use tokio_util::sync::CancellationToken;

use crate::adapters::Adapters;
use crate::platform::Settings;
use crate::up::Listen;

/// A service that a process can run. In the order in which they are mounted: the Gateway after the
/// STS that it may ask by a function call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Role {
    Api,
    Sts,
    Gateway,
    Coordinator,
    Audit,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [
        Self::Api,
        Self::Sts,
        Self::Gateway,
        Self::Coordinator,
        Self::Audit,
    ];

    /// As on the command line and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Sts => "sts",
            Self::Gateway => "gateway",
            Self::Coordinator => "coordinator",
            Self::Audit => "audit",
        }
    }

    /// The published port.
    pub const fn port(self) -> u16 {
        match self {
            Self::Api => 3000,
            Self::Sts => 8080,
            Self::Gateway => 8081,
            Self::Coordinator => 4000,
            Self::Audit => 9090,
        }
    }

    /// Whether `PORT` may move it: a container of the other services that listens elsewhere is one
    /// that nobody finds (operations specification §1).
    pub const fn takes_any_port(self) -> bool {
        matches!(self, Self::Api | Self::Coordinator)
    }

    /// Its port among those of an embedded deployment.
    pub const fn of(self, listen: &Listen) -> u16 {
        let [api, sts, gateway, coordinator, audit] = listen.ports;
        match self {
            Self::Api => api,
            Self::Sts => sts,
            Self::Gateway => gateway,
            Self::Coordinator => coordinator,
            Self::Audit => audit,
        }
    }

    /// How long requests in flight may take once the process stops, unless the operator says.
    pub const fn drain(self) -> Duration {
        Duration::from_secs(match self {
            Self::Api | Self::Coordinator => 15,
            Self::Gateway => 14,
            Self::Sts | Self::Audit => 10,
        })
    }

    /// Longest run of one of its statements, unless the operator says.
    pub const fn statement(self) -> Duration {
        Duration::from_secs(match self {
            Self::Coordinator => 10,
            Self::Api | Self::Sts | Self::Gateway | Self::Audit => 15,
        })
    }

    /// Database connections that it needs: the hot path reads memory (operations specification
    /// §17.7).
    pub const fn connections(self) -> usize {
        match self {
            Self::Sts => 8,
            Self::Gateway => 2,
            Self::Audit => 4,
            Self::Api | Self::Coordinator => 10,
        }
    }
}

/// How long connections to STS and Audit may be idle between requests.
const IDLE: Duration = Duration::from_secs(75);

/// A service, ready to be served.
pub struct Mounted {
    pub router: Router,
    pub limits: Limits,
    pub tls: Option<Arc<caracal_net::TlsConfig>>,
}

/// The settings of one service.
pub enum Configured {
    Api(caracal_api::Config),
    Sts(caracal_sts::Config),
    Gateway(Box<caracal_gateway::Settings>),
    Coordinator(Box<caracal_coordinator::Config>),
    Audit(Box<(caracal_audit::Config, caracal_audit_export::Config)>),
}

/// In the order in which they are mounted, each once.
pub fn in_order(roles: &[Role]) -> Vec<Role> {
    let mut roles = roles.to_vec();
    roles.sort();
    roles.dedup();
    roles
}

/// Reads the settings of these services; every mistake in any of them is told.
pub fn configure(
    roles: &[Role],
    from: &dyn Strings,
    mistakes: &mut Mistakes,
) -> Option<Vec<Configured>> {
    let remote_sts = !roles.contains(&Role::Sts);
    let configured: Vec<_> = roles
        .iter()
        .map(|role| role.configure(from, remote_sts, mistakes))
        .collect();
    configured.into_iter().collect()
}

impl Role {
    fn configure(
        self,
        from: &dyn Strings,
        remote_sts: bool,
        mistakes: &mut Mistakes,
    ) -> Option<Configured> {
        match self {
            Self::Api => caracal_api::Config::load(from, mistakes).map(Configured::Api),
            Self::Sts => caracal_sts::Config::load(from, mistakes).map(Configured::Sts),
            Self::Gateway => {
                let rules = |settings: &caracal_gateway::Settings, mistakes: &mut Mistakes| {
                    settings.check(remote_sts, mistakes);
                };
                let settings = caracal_gateway::Settings::load_by(from, mistakes, rules)?;
                Some(Configured::Gateway(Box::new(settings)))
            }
            Self::Coordinator => {
                let config = read(caracal_coordinator::Config::read(from), mistakes)?;
                Some(Configured::Coordinator(Box::new(config)))
            }
            Self::Audit => {
                let config = read(caracal_audit::Config::read(from), mistakes);
                let export = caracal_audit_export::Config::read(from, mistakes);
                Some(Configured::Audit(Box::new((config?, export?))))
            }
        }
    }
}

fn read<T>(config: Result<T, Mistakes>, mistakes: &mut Mistakes) -> Option<T> {
    config
        .map_err(|found| {
            found
                .iter()
                .for_each(|one| mistakes.add(&one.name, &one.why))
        })
        .ok()
}

/// Puts services on their adapters, in the order of the list.
pub async fn mount(
    configs: Vec<Configured>,
    settings: &Settings,
    adapters: &Adapters,
    draining: &CancellationToken,
) -> anyhow::Result<Vec<Mounted>> {
    let open_metrics = settings.mode == Mode::Dev;
    let on = On {
        settings,
        adapters,
        draining,
        open_metrics,
    };
    let mut sts: Option<Arc<caracal_sts::Sts>> = None;
    let mut mounted = Vec::new();
    for config in configs {
        mounted.push(match config {
            Configured::Api(config) => on.api(config).await?,
            Configured::Sts(config) => {
                let made = on.sts(config)?;
                caracal_sts::tasks(&made, &adapters.loops, draining);
                sts = Some(Arc::clone(&made));
                on.plain(Role::Sts, caracal_sts::router(made, open_metrics), IDLE)
            }
            Configured::Gateway(config) => on.gateway(*config, sts.clone())?,
            Configured::Coordinator(config) => on.coordinator(*config),
            Configured::Audit(configs) => {
                let (config, export) = *configs;
                on.audit(config, &export)?
            }
        });
    }
    Ok(mounted)
}

/// What the services are put on.
struct On<'p> {
    settings: &'p Settings,
    adapters: &'p Adapters,
    draining: &'p CancellationToken,
    open_metrics: bool,
}

impl On<'_> {
    fn keyring(&self) -> anyhow::Result<Arc<Keyring>> {
        self.adapters
            .keyring
            .clone()
            .context("SECRET_STORE_KEK is required: exactly 64 hex digits")
    }

    async fn api(&self, config: caracal_api::Config) -> anyhow::Result<Mounted> {
        let at = self.adapters;
        let keep_alive = config.keep_alive;
        let api = caracal_api::Api::new(
            config,
            caracal_api::Deps {
                store: at.store.clone(),
                views: at.views.clone(),
                announce: at.announce.clone(),
                bus: at.bus.clone(),
                keyring: self.keyring()?,
                custody: at.custody.clone(),
                fetch: at.fetch.clone(),
                hooks: caracal_api::Hooks {
                    strict: at.fetch.clone(),
                    loopback: at.loopback.clone(),
                },
                evidence: at.evidence.clone(),
                trail: at.trail.clone(),
                clock: at.clock.clone(),
                ids: at.ids.clone(),
                rng: at.rng.clone(),
                draining: self.draining.clone(),
            },
        );
        caracal_api::seed(&api)
            .await
            .context("the tokens of this deployment cannot be stored")?;
        at.loops
            .spawn("re-seal", caracal_api::reseal(api.clone(), at.loops.stop()));
        at.loops.spawn(
            "audit tail",
            caracal_api::follow(api.clone(), at.loops.stop()),
        );
        let keeping = caracal_api::keep_secrets(api.clone(), at.loops.stop());
        at.loops.spawn("secrets", keeping);
        at.loops.spawn(
            "notifications",
            caracal_api::notify(api.clone(), at.loops.stop()),
        );
        let router = caracal_api::router(&api, self.open_metrics);
        Ok(self.plain(Role::Api, router, keep_alive))
    }

    fn sts(&self, config: caracal_sts::Config) -> anyhow::Result<Arc<caracal_sts::Sts>> {
        let at = self.adapters;
        Ok(caracal_sts::Sts::new(
            config,
            caracal_sts::Deps {
                store: at.store.clone(),
                bus: at.bus.clone(),
                views: at.views.clone(),
                announce: at.announce.clone(),
                evidence: at.evidence.clone(),
                keyring: self.keyring()?,
                fetch: at.fetch.clone(),
                gateway_key: self.settings.exchange_key.clone(),
                clock: at.clock.clone(),
                rng: at.rng.clone(),
                ids: at.ids.clone(),
                tasks: at.loops.clone(),
            },
        ))
    }

    fn gateway(
        &self,
        settings: caracal_gateway::Settings,
        sts: Option<Arc<caracal_sts::Sts>>,
    ) -> anyhow::Result<Mounted> {
        let at = self.adapters;
        let exchange: Arc<dyn Exchange> = match sts {
            Some(sts) => sts,
            None => Arc::new(self.remote(&settings)?),
        };
        let tls = match (&settings.tls_cert, &settings.tls_key) {
            (Some(chain), Some(key)) => {
                let config = server_config(chain, key);
                Some(config.context("TLS_CERT_FILE and TLS_KEY_FILE cannot be used")?)
            }
            _ => None,
        };
        let mut config = caracal_gateway::Config::from(settings);
        config.floor_ms = at.floor_ms;
        let mut limits = config.limits;
        limits.drain = self.drain(Role::Gateway);
        let router = caracal_gateway::router(
            config,
            caracal_gateway::Deps {
                views: at.views.clone(),
                bus: at.bus.clone(),
                store: at.store.clone(),
                exchange,
                evidence: at.evidence.clone(),
                clock: at.clock.clone(),
                ids: at.ids.clone(),
                tasks: at.loops.clone(),
            },
        );
        let router = router.context("CARACAL_TLS_EXTRA_CA_FILE cannot be used")?;
        Ok(Mounted {
            router,
            limits,
            tls,
        })
    }

    /// An STS in another process. Its address may be private; operators name it.
    fn remote(&self, settings: &caracal_gateway::Settings) -> anyhow::Result<RemoteExchange> {
        let at = self.adapters;
        let tls = client_config(settings.extra_ca.as_deref())
            .context("CARACAL_TLS_EXTRA_CA_FILE cannot be used")?;
        let egress = Egress::new(
            AddressGuard::upstream(),
            Arc::new(SystemResolver),
            at.clock.clone(),
        );
        let forwarder = Forwarder::new(egress, tls, PoolSettings::default());
        let base = settings.sts_url.as_ref().context("STS_URL is required")?;
        let (key, within) = (settings.gateway_key.clone(), settings.sts_timeout);
        let exchange = RemoteExchange::new(
            base,
            key,
            at.clock.clone(),
            at.rng.clone(),
            forwarder,
            within,
        );
        exchange.context("STS_URL cannot be used")
    }

    fn coordinator(&self, config: caracal_coordinator::Config) -> Mounted {
        let at = self.adapters;
        let keep_alive = config.keep_alive;
        let coordinator = caracal_coordinator::Coordinator::new(
            config,
            caracal_coordinator::Deps {
                store: at.store.clone(),
                bus: at.bus.clone(),
                views: at.views.clone(),
                announce: at.announce.clone(),
                trail: at.trail.clone(),
                clock: at.clock.clone(),
                rng: at.rng.clone(),
                ids: at.ids.clone(),
                draining: self.draining.clone(),
            },
        );
        caracal_coordinator::tasks(&coordinator, &at.loops);
        let router = caracal_coordinator::router(&coordinator);
        self.plain(Role::Coordinator, router, keep_alive)
    }

    fn audit(
        &self,
        config: caracal_audit::Config,
        export: &caracal_audit_export::Config,
    ) -> anyhow::Result<Mounted> {
        let at = self.adapters;
        let registry = Registry::new(&caracal_audit::CATALOGUE, at.clock.clone());
        let (ingest, bus, replica) = (&at.ingest, &at.bus, self.settings.replica());
        let deps = caracal_audit::Deps {
            ingest: ingest.clone(),
            stream: self.consumer(&config),
            registry: registry.clone(),
        };
        let sealing = at.keyring.clone().map(|keyring| Sealing {
            keyring,
            rng: at.rng.clone(),
        });
        let options = CheckpointOptions {
            every: config.checkpoint_every,
            events: config.checkpoint_events,
            name: config.log_name.clone(),
        };
        let (of, to) = (ingest.clone(), bus.clone());
        let checkpoints = Checkpoints::new(of, to, replica.clone(), sealing, options);
        at.loops
            .spawn_background("audit checkpoints", checkpoints.run(at.loops.stop()));
        let retry = Retry::new(ingest.clone(), bus.clone(), replica.clone());
        at.loops
            .spawn_background("dead letters", retry.run(at.loops.stop()));
        let exports = self.export(export, &registry)?;
        let days = config.retention_days;
        let retention = Retention::new(ingest.clone(), bus.clone(), replica, days);
        at.loops.spawn_background(
            "audit retention",
            retention.after_export(exports).run(at.loops.stop()),
        );
        let ids = RequestIds::new(Pattern::VisibleAscii, at.ids.clone()).measured(&registry);
        let router = request_id::finish(caracal_audit::router(config, deps), ids);
        Ok(self.plain(Role::Audit, router, IDLE))
    }

    /// Starts what reads the stream into the ledger, where there is one.
    fn consumer(&self, config: &caracal_audit::Config) -> Option<(Bus, Health)> {
        let at = self.adapters;
        let stream = at.stream.clone()?;
        let options = ConsumerOptions {
            claim_idle: config.claim_idle,
            max_deliveries: config.max_deliveries,
            ..ConsumerOptions::named(self.settings.replica())
        };
        let consumer = Consumer::new(stream.clone(), at.ingest.clone(), options);
        let health = consumer.health();
        at.loops
            .spawn_background("audit consumer", consumer.run(at.loops.stop()));
        Some((stream, health))
    }

    /// Starts the export of the ledger, where there is one; answers whether there is.
    fn export(
        &self,
        config: &caracal_audit_export::Config,
        registry: &Registry,
    ) -> anyhow::Result<bool> {
        let at = self.adapters;
        let metrics = caracal_audit_export::Metrics::default();
        metrics.register(registry);
        let extra_ca = self.settings.extra_ca.as_deref();
        let bucket = caracal_audit_export::Bucket::open(config, extra_ca, at.clock.clone());
        let bucket = bucket.context("the settings AUDIT_EXPORT_… cannot be used")?;
        let Some(bucket) = bucket else {
            return Ok(false);
        };
        let deps = caracal_audit_export::Deps {
            store: at.store.clone(),
            bus: at.bus.clone(),
            holder: self.settings.replica(),
            clock: at.clock.clone(),
            metrics,
        };
        let exporter = caracal_audit_export::Exporter::new(deps, bucket, config);
        at.loops
            .spawn_background("audit export", exporter.run(at.loops.stop()));
        Ok(true)
    }

    /// How long a service may take to finish what is in flight.
    fn drain(&self, role: Role) -> Duration {
        self.settings.shutdown_grace.unwrap_or(role.drain())
    }

    /// In the clear; connections may be idle for this long.
    fn plain(&self, role: Role, router: Router, idle: Duration) -> Mounted {
        let limits = Limits {
            drain: self.drain(role),
            idle,
            ..Limits::default()
        };
        Mounted {
            router,
            limits,
            tls: None,
        }
    }
}
