//! The only place that talks to regorus.
//!
//! **Forces.** Documents are written by people who administer one zone, and evaluated in a process
//! that serves all of them. The engine has sharp edges: lines over 1,024 characters are refused by
//! default (a grants document is one line), a built-in may panic, and a loop may run for ever.
//!
//! **Choice.** Limits that fit our documents, a time limit on every evaluation, built-in errors are
//! errors (as "undefined" an unreadable `risk` would read as none), and a panic inside the engine
//! is a fault of the document, not of the process.

use std::num::{NonZeroU32, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::Program;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{PolicyLengthConfig, Value};

use crate::ast::{self, Reading};
use crate::limits::{EVALUATION, LOADING};
use crate::scan::Place;

/// The package of documents and contract.
pub(crate) const PACKAGE: &str = "caracal.authz";

const LENGTHS: PolicyLengthConfig = PolicyLengthConfig {
    max_col: NonZeroU32::MIN.saturating_add(1 << 21),
    max_file_bytes: NonZeroUsize::MIN.saturating_add(1 << 21),
    max_lines: NonZeroUsize::MIN.saturating_add(1 << 19),
};
/// Steps between looks at the clock.
const CHECK_EVERY: NonZeroU32 = NonZeroU32::MIN.saturating_add(7);

/// Stops an evaluation after this long.
pub(crate) const fn timer(limit: Duration) -> ExecutionTimerConfig {
    ExecutionTimerConfig {
        limit,
        check_interval: CHECK_EVERY,
    }
}

/// What regorus says is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct EngineError {
    pub message: String,
    pub at: Option<Place>,
    /// Whether time ran out, which may be for want of a processor.
    pub is_late: bool,
}

impl EngineError {
    /// What we say ourselves.
    pub(crate) const fn because(message: String) -> Self {
        Self {
            message,
            at: None,
            is_late: false,
        }
    }

    /// The last line says what; a line `--> document:LINE:COLUMN` says where.
    fn read(text: &str) -> Self {
        if let Some(limit) = exceeded(text) {
            let message = format!("the evaluation exceeds its limit of {limit}");
            let is_late = limit == OUT_OF_TIME;
            return Self {
                message,
                at: None,
                is_late,
            };
        }
        let what = text
            .lines()
            .rev()
            .find_map(|line| line.trim().strip_prefix("error: "));
        let place = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("--> "));
        let at = place.and_then(|place| {
            let mut parts = place.rsplit(':');
            let column = parts.next()?.trim().parse().ok()?;
            let line = parts.next()?.trim().parse().ok()?;
            Some(Place { line, column })
        });
        let message = what
            .unwrap_or_else(|| text.trim())
            .chars()
            .take(300)
            .collect();
        Self {
            message,
            at,
            is_late: false,
        }
    }
}

/// The limit that a busy machine may exceed as well.
const OUT_OF_TIME: &str = "time";

/// The limit that was exceeded, by the words of interpreter and machine.
fn exceeded(text: &str) -> Option<&'static str> {
    let text = text.to_ascii_lowercase();
    let limits = [
        ("exceeded time limit", OUT_OF_TIME),
        ("exceeded maximum instruction limit", "steps"),
        ("exceeded memory", "memory"),
    ];
    let mut limits = limits.into_iter();
    limits.find_map(|(words, limit)| text.contains(words).then_some(limit))
}

/// Documents in one engine.
#[derive(Clone, Debug)]
pub(crate) struct Documents {
    engine: regorus::Engine,
}

impl Documents {
    /// No documents, and this long for each evaluation.
    pub(crate) fn new(limit: Duration) -> Self {
        let mut engine = regorus::Engine::new();
        engine.set_policy_length_config(LENGTHS);
        engine.set_strict_builtin_errors(true);
        engine.set_execution_timer_config(timer(limit));
        Self { engine }
    }

    /// Parses a document and adds it; the text has passed [`crate::scan::Scan::check_work`].
    pub(crate) fn add(&mut self, name: &str, text: &str) -> Result<(), EngineError> {
        self.guarded(|engine| engine.add_policy(name.to_owned(), text.to_owned()))
            .map(drop)
    }

    /// What the document that was added says; `roots` are the names that it may define.
    pub(crate) fn read(&mut self, roots: &[&str]) -> Reading {
        let modules = self.engine.get_modules();
        modules
            .first()
            .map(|module| ast::read(module, roots))
            .unwrap_or_default()
    }

    /// The value of a constant root; `None` when it is undefined.
    pub(crate) fn root(&mut self, root: &str) -> Result<Option<Value>, EngineError> {
        let query = rule_path(root);
        let found = self.guarded(|engine| engine.eval_query(query, false))?;
        let first = found.result.into_iter().next();
        let value = first.and_then(|result| result.expressions.into_iter().next());
        match value {
            Some(expression) => LOADING.admit(expression.value),
            None => Ok(None),
        }
    }

    /// The values of these roots, all of them defined, for one question; undefined ones are `None`.
    pub(crate) fn answer(
        &mut self,
        roots: &[&'static str],
        question: Value,
    ) -> Result<Vec<Option<Value>>, EngineError> {
        self.engine.set_input(question);
        roots
            .iter()
            .map(|root| {
                let value = self.guarded(|engine| engine.eval_rule(rule_path(root)))?;
                EVALUATION.admit(value)
            })
            .collect()
    }

    /// The bytecode of these rules.
    pub(crate) fn bytecode(&self, rules: &[&str]) -> Result<Program, EngineError> {
        let paths: Vec<String> = rules.iter().map(|rule| rule_path(rule)).collect();
        let first = paths.first().map(String::as_str).unwrap_or_default();
        let first = regorus::Rc::from(first);
        let mut copy = self.clone();
        let compiled = copy.guarded(|engine| engine.compile_with_entrypoint(&first))?;
        let entries: Vec<&str> = paths.iter().map(String::as_str).collect();
        let compile = || Compiler::compile_from_policy(&compiled, &entries);
        guarded(compile).map(|program| (*program).clone())
    }

    fn guarded<T, E: std::fmt::Display>(
        &mut self,
        work: impl FnOnce(&mut regorus::Engine) -> Result<T, E>,
    ) -> Result<T, EngineError> {
        guarded(|| work(&mut self.engine))
    }
}

/// Where a rule of our package stands.
pub(crate) fn rule_path(rule: &str) -> String {
    format!("data.{PACKAGE}.{rule}")
}

/// Runs work of the engine. A panic is a fault of the document, not of the process.
pub(crate) fn guarded<T, E: std::fmt::Display>(
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, EngineError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(EngineError::read(&error.to_string())),
        Err(_) => {
            let message = "the document makes the policy engine fail".to_owned();
            Err(EngineError::because(message))
        }
    }
}
