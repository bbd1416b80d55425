//! Making Delegations, rule by rule (spec: coordinator §6.1, §7.1, §7.2, §17.8).

use std::sync::Arc;

use caracal_model::{ResourceId, Scopes};
use serde_json::json;

use super::world::*;
use crate::{
    Constraints, EdgeFacts, EdgeStatus, InheritError, NamedResource, NarrowError, Wish,
    effective_authority, inheritable, mirror, narrow, select_parent,
};

fn named(at: usize) -> NamedResource {
    let found = resource(at, "desk:read desk:write mail:send");
    NamedResource {
        id: found.id,
        identifier: found.identifier,
        scopes: found.scopes,
    }
}

/// A wish for one scope on resource 0, for five minutes.
fn wish() -> Wish {
    Wish {
        resource: Some(named(0)),
        constrained: Vec::new(),
        scopes: Scopes::parse("desk:read"),
        constraints: Constraints::default(),
        expires_at: Some(after(300)),
    }
}

fn parent() -> EdgeFacts {
    edge(0, 0, 0, 3)
}

fn code(parent: Option<&EdgeFacts>, wish: &Wish) -> &'static str {
    narrow(parent, wish, NOW).map_or_else(NarrowError::code, |_| "fine")
}

#[test]
fn a_root_passes_on_what_the_named_resources_declare() {
    let made = narrow(None, &wish(), NOW).unwrap();
    assert_eq!(made.resource_id, Some(ResourceId::trusted("res-0")));
    assert_eq!((made.parent_edge_id, made.broad), (None, false));
    let more = Wish {
        scopes: Scopes::parse("desk:read root:all"),
        ..wish()
    };
    assert_eq!(code(None, &more), "delegation_scopes_exceed_resource");
}

#[test]
fn the_end_is_said_by_the_body_or_a_constraint_and_lies_ahead() {
    let ends = |body, constraints| {
        narrow(
            None,
            &Wish {
                expires_at: body,
                constraints,
                ..wish()
            },
            NOW,
        )
        .map(|m| m.expires_at)
    };
    let ttl = Constraints {
        ttl_seconds: Some(60),
        ..Constraints::default()
    };
    let at = Constraints {
        expires_at: Some(after(90)),
        ..ttl.clone()
    };
    assert_eq!(
        ends(None, Constraints::default()),
        Err(NarrowError::ExpiryRequired)
    );
    assert_eq!(ends(None, ttl.clone()), Ok(after(60)));
    assert_eq!(ends(None, at.clone()), Ok(after(90)));
    assert_eq!(ends(Some(after(10)), at), Ok(after(10)));
    assert_eq!(ends(Some(NOW), ttl), Err(NarrowError::Expired));
    let late = Wish {
        expires_at: Some(NOW),
        ..wish()
    };
    assert_eq!(
        code(Some(&parent()), &late),
        "delegation_exceeds_parent_authority"
    );
}

#[test]
fn the_bound_resource_is_among_the_constrained_ones() {
    let only = |name: &str| Constraints {
        resources: Some([name.into()].into()),
        ..Default::default()
    };
    let both = Wish {
        constraints: only("resource://r1"),
        constrained: vec![named(1)],
        ..wish()
    };
    assert_eq!(code(None, &both), "delegation_resource_scope_mismatch");
    let same = Wish {
        constraints: only("resource://r0"),
        constrained: vec![named(0)],
        ..wish()
    };
    assert_eq!(code(None, &same), "fine");
    let by_row_id = Wish {
        constraints: only("res-0"),
        constrained: vec![named(0)],
        ..wish()
    };
    let made = narrow(None, &by_row_id, NOW).unwrap();
    assert_eq!(
        made.constraints.resources,
        Some(["resource://r0".into()].into())
    );
    let smuggled = Wish {
        constrained: vec![named(0), named(1)],
        ..same.clone()
    };
    assert_eq!(code(None, &smuggled), "delegation_resource_scope_mismatch");
    let lost = Wish {
        resource: None,
        constrained: Vec::new(),
        ..same
    };
    assert_eq!(code(None, &lost), "delegation_resource_scope_mismatch");
}

#[test]
fn a_broad_delegation_says_why() {
    let broad = Wish {
        resource: None,
        ..wish()
    };
    let made = narrow(None, &broad, NOW).unwrap();
    assert!(made.broad);
    assert_eq!(
        made.constraints.to_json(),
        json!({"policy_approved": true, "broad_reason": "resource_null_delegation"})
    );
    assert_eq!(
        code(
            Some(&EdgeFacts {
                resource_id: Some(named(0).id),
                ..parent()
            }),
            &broad
        ),
        "delegation_exceeds_parent_authority"
    );
}

#[test]
fn nothing_exceeds_the_parent() {
    let exceeds = "delegation_exceeds_parent_authority";
    let with = |change: &dyn Fn(&mut EdgeFacts), constraints: Constraints| {
        let mut parent = parent();
        change(&mut parent);
        code(
            Some(&parent),
            &Wish {
                constraints,
                ..wish()
            },
        )
    };
    let none = Constraints::default;
    assert_eq!(with(&|_| (), none()), "fine");
    assert_eq!(
        with(&|p| p.scopes = Scopes::parse("mail:send"), none()),
        exceeds
    );
    assert_eq!(with(&|p| p.expires_at = after(299), none()), exceeds);
    assert_eq!(with(&|p| p.expires_at = after(300), none()), "fine");

    let bound = |at| move |p: &mut EdgeFacts| p.resource_id = Some(named(at).id);
    assert_eq!(with(&bound(0), none()), "fine");
    assert_eq!(with(&bound(1), none()), exceeds);
    let constrained = |name: &'static str| {
        move |p: &mut EdgeFacts| p.constraints.resources = Some([Arc::from(name)].into())
    };
    assert_eq!(with(&constrained("resource://r0"), none()), "fine");
    assert_eq!(with(&constrained("resource://r1"), none()), exceeds);

    let hops = |hops| Constraints {
        max_hops: hops,
        ..none()
    };
    assert_eq!(with(&|p| p.constraints.max_hops = None, none()), exceeds);
    assert_eq!(with(&|p| p.constraints.max_hops = Some(2), none()), "fine");
    assert_eq!(with(&|_| (), hops(Some(2))), "fine");
    assert_eq!(with(&|_| (), hops(Some(3))), exceeds);

    let ttl = |ttl| Constraints {
        ttl_seconds: ttl,
        ..none()
    };
    let capped = |p: &mut EdgeFacts| p.constraints.ttl_seconds = Some(60);
    assert_eq!(with(&capped, none()), exceeds);
    assert_eq!(with(&capped, ttl(Some(61))), exceeds);
    assert_eq!(with(&capped, ttl(Some(60))), "fine");

    let budget = |budget| Constraints { budget, ..none() };
    let counted = |p: &mut EdgeFacts| p.constraints.budget = Some(2);
    assert_eq!(with(&counted, none()), "fine");
    assert_eq!(with(&counted, budget(Some(2))), "fine");
    assert_eq!(with(&counted, budget(Some(3))), exceeds);
}

#[test]
fn a_budget_does_not_vanish_on_the_way_down() {
    let mut parent = parent();
    parent.constraints.budget = Some(2);
    let made = narrow(Some(&parent), &wish(), NOW).unwrap();
    assert_eq!(made.constraints.budget, Some(1));
}

#[test]
fn the_parent_is_the_one_delegation_in_force() {
    let source = session(1, 0);
    let first = edge(0, 0, 0, 3);
    let second = EdgeFacts {
        id: edge_id(8),
        ..first.clone()
    };
    let dead = EdgeFacts {
        id: edge_id(9),
        status: EdgeStatus::Revoked,
        ..first.clone()
    };
    let elsewhere = EdgeFacts {
        id: edge_id(7),
        target_session_id: session_id(5),
        ..first.clone()
    };
    let select = |inbound: &[EdgeFacts], named: Option<usize>| {
        let named = named.map(edge_id);
        let found = select_parent(&source, inbound, named.as_ref(), NOW);
        found.map(|edge| edge.map(|edge| edge.id.clone()))
    };
    assert_eq!(select(&[], None), Ok(None));
    assert_eq!(
        select(&[first.clone(), dead.clone()], None),
        Ok(Some(edge_id(0)))
    );
    let two = [first.clone(), second];
    assert_eq!(select(&two, None), Err(NarrowError::ParentAmbiguous));
    assert_eq!(select(&two, Some(8)), Ok(Some(edge_id(8))));
    assert_eq!(select(&[first], Some(4)), Err(NarrowError::ParentNotActive));
    assert_eq!(select(&[dead], Some(9)), Err(NarrowError::ParentNotActive));
    assert_eq!(
        select(&[elsewhere], Some(7)),
        Err(NarrowError::ParentNotActive)
    );
}

#[test]
fn a_lapsed_child_fails_closed_and_a_session_of_its_own_is_a_root_again() {
    let mut source = session(1, 0);
    let lapsed = [EdgeFacts {
        expires_at: NOW,
        ..edge(0, 0, 0, 3)
    }];
    assert_eq!(select_parent(&source, &lapsed, None, NOW), Ok(None));
    source.parent_id = Some(session_id(5));
    assert_eq!(select_parent(&source, &lapsed, None, NOW), Ok(None));
    source.parent_id = Some(session_id(0));
    assert_eq!(
        select_parent(&source, &lapsed, None, NOW),
        Err(NarrowError::ParentNotActive)
    );
}

#[test]
fn a_child_inherits_the_one_delegation_in_force_of_its_application() {
    let held = edge(0, 0, 1, 1);
    let dead = EdgeFacts {
        id: edge_id(9),
        status: EdgeStatus::Revoked,
        ..held.clone()
    };
    let other = EdgeFacts {
        id: edge_id(8),
        ..held.clone()
    };
    let inherit = |inbound: &[EdgeFacts], heir, named: Option<usize>| {
        let named = named.map(edge_id);
        let found = inheritable(inbound, &session_id(1), &app(heir), named.as_ref(), NOW);
        found.map(|edge| edge.map(|edge| edge.id.clone()))
    };
    assert_eq!(inherit(&[], 1, None), Ok(None));
    assert_eq!(inherit(&[], 1, Some(0)), Err(InheritError::NotActive));
    assert_eq!(
        inherit(std::slice::from_ref(&held), 1, None),
        Ok(Some(edge_id(0)))
    );
    assert_eq!(
        inherit(std::slice::from_ref(&held), 0, None),
        Ok(None),
        "never across applications"
    );
    assert_eq!(
        inherit(std::slice::from_ref(&dead), 1, None),
        Err(InheritError::NotActive)
    );
    assert_eq!(
        inherit(&[held.clone(), dead], 1, None),
        Ok(Some(edge_id(0)))
    );
    let two = [held, other];
    assert_eq!(inherit(&two, 1, None), Err(InheritError::Ambiguous));
    assert_eq!(inherit(&two, 1, Some(8)), Ok(Some(edge_id(8))));
}

#[test]
fn a_mirrored_edge_copies_everything_but_its_ends() {
    let held = edge(0, 0, 1, 1);
    let copy = mirror(&held, edge_id(1), session_id(2));
    assert!(copy.mirrored);
    assert_eq!(copy.parent_edge_id, Some(edge_id(0)));
    assert_eq!(
        (&copy.source_session_id, &copy.target_session_id),
        (&session_id(1), &session_id(2))
    );
    assert_eq!(
        (&copy.issuer_application_id, &copy.receiver_application_id),
        (&app(1), &app(1))
    );
    assert_eq!(
        (&copy.scopes, &copy.constraints),
        (&held.scopes, &held.constraints)
    );
    assert_eq!(
        (&copy.resource_id, copy.expires_at),
        (&held.resource_id, held.expires_at)
    );
}

#[test]
fn effective_authority_sums_up_what_leads_here() {
    let mut first = edge(0, 0, 0, 3);
    first.resource_id = Some(named(0).id);
    let mut second = EdgeFacts {
        id: edge_id(8),
        ..edge(0, 1, 0, 2)
    };
    second.scopes = Scopes::parse("desk:read mail:send");
    second.constraints.resources = Some(["resource://r1".into()].into());
    second.constraints.ttl_seconds = Some(60);
    second.expires_at = after(30);
    let dead = EdgeFacts {
        id: edge_id(9),
        status: EdgeStatus::Revoked,
        ..edge(0, 0, 0, 1)
    };
    let identifier = |_: &ResourceId| Some(named(0).identifier);
    let sum = effective_authority(&session_id(1), &[second, first, dead], NOW, identifier);
    assert_eq!(
        sum.to_json(),
        json!({
            "agent_session_id": "s1", "inbound_edges": ["e0", "e8"],
            "effective_scopes": ["desk:read"], "effective_resource_ids": ["res-0"],
            "effective_resources": ["resource://r0", "resource://r1"],
            "effective_resource_constrained": true, "effective_max_hops": 2,
            "effective_ttl_seconds": 60, "earliest_expires_at": after(30).iso_millis(),
        })
    );
    let nothing = effective_authority(&session_id(4), &[], NOW, identifier);
    assert_eq!(
        nothing.to_json(),
        json!({
            "agent_session_id": "s4", "inbound_edges": [], "effective_scopes": [],
            "effective_resources": [], "effective_max_hops": 0, "effective_ttl_seconds": null,
            "earliest_expires_at": null,
        })
    );
}
