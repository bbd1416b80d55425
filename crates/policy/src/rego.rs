//! The contract as Rego text: what the native contract was written against and is compared with.
//! Nothing that decides evaluates it.

use std::sync::LazyLock;

use caracal_model::policy::{Contract, PolicyFault, PolicyInput, PolicyResult};
use regorus::Value;

use crate::answer;
use crate::bytecode::Bytecode;
use crate::dynamic::Interpreter;
use crate::engine::{Documents, EngineError};
use crate::limits::EVALUATION;

/// The contract as Rego text.
pub const CONTRACT_REGO: &str = include_str!("contract.rego");

/// Documents and contract, all of it evaluated for each question.
#[derive(Debug)]
pub(crate) enum RegoContract {
    Interpreter(Box<Interpreter>),
    Machine(Bytecode),
}

/// The contract in an engine, parsed once for all the bundles that tests compare with.
static CONTRACT: LazyLock<Result<Documents, EngineError>> = LazyLock::new(|| {
    let mut engine = Documents::new(EVALUATION.time);
    engine.add("contract", CONTRACT_REGO)?;
    Ok(engine)
});

fn documents(all: &[(String, String)]) -> Result<Documents, EngineError> {
    let mut engine = CONTRACT.clone()?;
    for (id, content) in all {
        engine.add(id, content)?;
    }
    Ok(engine)
}

impl RegoContract {
    /// By the interpreter, over documents that were checked.
    pub(crate) fn interpreted(all: &[(String, String)]) -> Result<Self, EngineError> {
        Ok(Self::Interpreter(Box::new(Interpreter::new(documents(
            all,
        )?))))
    }

    /// By the bytecode machine. Of documents that fail or contradict each other it says nothing: it
    /// does not report what it passes over.
    pub(crate) fn compiled(all: &[(String, String)]) -> Result<Self, EngineError> {
        let machine = Bytecode::compile(&documents(all)?, &["result"])?;
        Ok(Self::Machine(machine))
    }

    fn result(&self, question: Value) -> Result<Option<Value>, EngineError> {
        let mut values = match self {
            Self::Interpreter(interpreter) => {
                interpreter.answer(|engine| engine.answer(&["result"], question))?
            }
            Self::Machine(machine) => machine.answer(question)?,
        };
        Ok(values.pop().flatten())
    }
}

impl Contract for RegoContract {
    fn evaluate(&self, input: &PolicyInput) -> Result<PolicyResult, PolicyFault> {
        answer::check_schema(input)?;
        let fault = |error: &dyn std::fmt::Display| PolicyFault(error.to_string());
        let result = self
            .result(question(input)?)
            .map_err(|error| fault(&error))?;
        let text = result.unwrap_or(Value::Null).to_json_str();
        let text = text.map_err(|error| fault(&error))?;
        let result = serde_json::from_str(&text).map_err(|error| fault(&error))?;
        answer::from_json(&result)
    }
}

/// The question as the engine takes it.
pub(crate) fn question(input: &PolicyInput) -> Result<Value, PolicyFault> {
    let value = serde_json::to_value(input).map_err(|error| PolicyFault(error.to_string()))?;
    Ok(Value::from(value))
}
