//! Notification sinks: webhooks that are told of the approvals of a zone (spec: admin-api §10,
//! audit-and-streams §13).

pub mod dispatch;
mod send;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_crypto::digest::hex_encode;
use caracal_model::{Secret, Timestamp};
use caracal_store::notifications::{Delivery, SINK_SECRET_AAD, Sink};
use serde_json::{Map, Value, json};

pub use send::Hooks;

use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::page::Page;
use crate::query::Query;
use crate::service::{Api, no_zone, open_zone};
use crate::wire::{self, Answer, At, Input};

const INVALID: &str = "invalid_sink";
const NAME: Text = Text::trimmed(1..=120);
const URL: Text = Text::exact(1..=2048);
const TYPES: [&str; 3] = ["step_up_issued", "step_up_decided", "step_up_consumed"];
const STATUSES: [&str; 3] = ["pending", "delivered", "abandoned"];
/// Most sinks of a zone.
const MOST: u64 = 20;
/// Random bytes of a secret.
const SECRET_BYTES: usize = 24;

fn no_sink(id: &str) -> Failure {
    Failure::absent(
        "sink_not_found",
        format!("there is no notification sink {id} in this zone"),
    )
}

fn render(sink: &Sink) -> Map<String, Value> {
    let time = |at: Option<Timestamp>| json!(at.map(Timestamp::iso_millis));
    let members = [
        ("id", json!(sink.id)),
        ("zone_id", json!(sink.zone)),
        ("name", json!(sink.name)),
        ("url", json!(sink.url)),
        ("event_types", json!(sink.event_types)),
        ("active", json!(sink.active)),
        ("ordered", json!(sink.in_order)),
        ("consecutive_failures", json!(sink.consecutive_failures)),
        ("last_success_at", time(sink.last_success_at)),
        ("last_failure_at", time(sink.last_failure_at)),
        ("last_error", json!(sink.last_error)),
        ("created_at", json!(sink.created_at.iso_millis())),
        ("updated_at", json!(sink.updated_at.iso_millis())),
    ];
    members
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn with_secret(sink: &Sink, secret: &Secret<String>) -> Value {
    let mut members = render(sink);
    members.insert("secret".to_owned(), json!(secret.expose()));
    Value::Object(members)
}

fn render_delivery(delivery: &Delivery) -> Value {
    let time = |at: Option<Timestamp>| at.map(Timestamp::iso_millis);
    json!({
        "id": delivery.id,
        "sink_id": delivery.sink_id,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "attempts": delivery.attempts,
        "available_at": delivery.available_at.iso_millis(),
        "delivered_at": time(delivery.delivered_at),
        "abandoned_at": time(delivery.abandoned_at),
        "response_status": delivery.response_status,
        "last_error": delivery.last_error,
        "created_at": delivery.created_at.iso_millis(),
    })
}

/// What a request wants of a sink.
struct Wish {
    name: Option<String>,
    url: Option<String>,
    types: Option<Vec<String>>,
    active: Option<bool>,
    in_order: Option<bool>,
}

impl Wish {
    fn read(api: &Api, input: &Input, creates: bool) -> Result<Self, Failure> {
        let mut fields = Fields::of(input.object(INVALID)?);
        let types = fields.texts("event_types", 1..=TYPES.len(), Text::exact(1..=64));
        if let Some(types) = &types {
            for (at, name) in types.iter().enumerate() {
                if !TYPES.contains(&name.as_str()) {
                    let why = format!("holds {name}; known are {}", TYPES.join(", "));
                    fields.wrong("event_types", why);
                } else if types.iter().take(at).any(|before| before == name) {
                    fields.wrong("event_types", format!("holds {name} twice"));
                }
            }
        }
        let wish = Self {
            name: fields.text("name", NAME),
            url: fields.text("url", URL),
            types,
            active: fields.flag("active"),
            in_order: fields.flag("ordered"),
        };
        if creates {
            for name in ["name", "url"] {
                if fields.get(name).is_none() {
                    fields.wrong(name, "is required");
                }
            }
        }
        fields.end(INVALID)?;
        if let Some(url) = &wish.url {
            api.hooks
                .check(url)
                .map_err(|why| Failure::bad("invalid_sink_url", why))?;
        }
        Ok(wish)
    }
}

/// A new secret, and how it is kept.
fn new_secret(api: &Api) -> Result<(Secret<String>, Vec<u8>), Failure> {
    let mut bytes = [0u8; SECRET_BYTES];
    api.rng.fill(&mut bytes);
    let secret = Secret::new(format!("nsk_{}", hex_encode(&bytes)));
    let sealed = api.seal(SINK_SECRET_AAD, secret.expose().as_bytes())?;
    Ok((secret, sealed))
}

/// `GET /v1/zones/{zone}/notification-sinks`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let page = Page::of_configuration(&Query::parse(raw.as_deref()))?;
    let rows = api
        .store
        .zone(&at.zone)
        .sinks()
        .page(wire::slice(&page))
        .await?;
    let show = |sink: &Sink| Value::Object(render(sink));
    wire::ok(page.envelope(&rows, show, |sink| (sink.created_at, sink.id.clone())))
}

/// `GET /v1/zones/{zone}/notification-sinks/{id}`
pub async fn get(State(api): State<Arc<Api>>, at: At) -> Answer {
    let found = api.store.zone(&at.zone).sinks().get(&at.id).await?;
    let sink = found.ok_or_else(|| no_sink(&at.id))?;
    wire::ok(Value::Object(render(&sink)))
}

/// `POST /v1/zones/{zone}/notification-sinks`: from now on; what happened before is not told.
pub async fn create(State(api): State<Arc<Api>>, at: At, input: Input) -> Answer {
    open_zone(&api, &at.zone).await?;
    let wish = Wish::read(&api, &input, true)?;
    let (secret, sealed) = new_secret(&api)?;
    let head = api.store.zone(&at.zone).audit().head().await?;
    let now = api.clock.now();
    let sink = Sink {
        id: api.ids.uuid(),
        zone: at.zone.clone(),
        name: wish.name.unwrap_or_default(),
        url: wish.url.unwrap_or_default(),
        event_types: wish
            .types
            .unwrap_or_else(|| TYPES.map(str::to_owned).to_vec()),
        active: wish.active.unwrap_or(true),
        in_order: wish.in_order.unwrap_or(true),
        secret: sealed,
        cursor_seq: head.map_or(0, |head| head.chain_seq),
        consecutive_failures: 0,
        last_success_at: None,
        last_failure_at: None,
        last_error: None,
        created_at: now,
        updated_at: now,
    };
    let mut tx = api.store.begin("create a notification sink").await?;
    // Whoever holds the zone counts alone, so two at once cannot both be the twentieth.
    let zone = tx.zones().lock(&at.zone).await?;
    zone.ok_or_else(|| no_zone(&at.zone))?;
    if tx.sinks(&at.zone).count().await? >= MOST {
        return Err(Failure::conflict(
            "sink_limit_reached",
            format!("a zone has at most {MOST} notification sinks; delete one first"),
        ));
    }
    tx.sinks(&at.zone).insert(&sink).await?;
    tx.commit().await?;
    wire::created(with_secret(&sink, &secret))
}

/// `PATCH /v1/zones/{zone}/notification-sinks/{id}`: another URL starts with a clean record.
pub async fn patch(State(api): State<Arc<Api>>, at: At, input: Input) -> Answer {
    let wish = Wish::read(&api, &input, false)?;
    let mut tx = api.store.begin("change a notification sink").await?;
    let found = tx.sinks(&at.zone).get(&at.id).await?;
    let mut sink = found.ok_or_else(|| no_sink(&at.id))?;
    if wish.url.as_ref().is_some_and(|url| *url != sink.url) {
        sink.consecutive_failures = 0;
        sink.last_error = None;
    }
    sink.name = wish.name.unwrap_or(sink.name);
    sink.url = wish.url.unwrap_or(sink.url);
    sink.event_types = wish.types.unwrap_or(sink.event_types);
    sink.active = wish.active.unwrap_or(sink.active);
    sink.in_order = wish.in_order.unwrap_or(sink.in_order);
    sink.updated_at = api.clock.now();
    if !tx.sinks(&at.zone).update(&sink).await? {
        return Err(no_sink(&at.id));
    }
    tx.commit().await?;
    wire::ok(Value::Object(render(&sink)))
}

/// `POST /v1/zones/{zone}/notification-sinks/{id}/rotate-secret`: the next delivery is signed with
/// the new one.
pub async fn rotate_secret(State(api): State<Arc<Api>>, at: At) -> Answer {
    let (secret, sealed) = new_secret(&api)?;
    let now = api.clock.now();
    let mut tx = api
        .store
        .begin("rotate the secret of a notification sink")
        .await?;
    let rotated = tx.sinks(&at.zone).rotate(&at.id, &sealed, now).await?;
    let found = tx.sinks(&at.zone).get(&at.id).await?;
    let sink = found.filter(|_| rotated).ok_or_else(|| no_sink(&at.id))?;
    tx.commit().await?;
    wire::ok(with_secret(&sink, &secret))
}

/// `DELETE /v1/zones/{zone}/notification-sinks/{id}`: with everything that was on its way.
pub async fn delete(State(api): State<Arc<Api>>, at: At) -> Answer {
    let mut tx = api.store.begin("delete a notification sink").await?;
    if !tx.sinks(&at.zone).delete(&at.id).await? {
        return Err(no_sink(&at.id));
    }
    tx.commit().await?;
    wire::no_content()
}

/// `GET /v1/zones/{zone}/notification-sinks/{id}/deliveries?status=`
pub async fn deliveries(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let status = query.word("status", &STATUSES)?;
    let page = Page::of_configuration(&query)?;
    let sinks = api.store.zone(&at.zone).sinks();
    if sinks.get(&at.id).await?.is_none() {
        return Err(no_sink(&at.id));
    }
    let rows = sinks.deliveries(&at.id, status, wire::slice(&page)).await?;
    let place = |row: &Delivery| (row.created_at, row.id.clone());
    wire::ok(page.envelope(&rows, render_delivery, place))
}

/// `POST /v1/zones/{zone}/notification-sinks/{id}/deliveries/{delivery}/redeliver`: tried again from
/// the start, whatever became of it.
pub async fn redeliver(State(api): State<Arc<Api>>, at: At) -> Answer {
    let now = api.clock.now();
    let mut tx = api.store.begin("deliver a notification again").await?;
    let mut sinks = tx.sinks(&at.zone);
    let there = sinks.again(&at.id, &at.version, now).await?;
    let found = sinks.delivery(&at.id, &at.version).await?;
    let delivery = found.filter(|_| there).ok_or_else(|| {
        let why = format!("there is no delivery {} to this sink", at.version);
        Failure::absent("delivery_not_found", why)
    })?;
    tx.commit().await?;
    wire::accepted(render_delivery(&delivery))
}

/// `POST /v1/zones/{zone}/notification-sinks/{id}/replay`: an event of the ledger, once more or late.
pub async fn replay(State(api): State<Arc<Api>>, at: At, input: Input) -> Answer {
    let mut fields = Fields::of(input.object(INVALID)?);
    fields.only(&["event_id"]);
    let event = fields.required_text("event_id", Text::exact(1..=128));
    fields.end(INVALID)?;
    let told = api.store.zone(&at.zone).audit().get(&event).await?;
    let now = api.clock.now();
    let mut tx = api.store.begin("replay a notification").await?;
    let mut sinks = tx.sinks(&at.zone);
    let sink = sinks.get(&at.id).await?.ok_or_else(|| no_sink(&at.id))?;
    let new = told.and_then(|told| dispatch::delivery(&api, &sink, &told, now));
    let new = new.filter(|new| TYPES.contains(&new.event_type.as_str()));
    let new = new.ok_or_else(|| {
        let why = format!("the ledger of this zone has no approval event {event}");
        Failure::absent("event_not_found", why)
    })?;
    match sinks.of_event(&sink.id, &event).await? {
        Some(old) => {
            sinks.again(&sink.id, &old.id, now).await?;
        }
        None => sinks.add(std::slice::from_ref(&new)).await?,
    }
    let delivery = sinks.of_event(&sink.id, &event).await?;
    tx.commit().await?;
    wire::accepted(delivery.as_ref().map_or(Value::Null, render_delivery))
}

/// `POST /v1/zones/{zone}/notification-sinks/{id}/test`: one signed request, now.
pub async fn test(State(api): State<Arc<Api>>, at: At) -> Answer {
    let found = api.store.zone(&at.zone).sinks().get(&at.id).await?;
    let sink = found.ok_or_else(|| no_sink(&at.id))?;
    let limit = &api.limits.sink_tests;
    limit
        .count(at.zone.as_str())
        .map_err(Failure::rate_limited)?;
    let attempt = Box::pin(dispatch::test(&api, &sink)).await;
    wire::ok(json!({
        "delivered": attempt.error.is_none(),
        "response_status": attempt.status,
        "error": attempt.error,
    }))
}
