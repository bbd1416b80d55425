//! `caracal audit trace`: what all services recorded of a request, as a timeline.

use caracal_model::Timestamp;
use clap::Args;
use serde_json::Value;

use super::OfRequest;
use crate::exit::Outcome;
use crate::term;

/// Metadata that a timeline shows, in this order, when it is there.
const SHOWN: [&str; 14] = [
    "application_name",
    "resource",
    "requested_scopes",
    "method",
    "upstream_host",
    "upstream_status",
    "gateway_status",
    "latency_ms",
    "reason",
    "error_kind",
    "agent_session_id",
    "delegation_edge_id",
    "challenge_id",
    "provider_id",
];

#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES\n  caracal audit trace 0198c0de-…\n  caracal audit trace 0198c0de-… --json | jq '.[].event_type'\n\nThe id is in the header X-Request-Id of the answer, and in every event. `caracal audit explain`\nsays why it was decided so.\n\nEXIT CODE\n  0 when the request is on record, else 1"
)]
pub struct Trace {
    #[command(flatten)]
    of: OfRequest,
}

impl Trace {
    pub fn run(&self) -> Outcome {
        self.of.show("", |told| {
            let events = told.as_array().map(Vec::as_slice).unwrap_or_default();
            timeline(events)
        })
    }
}

fn timeline(events: &[Value]) -> String {
    let id = events
        .first()
        .map_or("-", |event| field(event, "request_id"));
    let times: Vec<Option<Timestamp>> = events
        .iter()
        .map(|event| Timestamp::parse_rfc3339(field(event, "occurred_at")).ok())
        .collect();
    let first = times.iter().flatten().min().copied();
    let last = times.iter().flatten().max().copied();
    let span = match (first, last) {
        (Some(first), Some(last)) => last.since(first).as_millis(),
        _ => 0,
    };
    let count = events.len();
    let plural = if count == 1 { "" } else { "s" };
    let mut text = format!(
        "{}  {count} event{plural}, {span} ms\n",
        term::bold(&format!("request {id}"))
    );
    for (event, at) in events.iter().zip(times) {
        let after = match (first, at) {
            (Some(first), Some(at)) => at.since(first).as_millis(),
            _ => 0,
        };
        let decision = field(event, "decision");
        let shown = match decision {
            "allow" => term::green("allow"),
            "deny" => term::red("deny "),
            other => other.to_owned(),
        };
        text.push_str(&format!(
            "\n{}  {:>7}  {shown}  {}  {}\n",
            field(event, "occurred_at"),
            format!("+{after} ms"),
            term::bold(field(event, "event_type")),
            field(event, "evaluation_status"),
        ));
        for (name, value) in details(event) {
            text.push_str(&format!("    {name:<20} {value}\n"));
        }
    }
    text
}

fn field<'v>(event: &'v Value, name: &str) -> &'v str {
    event.get(name).and_then(Value::as_str).unwrap_or("-")
}

fn details(event: &Value) -> Vec<(&str, String)> {
    let policies = event
        .get("determining_policies_json")
        .and_then(Value::as_array);
    let policies: Vec<&str> = policies
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.get("policy")?.as_str())
        .collect();
    let mut details: Vec<(&str, String)> = SHOWN
        .iter()
        .filter_map(|name| {
            let text = plain(event.get("metadata_json")?.get(name)?);
            (!text.is_empty()).then_some((*name, text))
        })
        .collect();
    if !policies.is_empty() {
        details.push(("policies", policies.join(" ")));
    }
    details
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_timeline_has_every_event_and_how_long_after_the_first() {
        let events = [
            json!({
                "request_id": "r1", "event_type": "token_exchange", "decision": "allow", "evaluation_status": "complete",
                "occurred_at": "2026-05-21T12:00:00.100Z",
                "determining_policies_json": [{"policy": "grants"}],
                "metadata_json": {"resource": "resource://crm", "requested_scopes": ["a", "b"], "session_id": "x"},
            }),
            json!({
                "event_type": "gateway_resource_request", "decision": "allow",
                "evaluation_status": "executed", "occurred_at": "2026-05-21T12:00:00.142Z",
                "metadata_json": {"method": "GET", "upstream_status": 200},
            }),
        ];
        let expected = "\
request r1  2 events, 42 ms

2026-05-21T12:00:00.100Z    +0 ms  allow  token_exchange  complete
    resource             resource://crm
    requested_scopes     a b
    policies             grants

2026-05-21T12:00:00.142Z   +42 ms  allow  gateway_resource_request  executed
    method               GET
    upstream_status      200
";
        assert_eq!(timeline(&events), expected);
    }
}
