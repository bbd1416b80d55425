//! What policy costs this process (spec: sts §18, the `opa_*` metrics).
//!
//! Only what is put in force is counted: what goes through [`compile_measured`]. Simulation,
//! validation and replay are not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use caracal_model::policy::{Contract, PolicyFault, PolicyInput, PolicyResult};

use crate::bundle::{PolicyError, compile, compile_once};

/// Counters since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    /// Questions that were answered or failed.
    pub evaluations: u64,
    /// Those that failed.
    pub evaluation_errors: u64,
    /// Time that they took together.
    pub evaluation_time: Duration,
    /// Questions for which the interpreter had to be asked.
    pub interpreted: u64,
    /// Bundles that were compiled or failed to.
    pub compilations: u64,
    /// Those that failed.
    pub compilation_errors: u64,
    /// Time that they took together.
    pub compilation_time: Duration,
}

/// A count, how much of it failed, and the time of all of it.
struct Tally {
    all: AtomicU64,
    failed: AtomicU64,
    nanos: AtomicU64,
}

impl Tally {
    const fn new() -> Self {
        Self {
            all: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "most answers take less than a tick of the clock that is handed in"
    )]
    fn measure<T, E>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let started = Instant::now();
        let done = work();
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.all.fetch_add(1, Ordering::Relaxed);
        if done.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        done
    }

    fn read(&self) -> (u64, u64, Duration) {
        let nanos = self.nanos.load(Ordering::Relaxed);
        (
            self.all.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
            Duration::from_nanos(nanos),
        )
    }
}

static EVALUATIONS: Tally = Tally::new();
static COMPILATIONS: Tally = Tally::new();
static INTERPRETED: AtomicU64 = AtomicU64::new(0);

/// The counters now.
pub fn meter() -> Meter {
    let (evaluations, evaluation_errors, evaluation_time) = EVALUATIONS.read();
    let (compilations, compilation_errors, compilation_time) = COMPILATIONS.read();
    Meter {
        evaluations,
        evaluation_errors,
        evaluation_time,
        interpreted: INTERPRETED.load(Ordering::Relaxed),
        compilations,
        compilation_errors,
        compilation_time,
    }
}

/// The interpreter was asked.
pub(crate) fn interpreted() {
    INTERPRETED.fetch_add(1, Ordering::Relaxed);
}

/// As [`compile`], counted; the contract counts what it is asked.
///
/// # Errors
/// [`PolicyError`] when a document is not accepted.
pub fn compile_measured(documents: &[(String, String)]) -> Result<Arc<dyn Contract>, PolicyError> {
    let compiled = || COMPILATIONS.measure(|| compile(documents));
    let contract = compile_once(documents, compiled)?;
    Ok(Arc::new(Measured(contract)))
}

struct Measured(Arc<dyn Contract>);

impl Contract for Measured {
    fn evaluate(&self, input: &PolicyInput) -> Result<PolicyResult, PolicyFault> {
        EVALUATIONS.measure(|| self.0.evaluate(input))
    }
}
