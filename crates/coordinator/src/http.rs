//! The routes of this service, and those that need no token.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, patch, post};
use caracal_net::health::Budget;
use caracal_net::{Pattern, Peer, RequestId, RequestIds, health, request_id};
use caracal_store::origin;
use caracal_trail::{Attendant, Rules};
use http::HeaderMap;
use serde_json::json;

use crate::answer::Answer;
use crate::auth::require_operator;
use crate::call::{Call, address};
use crate::delegation;
use crate::failure::{Code, Failure};
use crate::limit::Holder;
use crate::service::Coordinator;
use crate::session;

/// How long one check of readiness may take.
const PROBE: Duration = Duration::from_secs(5);

/// How this service names things, for the admin audit (spec: coordinator §13).
const RULES: Rules = Rules {
    prefix: "/zones/",
    zones: "/zones/",
    collections: &[
        "agents",
        "agent-services",
        "delegations",
        "invocations",
        "applications",
        "outbox",
    ],
    callback: None,
    counts_strangers: false,
    names_creations: false,
    tells_message: true,
};

/// The routes.
pub fn router(coordinator: Coordinator) -> Router {
    let registry = &coordinator.metrics.registry;
    let ids = RequestIds::new(Pattern::Id, coordinator.ids.clone()).measured(registry);
    let routes = Router::new()
        .route("/health", get(health::alive_json))
        .route("/ready", get(ready))
        .route("/stats", get(stats))
        .route("/metrics", get(metrics))
        .route("/capacity", get(capacity))
        .merge(zone_routes())
        // A wrong method is an unknown route here (spec README, conventions).
        .method_not_allowed_fallback(not_found)
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(coordinator.clone(), in_time))
        .layer(middleware::from_fn_with_state(
            Attendant::new(coordinator.trail.clone(), &RULES),
            caracal_trail::attend,
        ))
        .with_state(coordinator);
    request_id::identify(routes, ids)
}

#[rustfmt::skip] // one line a route
fn zone_routes() -> Router<Coordinator> {
    let routes: [(&str, MethodRouter<Coordinator>); 16] = [
        ("/agents", get(session::read::list).post(session::start::start)),
        ("/agents/{id}", get(session::read::one).merge(delete(session::end::terminate))),
        ("/agents/{id}/children", get(session::read::children)),
        ("/agents/{id}/effective-authority", get(session::read::effective)),
        ("/agents/{id}/lease", post(session::lease::acquire)),
        ("/agents/{id}/heartbeat", post(session::lease::heartbeat)),
        ("/agents/{id}/suspend", patch(session::standing::suspend)),
        ("/agents/{id}/resume", patch(session::standing::resume)),
        ("/delegations", post(delegation::create::create)),
        ("/delegations/active", get(delegation::read::active)),
        ("/delegations/inbound/{id}", get(delegation::read::inbound)),
        ("/delegations/outbound/{id}", get(delegation::read::outbound)),
        ("/delegations/inbound/{id}/{edge}", get(delegation::read::inbound_one)),
        ("/delegations/{id}/traverse", get(delegation::graph::traverse)),
        ("/delegations/{id}/impact", get(delegation::graph::impact)),
        ("/delegations/{id}/revoke", patch(delegation::revoke::revoke)),
    ];
    routes
        .into_iter()
        .fold(Router::new(), |router, (path, method)| router.route(&format!("/zones/{{zone}}{path}"), method))
        .route("/zones/{zone}/outbox/{id}/requeue", post(requeue))
}

async fn not_found() -> Failure {
    Code::NotFound.into()
}

/// A request that takes too long is given up, so that its caller learns it from us.
async fn in_time(State(coordinator): State<Coordinator>, request: Request, next: Next) -> Response {
    let limit = coordinator.config.request_timeout;
    let id = request.extensions().get::<RequestId>().cloned();
    let work = origin::of_request(id, next.run(request));
    match tokio::time::timeout(limit, work).await {
        Ok(response) => response,
        Err(_) => Code::Unavailable
            .refuse()
            .because("the request took too long")
            .into_response(),
    }
}

/// `GET /ready`
async fn ready(State(coordinator): State<Coordinator>, request: Request) -> Response {
    let peer = request.extensions().get::<Peer>();
    let from = Holder::Address(address(&coordinator, request.headers(), peer));
    if let Err(limited) = coordinator.ready_rate.charge(from) {
        return limited.into_response();
    }
    let answer = if coordinator.draining.is_cancelled() {
        health::draining()
    } else {
        match check(&coordinator).await {
            Ok(()) => axum::Json(json!({ "ok": true })).into_response(),
            Err((error, dependency)) => health::unready_by(error, dependency),
        }
    };
    coordinator.metrics.registry.readiness().tell(answer)
}

/// The first reason against readiness, in the published order; store and streams are asked at once
/// (spec: coordinator §5). What is decided here does not need the streams; where readiness decides who
/// is sent requests, READY_WITHOUT_REDIS keeps revocations possible while they are away.
async fn check(coordinator: &Coordinator) -> Result<(), (&'static str, &'static str)> {
    let budget = || Budget::of(PROBE, coordinator.clock.as_ref());
    let store = async {
        let postgres = ("postgres_unreachable", "postgres");
        let ping = coordinator.store.ping();
        budget().ask(postgres, ping).await?;
        let Some(most) = coordinator.config.ready_outbox_dead_max else {
            return Ok(());
        };
        let dead = ("outbox_dead", "outbox");
        let outbox = coordinator.store.outbox();
        let counts = budget().ask(dead, outbox.counts()).await?;
        if counts.dead > most {
            return Err(dead);
        }
        Ok(())
    };
    let streams = async {
        if coordinator.config.ready_without_redis {
            return Ok(());
        }
        let redis = ("redis_unreachable", "redis");
        budget().ask(redis, coordinator.bus.ping()).await
    };
    let (store, streams) = tokio::join!(store, streams);
    store.and(streams)
}

/// `GET /stats`
async fn stats(
    State(coordinator): State<Coordinator>,
    headers: HeaderMap,
) -> Result<Answer, Failure> {
    require_operator(&coordinator, &headers)?;
    Ok(Answer::ok(&coordinator.metrics.stats().await))
}

/// Metrics are for the metrics bearer and for the operator token (spec: operations §17.4).
fn may_measure(coordinator: &Coordinator, headers: &HeaderMap) -> Result<(), Failure> {
    let config = &coordinator.config;
    let bearer = config.metrics_bearer.as_ref();
    let allowed = bearer.is_some_and(|bearer| caracal_net::bearer::is(headers, bearer))
        || (bearer.is_none() && config.is_dev());
    if allowed {
        return Ok(());
    }
    require_operator(coordinator, headers)
}

/// `GET /metrics`
async fn metrics(
    State(coordinator): State<Coordinator>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    may_measure(&coordinator, &headers)?;
    Ok(coordinator.metrics.registry.answer(&headers).await)
}

/// `GET /capacity`
async fn capacity(
    State(coordinator): State<Coordinator>,
    headers: HeaderMap,
) -> Result<Answer, Failure> {
    may_measure(&coordinator, &headers)?;
    Ok(Answer::ok(&coordinator.metrics.registry.capacity().await))
}

/// `POST /zones/{zone}/outbox/{id}/requeue`
async fn requeue(State(coordinator): State<Coordinator>, call: Call) -> Result<Answer, Failure> {
    if !call.caller.is_admin() {
        return Err(Code::CoordinatorAdminRequired.into());
    }
    if coordinator
        .store
        .outbox()
        .requeue(&call.zone, call.last())
        .await?
    {
        Ok(Answer::ok(
            &json!({ "id": call.last(), "status": "pending" }),
        ))
    } else {
        Err(Code::DeadOutboxNotFound.into())
    }
}
