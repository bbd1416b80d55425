//! From signals to bottlenecks: which are short, with the evidence for each, and which is the first.

use serde::Serialize;

use crate::bottleneck::Bottleneck;
use crate::names;
use crate::observe::{Observation, Service};
use crate::show;
use crate::signal::{EXCHANGES, Reading};

/// Something that is short.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub bottleneck: Bottleneck,
    /// Why we say so: each a line for people.
    pub evidence: Vec<String>,
    /// What else that was found is the reason for this; `None` for a reason of its own.
    pub because_of: Option<Bottleneck>,
    /// The service that it is about, if it is about one.
    pub service: Option<Service>,
}

/// Everything that is short, causes first.
pub fn diagnose(observation: &Observation, readings: &[Reading]) -> Vec<Finding> {
    let mut found = Found::default();
    for reading in readings.iter().filter(|reading| reading.breached) {
        if let Some(bottleneck) = meaning(reading) {
            found.add(bottleneck, reading.service, show::reading(reading));
        }
    }
    reasons(observation, &mut found);
    silence(observation, &mut found);
    circuit(observation, &mut found);
    busy(observation, readings, &mut found);
    ingestion(observation, readings, &mut found);
    // Where time goes is asked last: it may name what was found already.
    if breached(readings, "sts_latency") {
        let told = first(readings, "sts_latency").map(show::reading);
        exchange_time(observation, told, &mut found);
    }
    if breached(readings, "gateway_latency") {
        let told = first(readings, "gateway_latency").map(show::reading);
        call_time(observation, told, &mut found);
    }
    found.in_order()
}

#[derive(Default)]
struct Found(Vec<Finding>);

impl Found {
    fn add(&mut self, bottleneck: Bottleneck, service: Option<Service>, evidence: String) {
        match self
            .0
            .iter_mut()
            .find(|known| known.bottleneck == bottleneck)
        {
            Some(known) => {
                if !known.evidence.contains(&evidence) {
                    known.evidence.push(evidence);
                }
                known.service = known.service.or(service);
            }
            None => self.0.push(Finding {
                bottleneck,
                evidence: vec![evidence],
                because_of: None,
                service,
            }),
        }
    }

    fn has(&self, bottleneck: Bottleneck) -> bool {
        self.0.iter().any(|known| known.bottleneck == bottleneck)
    }

    fn in_order(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| finding.bottleneck);
        let all: Vec<Bottleneck> = self.0.iter().map(|finding| finding.bottleneck).collect();
        for finding in &mut self.0 {
            let causes = finding.bottleneck.causes();
            finding.because_of = all.iter().find(|other| causes.contains(other)).copied();
        }
        // Reasons first, each group in order of causes.
        self.0.sort_by_key(|finding| finding.because_of.is_some());
        self.0
    }
}

/// What a signal above its threshold means by itself. The signals of time are asked where it goes.
fn meaning(reading: &Reading) -> Option<Bottleneck> {
    Some(match reading.signal {
        "readiness_flaps" => Bottleneck::ReadinessFlapping,
        "postgres_connections" | "postgres_budget" => Bottleneck::PostgresConnections,
        "postgres_io_wait" => Bottleneck::PostgresIo,
        "postgres_lock_wait" => Bottleneck::PostgresLocks,
        "postgres_pool" | "postgres_pool_wait" => Bottleneck::PostgresPool,
        "redis_latency" => Bottleneck::RedisLatency,
        "redis_memory" => Bottleneck::RedisMemory,
        "sts_circuit_open" => Bottleneck::StsUnavailable,
        "upstream_errors" => Bottleneck::Egress,
        "revocation_lag" | "revocation_stale" => Bottleneck::RevocationLag,
        "policy_age" | "policy_errors" => Bottleneck::PolicyPropagation,
        "audit_lag" | "audit_pending_age" => Bottleneck::AuditIngest,
        "replay_age" => Bottleneck::ReplayBacklog,
        "evidence_lost" => Bottleneck::EvidenceLost,
        "outbox_age" | "outbox_dead" => Bottleneck::Outbox,
        "dlq_size" | "dlq_growth" => Bottleneck::DeadLetters,
        _ => return None,
    })
}

/// Why replicas say that they are not ready (operations specification §5).
fn reasons(observation: &Observation, found: &mut Found) {
    for (target, reason) in observation.reasons() {
        let bottleneck = match reason {
            "postgres_unreachable" | "outbox_unreachable" => Bottleneck::PostgresUnreachable,
            "redis_unreachable" | "redis_unavailable" => Bottleneck::RedisUnreachable,
            "revocation_snapshot_stale" | "stream_consumers_not_ready" => Bottleneck::RevocationLag,
            "audit_evidence_lost" => Bottleneck::EvidenceLost,
            "audit_replay_unavailable" => Bottleneck::ReplayBacklog,
            "sts_unavailable" | "sts_unreachable" => Bottleneck::StsUnavailable,
            "consumer_unhealthy" | "audit_lag_threshold" | "audit_pel_oldest_threshold" => {
                Bottleneck::AuditIngest
            }
            "audit_dlq_threshold" => Bottleneck::DeadLetters,
            "outbox_dead_messages" | "outbox_dead" => Bottleneck::Outbox,
            _ => whole(target.service),
        };
        let told = format!(
            "{} at {} is not ready: {reason}",
            target.service.name(),
            target.instance
        );
        found.add(bottleneck, Some(target.service), told);
    }
}

/// What is short when a service as a whole is.
const fn whole(service: Service) -> Bottleneck {
    match service {
        Service::Sts => Bottleneck::StsUnavailable,
        Service::Audit => Bottleneck::AuditIngest,
        Service::Api | Service::Gateway | Service::Coordinator => Bottleneck::ServiceUnreachable,
    }
}

/// Replicas that do not answer. A service of which one replica is left is short all the same.
fn silence(observation: &Observation, found: &mut Found) {
    for target in &observation.targets {
        let Some(why) = &target.silent else { continue };
        let bottleneck = whole(target.service);
        let (name, at) = (target.service.name(), &target.instance);
        found.add(
            bottleneck,
            Some(target.service),
            format!("{name} at {at}: {why}"),
        );
    }
}

/// What else the Gateway counts while its circuit is open.
fn circuit(observation: &Observation, found: &mut Found) {
    for target in observation.of(Service::Gateway) {
        let opened = target.increase(names::CIRCUIT_OPENED, &[]).unwrap_or(0.0);
        let refused = target
            .increase(names::CIRCUIT_FAST_FAIL, &[])
            .unwrap_or(0.0);
        if opened > 0.0 || refused > 0.0 {
            let told = format!(
                "the circuit of the Gateway at {} opened {opened:.0} times and refused {refused:.0} exchanges meanwhile",
                target.instance
            );
            found.add(Bottleneck::StsUnavailable, Some(Service::Sts), told);
        }
    }
}

fn first<'r>(readings: &'r [Reading], signal: &str) -> Option<&'r Reading> {
    readings
        .iter()
        .filter(|reading| reading.signal == signal)
        .max_by(|a, b| a.value.total_cmp(&b.value))
}

fn breached(readings: &[Reading], signal: &str) -> bool {
    readings
        .iter()
        .any(|reading| reading.signal == signal && reading.breached)
}

/// Processors that are used up, by service.
fn busy(observation: &Observation, readings: &[Reading], found: &mut Found) {
    let busy = readings.iter().filter(|r| r.signal == "cpu" && r.breached);
    for reading in busy {
        let evidence = show::reading(reading);
        match reading.service {
            Some(Service::Sts) => {
                let (bottleneck, why) = work_of_sts(observation);
                found.add(bottleneck, reading.service, evidence);
                if let Some(why) = why {
                    found.add(bottleneck, reading.service, why);
                }
            }
            Some(Service::Gateway) => {
                found.add(Bottleneck::GatewayProxying, reading.service, evidence);
            }
            Some(Service::Audit) => found.add(Bottleneck::AuditIngest, reading.service, evidence),
            _ => {}
        }
    }
}

/// Whether policy or cryptography is what the processors of the STS do.
fn work_of_sts(observation: &Observation) -> (Bottleneck, Option<String>) {
    let evaluating = observation.rate(Service::Sts, names::EVAL_SECONDS);
    let busy = observation.rate(Service::Sts, names::CPU_SECONDS);
    match (evaluating, busy) {
        (Some(evaluating), Some(busy)) if busy > 0.0 => {
            let share = evaluating / busy;
            let told = format!("policy is {} of the processor time", show::share(share));
            if share > 0.5 {
                (Bottleneck::StsEvaluation, Some(told))
            } else {
                (Bottleneck::StsCrypto, Some(told))
            }
        }
        _ => (Bottleneck::StsCrypto, None),
    }
}

/// Audit that is behind although its processor is idle waits for its store.
fn ingestion(observation: &Observation, readings: &[Reading], found: &mut Found) {
    if !breached(readings, "audit_lag") {
        return;
    }
    for target in observation.of(Service::Audit) {
        if let (Some(growth), true) = (target.growth(names::LAG), target.span() > 0.0) {
            let rate = growth / target.span();
            let inserts = target.rate(names::INSERTS, &[]).unwrap_or(0.0);
            let told = if rate > 0.0 {
                format!("the lag grows by {rate:.0}/s while {inserts:.0}/s are appended")
            } else if rate < 0.0 {
                let left = target.last(names::LAG, &[]).unwrap_or(0.0) / -rate;
                format!(
                    "the lag falls by {:.0}/s: none is left in {}",
                    -rate,
                    show::seconds(left)
                )
            } else {
                format!("the lag does not fall; {inserts:.0}/s are appended")
            };
            found.add(Bottleneck::AuditIngest, Some(Service::Audit), told);
        }
        let commits = target.distribution(names::AUDIT_STAGES, &[("stage", "commit")]);
        let commits = commits.map_or(0.0, |commits| commits.sum / target.span().max(1.0));
        let batch = target.distribution(names::BATCH, &[]);
        let batch = batch.and_then(|batch| batch.mean()).unwrap_or(0.0);
        let cpu = target
            .rate(names::CPU_SECONDS, &[])
            .unwrap_or(f64::INFINITY);
        if cpu < IDLE && (batch >= FULL_BATCH || commits >= BUSY) {
            let told = format!(
                "Audit commits {batch:.0} events at a time, which takes {} of its time and {} of a processor: it waits for Postgres",
                show::share(commits),
                show::share(cpu)
            );
            found.add(Bottleneck::PostgresIo, Some(Service::Audit), told);
        }
    }
}

/// Events of a commit from which on more were waiting than it took.
const FULL_BATCH: f64 = 500.0;
/// Of the time of Audit: who commits for longer does hardly anything else.
const BUSY: f64 = 0.8;
/// Of one processor: who uses less waits for somebody else.
const IDLE: f64 = 0.5;

/// Parts of a whole, the largest first, each with its share.
struct Parts(Vec<(&'static str, f64)>);

impl Parts {
    fn of(
        observation: &Observation,
        service: Service,
        metric: &str,
        stages: &[&'static str],
    ) -> Self {
        let mut parts: Vec<_> = stages
            .iter()
            .filter_map(|stage| {
                let label = [("stage", *stage)];
                let time = observation.distribution(service, metric, &label)?;
                Some((*stage, time.sum))
            })
            .filter(|(_, sum)| *sum > 0.0)
            .collect();
        parts.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        Self(parts)
    }

    fn told(&self) -> String {
        let all: f64 = self.0.iter().map(|(_, sum)| sum).sum();
        let shares = self.0.iter().take(3);
        let shares: Vec<_> = shares
            .map(|(stage, sum)| format!("{stage} {}", show::share(sum / all)))
            .collect();
        format!("time goes to {}", shares.join(", "))
    }

    fn largest(&self) -> Option<&'static str> {
        self.0.first().map(|(stage, _)| *stage)
    }
}

/// What an exchange at the STS takes long for.
fn exchange_time(observation: &Observation, told: Option<String>, found: &mut Found) {
    let stages = ["authenticate", "view", "policy", "sign", "evidence"];
    let parts = Parts::of(observation, Service::Sts, names::STS_STAGES, &stages);
    let bottleneck = match parts.largest() {
        Some("policy") => Bottleneck::StsEvaluation,
        Some("authenticate" | "sign") => Bottleneck::StsCrypto,
        Some("evidence") => Bottleneck::EvidenceDisk,
        Some("view") if found.has(Bottleneck::PostgresPool) => Bottleneck::PostgresPool,
        Some("view") => Bottleneck::PostgresIo,
        _ if found.has(Bottleneck::RedisLatency) => Bottleneck::RedisLatency,
        _ if found.has(Bottleneck::PostgresPool) => Bottleneck::PostgresPool,
        _ => eval_or_not(observation),
    };
    let sts = Some(Service::Sts);
    if let Some(told) = told {
        found.add(bottleneck, sts, told);
    }
    if parts.largest().is_some() {
        found.add(bottleneck, sts, format!("at the STS, {}", parts.told()));
    }
}

/// Without stages: policy, if it is most of the time of exchanges, or else the STS as a whole.
fn eval_or_not(observation: &Observation) -> Bottleneck {
    let whole = observation.distribution(Service::Sts, names::HTTP_SECONDS, EXCHANGES);
    let span = observation
        .of(Service::Sts)
        .map(|t| t.span())
        .fold(0.0, f64::max);
    let evaluating = observation.rate(Service::Sts, names::EVAL_SECONDS);
    match (whole, evaluating) {
        (Some(whole), Some(evaluating)) if evaluating * span > whole.sum / 2.0 => {
            Bottleneck::StsEvaluation
        }
        _ => Bottleneck::StsUnavailable,
    }
}

/// What a call at the Gateway takes long for.
fn call_time(observation: &Observation, told: Option<String>, found: &mut Found) {
    let gateway = Service::Gateway;
    let stages = ["keys", "verify", "replay"];
    let mut parts = Parts::of(observation, gateway, names::GATEWAY_STAGES, &stages);
    let sum = |name| {
        let time = observation.distribution(gateway, name, &[]);
        time.map_or(0.0, |time| time.sum)
    };
    let whole = sum(names::GATEWAY_SECONDS);
    parts.0.push(("exchange", sum(names::EXCHANGE_SECONDS)));
    parts.0.push(("upstream", sum(names::UPSTREAM_SECONDS)));
    let known: f64 = parts.0.iter().map(|(_, sum)| sum).sum();
    parts
        .0
        .push(("the Gateway itself", (whole - known).max(0.0)));
    parts.0.retain(|(_, sum)| *sum > 0.0);
    parts.0.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let of_sts = [
        Bottleneck::StsEvaluation,
        Bottleneck::StsCrypto,
        Bottleneck::EvidenceDisk,
        Bottleneck::RedisLatency,
        Bottleneck::PostgresPool,
        Bottleneck::PostgresIo,
    ];
    let bottleneck = match parts.largest() {
        Some("exchange") => of_sts
            .into_iter()
            .find(|known| found.has(*known))
            .unwrap_or(Bottleneck::StsUnavailable),
        Some("upstream") => Bottleneck::Upstream,
        Some("replay") => Bottleneck::RedisLatency,
        Some("keys" | "verify") => Bottleneck::GatewayKeySets,
        _ => Bottleneck::GatewayProxying,
    };
    if let Some(told) = told {
        found.add(bottleneck, Some(gateway), told);
    }
    if parts.largest().is_some() {
        found.add(
            bottleneck,
            Some(gateway),
            format!("at the Gateway, {}", parts.told()),
        );
    }
}

/// Whether Postgres and Redis themselves are well: only then do replicas help.
pub fn is_storage_healthy(findings: &[Finding]) -> bool {
    use crate::bottleneck::Layer;
    !findings
        .iter()
        .any(|finding| finding.bottleneck.advice().layer == Layer::Storage)
}
