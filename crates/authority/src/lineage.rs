//! A lineage: the Delegations from a root to the one that is presented, and what is left of the
//! root's authority at its end (spec: sts §9 and §20.6, coordinator §17.9).
//!
//! **Forces.** Each Delegation was checked against its parent when it was made, and revoking one
//! revokes what hangs below it. Both happen elsewhere and earlier; a mandate is minted here, now.
//!
//! **Choice.** Nothing is taken on trust from creation. Every edge must be in force, every Session
//! live, every link fit the next, and every dimension of authority is intersected over the whole
//! path. The cost is a few comparisons over ten edges at most.

use std::sync::Arc;

use caracal_model::limits::MAX_PATH;
use caracal_model::{
    ApplicationId, ChainHop, DelegationId, RecordId, Refusal, Refused, Scopes, SessionId,
    SubjectType, Timestamp,
};

use crate::facts::{EdgeFacts, RecordFacts, ResourceFacts, SessionFacts};

/// The Sessions and authority records that a decision may need. Both lists are short (a path has
/// ten edges at most), so they are searched, not indexed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// Sessions of the zone: those of the lineage and the presenting one.
    pub sessions: &'a [Arc<SessionFacts>],
    /// Authority records of the zone: the presented one, and those of users that Sessions hang on.
    pub records: &'a [Arc<RecordFacts>],
}

impl<'a> Known<'a> {
    /// The record with this id, in force.
    pub fn live_record(&self, id: &RecordId, now: Timestamp) -> Option<&'a RecordFacts> {
        let found = self.records.iter().find(|record| record.id == *id)?;
        found.is_live(now).then_some(&**found)
    }

    /// The Session with this id, live; one that hangs on a user needs that user's record in force.
    pub fn live_session(&self, id: &SessionId, now: Timestamp) -> Option<&'a SessionFacts> {
        let found = self.sessions.iter().find(|session| session.id == *id)?;
        let anchored = match found.subject_type {
            SubjectType::Application => true,
            SubjectType::User => self.live_record(&found.subject_record_id, now).is_some(),
        };
        (anchored && found.is_live(now)).then_some(&**found)
    }
}

/// Why a lineage carries no authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum LineageError {
    /// No edge of that id.
    #[error("delegation not found")]
    Unknown,
    /// An edge was revoked or has expired.
    #[error("delegation is not active")]
    NotActive,
    /// A Session on the path is not live.
    #[error("a session of the delegation is not live")]
    SessionNotLive,
    /// The presented edge leads to another Session.
    #[error("delegation does not lead to this session")]
    OtherSession,
    /// The presented edge leads to another application.
    #[error("delegation does not lead to this application")]
    OtherApplication,
    /// Links do not fit each other, or their Sessions.
    #[error("delegation lineage is inconsistent")]
    Inconsistent,
    /// More edges than a path may have.
    #[error("delegation path is too long")]
    TooLong,
    /// An edge allows fewer hops than follow it.
    #[error("delegation allows no further hop")]
    OutOfHops,
}

impl From<LineageError> for Refused {
    fn from(error: LineageError) -> Self {
        Refusal::AccessDenied.because(error.to_string())
    }
}

/// A path that was checked, and what every edge of it allows.
#[derive(Clone, Debug)]
pub struct Lineage<'a> {
    edges: &'a [Arc<EdgeFacts>],
    leaf: &'a EdgeFacts,
    scopes: Scopes,
    expires_at: Timestamp,
    ttl_seconds: Option<u32>,
}

impl<'a> Lineage<'a> {
    /// Checks the path from root to leaf for `caller`, who presents the leaf from `session`.
    ///
    /// # Errors
    /// [`LineageError`] naming the first thing that does not hold.
    pub fn check(
        edges: &'a [Arc<EdgeFacts>],
        known: Known<'a>,
        caller: &ApplicationId,
        session: &SessionId,
        now: Timestamp,
    ) -> Result<Self, LineageError> {
        let (Some(root), Some(leaf)) = (edges.first(), edges.last()) else {
            return Err(LineageError::Unknown);
        };
        if leaf.target_session_id != *session {
            return Err(LineageError::OtherSession);
        }
        if leaf.receiver_application_id != *caller {
            return Err(LineageError::OtherApplication);
        }
        if edges.len() > MAX_PATH {
            return Err(LineageError::TooLong);
        }
        if root.parent_edge_id.is_some() {
            return Err(LineageError::Inconsistent);
        }
        for edge in edges {
            check_edge(edge, known, now)?;
        }
        check_links(edges)?;
        check_hops(edges)?;
        let (scopes, expires_at, ttl_seconds) = intersect(root, edges);
        if expires_at <= now {
            return Err(LineageError::NotActive);
        }
        Ok(Self {
            edges,
            leaf,
            scopes,
            expires_at,
            ttl_seconds,
        })
    }

    /// The Delegation that is presented.
    pub fn leaf(&self) -> &'a EdgeFacts {
        self.leaf
    }

    /// The scopes that every edge carries.
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// The earliest expiry, of edges and of their constraints.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The shortest lifetime that a constraint sets for mandates.
    pub fn ttl_seconds(&self) -> Option<u32> {
        self.ttl_seconds
    }

    /// Whether every edge admits this resource.
    pub fn admits(&self, resource: &ResourceFacts) -> bool {
        self.edges.iter().all(|edge| {
            edge.resource_id
                .as_ref()
                .is_none_or(|only| *only == resource.id)
                && edge.constraints.admit_resource(&resource.identifier)
        })
    }

    /// The ids from root to leaf.
    pub fn path(&self) -> impl ExactSizeIterator<Item = &'a DelegationId> {
        self.edges.iter().map(|edge| &edge.id)
    }

    /// One hop for each edge as its issuer, then the receiver.
    pub fn chain(&self) -> Vec<ChainHop> {
        let issuers = self.edges.iter().map(|edge| ChainHop {
            application_id: edge.issuer_application_id.clone(),
            agent_session_id: Some(edge.source_session_id.clone()),
            delegation_edge_id: Some(edge.id.clone()),
        });
        let receiver = ChainHop {
            application_id: self.leaf.receiver_application_id.clone(),
            agent_session_id: Some(self.leaf.target_session_id.clone()),
            delegation_edge_id: None,
        };
        issuers.chain([receiver]).collect()
    }
}

fn check_edge(edge: &EdgeFacts, known: Known<'_>, now: Timestamp) -> Result<(), LineageError> {
    if !edge.is_live(now) {
        return Err(LineageError::NotActive);
    }
    let session = |id| {
        known
            .live_session(id, now)
            .ok_or(LineageError::SessionNotLive)
    };
    let source = session(&edge.source_session_id)?;
    let target = session(&edge.target_session_id)?;
    let fits = source.application_id == edge.issuer_application_id
        && target.application_id == edge.receiver_application_id;
    if fits {
        Ok(())
    } else {
        Err(LineageError::Inconsistent)
    }
}

/// Each edge starts where its parent ends. No Session is passed twice: creation refuses circles,
/// so a path with one was not made by us.
fn check_links(edges: &[Arc<EdgeFacts>]) -> Result<(), LineageError> {
    let fits = edges
        .iter()
        .zip(edges.iter().skip(1))
        .all(|(parent, child)| {
            child.parent_edge_id.as_ref() == Some(&parent.id)
                && parent.target_session_id == child.source_session_id
                && parent.receiver_application_id == child.issuer_application_id
        });
    let circle = edges.iter().enumerate().any(|(at, edge)| {
        let onward = edges.iter().skip(at);
        onward
            .map(|later| &later.target_session_id)
            .any(|later| *later == edge.source_session_id)
    });
    let orphan_mirror = edges.first().is_some_and(|root| root.mirrored);
    if fits && !circle && !orphan_mirror {
        Ok(())
    } else {
        Err(LineageError::Inconsistent)
    }
}

/// INVARIANT (hops): an edge allows `max_hops` Delegations from itself on. A mirrored edge is the
/// same Delegation held by a child Session, so it is not counted.
fn check_hops(edges: &[Arc<EdgeFacts>]) -> Result<(), LineageError> {
    let mut below = 0;
    for edge in edges.iter().rev() {
        if edge.max_hops() < 1 + below {
            return Err(LineageError::OutOfHops);
        }
        below += u32::from(!edge.mirrored);
    }
    Ok(())
}

fn intersect(root: &EdgeFacts, edges: &[Arc<EdgeFacts>]) -> (Scopes, Timestamp, Option<u32>) {
    let mut scopes = root.scopes.clone();
    let mut expires_at = root.expires_at;
    let mut ttl_seconds = None;
    for edge in edges {
        if !scopes.is_within(&edge.scopes) {
            scopes = scopes.intersect(&edge.scopes);
        }
        expires_at = expires_at.min(edge.expires_at);
        expires_at = edge
            .constraints
            .expires_at
            .map_or(expires_at, |at| at.min(expires_at));
        ttl_seconds = [ttl_seconds, edge.constraints.ttl_seconds]
            .into_iter()
            .flatten()
            .min();
    }
    (scopes, expires_at, ttl_seconds)
}
