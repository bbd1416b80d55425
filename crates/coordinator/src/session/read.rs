//! Reading Sessions (spec: coordinator §6.2, §17.14): an application sees its own and the children
//! of its own; an administrator sees the zone.

use axum::extract::State;
use caracal_authority::effective_authority;
use caracal_model::{SessionId, ZoneId};
use caracal_store::sessions::{SessionFilter, SessionRow};
use serde_json::{Value, json};

use super::{get, summary, time};
use crate::answer::Answer;
use crate::call::Call;
use crate::facts;
use crate::failure::{Code, Failure};
use crate::service::Coordinator;

/// `GET /zones/{zone}/agents`
pub async fn list(State(coordinator): State<Coordinator>, call: Call) -> Result<Answer, Failure> {
    page(&coordinator, &call, None, whole).await
}

/// `GET /zones/{zone}/agents/{id}/children`
pub async fn children(
    State(coordinator): State<Coordinator>,
    call: Call,
) -> Result<Answer, Failure> {
    page(&coordinator, &call, Some(&call.session()), child).await
}

async fn page(
    coordinator: &Coordinator,
    call: &Call,
    parent: Option<&SessionId>,
    render: fn(&ZoneId, &SessionRow) -> Value,
) -> Result<Answer, Failure> {
    let page = call.query.page()?;
    let statuses = ["active", "suspended", "terminated", "expired"];
    let filter = SessionFilter {
        status: call.query.word("status", &statuses)?,
        lifecycle: call.query.word("lifecycle", &["task", "service"])?,
        application: call.query.text("application_id", 128)?,
        label: call.query.text("label", 64)?,
        visible_to: call.caller.reads_as(),
    };
    let sessions = coordinator.store.zone(&call.zone).sessions();
    if let Some(cursor) = &page.cursor {
        let at = sessions.get(&SessionId::trusted(cursor.as_str())).await?;
        let in_list = |row: &SessionRow| parent.is_none() || row.parent_id.as_ref() == parent;
        let mut seen = false;
        if let Some(row) = at.filter(in_list) {
            seen = is_visible(coordinator, call, &row).await?;
        }
        if !seen {
            return Err(Code::InvalidCursor.into());
        }
    }
    let rows = sessions
        .page(parent, &filter, page.cursor.as_deref(), page.limit)
        .await?;
    let id = |row: &SessionRow| row.id.to_string();
    Ok(Answer::ok(
        &page.envelope(&rows, id, |row| render(&call.zone, row)),
    ))
}

/// `GET /zones/{zone}/agents/{id}`
pub async fn one(State(coordinator): State<Coordinator>, call: Call) -> Result<Answer, Failure> {
    let row = visible(&coordinator, &call, &call.session()).await?;
    Ok(Answer::ok(&whole(&call.zone, &row)))
}

/// `GET /zones/{zone}/agents/{id}/effective-authority`
pub async fn effective(
    State(coordinator): State<Coordinator>,
    call: Call,
) -> Result<Answer, Failure> {
    let session = call.session();
    if !call.caller.is_admin() {
        let row = get(&coordinator, &call.zone, &session).await?;
        if !call.caller.is(&row.application_id) {
            return Err(Code::SessionNotFound.into());
        }
    }
    let now = coordinator.clock.now();
    let inbound = coordinator
        .store
        .zone(&call.zone)
        .delegations()
        .inbound(&session)
        .await?;
    let inbound = inbound
        .iter()
        .map(facts::edge)
        .collect::<Result<Vec<_>, _>>()?;
    let zone = match coordinator.views.zone(&call.zone).await {
        Ok(zone) => Some(zone),
        // The operator may ask about a zone that does not exist: nobody has any authority in it.
        Err(caracal_view::ViewError::UnknownZone) => None,
        Err(error) => return Err(error.into()),
    };
    let sum = effective_authority(&session, &inbound, now, |id| {
        let zone = zone.as_ref()?;
        zone.resources
            .by_id(id)
            .map(|resource| resource.facts.identifier.clone())
    });
    Ok(Answer::ok(&sum.to_json()))
}

/// A Session that the caller may see; others do not exist for it.
async fn visible(
    coordinator: &Coordinator,
    call: &Call,
    id: &SessionId,
) -> Result<SessionRow, Failure> {
    let row = get(coordinator, &call.zone, id).await?;
    if is_visible(coordinator, call, &row).await? {
        Ok(row)
    } else {
        Err(Code::SessionNotFound.into())
    }
}

async fn is_visible(
    coordinator: &Coordinator,
    call: &Call,
    row: &SessionRow,
) -> Result<bool, Failure> {
    if call.caller.manages(&row.application_id) {
        return Ok(true);
    }
    let Some(parent) = &row.parent_id else {
        return Ok(false);
    };
    let parent = coordinator
        .store
        .zone(&call.zone)
        .sessions()
        .get(parent)
        .await?;
    Ok(parent.is_some_and(|parent| call.caller.is(&parent.application_id)))
}

fn with(mut body: Value, more: Value) -> Value {
    if let (Value::Object(members), Value::Object(more)) = (&mut body, more) {
        members.extend(more);
    }
    body
}

fn metadata(row: &SessionRow) -> Value {
    serde_json::from_str(&row.metadata_json).unwrap_or_else(|_| json!({}))
}

fn whole(zone: &ZoneId, row: &SessionRow) -> Value {
    let more = json!({
        "metadata": metadata(row),
        "terminated_at": time(row.terminated_at),
        "termination_reason": row.termination_reason,
    });
    with(summary(zone, row), more)
}

fn child(zone: &ZoneId, row: &SessionRow) -> Value {
    let mut body = with(summary(zone, row), json!({ "metadata": metadata(row) }));
    if let Value::Object(members) = &mut body {
        members.remove("lease_generation");
    }
    body
}
