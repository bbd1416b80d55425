//! Native and Rego are asked the same questions about the same documents, many of them malformed.

use caracal_model::policy::{Action, Context, EdgeInput, PolicyInput, Principal, ResourceInput};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

use super::{native, rego};

/// What occurs several times is drawn more often, so that questions meet documents.
const USUAL: [&str; 6] = [
    "r:read",
    "r:write",
    "r:read",
    "r:write",
    "agent:lifecycle",
    "",
];
const LABELS: [&str; 4] = ["reader", "clerk", "customer:42", ""];
const RESOURCES: [&str; 4] = [
    "resource://a",
    "resource://a",
    "resource://a",
    "resource://b",
];
const NAMES: [&str; 6] = ["desk", "desk", "desk", "desk", "mail", ""];
const IDS: [&str; 6] = ["app-1", "app-1", "app-1", "app-1", "app-2", ""];
const TIERS: [&str; 7] = ["low", "high", "low", "high", "low", "high", ""];

/// Text of a value that is nearly never what it should be.
fn junk() -> BoxedStrategy<String> {
    let fixed = [
        "1",
        "0",
        "1.5",
        "60.0",
        "-1",
        "true",
        "false",
        "null",
        "\"\"",
        "\"x\"",
        "[]",
        "{}",
        "set()",
        "[1]",
        "{\"a\": 1}",
        "{1, \"x\"}",
        "[[\"r:read\"]]",
        "{\"reader\": \"r:read\"}",
        "[null]",
        "[{}]",
        "1e300",
    ];
    select(fixed.to_vec()).prop_map(str::to_owned).boxed()
}

fn quoted(words: &'static [&'static str]) -> BoxedStrategy<String> {
    select(words).prop_map(|word| format!("\"{word}\"")).boxed()
}

/// Mostly the first, now and then junk.
fn mostly(right: impl Strategy<Value = String> + 'static) -> BoxedStrategy<String> {
    prop_oneof![25 => right, 1 => junk()].boxed()
}

fn list(item: BoxedStrategy<String>) -> BoxedStrategy<String> {
    (vec(item, 0..4), any::<bool>())
        .prop_map(|(items, is_set)| match (is_set, items.len()) {
            (true, 0) => "set()".to_owned(),
            (true, _) => format!("{{{}}}", items.join(", ")),
            (false, _) => format!("[{}]", items.join(", ")),
        })
        .boxed()
}

fn array(item: BoxedStrategy<String>) -> BoxedStrategy<String> {
    vec(item, 0..4)
        .prop_map(|items| format!("[{}]", items.join(", ")))
        .boxed()
}

/// An object; of two members with one name the last would win in one reader and fail in another.
fn object(names: BoxedStrategy<String>, value: BoxedStrategy<String>) -> BoxedStrategy<String> {
    vec((names, value), 0..4)
        .prop_map(|members| {
            let distinct: std::collections::BTreeMap<_, _> = members.into_iter().collect();
            let members: Vec<String> = distinct.iter().map(|(n, v)| format!("{n}: {v}")).collect();
            format!("{{{}}}", members.join(", "))
        })
        .boxed()
}

/// An object with these members, each now and then left out.
fn record(members: Vec<(&'static str, BoxedStrategy<String>)>) -> BoxedStrategy<String> {
    let members: Vec<_> = members
        .into_iter()
        .map(|(name, value)| {
            option::weighted(0.95, value).prop_map(move |v| v.map(|v| format!("\"{name}\": {v}")))
        })
        .collect();
    members
        .prop_map(|m| {
            format!(
                "{{{}}}",
                m.into_iter().flatten().collect::<Vec<_>>().join(", ")
            )
        })
        .boxed()
}

fn scope_list() -> BoxedStrategy<String> {
    mostly(list(mostly(quoted(&USUAL))))
}

fn grants() -> BoxedStrategy<String> {
    let roles = mostly(object(quoted(&LABELS), scope_list()));
    let grant = mostly(record(vec![
        ("application", mostly(quoted(&NAMES))),
        ("roles", roles),
    ]));
    mostly(object(quoted(&RESOURCES), grant))
}

fn confinement() -> BoxedStrategy<String> {
    let prefix = mostly(quoted(&["customer:", "clerk", "z", ""]));
    let rule = || {
        mostly(record(vec![
            ("label_prefix", prefix.clone()),
            ("scopes", scope_list()),
        ]))
    };
    let rules = prop_oneof![list(rule()), object(quoted(&NAMES), rule())];
    mostly(rules)
}

fn risk() -> BoxedStrategy<String> {
    let entry = record(vec![
        (
            "scope",
            mostly(quoted(&["r:read", "r:write", "x", "y", "x"])),
        ),
        ("tier", mostly(quoted(&TIERS))),
    ]);
    mostly(array(mostly(entry)))
}

fn approval_tiers() -> BoxedStrategy<String> {
    let words = |words: &'static [&'static str]| mostly(quoted(words));
    let seconds = select(&["60", "1", "60.0", "0", "-5", "1.5"][..]).prop_map(str::to_owned);
    let declaration = record(vec![
        ("tier", words(&TIERS)),
        (
            "approver",
            words(&["operator", "subject", "any", "any", "me"]),
        ),
        (
            "privacy",
            words(&[
                "identified",
                "pseudonymous",
                "anonymous",
                "anonymous",
                "none",
            ]),
        ),
        ("ttl_seconds", mostly(seconds)),
    ]);
    mostly(array(mostly(declaration)))
}

fn root(name: &'static str, value: BoxedStrategy<String>) -> BoxedStrategy<Option<String>> {
    let line = value.prop_map(move |value| format!("{name} := {value}"));
    option::weighted(0.8, line).boxed()
}

/// A document with some of the six roots, and now and then another that repeats one.
pub(super) fn bodies() -> impl Strategy<Value = Vec<String>> {
    let ids = mostly(object(quoted(&NAMES), mostly(quoted(&IDS))));
    let restrict = prop_oneof![6 => Just("{}".to_owned()), 1 => junk()];
    let roots = (
        root("app_ids", ids),
        root("grants", grants()),
        root("confinement", confinement()),
        option::weighted(
            0.5,
            restrict.prop_map(|value| format!("restrict := {value}")),
        ),
        root("risk", risk()),
        root("approval_tiers", approval_tiers()),
    );
    (roots, option::weighted(0.1, root("risk", risk()))).prop_map(|(roots, second)| {
        let (a, b, c, d, e, f) = roots;
        let first: Vec<String> = [a, b, c, d, e, f].into_iter().flatten().collect();
        let mut bodies = Vec::new();
        if !first.is_empty() {
            bodies.push(first.join("\n"));
        }
        bodies.extend(second.flatten());
        bodies
    })
}

fn words(words: &'static [&'static str], most: usize) -> BoxedStrategy<Vec<String>> {
    subsequence(words.to_vec(), 0..=most)
        .prop_map(|words| words.into_iter().map(str::to_owned).collect())
        .boxed()
}

fn word(words: &'static [&'static str]) -> BoxedStrategy<String> {
    select(words).prop_map(str::to_owned).boxed()
}

fn claims() -> BoxedStrategy<Value> {
    let scope = prop_oneof![
        4 => words(&["r:read", "r:write", ""], 2).prop_map(|scopes| json!(scopes.join(" "))),
        1 => select(vec![json!(""), json!(null), json!(1), json!(["r:read"]), json!(" ")]),
    ];
    let target = prop_oneof![
        6 => words(&RESOURCES, 2).prop_map(|targets| json!(targets)),
        1 => select(vec![json!("resource://a"), json!({"a": "resource://a"}), json!(null)]),
    ];
    let edge = select(vec![
        json!("e1"),
        json!("e1"),
        json!("e1"),
        json!(""),
        json!(7),
    ]);
    let claims = (scope, target, edge).prop_map(|(scope, target, edge)| {
        json!({"scope": scope, "target": target, "delegation_edge_id": edge})
    });
    let odd = select(vec![
        json!({}),
        json!("x"),
        json!([]),
        json!(false),
        json!({"sub": "u"}),
    ]);
    prop_oneof![8 => claims, 1 => odd].boxed()
}

fn edge() -> BoxedStrategy<EdgeInput> {
    (
        word(&["e1", "e1", "e1", ""]),
        words(&["r:read", "r:write", "r:read", "r:write", ""], 5),
    )
        .prop_map(|(id, scopes)| EdgeInput {
            id,
            scopes,
            ..EdgeInput::default()
        })
        .boxed()
}

/// Questions of the four kinds, each with a chance to be slightly off.
pub(super) fn question() -> impl Strategy<Value = PolicyInput> {
    let kind = prop_oneof![
        Just(0u8),
        Just(1),
        Just(1),
        Just(1),
        Just(2),
        Just(2),
        Just(3)
    ];
    let parts = (
        (word(&["app-1", "app-1", "app-2", ""]), words(&LABELS, 4)),
        word(&RESOURCES),
        words(&["r:read", "r:write", "agent:lifecycle"], 2),
        edge(),
        claims(),
        vec(proptest::bool::weighted(0.07), 6),
    );
    (kind, parts).prop_map(
        |(kind, ((id, labels), resource, scopes, edge, claims, off))| {
            let delegated = (kind == 1 || kind == 2) != off[0];
            let called = (kind == 2) != off[1];
            let workload = (kind == 3) != off[2];
            let session = if (kind == 1 || kind == 2) != off[3] {
                "s1"
            } else {
                ""
            };
            let requested = match kind {
                0 if !off[4] => vec!["agent:lifecycle".to_owned()],
                2 if !off[4] => Vec::new(),
                _ => scopes,
            };
            PolicyInput {
                principal: Principal {
                    kind: if workload { "Workload" } else { "Application" }.to_owned(),
                    id,
                    labels,
                    agent_session_id: session.to_owned(),
                    ..Principal::default()
                },
                resource: ResourceInput {
                    identifier: resource,
                    ..ResourceInput::default()
                },
                action: Action {
                    id: if workload {
                        "CredentialInjection"
                    } else {
                        "TokenExchange"
                    }
                    .to_owned(),
                    ..Action::default()
                },
                context: Context {
                    subject_claims: if called { claims } else { Value::Null },
                    requested_scopes: requested,
                    agent_session_id: if off[5] { "s1" } else { session }.to_owned(),
                    delegation_edge_id: if delegated {
                        edge.id.clone()
                    } else {
                        String::new()
                    },
                    ..Context::default()
                },
                delegation_edge: delegated.then_some(edge),
                ..PolicyInput::default()
            }
        },
    )
}

/// Questions to one bundle. Compiling a bundle costs as much as asking the interpreter about ten.
const ASKED: u32 = 10;

/// A case is a bundle with a question; of the cases that `PROPTEST_CASES` asks for, each tenth has
/// a bundle of its own.
fn cases() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: config.cases.div_ceil(ASKED).max(100),
        failure_persistence: None,
        ..config
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn native_and_rego_agree(bodies in bodies(), questions in vec(question(), ASKED as usize)) {
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        let (fast, slow) = (native(&bodies), rego(&bodies));
        for question in questions {
            let (fast, slow) = (fast.evaluate(&question), slow.evaluate(&question));
            match (&fast, &slow) {
                (Err(_), Err(_)) => {}
                _ => prop_assert_eq!(&fast, &slow, "{:#?}", question),
            }
        }
    }
}

/// The generator is worth something only if both answers and every reason occur.
#[test]
fn the_generated_questions_reach_every_answer() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut reached = std::collections::BTreeSet::new();
    let strategy = (bodies(), vec(question(), 8));
    for _ in 0..1_500 {
        let (bodies, questions) = strategy.new_tree(&mut runner).unwrap().current();
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        let contract = native(&bodies);
        for question in questions {
            reached.insert(match contract.evaluate(&question) {
                Err(_) => "fault".to_owned(),
                Ok(result) if result.step_up().is_some() => "step-up".to_owned(),
                Ok(result) if result.allow => result.determining.join(","),
                Ok(result) => result.reason().unwrap().to_owned(),
            });
        }
    }
    for expected in [
        "fault",
        "step-up",
        "caracal-bootstrap",
        "caracal-desk-mint",
        "caracal-workload-mint",
        "caracal-desk-use",
        "restriction_active",
        "malformed_risk_data",
        "malformed_approval_data",
        "resource_not_granted",
        "delegation_scope_exceeded",
        "confinement_violation",
        "role_scope_mismatch",
        "mandate_target_mismatch",
        "no_rule_matched",
    ] {
        assert!(
            reached.contains(expected),
            "{expected} was never reached: {reached:?}"
        );
    }
}
