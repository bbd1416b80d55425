//! From the documents of a policy-set version to a contract (spec: sts §10.1).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use caracal_crypto::digest::sha256_hex;
use caracal_model::policy::{Contract, PolicyFault, PolicyInput, PolicyResult};
use serde_json::json;

use crate::answer;
use crate::document::{InvalidPolicy, ROOTS, inspect};
use crate::engine::{Documents, EngineError};
use crate::native::NativeContract;
use crate::rego::{CONTRACT_REGO, RegoContract};
use crate::zone_policy::ZonePolicy;

/// Version of the decision contract; changes with its meaning.
pub const CONTRACT_VERSION: &str = "2026-11-23";

/// Longest evaluation of all constant documents of a zone together.
const LIMIT: Duration = Duration::from_secs(2);
/// Most documents in one bundle.
const MAX_DOCUMENTS: usize = 256;

/// SHA-256 of the contract's text, in hex: with the version, what a decision was made by.
pub fn contract_sha256() -> &'static str {
    static HASH: LazyLock<String> = LazyLock::new(|| sha256_hex(CONTRACT_REGO.as_bytes()));
    &HASH
}

/// Why documents do not become a contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A document is not one that we accept.
    #[error("document `{id}` is not accepted: {fault}")]
    Rejected {
        /// Its version id.
        id: String,
        /// Why.
        fault: InvalidPolicy,
    },
    /// There are too many.
    #[error("a policy set holds {MAX_DOCUMENTS} documents at most")]
    TooMany,
    /// They do not evaluate.
    #[error("the documents do not evaluate: {0}")]
    Unevaluable(String),
}

impl PolicyError {
    /// Whether a document was refused: whoever wrote it meant something that we do not know, so
    /// everything is denied. Otherwise what was in force stays.
    pub const fn is_rejection(&self) -> bool {
        matches!(self, Self::Rejected { .. })
    }
}

/// Compiles documents, each with the id of its version. Constant documents are evaluated here, once.
/// Documents that contradict each other compile into a contract that answers nothing.
///
/// # Errors
/// [`PolicyError`] when a document is not accepted.
pub fn compile(documents: &[(String, String)]) -> Result<Arc<dyn Contract>, PolicyError> {
    if documents.len() > MAX_DOCUMENTS {
        return Err(PolicyError::TooMany);
    }
    let mut is_constant = true;
    let mut defaults = HashSet::new();
    let mut contradiction = None;
    for (id, content) in documents {
        let inspected = inspect(content).map_err(|fault| PolicyError::Rejected {
            id: id.clone(),
            fault,
        })?;
        is_constant &= inspected.is_constant;
        for head in inspected.heads.iter().filter(|head| head.is_default) {
            // The engine takes the first and is silent about the second.
            if !defaults.insert(head.name.clone()) {
                contradiction = Some(format!("{} has two defaults", head.name));
            }
        }
    }
    if let Some(why) = contradiction {
        return Ok(Arc::new(Contradictory(why)));
    }
    if !is_constant {
        let contract = RegoContract::new(documents).map_err(unevaluable)?;
        return Ok(Arc::new(contract));
    }
    Ok(match evaluate(documents) {
        Ok(policy) => Arc::new(NativeContract::new(policy)),
        Err(error) => Arc::new(Contradictory(error.message)),
    })
}

/// As [`compile`], and asks the contract an empty question: the gate before a policy-set version is
/// accepted. It catches documents that contradict each other.
///
/// # Errors
/// [`PolicyError`] when a document is not accepted or the contract gives no answer.
pub fn compile_checked(documents: &[(String, String)]) -> Result<Arc<dyn Contract>, PolicyError> {
    let contract = compile(documents)?;
    let empty = contract.evaluate(&PolicyInput::default());
    empty.map_err(|fault| PolicyError::Unevaluable(fault.0))?;
    Ok(contract)
}

fn unevaluable(error: EngineError) -> PolicyError {
    PolicyError::Unevaluable(error.message)
}

fn evaluate(documents: &[(String, String)]) -> Result<ZonePolicy, EngineError> {
    let mut engine = Documents::new(LIMIT);
    for (id, content) in documents {
        engine.add(id, content)?;
    }
    let mut values = HashMap::new();
    for root in ROOTS {
        if let Some(value) = engine.root(root)? {
            values.insert(root, value);
        }
    }
    Ok(ZonePolicy::read(|root| values.remove(root)))
}

/// Documents that say two things about one root: no question is answered, so nothing is allowed.
struct Contradictory(String);

impl Contract for Contradictory {
    fn evaluate(&self, _: &PolicyInput) -> Result<PolicyResult, PolicyFault> {
        Err(PolicyFault(self.0.clone()))
    }
}

/// The contract of a zone without an active policy set.
#[derive(Clone, Copy, Debug, Default)]
pub struct DenyAll;

impl Contract for DenyAll {
    fn evaluate(&self, _: &PolicyInput) -> Result<PolicyResult, PolicyFault> {
        Ok(answer::deny("no_active_policy_set"))
    }
}

/// The hash of a manifest: its version ids in order (spec: sts §10.1).
pub fn manifest_sha256(version_ids: &[String]) -> String {
    let entries: Vec<_> = version_ids
        .iter()
        .map(|id| json!({"policy_version_id": id}))
        .collect();
    sha256_hex(serde_json::Value::Array(entries).to_string().as_bytes())
}
