//! The routes of this service, and those that need no token.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, patch, post};
use caracal_net::{Pattern, Peer, RequestId, RequestIds, health, request_id};
use caracal_store::origin;
use caracal_trail::{Attendant, Rules};
use http::{HeaderMap, HeaderValue, StatusCode, header};
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
    let ids = RequestIds::new(Pattern::Id, coordinator.ids.clone());
    let routes = Router::new()
        .route("/health", get(health::alive_json))
        .route("/ready", get(ready))
        .route("/stats", get(stats))
        .route("/metrics", get(metrics))
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
    match unready(&coordinator).await {
        None => axum::Json(json!({ "ok": true })).into_response(),
        Some((error, dependency)) => {
            let body = json!({ "ok": false, "error": error, "dependency": dependency });
            let retry = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
            (StatusCode::SERVICE_UNAVAILABLE, retry, axum::Json(body)).into_response()
        }
    }
}

/// The first reason against readiness. Streams are not asked: news waits in the outbox and
/// revocations are in the store, so losing them stops nothing that is decided here.
async fn unready(coordinator: &Coordinator) -> Option<(&'static str, &'static str)> {
    let ping = tokio::time::timeout(PROBE, coordinator.store.ping()).await;
    if !matches!(ping, Ok(Ok(()))) {
        return Some(("postgres_unreachable", "postgres"));
    }
    let most = coordinator.config.ready_outbox_dead_max?;
    let counts = tokio::time::timeout(PROBE, coordinator.store.outbox().counts()).await;
    match counts {
        Ok(Ok(counts)) if counts.dead <= most => None,
        _ => Some(("outbox_dead", "outbox")),
    }
}

/// `GET /stats`
async fn stats(
    State(coordinator): State<Coordinator>,
    headers: HeaderMap,
) -> Result<Answer, Failure> {
    require_operator(&coordinator, &headers)?;
    Ok(Answer::ok(&coordinator.metrics.stats().await))
}

/// `GET /metrics`: for the metrics bearer and for the operator token.
async fn metrics(
    State(coordinator): State<Coordinator>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let config = &coordinator.config;
    let bearer = config.metrics_bearer.as_ref();
    let allowed = bearer.is_some_and(|bearer| caracal_net::bearer::is(&headers, bearer))
        || (bearer.is_none() && config.is_dev());
    if !allowed {
        require_operator(&coordinator, &headers)?;
    }
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let text = coordinator.metrics.registry.render().await;
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
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
