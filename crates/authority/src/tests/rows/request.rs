//! Rows about the request as a whole (spec: sts §2.5, §2.7, §9).

use super::*;

/// A request after a change of what it names.
fn named<'a>(
    world: &'a World,
    class: Class<'a>,
    change: impl FnOnce(&mut ExchangeRequest<'a>),
) -> Decision {
    let resources = world.requested();
    let leaf = world.lineage.last();
    let delegated = matches!(class, Class::Delegated);
    let mut request = ExchangeRequest {
        class,
        zone: &world.zone,
        request_id: &world.request_id,
        application: &world.caller,
        registration_method: "managed",
        scope: &world.scope,
        ttl_seconds: world.ttl_seconds,
        session_id: None,
        agent_session_id: leaf
            .filter(|_| delegated)
            .map(|leaf| &leaf.target_session_id),
        delegation_edge_id: leaf.filter(|_| delegated).map(|leaf| &leaf.id),
        actor: None,
    };
    change(&mut request);
    let facts = crate::decide::Facts {
        resources: &resources,
        known: Known {
            sessions: &world.sessions,
            records: &world.records,
        },
        lineage: &world.lineage,
        epoch: 7,
        control_audience: "caracal-control",
        max_grant_ttl_seconds: 3600,
    };
    decide(&request, &facts, &policy(Says::allow()), world.now)
}

#[test]
fn rows_of_2_5_about_the_subject_token() {
    let mut world = World::new();
    world.scope = "agent:lifecycle".to_owned();
    let mut presented = granted(&world.decide(Class::Bootstrap, Says::allow()));
    presented.sid = RecordId::trusted("r1");
    let own = record("r1", SubjectType::Application, "app-0");
    let (other_record, other_session) = (RecordId::trusted("r2"), SessionId::trusted("s9"));
    let edge = DelegationId::trusted("e9");
    let ask = |presented: &Mandate, change: &dyn Fn(&mut crate::RecordFacts), form: u8| {
        let mut world = World::new();
        world.scope.clear();
        let mut facts = own.clone();
        change(&mut facts);
        world.records = vec![Arc::new(facts)];
        let class = Class::SubjectToken { presented };
        named(&world, class, |request| match form {
            1 => request.session_id = Some(&other_record),
            2 => request.agent_session_id = Some(&other_session),
            3 => request.delegation_edge_id = Some(&edge),
            _ => {}
        })
    };
    let with = |change: &dyn Fn(&mut Mandate)| {
        let mut presented = presented.clone();
        change(&mut presented);
        presented
    };
    let as_it_is = |_: &mut crate::RecordFacts| ();
    let in_session = with(&|m| m.agent_session_id = Some(session_id(0)));
    check([
        (
            "step 11, all in order",
            ask(&presented, &as_it_is, 0),
            "403 access_denied: resource exchanges must use the Gateway | deny exchange_denied",
        ),
        (
            "step 4, other use",
            ask(
                &with(&|m| m.token_use = caracal_model::TokenUse::Gateway),
                &as_it_is,
                0,
            ),
            "401 invalid_token: subject_token is not a session mandate | deny exchange_denied",
        ),
        (
            "step 4, other zone",
            ask(
                &with(&|m| m.zone_id = caracal_model::ZoneId::trusted("z9")),
                &as_it_is,
                0,
            ),
            "401 invalid_token: subject_token is of another zone | deny exchange_denied",
        ),
        (
            "step 4, other client",
            ask(&with(&|m| m.client_id = app(1)), &as_it_is, 0),
            "403 access_denied: subject_token belongs to another application | deny exchange_denied",
        ),
        (
            "step 4, session_id differs",
            ask(&presented, &as_it_is, 1),
            "403 access_denied: session_id does not match subject_token | deny exchange_denied",
        ),
        (
            "step 4, no record",
            ask(&with(&|m| m.sid = RecordId::trusted("r9")), &as_it_is, 0),
            "403 access_denied: authority record is not active | deny exchange_denied",
        ),
        (
            "step 4, record revoked",
            ask(&presented, &|r| r.status = RecordStatus::Revoked, 0),
            "403 access_denied: authority record is not active | deny exchange_denied",
        ),
        (
            "step 4, record over",
            ask(&presented, &|r| r.expires_at = NOW, 0),
            "403 access_denied: authority record is not active | deny exchange_denied",
        ),
        (
            "step 4, record of another subject",
            ask(&presented, &|r| r.subject_id = "else".into(), 0),
            "403 access_denied: authority record belongs to another subject | deny exchange_denied",
        ),
        (
            "step 4, record of another client",
            ask(&presented, &|r| r.client_id = app(1), 0),
            "403 access_denied: authority record belongs to another subject | deny exchange_denied",
        ),
        (
            "step 4, session differs",
            ask(&in_session, &as_it_is, 2),
            "403 access_denied: agent_session_id does not match subject_token | deny exchange_denied",
        ),
        (
            "step 4, delegation differs",
            ask(
                &with(&|m| m.delegation_edge_id = Some(edge_id(0))),
                &as_it_is,
                3,
            ),
            "403 access_denied: delegation_edge_id does not match subject_token | deny exchange_denied",
        ),
        (
            "§9 row 2, session of another record",
            ask(&in_session, &as_it_is, 0),
            "403 access_denied: agent session hangs on another authority record | deny exchange_denied",
        ),
    ]);
    check([(
        "step 2, no resources",
        mint(|w| w.requested.clear()),
        "400 invalid_token: at least one resource is required | ",
    )]);
}

#[test]
fn rows_of_2_7() {
    check([
        (
            "over the cap",
            mint(|w| w.ttl_seconds = 3601),
            "400 invalid_token: ttl_seconds must not exceed 3600 | deny exchange_denied",
        ),
        (
            "negative",
            mint(|w| w.ttl_seconds = -1),
            "400 invalid_token: ttl_seconds must be positive | deny exchange_denied",
        ),
        (
            "over the cap with a subject token",
            {
                let mut world = World::new();
                let presented = world.mandate();
                world.ttl_seconds = 901;
                world.decide(gateway(&presented, "GET", "/tickets"), Says::allow())
            },
            "400 invalid_token: ttl_seconds must not exceed 900 | deny exchange_denied",
        ),
        (
            "constraint already past",
            mint(|w| w.edge(0).constraints.expires_at = Some(NOW)),
            "403 access_denied: delegation is not active | deny exchange_denied",
        ),
        (
            "§9 row 6, over the constraint",
            mint(|w| {
                w.edge(0).constraints.ttl_seconds = Some(60);
                w.ttl_seconds = 61;
            }),
            "403 access_denied: ttl_seconds exceeds the delegation | deny exchange_denied",
        ),
    ]);
    let life = |change: fn(&mut World)| {
        let mandate = granted(&mint(change));
        mandate.exp - mandate.iat
    };
    assert_eq!(life(|w| w.edge(0).expires_at = after(5000)), 900, "default");
    assert_eq!(
        life(|w| {
            w.edge(0).expires_at = after(5000);
            w.ttl_seconds = 3600;
        }),
        3600,
        "cap"
    );
    assert_eq!(life(|_| ()), 600, "delegation expiry");
    assert_eq!(
        life(|w| w.edge(0).constraints.ttl_seconds = Some(60)),
        60,
        "constraint"
    );
    assert_eq!(
        life(|w| w.edge(0).constraints.expires_at = Some(after(9))),
        9,
        "constraint time"
    );
}

#[test]
fn rows_of_9() {
    let gone = RecordId::trusted("r9");
    let bare = World::new();
    let leaf = bare.lineage[0].clone();
    let not_live = "403 access_denied: agent session is not live | deny exchange_denied";
    let session_dead =
        "403 access_denied: a session of the delegation is not live | deny exchange_denied";
    let inactive = "403 access_denied: delegation is not active | deny exchange_denied";
    check([
        (
            "row 1, no record",
            named(&bare, Class::Delegated, |r| r.session_id = Some(&gone)),
            "403 access_denied: authority record is not active | deny exchange_denied",
        ),
        (
            "row 2, no session",
            mint(|w| w.sessions.truncate(1)),
            not_live,
        ),
        (
            "row 2, suspended",
            mint(|w| w.session(1).status = SessionStatus::Suspended),
            not_live,
        ),
        (
            "row 2, terminated",
            mint(|w| w.session(1).status = SessionStatus::Terminated),
            not_live,
        ),
        (
            "row 2, task over",
            mint(|w| w.session(1).ends_at = Some(NOW)),
            not_live,
        ),
        (
            "row 2, task without an end",
            mint(|w| w.session(1).ends_at = None),
            not_live,
        ),
        (
            "row 2, lease lapsed",
            mint(|w| {
                w.session(1).lifecycle = Lifecycle::Service;
                w.session(1).heartbeat_deadline_at = Some(NOW);
            }),
            not_live,
        ),
        (
            "row 2, user record gone",
            mint(|w| w.session(1).subject_type = SubjectType::User),
            not_live,
        ),
        (
            "row 2, other application",
            mint(|w| w.session(1).application_id = app(1)),
            "403 access_denied: agent session belongs to another application | deny exchange_denied",
        ),
        (
            "row 3, delegation alone",
            named(&bare, Class::Bootstrap, |r| {
                r.delegation_edge_id = Some(&leaf.id)
            }),
            "403 access_denied: a delegation needs its agent session | deny exchange_denied",
        ),
        (
            "row 3, unknown edge",
            mint(|w| w.lineage.clear()),
            "403 access_denied: agent session and delegation belong together | deny exchange_denied",
        ),
        (
            "row 3, revoked",
            mint(|w| w.edge(0).status = EdgeStatus::Revoked),
            inactive,
        ),
        (
            "row 3, expired",
            mint(|w| w.edge(0).expires_at = NOW),
            inactive,
        ),
        (
            "row 3, other target",
            {
                let mut world = World::chain(&[0, 0, 0], &[(2, false), (1, false)]);
                world.lineage.pop();
                let other = session_id(2);
                named(&world, Class::Delegated, |r| {
                    r.agent_session_id = Some(&other)
                })
            },
            "403 access_denied: delegation does not lead to this session | deny exchange_denied",
        ),
        (
            "row 4, source not live",
            mint(|w| w.session(0).status = SessionStatus::Suspended),
            session_dead,
        ),
        (
            "row 4, source of another issuer",
            mint(|w| w.session(0).application_id = app(1)),
            "403 access_denied: delegation lineage is inconsistent | deny exchange_denied",
        ),
        (
            "row 4, other receiver",
            mint(|w| w.edge(0).receiver_application_id = app(1)),
            "403 access_denied: delegation does not lead to this application | deny exchange_denied",
        ),
        (
            "row 6, scopes",
            mint(|w| w.scope = "desk:read mail:send".to_owned()),
            "403 access_denied: requested scopes exceed the delegation | deny exchange_denied",
        ),
        (
            "row 7, an ancestor revoked",
            {
                let mut world = World::chain(&[0, 1, 2], &[(2, false), (1, false)]);
                world.edge(0).status = EdgeStatus::Revoked;
                world.decide(Class::Delegated, Says::allow())
            },
            inactive,
        ),
        (
            "row 7, out of hops",
            World::chain(&[0, 1, 2], &[(1, false), (1, false)])
                .decide(Class::Delegated, Says::allow()),
            "403 access_denied: delegation allows no further hop | deny exchange_denied",
        ),
        (
            "row 7, too long",
            World::chain(&[0; 12], &[(12, false); 11]).decide(Class::Delegated, Says::allow()),
            "403 access_denied: delegation path is too long | deny exchange_denied",
        ),
        (
            "row 9, receiver is not the next issuer",
            {
                let mut world = World::chain(&[0, 1, 2], &[(2, false), (1, false)]);
                world.edge(0).receiver_application_id = app(2);
                world.decide(Class::Delegated, Says::allow())
            },
            "403 access_denied: delegation lineage is inconsistent | deny exchange_denied",
        ),
    ]);
    // Row 8: without an epoch the claim is left out.
    let world = World::new();
    let resources = world.requested();
    let mandate = world.ask(Class::Delegated, &resources, |request, facts| {
        let mut facts = *facts;
        facts.epoch = 0;
        granted(&decide(request, &facts, &policy(Says::allow()), NOW))
    });
    assert_eq!(mandate.delegation_graph_epoch, None);
    // Row 5: constraints are read strictly.
    for (constraints, reads) in [
        (json!({}), true),
        (json!({"max_depth": 2}), true),
        (json!({"max_depth": 2, "max_hops": 2}), true),
        (json!({"max_depth": 1, "max_hops": 2}), false),
        (json!({"max_hops": -1}), false),
        (json!({"max_hops": 11}), false),
        (json!({"ttl_seconds": -1}), false),
        (json!({"expires_at": "tomorrow"}), false),
        (json!({"color": "red"}), false),
    ] {
        assert_eq!(
            Constraints::parse(&constraints).is_ok(),
            reads,
            "{constraints}"
        );
    }
}
