//! What is counted (spec: coordinator §5; names are those of the published service).

use std::sync::Arc;

use caracal_bus::Bus;
use caracal_model::{Clock, Ticks};
use caracal_net::metrics::{Counter, Counts, Family, Gauge, Pool, Registry, whole as signed};
use caracal_store::Store;
use caracal_store::outbox::OutboxCounts;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::catalogue::CATALOGUE;

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
pub struct Outcomes(Counts<1>);

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        impl Outcomes {
            /// All of them are shown from the start.
            fn new(registry: &Registry) -> Self {
                let counts = registry.register("idempotency_requests", Counts::by(["outcome"]));
                $(counts.of([stringify!($name)]);)+
                Self(counts)
            }

            $($(#[$doc])* pub fn $name(&self) { self.0.of([stringify!($name)]).inc(); })+

            fn all(&self) -> Value {
                let count = |name| self.0.of([name]).get();
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

/// How often a job ran, and how often it failed.
#[derive(Clone, Debug)]
pub struct Job {
    /// Runs.
    pub runs: Counter,
    /// Runs that failed, and single Sessions that a run had to leave.
    pub failures: Counter,
}

impl Job {
    fn new(registry: &Registry, name: &str) -> Self {
        Self {
            runs: registry.counter(&format!("{name}_runs")),
            failures: registry.counter(&format!("{name}_failures")),
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
    kept: Arc<Mutex<Option<(Ticks, Seen)>>>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tables(..)")
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    outbox: OutboxCounts,
    published: u64,
    receipts: u64,
    oldest_seconds: u64,
}

impl Tables {
    async fn counts(&self) -> Seen {
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

    async fn ask(&self) -> Result<Seen, caracal_store::StoreError> {
        let outbox = self.store.outbox().counts().await?;
        let published = self.store.outbox().published().await?;
        let (receipts, oldest) = self.store.receipt_stats().await?;
        let now = self.clock.now();
        let oldest_seconds = oldest.map_or(0, |at| now.since(at).as_secs());
        Ok(Seen {
            outbox,
            published,
            receipts,
            oldest_seconds,
        })
    }
}

impl Metrics {
    /// All of them, at nought.
    pub fn new(store: &Store, bus: &Bus, clock: &Arc<dyn Clock>) -> Self {
        let registry = Registry::new(&CATALOGUE, clock.clone());
        let deleted = |name: &str| registry.counter(&format!("retention_{name}_deleted"));
        let metrics = Self {
            idempotency: Outcomes::new(&registry),
            ttl: Job::new(&registry, "ttl_sweeper"),
            ttl_terminated: registry.counter("ttl_sweeper_terminated"),
            lease: Job::new(&registry, "service_lease_sweeper"),
            lease_suspended: registry.counter("service_lease_sweeper_suspended"),
            retention: Job::new(&registry, "retention_cleaner"),
            cleaned: Cleaned {
                expired_edges: registry.counter("retention_edges_expired"),
                deleted_edges: deleted("edges"),
                deleted_sessions: deleted("sessions"),
                deleted_outbox: deleted("outbox"),
                deleted_receipts: deleted("receipts"),
            },
            tables: Tables {
                store: store.clone(),
                clock: clock.clone(),
                kept: Arc::default(),
            },
            registry,
        };
        metrics.gauge_tables();
        let pooled = store.clone();
        metrics.registry.pool(
            move || {
                let stats = pooled.pool();
                Pool {
                    in_use: stats.in_use,
                    max: stats.max,
                }
            },
            store.waits(),
        );
        metrics.registry.bus(&bus.times());
        metrics
    }

    fn gauge_tables(&self) {
        let registry = &self.registry;
        let outbox: Labelled<Gauge> = registry.register("outbox_total", Labelled::default());
        let receipts = registry.gauge("idempotency_receipts");
        let oldest = registry.gauge("idempotency_oldest_seconds");
        let tables = self.tables.clone();
        registry.on_scrape(move || {
            let (tables, outbox) = (tables.clone(), outbox.clone());
            let (receipts, oldest) = (receipts.clone(), oldest.clone());
            async move {
                let counts = tables.counts().await;
                for (status, count) in by_status(&counts) {
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
        let lines = caracal_net::logs::counts();
        let outbox: serde_json::Map<String, Value> = by_status(&counts)
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
            "log": {
                "emitted": lines.emitted,
                "dropped": lines.dropped,
                "sampled": lines.sampled,
            },
        })
    }
}

fn by_status(seen: &Seen) -> [(&'static str, u64); 3] {
    [
        ("pending", seen.outbox.pending),
        ("published", seen.published),
        ("dead", seen.outbox.dead),
    ]
}
