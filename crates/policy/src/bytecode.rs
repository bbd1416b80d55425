//! Rules as bytecode, one program a worker thread.
//!
//! **Forces.** The machine needs `&mut`, and its values count references: threads that share a
//! program contend for those counts and get little more than one thread's work done together.
//!
//! **Choice.** Each thread that is asked keeps a machine of its own, with a deep copy of the program,
//! made when it is first asked. A machine that failed is dropped with all that it holds.
//!
//! **Consequence.** A bundle that is no longer in force leaves its machines behind until the thread
//! next makes one; no thread keeps more than [`KEPT`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use regorus::Value;
use regorus::rvm::{Program, RegoVM};

use crate::engine::{Documents, EngineError, guarded, rule_path, timer};
use crate::limits::EVALUATION;

/// Most machines that a thread keeps.
const KEPT: usize = 64;

static NEXT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The most recently used last.
    static MACHINES: RefCell<Vec<Machine>> = const { RefCell::new(Vec::new()) };
}

struct Machine {
    of: u64,
    alive: Weak<Program>,
    vm: RegoVM,
}

/// The program of some rules.
#[derive(Debug)]
pub(crate) struct Bytecode {
    id: u64,
    program: Arc<Program>,
    entries: Vec<String>,
}

impl Bytecode {
    /// Compiles these rules of the documents.
    pub(crate) fn compile(documents: &Documents, rules: &[&str]) -> Result<Self, EngineError> {
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            program: Arc::new(documents.bytecode(rules)?),
            entries: rules.iter().map(|rule| rule_path(rule)).collect(),
        })
    }

    /// The value of each rule for this question; undefined ones are `None`.
    pub(crate) fn answer(&self, question: Value) -> Result<Vec<Option<Value>>, EngineError> {
        // Taken out, so that whatever ends the work early drops it.
        let kept = MACHINES.with_borrow_mut(|machines| {
            let at = machines.iter().position(|machine| machine.of == self.id)?;
            Some(machines.remove(at))
        });
        let mut machine = match kept {
            Some(machine) => machine,
            None => self.machine()?,
        };
        machine.vm.set_input(question);
        let values = self
            .entries
            .iter()
            .map(|entry| {
                let value = guarded(|| machine.vm.execute_entry_point_by_name(entry))?;
                EVALUATION.admit(value)
            })
            .collect::<Result<_, EngineError>>()?;
        machine.vm.set_input(Value::Undefined);
        MACHINES.with_borrow_mut(|machines| machines.push(machine));
        Ok(values)
    }

    fn machine(&self) -> Result<Machine, EngineError> {
        MACHINES.with_borrow_mut(|machines| {
            machines.retain(|machine| machine.alive.strong_count() > 0);
            if machines.len() >= KEPT {
                machines.remove(0);
            }
        });
        let mut vm = RegoVM::new();
        vm.set_strict_builtin_errors(true);
        vm.set_max_instructions(EVALUATION.steps);
        vm.set_execution_timer_config(Some(timer(EVALUATION.time)));
        vm.load_program(Arc::new(own_copy(&self.program)));
        guarded(|| vm.set_data(Value::new_object()))?;
        Ok(Machine {
            of: self.id,
            alive: Arc::downgrade(&self.program),
            vm,
        })
    }
}

/// A program that shares no counted value with the original.
fn own_copy(program: &Program) -> Program {
    let mut copy = program.clone();
    copy.literals = program.literals.iter().map(deep).collect();
    copy.rule_tree = deep(&program.rule_tree);
    copy
}

fn deep(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::from(&**text),
        Value::Array(items) => Value::from(items.iter().map(deep).collect::<Vec<_>>()),
        Value::Set(items) => Value::from(items.iter().map(deep).collect::<BTreeSet<_>>()),
        Value::Object(members) => {
            let pairs = members
                .iter()
                .map(|(name, value)| (deep(name), deep(value)));
            Value::from(pairs.collect::<BTreeMap<_, _>>())
        }
        other => other.clone(),
    }
}
