//! Audit over HTTP (spec: audit-and-streams §10): liveness, readiness, metrics and the search of
//! operators.

mod search;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use caracal_bus::{Bus, BusError, Position};
use caracal_model::{Secret, Timestamp};
use caracal_net::metrics::{Access, Registry};
use caracal_net::request_id;
use http::StatusCode;
use serde_json::json;

use crate::config::Config;
use crate::consumer::{DEAD_LETTER_GROUP, DEAD_LETTERS, GROUP, Health};
use crate::ingest::Ingest;

/// All checks of one `/ready` together.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// What the routes need.
pub struct Deps {
    /// The ledger.
    pub ingest: Arc<Ingest>,
    /// The consumer's bus and how it is doing; embedded there is neither.
    pub stream: Option<(Bus, Health)>,
    /// Takes the metrics of this service; others may have put theirs there.
    pub registry: Registry,
}

/// Shared by the routes.
pub(crate) struct Service {
    ingest: Arc<Ingest>,
    stream: Option<(Bus, Health)>,
    admin_token: Option<Secret<String>>,
    dlq_max: u64,
    lag_max: u64,
    pel_oldest_max: u64,
}

/// The routes of this service.
pub fn router(config: Config, deps: Deps) -> Router {
    let access = Access {
        open: config.is_dev(),
        bearer: config.metrics_bearer,
        json_refusal: false,
    };
    let service = Arc::new(Service {
        ingest: deps.ingest,
        stream: deps.stream,
        admin_token: config.admin_token,
        dlq_max: config.ready_dlq_max,
        lag_max: config.ready_lag_max,
        pel_oldest_max: config.ready_pel_oldest_max,
    });
    let registry = deps.registry;
    service.ingest.metrics().register(&registry);
    let scraped = Arc::clone(&service);
    registry.on_scrape(move || {
        let service = Arc::clone(&scraped);
        async move { service.scrape().await }
    });
    Router::new()
        .route("/health", get(caracal_net::health::alive))
        .route("/ready", get(ready))
        .route("/api/audit/search", get(search::search))
        .merge(registry.routes(access))
        .fallback(request_id::not_found)
        .method_not_allowed_fallback(request_id::method_not_allowed)
        .with_state(service)
}

async fn ready(State(service): State<Arc<Service>>) -> Response {
    let outcome = tokio::time::timeout(READY_WITHIN, service.check()).await;
    match outcome.unwrap_or(Err("postgres_unreachable")) {
        Ok(()) => axum::Json(json!({"ready": true})).into_response(),
        Err(reason) => {
            let body = json!({"ok": false, "ready": false, "reason": reason});
            (StatusCode::SERVICE_UNAVAILABLE, axum::Json(body)).into_response()
        }
    }
}

/// How far the consumer is behind, at this moment.
struct Backlog {
    unfinished: u64,
    pel_oldest: Duration,
    oldest: Duration,
    dead: u64,
    dead_oldest: Duration,
}

impl Service {
    /// The reasons in their published order.
    async fn check(&self) -> Result<(), &'static str> {
        if self
            .stream
            .as_ref()
            .is_some_and(|(_, health)| !health.is_well())
        {
            return Err("consumer_unhealthy");
        }
        self.ingest
            .store()
            .ping()
            .await
            .map_err(|_| "postgres_unreachable")?;
        let Some((bus, _)) = &self.stream else {
            return Ok(());
        };
        let backlog = self.backlog(bus).await.map_err(|_| "redis_unreachable")?;
        let over = |value: u64, max: u64| max > 0 && value > max;
        if over(backlog.dead, self.dlq_max) {
            return Err("audit_dlq_threshold");
        }
        if over(backlog.unfinished, self.lag_max) {
            return Err("audit_lag_threshold");
        }
        if over(backlog.pel_oldest.as_secs(), self.pel_oldest_max) {
            return Err("audit_pel_oldest_threshold");
        }
        Ok(())
    }

    async fn backlog(&self, bus: &Bus) -> Result<Backlog, BusError> {
        let lag = bus
            .group_lag(caracal_model::Topic::AuditEvents.name(), GROUP)
            .await?;
        let dead = bus.group_lag(DEAD_LETTERS, DEAD_LETTER_GROUP).await?;
        let now = self.ingest.clock().now();
        let age = |at: Option<Position>| at.map_or(Duration::ZERO, |at| now.since(time_of(at)));
        Ok(Backlog {
            unfinished: lag.total(),
            pel_oldest: age(lag.oldest_pending),
            oldest: age(lag.oldest()),
            dead: bus.len(DEAD_LETTERS).await?,
            dead_oldest: age(dead.oldest()),
        })
    }

    /// Sets the gauges to what is true now, not thirty seconds ago.
    async fn scrape(&self) {
        let Some((bus, _)) = &self.stream else { return };
        let Ok(Ok(backlog)) = tokio::time::timeout(READY_WITHIN, self.backlog(bus)).await else {
            tracing::warn!("the backlog of evidence could not be measured");
            return;
        };
        let metrics = self.ingest.metrics();
        let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.lag.set(whole(backlog.unfinished));
        metrics.pel_oldest.set(whole(backlog.pel_oldest.as_secs()));
        metrics
            .oldest_unprocessed
            .set(whole(backlog.oldest.as_secs()));
        metrics.dlq_size.set(whole(backlog.dead));
        metrics
            .dlq_oldest_age
            .set(whole(backlog.dead_oldest.as_secs()));
    }
}

fn time_of(position: Position) -> Timestamp {
    let millis = i64::try_from(position.millis).unwrap_or(i64::MAX);
    Timestamp::from_unix_micros(millis.saturating_mul(1_000))
}
