//! Why a request was decided as it was, with an input that can be simulated again.

use caracal_model::policy::SCHEMA_VERSION;
use serde_json::{Map, Value, json};

use super::Shown;
use crate::wire::At;

/// What is known of a request, from its events.
pub fn explain(at: &At, events: Vec<Shown>) -> Value {
    let decision = |shown: &Shown| shown.row.get("decision").cloned();
    let is_denied = |shown: &Shown| decision(shown).is_some_and(|decision| decision == "deny");
    let denied: Vec<Value> = events
        .iter()
        .filter(|shown| is_denied(shown))
        .map(|shown| refusal(shown, at))
        .collect();
    let last = events
        .last()
        .and_then(decision)
        .unwrap_or_else(|| json!("unknown"));
    let final_decision = if denied.is_empty() {
        last
    } else {
        json!("deny")
    };
    let events: Vec<Value> = events
        .into_iter()
        .map(|shown| Value::Object(shown.row))
        .collect();
    json!({
        "request_id": at.id,
        "zone_id": at.zone,
        "final_decision": final_decision,
        "denied": denied,
        "events": events,
    })
}

fn refusal(shown: &Shown, at: &At) -> Value {
    let of = |name: &str| shown.row.get(name).cloned().unwrap_or(Value::Null);
    let policies = match of("determining_policies_json") {
        Value::Null => json!([]),
        policies => policies,
    };
    json!({
        "event_id": of("id"),
        "event_type": of("event_type"),
        "evaluation_status": of("evaluation_status"),
        "determining_policies": policies,
        "diagnostics": of("diagnostics_json"),
        "metadata": of("metadata_json"),
        "policy_input": policy_input(&shown.metadata, at),
    })
}

/// The input that policy was asked, as far as the event recorded it. Empty members are left out,
/// because the contract tests for absence.
fn policy_input(metadata: &Map<String, Value>, at: &At) -> Value {
    let text = |name: &str| {
        metadata
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let scopes = match metadata.get("requested_scopes") {
        Some(Value::Array(scopes)) => json!(scopes),
        Some(Value::String(scopes)) => scopes.split_ascii_whitespace().collect(),
        _ => json!([]),
    };
    let mut principal = json!({
        "type": "Application",
        "id": text("application_id"),
        "zone_id": at.zone,
    });
    put(
        &mut principal,
        "registration_method",
        text("application_registration_method"),
    );
    put(&mut principal, "agent_session_id", text("agent_session_id"));
    put(&mut principal, "lifecycle", text("agent_lifecycle"));
    let labels = metadata.get("agent_labels").and_then(Value::as_array);
    if let (Some(labels), Some(members)) = (
        labels.filter(|labels| !labels.is_empty()),
        principal.as_object_mut(),
    ) {
        members.insert("labels".to_owned(), json!(labels));
    }
    let mut context = json!({
        "actor_claims": {},
        "requested_scopes": scopes,
        "challenge_resolved": false,
    });
    for name in ["session_id", "agent_session_id", "delegation_edge_id"] {
        put(&mut context, name, text(name));
    }
    let mut input = json!({
        "schema_version": SCHEMA_VERSION,
        "principal": principal,
        "resource": { "type": "Resource", "identifier": text("resource"), "scopes": scopes },
        "action": { "id": "TokenExchange" },
        "context": context,
    });
    for (member, id) in [
        ("session", "session_id"),
        ("delegation_edge", "delegation_edge_id"),
    ] {
        if let (false, Some(members)) = (text(id).is_empty(), input.as_object_mut()) {
            members.insert(member.to_owned(), json!({ "id": text(id) }));
        }
    }
    input
}

fn put(object: &mut Value, name: &str, text: &str) {
    if let (false, Some(members)) = (text.is_empty(), object.as_object_mut()) {
        members.insert(name.to_owned(), json!(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::ZoneId;
    use caracal_model::policy::PolicyInput;

    #[test]
    fn the_input_can_be_simulated_as_it_stands() {
        let at = At {
            zone: ZoneId::trusted("z1"),
            id: "r1".into(),
            version: String::new(),
        };
        let metadata = json!({
            "application_id": "a1",
            "resource": "resource://crm",
            "requested_scopes": ["crm:read"],
            "session_id": "rec-1",
            "agent_session_id": "",
            "agent_labels": [],
        });
        let input = policy_input(metadata.as_object().unwrap(), &at);
        let read: PolicyInput = serde_json::from_value(input).unwrap();
        assert_eq!(read.principal.id, "a1");
        assert_eq!(read.context.requested_scopes, ["crm:read"]);
        assert_eq!(read.session.unwrap().id, "rec-1");
        assert!(read.delegation_edge.is_none());
    }
}
