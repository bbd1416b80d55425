//! What is counted (spec: coordinator §5; names are those of the published service).

use std::sync::Arc;

use caracal_model::{Clock, Ticks};
use caracal_net::metrics::{Counter, Family, Gauge, Registry};
use caracal_store::Store;
use caracal_store::outbox::OutboxCounts;
use parking_lot::Mutex;
use serde_json::{Value, json};

type Labelled<M> = Family<Vec<(&'static str, &'static str)>, M>;

/// How long counts of whole tables are kept.
const KEPT: std::time::Duration = std::time::Duration::from_secs(15);

/// The counters of this service.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Where they are exposed.
    pub registry: Registry,
    /// What came of idempotency keys.
    pub idempotency: Outcomes,
    /// The TTL sweeper.
    pub ttl: Job,
    /// Sessions that it ended.
    pub ttl_terminated: Counter,
    /// The lease sweeper.
    pub lease: Job,
    /// Sessions that it suspended.
    pub lease_suspended: Counter,
    /// The retention cleaner.
    pub retention: Job,
    /// What it did.
    pub cleaned: Cleaned,
    tables: Tables,
}

/// Outcomes of requests with an idempotency key.
#[derive(Clone, Debug)]
pub struct Outcomes(Labelled<Counter>);

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        impl Outcomes {
            $($(#[$doc])* pub fn $name(&self) { self.count(stringify!($name)); })+

            fn all(&self) -> Value {
                let count = |name| self.0.get_or_create(&vec![("outcome", name)]).get();
                json!({ $(stringify!($name): count(stringify!($name)),)+ })
            }
        }
    };
}

outcomes! {
    /// A receipt was written.
    created,
    /// An earlier answer was given once more.
    replayed,
    /// The key had been used for another request.
    conflicts,
    /// The key was not well formed.
    invalid,
    /// What the key had created has ended.
    expired,
}

impl Outcomes {
    fn count(&self, outcome: &'static str) {
        self.0.get_or_create(&vec![("outcome", outcome)]).inc();
    }
}

/// How often a job ran, and how often it failed.
#[derive(Clone, Debug)]
pub struct Job {
    /// Runs.
    pub runs: Counter,
    /// Runs that failed.
    pub failures: Counter,
}

impl Job {
    fn new(registry: &Registry, name: &str, what: &str) -> Self {
        Self {
            runs: registry.counter(&format!("{name}_runs"), &format!("Runs of the {what}")),
            failures: registry.counter(
                &format!("{name}_failures"),
                &format!("Failed runs of the {what}"),
            ),
        }
    }
}

/// What the retention cleaner did.
#[derive(Clone, Debug)]
pub struct Cleaned {
    /// Edges marked as expired.
    pub expired_edges: Counter,
    /// Edges deleted.
    pub deleted_edges: Counter,
    /// Sessions deleted.
    pub deleted_sessions: Counter,
    /// Outbox entries deleted.
    pub deleted_outbox: Counter,
    /// Receipts deleted.
    pub deleted_receipts: Counter,
}

/// Counts of whole tables, asked for at most every 15 seconds.
#[derive(Clone)]
struct Tables {
    store: Store,
    clock: Arc<dyn Clock>,
    kept: Arc<Mutex<Option<(Ticks, Counts)>>>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tables(..)")
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    outbox: OutboxCounts,
    receipts: u64,
    oldest_seconds: u64,
}

impl Tables {
    async fn counts(&self) -> Counts {
        let kept = *self.kept.lock();
        if let Some((at, counts)) = kept
            && self.clock.ticks().since(at) < KEPT
        {
            return counts;
        }
        match self.ask().await {
            Ok(counts) => {
                *self.kept.lock() = Some((self.clock.ticks(), counts));
                counts
            }
            Err(error) => {
                tracing::warn!(%error, "table counts are out of date");
                kept.map(|(_, counts)| counts).unwrap_or_default()
            }
        }
    }

    async fn ask(&self) -> Result<Counts, caracal_store::StoreError> {
        let outbox = self.store.outbox().counts().await?;
        let (receipts, oldest) = self.store.receipt_stats().await?;
        let now = self.clock.now();
        let oldest_seconds = oldest.map_or(0, |at| now.since(at).as_secs());
        Ok(Counts {
            outbox,
            receipts,
            oldest_seconds,
        })
    }
}

impl Metrics {
    /// All of them, at nought.
    pub fn new(store: &Store, clock: &Arc<dyn Clock>) -> Self {
        let registry = Registry::new("caracal");
        let outcomes = Labelled::default();
        let deleted = |name: &str, what: &str| {
            registry.counter(
                &format!("retention_{name}_deleted"),
                &format!("{what} deleted"),
            )
        };
        let metrics = Self {
            idempotency: Outcomes(registry.register(
                "idempotency_requests",
                "Requests with an idempotency key",
                outcomes,
            )),
            ttl: Job::new(&registry, "ttl_sweeper", "TTL sweeper"),
            ttl_terminated: registry.counter("ttl_sweeper_terminated", "Sessions ended by time"),
            lease: Job::new(&registry, "service_lease_sweeper", "lease sweeper"),
            lease_suspended: registry.counter(
                "service_lease_sweeper_suspended",
                "Sessions suspended without a heartbeat",
            ),
            retention: Job::new(&registry, "retention_cleaner", "retention cleaner"),
            cleaned: Cleaned {
                expired_edges: registry.counter("retention_edges_expired", "Edges marked expired"),
                deleted_edges: deleted("edges", "Edges"),
                deleted_sessions: deleted("sessions", "Sessions"),
                deleted_outbox: deleted("outbox", "Outbox entries"),
                deleted_receipts: deleted("receipts", "Idempotency receipts"),
            },
            tables: Tables {
                store: store.clone(),
                clock: clock.clone(),
                kept: Arc::default(),
            },
            registry,
        };
        metrics.gauge_tables();
        metrics
    }

    fn gauge_tables(&self) {
        let registry = &self.registry;
        let outbox: Labelled<Gauge> =
            registry.register("outbox_total", "Outbox entries", Labelled::default());
        let receipts = registry.gauge("idempotency_receipts", "Idempotency receipts");
        let oldest = registry.gauge("idempotency_oldest_seconds", "Age of the oldest receipt");
        let tables = self.tables.clone();
        registry.on_scrape(move || {
            let (tables, outbox) = (tables.clone(), outbox.clone());
            let (receipts, oldest) = (receipts.clone(), oldest.clone());
            async move {
                let counts = tables.counts().await;
                for (status, count) in by_status(&counts.outbox) {
                    outbox
                        .get_or_create(&vec![("status", status)])
                        .set(signed(count));
                }
                receipts.set(signed(counts.receipts));
                oldest.set(signed(counts.oldest_seconds));
            }
        });
    }

    /// `GET /stats`.
    pub async fn stats(&self) -> Value {
        let counts = self.tables.counts().await;
        let outbox: serde_json::Map<String, Value> = by_status(&counts.outbox)
            .into_iter()
            .map(|(status, count)| (status.to_owned(), json!(count)))
            .collect();
        json!({
            "invocations": {},
            "outbox": outbox,
            "idempotency": {
                "rows": counts.receipts,
                "oldestSeconds": counts.oldest_seconds,
                "outcomes": self.idempotency.all(),
            },
            "ttl_sweeper": {
                "runs": self.ttl.runs.get(),
                "failures": self.ttl.failures.get(),
                "terminated": self.ttl_terminated.get(),
            },
            "service_lease_sweeper": {
                "runs": self.lease.runs.get(),
                "failures": self.lease.failures.get(),
                "suspended": self.lease_suspended.get(),
            },
            "retention_cleaner": {
                "runs": self.retention.runs.get(),
                "failures": self.retention.failures.get(),
                "expired_edges": self.cleaned.expired_edges.get(),
                "deleted_edges": self.cleaned.deleted_edges.get(),
                "deleted_sessions": self.cleaned.deleted_sessions.get(),
                "deleted_outbox": self.cleaned.deleted_outbox.get(),
                "deleted_idempotency_receipts": self.cleaned.deleted_receipts.get(),
            },
            "log": { "emitted": 0, "dropped": 0, "sampled": 0 },
        })
    }
}

fn by_status(counts: &OutboxCounts) -> [(&'static str, u64); 2] {
    [("pending", counts.pending), ("dead", counts.dead)]
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
