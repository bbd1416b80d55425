//! Liveness and readiness bodies (spec: operations §5). The checks are each service's own.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

/// 200 without a body: STS, Gateway and Audit.
pub async fn alive() -> StatusCode {
    StatusCode::OK
}

/// 200 `{"ok":true}`: API and Coordinator.
pub async fn alive_json() -> Response {
    Json(json!({"ok": true})).into_response()
}

/// `{"ok":true,"ready":true}`, or 503 with the first reason against it: STS and Gateway.
pub fn ready(outcome: Result<(), &str>) -> Response {
    match outcome {
        Ok(()) => Json(json!({"ok": true, "ready": true})).into_response(),
        Err(reason) => {
            let body = json!({"ok": false, "ready": false, "reason": reason});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}
