//! No document makes validation, compilation or evaluation panic; and whatever document and
//! question: native contract, bytecode and interpreter give one answer.
//!
//! Text that a fuzzer invents is hardly ever a document, so half of the bytes choose among parts of
//! documents and questions; the rest is taken as it is.
#![no_main]

use caracal_model::policy::{EdgeInput, PolicyFault, PolicyInput, PolicyResult, SCHEMA_VERSION};
use caracal_policy::{compile, reference, validate, validate_whole};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

const RULES: [&str; 17] = [
    r#"app_ids := {"desk": "app-1", "mail": "app-2"}"#,
    r#"app_ids := {"desk": input.principal.id}"#,
    r#"grants := {"resource://a": {"application": "desk", "roles": {"clerk": ["r:read", "r:write"], "reader": ["r:read"]}}}"#,
    r#"grants := {"resource://a": {"application": "desk", "roles": {"clerk": {"r:read"}}}, "resource://b": 1}"#,
    r#"confinement := [{"label_prefix": "customer:", "scopes": ["r:read"]}]"#,
    r#"confinement := {"x": {"label_prefix": "c", "scopes": input.context.requested_scopes}}"#,
    "confinement := 1",
    "restrict := {}",
    r#"restrict := ["incident"]"#,
    r#"restrict contains label if { some label in input.principal.labels; label == "customer:42" }"#,
    r#"risk := [{"scope": "r:write", "tier": "high"}, {"scope": "r:read", "tier": "low"}]"#,
    r#"risk := [{"scope": scope, "tier": "low"} | some scope in input.context.requested_scopes]"#,
    r#"risk := [{"scope": "r:read", "tier": ""}]"#,
    r#"approval_tiers := [{"tier": "high", "approver": "any", "ttl_seconds": 60}]"#,
    r#"approval_tiers := [{"tier": "low", "privacy": "none"}]"#,
    "default restrict := {}",
    "approval_tiers := []",
];
const CONDITIONS: [&str; 8] = [
    r#"input.action.method == "GET""#,
    r#""clerk" in input.principal.labels"#,
    r#"some label in input.principal.labels; startswith(label, "customer:")"#,
    "not input.delegation_edge",
    "count(input.context.requested_scopes) > 1",
    r#"startswith(input.context.subject_claims.scope, "r")"#,
    r#"every scope in input.context.requested_scopes { scope != "" }"#,
    r#"input.context.subject_claims.sub == "u""#,
];
const SCOPES: [&str; 4] = ["r:read", "r:write", "agent:lifecycle", ""];
const LABELS: [&str; 4] = ["clerk", "reader", "customer:42", ""];

fn some(u: &mut Unstructured<'_>, words: &[&str]) -> Result<Vec<String>> {
    let mut chosen = Vec::new();
    for word in words {
        if u.arbitrary()? {
            chosen.push((*word).to_owned());
        }
    }
    Ok(chosen)
}

fn rule(u: &mut Unstructured<'_>) -> Result<String> {
    let rule = *u.choose(&RULES)?;
    let conditional = rule.contains(":=") && !rule.starts_with("default") && u.ratio(1, 3)?;
    Ok(match conditional {
        true => format!("{rule} if {{ {} }}", u.choose(&CONDITIONS)?),
        false => rule.to_owned(),
    })
}

fn documents(u: &mut Unstructured<'_>) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for at in 0..u.int_in_range(1..=3)? {
        let mut body = String::new();
        for _ in 0..u.int_in_range(1..=4)? {
            body.push_str(&rule(u)?);
            body.push('\n');
        }
        if u.ratio(1, 8)? {
            body.push_str(u.arbitrary()?);
        }
        let head = "# caracal:data-document\npackage caracal.authz\nimport rego.v1\n";
        all.push((format!("pv-{at}"), format!("{head}{body}")));
    }
    Ok(all)
}

fn question(u: &mut Unstructured<'_>) -> Result<PolicyInput> {
    let mut question = PolicyInput {
        schema_version: SCHEMA_VERSION.to_owned(),
        ..PolicyInput::default()
    };
    let workload: bool = u.ratio(1, 4)?;
    question.principal.kind = if workload { "Workload" } else { "Application" }.to_owned();
    question.action.id = match workload {
        true => "CredentialInjection",
        false => "TokenExchange",
    }
    .to_owned();
    question.principal.id = (*u.choose(&["app-1", "app-2", ""])?).to_owned();
    question.principal.labels = some(u, &LABELS)?;
    question.resource.identifier = (*u.choose(&["resource://a", "resource://b"])?).to_owned();
    question.context.requested_scopes = some(u, &SCOPES)?;
    if u.arbitrary()? {
        question.principal.agent_session_id = "s1".to_owned();
        question.context.agent_session_id = "s1".to_owned();
    }
    if u.arbitrary()? {
        question.delegation_edge = Some(EdgeInput {
            id: "e1".to_owned(),
            scopes: some(u, &SCOPES)?,
            ..EdgeInput::default()
        });
    }
    if u.arbitrary()? {
        question.action.method = (*u.choose(&["GET", "POST"])?).to_owned();
        let scope = u
            .choose(&[json!("r:read"), json!("r:read r:write"), json!(1)])?
            .clone();
        question.context.subject_claims = json!({
            "sub": "u", "scope": scope, "target": some(u, &["resource://a", "resource://b"])?,
            "delegation_edge_id": u.choose(&["e1", ""])?,
        });
    }
    Ok(question)
}

type Answer = std::result::Result<PolicyResult, PolicyFault>;

/// What a fault says may differ.
fn same(one: &Answer, other: &Answer) -> bool {
    match (one, other) {
        (Err(_), Err(_)) => true,
        _ => one == other,
    }
}

fn agree(u: &mut Unstructured<'_>) -> Result<()> {
    let documents = documents(u)?;
    let Ok(fast) = compile(&documents) else {
        return Ok(());
    };
    let Ok(interpreted) = reference::without_bytecode(&documents) else {
        return Ok(());
    };
    let Ok(whole) = reference::interpreter(&documents) else {
        return Ok(());
    };
    let compiled = reference::bytecode(&documents).ok();
    for _ in 0..2 {
        let question = question(u)?;
        let fast = fast.evaluate(&question);
        if fast.as_ref().is_err_and(reference::is_two_defaults) {
            return Ok(());
        }
        let answer = whole.evaluate(&question);
        for other in [fast, interpreted.evaluate(&question)] {
            assert!(
                same(&answer, &other),
                "{answer:?}\n{other:?}\n{documents:#?}\n{question:#?}"
            );
        }
        if let (Ok(_), Some(compiled)) = (&answer, &compiled) {
            let other = compiled.evaluate(&question);
            assert!(
                other.is_err() || same(&answer, &other),
                "{answer:?}\n{other:?}\n{documents:#?}\n{question:#?}"
            );
        }
    }
    Ok(())
}

// A panic inside the engine is caught by the crate and is a fault of the document, so the hook must
// not end the process; whatever reaches the fuzzer still does.
fuzz_target!(init: std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))), |data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = validate(text);
        let head = "# caracal:data-document\npackage caracal.authz\n";
        let document = format!("{head}{text}");
        if validate_whole(&document).is_ok() {
            assert!(compile(&[("pv".to_owned(), document)]).is_ok(), "{text:?}");
        }
    }
    let _ = agree(&mut Unstructured::new(data));
});
