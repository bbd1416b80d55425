//! What probes and scrapers ask (spec: admin-api §3).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use caracal_net::metrics::{Counter, Gauge, Registry};
use http::{StatusCode, header};
use serde_json::{Value, json};

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
    match Box::pin(check(&api)).await {
        Ok(()) => Json(json!({ "ok": true })).into_response(),
        Err(body) => (
            StatusCode::SERVICE_UNAVAILABLE,
            [(header::RETRY_AFTER, "1")],
            Json(body),
        )
            .into_response(),
    }
}

fn not_ready(error: &str, dependency: &str) -> Value {
    json!({ "ok": false, "error": error, "dependency": dependency })
}

/// The first reason against being ready.
async fn check(api: &Api) -> Result<(), Value> {
    if api.draining.is_cancelled() {
        return Err(json!({ "ok": false, "draining": true }));
    }
    let ping = tokio::time::timeout(WITHIN, api.store.ping()).await;
    if !matches!(ping, Ok(Ok(()))) {
        return Err(not_ready("postgres_unreachable", "postgres"));
    }
    let ping = tokio::time::timeout(WITHIN, api.bus.ping()).await;
    if !matches!(ping, Ok(Ok(_))) {
        return Err(not_ready("redis_unreachable", "redis"));
    }
    let counts = tokio::time::timeout(WITHIN, api.store.outbox().counts()).await;
    let Ok(Ok(counts)) = counts else {
        return Err(not_ready("outbox_unreachable", "postgres"));
    };
    let limit = api.config.ready_outbox_dead_max;
    if counts.dead > limit {
        return Err(json!({
            "ok": false,
            "error": "outbox_dead_messages",
            "deadCount": counts.dead,
            "limit": limit,
        }));
    }
    Ok(())
}

/// The gauges of the outbox, read when somebody scrapes.
pub fn measure(api: &Arc<Api>, registry: &Registry) {
    let pending = registry.gauge("outbox_pending_total", "Entries to be sent");
    let dead = registry.gauge("outbox_dead_total", "Entries that failed too often");
    let pending_age = registry.float_gauge(
        "outbox_oldest_pending_age_seconds",
        "Age of the oldest entry to be sent",
    );
    let dead_age = registry.float_gauge(
        "outbox_oldest_dead_age_seconds",
        "Age of the oldest dead entry",
    );
    let left = registry.gauge(
        "reseal_left",
        "Envelopes that need SECRET_STORE_KEK_PREVIOUS; below zero until the first sweep has ended",
    );
    registry.register(
        "audit_streams",
        "Streams of the ledger that are open",
        api.tails.open.clone(),
    );
    registry.register(
        "audit_streams_cut",
        "Streams of the ledger whose reader was too slow",
        api.tails.cut.clone(),
    );
    custody(api, registry);
    let open = registry.gauge("notifications_pending", "Notifications not yet taken");
    let intents = registry.gauge(
        "admin_audit_waiting",
        "Records of changes that are not yet in their chain",
    );
    let api = Arc::downgrade(api);
    registry.on_scrape(move || {
        let (open, intents) = (open.clone(), intents.clone());
        let gauges = (
            pending.clone(),
            dead.clone(),
            pending_age.clone(),
            dead_age.clone(),
        );
        let left = left.clone();
        let api = api.clone();
        async move {
            let Some(api) = api.upgrade() else {
                return;
            };
            left.set(api.reseal_left.get());
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            match api.store.notifications().open().await {
                Ok(number) => drop(open.set(count(number))),
                Err(error) => tracing::warn!(%error, "notifications not measured"),
            }
            match api.store.admin_audit().counts().await {
                Ok(counts) => drop(intents.set(count(counts.waiting))),
                Err(error) => tracing::warn!(%error, "admin audit not measured"),
            }
            match api.store.outbox().counts().await {
                Ok(counts) => {
                    let age = |age: Option<Duration>| age.map_or(0.0, |age| age.as_secs_f64());
                    gauges.0.set(count(counts.pending));
                    gauges.1.set(count(counts.dead));
                    gauges.2.set(age(counts.oldest_pending));
                    gauges.3.set(age(counts.oldest_dead));
                }
                Err(error) => tracing::warn!(%error, "outbox not measured"),
            }
        }
    });
}

/// Where secrets are kept outside of our own database.
fn custody(api: &Arc<Api>, registry: &Registry) {
    let counter = |name, help| registry.register_as::<Counter>(name, help, Counter::default());
    let operations = counter(
        "caracal_secret_backend_operations",
        "Reads, writes and deletions at the secret backend",
    );
    let errors = counter("caracal_secret_backend_errors", "Those that failed");
    let waiting = registry.register_as::<Gauge>(
        "caracal_secret_backend_waiting",
        "Secrets that have yet to be moved to the backend, or back, or to be deleted there",
        Gauge::default(),
    );
    let custody = api.custody.clone();
    registry.on_scrape(move || {
        let stats = custody.stats();
        operations
            .inner()
            .store(stats.operations, Ordering::Relaxed);
        errors.inner().store(stats.errors, Ordering::Relaxed);
        let (custody, waiting) = (custody.clone(), waiting.clone());
        async move {
            match custody.waiting().await {
                Ok(count) => {
                    waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
                }
                Err(error) => tracing::warn!(%error, "secrets on their way are not counted"),
            }
        }
    });
}
