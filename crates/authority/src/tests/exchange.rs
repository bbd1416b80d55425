//! Exchanges, refusal by refusal (spec: sts §2.5 to §2.7, §9, §10.2).

use crate::decide::{Class, CredentialFault, Outcome, Standing};
use crate::{RecordStatus, Requirement, SessionStatus, decide};
use caracal_model::policy::PolicyFault;
use caracal_model::{RecordId, Refusal, Scopes, SubjectType, TokenUse};
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
fn an_allow_that_needs_a_human_is_held_and_granted_once_approved() {
    let mut world = World::new();
    both(&mut world);
    let says = Says::answers(|question| {
        let step_up = json!({"step_up_required": {"type": "human_approval", "tiers": []}});
        Ok(allowed(if question.resource.id == "res-1" {
            &[]
        } else {
            std::slice::from_ref(&step_up)
        }))
    });
    let decision = world.decide(Class::Delegated, says.clone());
    let Outcome::Hold(requirement) = &decision.outcome else {
        panic!("{decision:?}")
    };
    assert_eq!(requirement, &Requirement::merge([]).unwrap());
    assert_eq!(
        evidence(&decision),
        ["deny complete", "deny exchange_denied"]
    );
    let why = Refusal::AccessDenied.because("approval was rejected");
    let rejected = decision.withheld("approval_rejected", why);
    assert_eq!(
        evidence(&rejected),
        ["deny approval_rejected", "deny exchange_denied"]
    );
    assert_eq!(refused(&rejected).0, 403);

    let resources = world.requested();
    let approved = world.ask(Class::Delegated, &resources, |request, facts| {
        let standing = Standing::establish(request, facts, NOW).unwrap();
        standing.resolved().decide(&policy(says.clone()))
    });
    assert_eq!(evidence(&approved), ["allow complete"; 2]);
    assert_eq!(
        granted(&approved).target,
        ["resource://r0", "resource://r1"]
    );
    assert!(says.questions().last().unwrap().context.challenge_resolved);
    assert!(approved.requirement.is_some());

    // A call that is under way cannot be held.
    let mandate = world.mandate();
    world.requested.pop();
    let decision = world.decide(gateway(&mandate, "GET", "/tickets"), says);
    let why = "policy denied (human_approval_required)".to_owned();
    assert_eq!(refused(&decision), (403, "access_denied", why));
}

#[test]
fn tiers_that_name_different_approvers_are_refused() {
    let world = World::new();
    let tiers = |approver: &str| json!({"tier": approver, "approver": approver});
    let says = Says::answers(move |_| {
        let tiers = [tiers("operator"), tiers("subject")];
        Ok(allowed(&[
            json!({"step_up_required": {"type": "human_approval", "tiers": tiers}}),
        ]))
    });
    let decision = world.decide(Class::Delegated, says);
    assert_eq!(refused(&decision).0, 403);
    assert_eq!(evidence(&decision), ["deny approval_class_conflict"]);
}

#[test]
fn the_user_behind_a_session_anchors_its_approvals_and_may_not_approve_with_the_same_record() {
    let mut world = World::new();
    let anchored = |world: &World| {
        world.ask(Class::Delegated, &[], |request, facts| {
            let standing = Standing::establish(request, facts, NOW).unwrap();
            let own: Vec<_> = standing.own_records().into_iter().cloned().collect();
            (standing.subject_anchor().map(str::to_owned), own)
        })
    };
    assert_eq!(anchored(&world), (None, vec![RecordId::trusted("r-app")]));
    world.records = vec![record("r-user", SubjectType::User, "user_123").into()];
    for at in [0, 1] {
        world.session(at).subject_type = SubjectType::User;
        world.session(at).subject_record_id = RecordId::trusted("r-user");
    }
    let (user, own) = (
        Some("user_123".to_owned()),
        vec![RecordId::trusted("r-user")],
    );
    assert_eq!(anchored(&world), (user, own));
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
fn policy_is_asked_with_everything_that_is_known_and_nothing_that_is_empty() {
    let mut world = World::new();
    world.edge(0).resource_id = Some(resource(0, "").id);
    let says = Says::allow();
    world.decide(Class::Delegated, says.clone());
    assert_eq!(
        serde_json::to_value(&says.questions()[0]).unwrap(),
        json!({
            "schema_version": "2026-05-20",
            "principal": {"type": "Application", "id": "app-0", "zone_id": "zone-1",
                "registration_method": "managed", "agent_session_id": "s1", "lifecycle": "task",
                "labels": ["label-of-s1"]},
            "resource": {"type": "Resource", "id": "res-0", "identifier": "resource://r0",
                "scopes": ["desk:read", "desk:write"]},
            "action": {"id": "TokenExchange"},
            "delegation_edge": {"id": "e0", "source_session_id": "s0", "target_session_id": "s1",
                "issuer_application_id": "app-0", "receiver_application_id": "app-0",
                "resource_id": "res-0", "scopes": ["desk:read", "desk:write"], "path": ["e0"],
                "graph_epoch": 7, "constraints_json": {"max_hops": 1}},
            "context": {"actor_claims": {"caracal_client_id": "app-0"}, "trace_id": "req-1",
                "agent_session_id": "s1", "delegation_edge_id": "e0", "challenge_resolved": false,
                "requested_scopes": ["desk:read"]},
        })
    );
}

#[test]
fn policy_sees_the_presented_mandate_with_method_and_path() {
    let world = World::new();
    let presented = world.mandate();
    let says = Says::allow();
    world.decide(gateway(&presented, "get", "/tickets"), says.clone());
    let question = serde_json::to_value(&says.questions()[0]).unwrap();
    assert_eq!(
        question["action"],
        json!({"id": "TokenExchange", "method": "GET", "path": "/tickets"})
    );
    assert_eq!(
        question["context"]["subject_claims"],
        serde_json::to_value(&presented).unwrap()
    );
    assert_eq!(question["context"]["requested_scopes"], json!([]));
    assert_eq!(question["session"], json!({"id": "sid-new"}));
}

#[test]
fn a_bootstrap_question_names_neither_subject_nor_session_nor_edge() {
    let mut world = World::new();
    world.scope = "agent:lifecycle".to_owned();
    let says = Says::allow();
    world.decide(Class::Bootstrap, says.clone());
    let question = serde_json::to_value(&says.questions()[0]).unwrap();
    for absent in [
        "/session",
        "/delegation_edge",
        "/context/subject_claims",
        "/context/agent_session_id",
        "/principal/agent_session_id",
        "/principal/labels",
    ] {
        assert_eq!(question.pointer(absent), None, "{absent}");
    }
}

#[test]
fn a_presented_mandate_is_held_against_what_is_declared_now() {
    let mut world = World::new();
    let presented = world.mandate();
    world.resources[0].scopes = Scopes::parse("desk:write");
    let decision = world.decide(gateway(&presented, "GET", "/tickets"), Says::allow());
    assert_eq!(evidence(&decision), ["deny scope_mismatch"]);
}

#[test]
fn a_presented_mandate_must_be_what_it_is_presented_as() {
    let world = World::new();
    let call = |change: &dyn Fn(&mut caracal_model::Mandate)| {
        let mut presented = world.mandate();
        change(&mut presented);
        refused(&world.decide(gateway(&presented, "GET", "/tickets"), Says::allow())).0
    };
    assert_eq!(call(&|m| m.token_use = TokenUse::Session), 401);
    assert_eq!(
        call(&|m| m.zone_id = caracal_model::ZoneId::trusted("zone-2")),
        401
    );
    assert_eq!(call(&|m| m.client_id = app(1)), 403);
    assert_eq!(call(&|m| m.exp = NOW.unix_seconds()), 401);
    assert_eq!(call(&|m| m.scope = "desk:read mail:send".to_owned()), 403);
    assert_eq!(call(&|m| m.delegation_path.push(edge_id(9))), 403);
    assert_eq!(call(&|m| m.delegation_chain.clear()), 403);
    assert_eq!(call(&|m| m.agent_session_id = None), 403);
    assert_eq!(call(&|m| m.delegation_edge_id = None), 403);
    assert_eq!(call(&|m| m.target = vec!["resource://r1".to_owned()]), 403);
}

#[test]
fn a_session_mandate_opens_no_resource_even_if_policy_would() {
    let mut world = World::new();
    world.records = vec![record("sid-new", SubjectType::Application, "app-0").into()];
    world.scope = "agent:lifecycle".to_owned();
    let presented = granted(&world.decide(Class::Bootstrap, Says::allow()));
    let decision = world.decide(
        Class::SubjectToken {
            presented: &presented,
        },
        Says::allow(),
    );
    assert_eq!(
        refused(&decision).2,
        "resource exchanges must use the Gateway"
    );
    assert_eq!(evidence(&decision), ["deny exchange_denied"]);
}

#[test]
fn an_authority_record_must_be_live_and_the_callers_own() {
    let world = World::new();
    let ask = |found: crate::RecordFacts| {
        let mut world = World::new();
        let id = found.id.clone();
        world.records = vec![found.into()];
        world.ask(Class::Delegated, &world.requested(), |request, facts| {
            let mut request = *request;
            request.session_id = Some(&id);
            decide(&request, facts, &policy(Says::allow()), NOW)
        })
    };
    let own = record("r1", SubjectType::Application, "app-0");
    granted(&ask(own.clone()));
    let mut revoked = own.clone();
    revoked.status = RecordStatus::Revoked;
    let mut expired = own;
    expired.expires_at = world.now;
    let user = record("r1", SubjectType::User, "app-0");
    let other = record("r1", SubjectType::Application, "app-1");
    for wrong in [revoked, expired, user, other] {
        assert_eq!(refused(&ask(wrong)).0, 403);
    }
}

#[test]
fn a_session_that_hangs_on_a_user_needs_that_users_record() {
    let mut world = World::new();
    world.session(1).subject_type = SubjectType::User;
    assert_eq!(
        refused(&world.decide(Class::Delegated, Says::allow())).0,
        403
    );
    world.records = vec![record("r-app", SubjectType::User, "user_123").into()];
    granted(&world.decide(Class::Delegated, Says::allow()));
    std::sync::Arc::make_mut(&mut world.records[0]).status = RecordStatus::Revoked;
    assert_eq!(
        refused(&world.decide(Class::Delegated, Says::allow())).0,
        403
    );
}

#[test]
fn a_suspended_session_may_do_nothing_until_it_is_resumed() {
    let mut world = World::new();
    world.session(1).status = SessionStatus::Suspended;
    assert_eq!(
        refused(&world.decide(Class::Delegated, Says::allow())).0,
        403
    );
    world.session(1).status = SessionStatus::Active;
    granted(&world.decide(Class::Delegated, Says::allow()));
}

#[test]
fn lifetimes_are_capped_silently_and_refused_when_asked_for_too_much() {
    let mut world = World::new();
    world.edge(0).constraints.ttl_seconds = Some(120);
    let mandate = granted(&world.decide(Class::Delegated, Says::allow()));
    assert_eq!(mandate.exp - mandate.iat, 120);
    for (ttl, status) in [(121, 403), (3601, 400), (-1, 400)] {
        world.ttl_seconds = ttl;
        assert_eq!(
            refused(&world.decide(Class::Delegated, Says::allow())).0,
            status,
            "{ttl}"
        );
    }
    world.ttl_seconds = 0;
    world.edge(0).constraints.expires_at = Some(after(30));
    let mandate = granted(&world.decide(Class::Delegated, Says::allow()));
    assert_eq!(mandate.exp - mandate.iat, 30);
    world.edge(0).constraints.expires_at = Some(NOW);
    assert_eq!(
        refused(&world.decide(Class::Delegated, Says::allow())).0,
        403
    );
}

#[test]
fn scopes_beyond_the_delegation_are_refused_as_a_whole() {
    let mut world = World::new();
    both(&mut world);
    world.scope = "desk:read mail:send".to_owned();
    let decision = world.decide(Class::Delegated, Says::allow());
    assert_eq!(
        refused(&decision).2,
        "requested scopes exceed the delegation"
    );
    assert_eq!(
        evidence(&decision),
        ["deny exchange_denied", "deny exchange_denied"]
    );
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

#[test]
fn a_path_that_we_would_not_have_made_is_refused() {
    let long = || World::chain(&[0, 0, 0], &[(9, false), (9, false)]);
    granted(&long().decide(Class::Delegated, Says::allow()));

    let mut orphan = long();
    orphan.edge(0).mirrored = true;
    let mut circle = long();
    circle.edge(1).target_session_id = session_id(0);
    let mut elsewhere = long();
    elsewhere.edge(1).source_session_id = session_id(0);
    let mut rootless = long();
    rootless.lineage.remove(0);
    for world in [orphan, circle, elsewhere, rootless] {
        let decision = world.decide(Class::Delegated, Says::allow());
        assert_eq!(refused(&decision).2, "delegation lineage is inconsistent");
    }
}
