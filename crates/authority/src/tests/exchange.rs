//! Exchanges that grant, and what becomes of each resource (spec: sts §2.5, §2.6).

use crate::decide;
use crate::decide::{Class, CredentialFault, Outcome, Standing};
use caracal_model::policy::PolicyFault;
use caracal_model::{Refusal, TokenUse};
use serde_json::json;

use super::world::*;

fn both(world: &mut World) {
    world.requested = vec!["resource://r0".to_owned(), "resource://r1".to_owned()];
}

#[test]
fn a_delegated_exchange_mints_a_gateway_mandate_of_its_lineage() {
    let world = World::chain(&[0, 1, 2], &[(2, false), (1, false)]);
    let decision = world.decide(Class::Delegated, Says::allow());
    assert_eq!(evidence(&decision), ["allow complete"]);
    let mandate = serde_json::to_value(granted(&decision)).unwrap();
    let now = NOW.unix_seconds();
    assert_eq!(
        mandate,
        json!({
            "iss": "https://sts.example", "sub": "app-2", "aud": ["https://sts.example"],
            "exp": now + 600, "iat": now, "jti": "jti-1", "zone_id": "zone-1",
            "client_id": "app-2", "scope": "desk:read", "sid": "sid-new", "root_sid": "sid-new",
            "use": "gateway", "sub_type": "application", "target": ["resource://r0"],
            "agent_session_id": "s2", "delegation_edge_id": "e1", "source_session_id": "s1",
            "target_session_id": "s2", "delegation_path": ["e0", "e1"],
            "delegation_chain": [
                {"application_id": "app-0", "agent_session_id": "s0", "delegation_edge_id": "e0"},
                {"application_id": "app-1", "agent_session_id": "s1", "delegation_edge_id": "e1"},
                {"application_id": "app-2", "agent_session_id": "s2"},
            ],
            "hop_count": 2, "delegation_graph_epoch": 7,
        })
    );
}

#[test]
fn the_gateway_gets_a_resource_mandate_with_the_same_lineage_and_no_more_life() {
    let mut world = World::new();
    let mut presented = world.mandate();
    presented.exp = NOW.unix_seconds() + 40;
    presented.delegation_graph_epoch = Some(5);
    world.ttl_seconds = 0;
    let decision = world.decide(gateway(&presented, "get", "/tickets"), Says::allow());
    let mandate = granted(&decision);
    assert_eq!(mandate.token_use, TokenUse::Resource);
    assert_eq!(mandate.aud, ["resource://r0"]);
    assert_eq!(mandate.exp, presented.exp);
    assert_eq!(mandate.root_sid, presented.root_sid);
    assert_eq!(mandate.scope, presented.scope);
    assert_eq!(mandate.delegation_path, presented.delegation_path);
    assert_eq!(mandate.delegation_chain, presented.delegation_chain);
    assert_eq!(mandate.delegation_graph_epoch, Some(5));
    let Outcome::Grant(grant) = decision.outcome else {
        unreachable!()
    };
    assert_eq!(grant.parent_sid, Some(presented.sid));
    assert_eq!(grant.expires_in(), 40);
}

#[test]
fn a_bootstrap_exchange_mints_a_session_token_without_a_lineage() {
    let mut world = World::new();
    world.scope = "agent:lifecycle".to_owned();
    both(&mut world);
    let mandate = granted(&world.decide(Class::Bootstrap, Says::allow()));
    assert_eq!(mandate.token_use, TokenUse::Session);
    assert_eq!(mandate.aud, ["https://sts.example"]);
    assert_eq!(mandate.target, ["resource://r0", "resource://r1"]);
    assert_eq!(mandate.exp - mandate.iat, 900);
    assert!(mandate.delegation_path.is_empty() && mandate.agent_session_id.is_none());
}

#[test]
fn denied_resources_are_dropped_and_the_others_granted() {
    let mut world = World::new();
    both(&mut world);
    world.requested.push("resource://unknown".to_owned());
    world.scope = "desk:write".to_owned();
    let decision = world.decide(Class::Delegated, Says::allow());
    assert_eq!(
        evidence(&decision),
        [
            "allow complete",
            "deny scope_mismatch",
            "deny resource_not_found"
        ]
    );
    assert_eq!(granted(&decision).target, ["resource://r0"]);
    assert_eq!(&*decision.verdicts[2].resource, "resource://unknown");
}

#[test]
fn one_resource_under_two_names_is_granted_once() {
    let mut world = World::new();
    world.requested = vec!["res-0".to_owned(), "resource://r0".to_owned()];
    let decision = world.decide(Class::Delegated, Says::allow());
    assert_eq!(decision.verdicts.len(), 2);
    assert_eq!(granted(&decision).target, ["resource://r0"]);
}

#[test]
fn a_delegation_bounds_the_resources() {
    let mut world = World::new();
    both(&mut world);
    world.edge(0).resource_id = Some(resource(1, "").id);
    let decision = world.decide(Class::Delegated, Says::allow());
    assert_eq!(
        evidence(&decision),
        ["deny resource_outside_delegation", "allow complete"]
    );

    let mut world = World::new();
    both(&mut world);
    world.edge(0).constraints.resources = Some(["resource://r0".into()].into());
    let decision = world.decide(Class::Delegated, Says::allow());
    assert_eq!(
        evidence(&decision),
        ["allow complete", "deny resource_outside_delegation"]
    );
}

#[test]
fn when_nothing_is_granted_the_description_names_the_cause() {
    let mut world = World::new();
    both(&mut world);
    world.requested.push("resource://unknown".to_owned());
    let no = Says::answers(|_| Ok(denied("role_scope_mismatch")));
    let decision = world.decide(Class::Delegated, no);
    let policy = "policy denied (role_scope_mismatch)".to_owned();
    assert_eq!(refused(&decision), (403, "access_denied", policy));
    assert_eq!(
        evidence(&decision),
        ["deny complete", "deny complete", "deny resource_not_found"]
    );

    world.requested = vec!["resource://unknown".to_owned()];
    let decision = world.decide(Class::Delegated, Says::allow());
    assert_eq!(refused(&decision).2, "policy denied (resource_not_found)");
}

#[test]
fn a_gateway_call_outside_the_declared_operations_aborts() {
    let world = World::new();
    let presented = world.mandate();
    for (method, path) in [("POST", "/tickets"), ("GET", "/tickets/"), ("GET", "/")] {
        let says = Says::allow();
        let decision = world.decide(gateway(&presented, method, path), says.clone());
        assert_eq!(refused(&decision).1, "operation_not_permitted");
        assert_eq!(evidence(&decision), ["deny operation_not_permitted"]);
        assert!(says.questions().is_empty(), "the floor lies below policy");
    }
}

#[test]
fn an_abort_withdraws_what_was_allowed_before_it() {
    let mut world = World::new();
    both(&mut world);
    world.requested.push("resource://r0".to_owned());
    let says = Says::answers(|question| {
        if question.resource.id == "res-1" {
            return Err(PolicyFault("two documents".to_owned()));
        }
        Ok(allowed(&[]))
    });
    let decision = world.decide(Class::Delegated, says);
    let (status, error, _) = refused(&decision);
    assert_eq!((status, error), (503, "policy_eval_failed"));
    assert_eq!(
        evidence(&decision),
        [
            "deny exchange_denied",
            "deny policy_eval_failed",
            "deny exchange_denied"
        ]
    );
    assert_eq!(
        decision.verdicts[1].diagnostics,
        [json!({"error": "two documents"})]
    );
}

#[test]
fn the_control_resource_is_for_control_keys_only() {
    let mut world = World::new();
    world.resources[0].identifier = "caracal-control".into();
    world.requested = vec!["caracal-control".to_owned()];
    let decision = world.decide(Class::Delegated, Says::allow());
    assert_eq!(refused(&decision).0, 403);
    assert_eq!(
        evidence(&decision),
        ["deny control_resource_requires_control_key"]
    );
}

#[test]
fn over_the_mint_limit_answers_429_when_that_is_the_only_reason() {
    let mut world = World::new();
    both(&mut world);
    world.rate_limited = Some(17);
    let decision = world.decide(Class::Delegated, Says::allow());
    assert_eq!(refused(&decision).1, "provider_rate_limited");
    let Outcome::Deny(why) = &decision.outcome else {
        unreachable!()
    };
    assert_eq!(
        (why.refusal, why.retry_after),
        (Refusal::RateLimited, Some(17))
    );
    assert_eq!(
        evidence(&decision),
        ["deny rate_limited", "deny rate_limited"]
    );

    world.requested.push("resource://unknown".to_owned());
    let decision = world.decide(Class::Delegated, Says::allow());
    assert_eq!(refused(&decision).0, 403);
}

#[test]
fn the_gateway_is_not_charged_a_second_time() {
    let mut world = World::new();
    let presented = world.mandate();
    world.rate_limited = Some(17);
    granted(&world.decide(gateway(&presented, "GET", "/tickets"), Says::allow()));
}

#[test]
fn only_what_comes_as_far_as_the_limiter_is_charged() {
    let mut world = World::new();
    both(&mut world);
    world.requested.push("resource://unknown".to_owned());
    world.scope = "desk:write".to_owned();
    let resources = world.requested();
    let chargeable = |class| {
        world.ask(class, &resources, |request, facts| {
            let standing = Standing::establish(request, facts, NOW).unwrap();
            resources
                .iter()
                .map(|r| standing.is_chargeable(r))
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(chargeable(Class::Delegated), [true, false, false]);
    let presented = world.mandate();
    assert_eq!(
        chargeable(gateway(&presented, "GET", "/tickets")),
        [false; 3]
    );
}

#[test]
fn a_missing_provider_credential_is_named() {
    let world = World::new();
    let presented = world.mandate();
    let mut resources = world.requested();
    resources[0].credential_fault = Some(CredentialFault::NotProvisioned);
    let decision = world.ask(
        gateway(&presented, "GET", "/tickets"),
        &resources,
        |request, facts| decide(request, facts, &policy(Says::allow()), NOW),
    );
    assert_eq!(evidence(&decision), ["deny credential_not_provisioned"]);
    assert_eq!(refused(&decision).1, "credential_not_provisioned");
}

#[test]
fn an_exchange_without_resources_is_a_bad_request() {
    let mut world = World::new();
    world.requested.clear();
    assert_eq!(
        refused(&world.decide(Class::Delegated, Says::allow())).0,
        400
    );
}
