//! The contract evaluated by the engine, for zones whose documents read `input`. Slower by three
//! orders of magnitude, so it is taken only where the native contract cannot answer.

use std::time::Duration;

use caracal_model::policy::{Contract, PolicyFault, PolicyInput, PolicyResult};
use parking_lot::Mutex;
use serde_json::Value;

use crate::answer;
use crate::engine::{Documents, EngineError};

/// The contract as Rego text.
pub const CONTRACT_REGO: &str = include_str!("contract.rego");

/// Longest evaluation of one question.
const LIMIT: Duration = Duration::from_millis(250);
/// Engines that are kept for the next question.
const SPARE: usize = 8;

/// Documents and contract, evaluated for each question.
#[derive(Debug)]
pub(crate) struct RegoContract {
    /// Ready to be copied.
    original: Documents,
    spare: Mutex<Vec<Documents>>,
}

impl RegoContract {
    /// Takes documents that were checked.
    pub(crate) fn new(documents: &[(String, String)]) -> Result<Self, EngineError> {
        let mut original = Documents::new(LIMIT);
        for (id, content) in documents {
            original.add(id, content)?;
        }
        original.add("contract", CONTRACT_REGO)?;
        Ok(Self {
            original,
            spare: Mutex::default(),
        })
    }
}

impl Contract for RegoContract {
    fn evaluate(&self, input: &PolicyInput) -> Result<PolicyResult, PolicyFault> {
        answer::check_schema(input)?;
        let question = question(input)?;
        let spare = self.spare.lock().pop();
        let mut engine = spare.unwrap_or_else(|| self.original.clone());
        // An engine that failed is not used again: we do not know what it left behind.
        let result = engine
            .rule("result", question)
            .map_err(|error| PolicyFault(error.message))?;
        let mut spare = self.spare.lock();
        if spare.len() < SPARE {
            spare.push(engine);
        }
        drop(spare);
        let text = result
            .to_json_str()
            .map_err(|error| PolicyFault(error.to_string()))?;
        let result: Value =
            serde_json::from_str(&text).map_err(|error| PolicyFault(error.to_string()))?;
        answer::from_json(&result)
    }
}

fn question(input: &PolicyInput) -> Result<regorus::Value, PolicyFault> {
    let text = serde_json::to_string(input).map_err(|error| PolicyFault(error.to_string()))?;
    regorus::Value::from_json_str(&text).map_err(|error| PolicyFault(error.to_string()))
}
