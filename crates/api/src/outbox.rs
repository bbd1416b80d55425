//! News of a zone that was committed and is not on its topic: what waits, what failed too often, and
//! sending the latter again (spec: audit-and-streams §3 has no such routes here; ours do).

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_model::Timestamp;
use caracal_store::outbox::{Entry, Standing};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::query::Query;
use crate::service::Api;
use crate::wire::{self, Answer, At};

/// What it says is left out: who looks for a stuck entry needs to know which, and why.
fn render(entry: &Entry) -> Value {
    json!({
        "id": entry.id,
        "zone_id": entry.zone,
        "stream_name": entry.topic,
        "state": match entry.standing {
            Standing::Pending => "pending",
            Standing::Dispatched => "dispatched",
            Standing::Dead => "dead",
        },
        "attempts": entry.attempts,
        "last_error": entry.last_error,
        "created_at": entry.created_at.iso_millis(),
        "dispatched_at": entry.dispatched_at.map(Timestamp::iso_millis),
    })
}

/// `GET /v1/zones/{zone}/outbox?state&limit&cursor`: dead entries unless `state` is `pending`, oldest
/// first.
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let standing = match query.word("state", &["dead", "pending"])? {
        Some("pending") => Standing::Pending,
        _ => Standing::Dead,
    };
    let limit = query.limit(100, 1000)?;
    let after = query.text("cursor", 128)?;
    let outbox = api.store.outbox();
    let entries = outbox.waiting(&at.zone, standing, after, limit).await?;
    let full = entries.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
    let next = entries.last().filter(|_| full).map(|entry| &entry.id);
    let items: Vec<Value> = entries.iter().map(render).collect();
    wire::ok(json!({"items": items, "next_cursor": next}))
}

/// `POST /v1/zones/{zone}/outbox/{id}/requeue`
pub async fn requeue(State(api): State<Arc<Api>>, at: At) -> Answer {
    if !api.store.outbox().requeue(&at.zone, &at.id).await? {
        let why = "no dead outbox entry of this id in this zone";
        return Err(Failure::absent("dead_outbox_not_found", why));
    }
    wire::ok(json!({"id": at.id, "status": "pending"}))
}
