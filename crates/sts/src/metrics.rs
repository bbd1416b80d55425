//! What the STS counts (spec: operations §4, §17.4).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caracal_bus::Bus;
use caracal_evidence::EvidenceLog;
use caracal_model::{Clock, Histogram, Ticks};
use caracal_net::metrics::{
    Counter, Counts, Gauge, InFlight, Pool, Registry, show, show_seconds, whole,
};
use caracal_store::Store;
use caracal_view::Views;
use http::StatusCode;
use serde_json::{Value, json};

/// Tokens of providers (spec: sts §18).
pub struct ProviderMetrics {
    /// Callers that took what another had fetched.
    pub shared: Counter,
    /// Fetches and refreshes made.
    pub leased: Counter,
    /// Callers that waited for another.
    pub waited: Counter,
    /// Fetches and refreshes that failed.
    pub errors: Counter,
    /// Circuits that were opened.
    pub opened: Counter,
}

/// Where the time of an exchange goes.
pub struct Stages {
    /// Who asks.
    pub authenticate: Histogram,
    /// What is known of the Session, the record and the Delegation.
    pub view: Histogram,
    /// The decision.
    pub policy: Histogram,
    /// The signature.
    pub sign: Histogram,
    /// The evidence.
    pub evidence: Histogram,
}

/// Counters of the STS.
pub struct Metrics {
    /// Of providers that are asked for tokens.
    pub provider: ProviderMetrics,
    /// Where time goes.
    pub stages: Stages,
    /// Requests that wait for a human.
    pub approvals_waiting: Gauge,
    /// Delegations whose lineage was read.
    pub graph_traversals: Counter,
    /// Those that could not be read.
    pub graph_traversal_errors: Counter,
    exchanges: Gauge,
    mints: Counts<2>,
    launches: Counts<2>,
    jwks_invalid_keys: Counter,
    policies_missed: Counter,
    policies_confirmed: Arc<Confirmed>,
}

/// When the policies in memory were last confirmed against the store: at the start there are none.
struct Confirmed {
    clock: Arc<dyn Clock>,
    at: AtomicU64,
}

impl Confirmed {
    fn age(&self) -> Duration {
        let at = Ticks::from_micros(self.at.load(Ordering::Relaxed));
        self.clock.ticks().since(at)
    }
}

/// What the STS is made of, as far as it is measured.
pub struct Observed<'o> {
    /// Evidence.
    pub evidence: &'o EvidenceLog,
    /// The system of record.
    pub store: &'o Store,
    /// The bus.
    pub bus: &'o Bus,
    /// Memory.
    pub views: &'o Views,
    /// Time.
    pub clock: &'o Arc<dyn Clock>,
    /// Between two looks at which policies are in force.
    pub policy_poll: Duration,
}

impl Metrics {
    /// Registers everything.
    pub fn new(registry: &Registry, of: &Observed<'_>) -> Self {
        let counter = |name| registry.counter(name);
        let stages = ["authenticate", "view", "policy", "sign", "evidence"];
        let [authenticate, view, policy, sign, evidence] =
            registry.stages("stage_duration_seconds", "stage", stages);
        let metrics = Self {
            provider: ProviderMetrics {
                shared: counter("provider_refresh_shared"),
                leased: counter("provider_refresh_leased"),
                waited: counter("provider_refresh_waited"),
                errors: counter("provider_refresh_errors"),
                opened: counter("provider_circuit_open"),
            },
            stages: Stages {
                authenticate,
                view,
                policy,
                sign,
                evidence,
            },
            approvals_waiting: registry.gauge("approvals_waiting"),
            graph_traversals: counter("graph_traversals"),
            graph_traversal_errors: counter("graph_traversal_errors"),
            exchanges: registry.gauge("exchanges_in_flight"),
            mints: registry.register("mints", Counts::by(["outcome", "reason"])),
            launches: registry.register("run_requests", Counts::by(["endpoint", "reason"])),
            jwks_invalid_keys: counter("jwks_invalid_keys"),
            policies_missed: counter("opa_poll_corrections"),
            policies_confirmed: Arc::new(Confirmed {
                at: AtomicU64::new(of.clock.ticks().micros()),
                clock: Arc::clone(of.clock),
            }),
        };
        // Shown from the start, so that a rate over the first refusal is one.
        metrics.mints.of(["allow", ""]);
        backlog(registry, of.evidence);
        backend(registry, of.views);
        metrics.policy(registry, of.policy_poll);
        feed(registry, of.views);
        let store = of.store.clone();
        registry.pool(
            move || {
                let stats = store.pool();
                Pool {
                    in_use: stats.in_use,
                    max: stats.max,
                }
            },
            of.store.waits(),
        );
        registry.bus(&of.bus.times());
        metrics.json(registry, of);
        metrics
    }

    /// An exchange is under way, until this is dropped.
    pub fn exchanging(&self) -> InFlight {
        InFlight::new(&self.exchanges)
    }

    /// The store was asked at this time which policies are in force, and answered: so many zones had
    /// another one than we held.
    pub fn policies_confirmed(&self, asked_at: Ticks, missed: usize) {
        self.policies_missed.inc_by(missed as u64);
        let at = &self.policies_confirmed.at;
        at.fetch_max(asked_at.micros(), Ordering::Relaxed);
    }

    /// A request of a workload was answered; `reason` is empty when it was granted.
    pub fn launched(&self, endpoint: &'static str, reason: &str) {
        self.launches.of([endpoint, reason]).inc();
    }

    /// A key set was answered without these.
    pub fn invalid_keys(&self, count: u64) {
        self.jwks_invalid_keys.inc_by(count);
    }

    /// A token left.
    pub fn minted(&self) {
        self.mints.of(["allow", ""]).inc();
    }

    /// None did.
    pub fn refused(&self, error: &str, status: StatusCode) {
        let outcome = if status.is_server_error() {
            "error"
        } else {
            "deny"
        };
        self.mints.of([outcome, error]).inc();
    }

    /// What policy costs, and since when nobody has looked whether it is still the right one. The feed
    /// tells of changes; the poll confirms against the store, and that is what this age is of.
    fn policy(&self, registry: &Registry, poll: Duration) {
        let counts = [
            "opa_eval",
            "opa_eval_errors",
            "opa_eval_interpreted",
            "opa_compile",
            "opa_compile_errors",
        ]
        .map(|name| registry.counter(name));
        let answering = registry.float_counter("opa_eval_duration_seconds");
        let compiling = registry.float_counter("opa_compile_duration_seconds");
        let age = registry.float_gauge("opa_max_policy_age_seconds");
        let interval = registry.float_gauge("opa_poll_interval_seconds");
        let confirmed = Arc::clone(&self.policies_confirmed);
        registry.on_scrape(move || {
            let meter = caracal_policy::meter();
            let seen = [
                meter.evaluations,
                meter.evaluation_errors,
                meter.interpreted,
                meter.compilations,
                meter.compilation_errors,
            ];
            for (counter, count) in counts.iter().zip(seen) {
                show(counter, count);
            }
            show_seconds(&answering, meter.evaluation_time);
            show_seconds(&compiling, meter.compilation_time);
            age.set(confirmed.age().as_secs_f64());
            interval.set(poll.as_secs_f64());
            async {}
        });
    }

    /// `/metrics.json`: exactly the published members (spec: operations §4).
    fn json(&self, registry: &Registry, of: &Observed<'_>) {
        let (log, views, poll) = (of.evidence.clone(), of.views.clone(), of.policy_poll);
        let confirmed = Arc::clone(&self.policies_confirmed);
        let traversals = (
            self.graph_traversals.clone(),
            self.graph_traversal_errors.clone(),
        );
        let invalid_keys = self.jwks_invalid_keys.clone();
        let provider = [
            &self.provider.shared,
            &self.provider.leased,
            &self.provider.waited,
            &self.provider.errors,
            &self.provider.opened,
        ]
        .map(Counter::clone);
        registry.json(move || {
            let stats = log.stats();
            let backend = views.backend_stats();
            let [shared, leased, waited, errors, opened] = provider.each_ref().map(Counter::get);
            json!({
                "sts": {
                    "graph_traversals": traversals.0.get(),
                    "graph_traversal_errors": traversals.1.get(),
                    "audit_dropped": stats.dropped,
                    "audit_replay_pending": stats.pending,
                    "audit_replay_files": stats.files,
                    "audit_replay_bytes": stats.bytes,
                    "audit_replay_oldest_age_seconds": stats.oldest_age.as_secs(),
                    "audit_replay_replayed": stats.replayed,
                    "audit_sink_errors": stats.sink_errors,
                    "jwks_invalid_keys": invalid_keys.get(),
                    "provider_refresh_shared": shared,
                    "provider_refresh_leased": leased,
                    "provider_refresh_waited": waited,
                    "provider_refresh_errors": errors,
                    "provider_circuit_open": opened,
                    "secret_backend_reads": backend.operations,
                    "secret_backend_errors": backend.errors,
                },
                "opa": policy_json(confirmed.age(), poll),
                "audit_dropped": stats.dropped,
            })
        });
    }
}

fn policy_json(age: Duration, poll: Duration) -> Value {
    let meter = caracal_policy::meter();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    json!({
        "eval_total": meter.evaluations,
        "eval_errors": meter.evaluation_errors,
        "eval_duration_ns": nanos(meter.evaluation_time),
        "compile_total": meter.compilations,
        "compile_errors": meter.compilation_errors,
        "compile_duration_ns": nanos(meter.compilation_time),
        "max_policy_age_seconds": age.as_secs_f64(),
        "poll_interval_seconds": poll.as_secs_f64(),
        "decision_contract_version": caracal_policy::CONTRACT_VERSION,
        "decision_contract_sha256": caracal_policy::contract_sha256(),
    })
}

/// Evidence on its way.
fn backlog(registry: &Registry, evidence: &EvidenceLog) {
    let gauges = [
        "audit_replay_pending",
        "audit_replay_files",
        "audit_replay_bytes",
        "audit_replay_oldest_age_seconds",
        "audit_on_the_way",
    ];
    let gauges = gauges.map(|name| registry.gauge(name));
    let counts = [
        "audit_dropped",
        "audit_sink_errors",
        "audit_replay_replayed",
        "audit_resent",
    ];
    let counts = counts.map(|name| registry.counter(name));
    let log = evidence.clone();
    registry.on_scrape(move || {
        let stats = log.stats();
        let now = [
            stats.pending,
            stats.files,
            stats.bytes,
            stats.oldest_age.as_secs(),
            stats.on_the_way,
        ];
        for (gauge, value) in gauges.iter().zip(now) {
            gauge.set(whole(value));
        }
        let seen = [
            stats.dropped,
            stats.sink_errors,
            stats.replayed,
            stats.resent,
        ];
        for (counter, count) in counts.iter().zip(seen) {
            show(counter, count);
        }
        async {}
    });
}

/// Where the secrets of providers are kept, if not in our own database.
fn backend(registry: &Registry, views: &Views) {
    let reads = registry.counter("secret_backend_reads");
    let errors = registry.counter("secret_backend_errors");
    let views = views.clone();
    registry.on_scrape(move || {
        let stats = views.backend_stats();
        show(&reads, stats.operations);
        show(&errors, stats.errors);
        async {}
    });
}

/// What keeps memory true.
fn feed(registry: &Registry, views: &Views) {
    let applied = registry.counter("view_entries_applied");
    let lag = registry.float_gauge("view_lag_seconds");
    registry.histogram(
        "view_propagation_duration_seconds",
        views.propagation_delays(),
    );
    let views = views.clone();
    registry.on_scrape(move || {
        show(&applied, views.stats().applied);
        lag.set(views.lag().map_or(f64::INFINITY, |lag| lag.as_secs_f64()));
        async {}
    });
}
