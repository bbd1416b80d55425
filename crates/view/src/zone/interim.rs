//! Until the policy crate compiles documents, no bound policy can be evaluated: every question is
//! answered with a fault, never with an allow. A zone without a policy denies.

use std::sync::Arc;

use caracal_model::policy::{Contract, PolicyFault, PolicyInput, PolicyResult};
use serde_json::json;

/// Denies, and says why.
pub(super) struct DenyAll;

impl Contract for DenyAll {
    fn evaluate(&self, _: &PolicyInput) -> Result<PolicyResult, PolicyFault> {
        Ok(PolicyResult {
            allow: false,
            determining: Vec::new(),
            diagnostics: vec![json!({ "reason": super::NO_ACTIVE_POLICY_SET })],
        })
    }
}

/// No document can be compiled yet.
#[derive(Debug, thiserror::Error)]
#[error("policy documents cannot be compiled yet")]
pub(super) struct NotYet;

impl NotYet {
    /// It is not the document's fault.
    pub fn is_rejection(&self) -> bool {
        false
    }
}

pub(super) fn compile(_: &[(String, String)]) -> Result<Arc<dyn Contract>, NotYet> {
    Err(NotYet)
}

/// Hash of a manifest (spec: sts §10.1).
pub(super) fn manifest_sha256(versions: &[String]) -> String {
    let entries: Vec<_> = versions
        .iter()
        .map(|version| json!({ "policy_version_id": version }))
        .collect();
    let text = serde_json::Value::from(entries).to_string();
    caracal_crypto::digest::sha256_hex(text.as_bytes())
}
