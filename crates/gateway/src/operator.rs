//! What operators and orchestrators ask the Gateway itself (spec: gateway §1, §2).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use caracal_model::RecordId;
use caracal_net::health::Budget;
use caracal_net::{RequestId, bearer, health};
use caracal_view::Anchors;
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::gateway::Gateway;
use crate::headers::X_CARACAL_RESOURCE;
use crate::request;

/// All checks of readiness together.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// A forced reload.
const RELOAD_WITHIN: Duration = Duration::from_secs(5);

/// `/ready`: the first reason against it.
pub async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    let answer = match check(&gateway).await {
        Ok(()) => Json(json!({"ok": true, "ready": true})).into_response(),
        Err(reason) => health::unready(reason),
    };
    gateway.registry.readiness().tell(answer)
}

/// The checks in their order.
async fn check(gateway: &Gateway) -> Result<(), &'static str> {
    let budget = Budget::of(READY_WITHIN, gateway.clock.as_ref());
    budget.ask("redis_unreachable", gateway.bus.ping()).await?;
    // Any anchor will do: what counts is whether there is an answer.
    let probe = RecordId::trusted("readiness");
    let records = [&probe];
    let anchors = Anchors {
        records: &records,
        ..Anchors::default()
    };
    let revoked = gateway.views.revoked(&anchors);
    budget.ask("revocation_snapshot_stale", revoked).await?;
    if gateway.evidence.lost() {
        return Err("audit_evidence_lost");
    }
    let evidence = gateway.evidence.clone();
    let writable = async {
        let looked = tokio::task::spawn_blocking(move || evidence.is_writable()).await;
        so(looked.unwrap_or(false))
    };
    budget.ask("audit_replay_unavailable", writable).await?;
    let healthy = async { so(gateway.exchange.healthy().await) };
    budget.ask("sts_unreachable", healthy).await
}

fn so(is_so: bool) -> Result<(), ()> {
    is_so.then_some(()).ok_or(())
}

/// `/capacity`. A call that names a resource is for an upstream, which may have such a path itself.
pub async fn capacity(
    gateway: State<Arc<Gateway>>,
    id: Extension<RequestId>,
    request: Request,
) -> Response {
    if request.headers().contains_key(X_CARACAL_RESOURCE) {
        return request::proxy(gateway, id, request).await;
    }
    let access = &gateway.config.metrics;
    let registry = &gateway.registry;
    registry.answer_capacity(request.headers(), access).await
}

/// `POST /internal/revocations/reload`. Without the operator's token it does not exist.
pub async fn reload(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Response {
    let token = gateway.config.admin_token.as_ref();
    if !token.is_some_and(|token| bearer::is(&headers, token)) {
        return (StatusCode::NOT_FOUND, "not found").into_response();
    }
    let reloaded = tokio::time::timeout(RELOAD_WITHIN, gateway.views.reload()).await;
    match reloaded {
        Ok(Ok(())) => {
            let revocations = gateway.views.stats().revoked;
            Json(json!({"ok": true, "revocations": revocations})).into_response()
        }
        outcome => {
            tracing::warn!(?outcome, "forced reload of the revocations failed");
            gateway.metrics.revocation_reload_errors.inc();
            health::unready("revocation_reload_failed")
        }
    }
}
