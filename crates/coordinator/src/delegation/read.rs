//! Reading Delegations (spec: coordinator §7.2; README decision 15).

use axum::extract::State;
use caracal_model::DelegationId;
use caracal_store::delegations::{EdgeList, EdgeRow};
use serde_json::{Value, json};

use super::render;
use crate::answer::Answer;
use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::query::Page;
use crate::service::Coordinator;
use crate::session;

/// Edges that a bare array holds at most: whoever has more must page.
const BARE_PAGES: usize = 20;
const BARE_LIMIT: u32 = 500;

/// `GET /zones/{zone}/delegations/active`
pub async fn active(State(coordinator): State<Coordinator>, call: Call) -> Result<Answer, Failure> {
    let page = call.query.page()?;
    let now = coordinator.clock.now();
    let rows = rows(&coordinator, &call, EdgeList::Active(now), &page).await?;
    Ok(Answer::ok(&page.envelope(&rows, id, |edge| {
        let mut body = render(&call.zone, edge);
        if let Value::Object(members) = &mut body {
            let reason = edge.constraints_json.get("broad_reason").cloned();
            members.insert("broad_reason".to_owned(), reason.unwrap_or(Value::Null));
        }
        body
    })))
}

/// `GET /zones/{zone}/delegations/inbound/{session}`
pub async fn inbound(
    State(coordinator): State<Coordinator>,
    call: Call,
) -> Result<Answer, Failure> {
    let session = call.session();
    of_session(&coordinator, &call, EdgeList::Inbound(&session)).await
}

/// `GET /zones/{zone}/delegations/outbound/{session}`
pub async fn outbound(
    State(coordinator): State<Coordinator>,
    call: Call,
) -> Result<Answer, Failure> {
    let session = call.session();
    of_session(&coordinator, &call, EdgeList::Outbound(&session)).await
}

/// `GET /zones/{zone}/delegations/inbound/{session}/{id}`
pub async fn inbound_one(
    State(coordinator): State<Coordinator>,
    call: Call,
) -> Result<Answer, Failure> {
    let now = coordinator.clock.now();
    let edge = coordinator
        .store
        .zone(&call.zone)
        .delegations()
        .get(&call.delegation())
        .await?;
    let edge = edge
        .filter(|edge| edge.is_live(now) && edge.target_session_id == call.session())
        .filter(|edge| call.caller.is_admin() || call.caller.is(&edge.receiver_application_id))
        .ok_or(Code::DelegationNotFound)?;
    Ok(Answer::ok(&json!({
        "id": edge.id,
        "status": edge.status.as_str(),
        "expires_at": edge.expires_at.iso_millis(),
    })))
}

async fn of_session(
    coordinator: &Coordinator,
    call: &Call,
    list: EdgeList<'_>,
) -> Result<Answer, Failure> {
    let page = call.query.page()?;
    if !call.caller.is_admin() {
        let row = session::get(coordinator, &call.zone, &call.session()).await?;
        if !call.caller.is(&row.application_id) {
            return Err(Code::SessionNotFound.into());
        }
    }
    // The published admin clients iterate over a bare array.
    if call.caller.is_operator() && !call.query.is_paged() {
        return bare(coordinator, call, list).await;
    }
    let rows = rows(coordinator, call, list, &page).await?;
    Ok(Answer::ok(
        &page.envelope(&rows, id, |edge| render(&call.zone, edge)),
    ))
}

async fn bare(
    coordinator: &Coordinator,
    call: &Call,
    list: EdgeList<'_>,
) -> Result<Answer, Failure> {
    let edges = coordinator.store.zone(&call.zone).delegations();
    let mut items = Vec::new();
    let mut before: Option<String> = None;
    for _ in 0..BARE_PAGES {
        let rows = edges
            .page(list, None, before.as_deref(), BARE_LIMIT)
            .await?;
        items.extend(rows.iter().map(|edge| render(&call.zone, edge)));
        match rows.last() {
            Some(last) if u32::try_from(rows.len()).is_ok_and(|count| count == BARE_LIMIT) => {
                before = Some(last.id.to_string());
            }
            _ => break,
        }
    }
    Ok(Answer::ok(&Value::Array(items)))
}

async fn rows(
    coordinator: &Coordinator,
    call: &Call,
    list: EdgeList<'_>,
    page: &Page,
) -> Result<Vec<EdgeRow>, Failure> {
    let edges = coordinator.store.zone(&call.zone).delegations();
    let visible_to = call.caller.reads_as();
    if let Some(cursor) = &page.cursor {
        let at = edges.get(&DelegationId::trusted(cursor.as_str())).await?;
        let in_list = |edge: &EdgeRow| match list {
            EdgeList::Active(_) => true,
            EdgeList::Inbound(session) => edge.target_session_id == *session,
            EdgeList::Outbound(session) => edge.source_session_id == *session,
        };
        let is_visible = |edge: &EdgeRow| {
            visible_to.is_none_or(|to| {
                edge.issuer_application_id == *to || edge.receiver_application_id == *to
            })
        };
        if !at.is_some_and(|edge| in_list(&edge) && is_visible(&edge)) {
            return Err(Code::InvalidCursor.into());
        }
    }
    Ok(edges
        .page(list, visible_to, page.cursor.as_deref(), page.limit)
        .await?)
}

fn id(edge: &EdgeRow) -> String {
    edge.id.to_string()
}
