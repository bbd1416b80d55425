//! The seam to the policy crate: its answers as refusals of this service, and its slow work off the
//! runtime.

use std::sync::Arc;

use caracal_model::policy::Contract;
use caracal_policy::{InvalidPolicy, Preview};
use caracal_store::policies::PolicyVersion;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::failure::Failure;

/// Slow works at once: each takes a core, which the other services of this host need too.
static TURNS: Semaphore = Semaphore::const_new(2);

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

/// Runs slow work of the policy crate when it is its turn. A caller that leaves gives up its place,
/// but what has begun goes on to its end and keeps its turn until then.
///
/// # Errors
/// 422 when it panics: the documents are at fault.
pub async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    // The semaphore is never closed.
    let turn = TURNS.acquire().await.ok();
    let worked = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    worked.await.map_err(|error| {
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

    #[tokio::test]
    async fn two_at_a_time_work_on_policy_and_who_leaves_keeps_a_turn_until_it_is_done() {
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let ends = Arc::new(parking_lot::Mutex::new(ends));
        let mut callers = tokio::task::JoinSet::new();
        let mut work = || {
            let (begun, ends) = (begun.clone(), Arc::clone(&ends));
            callers.spawn(off_the_runtime(move || {
                begun.send(()).unwrap();
                let _ = ends.lock().recv();
            }))
        };
        let (first, _) = (work(), work());
        // Other tests take turns too, so these may have to wait for theirs.
        begins.recv().await.unwrap();
        begins.recv().await.unwrap();
        work();
        first.abort();
        let left = callers.join_next().await.unwrap();
        assert!(left.unwrap_err().is_cancelled());
        assert_eq!(TURNS.available_permits(), 0, "the work has not ended");
        assert!(begins.is_empty(), "so the third waits");
        end.send(()).unwrap();
        begins.recv().await.unwrap();
        drop(end);
        while let Some(done) = callers.join_next().await {
            done.unwrap().unwrap();
        }
    }

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
