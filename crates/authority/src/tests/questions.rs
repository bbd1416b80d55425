//! What policy is asked (spec: sts §10.2).

use crate::decide::Class;
use serde_json::json;

use super::world::*;

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
