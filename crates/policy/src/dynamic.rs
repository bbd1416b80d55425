//! The roots of a zone whose values depend on the question.
//!
//! **Choice.** Only these roots are evaluated for a question; the contract itself stays native, and
//! constant roots stay typed maps. Rules that are [plain](crate::plain) run on the bytecode machine;
//! others, and what its compiler refuses, run on the interpreter.

use caracal_model::policy::{Contract, PolicyFault, PolicyInput, PolicyResult};
use parking_lot::Mutex;
use regorus::Value;

use crate::bytecode::Bytecode;
use crate::engine::{Documents, EngineError};
use crate::limits::EVALUATION;
use crate::zone_policy::ZonePolicy;
use crate::{answer, meter, native, rego};

/// Engines that are kept for the next question.
const SPARE: usize = 8;

/// The contract of a zone with roots of both kinds.
#[derive(Debug)]
pub(crate) struct MixedContract {
    fixed: ZonePolicy,
    roots: Vec<&'static str>,
    by: By,
}

/// What evaluates the roots.
#[derive(Debug)]
enum By {
    Machine(Bytecode),
    Interpreter(Box<Interpreter>),
}

impl MixedContract {
    /// Takes documents that were checked, the roots of theirs that are dynamic, and whether all of
    /// those are plain.
    pub(crate) fn new(
        documents: &[(String, String)],
        fixed: ZonePolicy,
        roots: Vec<&'static str>,
        are_plain: bool,
    ) -> Result<Self, EngineError> {
        let mut engine = Documents::new(EVALUATION.time);
        for (id, content) in documents {
            engine.add(id, content)?;
        }
        let machine = are_plain.then(|| Bytecode::compile(&engine, &roots));
        let by = match machine {
            Some(Ok(machine)) => By::Machine(machine),
            _ => By::Interpreter(Box::new(Interpreter::new(engine))),
        };
        Ok(Self { fixed, roots, by })
    }

    /// Whether the bytecode machine answers.
    #[cfg(test)]
    pub(crate) const fn is_bytecode(&self) -> bool {
        matches!(self.by, By::Machine(_))
    }

    fn values(&self, question: Value) -> Result<Vec<Option<Value>>, EngineError> {
        match &self.by {
            By::Machine(machine) => machine.answer(question),
            By::Interpreter(interpreter) => {
                meter::interpreted();
                interpreter.answer(|engine| engine.answer(&self.roots, question))
            }
        }
    }
}

impl MixedContract {
    /// The data of the zone as far as this question asks for them.
    pub(crate) fn policy(&self, input: &PolicyInput) -> Result<ZonePolicy, PolicyFault> {
        let values = self.values(rego::question(input)?);
        let values = values.map_err(|error| PolicyFault(error.message))?;
        let mut policy = self.fixed.clone();
        for (root, value) in self.roots.iter().zip(&values) {
            if let Some(value) = value {
                policy.set(root, value, Some(input));
            }
        }
        Ok(policy)
    }
}

impl Contract for MixedContract {
    fn evaluate(&self, input: &PolicyInput) -> Result<PolicyResult, PolicyFault> {
        answer::check_schema(input)?;
        native::decide(&self.policy(input)?, input)
    }
}

/// Engines for one bundle, each used by one question at a time.
#[derive(Debug)]
pub(crate) struct Interpreter {
    /// Ready to be copied.
    original: Documents,
    spare: Mutex<Vec<Documents>>,
}

impl Interpreter {
    pub(crate) fn new(original: Documents) -> Self {
        Self {
            original,
            spare: Mutex::default(),
        }
    }

    /// Asks an engine. One that failed is not used again: we do not know what it left behind.
    pub(crate) fn answer<T>(
        &self,
        ask: impl FnOnce(&mut Documents) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let spare = self.spare.lock().pop();
        let mut engine = spare.unwrap_or_else(|| self.original.clone());
        let answer = ask(&mut engine)?;
        let mut spare = self.spare.lock();
        if spare.len() < SPARE {
            spare.push(engine);
        }
        Ok(answer)
    }
}
