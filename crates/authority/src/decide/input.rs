//! The question to policy (spec: sts §10.2). What is empty is left out, because the contract tests
//! for absence.

use caracal_model::policy::{
    Action, Context, EdgeInput, PolicyInput, Principal, ResourceInput, SCHEMA_VERSION, SessionInput,
};
use caracal_model::{DelegationId, Scopes};
use serde_json::{Value, json};

use super::request::{Class, ExchangeRequest};
use super::standing::Standing;
use crate::facts::ResourceFacts;
use crate::lineage::Lineage;

/// The question without its resource.
pub(super) fn question(standing: &Standing<'_>) -> PolicyInput {
    let request = &standing.request;
    let session = standing.session;
    let (method, path) = match request.class {
        Class::Gateway { method, path, .. } => (method.to_ascii_uppercase(), path.to_owned()),
        _ => (String::new(), String::new()),
    };
    let claims = request.class.presented().map(serde_json::to_value);
    PolicyInput {
        schema_version: SCHEMA_VERSION.to_owned(),
        principal: Principal {
            kind: "Application".to_owned(),
            id: request.application.to_string(),
            zone_id: request.zone.to_string(),
            registration_method: request.registration_method.to_owned(),
            agent_session_id: text(request.agent_session_id),
            lifecycle: session
                .map(|s| s.lifecycle.as_str().to_owned())
                .unwrap_or_default(),
            labels: session
                .map(|s| strings(s.labels.iter()))
                .unwrap_or_default(),
        },
        resource: ResourceInput::default(),
        action: Action {
            id: "TokenExchange".to_owned(),
            method,
            path,
        },
        session: standing
            .record
            .map(|id| SessionInput { id: id.to_string() }),
        delegation_edge: standing
            .lineage
            .as_ref()
            .map(|l| edge(l, standing.facts.epoch)),
        context: Context {
            actor_claims: actor_claims(request),
            // A mandate always has a JSON form; were it lost, policy would see no subject, and a
            // Gateway exchange without one matches no rule.
            subject_claims: claims.and_then(Result::ok).unwrap_or(Value::Null),
            trace_id: request.request_id.to_string(),
            session_id: text(standing.record),
            agent_session_id: text(request.agent_session_id),
            delegation_edge_id: text(request.delegation_edge_id),
            challenge_resolved: standing.resolved,
            requested_scopes: scopes(&standing.requested),
        },
    }
}

/// Who calls, and who acts through the call, when the zone takes actor tokens.
fn actor_claims(request: &ExchangeRequest<'_>) -> Value {
    let mut claims = json!({"caracal_client_id": request.application});
    if let (Some(act), Some(claims)) = (request.act(), claims.as_object_mut()) {
        claims.insert("act".to_owned(), json!(act));
    }
    claims
}

/// The resource of the question; declared scopes only, without the implicit lifecycle scope.
pub(crate) fn about(resource: &ResourceFacts) -> ResourceInput {
    ResourceInput {
        kind: "Resource".to_owned(),
        id: resource.id.to_string(),
        identifier: (*resource.identifier).to_owned(),
        scopes: scopes(&resource.scopes),
    }
}

fn edge(lineage: &Lineage<'_>, epoch: u64) -> EdgeInput {
    let leaf = lineage.leaf();
    let unconstrained = leaf
        .constraints_json
        .as_object()
        .is_none_or(|all| all.is_empty());
    EdgeInput {
        id: leaf.id.to_string(),
        source_session_id: leaf.source_session_id.to_string(),
        target_session_id: leaf.target_session_id.to_string(),
        issuer_application_id: leaf.issuer_application_id.to_string(),
        receiver_application_id: leaf.receiver_application_id.to_string(),
        resource_id: text(leaf.resource_id.as_ref()),
        scopes: scopes(&leaf.scopes),
        path: lineage.path().map(DelegationId::to_string).collect(),
        graph_epoch: epoch,
        constraints_json: if unconstrained {
            Value::Null
        } else {
            leaf.constraints_json.clone()
        },
    }
}

fn text<T: ToString>(id: Option<&T>) -> String {
    id.map(T::to_string).unwrap_or_default()
}

fn scopes(set: &Scopes) -> Vec<String> {
    set.iter().map(str::to_owned).collect()
}

fn strings<T: AsRef<str>>(all: impl Iterator<Item = T>) -> Vec<String> {
    all.map(|one| one.as_ref().to_owned()).collect()
}
