//! What the STS answered, and what the caller of the Gateway is told (spec: gateway §9.3).

use std::collections::HashMap;

use bytes::Bytes;
use caracal_model::Secret;
use caracal_net::egress::ForwardBody;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::unavailable;
use crate::directive::Directive;
use crate::exchange::{ExchangeRefused, GatewayGrant};

/// Longest answer that is read.
const MAX_ANSWER: usize = 256 * 1024;
/// Members of an error body that are not passed on: the Gateway writes its own.
const OWN_MEMBERS: [&str; 4] = ["error", "error_description", "requestId", "request_id"];

#[derive(Deserialize)]
struct Success {
    access_token: String,
    #[serde(default)]
    expires_in: i64,
    #[serde(default)]
    upstreams: HashMap<String, Directive>,
}

/// Reads the answer to an exchange for `resource`.
pub(super) async fn read(
    response: Response<ForwardBody>,
    resource: &str,
) -> Result<GatewayGrant, ExchangeRefused> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes);
    if head.status != StatusCode::OK {
        return Err(refused(
            head.status,
            &head.headers,
            body.unwrap_or_default(),
        ));
    }
    let invalid = || unavailable(StatusCode::BAD_GATEWAY, "sts response invalid");
    let body = body.map_err(|_| invalid())?;
    if !is_json(&head.headers) {
        return Err(invalid());
    }
    let success: Success = serde_json::from_slice(&body).map_err(|_| invalid())?;
    if success.access_token.is_empty() {
        return Err(invalid());
    }
    granted(success, resource)
}

fn granted(mut success: Success, resource: &str) -> Result<GatewayGrant, ExchangeRefused> {
    let directive = success.upstreams.remove(resource);
    let Some(directive) = directive.filter(|directive| !directive.url.is_empty()) else {
        return Err(ExchangeRefused::new(
            StatusCode::FORBIDDEN,
            "access_denied",
            "resource upstream not configured",
        ));
    };
    Ok(GatewayGrant {
        directive,
        expires_in: success.expires_in,
        access_token: Some(Secret::new(success.access_token)),
    })
}

/// The same status, code and description, with whatever else the STS said.
fn refused(status: StatusCode, headers: &HeaderMap, body: Bytes) -> ExchangeRefused {
    let retry_after = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let mut members: Map<String, Value> = serde_json::from_slice(&body).unwrap_or_default();
    let text = |name: &str| members.get(name).and_then(Value::as_str).map(str::to_owned);
    let Some(error) = text("error").filter(|error| !error.is_empty()) else {
        let reason = status.canonical_reason().unwrap_or("sts unavailable");
        return unavailable(status, reason).retry_after(retry_after);
    };
    let description = text("error_description").unwrap_or_default();
    for name in OWN_MEMBERS {
        members.remove(name);
    }
    ExchangeRefused::new(status, error, description)
        .retry_after(retry_after)
        .members(members)
}

fn is_json(headers: &HeaderMap) -> bool {
    let media = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let media = media
        .split(';')
        .next()
        .unwrap_or("")
        .trim()
        .to_ascii_lowercase();
    media == "application/json" || media.ends_with("+json")
}
