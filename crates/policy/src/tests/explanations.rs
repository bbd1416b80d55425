//! Which rule, which grant, and what would have to change.

use serde_json::{Value, json};

use super::documents;
use crate::{explain, question};

const BODY: &str = r#"app_ids := {"desk": "app-1"}
grants := {"resource://r": {"application": "desk",
    "roles": {"reader": ["r:read"], "clerk": ["r:read", "r:write"]}}}
confinement := [{"label_prefix": "customer:", "scopes": ["r:read"]}]"#;

fn mint(principal: Value, scopes: &[&str]) -> Value {
    let mut input = json!({
        "principal": {"type": "Application", "id": "app-1", "agent_session_id": "s1"},
        "resource": {"identifier": "resource://r"}, "action": {"id": "TokenExchange"},
        "delegation_edge": {"id": "e1", "scopes": ["r:read", "r:write"]},
        "context": {"requested_scopes": scopes},
    });
    let members = input["principal"].as_object_mut().unwrap();
    members.extend(principal.as_object().unwrap().clone());
    input
}

/// The rule, and what would have to change.
fn told(bodies: &[&str], input: &Value) -> (String, Vec<String>) {
    let told = explain(&documents(bodies), &question(input).unwrap()).unwrap();
    (
        told.rule,
        told.checks
            .into_iter()
            .filter_map(|c| c.change.map(|change| format!("{}: {change}", c.check)))
            .collect(),
    )
}

#[test]
fn a_mint_that_is_allowed_names_policy_and_grant() {
    let input = mint(json!({"labels": ["clerk"]}), &["r:write"]);
    let told = explain(&documents(&[BODY]), &question(&input).unwrap()).unwrap();
    assert_eq!(
        (told.kind, told.rule.as_str()),
        ("mint", "caracal-desk-mint")
    );
    assert!(told.checks.iter().all(|check| check.holds));
    assert_eq!(
        told.grant,
        Some(json!({
            "resource": "resource://r", "application": "desk", "application_id": "app-1",
            "roles": {"clerk": ["r:read", "r:write"]},
        }))
    );
}

#[test]
fn a_denial_says_what_would_have_to_change() {
    let (rule, changes) = told(&[BODY], &mint(json!({"labels": ["reader"]}), &["r:write"]));
    assert_eq!(rule, "role_scope_mismatch");
    assert_eq!(
        changes,
        ["role: label the Session with a role that covers all of r:write: clerk; or add a role"]
    );
    let confined = mint(json!({"labels": ["clerk", "customer:42"]}), &["r:write"]);
    let (rule, changes) = told(&[BODY], &confined);
    assert_eq!(rule, "confinement_violation");
    assert!(
        changes.len() == 1 && changes[0].starts_with("confined: "),
        "{changes:?}"
    );
    let (rule, changes) = told(
        &[BODY],
        &mint(json!({"id": "app-9", "labels": ["clerk"]}), &["r:read"]),
    );
    assert_eq!(rule, "resource_not_granted");
    assert!(
        changes[0].contains("`app_ids` maps to `app-9`"),
        "{changes:?}"
    );
    let (rule, changes) = told(
        &[BODY, "restrict := {\"x\"}"],
        &mint(json!({}), &["r:read"]),
    );
    assert_eq!((rule.as_str(), changes.len()), ("restriction_active", 2));
    let (rule, changes) = told(&[BODY], &json!({}));
    assert_eq!((rule.as_str(), changes.len()), ("no_rule_matched", 1));
}

#[test]
fn documents_that_depend_on_the_question_are_explained_for_it() {
    let body = "restrict := {\"x\"} if input.action.method == \"GET\"";
    let of = |method: &str| told(&[body], &json!({"action": {"method": method}})).0;
    assert_eq!(
        (of("GET").as_str(), of("POST").as_str()),
        ("restriction_active", "no_rule_matched")
    );
    let broken = explain(
        &documents(&["risk := []", "risk := [1]"]),
        &Default::default(),
    );
    assert!(broken.is_err());
}
