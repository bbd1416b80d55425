//! Reading what administrators did (spec: admin-api §11, audit-and-streams §12). How it gets there
//! is the business of the crate `trail`.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::IntoResponse;
use caracal_ledger::AdminRecord;
use caracal_model::ZoneId;
use caracal_store::admin_audit::{AdminEvent, AdminFilter, deployment};
use caracal_trail::Rules;
use http::header;
use serde_json::{Map, Value, json};

use crate::audit::export;
use crate::audit::redact::redacted;
use crate::failure::Failure;
use crate::page::Page;
use crate::query::Query;
use crate::service::Api;
use crate::wire::{self, Answer, At, Caller};

/// Where the browser of whoever connects an account comes back to.
pub const CALLBACK: &str = "/v1/zones/{zone}/provider-connections/oauth/callback";

/// How this service names things.
pub const RULES: Rules = Rules {
    prefix: "/v1/",
    zones: "/v1/zones/",
    collections: &[
        "zones",
        "applications",
        "workloads",
        "resources",
        "providers",
        "provider-connections",
        "policies",
        "policy-sets",
        "policy-templates",
        "grants",
        "subject-issuers",
        "subjects",
        "approvals",
        "notification-sinks",
        "admin-tokens",
        "audit-keys",
    ],
    callback: Some(CALLBACK),
    counts_strangers: true,
    names_creations: true,
    tells_message: false,
};

const FIELDS: [&str; 16] = [
    "id",
    "occurred_at",
    "action",
    "method",
    "path",
    "entity_type",
    "entity_id",
    "status_code",
    "actor_id",
    "actor_name",
    "actor_scope",
    "request_id",
    "chain_seq",
    "signed",
    "change_kind",
    "changed_fields",
];
/// Fields that stand in `payload_json`.
const OF_PAYLOAD: [&str; 2] = ["change_kind", "changed_fields"];

/// A record as reads show it.
fn render(event: &AdminEvent) -> Map<String, Value> {
    let record = AdminRecord::parse(&event.record);
    let payload = record.as_ref().and_then(|record| record.payload.as_deref());
    let payload = payload.and_then(|text| serde_json::from_str(text).ok());
    let of = |read: fn(&AdminRecord) -> Value| record.as_ref().map_or(Value::Null, read);
    let members = [
        ("id", json!(event.id)),
        ("request_id", of(|record| json!(record.request_id))),
        ("actor_id", json!(event.actor_id)),
        ("actor_name", of(|record| json!(record.actor_name))),
        ("actor_scope", of(|record| json!(record.actor_scope))),
        ("action", of(|record| json!(record.action))),
        ("method", json!(event.method)),
        ("path", of(|record| json!(record.path))),
        ("entity_type", json!(event.entity_type)),
        ("entity_id", json!(event.entity_id)),
        ("status_code", of(|record| json!(record.status_code))),
        ("payload_json", redacted(payload.unwrap_or(Value::Null))),
        ("occurred_at", json!(event.occurred_at.iso_millis())),
        ("chain_seq", json!(event.chain_seq)),
        ("signed", json!(!event.chain_hmac.is_empty())),
    ];
    members
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Exactly these fields; those of the payload that it lacks are left out.
fn flat(event: &AdminEvent, fields: &[&'static str]) -> Value {
    let row = render(event);
    let value = |field: &str| {
        if OF_PAYLOAD.contains(&field) {
            return row.get("payload_json")?.get(field).cloned();
        }
        row.get(field).cloned()
    };
    let pairs = fields
        .iter()
        .filter_map(|field| Some(((*field).to_owned(), value(field)?)));
    Value::Object(pairs.collect())
}

/// `GET /v1/zones/{zone}/admin-audit`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    page(&api, &at.zone, at.zone.as_str(), raw.as_deref()).await
}

/// `GET /v1/admin-audit`: what belongs to no zone. For the platform's own tokens.
pub async fn of_deployment(
    State(api): State<Arc<Api>>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Answer {
    of_platform(&caller)?;
    page(&api, &deployment(), "deployment", raw.as_deref()).await
}

/// Whether the caller has one of the platform's own tokens.
///
/// # Errors
/// 403 `admin_audit_requires_global`.
pub fn of_platform(caller: &Caller) -> Result<(), Failure> {
    if caller.actor.is_global() && !caller.actor.is_derived() {
        return Ok(());
    }
    Err(Failure::forbidden(
        "admin_audit_requires_global",
        "what belongs to no zone is read with a global token",
    ))
}

async fn page(api: &Api, zone: &ZoneId, name: &str, raw: Option<&str>) -> Answer {
    let query = Query::parse(raw);
    let filter = AdminFilter {
        since: query.time("since")?,
        until: query.time("until")?,
        actor_id: query.text("actor_id", 128)?,
        entity_type: query.text("entity_type", 64)?,
        entity_id: query.text("entity_id", 128)?,
        method: query.word("method", &["POST", "PUT", "PATCH", "DELETE"])?,
    };
    let as_csv = query.word("format", &["json", "csv"])? == Some("csv");
    let fields = export::choose(query.text("fields", 4096)?, || FIELDS.into_iter())?;
    let page = Page::of(&query, 100, 1000)?;
    api.trail.settle(zone).await?;
    let audit = api.store.admin_audit();
    let events = audit.page(zone, &filter, wire::slice(&page)).await?;
    if as_csv {
        let columns = fields.unwrap_or_else(|| FIELDS.to_vec());
        let rows: Vec<Value> = events.iter().map(|event| flat(event, &columns)).collect();
        let name = format!("attachment; filename=\"admin-audit-{name}.csv\"");
        let headers = [
            (header::CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
            (header::CONTENT_DISPOSITION, name),
        ];
        return Ok((headers, export::table(&columns, &rows)).into_response());
    }
    let show = |event: &AdminEvent| match &fields {
        Some(fields) => flat(event, fields),
        None => Value::Object(render(event)),
    };
    wire::ok(page.envelope(&events, show, |event| (event.occurred_at, event.id.clone())))
}
