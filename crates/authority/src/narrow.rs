//! Making a Delegation: what a Session may pass on of what it holds (spec: coordinator §7.1, rules
//! 2, 9 to 12 and 14, and §17.8). What needs the store (endpoints, circles) stays with the service.
//!
//! The literals here name every field and have no `..`: a new dimension of authority does not
//! compile until someone has said how it narrows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use caracal_model::{DelegationId, ResourceId, Scopes, Timestamp};

use crate::constraints::Constraints;
use crate::facts::{EdgeFacts, SessionFacts};

/// Stored when nobody says why a Delegation goes without a resource.
const BROAD_REASON: &str = "resource_null_delegation";

/// Why a Delegation is not made. The message is the wire code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NarrowError {
    /// Neither body nor constraints say when it ends.
    #[error("delegation_expiry_required")]
    ExpiryRequired,
    /// The bound resource is not among the constrained ones.
    #[error("delegation_resource_scope_mismatch")]
    ResourceScopeMismatch,
    /// A scope that no named resource declares.
    #[error("delegation_scopes_exceed_resource")]
    ScopesExceedResource,
    /// The parent that was named, or that the source had, is not in force.
    #[error("parent_delegation_not_active")]
    ParentNotActive,
    /// The source holds several Delegations and none was named.
    #[error("parent_delegation_ambiguous")]
    ParentAmbiguous,
    /// More than the parent allows.
    #[error("delegation_exceeds_parent_authority")]
    ExceedsParent,
    /// It would be over before it began.
    #[error("delegation_expired")]
    Expired,
}

impl NarrowError {
    /// The HTTP status that goes with the code.
    pub const fn status(self) -> u16 {
        match self {
            Self::ExpiryRequired | Self::ResourceScopeMismatch | Self::Expired => 400,
            Self::ScopesExceedResource | Self::ParentNotActive | Self::ExceedsParent => 403,
            Self::ParentAmbiguous => 409,
        }
    }

    /// The wire code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::ExpiryRequired => "delegation_expiry_required",
            Self::ResourceScopeMismatch => "delegation_resource_scope_mismatch",
            Self::ScopesExceedResource => "delegation_scopes_exceed_resource",
            Self::ParentNotActive => "parent_delegation_not_active",
            Self::ParentAmbiguous => "parent_delegation_ambiguous",
            Self::ExceedsParent => "delegation_exceeds_parent_authority",
            Self::Expired => "delegation_expired",
        }
    }
}

/// A resource that a wish names, resolved by the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedResource {
    /// Row id.
    pub id: ResourceId,
    /// URI.
    pub identifier: Arc<str>,
    /// Declared scopes.
    pub scopes: Scopes,
}

/// What somebody wants to pass on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The resource that it is to be bound to.
    pub resource: Option<NamedResource>,
    /// Every resource of `constraints.resources`, resolved; in any order.
    pub constrained: Vec<NamedResource>,
    /// Scopes.
    pub scopes: Scopes,
    /// Constraints of the request, merged ([`Constraints::from_request`]).
    pub constraints: Constraints,
    /// `expires_at` of the body.
    pub expires_at: Option<Timestamp>,
}

impl Wish {
    /// When the Delegation ends (rule 2): the body says so, else the constraints do.
    ///
    /// # Errors
    /// [`NarrowError::ExpiryRequired`] when nobody says.
    pub fn expiry(&self, now: Timestamp) -> Result<Timestamp, NarrowError> {
        expiry(self.expires_at, &self.constraints, now)
    }

    /// Whether it is to be valid for any resource.
    pub fn is_broad(&self) -> bool {
        self.resource.is_none() && self.constraints.resources.is_none()
    }

    /// Whether the bound resource is among the constrained ones, and those are the ones that were
    /// asked for (by identifier or row id), no fewer and no more: a set that lost its members on
    /// the way would read as no constraint at all.
    fn resources_agree(&self) -> bool {
        let Some(asked) = &self.constraints.resources else {
            return self.constrained.is_empty();
        };
        let is =
            |one: &NamedResource, name: &str| *one.identifier == *name || one.id.as_str() == name;
        let all_resolved = asked
            .iter()
            .all(|name| self.constrained.iter().any(|r| is(r, name)));
        let all_asked = self
            .constrained
            .iter()
            .all(|r| asked.iter().any(|name| is(r, name)));
        let holds = |bound: &NamedResource| self.constrained.iter().any(|r| r.id == bound.id);
        all_resolved && all_asked && self.resource.as_ref().is_none_or(holds)
    }

    fn named(&self) -> impl Iterator<Item = &NamedResource> {
        self.resource.iter().chain(&self.constrained)
    }
}

/// When a Delegation ends, before its resources are known (rule 2).
///
/// # Errors
/// [`NarrowError::ExpiryRequired`] when neither the body nor the constraints say.
pub fn expiry(
    body: Option<Timestamp>,
    constraints: &Constraints,
    now: Timestamp,
) -> Result<Timestamp, NarrowError> {
    let after = |seconds: u32| now.plus(Duration::from_secs(u64::from(seconds)));
    body.or(constraints.expires_at)
        .or(constraints.ttl_seconds.map(after))
        .ok_or(NarrowError::ExpiryRequired)
}

/// What a new Delegation carries; the service adds its ends and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Narrowed {
    /// The Delegation that it narrows.
    pub parent_edge_id: Option<DelegationId>,
    /// The resource that it is bound to.
    pub resource_id: Option<ResourceId>,
    /// Scopes.
    pub scopes: Scopes,
    /// Constraints as stored.
    pub constraints: Constraints,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Whether it is valid for any resource.
    pub broad: bool,
}

/// Which of the Delegations that lead to `source` a new one narrows (rule 11, and §17.8): `None`
/// when the source acts as a root. `inbound` holds those in every state.
///
/// # Errors
/// [`NarrowError::ParentNotActive`] when a named parent is not in force, or when a child Session's
/// Delegation from its parent has lapsed: such a child does not become a root by waiting.
/// [`NarrowError::ParentAmbiguous`] when several are in force and none is named.
pub fn select_parent<'e>(
    source: &SessionFacts,
    inbound: &'e [EdgeFacts],
    named: Option<&DelegationId>,
    now: Timestamp,
) -> Result<Option<&'e EdgeFacts>, NarrowError> {
    let leads_here = |edge: &&EdgeFacts| edge.target_session_id == source.id;
    let mut live = inbound
        .iter()
        .filter(leads_here)
        .filter(|edge| edge.is_live(now));
    if let Some(named) = named {
        let parent = live.find(|edge| edge.id == *named);
        return parent.map(Some).ok_or(NarrowError::ParentNotActive);
    }
    match (live.next(), live.next()) {
        (Some(_), Some(_)) => Err(NarrowError::ParentAmbiguous),
        (Some(parent), None) => Ok(Some(parent)),
        (None, _) if had_edge_from_parent(source, inbound) => Err(NarrowError::ParentNotActive),
        (None, _) => Ok(None),
    }
}

fn had_edge_from_parent(source: &SessionFacts, inbound: &[EdgeFacts]) -> bool {
    inbound.iter().any(|edge| {
        edge.target_session_id == source.id
            && source.parent_id.as_ref() == Some(&edge.source_session_id)
    })
}

/// What becomes of a wish under `parent`; a root (`None`) passes on whatever the named resources
/// declare.
///
/// # Errors
/// [`NarrowError`], in the order of the rules.
pub fn narrow(
    parent: Option<&EdgeFacts>,
    wish: &Wish,
    now: Timestamp,
) -> Result<Narrowed, NarrowError> {
    let expires_at = wish.expiry(now)?;
    if !wish.resources_agree() {
        return Err(NarrowError::ResourceScopeMismatch);
    }
    let declared = wish
        .named()
        .fold(Scopes::default(), |all, one| all.union(&one.scopes));
    if !wish.is_broad() && !wish.scopes.is_within(&declared) {
        return Err(NarrowError::ScopesExceedResource);
    }
    if let Some(parent) = parent {
        let within = expires_at > now
            && expires_at <= parent.expires_at
            && wish.scopes.is_within(&parent.scopes)
            && resources_are_within(wish, parent);
        if !within {
            return Err(NarrowError::ExceedsParent);
        }
    }
    if expires_at <= now {
        return Err(NarrowError::Expired);
    }
    Ok(Narrowed {
        parent_edge_id: parent.map(|parent| parent.id.clone()),
        resource_id: wish.resource.as_ref().map(|resource| resource.id.clone()),
        scopes: wish.scopes.clone(),
        constraints: narrow_constraints(parent, wish)?,
        expires_at,
        broad: wish.is_broad(),
    })
}

/// A child of a bound Delegation names that resource or, by constraint, nothing else; a child of a
/// constrained one names some of the constrained; below a broad one everything is narrower.
fn resources_are_within(wish: &Wish, parent: &EdgeFacts) -> bool {
    let names_any = wish.named().next().is_some();
    if let Some(only) = &parent.resource_id {
        names_any && wish.named().all(|named| named.id == *only)
    } else if let Some(within) = &parent.constraints.resources {
        names_any && wish.named().all(|named| within.contains(&named.identifier))
    } else {
        true
    }
}

fn narrow_constraints(parent: Option<&EdgeFacts>, wish: &Wish) -> Result<Constraints, NarrowError> {
    let asked = &wish.constraints;
    let above = parent.map(|parent| &parent.constraints);
    Ok(Constraints {
        // Checked by `resources_are_within`; stored as identifiers, which is what is compared.
        resources: asked
            .resources
            .as_ref()
            .map(|_| identifiers(&wish.constrained)),
        max_hops: hops(parent, asked)?,
        budget: budget(above, wish)?,
        ttl_seconds: lifetime(above, asked)?,
        // Only tightens: it caps mandates, not the Delegation.
        expires_at: earliest(asked.expires_at, above.and_then(|above| above.expires_at)),
        policy_approved: if wish.is_broad() {
            Some(true)
        } else {
            asked.policy_approved
        },
        broad_reason: match &asked.broad_reason {
            None if wish.is_broad() => Some(BROAD_REASON.into()),
            said => said.clone(),
        },
    })
}

fn identifiers(named: &[NamedResource]) -> BTreeSet<Arc<str>> {
    named
        .iter()
        .map(|resource| resource.identifier.clone())
        .collect()
}

fn hops(parent: Option<&EdgeFacts>, asked: &Constraints) -> Result<Option<u32>, NarrowError> {
    let enough = parent.is_none_or(|parent| {
        let left = parent.max_hops().saturating_sub(1);
        (1..=left).contains(&asked.max_hops.unwrap_or(1))
    });
    if enough {
        Ok(asked.max_hops)
    } else {
        Err(NarrowError::ExceedsParent)
    }
}

/// Below a budget there is always one, so that a grandchild cannot ask for more than its
/// grandparent had by leaving out the link between.
fn budget(above: Option<&Constraints>, wish: &Wish) -> Result<Option<u32>, NarrowError> {
    let Some(most) = above.and_then(|above| above.budget) else {
        return Ok(wish.constraints.budget);
    };
    let carried = u32::try_from(wish.scopes.len()).unwrap_or(u32::MAX).max(1);
    let asked = wish.constraints.budget.unwrap_or(carried);
    if asked <= most {
        Ok(Some(asked))
    } else {
        Err(NarrowError::ExceedsParent)
    }
}

fn lifetime(above: Option<&Constraints>, asked: &Constraints) -> Result<Option<u32>, NarrowError> {
    let Some(most) = above.and_then(|above| above.ttl_seconds) else {
        return Ok(asked.ttl_seconds);
    };
    let within = asked.ttl_seconds.filter(|ttl| *ttl <= most);
    within.map(Some).ok_or(NarrowError::ExceedsParent)
}

fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    [one, other].into_iter().flatten().min()
}
