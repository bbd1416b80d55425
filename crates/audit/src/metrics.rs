//! What Audit counts (spec: audit-and-streams §14).

use caracal_net::metrics::{Counter, Gauge, Registry};
use serde_json::json;

/// Counters of ingestion, shared by everything that ingests.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Events appended to the ledger.
    pub inserts: Counter,
    /// Events that came again unchanged.
    pub duplicates: Counter,
    /// Events that came again with another text.
    pub tamper_replay: Counter,
    /// Entries that are no event.
    pub parse_errors: Counter,
    /// Entries whose signature is missing or wrong.
    pub hmac_failures: Counter,
    /// Entries that went to the dead-letter topic.
    pub dlq: Counter,
    /// Dead letters that went because there were too many.
    pub dlq_dropped: Counter,
    /// Dead letters that the ledger took when they were tried again.
    pub dlq_retried: Counter,
    /// Months that were made ahead.
    pub retention_created: Counter,
    /// Beginnings of the ledger that were dropped: months, or batches on SQLite.
    pub retention_dropped: Counter,
    /// Passes that kept old evidence because no checkpoint covers it.
    pub retention_held: Counter,
    /// How often this process began or ceased to lead retention.
    pub retention_lease_transitions: Counter,
    /// Entries taken over from a consumer that did not finish them.
    pub retries: Counter,
    /// Failed attempts to commit a batch.
    pub commit_failures: Counter,
    /// Events that were verified.
    pub tamper_checked: Counter,
    /// Events whose text or columns were changed.
    pub tamper_mismatch: Counter,
    /// Chains that were broken.
    pub tamper_chain_breaks: Counter,
    /// Links that were made without the key.
    pub tamper_hmac_failures: Counter,
    /// Checkpoints that were signed.
    pub checkpoints: Counter,
    /// Checkpoints that could not be made.
    pub checkpoint_errors: Counter,
    pub(crate) checkpoint_last: Gauge,
    pub(crate) last_sweep: Gauge,
    pub(crate) last_full: Gauge,
    pub(crate) lag: Gauge,
    pub(crate) pel_oldest: Gauge,
    pub(crate) oldest_unprocessed: Gauge,
    pub(crate) is_retention_leader: Gauge,
    pub(crate) stream_length: Gauge,
    pub(crate) dlq_size: Gauge,
    pub(crate) dlq_oldest_age: Gauge,
}

impl Metrics {
    /// Puts them under their names.
    pub fn register(&self, registry: &Registry) {
        for (name, help, counter) in [
            ("inserts", "Events appended to the ledger", &self.inserts),
            (
                "duplicates",
                "Events that came again unchanged",
                &self.duplicates,
            ),
            (
                "tamper_replay",
                "Events that came again with another text",
                &self.tamper_replay,
            ),
            (
                "parse_errors",
                "Entries that are no event",
                &self.parse_errors,
            ),
            (
                "hmac_failures",
                "Entries without a valid signature",
                &self.hmac_failures,
            ),
            ("dlq", "Entries written to the dead-letter topic", &self.dlq),
            (
                "dlq_dropped",
                "Dead letters dropped because there were too many",
                &self.dlq_dropped,
            ),
            (
                "dlq_retried",
                "Dead letters that the ledger took when tried again",
                &self.dlq_retried,
            ),
            (
                "retention_created",
                "Months of the ledger that were made",
                &self.retention_created,
            ),
            (
                "retention_dropped",
                "Beginnings of the ledger that were dropped",
                &self.retention_dropped,
            ),
            (
                "retention_held",
                "Passes that kept what no checkpoint covers",
                &self.retention_held,
            ),
            (
                "retention_lease_transitions",
                "Changes of who leads retention, as seen here",
                &self.retention_lease_transitions,
            ),
            (
                "retries",
                "Entries taken over from another consumer",
                &self.retries,
            ),
            (
                "commit_failures",
                "Batches that could not be committed",
                &self.commit_failures,
            ),
            (
                "tamper_checked",
                "Events that were verified",
                &self.tamper_checked,
            ),
            (
                "tamper_mismatch",
                "Events whose text or columns were changed",
                &self.tamper_mismatch,
            ),
            (
                "tamper_chain_breaks",
                "Chains that were broken",
                &self.tamper_chain_breaks,
            ),
            (
                "tamper_hmac_failures",
                "Links that were made without the key",
                &self.tamper_hmac_failures,
            ),
            ("checkpoints", "Checkpoints signed", &self.checkpoints),
            (
                "checkpoint_errors",
                "Checkpoints that could not be made",
                &self.checkpoint_errors,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in [
            (
                "consumer_lag",
                "Entries not yet acknowledged, undelivered ones included",
                &self.lag,
            ),
            (
                "consumer_pel_oldest_seconds",
                "Age of the oldest pending entry",
                &self.pel_oldest,
            ),
            (
                "oldest_unprocessed_seconds",
                "Age of the oldest entry not yet acknowledged",
                &self.oldest_unprocessed,
            ),
            (
                "checkpoint_last_unix",
                "When a checkpoint was signed last",
                &self.checkpoint_last,
            ),
            (
                "tamper_last_sweep_unix",
                "When the ledger was verified last",
                &self.last_sweep,
            ),
            (
                "tamper_last_full_unix",
                "When the last event was verified again",
                &self.last_full,
            ),
            (
                "is_retention_leader",
                "Whether this process leads retention",
                &self.is_retention_leader,
            ),
            (
                "stream_length",
                "Entries of the topic, those kept for other readers included",
                &self.stream_length,
            ),
            (
                "dlq_size",
                "Entries in the dead-letter topic",
                &self.dlq_size,
            ),
            (
                "dlq_oldest_age_seconds",
                "Age of the oldest dead letter",
                &self.dlq_oldest_age,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        let metrics = self.clone();
        registry.json(move || metrics.flat());
    }

    fn flat(&self) -> serde_json::Value {
        json!({
            "inserts_total": self.inserts.get(),
            "duplicates_total": self.duplicates.get(),
            "tamper_replay_total": self.tamper_replay.get(),
            "parse_errors_total": self.parse_errors.get(),
            "hmac_failures_total": self.hmac_failures.get(),
            "dlq_total": self.dlq.get(),
            "dlq_dropped_total": self.dlq_dropped.get(),
            "dlq_retried_total": self.dlq_retried.get(),
            "retention_created_total": self.retention_created.get(),
            "retention_dropped_total": self.retention_dropped.get(),
            "retention_held_total": self.retention_held.get(),
            "retention_lease_changes_total": self.retention_lease_transitions.get(),
            "is_retention_leader": self.is_retention_leader.get() == 1,
            "stream_length": self.stream_length.get(),
            "retries_total": self.retries.get(),
            "commit_failures_total": self.commit_failures.get(),
            "tamper_checked_total": self.tamper_checked.get(),
            "tamper_mismatch_total": self.tamper_mismatch.get(),
            "tamper_chain_breaks": self.tamper_chain_breaks.get(),
            "tamper_hmac_failures": self.tamper_hmac_failures.get(),
            "checkpoints_total": self.checkpoints.get(),
            "checkpoint_errors_total": self.checkpoint_errors.get(),
            "checkpoint_last_unix": self.checkpoint_last.get(),
            "tamper_last_sweep_unix": self.last_sweep.get(),
            "tamper_last_full_unix": self.last_full.get(),
            "consumer_lag": self.lag.get(),
            "consumer_pel_oldest_secs": self.pel_oldest.get(),
            "oldest_unprocessed_secs": self.oldest_unprocessed.get(),
            "dlq_size": self.dlq_size.get(),
            "dlq_oldest_age_secs": self.dlq_oldest_age.get(),
        })
    }
}
