//! The decision contract, reason by reason, asked of both implementations (spec: sts §10.3).

use caracal_model::policy::PolicyInput;
use serde_json::{Value, json};

use super::{both, native};
use crate::{DenyAll, question};
use caracal_model::policy::Contract;

const APPS: &str = r#"app_ids := {"desk": "app-1", "mail": "app-2"}"#;
const GRANTS: &str = r#"grants := {
    "resource://r": {"application": "desk", "roles": {"reader": ["r:read"], "clerk": ["r:read", "r:write"]}},
    "resource://other": {"application": "mail", "roles": {"reader": ["o:read"]}}}"#;

fn merge(base: &mut Value, change: &Value) {
    let (Value::Object(base), Value::Object(change)) = (base, change) else {
        return;
    };
    for (name, value) in change {
        match base.get_mut(name) {
            Some(old) if old.is_object() && value.is_object() => merge(old, value),
            _ => drop(base.insert(name.clone(), value.clone())),
        }
    }
}

fn input(mut base: Value, change: &Value) -> PolicyInput {
    merge(&mut base, change);
    question(&base).unwrap()
}

fn bootstrap(change: &Value) -> PolicyInput {
    let base = json!({
        "principal": {"type": "Application", "id": "app-1", "zone_id": "z"},
        "resource": {"identifier": "resource://r"}, "action": {"id": "TokenExchange"},
        "context": {"requested_scopes": ["agent:lifecycle"]},
    });
    input(base, change)
}

fn mint(change: &Value) -> PolicyInput {
    let base = json!({
        "principal": {"type": "Application", "id": "app-1", "agent_session_id": "s1",
            "labels": ["customer:42", "clerk"]},
        "resource": {"identifier": "resource://r"}, "action": {"id": "TokenExchange"},
        "delegation_edge": {"id": "e1", "scopes": ["r:read", "r:write"]},
        "context": {"requested_scopes": ["r:read"], "agent_session_id": "s1",
            "delegation_edge_id": "e1"},
    });
    input(base, change)
}

fn call(change: &Value) -> PolicyInput {
    let base = json!({
        "principal": {"type": "Application", "id": "app-1", "agent_session_id": "s1",
            "labels": ["clerk"]},
        "resource": {"identifier": "resource://r"},
        "action": {"id": "TokenExchange", "method": "GET", "path": "/"},
        "delegation_edge": {"id": "e1", "scopes": ["r:read"]},
        "context": {"subject_claims": {"delegation_edge_id": "e1", "scope": "r:read r:write",
            "target": ["resource://r"]}},
    });
    input(base, change)
}

fn workload() -> PolicyInput {
    let base = json!({
        "principal": {"type": "Workload", "id": "w1"}, "action": {"id": "CredentialInjection"},
        "resource": {"identifier": "resource://r"}, "context": {"requested_scopes": ["r:read"]},
    });
    input(base, &json!({}))
}

/// The policy that allowed it, or the reason why not.
fn outcome(bodies: &[&str], input: &PolicyInput) -> String {
    match both(bodies, input) {
        Err(_) => "fault".to_owned(),
        Ok(result) if result.allow => result.determining.join(","),
        Ok(result) => {
            assert!(result.determining.is_empty() && result.diagnostics.len() == 1);
            result.reason().unwrap().to_owned()
        }
    }
}

fn granted(extra: &str, input: &PolicyInput) -> String {
    outcome(&[APPS, GRANTS, extra], input)
}

#[test]
fn a_lifecycle_token_is_for_the_owner_alone() {
    let none = json!({});
    assert_eq!(
        granted("restrict := {}", &bootstrap(&none)),
        "caracal-bootstrap"
    );
    for change in [
        json!({"principal": {"id": "app-2"}}),
        json!({"resource": {"identifier": "resource://unknown"}}),
        json!({"context": {"requested_scopes": ["agent:lifecycle", "r:read"]}}),
        json!({"context": {"requested_scopes": []}}),
        json!({"context": {"agent_session_id": "s1"}}),
        json!({"context": {"delegation_edge_id": "e1"}}),
        json!({"delegation_edge": {"id": "e1"}}),
        json!({"context": {"subject_claims": {"sub": "x"}}}),
    ] {
        assert_eq!(
            granted("restrict := {}", &bootstrap(&change)),
            "no_rule_matched",
            "{change}"
        );
    }
    let twice = json!({"context": {"requested_scopes": ["agent:lifecycle", "agent:lifecycle"]}});
    assert_eq!(
        granted("restrict := {}", &bootstrap(&twice)),
        "caracal-bootstrap"
    );
}

#[test]
fn a_delegated_mint_is_denied_for_the_first_reason_that_applies() {
    let ask = |extra: &str, change: Value| granted(extra, &mint(&change));
    let free = "restrict := []";
    assert_eq!(ask(free, json!({})), "caracal-desk-mint");
    assert_eq!(
        ask(
            free,
            json!({"context": {"requested_scopes": ["r:read", "r:write"]}})
        ),
        "caracal-desk-mint"
    );
    assert_eq!(ask("restrict := {\"x\"}", json!({})), "restriction_active");
    assert_eq!(ask("risk := {}", json!({})), "malformed_risk_data");
    assert_eq!(
        ask("approval_tiers := 1", json!({})),
        "malformed_approval_data"
    );
    assert_eq!(
        ask(free, json!({"principal": {"id": "app-2"}})),
        "resource_not_granted"
    );
    assert_eq!(
        ask(free, json!({"delegation_edge": {"scopes": ["r:write"]}})),
        "delegation_scope_exceeded"
    );
    let confined = "confinement := [{\"label_prefix\": \"customer:\", \"scopes\": [\"r:write\"]}]";
    assert_eq!(ask(confined, json!({})), "confinement_violation");
    assert_eq!(
        ask(confined, json!({"principal": {"labels": ["clerk"]}})),
        "caracal-desk-mint"
    );
    assert_eq!(
        ask(
            free,
            json!({"principal": {"labels": ["reader", "writer"]},
        "context": {"requested_scopes": ["r:write"]}})
        ),
        "role_scope_mismatch"
    );
    assert_eq!(
        ask(free, json!({"principal": {"labels": []}})),
        "role_scope_mismatch"
    );
    assert_eq!(
        ask(free, json!({"context": {"requested_scopes": []}})),
        "no_rule_matched"
    );
    assert_eq!(
        ask(
            free,
            json!({"context": {"requested_scopes": ["agent:lifecycle"]}})
        ),
        "no_rule_matched"
    );
}

#[test]
fn one_label_must_cover_all_scopes() {
    let split = r#"grants := {"resource://r": {"application": "desk",
        "roles": {"a": ["r:read"], "b": ["r:write"]}}}"#;
    let change = json!({"principal": {"labels": ["a", "b"]},
        "context": {"requested_scopes": ["r:read", "r:write"]}});
    assert_eq!(
        outcome(&[APPS, split], &mint(&change)),
        "role_scope_mismatch"
    );
}

#[test]
fn a_call_needs_target_owner_and_role() {
    let ask = |change: Value| granted("restrict := {}", &call(&change));
    assert_eq!(ask(json!({})), "caracal-desk-use");
    let claims = |claims: Value| json!({"context": {"subject_claims": claims}});
    assert_eq!(
        ask(claims(json!({"target": ["resource://other"]}))),
        "mandate_target_mismatch"
    );
    assert_eq!(
        ask(json!({"principal": {"id": "app-2"}})),
        "resource_not_granted"
    );
    assert_eq!(
        ask(claims(json!({"scope": "r:read  r:write"}))),
        "role_scope_mismatch"
    );
    assert_eq!(
        ask(claims(json!({"scope": "r:admin"}))),
        "role_scope_mismatch"
    );
    assert_eq!(ask(claims(json!({"scope": ""}))), "no_rule_matched");
    assert_eq!(
        ask(claims(json!({"delegation_edge_id": ""}))),
        "no_rule_matched"
    );
    assert_eq!(
        ask(json!({"context": {"requested_scopes": ["r:read"]}})),
        "no_rule_matched"
    );
}

#[test]
fn a_workload_needs_no_grant_but_well_formed_gates() {
    assert_eq!(
        outcome(&["restrict := {}"], &workload()),
        "caracal-workload-mint"
    );
    assert_eq!(
        outcome(&["risk := [{\"scope\": \"\"}]"], &workload()),
        "malformed_risk_data"
    );
    assert_eq!(
        outcome(&["approval_tiers := [{}]"], &workload()),
        "malformed_approval_data"
    );
    assert_eq!(
        outcome(&["restrict := [0]"], &workload()),
        "restriction_active"
    );
}

#[test]
fn only_a_filled_collection_restricts() {
    for (value, expected) in [
        ("{}", "caracal-bootstrap"),
        ("[]", "caracal-bootstrap"),
        ("set()", "caracal-bootstrap"),
        ("false", "caracal-bootstrap"),
        ("\"\"", "caracal-bootstrap"),
        ("{\"a\": false}", "restriction_active"),
        ("[null]", "restriction_active"),
        ("{\"a\"}", "restriction_active"),
    ] {
        let restrict = format!("restrict := {value}");
        assert_eq!(
            granted(&restrict, &bootstrap(&json!({}))),
            expected,
            "{value}"
        );
    }
}

#[test]
fn malformed_confinement_confines_everything() {
    for rules in [
        "false",
        "\"x\"",
        "[1]",
        "[{}]",
        "[{\"label_prefix\": \"x\"}]",
        "[{\"label_prefix\": 1, \"scopes\": []}]",
        "[{\"label_prefix\": \"x\", \"scopes\": \"y\"}]",
        "[{\"label_prefix\": \"x\", \"scopes\": [1]}]",
        "{\"a\": 1}",
        "null",
    ] {
        let confinement = format!("confinement := {rules}");
        assert_eq!(
            granted(&confinement, &mint(&json!({}))),
            "confinement_violation",
            "{rules}"
        );
    }
    for rules in [
        "[]",
        "{}",
        "set()",
        "[{\"label_prefix\": \"z\", \"scopes\": set()}]",
    ] {
        let confinement = format!("confinement := {rules}");
        assert_eq!(
            granted(&confinement, &mint(&json!({}))),
            "caracal-desk-mint",
            "{rules}"
        );
    }
}

#[test]
fn gates_are_named_on_a_mint_and_only_there() {
    let gates = r#"
        risk := [{"scope": "r:write", "tier": "high"}, {"scope": "r:read", "tier": "low"}, {"scope": "x", "tier": "high"}]
        approval_tiers := [{"tier": "high", "ttl_seconds": 60.0, "note": "b"}, {"tier": "high", "approver": "any"},
            {"tier": "none"}, {"tier": "high", "approver": "any"}]"#;
    let asks = json!({"context": {"requested_scopes": ["r:write", "r:read"]}});
    let result = both(&[APPS, GRANTS, gates], &mint(&asks)).unwrap();
    assert!(result.allow);
    assert_eq!(
        Value::from(result.diagnostics),
        json!([
            {"step_up_required": {"type": "human_approval", "tiers": [
                {"approver": "any", "tier": "high"},
                {"note": "b", "tier": "high", "ttl_seconds": 60}]}},
            {"risk": [{"scope": "r:read", "tier": "low"}, {"scope": "r:write", "tier": "high"}]},
        ])
    );
    let result = both(&[APPS, GRANTS, gates], &mint(&json!({}))).unwrap();
    assert_eq!(
        Value::from(result.diagnostics),
        json!([{"risk": [{"scope": "r:read", "tier": "low"}]}])
    );
    for input in [call(&json!({})), bootstrap(&json!({}))] {
        assert_eq!(
            both(&[APPS, GRANTS, gates], &input).unwrap().diagnostics,
            Vec::<Value>::new()
        );
    }
}

#[test]
fn one_scope_in_two_tiers_is_a_fault_and_never_an_allow() {
    let risk = r#"risk := [{"scope": "r:read", "tier": "a"}, {"scope": "r:read", "tier": "b"}]"#;
    assert_eq!(granted(risk, &mint(&json!({}))), "fault");
    let other = json!({"context": {"requested_scopes": ["r:write"]}});
    assert_eq!(granted(risk, &mint(&other)), "caracal-desk-mint");
    assert_eq!(granted(risk, &bootstrap(&json!({}))), "caracal-bootstrap");
}

#[test]
fn malformed_gates_deny_a_mint() {
    for risk in [
        "{1}",
        "[1]",
        "[{\"scope\": \"s\"}]",
        "[{\"scope\": \"s\", \"tier\": \"\"}]",
        "[{\"scope\": 1, \"tier\": \"t\"}]",
        "false",
        "null",
        "\"x\"",
    ] {
        let risk = format!("risk := {risk}");
        assert_eq!(
            granted(&risk, &mint(&json!({}))),
            "malformed_risk_data",
            "{risk}"
        );
    }
    for tiers in [
        "{\"tier\": \"a\"}",
        "[{\"tier\": \"\"}]",
        "[{\"tier\": \"a\", \"approver\": \"me\"}]",
        "[{\"tier\": \"a\", \"approver\": null}]",
        "[{\"tier\": \"a\", \"privacy\": 1}]",
        "[{\"tier\": \"a\", \"ttl_seconds\": 0}]",
        "[{\"tier\": \"a\", \"ttl_seconds\": 1.5}]",
        "[{\"tier\": \"a\", \"ttl_seconds\": \"60\"}]",
        "[{\"tier\": \"a\", \"ttl_seconds\": null}]",
        "false",
        "set()",
    ] {
        let tiers = format!("approval_tiers := {tiers}");
        assert_eq!(
            granted(&tiers, &mint(&json!({}))),
            "malformed_approval_data",
            "{tiers}"
        );
    }
}

#[test]
fn malformed_grants_grant_nothing() {
    for grants in [
        "{\"resource://r\": 1}",
        "[]",
        "{\"resource://r\": {\"application\": 1}}",
        "{\"resource://r\": {\"roles\": {\"clerk\": [\"r:read\"]}}}",
        "false",
        "\"x\"",
        "null",
    ] {
        let grants = format!("grants := {grants}");
        assert_eq!(
            outcome(&[APPS, &grants], &mint(&json!({}))),
            "resource_not_granted",
            "{grants}"
        );
    }
    for roles in [
        "1",
        "[[\"r:read\"]]",
        "{\"clerk\": \"r:read\"}",
        "{\"clerk\": {\"a\": \"r:read\"}}",
        "{\"clerk\": [1]}",
    ] {
        let grants = format!(
            "grants := {{\"resource://r\": {{\"application\": \"desk\", \"roles\": {roles}}}}}"
        );
        assert_eq!(
            outcome(&[APPS, &grants], &mint(&json!({}))),
            "role_scope_mismatch",
            "{roles}"
        );
    }
    for ids in [
        "[\"app-1\"]",
        "{\"desk\": 1}",
        "{\"desk\": [\"app-1\"]}",
        "\"app-1\"",
    ] {
        let ids = format!("app_ids := {ids}");
        assert_eq!(
            outcome(&[&ids, GRANTS], &mint(&json!({}))),
            "resource_not_granted",
            "{ids}"
        );
    }
}

#[test]
fn a_zone_without_documents_or_without_a_policy_set_denies() {
    for input in [bootstrap(&json!({})), PolicyInput::default()] {
        assert_eq!(outcome(&[], &input), "no_rule_matched");
        let result = DenyAll.evaluate(&input).unwrap();
        assert!(!result.allow);
        assert_eq!(
            Value::from(result.diagnostics),
            json!([{"reason": "no_active_policy_set"}])
        );
    }
}

#[test]
fn another_schema_version_is_a_fault() {
    let other = json!({"schema_version": "2027-01-01"});
    assert!(native(&[APPS]).evaluate(&bootstrap(&other)).is_err());
    assert!(super::rego(&[APPS]).evaluate(&bootstrap(&other)).is_err());
}
