//! Between stored rows and the facts of the kernel, which do not know each other.

use caracal_authority::{
    Constraints, EdgeFacts, EdgeStatus, Lifecycle, SessionFacts, SessionStatus,
};
use caracal_model::Timestamp;
use caracal_store::StoreError;
use caracal_store::delegations::{EdgeRow, EdgeStatus as StoredStatus};
use caracal_store::sessions::SessionRow;

fn corrupt(what: impl Into<String>) -> StoreError {
    StoreError::Corrupt { what: what.into() }
}

/// An edge.
///
/// # Errors
/// [`StoreError::Corrupt`] when its constraints are none of ours.
pub fn edge(row: &EdgeRow) -> Result<EdgeFacts, StoreError> {
    let constraints = Constraints::parse(&row.constraints_json)
        .map_err(|error| corrupt(format!("constraints of delegation {}: {error}", row.id)))?;
    Ok(EdgeFacts {
        id: row.id.clone(),
        source_session_id: row.source_session_id.clone(),
        target_session_id: row.target_session_id.clone(),
        issuer_application_id: row.issuer_application_id.clone(),
        receiver_application_id: row.receiver_application_id.clone(),
        parent_edge_id: row.parent_edge_id.clone(),
        mirrored: row.mirrored,
        resource_id: row.resource_id.clone(),
        scopes: row.scopes.clone(),
        constraints,
        constraints_json: row.constraints_json.clone(),
        status: EdgeStatus::parse(row.status.as_str()).ok_or_else(|| corrupt("edge status"))?,
        expires_at: row.expires_at,
    })
}

/// A Session.
///
/// # Errors
/// [`StoreError::Corrupt`], which the words of both enums rule out.
pub fn session(row: &SessionRow) -> Result<SessionFacts, StoreError> {
    let lifecycle = Lifecycle::parse(row.lifecycle.as_str());
    let status = SessionStatus::parse(row.status.as_str());
    Ok(SessionFacts {
        id: row.id.clone(),
        application_id: row.application_id.clone(),
        parent_id: row.parent_id.clone(),
        subject_record_id: row.subject_record_id.clone(),
        subject_type: row.subject_type,
        lifecycle: lifecycle.ok_or_else(|| corrupt("session lifecycle"))?,
        labels: row
            .labels
            .iter()
            .map(|label| label.as_str().into())
            .collect(),
        status: status.ok_or_else(|| corrupt("session status"))?,
        depth: row.depth,
        started_at: row.started_at,
        ends_at: row.ends_at,
        heartbeat_deadline_at: row.heartbeat_deadline_at,
    })
}

/// An edge to be written.
pub fn new_edge(facts: EdgeFacts, now: Timestamp) -> EdgeRow {
    EdgeRow {
        id: facts.id,
        source_session_id: facts.source_session_id,
        target_session_id: facts.target_session_id,
        issuer_application_id: facts.issuer_application_id,
        receiver_application_id: facts.receiver_application_id,
        parent_edge_id: facts.parent_edge_id,
        mirrored: facts.mirrored,
        resource_id: facts.resource_id,
        scopes: facts.scopes,
        constraints_json: facts.constraints_json,
        status: StoredStatus::Active,
        edge_version: 0,
        expires_at: facts.expires_at,
        created_at: now,
        revoked_at: None,
    }
}
