//! Where a Delegation leads, for administrators (spec: coordinator §7.2).

use std::collections::BTreeSet;

use axum::extract::State;
use caracal_store::delegations::Hop;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::service::Coordinator;

/// `GET /zones/{zone}/delegations/{id}/traverse`
pub async fn traverse(
    State(coordinator): State<Coordinator>,
    call: Call,
) -> Result<Answer, Failure> {
    let hops = hops(&coordinator, &call).await?;
    Ok(Answer::ok(&Value::Array(hops.iter().map(render).collect())))
}

/// `GET /zones/{zone}/delegations/{id}/impact`
pub async fn impact(State(coordinator): State<Coordinator>, call: Call) -> Result<Answer, Failure> {
    let hops = hops(&coordinator, &call).await?;
    let edges = coordinator.store.zone(&call.zone).delegations();
    if hops.is_empty() && edges.get(&call.delegation()).await?.is_none() {
        return Err(Code::DelegationNotFound.into());
    }
    let sessions: BTreeSet<&str> = hops.iter().map(|hop| hop.target.as_str()).collect();
    let records: BTreeSet<&str> = hops.iter().map(|hop| hop.record.as_str()).collect();
    Ok(Answer::ok(&json!({
        "edge_id": call.delegation(),
        "affected_edges": hops.iter().map(render).collect::<Vec<_>>(),
        "affected_sessions": sessions,
        // Two of the published admin clients read this name.
        "affected_agents": sessions,
        "affected_authority_records": records,
    })))
}

async fn hops(coordinator: &Coordinator, call: &Call) -> Result<Vec<Hop>, Failure> {
    if !call.caller.is_admin() {
        return Err(Code::CoordinatorAdminRequired.into());
    }
    let now = coordinator.clock.now();
    let edges = coordinator.store.zone(&call.zone).delegations();
    Ok(edges.traverse(&call.delegation(), now).await?)
}

fn render(hop: &Hop) -> Value {
    json!({
        "id": hop.id,
        "source_session_id": hop.source,
        "target_session_id": hop.target,
        "depth": hop.depth,
    })
}
