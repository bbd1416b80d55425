//! What probes and scrapers ask (spec: admin-api §3).

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use caracal_net::health::{self, Budget};
use caracal_net::metrics::{Counter, Gauge, Pool, Registry, show, whole};
use serde_json::json;

use crate::failure::Failure;
use crate::service::Api;
use crate::wire;

/// How long one dependency may take to answer a probe.
const WITHIN: Duration = Duration::from_secs(5);

/// `GET /ready`
pub async fn ready(State(api): State<Arc<Api>>, request: Request) -> Response {
    let ip = wire::client_ip(&request, api.config.trust_proxy);
    if let Err(seconds) = api.limits.ready.count(&ip.to_string()) {
        return Failure::rate_limited(seconds).into_response();
    }
    let answer = if api.draining.is_cancelled() {
        health::draining()
    } else {
        match Box::pin(check(&api)).await {
            Ok(()) => Json(json!({ "ok": true })).into_response(),
            Err(Unready::Away(error, dependency)) => health::unready_by(error, dependency),
            Err(Unready::Dead(dead)) => health::refused(json!({
                "ok": false,
                "error": "outbox_dead_messages",
                "reason": "outbox_dead_messages",
                "deadCount": dead,
                "limit": api.config.ready_outbox_dead_max,
            })),
        }
    };
    api.registry.readiness().tell(answer)
}

/// Why no traffic should come here.
enum Unready {
    /// This dependency does not answer.
    Away(&'static str, &'static str),
    /// So many entries of the outbox are dead.
    Dead(u64),
}

/// The first reason against being ready.
async fn check(api: &Api) -> Result<(), Unready> {
    let budget = || Budget::of(WITHIN, api.clock.as_ref());
    let away = Unready::Away("postgres_unreachable", "postgres");
    budget().ask(away, api.store.ping()).await?;
    // Redis carries news; what is changed here is recorded without it.
    if !api.config.ready_without_redis {
        let away = Unready::Away("redis_unreachable", "redis");
        budget().ask(away, api.bus.ping()).await?;
    }
    let away = Unready::Away("outbox_unreachable", "postgres");
    let outbox = api.store.outbox();
    let counts = budget().ask(away, outbox.counts()).await?;
    if counts.dead > api.config.ready_outbox_dead_max {
        return Err(Unready::Dead(counts.dead));
    }
    Ok(())
}

/// The gauges of the outbox, read when somebody scrapes.
pub fn measure(api: &Arc<Api>, registry: &Registry) {
    let outbox = ["outbox_pending_total", "outbox_dead_total"].map(|name| registry.gauge(name));
    let ages = [
        "outbox_oldest_pending_age_seconds",
        "outbox_oldest_dead_age_seconds",
    ]
    .map(|name| registry.float_gauge(name));
    let left = registry.gauge("reseal_left");
    registry.register("audit_streams", api.tails.open.clone());
    registry.register("audit_streams_cut", api.tails.cut.clone());
    custody(api, registry);
    backends(api, registry);
    let open = registry.gauge("notifications_pending");
    let intents = registry.gauge("admin_audit_waiting");
    let api = Arc::downgrade(api);
    registry.on_scrape(move || {
        let (open, intents) = (open.clone(), intents.clone());
        let (outbox, ages, left) = (outbox.clone(), ages.clone(), left.clone());
        let api = api.clone();
        async move {
            let Some(api) = api.upgrade() else {
                return;
            };
            left.set(api.reseal_left.get());
            match api.store.notifications().open().await {
                Ok(number) => drop(open.set(whole(number))),
                Err(error) => tracing::warn!(%error, "notifications not measured"),
            }
            match api.store.admin_audit().counts().await {
                Ok(counts) => drop(intents.set(whole(counts.waiting))),
                Err(error) => tracing::warn!(%error, "admin audit not measured"),
            }
            match api.store.outbox().counts().await {
                Ok(counts) => {
                    let age = |age: Option<Duration>| age.map_or(0.0, |age| age.as_secs_f64());
                    for (gauge, count) in outbox.iter().zip([counts.pending, counts.dead]) {
                        gauge.set(whole(count));
                    }
                    let oldest = [counts.oldest_pending, counts.oldest_dead];
                    for (gauge, oldest) in ages.iter().zip(oldest) {
                        gauge.set(age(oldest));
                    }
                }
                Err(error) => tracing::warn!(%error, "outbox not measured"),
            }
        }
    });
}

/// The store and the bus.
fn backends(api: &Arc<Api>, registry: &Registry) {
    let store = api.store.clone();
    registry.pool(
        move || {
            let stats = store.pool();
            Pool {
                in_use: stats.in_use,
                max: stats.max,
            }
        },
        api.store.waits(),
    );
    registry.bus(&api.bus.times());
}

/// Where secrets are kept outside of our own database.
fn custody(api: &Arc<Api>, registry: &Registry) {
    let counter = |name| registry.register_as::<Counter>(name, Counter::default());
    let operations = counter("caracal_secret_backend_operations");
    let errors = counter("caracal_secret_backend_errors");
    let waiting = registry.register_as::<Gauge>("caracal_secret_backend_waiting", Gauge::default());
    let custody = api.custody.clone();
    registry.on_scrape(move || {
        let stats = custody.stats();
        show(&operations, stats.operations);
        show(&errors, stats.errors);
        let (custody, waiting) = (custody.clone(), waiting.clone());
        async move {
            match custody.waiting().await {
                Ok(count) => {
                    waiting.set(whole(count));
                }
                Err(error) => tracing::warn!(%error, "secrets on their way are not counted"),
            }
        }
    });
}
