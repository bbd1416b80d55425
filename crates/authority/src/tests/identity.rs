//! Control keys and actors: refusal by refusal, then what we promise of them (spec: sts §8;
//! RFC 8693 section 4.1).

use caracal_model::limits::MAX_ACTORS;
use caracal_model::{Mandate, RecordId, Scopes, SubjectType, TokenUse};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::world::*;
use crate::control::ControlKey;
use crate::decide::{Class, Decision, Outcome};
use crate::{FederatedSubject, Federation, RecordStatus};

const AUDIENCE: &str = "caracal-control";

fn key(traits: &[&str]) -> ControlKey {
    let mut all = vec!["control:invoke".to_owned()];
    all.extend(traits.iter().map(|name| (*name).to_owned()));
    ControlKey::of(&all).unwrap()
}

/// A request for the Control API.
fn control(scope: &str) -> World {
    let mut world = World::new();
    world.lineage.clear();
    let mut resource = resource(0, "control:app:read control:app:write");
    resource.identifier = AUDIENCE.into();
    resource.upstream_url = None;
    world.resources = vec![resource];
    world.requested = vec![AUDIENCE.to_owned()];
    world.scope = scope.to_owned();
    world
}

/// The session mandate of application `at`, and its record.
fn actor(world: &mut World, at: usize, act: Option<Mandate>) -> Mandate {
    let mut of = World::new();
    of.caller = app(at);
    of.scope = "agent:lifecycle".to_owned();
    of.actor = act;
    of.records.clone_from(&world.records);
    let mut mandate = granted(&of.decide(Class::Bootstrap, Says::allow()));
    mandate.sid = RecordId::trusted(format!("actor-{}", world.records.len()));
    let mut facts = record(
        mandate.sid.as_str(),
        SubjectType::Application,
        app(at).as_str(),
    );
    facts.client_id = app(at);
    world.records.push(facts.into());
    mandate
}

#[test]
fn a_control_key_is_granted_what_it_lists_without_policy() {
    let world = control("control:app:read");
    let key = key(&["control:scope:control:app:read"]);
    let says = Says::allow();
    let decision = world.decide(Class::Control { key: &key }, says.clone());
    assert!(says.questions().is_empty(), "no policy is asked");
    assert_eq!(evidence(&decision), ["allow complete"]);
    assert_eq!(decision.verdicts[0].determining, ["control-key"]);
    assert!(!decision.verdicts[0].policy_ran);
    let mandate = serde_json::to_value(granted(&decision)).unwrap();
    let now = NOW.unix_seconds();
    assert_eq!(
        mandate,
        json!({
            "iss": "https://sts.example", "sub": "app-0", "aud": [AUDIENCE], "exp": now + 900,
            "iat": now, "jti": "jti-1", "zone_id": "zone-1", "client_id": "app-0",
            "scope": "control:app:read", "sid": "sid-new", "root_sid": "sid-new",
            "use": "resource", "sub_type": "application", "target": [AUDIENCE],
        })
    );
}

#[test]
fn a_control_key_opens_nothing_else() {
    let deadline = format!("control:expires:{}", NOW.iso_seconds());
    let later = format!("control:expires:{}", after(60).iso_seconds());
    let scope = "control:scope:control:app:read";
    let lists = |more: &str| {
        let traits: Vec<&str> = [scope, more]
            .into_iter()
            .filter(|t| !t.is_empty())
            .collect();
        key(&traits)
    };
    let refused_as = "deny control_resource_requires_control_key";
    for (case, key, wanted, expected) in [
        ("listed", lists(""), "control:app:read", "allow complete"),
        (
            "before its deadline",
            lists(&later),
            "control:app:read",
            "allow complete",
        ),
        (
            "at its deadline",
            lists(&deadline),
            "control:app:read",
            refused_as,
        ),
        ("not listed", lists(""), "control:app:write", refused_as),
        (
            "one of two",
            lists(""),
            "control:app:read control:app:write",
            refused_as,
        ),
        (
            "not declared",
            lists("control:scope:control:policy:read"),
            "control:policy:read",
            "deny scope_mismatch",
        ),
        ("no scope", lists(""), "", refused_as),
    ] {
        let world = control(wanted);
        let decision = world.decide(Class::Control { key: &key }, Says::allow());
        assert_eq!(evidence(&decision), [expected], "{case}");
    }
    // Another resource is nothing for a key, whatever policy says.
    let mut world = control("control:app:read");
    world.resources[0].identifier = "resource://desk".into();
    world.requested = vec!["resource://desk".to_owned()];
    let decision = world.decide(Class::Control { key: &lists("") }, Says::allow());
    assert_eq!(evidence(&decision), [refused_as]);
    assert_eq!(refused(&decision).0, 403);
    // Nor is it asked for in a way of its own without a key.
    let decision = control("control:app:read").decide(Class::Bootstrap, Says::allow());
    let why = "the control resource requires a control key".to_owned();
    assert_eq!(refused(&decision), (403, "access_denied", why));
}

#[test]
fn a_control_key_caps_the_life_of_its_tokens_silently() {
    let scope = "control:scope:control:app:read";
    for (traits, asked, life) in [
        (vec![scope], 0, 900),
        (vec![scope], 3600, 3600),
        (vec![scope, "control:max-ttl:120"], 0, 120),
        (vec![scope, "control:max-ttl:120"], 3600, 120),
        (vec![scope, "control:max-ttl:600"], 60, 60),
    ] {
        let mut world = control("control:app:read");
        world.ttl_seconds = asked;
        let key = key(&traits);
        let mandate = granted(&world.decide(Class::Control { key: &key }, Says::allow()));
        assert_eq!(mandate.exp - mandate.iat, life, "{traits:?} {asked}");
    }
    let mut world = control("control:app:read");
    world.ttl_seconds = 3601;
    let key = key(&[scope, "control:max-ttl:120"]);
    let decision = world.decide(Class::Control { key: &key }, Says::allow());
    assert_eq!(refused(&decision).2, "ttl_seconds must not exceed 3600");
}

#[test]
fn a_control_key_over_the_mint_limit_waits() {
    let mut world = control("control:app:read");
    world.rate_limited = Some(17);
    let key = key(&["control:scope:control:app:read"]);
    let decision = world.decide(Class::Control { key: &key }, Says::allow());
    assert_eq!(evidence(&decision), ["deny rate_limited",]);
    assert_eq!(refused(&decision).0, 429);
}

#[test]
fn the_mandate_names_who_acts_and_the_call_repeats_it() {
    let mut world = World::new();
    let first = actor(&mut world, 1, None);
    let second = actor(&mut world, 2, Some(first.clone()));
    world.actor = Some(second.clone());
    let says = Says::allow();
    let minted = granted(&world.decide(Class::Delegated, says.clone()));
    let act = json!({
        "sub": "app-2", "client_id": "app-2", "sid": "actor-1",
        "act": {"sub": "app-1", "client_id": "app-1", "sid": "actor-0"},
    });
    assert_eq!(json!(minted.act), act);
    assert_eq!(
        (minted.sub.as_str(), minted.sub_type),
        ("app-0", SubjectType::Application)
    );
    let expected = json!({"caracal_client_id": "app-0", "act": act});
    assert_eq!(says.questions()[0].context.actor_claims, expected);
    let used = granted(&world.decide(gateway(&minted, "GET", "/tickets"), Says::allow()));
    assert_eq!(used.act, minted.act);
    assert_eq!(used.token_use, TokenUse::Resource);
}

#[test]
fn without_an_actor_nothing_is_said_of_one() {
    let says = Says::allow();
    let minted = World::new().decide(Class::Delegated, says.clone());
    assert!(
        serde_json::to_value(granted(&minted))
            .unwrap()
            .get("act")
            .is_none()
    );
    let expected = json!({"caracal_client_id": "app-0"});
    assert_eq!(says.questions()[0].context.actor_claims, expected);
}

#[test]
fn an_actor_must_be_a_live_session_mandate_of_the_zone() {
    type Change = fn(&mut World, &mut Mandate);
    let cases: [(&str, Change, (u16, &str)); 8] = [
        (
            "gateway mandate",
            |_, m| m.token_use = TokenUse::Gateway,
            (401, "invalid actor_token"),
        ),
        (
            "resource mandate",
            |_, m| m.token_use = TokenUse::Resource,
            (401, "invalid actor_token"),
        ),
        (
            "other zone",
            |_, m| m.zone_id = caracal_model::ZoneId::trusted("z9"),
            (401, "invalid actor_token"),
        ),
        (
            "over",
            |_, m| m.exp = NOW.unix_seconds(),
            (401, "invalid actor_token"),
        ),
        (
            "no record",
            |w, _| w.records.clear(),
            (403, "the authority record of the actor is not active"),
        ),
        (
            "revoked record",
            |w, _| {
                std::sync::Arc::make_mut(&mut w.records[0]).status = RecordStatus::Revoked;
            },
            (403, "the authority record of the actor is not active"),
        ),
        (
            "record of another subject",
            |w, _| {
                std::sync::Arc::make_mut(&mut w.records[0]).subject_id = "else".into();
            },
            (403, "the authority record of the actor is not active"),
        ),
        (
            "record of another application",
            |_, m| m.client_id = app(2),
            (403, "the authority record of the actor is not active"),
        ),
    ];
    for (case, change, expected) in cases {
        for class in [Class::Delegated, Class::Bootstrap] {
            let mut world = World::new();
            let mut mandate = actor(&mut world, 1, None);
            change(&mut world, &mut mandate);
            world.actor = Some(mandate);
            let decision = world.decide(class, Says::allow());
            let (status, _, why) = refused(&decision);
            assert_eq!((status, why.as_str()), expected, "{case} {class:?}");
            assert_eq!(evidence(&decision), ["deny exchange_denied"], "{case}");
        }
    }
    let mut world = control("control:app:read");
    let mandate = actor(&mut world, 1, None);
    world.actor = Some(mandate);
    let key = key(&["control:scope:control:app:read"]);
    let decision = world.decide(Class::Control { key: &key }, Says::allow());
    assert_eq!(refused(&decision).0, 400);
}

#[test]
fn actors_stand_in_a_chain_of_bounded_length() {
    let mut world = World::new();
    let mut last = None;
    for at in 0..MAX_ACTORS {
        last = Some(actor(&mut world, at + 1, last));
    }
    let longest = last.clone().unwrap();
    assert_eq!(longest.actors().count(), MAX_ACTORS - 1);
    world.actor = last;
    let minted = granted(&world.decide(Class::Delegated, Says::allow()));
    assert_eq!(minted.actors().count(), MAX_ACTORS);
    let mut over = longest;
    over.act.clone_from(&minted.act);
    world.actor = Some(over);
    let why = "too many actors: at most 4 in one mandate".to_owned();
    let decision = world.decide(Class::Delegated, Says::allow());
    assert_eq!(refused(&decision), (403, "access_denied", why));
}

fn scope() -> impl Strategy<Value = &'static str> {
    prop::sample::select(
        &[
            "control:app:read",
            "control:app:write",
            "control:policy:read",
            "desk:read",
        ][..],
    )
}

fn mandate_of(decision: &Decision) -> Option<Mandate> {
    matches!(decision.outcome, Outcome::Grant(_)).then(|| granted(decision))
}

proptest! {
    #![proptest_config(cases())]

    /// With an actor, nothing comes out that would not have come without, nothing lives longer, and
    /// nothing outlives the actor.
    #[test]
    fn an_actor_only_narrows(
        wanted in vec(prop::sample::select(&["desk:read", "desk:write", "mail:send"][..]), 0..4),
        asked in -10i64..4000, life in -10i64..4000, dead in any::<bool>(), depth in 0usize..6,
        delegated in any::<bool>(),
    ) {
        let mut world = World::new();
        world.requested = vec!["resource://r0".to_owned(), "resource://r1".to_owned()];
        world.scope = wanted.join(" ");
        world.ttl_seconds = asked;
        let class = if delegated { Class::Delegated } else { Class::Bootstrap };
        let free = mandate_of(&world.decide(class, Says::allow()));
        let mut mandate = actor(&mut world, 1, None);
        for _ in 0..depth {
            let inner = mandate.clone();
            mandate.act = Some(Box::new(caracal_model::Actor {
                sub: inner.sub, client_id: inner.client_id, sid: inner.sid, act: inner.act,
            }));
        }
        mandate.exp = NOW.unix_seconds() + life;
        if dead {
            std::sync::Arc::make_mut(&mut world.records[0]).status = RecordStatus::Revoked;
        }
        world.actor = Some(mandate);
        let Some(acted) = mandate_of(&world.decide(class, Says::allow())) else { return Ok(()) };
        let free = free.expect("what an actor gets, its caller gets without");
        prop_assert!(!dead && life > 0 && depth < MAX_ACTORS);
        prop_assert!(acted.exp <= free.exp && acted.exp <= NOW.unix_seconds() + life);
        prop_assert_eq!(acted.actors().count(), depth + 1);
        let used = delegated
            .then(|| mandate_of(&world.decide(gateway(&acted, "GET", "/tickets"), Says::allow())))
            .flatten();
        if let Some(used) = used {
            prop_assert_eq!(&used.act, &acted.act, "nobody falls out of the chain");
            prop_assert!(used.exp <= acted.exp);
        }
        let same = Mandate { act: None, exp: free.exp, ..acted };
        prop_assert_eq!(same, free);
    }

    /// A Control token carries only what is asked for, listed and declared, in time, and only for the
    /// Control audience.
    #[test]
    fn a_control_key_only_narrows(
        wanted in vec(scope(), 0..4), listed in vec(scope(), 0..4), declared in vec(scope(), 0..4),
        deadline in -100i64..4000, most in 1u32..2000, asked in 0i64..3601, elsewhere in any::<bool>(),
    ) {
        let mut world = control(&wanted.join(" "));
        world.resources[0].scopes = declared.iter().collect();
        world.ttl_seconds = asked;
        if elsewhere {
            world.resources[0].identifier = "resource://desk".into();
            world.requested = vec!["resource://desk".to_owned()];
        }
        let end = NOW.plus(std::time::Duration::from_secs(100)).unix_seconds() + deadline - 100;
        let end = caracal_model::Timestamp::from_unix_seconds(end);
        let mut traits = vec!["control:invoke".to_owned()];
        traits.extend(listed.iter().map(|scope| format!("control:scope:{scope}")));
        traits.push(format!("control:expires:{}", end.iso_seconds()));
        traits.push(format!("control:max-ttl:{most}"));
        let key = ControlKey::of(&traits).unwrap();
        let decision = world.decide(Class::Control { key: &key }, Says::allow());
        let possible = !elsewhere && end > NOW && !wanted.is_empty() && wanted.iter().all(|scope| {
            scope.starts_with("control:") && listed.contains(scope) && declared.contains(scope)
        });
        let minted = mandate_of(&decision);
        prop_assert_eq!(minted.is_some(), possible);
        let Some(minted) = minted else { return Ok(()) };
        let wanted: Scopes = wanted.iter().collect();
        prop_assert_eq!(Scopes::parse(&minted.scope), wanted);
        prop_assert_eq!(&minted.aud, &[AUDIENCE]);
        prop_assert!(minted.exp <= end.unix_seconds());
        prop_assert!(minted.exp - minted.iat <= i64::from(most));
        prop_assert!(minted.agent_session_id.is_none() && minted.delegation_path.is_empty());
    }

    /// Whatever an issuer calls its user: the mandate says exactly that, and opens nothing.
    #[test]
    fn a_federated_user_holds_an_identity_and_no_authority(
        sub in "\\PC{0,40}", asked in -10i64..4000, most in 1i64..4000,
    ) {
        let world = World::new();
        let federation = Federation {
            zone: &world.zone, application: &world.caller, ttl_seconds: asked,
            max_grant_ttl_seconds: most,
        };
        let Ok(subject) = FederatedSubject::parse(&sub) else { return Ok(()) };
        prop_assert_eq!(subject.as_str(), &sub);
        let granted = federation.grant(subject, NOW);
        prop_assert_eq!(granted.is_ok(), (0..=3600).contains(&asked));
        let Ok(grant) = granted else { return Ok(()) };
        prop_assert!((1..=most.min(3600)).contains(&grant.expires_in()));
        let jti = caracal_model::Jti::trusted("jti");
        let mandate = grant.mandate("https://sts.example", jti, RecordId::trusted("sid"));
        let claims = serde_json::to_value(&mandate).unwrap();
        let names: Vec<_> = claims.as_object().unwrap().keys().map(String::as_str).collect();
        prop_assert_eq!(names, [
            "aud", "client_id", "exp", "iat", "iss", "jti", "root_sid", "sid", "sub", "sub_type",
            "use", "zone_id",
        ]);
        prop_assert_eq!((mandate.sub.as_str(), mandate.sub_type), (sub.as_str(), SubjectType::User));
        // Presented as a subject token it opens no resource, whatever policy would.
        let mut world = World::new();
        world.lineage.clear();
        world.scope = String::new();
        let mut facts = record("sid", SubjectType::User, &sub);
        facts.client_id = world.caller.clone();
        world.records.push(facts.into());
        let class = Class::SubjectToken { presented: &mandate };
        prop_assert!(mandate_of(&world.decide(class, Says::allow())).is_none());
    }
}
