//! Which documents are accepted, and under which code they are refused (spec: admin-api §8.1).

use super::document;
use crate::{templates, validate, validate_whole};

fn code(content: &str) -> String {
    validate(content).map_or_else(|invalid| invalid.code.into_owned(), |p| p.rules.join(","))
}

#[test]
fn the_first_code_that_applies_is_answered() {
    let head = "# caracal:data-document\npackage caracal.authz\n";
    for (content, expected) in [
        (String::new(), "empty_policy"),
        (" \n\t".to_owned(), "empty_policy"),
        ("x".repeat(262_145), "content_too_large"),
        ("😀".repeat(131_073), "content_too_large"),
        (format!("{head}grants := {{\"a"), "unterminated_string"),
        (
            format!("{head}grants := {{\"a\": [1}}"),
            "unbalanced_delimiters",
        ),
        ("grants := {}".to_owned(), "missing_package_declaration"),
        (
            "# package caracal.authz\ngrants := {}".to_owned(),
            "missing_package_declaration",
        ),
        ("x := \"\npackage a\"".to_owned(), "unterminated_string"),
        (
            "x := `\npackage a`".to_owned(),
            "missing_package_declaration",
        ),
        ("package\ngrants := {}".to_owned(), "invalid_package_name"),
        ("package caracal-authz\n".to_owned(), "invalid_package_name"),
        ("package caracal.\n".to_owned(), "invalid_package_name"),
        ("package caracal.1\n".to_owned(), "invalid_package_name"),
        (
            "package other\nx := http.send({})".to_owned(),
            "forbidden_builtin:http.send",
        ),
        (
            "package other\nx := 1".to_owned(),
            "must_use_package_caracal_authz",
        ),
        (
            "package caracal.authz\nx := 1".to_owned(),
            "must_be_data_document",
        ),
        (
            format!("{head}x := 1\nresult := 2"),
            "data_document_must_not_define_result",
        ),
        (head.to_owned(), "data_document_must_define_data"),
        (
            format!("{head}import rego.v1\n# grants := 1"),
            "data_document_must_define_data",
        ),
        (
            format!("{head}grants := {{}}\nhelper := 1"),
            "data_document_rule_not_allowed:helper",
        ),
        (
            format!("{head}default risk := []\nx := 1\ndefault risk := []"),
            "data_document_rule_not_allowed:x",
        ),
        (
            format!("{head}default risk := []\ngrants := {{}}\ndefault risk := []"),
            "data_document_two_defaults:risk",
        ),
        (
            format!("{head}default grants[\"a\"] := 1\ndefault grants.b := 2"),
            "data_document_two_defaults:grants",
        ),
        (
            format!("{head}risk := [no_such.function(1)]"),
            "unknown_function:no_such.function",
        ),
        (
            format!("{head}risk := [count([1], 2, 3)]"),
            "wrong_number_of_arguments:count",
        ),
        (
            format!("{head}risk := []\ngrants := {{}}\nrisk := []"),
            "risk,grants",
        ),
        (
            format!("{head}default risk := []\ndefault grants := {{}}\nrisk := [1]"),
            "risk,grants",
        ),
        (
            format!("{head}import rego.v1\nrisk := x if {{ count([1], x) }}"),
            "risk",
        ),
    ] {
        assert_eq!(code(&content), expected, "{content:.80}");
    }
}

#[test]
fn no_layout_hides_a_rule() {
    for (body, expected) in [
        (
            "grants := {} result := 1",
            "data_document_must_not_define_result",
        ),
        ("  result := 1", "data_document_must_not_define_result"),
        (
            "default result := 1",
            "data_document_must_not_define_result",
        ),
        ("result[\"x\"] := 1", "data_document_must_not_define_result"),
        (
            "result.decision := \"allow\"",
            "data_document_must_not_define_result",
        ),
        ("result if true", "data_document_must_not_define_result"),
        ("result contains 1", "data_document_must_not_define_result"),
        (
            "grants := {} decision := 1",
            "data_document_rule_not_allowed:decision",
        ),
        ("owns if true", "data_document_rule_not_allowed:owns"),
        (
            "grants := {}\nroots_agree if true",
            "data_document_rule_not_allowed:roots_agree",
        ),
        ("grants(x) := x", "data_document_rule_not_allowed:grants"),
        ("grants[\"r\"] := 1", "grants"),
        ("default grants := {}", "grants"),
        ("restrict contains \"x\" if true", "restrict"),
    ] {
        assert_eq!(code(&document(body)), expected, "{body}");
    }
}

#[test]
fn a_builtin_that_looks_at_the_world_is_refused_however_it_is_mentioned() {
    for (body, name) in [
        ("risk := [time.now_ns()]", "time.now_ns"),
        ("risk := [time . now_ns ()]", "time.now_ns"),
        (
            "risk := x if { x := count([1]) with count as rand.intn }",
            "rand.intn",
        ),
        ("risk := opa.runtime().env", "opa.runtime"),
        ("risk := [] if { print(input) }", "print"),
        (
            "risk := numbers.range(1, 9223372036854775806)",
            "numbers.range",
        ),
        ("risk := bits.lsh(1, 99999999999)", "bits.lsh"),
        ("risk := sprintf(\"%999999999d\", [1])", "sprintf"),
        (
            "risk := sprintf(concat(\"\", [\"%99\", \"9d\"]), [1])",
            "sprintf",
        ),
        ("risk := x if { x := f(1) with f as sprintf }", "sprintf"),
        ("risk := numbers[\"range\"](1, 99)", "numbers.range"),
        ("risk := replace(input.x, \"a\", input.y)", "replace"),
        ("risk := replace(input.x, \"\", \"b\")", "replace"),
        ("risk := concat(input.x, [])", "concat"),
        (
            "risk := regex.replace(input.x, \"a\", \"$0$0\")",
            "regex.replace",
        ),
        (
            "risk := strings.replace_n({}, input.x)",
            "strings.replace_n",
        ),
        ("risk := [1 | not all([rand.intn(1, 2)])]", "rand.intn"),
        (
            "risk := [x | some x in {\"a\": {opa.runtime(): 1}}]",
            "opa.runtime",
        ),
    ] {
        assert_eq!(
            code(&document(body)),
            format!("forbidden_builtin:{name}"),
            "{body}"
        );
    }
    for body in [
        "risk := [\"http.send(1)\"] # rand.intn(",
        "restrict := {\"time.now_ns\": 1}",
        "grants := {sprintf(\"resource://%s-%03d\", [\"r\", 7]): {}}",
        "grants := {concat(\"/\", [\"resource:\", replace(input.x, \"a\", \"b\")]): {}}",
    ] {
        assert!(validate(&document(body)).is_ok(), "{body}");
    }
}

#[test]
fn a_document_that_does_not_parse_says_where() {
    let invalid = validate(&document("grants := {\"a\" \"b\"}")).unwrap_err();
    assert_eq!(invalid.code, "rego_parse_error");
    assert_eq!(invalid.at.map(|(line, _)| line), Some(4));
    assert!(invalid.detail.is_some());
    for hidden in [
        "risk := []\n\0restrict := {\"a\"}",
        "risk := []\n# c\0\nrestrict := {\"a\"}",
        "risk := []\0",
    ] {
        let fault = validate(&document(hidden)).unwrap_err();
        assert_eq!(fault.code, "rego_parse_error", "{hidden:?}");
        assert!(fault.detail.unwrap().contains("NUL"));
    }
    let joined = format!("risk := [1{}]", " + 1".repeat(40_000));
    assert_eq!(code(&document(&joined)), "content_too_complex");
    let nested = format!("risk := {}{}", "[".repeat(31), "]".repeat(31));
    assert_eq!(code(&document(&nested)), "content_too_complex");
}

/// What fails whatever is asked is refused when it is written, not when somebody's request meets it.
#[test]
fn a_document_that_cannot_evaluate_is_refused() {
    for body in [
        "risk := []\nrisk := [1]",
        "grants := {}\ngrants[\"a\"] := 2",
        "restrict := {to_number(\"x\")}",
        "default restrict := input.action",
        "risk := [x | x := input.action.method]\nrisk := [1]",
        "restrict := {1} if { to_number(input.principal.id) > 0 }",
        "restrict := {1} if { not y; input.action }",
    ] {
        let text = document(body);
        assert!(validate(&text).is_ok(), "{body}");
        let Err(invalid) = validate_whole(&text) else {
            panic!("accepted: {body}");
        };
        assert_eq!(invalid.code, "data_document_does_not_evaluate", "{body}");
        assert!(invalid.detail.is_some(), "{body}");
    }
    for body in [
        "risk := []\nrisk := []",
        "default restrict := {}\nrestrict := {1} if input.action.method == \"GET\"",
        "restrict := {1} if { input.action.method == \"GET\"; x := input.action.path; x < 5 }",
        // What it reads may be in another document.
        "risk := [1] if app_ids\nrisk := [2] if not app_ids",
    ] {
        let whole = validate_whole(&document(body));
        assert!(whole.is_ok(), "{body}: {:?}", whole.err());
    }
}

#[test]
fn every_refusal_says_where_and_what_to_do() {
    let head = "# caracal:data-document\npackage caracal.authz\n";
    let mut table = String::new();
    for content in [
        String::new(),
        format!("{head}grants := {{\"a"),
        format!("{head}grants := {{\"a\": [1}}"),
        "grants := {}".to_owned(),
        "package caracal-authz\n".to_owned(),
        format!("{head}risk := [http.send({{}})]"),
        format!("{head}risk := [\n  sprintf(input.x, [])]"),
        "package other\nx := 1".to_owned(),
        "package caracal.authz\nx := 1".to_owned(),
        format!("{head}grants := {{}} result := 2"),
        head.to_owned(),
        format!("{head}grants := {{}}\n  helper := 1"),
        format!("{head}default risk := []\n  default risk := [1]"),
        format!("{head}risk := [cuont([])]"),
        format!("{head}risk := [count([], 1, 2)]"),
        format!("{head}risk := [] {{ print(input) }}"),
        format!("{head}risk := []\nrisk := [1]"),
        format!("{head}restrict := {{to_number(\"x\")}}"),
    ] {
        let invalid = validate_whole(&content).unwrap_err();
        let code = invalid.code.split(':').next().unwrap().to_owned();
        table.push_str(&format!("{code:<37} | {}\n", invalid.message()));
    }
    let expected = include_str!("messages.txt");
    assert_eq!(table, expected, "\n{table}");
}

#[test]
fn the_answer_previews_what_is_defined_and_read() {
    let body = "app_ids := {\"a\": \"b\"}\ngrants := {x: {} | x := input.resource.identifier}";
    let preview = validate(&document(body)).unwrap();
    assert_eq!(
        preview.answer(),
        serde_json::json!({
            "valid": true, "schema_version": "2026-05-20", "input_schema_version": "2026-05-20",
            "output_contract": {"package": "caracal.authz", "rule": "result",
                "decision": ["allow", "deny"], "evaluation_status": ["complete"]},
            "preview": {"package": "caracal.authz", "rules": ["app_ids", "grants"],
                "default_result": false, "decisions": [],
                "inputs_referenced": ["input.resource.identifier"], "data_referenced": []},
        })
    );
}

#[test]
fn every_template_is_accepted() {
    let defines: Vec<(&str, String)> = templates()
        .iter()
        .map(|template| (template.id, code(template.content)))
        .collect();
    assert_eq!(
        defines,
        [
            ("application-bindings", "app_ids".to_owned()),
            ("resource-grants", "grants".to_owned()),
            ("label-confinement", "confinement".to_owned()),
            ("zone-restriction", "restrict".to_owned()),
        ]
    );
}

#[test]
fn a_grants_document_of_two_thousand_resources_is_one_line_and_accepted() {
    let grant = |at: u32| {
        format!("\"resource://r{at}\":{{\"application\":\"a\",\"roles\":{{\"a\":[\"x:read\"]}}}}")
    };
    let grants: Vec<String> = (0..2000).map(grant).collect();
    let body = format!(
        "app_ids := {{\"a\":\"a\"}}\ngrants := {{{}}}",
        grants.join(",")
    );
    assert_eq!(code(&document(&body)), "app_ids,grants");
}

mod properties {
    use proptest::prelude::*;

    use crate::validate;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn no_text_makes_validation_fail_otherwise_than_with_a_code(text in "\\PC{0,200}") {
            let _ = validate(&text);
        }

        #[test]
        fn no_document_does_either(
            body in "([a-z_]{1,6}|[\"`{}()\\[\\]:=,.#|]|:=|input|every|some| |\n|[0-9]){0,60}",
        ) {
            let _ = validate(&super::super::document(&body));
        }
    }
}
