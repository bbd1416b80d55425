//! What operators and orchestrators ask the Gateway itself (spec: gateway §1, §2).

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use caracal_model::RecordId;
use caracal_net::{bearer, health};
use caracal_view::Anchors;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde_json::json;

use crate::gateway::Gateway;

/// All checks of readiness together.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// A forced reload.
const RELOAD_WITHIN: Duration = Duration::from_secs(5);

/// `/ready`: the first reason against it.
pub async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    let asking = Mutex::new("redis_unreachable");
    let outcome = match tokio::time::timeout(READY_WITHIN, check(&gateway, &asking)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(*asking.lock()),
    };
    health::ready(outcome)
}

/// The checks in their order; `asking` is the reason should time run out.
async fn check(gateway: &Gateway, asking: &Mutex<&'static str>) -> Result<(), &'static str> {
    let ask = |reason| {
        *asking.lock() = reason;
        reason
    };
    let reason = ask("redis_unreachable");
    gateway.bus.ping().await.map_err(|_| reason)?;
    let reason = ask("revocation_snapshot_stale");
    // Any anchor will do: what counts is whether there is an answer.
    let probe = RecordId::trusted("readiness");
    let records = [&probe];
    let anchors = Anchors {
        records: &records,
        ..Anchors::default()
    };
    gateway.views.revoked(&anchors).await.map_err(|_| reason)?;
    if gateway.evidence.lost() {
        return Err("audit_evidence_lost");
    }
    let reason = ask("audit_replay_unavailable");
    let evidence = gateway.evidence.clone();
    let writable = tokio::task::spawn_blocking(move || evidence.is_writable()).await;
    if !writable.unwrap_or(false) {
        return Err(reason);
    }
    let reason = ask("sts_unreachable");
    if gateway.exchange.healthy().await {
        Ok(())
    } else {
        Err(reason)
    }
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
            health::ready(Err("revocation_reload_failed"))
        }
    }
}
