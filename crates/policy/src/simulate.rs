//! Asking documents a question without touching anything (spec: sts §16, `simulate`).

use caracal_model::policy::PolicyInput;
use serde::Deserialize;
use serde_json::Value;

use crate::answer;
use crate::bundle::{PolicyError, compile};

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimulationError {
    /// The question does not fit the schema.
    #[error("the input does not fit the schema: {0}")]
    Input(String),
    /// The documents do not compile.
    #[error(transparent)]
    Documents(#[from] PolicyError),
    /// They were asked and failed.
    #[error("policy evaluation failed: {0}")]
    Evaluation(String),
}

/// Reads a question: unknown members are dropped, absent ones take their default.
///
/// # Errors
/// [`SimulationError::Input`] when a member has the wrong type.
pub fn question(input: &Value) -> Result<PolicyInput, SimulationError> {
    PolicyInput::deserialize(input).map_err(|error| SimulationError::Input(error.to_string()))
}

/// Compiles the documents and asks them; answers with the contract's `result`.
///
/// # Errors
/// [`SimulationError`] when there is no answer.
pub fn simulate(documents: &[(String, String)], input: &Value) -> Result<Value, SimulationError> {
    let contract = compile(documents)?;
    let answer = contract.evaluate(&question(input)?);
    let answer = answer.map_err(|fault| SimulationError::Evaluation(fault.0))?;
    Ok(answer::to_json(&answer))
}
