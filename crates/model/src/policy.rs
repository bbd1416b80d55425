//! The input and output of the decision contract (spec: sts §10.2, §10.3), and the trait through
//! which the kernel asks it. The crate `policy` answers; the kernel does not know how.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The only schema version that is accepted.
pub const SCHEMA_VERSION: &str = "2026-05-20";

/// What policy is asked. Everything that is empty is left out of the JSON form, because the
/// contract tests for absence. Members are declared, and so written, in the order of their names:
/// the form that evidence had from the start, and that its compression knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyInput {
    /// To do what.
    pub action: Action,
    /// The rest.
    pub context: Context,
    /// The Delegation that was presented.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delegation_edge: Option<EdgeInput>,
    /// Who asks.
    pub principal: Principal,
    /// For what.
    pub resource: ResourceInput,
    /// [`SCHEMA_VERSION`].
    pub schema_version: String,
    /// The authority record that was presented.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionInput>,
}

/// The calling application (or workload).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Principal {
    /// The governed Session.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub agent_session_id: String,
    /// Its id.
    pub id: String,
    /// Labels of the Session.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// `task` or `service`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub lifecycle: String,
    /// `managed` or `dcr`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub registration_method: String,
    /// `Application` or `Workload`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its zone.
    pub zone_id: String,
}

/// The resource in question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceInput {
    /// Row id.
    pub id: String,
    /// URI.
    pub identifier: String,
    /// Declared scopes, without the implicit lifecycle scope.
    pub scopes: Vec<String>,
    /// `Resource`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// The action in question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Action {
    /// `TokenExchange` or `CredentialInjection`.
    pub id: String,
    /// Upper-case method; Gateway exchanges only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// Decoded path; Gateway exchanges only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// The authority record in question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionInput {
    /// Record id.
    pub id: String,
}

/// The Delegation in question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EdgeInput {
    /// Its constraints.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub constraints_json: Value,
    /// The zone's epoch.
    #[serde(skip_serializing_if = "is_zero")]
    pub graph_epoch: u64,
    /// Delegation id.
    pub id: String,
    /// Issuing application.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub issuer_application_id: String,
    /// Path from root to leaf.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<String>,
    /// Receiving application.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub receiver_application_id: String,
    /// Row id of the resource that it is bound to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_id: String,
    /// Scopes that it carries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// Source Session.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source_session_id: String,
    /// Target Session.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target_session_id: String,
}

/// The rest of the input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Context {
    /// `{"caracal_client_id": …}`.
    pub actor_claims: Value,
    /// Governed Session.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub agent_session_id: String,
    /// Whether an approval was presented and accepted.
    pub challenge_resolved: bool,
    /// Delegation.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub delegation_edge_id: String,
    /// The scopes that are asked for.
    pub requested_scopes: Vec<String>,
    /// Authority record.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub session_id: String,
    /// Every verified claim of the subject token.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub subject_claims: Value,
    /// Request id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trace_id: String,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// What policy answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyResult {
    /// Whether the contract allows it.
    pub allow: bool,
    /// Names of the policies that decided, such as `caracal-bootstrap`.
    pub determining: Vec<String>,
    /// As the contract emits them: deny reasons, step-up requirements, risk.
    pub diagnostics: Vec<Value>,
}

impl PolicyResult {
    /// The reason of a denial, for `policy denied (REASON)`.
    pub fn reason(&self) -> Option<&str> {
        let reason = self.diagnostics.first()?.get("reason")?;
        reason.as_str()
    }

    /// Whether the allow stands only with a human approval.
    pub fn step_up(&self) -> Option<&Value> {
        self.diagnostics
            .iter()
            .find_map(|d| d.get("step_up_required"))
    }
}

/// Policy could not answer: never an allow (503 `policy_eval_failed`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy evaluation failed: {0}")]
pub struct PolicyFault(pub String);

/// One zone's compiled policy.
pub trait Contract: Send + Sync {
    /// Answers one question.
    ///
    /// # Errors
    /// [`PolicyFault`] when the documents contradict each other or a limit was exceeded.
    fn evaluate(&self, input: &PolicyInput) -> Result<PolicyResult, PolicyFault>;
}

/// A contract and the version that it was compiled from.
#[derive(Clone)]
pub struct ActivePolicy {
    /// Answers questions.
    pub contract: Arc<dyn Contract>,
    /// Policy-set version; `None` when the zone has no active set (deny all).
    pub version_id: Option<Arc<str>>,
    /// Manifest hash, or the marker `no_active_policy_set`.
    pub manifest_sha256: Arc<str>,
}

impl std::fmt::Debug for ActivePolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ActivePolicy")
            .field("version_id", &self.version_id)
            .field("manifest_sha256", &self.manifest_sha256)
            .finish_non_exhaustive()
    }
}
