//! The question to policy about a credential that a workload injects into the command that it
//! launches (spec: sts §10.2, §12).
//!
//! A workload has no Session and no Delegation, and acts for nobody: those members stay absent, and
//! the contract tests for that. Its scopes are those of the stored binding, never the caller's.

use caracal_model::policy::{Action, Context, PolicyInput, Principal, SCHEMA_VERSION};
use caracal_model::{RequestId, WorkloadId, ZoneId};
use serde_json::{Value, json};

use crate::decide::about;
use crate::facts::ResourceFacts;

/// A credential that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Injection<'a> {
    /// The zone of the workload.
    pub zone: &'a ZoneId,
    /// The request.
    pub request_id: &'a RequestId,
    /// Who asks.
    pub workload: &'a WorkloadId,
    /// Whose credential.
    pub resource: &'a ResourceFacts,
    /// The scopes of the binding.
    pub scopes: &'a [String],
    /// Whether an approval was presented and stands.
    pub challenge_resolved: bool,
}

impl Injection<'_> {
    /// What policy is asked.
    pub fn question(&self) -> PolicyInput {
        PolicyInput {
            schema_version: SCHEMA_VERSION.to_owned(),
            principal: Principal {
                kind: "Workload".to_owned(),
                id: self.workload.to_string(),
                zone_id: self.zone.to_string(),
                ..Principal::default()
            },
            resource: about(self.resource),
            action: Action {
                id: "CredentialInjection".to_owned(),
                ..Action::default()
            },
            session: None,
            delegation_edge: None,
            context: Context {
                actor_claims: json!({"caracal_workload_id": self.workload}),
                subject_claims: Value::Null,
                trace_id: self.request_id.to_string(),
                challenge_resolved: self.challenge_resolved,
                requested_scopes: self.scopes.to_vec(),
                ..Context::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Enforcement;
    use caracal_model::{ProviderId, ResourceId};

    #[test]
    fn the_question_names_the_workload_and_nothing_that_it_does_not_have() {
        let resource = ResourceFacts {
            id: ResourceId::trusted("res-1"),
            identifier: "resource://mail".into(),
            scopes: ["mail:send"].into_iter().collect(),
            upstream_url: None,
            operations: Vec::new(),
            enforcement: Enforcement::Enforced,
            provider: ProviderId::trusted("p1"),
        };
        let injection = Injection {
            zone: &ZoneId::trusted("z1"),
            request_id: &RequestId::trusted("r1"),
            workload: &WorkloadId::trusted("w1"),
            resource: &resource,
            scopes: &["mail:send".to_owned(), "mail:purge".to_owned()],
            challenge_resolved: false,
        };
        assert_eq!(
            serde_json::to_value(injection.question()).unwrap(),
            json!({
                "schema_version": "2026-05-20",
                "principal": {"type": "Workload", "id": "w1", "zone_id": "z1"},
                "resource": {"type": "Resource", "id": "res-1", "identifier": "resource://mail",
                    "scopes": ["mail:send"]},
                "action": {"id": "CredentialInjection"},
                "context": {"actor_claims": {"caracal_workload_id": "w1"}, "trace_id": "r1",
                    "challenge_resolved": false, "requested_scopes": ["mail:send", "mail:purge"]},
            })
        );
    }
}
