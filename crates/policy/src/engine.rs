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

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{PolicyLengthConfig, Value};

use crate::scan::{Kind, Place, scan_first};

/// The package of documents and contract.
pub(crate) const PACKAGE: &str = "caracal.authz";

const LENGTHS: PolicyLengthConfig = PolicyLengthConfig {
    max_col: NonZeroU32::MIN.saturating_add(1 << 21),
    max_file_bytes: NonZeroUsize::MIN.saturating_add(1 << 21),
    max_lines: NonZeroUsize::MIN.saturating_add(1 << 19),
};
/// Steps between looks at the clock.
const CHECK_EVERY: NonZeroU32 = NonZeroU32::MIN.saturating_add(63);

/// What regorus says is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct EngineError {
    pub message: String,
    pub at: Option<Place>,
}

impl EngineError {
    /// The last line says what; a line `--> document:LINE:COLUMN` says where.
    fn read(text: &str) -> Self {
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
        Self { message, at }
    }
}

/// What stands before the value of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Its name, or the first part of its path.
    pub name: String,
    /// Whether it takes arguments.
    pub is_function: bool,
    /// Whether it is a default.
    pub is_default: bool,
    /// Where it stands.
    pub at: Place,
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
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit,
            check_interval: CHECK_EVERY,
        });
        Self { engine }
    }

    /// Parses a document and adds it; the text has passed [`crate::scan::Scan::check_work`].
    pub(crate) fn add(&mut self, name: &str, text: &str) -> Result<(), EngineError> {
        self.guarded(|engine| engine.add_policy(name.to_owned(), text.to_owned()))
            .map(drop)
    }

    /// The heads of all rules, in order.
    pub(crate) fn heads(&mut self) -> Vec<Head> {
        let modules = self.engine.get_modules();
        let rules = modules.iter().flat_map(|module| module.policy.iter());
        rules
            .map(|rule| {
                let span = rule.span();
                let at = Place {
                    line: span.line,
                    column: span.col,
                };
                // The end of a span may fall short; its start does not.
                let start = usize::try_from(span.start).unwrap_or(usize::MAX);
                head(span.source.contents().get(start..).unwrap_or_default(), at)
            })
            .collect()
    }

    /// The value of a root; `None` when it is undefined.
    pub(crate) fn root(&mut self, root: &str) -> Result<Option<Value>, EngineError> {
        let query = format!("data.{PACKAGE}.{root}");
        let found = self.guarded(|engine| engine.eval_query(query, false))?;
        let first = found.result.into_iter().next();
        let value = first.and_then(|result| result.expressions.into_iter().next());
        Ok(value
            .map(|expression| expression.value)
            .filter(|value| *value != Value::Undefined))
    }

    /// The value of a rule for this input.
    pub(crate) fn rule(&mut self, rule: &str, input: Value) -> Result<Value, EngineError> {
        let path = format!("data.{PACKAGE}.{rule}");
        self.guarded(|engine| {
            engine.set_input(input);
            engine.eval_rule(path)
        })
    }

    fn guarded<T, E: std::fmt::Display>(
        &mut self,
        work: impl FnOnce(&mut regorus::Engine) -> Result<T, E>,
    ) -> Result<T, EngineError> {
        match catch_unwind(AssertUnwindSafe(|| work(&mut self.engine))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(EngineError::read(&error.to_string())),
            Err(_) => {
                let message = "the document makes the policy engine fail".to_owned();
                Err(EngineError { message, at: None })
            }
        }
    }
}

/// Reads the head of the rule that starts here.
fn head(text: &str, at: Place) -> Head {
    let scanned = scan_first(3, text).unwrap_or_default();
    let mut tokens = scanned.tokens.iter().map(|token| token.kind).peekable();
    let is_default = tokens.next_if_eq(&Kind::Word("default")).is_some();
    let name = match tokens.next() {
        Some(Kind::Word(name)) => name.to_owned(),
        // No root is called so: the rule is refused.
        _ => "?".to_owned(),
    };
    let is_function = tokens.next() == Some(Kind::Sign('('));
    Head {
        name,
        is_function,
        is_default,
        at,
    }
}
