//! From the documents of a policy-set version to a contract (spec: sts §10.1).

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use caracal_crypto::digest::sha256_hex;
use caracal_model::policy::{Contract, PolicyFault, PolicyInput, PolicyResult};
use parking_lot::Mutex;
use serde_json::json;

use crate::answer;
use crate::ast::{Head, Reading};
use crate::document::{InvalidPolicy, Preview, ROOTS, inspect};
use crate::dynamic::MixedContract;
use crate::engine::{Documents, EngineError};
use crate::limits::LOADING;
use crate::native::NativeContract;
use crate::rego::{self, CONTRACT_REGO};
use crate::simulate::SimulationError;
use crate::zone_policy::ZonePolicy;

/// Version of the decision contract; changes with its meaning.
pub const CONTRACT_VERSION: &str = "2026-11-23";

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

/// Bundles that were compiled lately, by the hash of their text, the most recently used last.
static LATELY: Mutex<Vec<(String, Arc<dyn Contract>)>> = Mutex::new(Vec::new());
/// Most bundles that are remembered.
const REMEMBERED: usize = 16;

/// The contract of these documents, by `compile` unless it was compiled lately: a zone that goes
/// back to an older version, or a replay that turns its pages, pays once.
///
/// # Errors
/// What `compile` fails with.
pub(crate) fn compile_once(
    documents: &[(String, String)],
    compile: impl FnOnce() -> Result<Arc<dyn Contract>, PolicyError>,
) -> Result<Arc<dyn Contract>, PolicyError> {
    // Lengths, so that no two bundles have one text.
    let mut text = String::new();
    for part in documents.iter().flat_map(|(id, content)| [id, content]) {
        text.push_str(&format!("{}:{part}", part.len()));
    }
    let hash = sha256_hex(text.as_bytes());
    let known = {
        let mut lately = LATELY.lock();
        let at = lately.iter().position(|(of, _)| *of == hash);
        at.map(|at| lately.remove(at))
    };
    let entry = match known {
        Some(entry) => entry,
        None => (hash, compile()?),
    };
    let contract = Arc::clone(&entry.1);
    let mut lately = LATELY.lock();
    lately.push(entry);
    if lately.len() > REMEMBERED {
        lately.remove(0);
    }
    Ok(contract)
}

/// Which evaluator may answer for roots that depend on the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// The bytecode machine where it agrees with the interpreter.
    Fastest,
    /// The interpreter.
    Interpreter,
}

/// Compiles documents, each with the id of its version. Constant roots are evaluated here, once.
/// Documents that contradict each other compile into a contract that answers nothing.
///
/// # Errors
/// [`PolicyError`] when a document is not accepted, or time ran out: then try again.
pub fn compile(documents: &[(String, String)]) -> Result<Arc<dyn Contract>, PolicyError> {
    compile_by(documents, Path::Fastest)
}

pub(crate) fn compile_by(
    documents: &[(String, String)],
    path: Path,
) -> Result<Arc<dyn Contract>, PolicyError> {
    let rules = Rules::of(documents)?;
    if let Some(root) = rules.two_defaults() {
        return Ok(Arc::new(Contradictory(two_defaults(root))));
    }
    let fixed = match in_time(&PATIENCE, |time| {
        evaluate(documents, &rules.constant(), time)
    }) {
        Ok(policy) => policy,
        // Not of what the documents say: it is no contract, and nothing to remember.
        Err(error) if error.is_late => return Err(PolicyError::Unevaluable(error.message)),
        Err(error) => return Ok(Arc::new(Contradictory(error.message))),
    };
    let dynamic = rules.dynamic();
    if dynamic.is_empty() {
        return Ok(Arc::new(NativeContract::new(fixed)));
    }
    let are_plain = path == Path::Fastest && rules.are_plain(&dynamic);
    let contract = MixedContract::new(documents, fixed, dynamic, are_plain);
    Ok(Arc::new(contract.map_err(|error| {
        PolicyError::Unevaluable(error.message)
    })?))
}

/// The rules of all documents of a bundle.
#[derive(Debug, Default)]
struct Rules {
    heads: Vec<Head>,
    is_entangled: bool,
}

impl Rules {
    fn of(documents: &[(String, String)]) -> Result<Self, PolicyError> {
        if documents.len() > MAX_DOCUMENTS {
            return Err(PolicyError::TooMany);
        }
        let mut rules = Self::default();
        for (id, content) in documents {
            let inspected = inspect(content).map_err(|fault| PolicyError::Rejected {
                id: id.clone(),
                fault,
            })?;
            rules.take(inspected.reading);
        }
        Ok(rules)
    }

    fn take(&mut self, reading: Reading) {
        self.heads.extend(reading.heads);
        self.is_entangled |= reading.is_entangled;
    }

    fn named(&self, root: &str) -> impl Iterator<Item = &Head> {
        self.heads.iter().filter(move |head| head.name == root)
    }

    /// A root with a default in two documents. The engine takes the first and is silent about others.
    fn two_defaults(&self) -> Option<&'static str> {
        let defaults = |root: &str| self.named(root).filter(|head| head.is_default).count();
        ROOTS.into_iter().find(|root| defaults(root) > 1)
    }

    /// Whether the values of this root depend on the question. Where rules read each other's roots,
    /// one that does makes all of them.
    fn is_dynamic(&self, root: &str) -> bool {
        let mut rules = self.heads.iter();
        rules.any(|head| head.is_dynamic && (self.is_entangled || head.name == root))
    }

    fn defined(&self) -> impl Iterator<Item = &'static str> {
        ROOTS
            .into_iter()
            .filter(|root| self.named(root).next().is_some())
    }

    fn constant(&self) -> Vec<&'static str> {
        self.defined()
            .filter(|root| !self.is_dynamic(root))
            .collect()
    }

    fn dynamic(&self) -> Vec<&'static str> {
        self.defined()
            .filter(|root| self.is_dynamic(root))
            .collect()
    }

    /// Whether the bytecode machine may answer for these roots. Two rules for one value may
    /// contradict each other, which it does not report.
    fn are_plain(&self, roots: &[&str]) -> bool {
        !self.is_entangled
            && roots.iter().all(|root| {
                let values = self.named(root).filter(|head| !head.is_default);
                let (mut parts, mut wholes) = (0, 0);
                for head in values {
                    if head.is_part {
                        parts += 1;
                    } else {
                        wholes += 1;
                    }
                }
                self.named(root).all(|head| head.is_plain)
                    && (wholes == 0 || (wholes == 1 && parts == 0))
            })
    }
}

/// As [`compile`], and asks the contract an empty question: the gate before a policy-set version is
/// accepted. It catches documents that contradict each other.
///
/// # Errors
/// [`PolicyError`] when a document is not accepted or the contract gives no answer.
pub fn compile_checked(documents: &[(String, String)]) -> Result<Arc<dyn Contract>, PolicyError> {
    let contract = compile_once(documents, || compile(documents))?;
    let empty = contract.evaluate(&PolicyInput::default());
    empty.map_err(|fault| PolicyError::Unevaluable(fault.0))?;
    Ok(contract)
}

/// As [`crate::validate`], and evaluates the document, as far as it stands on its own: what fails
/// here fails in every bundle. It may take as long as loading a zone may, so it is no work for a
/// thread that serves.
///
/// # Errors
/// [`InvalidPolicy`] with the first code that applies.
pub fn validate_whole(content: &str) -> Result<Preview, InvalidPolicy> {
    let inspected = inspect(content)?;
    let mut rules = Rules::default();
    rules.take(inspected.reading);
    if !rules.is_entangled {
        evaluates(content, &rules).map_err(InvalidPolicy::unevaluable)?;
    }
    Ok(inspected.preview)
}

fn evaluates(content: &str, rules: &Rules) -> Result<(), EngineError> {
    let mut engine = Documents::new(LOADING.time);
    engine.add("document", content)?;
    for root in rules.constant() {
        engine.root(root)?;
    }
    let dynamic = rules.dynamic();
    if !dynamic.is_empty() {
        let empty = rego::question(&PolicyInput::default());
        let empty = empty.map_err(|fault| EngineError::because(fault.0))?;
        engine.answer(&dynamic, empty)?;
    }
    Ok(())
}

/// How long each constant root may take, one try after the other. The engine can only look at the
/// clock, and on a busy machine that says little of the documents; what takes this long twice is
/// refused where a version is put in force.
const PATIENCE: [Duration; 2] = [LOADING.time, LOADING.time.saturating_mul(2)];

/// Does this within the first of these times, else within the next.
fn in_time<T>(
    times: &[Duration],
    work: impl Fn(Duration) -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    let (last, before) = times.split_last().unwrap_or((&LOADING.time, &[]));
    for time in before {
        match work(*time) {
            Err(error) if error.is_late => {}
            done => return done,
        }
    }
    work(*last)
}

fn evaluate(
    documents: &[(String, String)],
    roots: &[&str],
    time: Duration,
) -> Result<ZonePolicy, EngineError> {
    let mut engine = Documents::new(time);
    for (id, content) in documents {
        engine.add(id, content)?;
    }
    let mut policy = ZonePolicy::default();
    for root in roots {
        if let Some(value) = engine.root(root)? {
            policy.set(root, &value, None);
        }
    }
    Ok(policy)
}

/// What the documents say for this question, every root of them.
pub(crate) fn zone_policy(
    documents: &[(String, String)],
    input: &PolicyInput,
) -> Result<ZonePolicy, SimulationError> {
    let rules = Rules::of(documents)?;
    let failed = |error: EngineError| SimulationError::Evaluation(error.message);
    if let Some(root) = rules.two_defaults() {
        return Err(SimulationError::Evaluation(two_defaults(root)));
    }
    let constant = rules.constant();
    let fixed = in_time(&PATIENCE, |time| evaluate(documents, &constant, time)).map_err(failed)?;
    let dynamic = rules.dynamic();
    if dynamic.is_empty() {
        return Ok(fixed);
    }
    let are_plain = rules.are_plain(&dynamic);
    let mixed = MixedContract::new(documents, fixed, dynamic, are_plain).map_err(failed)?;
    let policy = mixed.policy(input);
    policy.map_err(|fault| SimulationError::Evaluation(fault.0))
}

/// What answers for these documents, for tests.
#[cfg(test)]
pub(crate) fn answered_by(documents: &[(String, String)]) -> &'static str {
    let Ok(rules) = Rules::of(documents) else {
        return "nothing";
    };
    let dynamic = rules.dynamic();
    if dynamic.is_empty() {
        return "native";
    }
    let are_plain = rules.are_plain(&dynamic);
    let fixed = ZonePolicy::default();
    match MixedContract::new(documents, fixed, dynamic, are_plain) {
        Ok(contract) if contract.is_bytecode() => "bytecode",
        Ok(_) => "interpreter",
        Err(_) => "nothing",
    }
}

/// Paths into the question that these documents read.
///
/// # Errors
/// [`PolicyError`] when a document is not accepted.
pub fn inputs_read(documents: &[(String, String)]) -> Result<Vec<String>, PolicyError> {
    let mut all = Vec::new();
    for (id, content) in documents {
        let inspected = inspect(content).map_err(|fault| PolicyError::Rejected {
            id: id.clone(),
            fault,
        })?;
        all.extend(inspected.preview.inputs_referenced);
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

fn two_defaults(root: &str) -> String {
    format!("two documents give `{root}` a default; keep one of them")
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

#[cfg(test)]
mod tests {
    use super::*;

    /// No time at all, as on a machine that gives this thread no turn.
    const NONE: Duration = Duration::ZERO;

    fn bundle(name: &str) -> Vec<(String, String)> {
        let text = format!(
            "# caracal:data-document\npackage caracal.authz\nimport rego.v1\n\
             restrict := {{name | some name in [\"{name}\", \"b\", \"c\", \"d\", \"e\", \"f\"]}}"
        );
        vec![("pv".to_owned(), text)]
    }

    #[test]
    fn a_machine_that_was_busy_for_a_while_is_asked_again() {
        let documents = bundle("a");
        let evaluated =
            |times: &[Duration]| in_time(times, |time| evaluate(&documents, &["restrict"], time));
        assert!(evaluated(&[NONE]).unwrap_err().is_late);
        assert!(evaluated(&[NONE, NONE]).unwrap_err().is_late);
        assert!(evaluated(&[NONE, LOADING.time]).unwrap().restricted);
        let wrong = || Err::<(), _>(EngineError::because("wrong".to_owned()));
        let tried = std::cell::Cell::new(0);
        let once = in_time(&PATIENCE, |_| {
            tried.set(tried.get() + 1);
            wrong()
        });
        assert!(once.is_err());
        assert_eq!(tried.get(), 1, "only time is tried again");
    }

    #[test]
    fn what_took_too_long_is_not_remembered() {
        let documents = bundle("remembered");
        let late = compile_once(&documents, || {
            Err(PolicyError::Unevaluable("late".to_owned()))
        });
        assert!(late.is_err_and(|error| !error.is_rejection()));
        let contract = compile_once(&documents, || compile(&documents)).unwrap();
        let answer = contract.evaluate(&PolicyInput {
            schema_version: caracal_model::policy::SCHEMA_VERSION.to_owned(),
            ..PolicyInput::default()
        });
        assert_eq!(answer.unwrap().reason(), Some("restriction_active"));
    }
}
