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
        for (name, help, counter) in [
            ("appended", "Records appended to a chain", &self.appended),
            (
                "recovered",
                "Records whose process ended before it answered",
                &self.recovered,
            ),
            (
                "lost",
                "Refusals that could not be recorded after the answer",
                &self.lost,
            ),
            (
                "refused",
                "Records without a valid code, set aside: somebody wrote to the database",
                &self.refused,
            ),
        ] {
            registry.register(&format!("admin_audit_{name}"), help, counter.clone());
        }
    }
}
