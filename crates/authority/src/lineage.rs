//! The lineage of a Delegation, and what authority is left at its leaf (spec: sts §9, §20.6;
//! coordinator §17.8, §17.9).
//!
//! INVARIANT (narrowing): what comes out is the intersection over the whole path, so nothing that
//! an ancestor did not hold can be granted, however the edges came to be stored.
//!
//! INVARIANT (hops): `max_hops` is what remains. Each Delegation's value is at least one more than
//! the number of Delegations below it that are not mirrored; mirrored ones use no hop.

use caracal_model::limits::MAX_PATH;
use caracal_model::{
    ApplicationId, ChainHop, DelegationId, Refusal, Refused, Scopes, SessionId, Timestamp,
};

use crate::facts::{EdgeFacts, ResourceFacts, SessionFacts};

/// Whether each Session on the path is there and may act.
pub trait Sessions {
    /// The Session, when its zone has it.
    fn session(&self, id: &SessionId) -> Option<&SessionFacts>;
    /// Whether the user's authority record that the Session is anchored to stands. True for
    /// Sessions that are anchored to an application's own record.
    fn anchor_stands(&self, session: &SessionFacts) -> bool;
}

/// A lineage that holds, from root to leaf, and what it leaves.
#[derive(Clone, Debug)]
pub struct Lineage<'a> {
    path: Vec<&'a EdgeFacts>,
    /// Scopes that every Delegation on the path carries.
    pub scopes: Scopes,
    /// When the first of them ends, or the Session at its end.
    pub expires_at: Timestamp,
    /// The shortest lifetime of a mandate that any of them names, in seconds.
    pub ttl_cap: Option<u32>,
}

fn denied(why: impl Into<std::borrow::Cow<'static, str>>) -> Refused {
    Refusal::AccessDenied.because(why)
}

impl<'a> Lineage<'a> {
    /// Checks a path from root to leaf for its presenter.
    ///
    /// # Errors
    /// 403 `access_denied` that names the gate that failed.
    pub fn check(
        path: Vec<&'a EdgeFacts>,
        sessions: &impl Sessions,
        presenter: (&ApplicationId, &SessionId),
        now: Timestamp,
    ) -> Result<Self, Refused> {
        let Some(leaf) = path.last().copied() else {
            return Err(denied("the delegation does not exist in this zone"));
        };
        check_presenter(leaf, presenter)?;
        check_shape(&path)?;
        check_hops(&path)?;
        let mut scopes = leaf.scopes.clone();
        let mut expires_at = leaf.expires_at;
        let mut ttl_cap = None;
        for edge in &path {
            check_edge(edge, now)?;
            check_end(sessions, &edge.source_session_id, &edge.issuer_application_id, now)?;
            check_end(sessions, &edge.target_session_id, &edge.receiver_application_id, now)?;
            scopes = scopes.intersect(&edge.scopes);
            expires_at = expires_at.min(edge.expires_at);
            expires_at = edge.constraints.expires_at.map_or(expires_at, |at| at.min(expires_at));
            ttl_cap = shorter(ttl_cap, edge.constraints.ttl_seconds);
        }
        let ends = sessions.session(&leaf.target_session_id).and_then(|session| session.ends_at);
        expires_at = ends.map_or(expires_at, |at| at.min(expires_at));
        Ok(Self { path, scopes, expires_at, ttl_cap })
    }

    /// The Delegation that was presented.
    pub fn leaf(&self) -> Option<&'a EdgeFacts> {
        self.path.last().copied()
    }

    /// Whether every Delegation on the path reaches this resource.
    pub fn reaches(&self, resource: &ResourceFacts) -> bool {
        self.path.iter().all(|edge| edge_reaches(edge, resource))
    }

    /// Delegation ids from root to leaf.
    pub fn ids(&self) -> Vec<DelegationId> {
        self.path.iter().map(|edge| edge.id.clone()).collect()
    }

    /// One hop a Delegation as its issuer, then the receiver without one.
    pub fn chain(&self) -> Vec<ChainHop> {
        let hops = self.path.iter().map(|edge| ChainHop {
            application_id: edge.issuer_application_id.clone(),
            agent_session_id: Some(edge.source_session_id.clone()),
            delegation_edge_id: Some(edge.id.clone()),
        });
        let receiver = self.leaf().map(|leaf| ChainHop {
            application_id: leaf.receiver_application_id.clone(),
            agent_session_id: Some(leaf.target_session_id.clone()),
            delegation_edge_id: None,
        });
        hops.chain(receiver).collect()
    }

    /// How many Delegations, mirrored ones included.
    pub fn hop_count(&self) -> u32 {
        u32::try_from(self.path.len()).unwrap_or(u32::MAX)
    }
}

/// Whether one Delegation reaches a resource: bound to it, or to its identifier, or unbound.
pub fn edge_reaches(edge: &EdgeFacts, resource: &ResourceFacts) -> bool {
    let bound = edge.resource_id.as_ref().is_none_or(|id| *id == resource.id);
    let named = match &edge.constraints.resources {
        Some(named) if !named.is_empty() => named.contains(&*resource.identifier),
        _ => true,
    };
    bound && named
}

fn shorter(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn check_presenter(
    leaf: &EdgeFacts,
    (application, session): (&ApplicationId, &SessionId),
) -> Result<(), Refused> {
    if leaf.target_session_id != *session {
        return Err(denied("the delegation was given to another session"));
    }
    if leaf.receiver_application_id != *application {
        return Err(denied("the delegation was given to another application"));
    }
    Ok(())
}

fn check_shape(path: &[&EdgeFacts]) -> Result<(), Refused> {
    if path.len() > MAX_PATH {
        return Err(denied("the delegation path is longer than 10"));
    }
    if path.first().is_some_and(|root| root.parent_edge_id.is_some()) {
        return Err(denied("the delegation path does not reach a root"));
    }
    for (above, below) in path.iter().zip(path.iter().skip(1)) {
        let joined = below.parent_edge_id.as_ref() == Some(&above.id)
            && above.target_session_id == below.source_session_id
            && above.receiver_application_id == below.issuer_application_id;
        if !joined {
            return Err(denied("the delegation path is broken"));
        }
    }
    Ok(())
}

fn check_hops(path: &[&EdgeFacts]) -> Result<(), Refused> {
    let mut below = 0;
    for edge in path.iter().rev() {
        if edge.max_hops() < 1 + below {
            return Err(denied("the delegation path has more hops than max_hops allows"));
        }
        if !edge.mirrored {
            below += 1;
        }
    }
    Ok(())
}

fn check_edge(edge: &EdgeFacts, now: Timestamp) -> Result<(), Refused> {
    let in_time = edge.constraints.expires_at.is_none_or(|at| at > now);
    if edge.is_live(now) && in_time {
        return Ok(());
    }
    Err(denied("a delegation on the path was revoked or has expired"))
}

fn check_end(
    sessions: &impl Sessions,
    id: &SessionId,
    application: &ApplicationId,
    now: Timestamp,
) -> Result<(), Refused> {
    let Some(session) = sessions.session(id) else {
        return Err(denied("a session on the delegation path does not exist in this zone"));
    };
    if session.application_id != *application {
        return Err(denied("a session on the delegation path belongs to another application"));
    }
    if !session.is_live(now) || !sessions.anchor_stands(session) {
        return Err(denied("a session on the delegation path is not live"));
    }
    Ok(())
}
