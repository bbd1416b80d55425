//! Other ways to the same answer, for comparison in tests and fuzzing: never to decide by.

use std::sync::Arc;

use caracal_model::policy::{Contract, PolicyFault};

use crate::bundle::{Path, PolicyError, compile_by};
use crate::rego::RegoContract;

/// Whether a fault says that two documents give one root a default. The engine takes the first and
/// is silent about the second, so it cannot be asked about such documents.
pub fn is_two_defaults(fault: &PolicyFault) -> bool {
    fault.0.contains("a default; keep one of them")
}

/// The whole contract by the Rego interpreter, over documents that were checked.
///
/// # Errors
/// [`PolicyError`] when the documents do not parse.
pub fn interpreter(documents: &[(String, String)]) -> Result<Arc<dyn Contract>, PolicyError> {
    let contract = RegoContract::interpreted(documents);
    contract
        .map(|contract| Arc::new(contract) as Arc<dyn Contract>)
        .map_err(|error| PolicyError::Unevaluable(error.message))
}

/// The whole contract by the bytecode machine. It agrees wherever both have an answer: what fails or
/// contradicts itself it passes over, and there are comprehensions that it does not get out of.
///
/// # Errors
/// [`PolicyError`] when the documents do not compile.
pub fn bytecode(documents: &[(String, String)]) -> Result<Arc<dyn Contract>, PolicyError> {
    let contract = RegoContract::compiled(documents);
    contract
        .map(|contract| Arc::new(contract) as Arc<dyn Contract>)
        .map_err(|error| PolicyError::Unevaluable(error.message))
}

/// As [`crate::compile`], with the interpreter for every root that depends on the question.
///
/// # Errors
/// As [`crate::compile`].
pub fn without_bytecode(documents: &[(String, String)]) -> Result<Arc<dyn Contract>, PolicyError> {
    compile_by(documents, Path::Interpreter)
}
