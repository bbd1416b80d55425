//! From documents to a contract (spec: sts §10.1 and §16, clients §10).

use caracal_crypto::digest::sha256_hex;
use caracal_model::policy::PolicyInput;
use serde_json::json;

use super::{both, document, documents};
use crate::document::ROOTS;
use crate::{
    PolicyError, SimulationError, compile, compile_checked, contract_sha256, manifest_sha256,
    question, simulate,
};

fn lifecycle_input() -> serde_json::Value {
    json!({
        "principal": {"type": "Application", "id": "app-1"}, "unknown": 1,
        "resource": {"identifier": "resource://billing"},
        "context": {"requested_scopes": ["agent:lifecycle"]},
    })
}

/// What `ensure_grants` writes, byte for byte.
const GRANTS_DOCUMENT: &str = r#"# caracal:data-document
package caracal.authz
import rego.v1
app_ids := {"app-1":"app-1","app-2":"app-2"}
grants := {"resource://billing":{"application":"app-1","roles":{"clerk":["billing:read"]}},"resource://orders":{"application":"app-2","roles":{"app-2":["orders:read","orders:write"]}}}
"#;

#[test]
fn manifests_hash_as_the_specification_says() {
    let hash = |ids: &[&str]| {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        manifest_sha256(&ids)
    };
    assert_eq!(
        hash(&["pv-1"]),
        "91b75ab3559277a91e4c37e18e60a405963aa4893f36d8e237f7907a79763f97"
    );
    assert_eq!(
        hash(&["pv-1", "pv-2"]),
        "e7388625e7afa28ca7927662b2decb5077ef39c5ff1ab43f1847845232968087"
    );
}

#[test]
fn the_grants_document_of_the_published_clients_is_accepted_and_allows() {
    assert_eq!(
        sha256_hex(GRANTS_DOCUMENT.as_bytes()),
        "a7c1823a3c8012752ce68d9408723a81178ce0f3587a384f260d045c310d7a8d"
    );
    let bundle = [("pv-1".to_owned(), GRANTS_DOCUMENT.to_owned())];
    let result = simulate(&bundle, &lifecycle_input()).unwrap();
    assert_eq!(
        result,
        json!({
            "decision": "allow", "evaluation_status": "complete",
            "determining_policies": [{"policy": "caracal-bootstrap"}], "diagnostics": [],
        })
    );
}

#[test]
fn two_documents_may_agree_but_not_contradict_each_other() {
    let answers = |bodies: &[&str]| {
        let contract = compile(&documents(bodies)).unwrap();
        contract.evaluate(&PolicyInput::default()).is_ok()
    };
    assert!(answers(&["restrict := {}", "restrict := {}"]));
    assert!(answers(&["default restrict := {}", "restrict := {\"x\"}"]));
    assert!(answers(&["grants[\"a\"] := 1", "grants[\"b\"] := 2"]));
    for bodies in [
        ["restrict := {}", "restrict := []"],
        ["risk := []", "risk := [1]"],
        ["app_ids := {}", "app_ids := {\"a\": \"b\"}"],
        ["grants[\"a\"] := 1", "grants[\"a\"] := 2"],
        ["grants := {}", "grants[\"a\"] := 2"],
        ["default restrict := {}", "default restrict := {\"x\": 1}"],
        ["risk := []", "risk := x if { x := [1]; input.principal }"],
        ["risk := [to_number(\"x\")]", "grants := {}"],
    ] {
        assert!(!answers(&bodies), "{bodies:?}");
        let checked = compile_checked(&documents(&bodies)).err();
        assert!(
            matches!(checked, Some(PolicyError::Unevaluable(_))),
            "{bodies:?}"
        );
    }
}

#[test]
fn a_contradiction_about_any_root_faults_whatever_is_asked() {
    for root in ROOTS {
        let bodies = [format!("{root} := {{}}"), format!("{root} := []")];
        let bodies = [bodies[0].as_str(), bodies[1].as_str()];
        for input in [json!({}), lifecycle_input()] {
            let asked = both(&bodies, &question(&input).unwrap());
            assert!(asked.is_err(), "{root}: {asked:?}");
        }
    }
}

#[test]
fn a_document_that_is_not_accepted_is_a_rejection_of_the_bundle() {
    for body in ["result := 1", "grants := {", "other := 1"] {
        let error = compile(&documents(&["restrict := {}", body]))
            .err()
            .unwrap();
        assert!(error.is_rejection(), "{body}");
        assert!(error.to_string().contains("pv-1"), "{error}");
    }
    let many: Vec<(String, String)> = (0..257)
        .map(|at| (format!("pv-{at}"), document("restrict := {}")))
        .collect();
    assert_eq!(compile(&many).err(), Some(PolicyError::TooMany));
}

#[test]
fn what_was_compiled_lately_is_not_compiled_again() {
    let bundle = documents(&["restrict := {\"compiled\": \"once\"}"]);
    let first = compile_checked(&bundle).unwrap();
    assert!(std::sync::Arc::ptr_eq(
        &first,
        &compile_checked(&bundle).unwrap()
    ));
    let other = documents(&["restrict := {\"compiled\": \"anew\"}"]);
    assert!(!std::sync::Arc::ptr_eq(
        &first,
        &compile_checked(&other).unwrap()
    ));
    let before = crate::meter();
    let measured = crate::compile_measured(&documents(&["restrict := {\"m\": 1}"])).unwrap();
    assert!(measured.evaluate(&PolicyInput::default()).is_ok());
    assert!(crate::compile_measured(&documents(&["other := 1"])).is_err());
    let after = crate::meter();
    assert!(after.compilations >= before.compilations + 2);
    assert!(after.compilation_errors > before.compilation_errors);
    assert!(after.evaluations > before.evaluations);
}

#[test]
fn a_document_may_read_the_question() {
    let body = r#"app_ids := {"a": "app-1"}
grants := {"resource://r": {"application": "a", "roles": {"clerk": scopes}}} if {
    scopes := ["r:read"]
    input.action.method == "GET"
}"#;
    let ask = |method: &str| {
        let input = json!({
            "principal": {"id": "app-1", "labels": ["clerk"]},
            "resource": {"identifier": "resource://r"}, "action": {"method": method},
            "context": {"subject_claims": {"delegation_edge_id": "e1", "scope": "r:read",
                "target": ["resource://r"]}},
        });
        simulate(&documents(&[body]), &input).unwrap()["decision"].clone()
    };
    assert_eq!((ask("GET"), ask("POST")), (json!("allow"), json!("deny")));
}

#[test]
fn a_document_that_never_ends_is_a_fault_and_soon() {
    let digits = "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]";
    let loops = (0..9)
        .map(|at| format!("some x{at} in {digits}; "))
        .collect::<String>();
    for reads in ["true", "input.action"] {
        let body = format!("restrict := [1 | {reads}; {loops} x0 + x8 > 99]");
        assert!(compile_checked(&documents(&[&body])).is_err());
    }
}

#[test]
fn what_makes_the_engine_panic_is_a_fault() {
    let body = "risk := [sprintf(\"%٣d\", [1])]";
    assert!(compile_checked(&documents(&[body])).is_err());
}

#[test]
fn a_question_of_the_wrong_type_is_not_asked() {
    let wrong = simulate(&documents(&["restrict := {}"]), &json!({"principal": 1}));
    assert!(matches!(wrong, Err(SimulationError::Input(_))));
    let empty = simulate(&documents(&["restrict := {}"]), &json!({})).unwrap();
    assert_eq!(empty["diagnostics"], json!([{"reason": "no_rule_matched"}]));
}

#[test]
fn the_contract_is_known_by_its_hash() {
    assert_eq!(contract_sha256().len(), 64);
}
