//! What the STS counts (spec: operations §4, §17.4).

use std::sync::atomic::Ordering;
use std::time::Duration;

use caracal_evidence::EvidenceLog;
use caracal_net::metrics::{Counter, EncodeLabelSet, Family, Registry};
use caracal_store::Store;
use caracal_view::Views;
use http::StatusCode;
use serde_json::json;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
    reason: String,
}

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

impl ProviderMetrics {
    fn new(registry: &Registry) -> Self {
        let counter = |name, help| registry.counter(name, help);
        Self {
            shared: counter(
                "provider_refresh_shared",
                "Tokens taken from another's fetch",
            ),
            leased: counter("provider_refresh_leased", "Tokens fetched or refreshed"),
            waited: counter("provider_refresh_waited", "Waits for another's fetch"),
            errors: counter("provider_refresh_errors", "Fetches that failed"),
            opened: counter("provider_circuit_open", "Circuits opened"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Launch {
    endpoint: &'static str,
    reason: String,
}

/// Counters of the STS.
pub struct Metrics {
    /// Of providers that are asked for tokens.
    pub provider: ProviderMetrics,
    mints: Family<Outcome, Counter>,
    launches: Family<Launch, Counter>,
    jwks_invalid_keys: Counter,
    policies_missed: Counter,
}

impl Metrics {
    /// Registers everything.
    pub fn new(
        registry: &Registry,
        evidence: &EvidenceLog,
        store: &Store,
        views: &Views,
        policy_poll: Duration,
    ) -> Self {
        let mints = registry.register(
            "mints",
            "Token exchanges by outcome and wire code",
            Family::<Outcome, Counter>::default(),
        );
        let launches = registry.register(
            "run_requests",
            "Requests of workloads by endpoint and wire code",
            Family::<Launch, Counter>::default(),
        );
        let jwks_invalid_keys = registry.counter(
            "jwks_invalid_keys",
            "Keys left out of an answer because they cannot be used",
        );
        let invalid = jwks_invalid_keys.clone();
        audit(registry, evidence, views, policy_poll, move || {
            invalid.get()
        });
        backend(registry, views);
        policy(registry, views, policy_poll);
        let policies_missed = registry.counter(
            "opa_poll_corrections",
            "Policies that changed without an announcement",
        );
        pool(registry, store);
        let (applied, views) = (
            registry.gauge("view_entries_applied", "Feed entries"),
            views.clone(),
        );
        let lag = registry.float_gauge("view_lag_seconds", "Since the feed was last confirmed");
        registry.on_scrape(move || {
            applied.set(i64::try_from(views.stats().applied).unwrap_or(i64::MAX));
            lag.set(views.lag().map_or(f64::INFINITY, |lag| lag.as_secs_f64()));
            async {}
        });
        Self {
            provider: ProviderMetrics::new(registry),
            mints,
            launches,
            jwks_invalid_keys,
            policies_missed,
        }
    }

    /// The poll found so many zones with another policy than the one in force.
    pub fn policies_missed(&self, zones: usize) {
        self.policies_missed.inc_by(zones as u64);
    }

    /// A request of a workload was answered; `reason` is empty when it was granted.
    pub fn launched(&self, endpoint: &'static str, reason: &str) {
        let launch = Launch {
            endpoint,
            reason: reason.to_owned(),
        };
        self.launches.get_or_create(&launch).inc();
    }

    /// A key set was answered without these.
    pub fn invalid_keys(&self, count: u64) {
        self.jwks_invalid_keys.inc_by(count);
    }

    /// A token left.
    pub fn minted(&self) {
        self.count("allow", String::new());
    }

    /// None did.
    pub fn refused(&self, error: &str, status: StatusCode) {
        self.count(
            if status.is_server_error() {
                "error"
            } else {
                "deny"
            },
            error.to_owned(),
        );
    }

    fn count(&self, outcome: &'static str, reason: String) {
        self.mints.get_or_create(&Outcome { outcome, reason }).inc();
    }
}

fn audit(
    registry: &Registry,
    evidence: &EvidenceLog,
    views: &Views,
    policy_poll: Duration,
    invalid_keys: impl Fn() -> u64 + Send + Sync + 'static,
) {
    let gauge = |name, help| registry.gauge(name, help);
    let pending = gauge("audit_replay_pending", "Evidence not yet delivered");
    let files = gauge("audit_replay_files", "Files of the local log");
    let bytes = gauge("audit_replay_bytes", "Bytes of evidence not yet delivered");
    let age = gauge(
        "audit_replay_oldest_age_seconds",
        "Age of the oldest evidence not delivered",
    );
    let dropped = gauge(
        "audit_dropped_total",
        "Evidence that could be neither logged nor sent",
    );
    let errors = gauge("audit_sink_errors_total", "Deliveries that failed");
    let replayed = gauge(
        "audit_replay_replayed_total",
        "Evidence delivered after a restart",
    );
    let log = evidence.clone();
    let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    registry.on_scrape(move || {
        let stats = log.stats();
        pending.set(whole(stats.pending));
        files.set(whole(stats.files));
        bytes.set(whole(stats.bytes));
        age.set(whole(stats.oldest_age.as_secs()));
        dropped.set(whole(stats.dropped));
        errors.set(whole(stats.sink_errors));
        replayed.set(whole(stats.replayed));
        async {}
    });
    let (log, views) = (evidence.clone(), views.clone());
    registry.json(move || {
        let stats = log.stats();
        json!({
            "sts": {
                "audit_dropped": stats.dropped,
                "audit_replay_pending": stats.pending,
                "audit_replay_files": stats.files,
                "audit_replay_bytes": stats.bytes,
                "audit_replay_oldest_age_seconds": stats.oldest_age.as_secs(),
                "audit_replay_replayed": stats.replayed,
                "audit_sink_errors": stats.sink_errors,
                "jwks_invalid_keys": invalid_keys(),
                "secret_backend_reads": views.backend_stats().operations,
                "secret_backend_errors": views.backend_stats().errors,
            },
            "opa": policy_json(&views, policy_poll),
            "audit_dropped": stats.dropped,
        })
    });
}

/// Where the secrets of providers are kept, if not in our own database.
fn backend(registry: &Registry, views: &Views) {
    let reads = registry.counter("secret_backend_reads", "Secrets asked of the backend");
    let errors = registry.counter("secret_backend_errors", "Those that it did not answer");
    let views = views.clone();
    registry.on_scrape(move || {
        let stats = views.backend_stats();
        reads.inner().store(stats.operations, Ordering::Relaxed);
        errors.inner().store(stats.errors, Ordering::Relaxed);
        async {}
    });
}

/// What policy costs, and how old the policy in memory may be: that is the time since the feed was
/// last confirmed, for a zone's policy is read again when the feed names it, and at once when the
/// feed is not confirmed within `FEED_MAX_LAG`. The poll is for what was never announced.
fn policy(registry: &Registry, views: &Views, poll: Duration) {
    let count = |name, help| registry.counter(name, help);
    let evaluations = count("opa_eval", "Questions to policy");
    let failed = count("opa_eval_errors", "Questions that policy could not answer");
    let interpreted = count(
        "opa_eval_interpreted",
        "Questions that the bytecode path could not take",
    );
    let compilations = count("opa_compile", "Policy bundles compiled");
    let refused = count("opa_compile_errors", "Policy bundles that do not compile");
    let seconds = |name, help| registry.float_counter(name, help);
    let answering = seconds("opa_eval_duration_seconds", "Time spent on questions");
    let compiling = seconds("opa_compile_duration_seconds", "Time spent compiling");
    let age = registry.float_gauge(
        "opa_max_policy_age_seconds",
        "Since the policies in memory were last known to be current",
    );
    let interval = registry.float_gauge(
        "opa_poll_interval_seconds",
        "Between two looks at which policies are in force, beside the feed",
    );
    let views = views.clone();
    registry.on_scrape(move || {
        let meter = caracal_policy::meter();
        for (counter, value) in [
            (&evaluations, meter.evaluations),
            (&failed, meter.evaluation_errors),
            (&interpreted, meter.interpreted),
            (&compilations, meter.compilations),
            (&refused, meter.compilation_errors),
        ] {
            counter.inner().store(value, Ordering::Relaxed);
        }
        for (counter, time) in [
            (&answering, meter.evaluation_time),
            (&compiling, meter.compilation_time),
        ] {
            let bits = time.as_secs_f64().to_bits();
            counter.inner().store(bits, Ordering::Relaxed);
        }
        age.set(policy_age(&views));
        interval.set(poll.as_secs_f64());
        async {}
    });
}

fn policy_age(views: &Views) -> f64 {
    views.lag().map_or(f64::INFINITY, |lag| lag.as_secs_f64())
}

fn policy_json(views: &Views, poll: Duration) -> serde_json::Value {
    let meter = caracal_policy::meter();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    json!({
        "eval_total": meter.evaluations,
        "eval_errors": meter.evaluation_errors,
        "eval_interpreted": meter.interpreted,
        "eval_duration_ns": nanos(meter.evaluation_time),
        "compile_total": meter.compilations,
        "compile_errors": meter.compilation_errors,
        "compile_duration_ns": nanos(meter.compilation_time),
        "max_policy_age_seconds": policy_age(views),
        "poll_interval_seconds": poll.as_secs_f64(),
        "decision_contract_version": caracal_policy::CONTRACT_VERSION,
        "decision_contract_sha256": caracal_policy::contract_sha256(),
    })
}

fn pool(registry: &Registry, store: &Store) {
    let ratio = caracal_net::metrics::FloatGauge::default();
    let ratio = registry.register_as("caracal_db_pool_in_use_ratio", "Connections in use", ratio);
    let store = store.clone();
    registry.on_scrape(move || {
        let pool = store.pool();
        let (used, most) = (
            f64::from(as_u32(pool.in_use)),
            f64::from(as_u32(pool.max).max(1)),
        );
        ratio.set(used / most);
        async {}
    });
}

fn as_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
