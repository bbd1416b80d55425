//! `caracal audit explain`: why a request was decided as it was, for a person.

use clap::Args;
use serde_json::Value;

use super::OfRequest;
use crate::exit::Outcome;
use crate::term;

#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES\n  caracal audit explain 0198c0de-…\n  caracal audit explain \"$(caracal audit tail --once --json --decision deny | tail -1 | jq -r .request_id)\"\n\nEXIT CODE\n  0 when the request is on record, else 1"
)]
pub struct Explain {
    #[command(flatten)]
    of: OfRequest,
}

impl Explain {
    pub fn run(&self) -> Outcome {
        self.of.show("/explain", text)
    }
}

fn field<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or("-")
}

fn list<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    value
        .get(name)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn decision(word: &str) -> String {
    match word {
        "allow" => term::green("allow"),
        "deny" => term::red("deny"),
        other => other.to_owned(),
    }
}

fn text(told: &Value) -> String {
    let mut lines = vec![format!(
        "request {}: {}",
        field(told, "request_id"),
        decision(field(told, "final_decision"))
    )];
    for about in list(told, "explanations") {
        lines.push(String::new());
        lines.push(format!(
            "{}  {}",
            term::bold(field(about, "resource")),
            decision(field(about, "decision"))
        ));
        if let Some(why) = about.get("unavailable").and_then(Value::as_str) {
            lines.push(format!("  not explained: {why}"));
        }
        if let Some(rule) = about.get("rule").and_then(Value::as_str) {
            let kind = field(about, "kind");
            lines.push(format!("  rule    {rule} ({kind})"));
        }
        lines.extend(
            about
                .get("grant")
                .filter(|grant| grant.is_object())
                .map(grant),
        );
        for check in list(about, "checks") {
            let holds = check.get("holds").and_then(Value::as_bool) == Some(true);
            let mark = if holds {
                term::green("yes")
            } else {
                term::red("no ")
            };
            lines.push(format!("  {mark}     {}", field(check, "check")));
        }
        for change in list(about, "change").filter_map(Value::as_str) {
            lines.push(format!("  change  {change}"));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

fn grant(grant: &Value) -> String {
    let roles = grant.get("roles").and_then(Value::as_object);
    let roles: Vec<String> = roles
        .into_iter()
        .flatten()
        .map(|(label, scopes)| {
            let scopes: Vec<&str> = scopes
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            format!("{label}: {}", scopes.join(" "))
        })
        .collect();
    let held = if roles.is_empty() {
        "none of the Session's labels is a role".to_owned()
    } else {
        roles.join("; ")
    };
    format!("  grant   {} ({held})", field(grant, "application"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_explanation_names_rule_grant_and_change() {
        let told = json!({
            "request_id": "r1", "final_decision": "deny",
            "explanations": [
                {"resource": "resource://a", "decision": "deny", "kind": "mint",
                 "rule": "role_scope_mismatch", "grant": {"application": "desk", "roles": {}},
                 "checks": [{"check": "owns", "holds": true}, {"check": "role", "holds": false}],
                 "change": ["add a role"]},
                {"resource": "resource://b", "decision": "deny", "unavailable": "not asked"},
            ],
        });
        let expected = "request r1: deny\n\nresource://a  deny\n  rule    role_scope_mismatch (mint)\n  \
                        grant   desk (none of the Session's labels is a role)\n  yes     owns\n  \
                        no      role\n  change  add a role\n\nresource://b  deny\n  \
                        not explained: not asked\n";
        assert_eq!(text(&told), expected);
    }
}
