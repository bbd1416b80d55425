//! What the API measures, described (spec: admin-api §3, operations §3, §4, §17.4).

use caracal_net::metrics::catalogue::{Catalogue, Over, Signal, counter, gauge};

/// The metrics and signals of the API.
#[rustfmt::skip] // one line a metric
pub static CATALOGUE: Catalogue = Catalogue {
    service: "api",
    prefix: "caracal_api",
    metrics: &[
        gauge("caracal_api_outbox_pending_total", "Outbox entries to be sent"),
        gauge("caracal_api_outbox_dead_total", "Outbox entries that failed too often"),
        gauge("caracal_api_outbox_oldest_pending_age_seconds", "Age of the oldest entry to be sent").of("seconds"),
        gauge("caracal_api_outbox_oldest_dead_age_seconds", "Age of the oldest dead entry").of("seconds"),
        gauge("caracal_api_reseal_left", "Envelopes that need SECRET_STORE_KEK_PREVIOUS; below zero until the first sweep has ended"),
        gauge("caracal_api_audit_streams", "Streams of the ledger that are open"),
        counter("caracal_api_audit_streams_cut_total", "Streams of the ledger whose reader was too slow"),
        gauge("caracal_api_notifications_pending", "Notifications not yet taken"),
        counter("caracal_api_notifications_delivered_total", "Notifications that their sink took"),
        counter("caracal_api_notifications_failed_total", "Deliveries of notifications that failed"),
        counter("caracal_api_notifications_abandoned_total", "Notifications that were given up"),
        gauge("caracal_api_admin_audit_waiting", "Records of changes that are not yet in their chain"),
        counter("caracal_api_admin_audit_appended_total", "Records of changes appended to a chain"),
        counter("caracal_api_admin_audit_recovered_total", "Records whose process ended before it answered"),
        counter("caracal_api_admin_audit_lost_total", "Refusals that could not be recorded after the answer"),
        counter("caracal_api_admin_audit_refused_total", "Records without a valid code, set aside: somebody wrote to the database"),
        counter("caracal_secret_backend_operations_total", "Reads, writes and deletions at the secret backend"),
        counter("caracal_secret_backend_errors_total", "Those that failed"),
        gauge("caracal_secret_backend_waiting", "Secrets that have yet to be moved to the backend, or back, or to be deleted there"),
    ],
    signals: &[
        Signal {
            name: "outbox_pending",
            metric: "caracal_api_outbox_oldest_pending_age_seconds",
            over: Over::Above,
            threshold: 300.0,
            for_seconds: 300,
            action: "look whether Redis takes writes: every change waits there for the other services to learn of it",
        },
        Signal {
            name: "outbox_dead",
            metric: "caracal_api_outbox_dead_total",
            over: Over::Above,
            threshold: 0.0,
            for_seconds: 120,
            action: "see why the bus refused the entries, then send them again with the requeue route",
        },
    ],
};
