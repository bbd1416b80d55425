//! The question to policy (spec: sts §10.2).

use caracal_model::ResourceId;
use caracal_model::policy::{
    Action, Context, EdgeInput, PolicyInput, Principal, ResourceInput, SCHEMA_VERSION, SessionInput,
};
use serde_json::{Value, json};

use crate::decide::{Ask, Class, Facts};
use crate::facts::{ResourceFacts, SessionFacts};
use crate::lineage::Lineage;

/// The question whether `ask` may have `resource`.
pub(crate) fn question(ask: &Ask<'_>, facts: &Facts<'_>, resource: &ResourceFacts) -> PolicyInput {
    let record = ask.record.map(ToString::to_string).unwrap_or_default();
    let session = ask.session.map(ToString::to_string).unwrap_or_default();
    let edge = facts
        .lineage
        .as_ref()
        .map(|lineage| edge(lineage, facts.epoch));
    PolicyInput {
        schema_version: SCHEMA_VERSION.to_owned(),
        principal: principal(ask, facts, &session),
        resource: ResourceInput {
            kind: "Resource".to_owned(),
            id: resource.id.to_string(),
            identifier: resource.identifier.to_string(),
            scopes: resource.scopes.iter().map(str::to_owned).collect(),
        },
        action: action(ask),
        session: (!record.is_empty()).then(|| SessionInput { id: record.clone() }),
        context: Context {
            actor_claims: json!({ "caracal_client_id": ask.application.as_str() }),
            subject_claims: subject_claims(ask),
            trace_id: ask.request_id.to_owned(),
            session_id: record,
            agent_session_id: session,
            delegation_edge_id: edge
                .as_ref()
                .map(|edge| edge.id.clone())
                .unwrap_or_default(),
            challenge_resolved: false,
            requested_scopes: ask.scopes.iter().map(str::to_owned).collect(),
        },
        delegation_edge: edge,
    }
}

fn principal(ask: &Ask<'_>, facts: &Facts<'_>, session: &str) -> Principal {
    let lifecycle = facts
        .session
        .map(|session| session.lifecycle.as_str().to_owned());
    Principal {
        kind: "Application".to_owned(),
        id: ask.application.to_string(),
        zone_id: ask.zone.to_string(),
        registration_method: ask.registration_method.to_owned(),
        agent_session_id: session.to_owned(),
        lifecycle: lifecycle.unwrap_or_default(),
        labels: facts.session.map(labels).unwrap_or_default(),
    }
}

fn action(ask: &Ask<'_>) -> Action {
    let (method, path) = match ask.class {
        Class::Gateway { method, path, .. } => (method.to_ascii_uppercase(), path.to_owned()),
        Class::Principal | Class::Delegated => (String::new(), String::new()),
    };
    Action {
        id: "TokenExchange".to_owned(),
        method,
        path,
    }
}

/// Every verified claim of the subject token; nothing when there is none.
fn subject_claims(ask: &Ask<'_>) -> Value {
    match ask.class {
        Class::Gateway { mandate, .. } => serde_json::to_value(mandate).unwrap_or(Value::Null),
        Class::Principal | Class::Delegated => Value::Null,
    }
}

fn edge(lineage: &Lineage<'_>, epoch: u64) -> EdgeInput {
    let Some(leaf) = lineage.leaf() else {
        return EdgeInput::default();
    };
    EdgeInput {
        id: leaf.id.to_string(),
        source_session_id: leaf.source_session_id.to_string(),
        target_session_id: leaf.target_session_id.to_string(),
        issuer_application_id: leaf.issuer_application_id.to_string(),
        receiver_application_id: leaf.receiver_application_id.to_string(),
        resource_id: leaf
            .resource_id
            .as_ref()
            .map(ResourceId::to_string)
            .unwrap_or_default(),
        // What is left at the leaf, not what it was stored with: policy narrows further from here.
        scopes: lineage.scopes.iter().map(str::to_owned).collect(),
        path: lineage.ids().iter().map(ToString::to_string).collect(),
        graph_epoch: epoch,
        constraints_json: leaf.constraints_json.clone(),
    }
}

fn labels(session: &SessionFacts) -> Vec<String> {
    session.labels.iter().map(ToString::to_string).collect()
}
