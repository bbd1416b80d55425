//! `PATCH /zones/{zone}/delegations/{id}/revoke` (spec: coordinator §7.3).

use axum::extract::State;
use caracal_store::sessions::end::{Cut, Root};
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::call::Call;
use crate::failure::{Code, Failure};
use crate::service::Coordinator;
use crate::session::end::end;

/// Reason of everything that a revoked Delegation takes with it.
pub const REASON: &str = "delegation_revoked";

/// Revokes a Delegation and all that it leads to.
pub async fn revoke(State(coordinator): State<Coordinator>, call: Call) -> Result<Answer, Failure> {
    let wait = call.query.wait()?;
    let now = coordinator.clock.now();
    let zone = coordinator.store.zone(&call.zone);
    let edge = zone.delegations().get(&call.delegation()).await?;
    let edge = edge.ok_or(Code::DelegationNotFound)?;
    if !edge.is_live(now) {
        return Err(coordinator.refuse_over(Code::DelegationNotFound).await);
    }
    let may = call.caller.is_admin() || call.caller.delegates_from(&edge.issuer_application_id);
    if !may {
        return Err(Code::IssuerOwnershipRequired.into());
    }
    let target = zone.sessions().get(&edge.target_session_id).await?;
    let parent = target.and_then(|target| target.parent_id);
    let roots = [Root {
        id: edge.target_session_id,
        parent,
    }];
    let mut cut = Cut::of(&roots, REASON, now);
    cut.along = Some(&edge.id);
    cut.cut_off = true;
    let ended = end(&coordinator, &call.zone, &cut).await?;
    if ended.edges.is_empty() {
        return Err(coordinator.refuse_over(Code::DelegationNotFound).await);
    }
    let mut body = json!({
        "revoked_edges": ended.edges.len(),
        "affected_sessions": ended.records.len(),
        "terminated_sessions": ended.sessions.len(),
    });
    if let (Some(wait), Value::Object(members)) = (wait, &mut body) {
        let replicas = coordinator.prove(&call.zone, wait).await;
        members.insert("replicas".to_owned(), replicas);
    }
    Ok(Answer::ok(&body))
}
