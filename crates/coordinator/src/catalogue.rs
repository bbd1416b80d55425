//! What the Coordinator measures, described (spec: coordinator §5, operations §3, §4, §17.4).

use caracal_net::metrics::catalogue::{Catalogue, Over, Signal, counter, gauge};

/// The metrics and signals of the Coordinator.
#[rustfmt::skip] // one line a metric
pub static CATALOGUE: Catalogue = Catalogue {
    service: "coordinator",
    prefix: "caracal",
    metrics: &[
        gauge("caracal_outbox_total", "Outbox entries by status: pending, published (and still kept; a million stands for more), dead").by(&["status"]),
        counter("caracal_idempotency_requests_total", "Requests with an idempotency key, by what came of them: created, replayed, conflicts, invalid, expired").by(&["outcome"]),
        gauge("caracal_idempotency_receipts", "Idempotency receipts that are kept"),
        gauge("caracal_idempotency_oldest_seconds", "Age of the oldest receipt").of("seconds"),
        counter("caracal_ttl_sweeper_runs_total", "Runs of the TTL sweeper"),
        counter("caracal_ttl_sweeper_failures_total", "Failed runs of the TTL sweeper, and Sessions that it had to leave"),
        counter("caracal_ttl_sweeper_terminated_total", "Sessions ended by time"),
        counter("caracal_service_lease_sweeper_runs_total", "Runs of the lease sweeper"),
        counter("caracal_service_lease_sweeper_failures_total", "Failed runs of the lease sweeper, and Sessions that it had to leave"),
        counter("caracal_service_lease_sweeper_suspended_total", "Sessions suspended without a heartbeat"),
        counter("caracal_retention_cleaner_runs_total", "Runs of the retention cleaner"),
        counter("caracal_retention_cleaner_failures_total", "Failed runs of the retention cleaner"),
        counter("caracal_retention_edges_expired_total", "Edges marked as expired"),
        counter("caracal_retention_edges_deleted_total", "Edges deleted"),
        counter("caracal_retention_sessions_deleted_total", "Sessions deleted"),
        counter("caracal_retention_outbox_deleted_total", "Outbox entries deleted"),
        counter("caracal_retention_receipts_deleted_total", "Idempotency receipts deleted"),
    ],
    signals: &[
        Signal {
            name: "outbox_dead",
            metric: "caracal_outbox_total{status=\"dead\"}",
            over: Over::Above,
            threshold: 0.0,
            for_seconds: 120,
            action: "see why the bus refused the entries (last_error in the log), then send them again",
        },
    ],
};
