//! What one evaluation may take.
//!
//! **Forces.** The engine looks at the clock between steps only, and bounds no memory without an
//! allocator of its own under the whole process, which we do not put there for this.
//!
//! **Choice.** What can take much in a single step is refused when a document is written
//! (`forbidden_builtin`). Time is limited for every evaluation, steps on the bytecode machine, which
//! there bounds memory too: a plain rule has no call that builds text. What an evaluation yields is
//! weighed before anything reads or keeps it: parts that are shared weigh as often as they occur,
//! because whoever writes such a value out meets each of them.

use std::time::Duration;

use regorus::Value;

use crate::engine::EngineError;

/// The limits of one evaluation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Wall clock.
    pub time: Duration,
    /// Steps of the bytecode machine, for each root.
    pub steps: usize,
    /// Weight of what a root comes to, about in bytes.
    pub weight: usize,
}

/// Of one question.
pub(crate) const EVALUATION: Limits = Limits {
    time: Duration::from_millis(250),
    steps: 200_000,
    weight: 32 << 20,
};

/// Of each constant root of a zone, once per activation.
pub(crate) const LOADING: Limits = Limits {
    time: Duration::from_secs(2),
    steps: 2_000_000,
    weight: 256 << 20,
};

/// What a value weighs that holds nothing.
const EACH: usize = 64;

impl Limits {
    /// A value that may be read: it is defined, and not too heavy.
    pub(crate) fn admit(&self, value: Value) -> Result<Option<Value>, EngineError> {
        if value == Value::Undefined {
            return Ok(None);
        }
        if self.is_exceeded_by(&value) {
            let message = "the evaluation exceeds its limit of memory".to_owned();
            return Err(EngineError::because(message));
        }
        Ok(Some(value))
    }

    fn is_exceeded_by(&self, value: &Value) -> bool {
        let mut weight = 0usize;
        let mut rest = vec![value];
        while let Some(value) = rest.pop() {
            let own = match value {
                Value::String(text) => text.len(),
                Value::Array(items) => {
                    rest.extend(items.iter());
                    0
                }
                Value::Set(items) => {
                    rest.extend(items.iter());
                    0
                }
                Value::Object(members) => {
                    for (name, value) in members.iter() {
                        rest.extend([name, value]);
                    }
                    0
                }
                _ => 0,
            };
            weight = weight.saturating_add(own).saturating_add(EACH);
            if weight > self.weight {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_weighs_as_often_as_it_occurs() {
        let mut value = Value::from("x");
        for _ in 0..60 {
            value = Value::from(vec![value.clone(), value]);
        }
        assert!(EVALUATION.admit(value).is_err());
        let list: Vec<Value> = (0..1_000u64).map(Value::from).collect();
        assert!(EVALUATION.admit(Value::from(list)).unwrap().is_some());
        assert_eq!(EVALUATION.admit(Value::Undefined).unwrap(), None);
        let long = Value::from("x".repeat(EVALUATION.weight).as_str());
        assert!(EVALUATION.admit(long.clone()).is_err());
        assert!(LOADING.admit(long).is_ok());
    }
}
