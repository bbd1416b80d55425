//! The seam to the policy crate. Until that crate checks and compiles documents, nothing that
//! would need it is accepted: policies cannot be written, so none can be put in force.

use std::sync::Arc;

use caracal_crypto::digest::sha256_hex;
use caracal_model::policy::Contract;
use caracal_store::policies::PolicyVersion;
use serde_json::{Value, json};

use crate::failure::Failure;

fn not_yet() -> Failure {
    Failure::unavailable(
        "policy_verification_unavailable",
        "this build cannot check policy documents yet",
    )
}

/// What a document defines.
///
/// # Errors
/// 422 `invalid_rego` with the code of the first rule that is broken.
pub fn validate(_content: &str) -> Result<Value, Failure> {
    Err(not_yet())
}

/// Documents to start from.
///
/// # Errors
/// While there are none.
pub fn templates() -> Result<Value, Failure> {
    Err(not_yet())
}

/// Compiles documents into a contract.
///
/// # Errors
/// 422 `invalid_policy_bundle`, which says where the documents contradict each other.
pub async fn compile(_documents: Vec<PolicyVersion>) -> Result<Arc<dyn Contract>, Failure> {
    Err(not_yet())
}

/// A manifest: its one text, and the hash of that text in hex (spec: sts §10.1).
pub fn manifest(ids: &[String]) -> (String, String) {
    let entries: Value = ids
        .iter()
        .map(|id| json!({ "policy_version_id": id }))
        .collect();
    let text = entries.to_string();
    let hash = sha256_hex(text.as_bytes());
    (text, hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_hash_as_the_specification_says() {
        let hash = |ids: &[&str]| {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            manifest(&ids).1
        };
        assert_eq!(
            hash(&["pv-1"]),
            "91b75ab3559277a91e4c37e18e60a405963aa4893f36d8e237f7907a79763f97"
        );
        assert_eq!(
            hash(&["pv-1", "pv-2"]),
            "e7388625e7afa28ca7927662b2decb5077ef39c5ff1ab43f1847845232968087"
        );
    }
}
