//! What the export counts (spec: audit-and-streams §14). Registered with those of Audit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caracal_net::metrics::{Counter, FloatGauge, Gauge, Registry};
use serde_json::{Value, json};

/// Counters and gauges of the export. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Events that are in objects.
    pub events: Counter,
    /// Attempts that failed.
    pub errors: Counter,
    /// How often this process became or ceased to be the one that exports.
    pub lease_transitions: Counter,
    /// Whether this process exports.
    pub is_leader: Gauge,
    /// Complete hours that are not exported.
    pub backlog_hours: Gauge,
    seconds: FloatGauge,
    millis: Arc<AtomicU64>,
}

impl Metrics {
    /// Puts them under their names; the catalogue of Audit describes them.
    pub fn register(&self, registry: &Registry) {
        for (name, counter) in [
            ("export_events", &self.events),
            ("export_errors", &self.errors),
            ("export_lease_transitions", &self.lease_transitions),
        ] {
            registry.register(name, counter.clone());
        }
        for (name, gauge) in [
            ("export_backlog_hours", &self.backlog_hours),
            ("is_export_leader", &self.is_leader),
        ] {
            registry.register(name, gauge.clone());
        }
        registry.register("export_duration_seconds", self.seconds.clone());
        let metrics = self.clone();
        registry.json(move || metrics.flat());
    }

    /// The members of `/metrics.json`.
    fn flat(&self) -> Value {
        json!({
            "export_events_total": self.events.get(),
            "export_errors_total": self.errors.get(),
            "export_lease_changes_total": self.lease_transitions.get(),
            "export_backlog_hours": self.backlog_hours.get(),
            "export_duration_ms": self.millis.load(Ordering::Relaxed),
            "is_export_leader": self.is_leader.get() == 1,
        })
    }

    pub(crate) fn took(&self, duration: Duration) {
        self.seconds.set(duration.as_secs_f64());
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    pub(crate) fn leads(&self, leads: bool) {
        let leads = i64::from(leads);
        if self.is_leader.set(leads) != leads {
            self.lease_transitions.inc();
        }
    }
}
