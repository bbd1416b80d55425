//! Why a request was decided as it was: which rule, which grant, what would have to change, and an
//! input that can be simulated again.

use std::collections::HashMap;
use std::sync::Arc;

use caracal_model::policy::{PolicyInput, SCHEMA_VERSION};
use caracal_policy::recorded;
use serde_json::{Map, Value, json};

use super::Shown;
use crate::failure::Failure;
use crate::manifest::Manifest;
use crate::policy_sets::documents;
use crate::rego;
use crate::service::Api;
use crate::wire::At;

/// The documents of a version, by their ids.
type Documents = Vec<(String, String)>;

/// What is known of a request, from its events.
pub fn explain(at: &At, events: Vec<Shown>, explanations: Vec<Value>) -> Value {
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
        "explanations": explanations,
        "events": events,
    })
}

/// One explanation an event about a resource, by the version of policy that decided it.
///
/// # Errors
/// When the store does not answer.
pub async fn explanations(api: &Api, at: &At, events: &[Shown]) -> Result<Vec<Value>, Failure> {
    let mut bundles: HashMap<String, Option<Arc<Documents>>> = HashMap::new();
    let mut all = Vec::new();
    for shown in events {
        let text = |name: &str| {
            shown
                .row
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let version = text("policy_set_version_id").to_owned();
        let Some(resource) = shown.metadata.get("resource") else {
            continue;
        };
        let mut about = Map::new();
        about.insert("event_id".to_owned(), json!(text("id")));
        about.insert("resource".to_owned(), resource.clone());
        about.insert("decision".to_owned(), json!(text("decision")));
        if let Some(advice) = advice(text("evaluation_status")) {
            about.insert("change".to_owned(), json!([advice]));
        }
        if !version.is_empty() && !bundles.contains_key(&version) {
            let bundle = bundle(api, at, &version).await?;
            bundles.insert(version.clone(), bundle);
        }
        if !version.is_empty() {
            about.insert("policy_set_version_id".to_owned(), json!(&version));
        }
        let question = question(shown, at);
        match (bundles.get(&version).cloned().flatten(), question) {
            (Some(documents), Some(question)) => {
                let work = move || caracal_policy::explain(&documents, &question);
                about.extend(told(rego::off_the_runtime(work).await?));
            }
            (None, Some(_)) if version.is_empty() => {
                let why = "no policy set was in force; activate one";
                about.insert("rule".to_owned(), json!("no_active_policy_set"));
                about.insert("change".to_owned(), json!([why]));
            }
            (None, Some(_)) => {
                let why = "the version that decided is no longer kept";
                about.insert("unavailable".to_owned(), json!(why));
            }
            (_, None) => {
                let why = match version.is_empty() {
                    true => "policy was not asked about this resource",
                    false => "the event does not hold what policy was asked",
                };
                about.insert("unavailable".to_owned(), json!(why));
            }
        }
        all.push(Value::Object(about));
    }
    Ok(all)
}

/// The question that an event kept.
fn question(shown: &Shown, at: &At) -> Option<PolicyInput> {
    recorded(shown.metadata.get("policy_input")?, &at.id)
}

async fn bundle(api: &Api, at: &At, version: &str) -> Result<Option<Arc<Documents>>, Failure> {
    let sets = api.store.zone(&at.zone).policy_sets();
    let Some(version) = sets.version_of_zone(version).await? else {
        return Ok(None);
    };
    let found = documents(api, &at.zone, &Manifest::of(&version)?).await;
    Ok(found.ok().map(rego::texts).map(Arc::new))
}

fn told(
    explained: Result<caracal_policy::Explanation, caracal_policy::SimulationError>,
) -> Map<String, Value> {
    let explained = match explained {
        Ok(explained) => explained,
        Err(error) => {
            let mut members = Map::new();
            members.insert("unavailable".to_owned(), json!(error.to_string()));
            return members;
        }
    };
    let change: Vec<&String> = explained
        .checks
        .iter()
        .filter_map(|check| check.change.as_ref())
        .collect();
    let mut members = Map::new();
    if !change.is_empty() {
        members.insert("change".to_owned(), json!(change));
    }
    if let Value::Object(rest) = json!(explained) {
        members.extend(rest);
    }
    members
}

/// What to do about a refusal that policy had no part in.
fn advice(status: &str) -> Option<&'static str> {
    Some(match status {
        "resource_not_found" => "make a resource with this identifier, or ask for one that exists",
        "scope_mismatch" => "ask only for scopes that the resource declares, or declare them",
        "resource_outside_delegation" => {
            "delegate this resource and the scopes: the Delegation or one above it leaves them out"
        }
        "operation_not_permitted" => {
            "declare an operation of the resource for this method and path whose scope the \
             mandate carries"
        }
        "rate_limited" => "wait a minute, or raise STS_MINT_RATE_LIMIT_PER_MIN",
        "control_resource_requires_control_key" => {
            "use a control key: the control resource takes no ordinary exchange"
        }
        "policy_eval_failed" => "mend the documents: the diagnostics say why they gave no answer",
        "exchange_denied" => {
            "see the other events of this request: nothing is granted unless all of it is decided"
        }
        "provider_unavailable"
        | "credential_not_provisioned"
        | "credential_refresh_failed"
        | "provider_credential_unavailable" => {
            "give the provider of this resource a working credential"
        }
        "credential_injection_denied" => {
            "bind the variable to a resource whose provider permits it (allow_runtime_injection)"
        }
        "approval_invalid" | "approval_expired" | "approval_policy_changed" => {
            "ask again without the approval: a new one is issued for the request as it is now"
        }
        _ => return None,
    })
}

fn refusal(shown: &Shown, at: &At) -> Value {
    let of = |name: &str| shown.row.get(name).cloned().unwrap_or(Value::Null);
    let policies = match of("determining_policies_json") {
        Value::Null => json!([]),
        policies => policies,
    };
    let input = match question(shown, at) {
        Some(asked) => json!(asked),
        None => policy_input(&shown.metadata, at),
    };
    json!({
        "event_id": of("id"),
        "event_type": of("event_type"),
        "evaluation_status": of("evaluation_status"),
        "determining_policies": policies,
        "diagnostics": of("diagnostics_json"),
        "metadata": of("metadata_json"),
        "policy_input": input,
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
