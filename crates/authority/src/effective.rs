//! What a Session holds in sum, for people to read (spec: coordinator §7.2). Nothing is decided by
//! it: each mandate is minted under one Delegation.

use std::collections::BTreeSet;
use std::sync::Arc;

use caracal_model::{DelegationId, ResourceId, Scopes, SessionId, Timestamp};
use serde_json::{Value, json};

use crate::facts::EdgeFacts;

/// The sum over the live Delegations that lead to a Session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveAuthority {
    /// The Session.
    pub session: SessionId,
    /// The Delegations, in order of id.
    pub inbound: BTreeSet<DelegationId>,
    /// Scopes that all of them carry.
    pub scopes: Scopes,
    /// Resources that any of them is bound to, row ids.
    pub resource_ids: BTreeSet<ResourceId>,
    /// Identifiers of resources that any of them names.
    pub resources: BTreeSet<Arc<str>>,
    /// Whether each of them names resources.
    pub resource_constrained: bool,
    /// The fewest hops; 0 without a Delegation.
    pub max_hops: u32,
    /// The shortest lifetime.
    pub ttl_seconds: Option<u32>,
    /// The earliest expiry.
    pub expires_at: Option<Timestamp>,
}

/// Sums up; `identifier_of` finds the identifier of a bound resource.
pub fn effective_authority(
    session: &SessionId,
    inbound: &[EdgeFacts],
    now: Timestamp,
    identifier_of: impl Fn(&ResourceId) -> Option<Arc<str>>,
) -> EffectiveAuthority {
    let leads_here = |edge: &&EdgeFacts| edge.target_session_id == *session;
    let live: Vec<&EdgeFacts> = inbound
        .iter()
        .filter(leads_here)
        .filter(|edge| edge.is_live(now))
        .collect();
    let resource_ids: BTreeSet<ResourceId> = live
        .iter()
        .filter_map(|edge| edge.resource_id.clone())
        .collect();
    let constrained = live
        .iter()
        .filter_map(|edge| edge.constraints.resources.as_ref())
        .flatten();
    let resources = constrained
        .cloned()
        .chain(resource_ids.iter().filter_map(identifier_of))
        .collect();
    let names_resources =
        |edge: &&EdgeFacts| edge.resource_id.is_some() || edge.constraints.resources.is_some();
    EffectiveAuthority {
        session: session.clone(),
        inbound: live.iter().map(|edge| edge.id.clone()).collect(),
        scopes: live
            .iter()
            .map(|edge| edge.scopes.clone())
            .reduce(|all, one| all.intersect(&one))
            .unwrap_or_default(),
        resource_ids,
        resources,
        resource_constrained: live.iter().all(names_resources),
        max_hops: live.iter().map(|edge| edge.max_hops()).min().unwrap_or(0),
        ttl_seconds: live
            .iter()
            .filter_map(|edge| edge.constraints.ttl_seconds)
            .min(),
        expires_at: live.iter().map(|edge| edge.expires_at).min(),
    }
}

impl EffectiveAuthority {
    /// The answer of the wire; without a Delegation two members are left out.
    pub fn to_json(&self) -> Value {
        let mut answer = json!({
            "agent_session_id": self.session,
            "inbound_edges": self.inbound,
            "effective_scopes": self.scopes,
            "effective_resources": self.resources,
            "effective_max_hops": self.max_hops,
            "effective_ttl_seconds": self.ttl_seconds,
            "earliest_expires_at": self.expires_at.map(Timestamp::iso_millis),
        });
        if let Value::Object(members) = &mut answer
            && !self.inbound.is_empty()
        {
            members.insert("effective_resource_ids".into(), json!(self.resource_ids));
            members.insert(
                "effective_resource_constrained".into(),
                self.resource_constrained.into(),
            );
        }
        answer
    }
}
