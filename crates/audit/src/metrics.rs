//! What Audit counts (spec: audit-and-streams §14).

use caracal_model::Histogram;
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
    /// Checkpoints of another key than the one before, with nothing that proves the change.
    pub unproven_key_changes: Counter,
    pub(crate) batch_size: BatchSizes,
    pub(crate) verify: Histogram,
    pub(crate) commit: Histogram,
    /// Whether this process has what opens the key of checkpoints.
    pub signs_checkpoints: Gauge,
    pub(crate) checkpoint_last: Gauge,
    pub(crate) last_sweep: Gauge,
    pub(crate) last_full: Gauge,
    pub(crate) lag: Gauge,
    pub(crate) lag_undelivered: Gauge,
    pub(crate) lag_pending: Gauge,
    pub(crate) pel_oldest: Gauge,
    pub(crate) oldest_unprocessed: Gauge,
    pub(crate) is_retention_leader: Gauge,
    pub(crate) stream_length: Gauge,
    pub(crate) dlq_size: Gauge,
    pub(crate) dlq_oldest_age: Gauge,
}

/// How many events a batch has.
#[derive(Clone, Debug)]
pub(crate) struct BatchSizes(pub Histogram);

impl Default for BatchSizes {
    fn default() -> Self {
        Self(Histogram::sizes())
    }
}

impl Metrics {
    /// Puts them under their names.
    pub fn register(&self, registry: &Registry) {
        for (name, counter) in [
            ("inserts", &self.inserts),
            ("duplicates", &self.duplicates),
            ("tamper_replay", &self.tamper_replay),
            ("parse_errors", &self.parse_errors),
            ("hmac_failures", &self.hmac_failures),
            ("dlq", &self.dlq),
            ("dlq_dropped", &self.dlq_dropped),
            ("dlq_retried", &self.dlq_retried),
            ("retention_created", &self.retention_created),
            ("retention_dropped", &self.retention_dropped),
            ("retention_held", &self.retention_held),
            (
                "retention_lease_transitions",
                &self.retention_lease_transitions,
            ),
            ("retries", &self.retries),
            ("commit_failures", &self.commit_failures),
            ("tamper_checked", &self.tamper_checked),
            ("tamper_mismatch", &self.tamper_mismatch),
            ("tamper_chain_breaks", &self.tamper_chain_breaks),
            ("tamper_hmac_failures", &self.tamper_hmac_failures),
            ("checkpoints", &self.checkpoints),
            ("checkpoint_errors", &self.checkpoint_errors),
            ("unproven_key_changes", &self.unproven_key_changes),
        ] {
            registry.register(name, counter.clone());
        }
        for (name, gauge) in [
            ("consumer_lag", &self.lag),
            ("consumer_lag_undelivered", &self.lag_undelivered),
            ("consumer_lag_pending", &self.lag_pending),
            ("consumer_pel_oldest_seconds", &self.pel_oldest),
            ("oldest_unprocessed_seconds", &self.oldest_unprocessed),
            ("signs_checkpoints", &self.signs_checkpoints),
            ("checkpoint_last_unix", &self.checkpoint_last),
            ("tamper_last_sweep_unix", &self.last_sweep),
            ("tamper_last_full_unix", &self.last_full),
            ("is_retention_leader", &self.is_retention_leader),
            ("stream_length", &self.stream_length),
            ("dlq_size", &self.dlq_size),
            ("dlq_oldest_age_seconds", &self.dlq_oldest_age),
        ] {
            registry.register(name, gauge.clone());
        }
        registry.histogram("ingest_batch_size", &self.batch_size.0);
        let stages = [("verify", &self.verify), ("commit", &self.commit)];
        registry.histograms("stage_duration_seconds", "stage", stages);
        let metrics = self.clone();
        registry.json(move || metrics.flat());
    }

    /// `/metrics.json`: exactly the published members (spec: operations §4); those of the export are
    /// its own.
    fn flat(&self) -> serde_json::Value {
        json!({
            "inserts_total": self.inserts.get(),
            "consumer_lag": self.lag.get(),
            "consumer_pel_oldest_secs": self.pel_oldest.get(),
            "dlq_size": self.dlq_size.get(),
            "dlq_oldest_age_secs": self.dlq_oldest_age.get(),
            "parse_errors_total": self.parse_errors.get(),
            "dlq_total": self.dlq.get(),
            "retries_total": self.retries.get(),
            "hmac_failures_total": self.hmac_failures.get(),
            "tamper_replay_total": self.tamper_replay.get(),
            "tamper_checked_total": self.tamper_checked.get(),
            "tamper_mismatch_total": self.tamper_mismatch.get(),
            "tamper_chain_breaks": self.tamper_chain_breaks.get(),
            "tamper_hmac_failures": self.tamper_hmac_failures.get(),
            "tamper_last_sweep_unix": self.last_sweep.get(),
            "tamper_last_full_unix": self.last_full.get(),
            "retention_created_total": self.retention_created.get(),
            "retention_dropped_total": self.retention_dropped.get(),
            "is_retention_leader": self.is_retention_leader.get() == 1,
            "retention_lease_changes_total": self.retention_lease_transitions.get(),
        })
    }
}
