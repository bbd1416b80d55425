//! What the trail counts.

use caracal_net::metrics::{Counter, Registry};

/// Counters of a trail. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Records appended to a chain.
    pub appended: Counter,
    /// Among them, those that another process had left without an answer.
    pub recovered: Counter,
    /// Records of refusals that were not written.
    pub lost: Counter,
    /// Intents that nobody of ours wrote.
    pub refused: Counter,
}

impl Metrics {
    /// Puts them under their names.
    pub fn register(&self, registry: &Registry) {
        for (name, counter) in [
            ("appended", &self.appended),
            ("recovered", &self.recovered),
            ("lost", &self.lost),
            ("refused", &self.refused),
        ] {
            registry.register(&format!("admin_audit_{name}"), counter.clone());
        }
    }
}
