//! Sessions and Delegations (coordinator §4, §6, §7, §10).

use serde_json::{Value, json};

use super::{Case, Scene};

pub async fn cases(scene: &Scene) -> Vec<Case> {
    let mut cases = admission(scene).await;
    cases.extend(sessions(scene));
    cases.extend(delegations(scene));
    cases
}

/// A request of the lifecycle token, below the zone.
fn at(scene: &Scene, what: &str, method: &'static str, path: &str, expected: &'static str) -> Case {
    bare(scene, what, method, path, expected).bearer(&scene.agent.lifecycle)
}

fn bare(
    scene: &Scene,
    what: &str,
    method: &'static str,
    path: &str,
    expected: &'static str,
) -> Case {
    let url = format!(
        "{}/zones/{}{path}",
        scene.world.stack.urls.coordinator, scene.world.zone
    );
    Case::new(what, method, url, expected)
}

async fn admission(scene: &Scene) -> Vec<Case> {
    let stack = &scene.world.stack;
    let base = &stack.urls.coordinator;
    let foreign = format!("{base}/zones/{}/agents", scene.other.zone);
    let mandate = scene.world.mandate(&scene.agent).await;
    let operator = &stack.operator_token;
    vec![
        bare(scene, "no token", "GET", "/agents", "401 missing_token"),
        bare(scene, "no token", "POST", "/agents", "401 missing_token").json(&json!({})),
        bare(scene, "garbage", "GET", "/agents", "401 invalid_token").bearer("garbage"),
        bare(
            scene,
            "gateway mandate",
            "GET",
            "/agents",
            "401 invalid_token",
        )
        .bearer(&mandate),
        bare(
            scene,
            "operator starts",
            "POST",
            "/agents",
            "401 invalid_token",
        )
        .bearer(operator)
        .json(&json!({"application_id": scene.world.app})),
        Case::new("another zone", "GET", foreign, "403 zone_mismatch")
            .bearer(&scene.agent.lifecycle),
        at(
            scene,
            "id with a blank",
            "GET",
            "/agents/a%20b",
            "400 invalid_params",
        ),
        at(scene, "no such route", "GET", "/nothing", "404 not_found"),
        at(scene, "no such method", "PUT", "/agents", "404 not_found"),
        Case::new(
            "runtime token",
            "GET",
            format!("{base}/stats"),
            "403 operator_token_required",
        )
        .bearer(&scene.agent.lifecycle),
        Case::new(
            "no token",
            "GET",
            format!("{base}/stats"),
            "401 missing_token",
        ),
        at(
            scene,
            "runtime token",
            "GET",
            &format!("/delegations/{}/traverse", scene.agent.edge),
            "403 coordinator_admin_required",
        ),
    ]
}

#[rustfmt::skip] // a table reads best as a table
fn sessions(scene: &Scene) -> Vec<Case> {
    let app = &scene.world.app;
    let start = |what: &str, more: Value, expected| {
        let mut body = json!({"application_id": app});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        at(scene, what, "POST", "/agents", expected).json(&body)
    };
    let session = &scene.agent.session;
    let many: Vec<String> = (0..33).map(|n| n.to_string()).collect();
    let mut cases = vec![
        at(scene, "not JSON", "POST", "/agents", "400 internal_error").header("content-type", "application/json").body("{"),
        at(scene, "another media type", "POST", "/agents", "415 internal_error").header("content-type", "text/plain").body("{}"),
        at(scene, "oversized", "POST", "/agents", "413 internal_error").json(&json!({"application_id": "a".repeat(300_000)})),
        at(scene, "array", "POST", "/agents", "400 invalid_body").json(&json!([])),
        at(scene, "no application", "POST", "/agents", "400 invalid_body").json(&json!({})),
        start("application is a number", json!({"application_id": 5}), "400 invalid_body"),
        start("application is empty", json!({"application_id": ""}), "400 invalid_body"),
        start("TTL in words", json!({"ttl_seconds": "60"}), "400 invalid_body"),
        start("TTL with a fraction", json!({"ttl_seconds": 1.5}), "400 invalid_body"),
        start("TTL of zero", json!({"ttl_seconds": 0}), "400 invalid_body"),
        start("TTL over a day", json!({"ttl_seconds": 86_401}), "400 invalid_body"),
        start("service with a TTL", json!({"lifecycle": "service", "ttl_seconds": 60}), "400 invalid_body"),
        start("unknown lifecycle", json!({"lifecycle": "daemon"}), "400 invalid_body"),
        start("labels are text", json!({"labels": "a"}), "400 invalid_body"),
        start("a label is a number", json!({"labels": [1]}), "400 invalid_body"),
        start("a blank label", json!({"labels": [" "]}), "400 invalid_body"),
        start("a long label", json!({"labels": ["a".repeat(65)]}), "400 invalid_body"),
        start("33 labels", json!({"labels": many}), "400 invalid_body"),
        start("metadata is a list", json!({"metadata": []}), "400 invalid_body"),
        start("unknown authority", json!({"parent_authority": "all"}), "400 invalid_body"),
        start("another application", json!({"application_id": scene.other.app}), "403 application_ownership_required"),
        start("unknown parent", json!({"parent_id": "nobody"}), "404 parent_not_found"),
        start("unknown record", json!({"subject_session_id": "nobody"}), "404 session_not_found"),
        start("long key", json!({}), "400 idempotency_key_invalid").header("idempotency-key", "k".repeat(256)),
        start("two keys", json!({}), "400 idempotency_key_multiple").header("idempotency-key", "a").header("idempotency-key", "b"),
        at(scene, "unknown", "GET", "/agents/nobody", "404 session_not_found"),
        at(scene, "unknown", "DELETE", "/agents/nobody", "404 session_not_found"),
        at(scene, "unknown", "PATCH", "/agents/nobody/suspend", "404 session_not_found"),
        at(scene, "not suspended", "PATCH", &format!("/agents/{session}/resume"), "409 session_not_found_or_not_suspended"),
        at(scene, "a task has no lease", "POST", &format!("/agents/{session}/lease"), "409 session_not_service"),
        at(scene, "a task has no heart", "POST", &format!("/agents/{session}/heartbeat"), "409 session_not_service").json(&json!({"lease_generation": 1})),
        at(scene, "no generation", "POST", &format!("/agents/{session}/heartbeat"), "400 invalid_body").json(&json!({})),
        at(scene, "generation in words", "POST", &format!("/agents/{session}/heartbeat"), "400 invalid_body").json(&json!({"lease_generation": "1"})),
    ];
    for query in ["limit=0", "limit=501", "limit=x", "status=asleep", "lifecycle=x"] {
        cases.push(at(scene, "query", "GET", &format!("/agents?{query}"), "400 invalid_query"));
    }
    cases.push(at(scene, "cursor", "GET", "/agents?cursor=nobody", "400 invalid_cursor"));
    cases
}

#[rustfmt::skip] // a table reads best as a table
fn delegations(scene: &Scene) -> Vec<Case> {
    let agent = &scene.agent;
    let wish = |what: &str, more: Value, expected| {
        let mut body = json!({
            "source_session_id": agent.parent, "target_session_id": agent.session,
            "issuer_application_id": scene.world.app, "receiver_application_id": scene.world.app,
            "scopes": ["desk:read"], "resource_id": scene.world.resource, "ttl_seconds": 60,
        });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        // `null` stands for absent in these tables.
        body.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        at(scene, what, "POST", "/delegations", expected).json(&body)
    };
    let edge = &agent.edge;
    vec![
        at(scene, "empty", "POST", "/delegations", "400 invalid_body"),
        at(scene, "not JSON", "POST", "/delegations", "400 internal_error").header("content-type", "application/json").body("nope"),
        wish("no source", json!({"source_session_id": null}), "400 invalid_body"),
        wish("source is a number", json!({"source_session_id": 1}), "400 invalid_body"),
        wish("scopes are text", json!({"scopes": "desk:read"}), "400 invalid_body"),
        wish("an empty scope", json!({"scopes": [""]}), "400 invalid_body"),
        wish("TTL in words", json!({"ttl_seconds": "60"}), "400 invalid_body"),
        wish("local time", json!({"ttl_seconds": null, "expires_at": "2030-01-01T00:00:00+01:00"}), "400 invalid_body"),
        wish("no expiry", json!({"ttl_seconds": null}), "400 delegation_expiry_required"),
        wish("past expiry", json!({"expires_at": "2020-01-01T00:00:00Z"}), "400 delegation_expired"),
        wish("constraints are a list", json!({"constraints": []}), "400 invalid_delegation_constraint"),
        wish("unknown constraint", json!({"constraints": {"resource": DESK}}), "400 invalid_delegation_constraint"),
        wish("too many hops", json!({"constraints": {"max_hops": 11}}), "400 invalid_max_hops"),
        wish("no hops", json!({"constraints": {"max_hops": 0}}), "400 invalid_max_hops"),
        wish("depth is not hops", json!({"constraints": {"max_hops": 2, "max_depth": 3}}), "400 invalid_max_hops"),
        wish("budget", json!({"constraints": {"budget": 65}}), "400 invalid_budget"),
        wish("to itself", json!({"target_session_id": agent.parent}), "400 self_delegation_denied"),
        wish("of another application", json!({"issuer_application_id": scene.other.app}), "403 issuer_ownership_required"),
        wish("of everything", json!({"resource_id": null}), "403 broad_delegation_permission_required"),
        wish("unknown target", json!({"target_session_id": "nobody"}), "404 delegation_endpoint_not_found"),
        wish("another receiver", json!({"receiver_application_id": scene.other.app}), "409 delegation_application_mismatch"),
        wish("unknown resource", json!({"resource_id": "resource://nowhere"}), "404 resource_not_found"),
        wish("mismatch", json!({"constraints": {"resources": ["resource://nowhere"]}}), "404 resource_not_found"),
        wish("undeclared scope", json!({"scopes": ["desk:admin"]}), "403 delegation_scopes_exceed_resource"),
        wish("a circle", json!({"source_session_id": agent.session, "target_session_id": agent.parent}), "403 delegation_exceeds_parent_authority"),
        at(scene, "unknown", "PATCH", "/delegations/nothing/revoke", "404 delegation_not_found"),
        at(scene, "unknown", "GET", &format!("/delegations/inbound/{}/nothing", agent.session), "404 delegation_not_found"),
        at(scene, "not mine", "GET", "/delegations/inbound/nobody", "404 session_not_found"),
        at(scene, "runtime token", "GET", &format!("/delegations/{edge}/impact"), "403 coordinator_admin_required"),
        at(scene, "no such method", "DELETE", &format!("/delegations/{edge}"), "404 not_found"),
    ]
}

const DESK: &str = xtest::DESK;
