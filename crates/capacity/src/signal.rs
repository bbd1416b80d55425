//! The signals of capacity, each with its threshold (operations specification §3 and §10), and what
//! an observation says about them. Thresholds are those of the published alerts where there is one.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::names;
use crate::observe::{Observation, Service, Target};

/// In what a signal is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// A share of 1.
    Share,
    /// Seconds.
    Seconds,
    /// A number of things.
    Count,
}

/// A number of an observation: of which service, at which replica.
type Reads = Vec<(Option<Service>, String, f64)>;

/// One row of the table.
pub struct Signal {
    /// Its name, also that of its threshold on the command line.
    pub id: &'static str,
    /// For people.
    pub what: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// Above this it has to be acted upon.
    pub threshold: f64,
    /// The metric that it comes from.
    pub metric: &'static str,
    read: fn(&Observation) -> Reads,
}

const fn signal(
    id: &'static str,
    what: &'static str,
    unit: Unit,
    threshold: f64,
    metric: &'static str,
    read: fn(&Observation) -> Reads,
) -> Signal {
    Signal {
        id,
        what,
        unit,
        threshold,
        metric,
        read,
    }
}

use Unit::{Count, Seconds, Share};

/// All of them, in the order in which they are shown: what stands below first.
#[rustfmt::skip] // one line a signal
pub const SIGNALS: &[Signal] = &[
    signal("silent_replicas", "Replicas that do not answer", Count, 0.0, "/metrics", silent),
    signal("not_ready", "Replicas that are not ready", Count, 0.0, "/ready", not_ready),
    signal("readiness_flaps", "Readiness changes in 10 min", Count, 4.0, names::READY_CHANGES, flaps),
    signal("postgres_connections", "Postgres connections, of all", Share, 0.9, names::PG_BACKENDS, connections),
    signal("postgres_budget", "Pools together, of all connections", Share, 1.0, names::POOL_MAX, budget),
    signal("postgres_io_wait", "Statements that wait for the disk", Share, 0.5, "pg_stat_activity", io_wait),
    signal("postgres_lock_wait", "Statements that wait for a lock", Share, 0.5, "pg_stat_activity", lock_wait),
    signal("postgres_pool", "Postgres pool in use", Share, 0.9, names::POOL_RATIO, pool),
    signal("postgres_pool_wait", "Wait for a connection, p95", Seconds, 0.1, names::POOL_WAIT, pool_wait),
    signal("redis_latency", "Redis command, p95", Seconds, 0.05, names::REDIS_SECONDS, redis_latency),
    signal("redis_memory", "Redis memory in use", Share, 0.9, names::REDIS_USED, redis_memory),
    signal("cpu", "Processors in use", Share, 0.8, names::CPU_SECONDS, cpu),
    signal("sts_latency", "Exchange at the STS, p99", Seconds, 0.25, names::HTTP_SECONDS, sts_latency),
    signal("sts_circuit_open", "STS circuit of the Gateway open", Count, 0.0, names::CIRCUIT_OPEN, circuit),
    signal("gateway_latency", "Call at the Gateway, p99", Seconds, 1.0, names::GATEWAY_SECONDS, gateway_latency),
    signal("upstream_errors", "Calls whose upstream fails", Share, 0.05, names::UPSTREAM_ERRORS, upstream_errors),
    signal("revocation_lag", "Revocation propagation lag", Seconds, 30.0, names::PROPAGATION, propagation),
    signal("revocation_stale", "Revocation snapshots that are stale", Count, 0.0, names::SNAPSHOT_FRESH, stale),
    signal("policy_age", "Policy age", Seconds, 300.0, names::POLICY_AGE, policy_age),
    signal("policy_errors", "Policies that do not compile", Count, 0.0, names::COMPILE_ERRORS, compile_errors),
    signal("audit_lag", "Evidence not in the ledger", Count, 1_000.0, names::LAG, lag),
    signal("audit_pending_age", "Oldest evidence handed out", Seconds, 300.0, names::PENDING_OLDEST, pending_age),
    signal("replay_age", "Oldest evidence not delivered", Seconds, 300.0, names::STS_REPLAY_AGE, replay_age),
    signal("evidence_lost", "Evidence lost", Count, 0.0, names::STS_DROPPED, lost),
    signal("outbox_age", "Oldest change not announced", Seconds, 300.0, names::OUTBOX_AGE, outbox_age),
    signal("outbox_dead", "Changes that cannot be announced", Count, 0.0, names::OUTBOX_DEAD, outbox_dead),
    signal("dlq_size", "Dead letters", Count, 0.0, names::DLQ, dlq),
    signal("dlq_growth", "Dead letters that came meanwhile", Count, 0.0, names::DLQ, dlq_growth),
];

/// A signal by its name.
pub fn named(id: &str) -> Option<&'static Signal> {
    SIGNALS.iter().find(|signal| signal.id == id)
}

/// Thresholds that differ from the table's.
#[derive(Clone, Debug, Default)]
pub struct Thresholds(BTreeMap<&'static str, f64>);

impl Thresholds {
    /// Sets one; tells what is wrong with it.
    pub fn set(&mut self, id: &str, value: f64) -> Result<(), String> {
        let Some(signal) = named(id) else {
            let all: Vec<_> = SIGNALS.iter().map(|signal| signal.id).collect();
            return Err(format!(
                "there is no signal `{id}`; there are {}",
                all.join(", ")
            ));
        };
        if !value.is_finite() || value < 0.0 {
            return Err(format!(
                "the threshold of `{id}` must be a number from 0 on"
            ));
        }
        self.0.insert(signal.id, value);
        Ok(())
    }

    /// That of a signal.
    pub fn of(&self, signal: &Signal) -> f64 {
        self.0.get(signal.id).copied().unwrap_or(signal.threshold)
    }
}

/// What an observation says about a signal: the worst replica of a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// The signal.
    pub signal: &'static str,
    /// For people.
    pub what: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// The metric that it comes from.
    pub metric: &'static str,
    /// Whose it is; `None` for what belongs to no service.
    pub service: Option<Service>,
    /// The replica.
    pub instance: String,
    /// The value; an infinite one is told as null.
    pub value: f64,
    /// Above this it has to be acted upon.
    pub threshold: f64,
    /// What is left up to the threshold, as a share of it; `None` when the threshold is nought.
    pub headroom: Option<f64>,
    /// Whether it is above.
    pub breached: bool,
}

/// Reads every signal. Those that nothing is known about are in the second list.
pub fn read(
    observation: &Observation,
    thresholds: &Thresholds,
) -> (Vec<Reading>, Vec<&'static str>) {
    let (mut readings, mut unknown): (Vec<Reading>, _) = (Vec::new(), Vec::new());
    for signal in SIGNALS {
        let mut worst: Vec<(Option<Service>, String, f64)> = Vec::new();
        for (service, instance, value) in (signal.read)(observation) {
            match worst.iter_mut().find(|(of, ..)| *of == service) {
                Some(known) if known.2 < value => *known = (service, instance, value),
                Some(_) => {}
                None => worst.push((service, instance, value)),
            }
        }
        if worst.is_empty() {
            unknown.push(signal.id);
        }
        let threshold = thresholds.of(signal);
        readings.extend(worst.into_iter().map(|(service, instance, value)| Reading {
            signal: signal.id,
            what: signal.what,
            unit: signal.unit,
            metric: signal.metric,
            service,
            instance,
            value,
            threshold,
            headroom: (threshold > 0.0).then(|| 1.0 - value / threshold),
            breached: value > threshold,
        }));
    }
    (readings, unknown)
}

fn each(
    observation: &Observation,
    services: &[Service],
    read: impl Fn(&Target) -> Option<f64>,
) -> Reads {
    observation
        .targets
        .iter()
        .filter(|target| services.contains(&target.service))
        .filter_map(|target| Some((Some(target.service), target.instance.clone(), read(target)?)))
        .collect()
}

fn one(instance: &str, value: Option<f64>) -> Reads {
    value
        .map(|value| (None, instance.to_owned(), value))
        .into_iter()
        .collect()
}

fn share(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    let whole = whole.filter(|whole| *whole > 0.0)?;
    Some(part? / whole)
}

fn silent(o: &Observation) -> Reads {
    each(o, &Service::ALL, |target| {
        Some(f64::from(u8::from(target.silent.is_some())))
    })
}

fn not_ready(o: &Observation) -> Reads {
    use crate::observe::Ready;
    each(o, &Service::ALL, |target| {
        match target.looks.last().map(|look| &look.ready)? {
            Ready::Yes => Some(0.0),
            Ready::No(_) | Ready::Silent => Some(1.0),
            Ready::Unknown => None,
        }
    })
}

/// In ten minutes. One change within a short look is a start or an end; more of them go on.
fn flaps(o: &Observation) -> Reads {
    let mut reads = each(o, &Service::ALL, |target| {
        let counted = target.last(names::READY_CHANGES, &[]);
        let Some(seen) = target.flaps() else {
            return counted;
        };
        let span = target.looks.last()?.at - target.looks.first()?.at;
        let goes_on = seen > 1.0 && span > 0.0 && span < 600.0;
        let seen = if goes_on { seen * 600.0 / span } else { seen };
        Some(seen.max(counted.unwrap_or(0.0)))
    });
    reads.extend(
        o.flaps
            .iter()
            .map(|(pod, changes)| (None, pod.clone(), *changes)),
    );
    reads
}

fn connections(o: &Observation) -> Reads {
    let postgres = o.postgres.unwrap_or_default();
    one(
        "postgres",
        share(postgres.connections, postgres.max_connections),
    )
}

fn budget(o: &Observation) -> Reads {
    let pools = o
        .targets
        .iter()
        .filter_map(|t| t.last(names::POOL_MAX, &[]));
    let pools = pools.reduce(|all, one| all + one);
    let most = o.postgres.and_then(|postgres| postgres.max_connections);
    one("postgres", share(pools, most))
}

fn io_wait(o: &Observation) -> Reads {
    let postgres = o.postgres.unwrap_or_default();
    one("postgres", waiting(postgres.waiting_io, postgres.active))
}

fn lock_wait(o: &Observation) -> Reads {
    let postgres = o.postgres.unwrap_or_default();
    one("postgres", waiting(postgres.waiting_lock, postgres.active))
}

/// A single statement that waits is no signal: two must.
fn waiting(waits: Option<f64>, active: Option<f64>) -> Option<f64> {
    let waits = waits?;
    share(
        Some(if waits < 2.0 { 0.0 } else { waits }),
        Some(active?.max(1.0)),
    )
}

fn pool(o: &Observation) -> Reads {
    each(o, &Service::ALL, |target| {
        target.median(names::POOL_RATIO, &[])
    })
}

fn pool_wait(o: &Observation) -> Reads {
    each(o, &Service::ALL, |target| {
        target.distribution(names::POOL_WAIT, &[])?.quantile(0.95)
    })
}

fn redis_latency(o: &Observation) -> Reads {
    let mut reads = each(o, &Service::ALL, |target| {
        target
            .distribution(names::REDIS_SECONDS, &[])?
            .quantile(0.95)
    });
    reads.extend(one("redis", o.redis.and_then(|redis| redis.round_trip)));
    reads
}

fn redis_memory(o: &Observation) -> Reads {
    let redis = o.redis.unwrap_or_default();
    one("redis", share(redis.used, redis.max))
}

fn cpu(o: &Observation) -> Reads {
    each(o, &Service::ALL, |target| {
        share(target.rate(names::CPU_SECONDS, &[]), o.cores)
    })
}

/// The route of exchanges.
pub(crate) const EXCHANGES: &[(&str, &str)] = &[("route", "/oauth/2/token")];

fn sts_latency(o: &Observation) -> Reads {
    each(o, &[Service::Sts], |target| {
        target
            .distribution(names::HTTP_SECONDS, EXCHANGES)?
            .quantile(0.99)
    })
}

fn circuit(o: &Observation) -> Reads {
    each(o, &[Service::Gateway], |target| {
        target.most(names::CIRCUIT_OPEN, &[])
    })
}

fn gateway_latency(o: &Observation) -> Reads {
    each(o, &[Service::Gateway], |target| {
        target
            .distribution(names::GATEWAY_SECONDS, &[])?
            .quantile(0.99)
    })
}

fn upstream_errors(o: &Observation) -> Reads {
    each(o, &[Service::Gateway], |target| {
        let errors = target.increase(names::UPSTREAM_ERRORS, &[])?;
        let requests = target.increase(names::REQUESTS, &[])?;
        Some(share(Some(errors), Some(requests)).unwrap_or(0.0))
    })
}

fn propagation(o: &Observation) -> Reads {
    each(o, &[Service::Gateway], |target| {
        target.last(names::PROPAGATION, &[])
    })
}

fn stale(o: &Observation) -> Reads {
    each(o, &[Service::Gateway], |target| {
        let fresh = target.last(names::SNAPSHOT_FRESH, &[])?;
        Some(if fresh <= 0.0 { 1.0 } else { 0.0 })
    })
}

fn policy_age(o: &Observation) -> Reads {
    each(o, &[Service::Sts], |target| {
        target.last(names::POLICY_AGE, &[])
    })
}

fn compile_errors(o: &Observation) -> Reads {
    each(o, &[Service::Sts], |target| {
        target.increase(names::COMPILE_ERRORS, &[])
    })
}

fn lag(o: &Observation) -> Reads {
    let mut reads = each(o, &[Service::Audit], |target| target.last(names::LAG, &[]));
    reads.extend(one("redis", o.redis.and_then(|redis| redis.lag)));
    reads
}

fn pending_age(o: &Observation) -> Reads {
    each(o, &[Service::Audit], |target| {
        target.last(names::PENDING_OLDEST, &[])
    })
}

fn replay_age(o: &Observation) -> Reads {
    each(o, &[Service::Sts, Service::Gateway], |target| {
        let name = match target.service {
            Service::Sts => names::STS_REPLAY_AGE,
            _ => names::GATEWAY_REPLAY_AGE,
        };
        target.last(name, &[])
    })
}

fn lost(o: &Observation) -> Reads {
    each(o, &[Service::Sts, Service::Gateway], |target| {
        let name = match target.service {
            Service::Sts => names::STS_DROPPED,
            _ => names::GATEWAY_DROPPED,
        };
        target.last(name, &[])
    })
}

fn outbox_age(o: &Observation) -> Reads {
    each(o, &[Service::Api], |target| {
        target.last(names::OUTBOX_AGE, &[])
    })
}

fn outbox_dead(o: &Observation) -> Reads {
    each(
        o,
        &[Service::Api, Service::Coordinator],
        |target| match target.service {
            Service::Api => target.last(names::OUTBOX_DEAD, &[]),
            _ => target.last(names::OUTBOX, &[("status", "dead")]),
        },
    )
}

fn dlq(o: &Observation) -> Reads {
    each(o, &[Service::Audit], |target| target.last(names::DLQ, &[]))
}

fn dlq_growth(o: &Observation) -> Reads {
    each(o, &[Service::Audit], |target| {
        target.growth(names::DLQ).map(|growth| growth.max(0.0))
    })
}
