//! Inheritance: a child Session holds its parent's Delegation as a mirrored edge (spec: coordinator
//! §6.1). It is the same authority held by one more Session of the same application, so it copies
//! everything unchanged and uses no hop.

use caracal_model::{ApplicationId, DelegationId, SessionId, Timestamp};

use crate::facts::{EdgeFacts, EdgeStatus};

/// Why a child cannot inherit. The message is the wire code, its status 409.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum InheritError {
    /// There is something to inherit, but it is not in force; or not the one that was named.
    #[error("inherit_parent_edge_not_active")]
    NotActive,
    /// Several are in force and none was named.
    #[error("inherit_parent_edge_ambiguous")]
    Ambiguous,
}

/// Which Delegation a child of application `heir` inherits from the Session `parent`; `None` when
/// there is nothing to inherit. `inbound` holds those that lead to the parent, in every state.
///
/// # Errors
/// [`InheritError`] when it cannot be told, or is not in force.
pub fn inheritable<'e>(
    inbound: &'e [EdgeFacts],
    parent: &SessionId,
    heir: &ApplicationId,
    named: Option<&DelegationId>,
    now: Timestamp,
) -> Result<Option<&'e EdgeFacts>, InheritError> {
    let considered = inbound.iter().filter(|edge| {
        edge.target_session_id == *parent
            && edge.receiver_application_id == *heir
            && named.is_none_or(|named| edge.id == *named)
    });
    let mut live = considered.clone().filter(|edge| edge.is_live(now));
    match (live.next(), live.next()) {
        (Some(_), Some(_)) => Err(InheritError::Ambiguous),
        (Some(edge), None) => Ok(Some(edge)),
        (None, _) if considered.count() > 0 || named.is_some() => Err(InheritError::NotActive),
        (None, _) => Ok(None),
    }
}

/// The edge under which `child` holds what its parent holds under `edge`.
pub fn mirror(edge: &EdgeFacts, id: DelegationId, child: SessionId) -> EdgeFacts {
    EdgeFacts {
        id,
        source_session_id: edge.target_session_id.clone(),
        target_session_id: child,
        issuer_application_id: edge.receiver_application_id.clone(),
        receiver_application_id: edge.receiver_application_id.clone(),
        parent_edge_id: Some(edge.id.clone()),
        mirrored: true,
        resource_id: edge.resource_id.clone(),
        scopes: edge.scopes.clone(),
        constraints: edge.constraints.clone(),
        constraints_json: edge.constraints_json.clone(),
        status: EdgeStatus::Active,
        expires_at: edge.expires_at,
    }
}
