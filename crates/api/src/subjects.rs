//! Subjects and their kill switch (spec: admin-api §7.9, sts §20.2).

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use caracal_model::id::uuid7_millis;
use caracal_model::{Timestamp, ZoneId};
use caracal_store::connections::Filter;
use caracal_store::subjects::{GovernedSession, REVOKED_REASON, Subject, Wanted};
use caracal_store::zones::Slice;
use caracal_trail::Deed;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::fields::{Fields, Text};
use crate::page::Page;
use crate::provider_connections;
use crate::query::Query;
use crate::service::{Api, no_zone};
use crate::wire::{self, Answer, At, Caller, Input};

/// Longest subject, in characters.
const LONGEST: usize = 512;
const SUBJECT: Text = Text::exact(1..=LONGEST);
/// Most connections in an overview.
const CONNECTIONS: u32 = 10;
const REASON: Text = Text::exact(1..=512);
const INVALID: &str = "invalid_subject_revoke";

fn no_subject() -> Failure {
    Failure::absent(
        "subject_not_found",
        "this zone has no record of that subject_id",
    )
}

fn render(subject: &Subject) -> Value {
    json!({
        "subject_id": subject.id,
        "federated": subject.federated,
        "application_name": subject.application_name,
        "total_sessions": subject.total,
        "active_sessions": subject.active,
        "revoked_sessions": subject.revoked,
        "first_seen": subject.first_seen.iso_millis(),
        "last_seen": subject.last_seen.iso_millis(),
        "last_revoked_at": subject.last_revoked_at.map(Timestamp::iso_millis),
        "issuer": subject.issuer,
    })
}

fn render_session(session: &GovernedSession) -> Value {
    json!({
        "session_id": session.id,
        "application_id": session.application_id,
        "application_name": session.application_name,
        "lifecycle": session.lifecycle,
        "status": session.status,
        "started_at": session.started_at.iso_millis(),
    })
}

/// `GET /v1/zones/{zone}/subjects`
pub async fn list(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let wanted = Wanted {
        kind: query.word("kind", &["user", "application"])?,
        search: query.text("search", LONGEST)?,
    };
    let page = Page::of_subjects(&query)?;
    let scope = api.store.zone(&at.zone).subjects();
    let slice = wire::slice(&page);
    let rows = scope.page(wanted, slice, api.clock.now()).await?;
    let place = |row: &Subject| (row.last_seen, row.id.clone());
    wire::ok(page.envelope(&rows, render, place))
}

/// `GET /v1/zones/{zone}/subjects/overview?subject_id=`
pub async fn overview(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let Some(id) = query.text("subject_id", LONGEST)? else {
        return Err(Failure::bad("invalid_query", "subject_id is required"));
    };
    let subjects = || api.store.zone(&at.zone).subjects();
    let found = subjects().get(id, api.clock.now()).await?;
    let subject = found.ok_or_else(no_subject)?;
    let governed = subjects().governed(id).await?;
    let approvals = subjects().approvals(id, api.clock.now()).await?;
    let connections = connections(&api, &at.zone, id).await?;
    let recent: Vec<Value> = governed.recent.iter().map(render_session).collect();
    wire::ok(json!({
        "subject": render(&subject),
        "governed": { "active": governed.active, "total": governed.total, "recent": recent },
        "approvals": { "pending": approvals.pending, "total": approvals.total },
        "connections": connections,
    }))
}

/// The newest connections of a subject to providers.
async fn connections(api: &Api, zone: &ZoneId, subject: &str) -> Result<Vec<Value>, Failure> {
    let filter = Filter {
        provider: None,
        subject: Some(subject),
        status: None,
    };
    let newest = Slice {
        before: i64::MAX,
        before_id: "",
        limit: CONNECTIONS,
    };
    let rows = api
        .store
        .zone(zone)
        .connections()
        .page(filter, newest)
        .await?;
    Ok(rows
        .iter()
        .map(|row| provider_connections::render(row, zone))
        .collect())
}

/// `POST /v1/zones/{zone}/subjects/revoke`: everything that a subject holds now, at once. It may
/// come back with its credential: that is not ours to take.
pub async fn revoke(State(api): State<Arc<Api>>, caller: Caller, at: At, input: Input) -> Answer {
    let mut fields = Fields::of(input.object(INVALID)?);
    let subject = fields.required_text("subject_id", SUBJECT);
    let reason = fields.text_or_blank("reason", REASON);
    // It goes out on streams, where a line break would end the field.
    if reason
        .as_deref()
        .is_some_and(|text| text.chars().any(char::is_control))
    {
        fields.wrong("reason", "must not contain control characters");
    }
    fields.end(INVALID)?;
    let reason = reason.as_deref().unwrap_or(REVOKED_REASON);

    let now = caller.author(&api).at;
    let mut tx = api.store.begin("revoke a subject").await?;
    if !tx.zones().is_open(&at.zone).await? {
        return Err(no_zone(&at.zone));
    }
    let not_before = latest(&api, now);
    let mut subjects = tx.subjects(&at.zone);
    let cut = subjects.cut_off(&subject, reason, not_before, now).await?;
    let cut = cut.ok_or_else(no_subject)?;
    let connections = tx
        .connections(&at.zone)
        .revoke_subject(&subject, now)
        .await?;
    let details = json!({
        "reason": reason,
        "authority_records": cut.records,
        "sessions": cut.sessions,
        "delegations": cut.delegations,
        "connections": connections,
    });
    caller.draft.does(Deed {
        action: "Subject authority revoked".to_owned(),
        entity_type: "subjects",
        entity_id: subject.clone(),
        details: details.as_object().cloned().unwrap_or_default(),
    });
    api.commit(tx, &at.zone).await?;
    tracing::info!(zone = %at.zone, request = %caller.request_id, by = %caller.actor.author(now).name,
        records = cut.records, sessions = cut.sessions, "subject authority revoked");
    wire::ok(json!({
        "subject_id": subject,
        "authority_records": cut.records,
        "sessions": cut.sessions,
        "delegations": cut.delegations,
        "connections": connections,
    }))
}

/// Ids may run ahead of the clock (after a restart, or when it was set back), and mandates are dated
/// by their id: the cut is at whichever is later.
fn latest(api: &Api, now: Timestamp) -> Timestamp {
    let by_id = uuid7_millis(&api.ids.uuid()).and_then(|ms| i64::try_from(ms).ok());
    let by_id = by_id.map_or(now, |ms| {
        Timestamp::from_unix_micros(ms.saturating_mul(1000))
    });
    now.max(by_id)
}
