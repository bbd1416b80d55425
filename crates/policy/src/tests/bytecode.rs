//! Which documents run as bytecode, that it answers as the interpreter does, and its limits.

use caracal_model::policy::{PolicyFault, PolicyInput, PolicyResult};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use super::differential::{bodies, question};
use super::documents;
use crate::bundle::answered_by;
use crate::document::ROOTS;
use crate::{compile, contract_sha256, reference, simulate};

/// Changing the contract means changing `native.rs` with it; then this hash is changed too.
#[test]
fn the_native_contract_was_written_against_this_text() {
    let hash = "b0dc3e765e21d378a59caf9d17f58eec52c35e6a8b324e273089526bed995159";
    assert_eq!(contract_sha256(), hash);
}

/// Conditions that nothing can make fail.
const PLAIN: [&str; 14] = [
    "input.action.method == \"GET\"",
    "input.principal.type != \"Workload\"",
    "\"clerk\" in input.principal.labels",
    "some label in input.principal.labels; startswith(label, \"customer:\")",
    "not input.delegation_edge",
    "count(input.context.requested_scopes) > 1",
    "input.context.subject_claims.scope == \"r:read\"",
    "x := input.resource.identifier; endswith(x, \"a\")",
    "not \"r:write\" in input.context.requested_scopes",
    "input.context.challenge_resolved == false",
    "resolved := input.context.challenge_resolved; resolved == false",
    "input.principal.id.x != 1",
    "some wanted in {\"r:read\", \"x\"}; wanted in input.context.requested_scopes",
    "some scope in input.delegation_edge.scopes; scope in input.context.requested_scopes",
];
/// Conditions that fail for some questions, or are too rich.
const RICH: [&str; 6] = [
    "startswith(input.context.subject_claims.scope, \"r\")",
    "every scope in input.context.requested_scopes { scope != \"\" }",
    "input.principal.id < \"app-2\"",
    "to_number(input.principal.id) > 0",
    "some target in input.context.subject_claims.target; target != \"\"",
    "some at, label in input.principal.labels; at == 0; label == \"clerk\"",
];
/// Rules whose value depends on the question.
const VALUES: [&str; 7] = [
    "risk := [{\"scope\": scope, \"tier\": \"low\"} | some scope in input.context.requested_scopes]",
    "restrict contains label if { some label in input.principal.labels; label == \"customer:42\" }",
    "confinement := [{\"label_prefix\": \"c\", \"scopes\": input.context.requested_scopes}]",
    "app_ids := {\"desk\": input.principal.id}",
    "grants[input.resource.identifier] := {\"application\": \"desk\", \"roles\": {}}",
    "restrict := label if some label in input.principal.labels",
    "restrict := {label | some label in input.context.subject_claims.target}",
];

#[test]
fn what_cannot_fail_runs_as_bytecode() {
    for condition in PLAIN {
        let body = format!("restrict := {{\"x\"}} if {{ {condition} }}");
        assert_eq!(answered_by(&documents(&[&body])), "bytecode", "{condition}");
    }
    for condition in RICH {
        let body = format!("restrict := {{\"x\"}} if {{ {condition} }}");
        assert_eq!(
            answered_by(&documents(&[&body])),
            "interpreter",
            "{condition}"
        );
    }
    for (at, body) in VALUES.iter().enumerate() {
        let by = if [4, 5, 6].contains(&at) {
            "interpreter"
        } else {
            "bytecode"
        };
        assert_eq!(answered_by(&documents(&[body])), by, "{body}");
    }
    for (bodies, by) in [
        (vec!["restrict := {}"], "native"),
        (
            vec!["restrict := {} if input.action", "restrict := {}"],
            "interpreter",
        ),
        (
            vec!["restrict := {} if input.action", "risk := []"],
            "bytecode",
        ),
        (
            vec!["restrict := app_ids if input.action", "app_ids := {}"],
            "interpreter",
        ),
        (
            vec!["app_ids := {}", "restrict := data.caracal.authz.app_ids"],
            "native",
        ),
        (
            vec!["default restrict := {}\nrestrict := {1} if input.action"],
            "bytecode",
        ),
        (
            vec!["import input.action as a\nrestrict := a"],
            "interpreter",
        ),
        (vec!["restrict := input[\"action\"]"], "bytecode"),
        (vec!["restrict := input[data.x]"], "interpreter"),
    ] {
        assert_eq!(answered_by(&documents(&bodies)), by, "{bodies:?}");
    }
}

/// Values for rules with a condition.
const FIXED: [&str; 5] = [
    "{}",
    "{\"x\"}",
    "[]",
    "[{\"scope\": \"r:read\", \"tier\": \"low\"}]",
    "1",
];

/// A generated rule with a condition, or with a value that reads the question.
fn dynamic() -> impl Strategy<Value = String> {
    let conditions = prop_oneof![
        4 => vec(select(&PLAIN[..]), 1..3),
        1 => vec(select(&RICH[..]), 1..2),
    ];
    let conditional = (select(&ROOTS[..]), select(&FIXED[..]), conditions).prop_map(
        |(root, value, conditions)| {
            // Each in braces of its own, so that no two bind one name.
            let body: Vec<String> = conditions
                .iter()
                .map(|c| format!("count([1 | {c}]) > 0"))
                .collect();
            match conditions.as_slice() {
                [one] => format!("{root} := {value} if {{ {one} }}"),
                _ => format!("{root} := {value} if {{ {} }}", body.join("; ")),
            }
        },
    );
    prop_oneof![conditional, select(&VALUES[..]).prop_map(str::to_owned)]
}

type Answer = Result<PolicyResult, PolicyFault>;

/// Whether two agree; what a fault says may differ.
fn agree(one: &Answer, other: &Answer) -> bool {
    match (one, other) {
        (Err(_), Err(_)) => true,
        _ => one == other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn native_bytecode_and_interpreter_agree(
        fixed in bodies(),
        dynamic in vec(dynamic(), 0..3),
        questions in vec(question(), 1..4),
    ) {
        let bodies: Vec<&str> = fixed.iter().chain(&dynamic).map(String::as_str).collect();
        let documents = documents(&bodies);
        let fast = compile(&documents).unwrap();
        let interpreted = reference::without_bytecode(&documents).unwrap();
        let whole = reference::interpreter(&documents).unwrap();
        let compiled = reference::bytecode(&documents).ok();
        for question in questions {
            let answer = whole.evaluate(&question);
            for (name, other) in [("fast", &fast), ("interpreted", &interpreted)] {
                let other = other.evaluate(&question);
                prop_assert!(agree(&answer, &other), "{name}\n{answer:?}\n{other:?}\n{bodies:#?}\n{question:#?}");
            }
            if let (true, Some(compiled)) = (answer.is_ok(), &compiled) {
                let other = compiled.evaluate(&question);
                prop_assert!(other.is_err() || agree(&answer, &other), "whole\n{answer:?}\n{other:?}\n{bodies:#?}\n{question:#?}");
            }
        }
    }
}

#[test]
fn the_contract_itself_runs_as_bytecode() {
    let documents = documents(&["restrict := {}"]);
    let compiled = reference::bytecode(&documents).unwrap();
    let answer = compiled.evaluate(&PolicyInput::default()).unwrap();
    assert_eq!(answer.reason(), Some("no_rule_matched"));
}

fn labelled(count: usize) -> PolicyInput {
    let mut question = PolicyInput::default();
    question.principal.labels = (0..count).map(|at| format!("l{at}")).collect();
    question
}

/// Six loops over the labels: bounded for few, endless for many.
fn loops() -> Vec<(String, String)> {
    let loops: String = (0..6)
        .map(|at| format!("some x{at} in input.principal.labels; "))
        .collect();
    documents(&[&format!("restrict := [1 | {loops} x0 == \"none\"]")])
}

#[test]
fn a_question_that_takes_too_long_fails_and_the_next_one_does_not() {
    assert_eq!(answered_by(&loops()), "bytecode");
    for contract in [compile(&loops()), reference::without_bytecode(&loops())] {
        let contract = contract.unwrap();
        assert!(contract.evaluate(&labelled(2)).is_ok());
        for _ in 0..2 {
            let fault = contract.evaluate(&labelled(40)).unwrap_err().0;
            assert!(
                fault.starts_with("the evaluation exceeds its limit of"),
                "{fault}"
            );
            let after = contract.evaluate(&labelled(2)).unwrap();
            assert_eq!(after.reason(), Some("no_rule_matched"));
        }
    }
}

#[test]
fn a_value_that_is_too_heavy_is_a_fault() {
    let doubled: String = (0..40)
        .map(|at| format!("x{} := [x{at}, x{at}]; ", at + 1))
        .collect();
    for start in ["[1]", "input.principal.labels"] {
        let body = format!("risk := x40 if {{ x0 := {start}; {doubled} true }}");
        let contract = compile(&documents(&[&body])).unwrap();
        let fault = contract.evaluate(&labelled(1)).unwrap_err().0;
        assert_eq!(
            fault, "the evaluation exceeds its limit of memory",
            "{start}"
        );
    }
}

#[test]
fn every_worker_has_a_machine_of_its_own() {
    let contract = compile(&documents(&[
        "restrict := {\"x\"} if input.action.method == \"GET\"",
    ]))
    .unwrap();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let contract = contract.clone();
            scope.spawn(move || {
                for at in 0..50 {
                    let mut question = PolicyInput::default();
                    question.action.method = if (at + worker) % 2 == 0 {
                        "GET"
                    } else {
                        "POST"
                    }
                    .into();
                    let expected = if (at + worker) % 2 == 0 {
                        "restriction_active"
                    } else {
                        "no_rule_matched"
                    };
                    let answer = contract.evaluate(&question).unwrap();
                    assert_eq!(answer.reason(), Some(expected));
                }
            });
        }
    });
}

#[test]
fn a_zone_full_of_bundles_does_not_grow_a_worker() {
    // More bundles than a worker keeps machines for, each asked again after it was evicted.
    let contracts: Vec<_> = (0..80)
        .map(|at| {
            let body = format!("restrict := {{\"{at}\"}} if input.action.path == \"{at}\"");
            compile(&documents(&[&body])).unwrap()
        })
        .collect();
    for _ in 0..2 {
        for (at, contract) in contracts.iter().enumerate() {
            let mut question = PolicyInput::default();
            question.action.path = at.to_string();
            assert_eq!(
                contract.evaluate(&question).unwrap().reason(),
                Some("restriction_active")
            );
        }
    }
}

#[test]
fn only_the_part_of_a_large_root_that_matters_is_read() {
    let body = r#"app_ids := {"a": "app-1", "b": "app-2", "c": input.principal.id}
grants := {"resource://r": {"application": "c", "roles": {"clerk": ["r:read"]}},
    "resource://s": {"application": "b", "roles": {}}} if input.action.method == "GET""#;
    let ask = |resource: &str| {
        let input = json!({
            "principal": {"id": "app-1", "labels": ["clerk"]},
            "resource": {"identifier": resource}, "action": {"method": "GET"},
            "context": {"subject_claims": {"delegation_edge_id": "e1", "scope": "r:read",
                "target": [resource]}},
        });
        let result = simulate(&documents(&[body]), &input).unwrap();
        (
            result["determining_policies"].clone(),
            result["diagnostics"].clone(),
        )
    };
    assert_eq!(ask("resource://r").0, json!([{"policy": "caracal-c-use"}]));
    assert_eq!(
        ask("resource://s").1,
        json!([{"reason": "resource_not_granted"}])
    );
    assert_eq!(
        ask("resource://t").1,
        json!([{"reason": "resource_not_granted"}])
    );
}
