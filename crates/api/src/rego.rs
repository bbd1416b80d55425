//! The seam to the policy crate: its answers as refusals of this service, and its slow work off the
//! runtime.

use std::sync::Arc;

use caracal_model::policy::Contract;
use caracal_policy::{InvalidPolicy, Preview};
use caracal_store::policies::PolicyVersion;
use serde_json::{Value, json};

use crate::failure::Failure;

/// The answer about a document that is accepted, by its text: what it defines.
///
/// # Errors
/// 422 `invalid_rego` with the code of the first rule that is broken; `details.issues` says where
/// and what to do.
pub fn validate(content: &str) -> Result<Value, Failure> {
    answered(caracal_policy::validate(content))
}

/// As [`validate`], and the document also evaluates.
///
/// # Errors
/// As [`validate`].
pub async fn validate_whole(content: String) -> Result<Value, Failure> {
    answered(off_the_runtime(move || caracal_policy::validate_whole(&content)).await?)
}

fn answered(checked: Result<Preview, InvalidPolicy>) -> Result<Value, Failure> {
    match checked {
        Ok(preview) => Ok(preview.answer()),
        Err(invalid) => Err(
            Failure::unprocessable("invalid_rego", invalid.code.to_string())
                .with("details", json!({ "issues": [invalid.issue()] })),
        ),
    }
}

/// Documents to start from.
pub fn templates() -> Value {
    json!(caracal_policy::templates())
}

/// Documents as the policy crate takes them: text by version id.
pub fn texts(documents: Vec<PolicyVersion>) -> Vec<(String, String)> {
    documents
        .into_iter()
        .map(|version| (version.id, version.content))
        .collect()
}

/// Compiles documents into a contract. Large ones take tens of milliseconds.
///
/// # Errors
/// 422 `invalid_policy_bundle`, which says where the documents contradict each other.
pub async fn compile(documents: Vec<PolicyVersion>) -> Result<Arc<dyn Contract>, Failure> {
    let documents = texts(documents);
    let compiled = off_the_runtime(move || caracal_policy::compile_checked(&documents)).await?;
    compiled.map_err(|error| refused(error.to_string()))
}

fn refused(why: String) -> Failure {
    Failure::unprocessable("invalid_policy_bundle", why)
}

/// Runs slow work of the policy crate.
///
/// # Errors
/// 422 when it panics: the documents are at fault.
pub async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "work on a policy bundle panicked");
        refused("the documents cannot be compiled".to_owned())
    })
}

/// A manifest: its one text, and the hash of that text in hex (spec: sts §10.1).
pub fn manifest(ids: &[String]) -> (String, String) {
    let entries: Value = ids
        .iter()
        .map(|id| json!({ "policy_version_id": id }))
        .collect();
    (entries.to_string(), caracal_policy::manifest_sha256(ids))
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
