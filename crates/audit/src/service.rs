//! Audit over HTTP (spec: audit-and-streams §10): liveness, readiness, metrics and the search of
//! operators.

mod dlq;
mod search;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use caracal_bus::{Bus, Position, STALLED_READER_HOLDS};
use caracal_model::{Secret, Topic};
use caracal_net::health::{Budget, unready};
use caracal_net::metrics::{Access, Pool, Registry, whole};
use caracal_net::request_id;
use serde_json::json;

use crate::config::Config;
use crate::consumer::{GROUP, Health};
use crate::dead_letters::{LettersError, time_of};
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
    registry: Registry,
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
        registry: deps.registry.clone(),
    });
    let registry = deps.registry;
    service.ingest.metrics().register(&registry);
    service.measure_backends();
    let scraped = Arc::clone(&service);
    registry.on_scrape(move || {
        let service = Arc::clone(&scraped);
        async move { service.scrape().await }
    });
    Router::new()
        .route("/health", get(caracal_net::health::alive))
        .route("/ready", get(ready))
        .route("/api/audit/search", get(search::search))
        .route("/api/audit/dlq", get(dlq::list).delete(dlq::purge))
        .route("/api/audit/dlq/replay", post(dlq::replay))
        .route("/api/audit/dlq/{id}", get(dlq::one).delete(dlq::purge_one))
        .merge(registry.routes(access))
        .fallback(request_id::not_found)
        .method_not_allowed_fallback(request_id::method_not_allowed)
        .with_state(service)
}

async fn ready(State(service): State<Arc<Service>>) -> Response {
    let answer = match service.check().await {
        Ok(()) => axum::Json(json!({"ready": true})).into_response(),
        Err(reason) => unready(reason),
    };
    service.registry.readiness().tell(answer)
}

/// How far the consumer is behind, at this moment.
#[derive(Default)]
struct Backlog {
    length: u64,
    unfinished: u64,
    undelivered: u64,
    pending: u64,
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
        let budget = Budget::of(READY_WITHIN, self.ingest.clock());
        let ping = self.ingest.store().ping();
        budget.ask("postgres_unreachable", ping).await?;
        let backlog = budget.ask("redis_unreachable", async {
            Ok::<_, ()>(self.backlog().await)
        });
        let backlog = backlog.await?.map_err(|error| match error {
            LettersError::Bus(_) => "redis_unreachable",
            LettersError::Store(_) => "postgres_unreachable",
        })?;
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

    async fn backlog(&self) -> Result<Backlog, LettersError> {
        let letters = self.ingest.dead_letters();
        let dead = letters.count().await?;
        let mut backlog = Backlog {
            dead,
            ..Backlog::default()
        };
        if dead > 0 {
            backlog.dead_oldest = letters.oldest_age().await?;
        }
        // Embedded there is no topic: what is not in the ledger yet is in the local log.
        if let Some((bus, _)) = &self.stream {
            let topic = Topic::AuditEvents.name();
            let lag = bus.group_lag(topic, GROUP).await?;
            let now = self.ingest.clock().now();
            let age = |at: Option<Position>| at.map_or(Duration::ZERO, |at| now.since(time_of(at)));
            backlog.length = bus.len(topic).await?;
            backlog.unfinished = lag.total();
            backlog.undelivered = lag.undelivered;
            backlog.pending = lag.pending;
            backlog.pel_oldest = age(lag.oldest_pending);
            backlog.oldest = age(lag.oldest());
        }
        Ok(backlog)
    }

    fn measure_backends(&self) {
        let store = self.ingest.store().clone();
        let waits = store.waits().clone();
        let pool = move || {
            let stats = store.pool();
            Pool {
                in_use: stats.in_use,
                max: stats.max,
            }
        };
        self.registry.pool(pool, &waits);
        let bus = self.stream.as_ref().map(|(bus, _)| bus.times());
        self.registry
            .bus(bus.as_ref().map_or(&[], |times| times.as_slice()));
    }

    /// Sets the gauges to what is true now, not thirty seconds ago.
    async fn scrape(&self) {
        let Ok(Ok(backlog)) = tokio::time::timeout(READY_WITHIN, self.backlog()).await else {
            tracing::warn!("the backlog of evidence could not be measured");
            return;
        };
        backlog.warn_of_the_bound();
        let metrics = self.ingest.metrics();
        for (gauge, value) in [
            (&metrics.stream_length, backlog.length),
            (&metrics.lag, backlog.unfinished),
            (&metrics.lag_undelivered, backlog.undelivered),
            (&metrics.lag_pending, backlog.pending),
            (&metrics.pel_oldest, backlog.pel_oldest.as_secs()),
            (&metrics.oldest_unprocessed, backlog.oldest.as_secs()),
            (&metrics.dlq_size, backlog.dead),
            (&metrics.dlq_oldest_age, backlog.dead_oldest.as_secs()),
        ] {
            gauge.set(whole(value));
        }
    }
}

impl Backlog {
    /// A reader of somebody's own that stands still holds so much and no more: what it has not read
    /// by then goes without it.
    fn warn_of_the_bound(&self) {
        let bound = u64::try_from(STALLED_READER_HOLDS).unwrap_or(u64::MAX);
        let held = self.length.saturating_sub(self.unfinished);
        if held >= bound / 10 * 9 {
            tracing::warn!(
                held,
                bound,
                "another reader of the evidence topic stands still and will miss entries"
            );
        }
    }
}
