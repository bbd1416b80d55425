//! The service: what it is made of, and its routes.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{any, post};
use caracal_bus::Bus;
use caracal_client::Exchange;
use caracal_evidence::{EvidenceLog, Stats};
use caracal_model::{Clock, Ids};
use caracal_net::egress::{
    AddressGuard, Egress, Forwarder, PoolSettings, SystemResolver, TlsError, client_config,
};
use caracal_net::metrics::{Pool, Registry, show, whole as shown};
use caracal_net::request_id::{Pattern, RequestIds, identify};
use caracal_net::{Tasks, health};
use caracal_store::Store;
use caracal_view::Views;

use crate::catalogue::CATALOGUE;
use crate::config::Config;
use crate::evidence::Scribe;
use crate::metrics::Metrics;
use crate::strangers::Strangers;
use crate::{operator, request};

/// How often counted denials are settled.
const SETTLE_EVERY: Duration = Duration::from_secs(10);

/// What `main` hands in.
pub struct Deps {
    /// Zones, keys and revocations.
    pub views: Views,
    /// Where mandates are claimed.
    pub bus: Bus,
    /// For the numbers of its connections only.
    pub store: Store,
    /// The STS.
    pub exchange: Arc<dyn Exchange>,
    /// The Gateway's own evidence log.
    pub evidence: EvidenceLog,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ids.
    pub ids: Arc<Ids>,
    /// The owner of tasks.
    pub tasks: Tasks,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deps(..)")
    }
}

/// The running service.
pub(crate) struct Gateway {
    pub config: Config,
    pub views: Views,
    pub bus: Bus,
    pub exchange: Arc<dyn Exchange>,
    pub evidence: EvidenceLog,
    pub scribe: Arc<Scribe>,
    pub strangers: Strangers,
    pub forwarder: Forwarder,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<Ids>,
    pub metrics: Metrics,
    pub registry: Registry,
}

/// The routes of the Gateway. Starts its tasks.
///
/// # Errors
/// [`TlsError`] when the roots to trust cannot be read: egress then fails closed.
pub fn router(config: Config, deps: Deps) -> Result<Router, TlsError> {
    let tls = client_config(config.extra_ca.as_deref())?;
    let resolver = Arc::new(SystemResolver);
    let egress = Egress::new(AddressGuard::upstream(), resolver, deps.clock.clone());
    let registry = Registry::new(&CATALOGUE, deps.clock.clone());
    let metrics = Metrics::new(&registry);
    let scribe = Arc::new(Scribe::new(
        deps.evidence.clone(),
        deps.ids.clone(),
        deps.clock.clone(),
        deps.tasks.clone(),
    ));
    settle_floods(&scribe, &deps.tasks);
    let sentinel = deps.views.sentinel().run(deps.tasks.stop());
    deps.tasks.spawn("gateway-sentinel", sentinel);
    observe(&registry, &metrics, &deps);
    let scrape = registry.metrics_routes(config.metrics.clone(), &config.operator_prefix);
    let operated = |path| [config.operator_prefix.as_str(), path].concat();
    let [health, ready, capacity] = ["/health", "/ready", "/capacity"].map(operated);
    let gateway = Arc::new(Gateway {
        config,
        forwarder: Forwarder::new(egress, tls, PoolSettings::default()),
        views: deps.views,
        bus: deps.bus,
        exchange: deps.exchange,
        evidence: deps.evidence,
        scribe,
        strangers: Strangers::new(deps.clock.clone()),
        clock: deps.clock,
        ids: deps.ids.clone(),
        metrics,
        registry: registry.clone(),
    });
    let reload = post(operator::reload).fallback(request::proxy);
    let router = Router::new()
        .route(&health, any(health::alive))
        .route(&ready, any(operator::ready))
        .route(&capacity, any(operator::capacity))
        .route("/internal/revocations/reload", reload)
        .fallback(request::proxy)
        .with_state(gateway)
        .merge(scrape);
    Ok(identify(
        router,
        RequestIds::new(Pattern::VisibleAscii, deps.ids).measured(&registry),
    ))
}

/// Owned by the [`Tasks`] of the process.
fn settle_floods(scribe: &Arc<Scribe>, tasks: &Tasks) {
    let (scribe, stop) = (scribe.clone(), tasks.stop());
    tasks.spawn("gateway-denials", async move {
        while stop
            .run_until_cancelled(tokio::time::sleep(SETTLE_EVERY))
            .await
            .is_some()
        {
            scribe.settle_floods(false).await;
        }
        scribe.settle_floods(true).await;
    });
}

/// Reads what is counted elsewhere, whenever somebody looks.
fn observe(registry: &Registry, metrics: &Metrics, deps: &Deps) {
    let (shown_to, views) = (metrics.clone(), deps.views.clone());
    let (evidence, exchange) = (deps.evidence.clone(), deps.exchange.clone());
    // The published JSON does not know these.
    let on_the_way = registry.gauge("audit_on_the_way");
    let resent = registry.counter("audit_resent");
    registry.on_scrape(move || {
        circuit(&shown_to, exchange.as_ref());
        let stats = evidence.stats();
        backlog(&shown_to, &stats);
        on_the_way.set(shown(stats.on_the_way));
        show(&resent, stats.resent);
        freshness(&shown_to, &views);
        async {}
    });
    let delays = deps.views.propagation_delays();
    registry.histogram("revocation_propagation_duration_seconds", delays);
    let store = deps.store.clone();
    registry.pool(
        move || {
            let stats = store.pool();
            Pool {
                in_use: stats.in_use,
                max: stats.max,
            }
        },
        deps.store.waits(),
    );
    registry.bus(&deps.bus.times());
    let flat = metrics.clone();
    registry.json(move || flat.flat());
}

fn circuit(metrics: &Metrics, exchange: &dyn Exchange) {
    let circuit = exchange.circuit();
    metrics.sts_circuit_open.set(circuit.open.into());
    show(&metrics.sts_circuit_opened, circuit.opened);
    show(&metrics.sts_circuit_fast_fail, circuit.fast_failed);
}

fn backlog(metrics: &Metrics, stats: &Stats) {
    show(&metrics.audit_dropped, stats.dropped);
    show(&metrics.audit_sink_errors, stats.sink_errors);
    show(&metrics.audit_persisted, stats.persisted);
    show(&metrics.audit_drained, stats.delivered);
    metrics.audit_replay_files.set(shown(stats.files));
    metrics.audit_replay_bytes.set(shown(stats.bytes));
    metrics
        .audit_replay_oldest_age_seconds
        .set(shown(stats.oldest_age.as_secs()));
    metrics.audit_queue_depth.set(shown(stats.queue_depth));
    metrics.audit_queue_cap.set(shown(stats.queue_capacity));
}

fn freshness(metrics: &Metrics, views: &Views) {
    let stats = views.stats();
    // Never confirmed shows as very old, so that the alert on it fires.
    let lag = views.lag().map_or(i64::MAX, |lag| shown(lag.as_secs()));
    metrics.revocations_active.set(shown(stats.revoked));
    metrics.revocation_snapshot_age_seconds.set(lag);
    metrics
        .revocation_snapshot_fresh
        .set(views.lease_holds().into());
    let behind = views.propagation().as_secs();
    metrics.revocation_propagation_seconds.set(shown(behind));
    show(&metrics.revocation_messages, stats.applied);
    show(
        &metrics.revocation_invalid_signatures,
        stats.invalid_signatures,
    );
    show(&metrics.revocation_reloads, stats.resnapshots);
}
