//! Authority records: whom bearers speak for, and until when (spec: admin-api §11).

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::IntoResponse;
use caracal_model::{RecordId, Timestamp};
use caracal_store::authority_records::{AuthorityRecord, RecordFilter};
use http::header;
use serde_json::{Value, json};

use crate::audit::export;
use crate::page::Page;
use crate::query::Query;
use crate::service::Api;
use crate::wire::{self, Answer, At};

/// Members of a row, in the order of columns.
const COLUMNS: [&str; 12] = [
    "authority_record_id",
    "zone_id",
    "authority_record_type",
    "subject_id",
    "federated_user_issuer",
    "parent_authority_record_id",
    "status",
    "expires_at",
    "authenticated_at",
    "created_at",
    "revoked_at",
    "revoked_reason",
];

fn render(record: &AuthorityRecord, zone: &str, now: Timestamp) -> Value {
    json!({
        "authority_record_id": record.id,
        "zone_id": zone,
        "authority_record_type": record.record_type,
        "subject_id": record.subject_id,
        "federated_user_issuer": record.issuer,
        "parent_authority_record_id": record.parent_id.as_ref().map(RecordId::as_str),
        "status": record.status_at(now),
        "expires_at": record.expires_at.iso_millis(),
        "authenticated_at": record.created_at.iso_millis(),
        "created_at": record.created_at.iso_millis(),
        "revoked_at": record.revoked_at.map(Timestamp::iso_millis),
        "revoked_reason": record.revoked_reason,
    })
}

/// `GET /v1/zones/{zone}/authority-records`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let filter = RecordFilter {
        id: query.text("authority_record_id", 128)?,
        status: query.word("status", &["active", "revoked", "expired"])?,
        subject_id: query.text("subject_id", 512)?,
        kind: query.word("kind", &["user", "application"])?,
    };
    let as_csv = query.word("format", &["json", "csv"])? == Some("csv");
    let page = Page::of(&query, 100, 1000)?;
    let (zone, now) = (api.store.zone(&at.zone), api.clock.now());
    let rows = zone
        .authority_records(&filter, wire::slice(&page), now)
        .await?;
    let show = |row: &AuthorityRecord| render(row, at.zone.as_str(), now);
    if as_csv {
        let rows: Vec<Value> = rows.iter().map(show).collect();
        let name = format!("attachment; filename=\"authority-records-{}.csv\"", at.zone);
        let headers = [
            (header::CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
            (header::CONTENT_DISPOSITION, name),
        ];
        return Ok((headers, export::table(&COLUMNS, &rows)).into_response());
    }
    let place = |row: &AuthorityRecord| (row.created_at, row.id.to_string());
    wire::ok(page.envelope(&rows, show, place))
}
