//! Reading the ledger of a zone (spec: audit-and-streams §11).

mod explain;
pub mod export;
pub mod keys;
pub mod proofs;
pub mod redact;
mod stream;
mod tail;
mod wanted;

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::IntoResponse;
use caracal_store::audit_events::AuditEvent;
use http::header;
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::page::Page;
use crate::query::Query;
use crate::service::Api;
use crate::wire::{self, Answer, At};

pub use stream::stream;
pub use tail::{Tails, run as follow};
use wanted::Wanted;

/// An event as reads show it, and what it was made of.
#[derive(Debug)]
pub struct Shown {
    /// The members of the published row, redacted.
    pub row: Map<String, Value>,
    /// The metadata as recorded.
    pub metadata: Map<String, Value>,
}

impl Shown {
    /// Shows a stored event. What its text lacks is empty, as published rows have it.
    pub fn of(event: &AuditEvent) -> Self {
        let mut text: Map<String, Value> = serde_json::from_str(&event.event).unwrap_or_default();
        let mut take = |name: &str| text.remove(name).unwrap_or(Value::Null);
        let metadata = match take("metadata_json") {
            Value::Object(metadata) => Some(metadata),
            _ => None,
        };
        let text_or_empty = |value: Value| if value.is_string() { value } else { json!("") };
        let shown_metadata = metadata.clone().map_or(Value::Null, Value::Object);
        let members = [
            ("id", json!(event.id)),
            ("zone_id", json!(event.zone)),
            ("event_type", json!(event.event_type)),
            ("request_id", json!(event.request_id)),
            ("decision", json!(event.decision)),
            ("policy_set_id", text_or_empty(take("policy_set_id"))),
            (
                "policy_set_version_id",
                text_or_empty(take("policy_set_version_id")),
            ),
            ("manifest_sha", text_or_empty(take("manifest_sha"))),
            (
                "evaluation_status",
                text_or_empty(take("evaluation_status")),
            ),
            (
                "determining_policies_json",
                take("determining_policies_json"),
            ),
            (
                "diagnostics_json",
                redact::redacted(take("diagnostics_json")),
            ),
            ("metadata_json", redact::redacted(shown_metadata)),
            ("occurred_at", json!(event.occurred_at.iso_millis())),
            ("ingested_at", json!(event.ingested_at.iso_millis())),
        ];
        Self {
            row: members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            metadata: metadata.unwrap_or_default(),
        }
    }
}

/// `GET /v1/zones/{zone}/audit`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let wanted = Wanted::of(&query)?;
    let as_csv = query.word("format", &["json", "csv"])? == Some("csv");
    let fields = export::fields(query.text("fields", 4096)?)?;
    let page = Page::of(&query, 100, 1000)?;
    let after = page
        .after
        .as_ref()
        .map(|cursor| (cursor.at, cursor.id.as_str()));
    let types = wanted.event_types();
    let events = api
        .store
        .zone(&at.zone)
        .audit()
        .page(&wanted.filter(&types), after, page.limit)
        .await?;
    if as_csv {
        let shown: Vec<Shown> = events.iter().map(Shown::of).collect();
        let name = format!("attachment; filename=\"audit-{}.csv\"", at.zone);
        let headers = [
            (header::CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
            (header::CONTENT_DISPOSITION, name),
        ];
        return Ok((headers, export::csv(&shown, fields.as_deref())).into_response());
    }
    let show = |event: &AuditEvent| {
        let shown = Shown::of(event);
        match &fields {
            Some(fields) => Value::Object(export::flat(&shown, fields)),
            None => Value::Object(shown.row),
        }
    };
    wire::ok(page.envelope(&events, show, |event| (event.occurred_at, event.id.clone())))
}

async fn of_request(api: &Api, at: &At) -> Result<Vec<Shown>, Failure> {
    let events = api.store.zone(&at.zone).audit().by_request(&at.id).await?;
    if events.is_empty() {
        let why = format!("no event of request {} is on record in this zone", at.id);
        return Err(Failure::absent("request_not_found", why));
    }
    Ok(events.iter().map(Shown::of).collect())
}

/// `GET /v1/zones/{zone}/audit/by-request/{id}`
pub async fn by_request(State(api): State<Arc<Api>>, at: At) -> Answer {
    let shown = of_request(&api, &at).await?;
    wire::ok(
        shown
            .into_iter()
            .map(|shown| Value::Object(shown.row))
            .collect(),
    )
}

/// `GET /v1/zones/{zone}/audit/by-request/{id}/explain`
pub async fn explain(State(api): State<Arc<Api>>, at: At) -> Answer {
    let shown = of_request(&api, &at).await?;
    let explanations = explain::explanations(&api, &at, &shown).await?;
    wire::ok(explain::explain(&at, shown, explanations))
}
