//! `GET /api/audit/search`: the ledger in the order of its chain, with the values that verify it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use caracal_model::{Timestamp, ZoneId};
use caracal_net::bearer;
use caracal_store::audit_events::{AuditEvent, AuditFilter};
use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;

use super::Service;

const LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1_000;
const DEFAULT_RANGE: Duration = Duration::from_secs(24 * 3_600);

#[derive(Serialize)]
struct Answer {
    events: Option<Vec<Found>>,
    next_cursor: String,
}

#[derive(Serialize)]
struct Found {
    #[serde(rename = "Event")]
    event: Box<RawValue>,
    #[serde(rename = "IngestedAt")]
    ingested_at: String,
    #[serde(rename = "ContentSHA256")]
    content_sha256: String,
    #[serde(rename = "PrevContentSHA256")]
    previous_sha256: String,
    #[serde(rename = "ChainHash")]
    chain_hash: String,
    #[serde(rename = "ChainHMAC")]
    chain_hmac: String,
    #[serde(rename = "ChainSeq")]
    chain_seq: u64,
}

pub(super) async fn search(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    if let Some(refusal) = refuse(&service, &headers) {
        return refusal;
    }
    let Some(zone) = query
        .get("zone_id")
        .and_then(|zone| ZoneId::parse(zone).ok())
    else {
        return (StatusCode::BAD_REQUEST, "zone_id is required").into_response();
    };
    match find(&service, &zone, &query).await {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => {
            tracing::warn!(%error, "the search of the ledger failed");
            let status = if error.is_transient() {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::INTERNAL_SERVER_ERROR
            };
            (status, "the ledger cannot be read").into_response()
        }
    }
}

/// Without a configured token the routes do not exist.
pub(super) fn refuse(service: &Service, headers: &HeaderMap) -> Option<Response> {
    let Some(expected) = &service.admin_token else {
        return Some((StatusCode::NOT_FOUND, "not found").into_response());
    };
    if bearer::is(headers, expected) {
        return None;
    }
    let challenge = [(WWW_AUTHENTICATE, r#"Bearer realm="caracal-audit""#)];
    Some((StatusCode::UNAUTHORIZED, challenge, "unauthorized").into_response())
}

async fn find(
    service: &Service,
    zone: &ZoneId,
    query: &HashMap<String, String>,
) -> Result<Answer, caracal_store::StoreError> {
    let text = |name: &str| {
        query
            .get(name)
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    };
    let time = |name: &str| text(name).and_then(|text| Timestamp::parse_rfc3339(text).ok());
    let limit = text("limit")
        .and_then(|limit| limit.parse().ok())
        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
        .unwrap_or(LIMIT);
    let day_ago = service.ingest.clock().now().minus(DEFAULT_RANGE);
    let filter = AuditFilter {
        since: Some(time("since").unwrap_or(day_ago)),
        until: time("until"),
        decision: text("decision"),
        request_id: text("request_id"),
        ..AuditFilter::default()
    };
    let after = text("cursor")
        .and_then(|cursor| cursor.parse().ok())
        .unwrap_or(0);
    let rows = service
        .ingest
        .store()
        .zone(zone)
        .audit()
        .search(after, &filter, limit)
        .await?;
    let next_cursor = rows
        .last()
        .map_or(String::new(), |(row, _)| row.chain_seq.to_string());
    let events = rows
        .into_iter()
        .map(|(row, previous)| found(row, previous))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Answer {
        events: (!events.is_empty()).then_some(events),
        next_cursor,
    })
}

fn found(row: AuditEvent, previous: Option<String>) -> Result<Found, caracal_store::StoreError> {
    let event =
        RawValue::from_string(row.event).map_err(|error| caracal_store::StoreError::Corrupt {
            what: format!("event {}: {error}", row.chain_seq),
        })?;
    Ok(Found {
        event,
        ingested_at: row.ingested_at.iso_micros(),
        content_sha256: row.content_sha256,
        previous_sha256: previous.unwrap_or_default(),
        chain_hash: row.chain_hash,
        chain_hmac: row.chain_hmac,
        chain_seq: row.chain_seq,
    })
}
