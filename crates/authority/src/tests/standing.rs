//! What holds for a request as a whole, refusal by refusal (spec: sts §2.5, §2.7, §9).

use crate::decide::Class;
use crate::{RecordStatus, SessionStatus, decide};
use caracal_model::{Scopes, SubjectType, TokenUse};

use super::world::*;

fn both(world: &mut World) {
    world.requested = vec!["resource://r0".to_owned(), "resource://r1".to_owned()];
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
