//! The answer: the page's five steps, filled in (operations specification §3).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::bottleneck::Layer;
use crate::compare;
use crate::diagnose::{self, Finding};
use crate::names;
use crate::observe::{Observation, Service};
use crate::show;
use crate::signal::{self, Reading, Thresholds};

/// What a deployment did while it was looked at; kept, it is what a later look is compared with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Replicas that answered.
    pub replicas: BTreeMap<Service, usize>,
    /// Calls a second at the Gateway.
    pub calls_per_second: Option<f64>,
    /// Exchanges a second at the STS; a governed call has two.
    pub exchanges_per_second: Option<f64>,
    /// Events a second appended to the ledger.
    pub events_per_second: Option<f64>,
    /// 99th percentile of a call at the Gateway, seconds.
    pub gateway_p99: Option<f64>,
    /// 99th percentile of an exchange at the STS, seconds.
    pub sts_p99: Option<f64>,
    /// 95th percentile of a Redis command, seconds, the worst service's.
    pub redis_p95: Option<f64>,
    /// 95th percentile of the wait for a connection to Postgres, seconds, the worst service's.
    pub pool_wait_p95: Option<f64>,
    /// Store connections in use of all of a pool, the worst service's.
    pub pool_ratio: Option<f64>,
    /// Connections that all pools together may open.
    pub pool_connections: Option<f64>,
    /// Processor time per call at the Gateway, microseconds, by service. Only while there were calls.
    pub cpu_us_per_call: BTreeMap<Service, f64>,
    /// Of all processes together, each counted once.
    pub cpu_us_per_call_of_all: Option<f64>,
}

/// How many calls a second the deployment takes, as far as can be told from this look.
#[derive(Clone, Debug, Serialize)]
pub struct Limit {
    /// Calls a second.
    pub calls_per_second: f64,
    /// What ends there.
    pub resource: String,
    /// How it was reckoned.
    pub arithmetic: String,
    /// Calls a second from which on to alert: four fifths of the limit.
    pub alert_at: f64,
}

/// What is to be done about one of the five steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// This is what to do now.
    Now,
    /// Afterwards.
    Then,
    /// This does not help, and why is said.
    No,
    /// There is nothing to do.
    Nothing,
}

/// One of the five steps of the procedure.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// 1 to 5.
    pub step: u8,
    /// What it is about.
    pub title: &'static str,
    /// Whether.
    pub verdict: Verdict,
    /// What.
    pub text: String,
}

/// The answer to "what is short?".
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing is.
    pub healthy: bool,
    /// The name of the first bottleneck.
    pub bottleneck: Option<&'static str>,
    /// What to do first about it.
    pub first_action: Option<&'static str>,
    /// What should come of that.
    pub expected_outcome: Option<&'static str>,
    /// What to do when nothing comes of it.
    pub otherwise: Option<&'static str>,
    /// Whether Postgres and Redis themselves are well.
    pub storage_healthy: bool,
    /// All that is short, reasons first.
    pub findings: Vec<Finding>,
    /// Every signal that something is known about.
    pub signals: Vec<Reading>,
    /// Signals that nothing is known about.
    pub unknown: Vec<&'static str>,
    /// The procedure.
    pub steps: [Step; 5],
    /// What was done meanwhile.
    pub summary: Summary,
    /// How far it goes; `None` while there is no load to reckon from.
    pub limit: Option<Limit>,
    /// Seconds that were looked at.
    pub window_seconds: f64,
}

impl Report {
    /// Of an observation; `before` is an earlier look, if there is one to compare with.
    pub fn of(
        observation: &Observation,
        thresholds: &Thresholds,
        before: Option<&Summary>,
    ) -> Self {
        let (signals, unknown) = signal::read(observation, thresholds);
        let mut findings = diagnose::diagnose(observation, &signals);
        let summary = summary(observation, &signals);
        if let Some(before) = before {
            compare::worse_with_replicas(before, &summary, &mut findings);
        }
        let storage_healthy = diagnose::is_storage_healthy(&findings);
        let first = findings.first();
        let advice = first.map(|finding| finding.bottleneck.advice());
        let window = observation.targets.iter().map(|target| target.span());
        Self {
            healthy: findings.is_empty(),
            bottleneck: first.map(|finding| finding.bottleneck.name()),
            first_action: advice.map(|advice| advice.first_action),
            expected_outcome: advice.map(|advice| advice.expected),
            otherwise: advice.map(|advice| advice.otherwise),
            storage_healthy,
            steps: steps(first, storage_healthy),
            limit: limit(&summary, &signals),
            findings,
            signals,
            unknown,
            summary,
            window_seconds: window.fold(0.0, f64::max),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        match self.findings.first() {
            None => text.push_str("No bottleneck.\n"),
            Some(first) => {
                let advice = first.bottleneck.advice();
                let _ = writeln!(
                    text,
                    "Bottleneck: {} ({})",
                    first.bottleneck.name(),
                    advice.title
                );
                for line in &first.evidence {
                    let _ = writeln!(text, "  because  {line}");
                }
                let _ = writeln!(text, "  first    {}", advice.first_action);
                let _ = writeln!(text, "  expect   {}", advice.expected);
                let _ = writeln!(text, "  else     {}", advice.otherwise);
            }
        }
        for finding in self.findings.iter().skip(1) {
            let name = finding.bottleneck.name();
            match finding.because_of {
                Some(cause) => {
                    let _ = writeln!(text, "Also: {name}, which follows from {}", cause.name());
                }
                None => {
                    let _ = writeln!(text, "Also: {name}");
                }
            }
            for line in &finding.evidence {
                let _ = writeln!(text, "  because  {line}");
            }
        }
        text.push_str("\nSTEPS\n");
        for step in &self.steps {
            let mark = match step.verdict {
                Verdict::Now => "now ",
                Verdict::Then => "then",
                Verdict::No => "no  ",
                Verdict::Nothing => "-   ",
            };
            let _ = writeln!(
                text,
                "  {}  {mark}  {}: {}",
                step.step, step.title, step.text
            );
        }
        text.push_str("\nSIGNALS\n");
        text.push_str(&self.signals_table());
        if !self.unknown.is_empty() {
            let _ = writeln!(text, "  not known: {}", self.unknown.join(", "));
        }
        text.push('\n');
        text.push_str(&self.load());
        text
    }

    /// Signals with value, threshold and headroom.
    fn signals_table(&self) -> String {
        let mut rows = vec![
            [
                "",
                "signal",
                "service",
                "value",
                "threshold",
                "headroom",
                "at",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        rows.extend(self.signals.iter().map(|reading| {
            let mark = if reading.breached { "OVER" } else { "ok" };
            vec![
                mark.to_owned(),
                reading.signal.to_owned(),
                reading.service.map_or("-", Service::name).to_owned(),
                show::in_unit(reading.value, reading.unit),
                show::in_unit(reading.threshold, reading.unit),
                reading.headroom.map_or_else(|| "-".to_owned(), show::share),
                reading.instance.clone(),
            ]
        }));
        show::table(&rows)
    }

    /// What was done meanwhile, in a few lines.
    pub fn load(&self) -> String {
        let summary = &self.summary;
        let replicas = summary.replicas.iter();
        let replicas: Vec<_> = replicas
            .map(|(service, count)| format!("{} {count}", service.name()))
            .collect();
        let rate = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), |v| format!("{v:.1}"));
        let mut text = format!(
            "Replicas: {}. Looked at {}: {} calls/s, {} exchanges/s, {} events/s into the ledger.\n",
            replicas.join(", "),
            show::seconds(self.window_seconds),
            rate(summary.calls_per_second),
            rate(summary.exchanges_per_second),
            rate(summary.events_per_second),
        );
        if let Some(limit) = &self.limit {
            let _ = writeln!(
                text,
                "Limit: about {} calls/s, by {} ({}); alert at {}/s.",
                show::count(limit.calls_per_second),
                limit.resource,
                limit.arithmetic,
                show::count(limit.alert_at),
            );
        }
        text
    }
}

fn step(step: u8, title: &'static str, verdict: Verdict, text: impl Into<String>) -> Step {
    Step {
        step,
        title,
        verdict,
        text: text.into(),
    }
}

const TITLES: [&str; 5] = [
    "first saturated resource",
    "stateless replicas",
    "Postgres and Redis before pools",
    "check again after each single change",
    "record the new limit",
];

/// The five steps for the first finding.
fn steps(first: Option<&Finding>, storage_healthy: bool) -> [Step; 5] {
    let [t1, t2, t3, t4, t5] = TITLES;
    let watch = "caracal capacity --watch";
    let record = "caracal capacity --record FILE";
    let Some(first) = first else {
        return [
            step(1, t1, Verdict::Nothing, "none"),
            step(2, t2, Verdict::Nothing, "none needed"),
            step(3, t3, Verdict::Nothing, "nothing to grow"),
            step(4, t4, Verdict::Nothing, watch),
            step(5, t5, Verdict::Then, record),
        ];
    };
    let advice = first.bottleneck.advice();
    let named = format!("{}: {}", first.bottleneck.name(), advice.title);
    let service = first.service.map_or("the service", Service::name);
    let (replicas, storage) = match advice.layer {
        Layer::Stateless if storage_healthy => (
            step(
                2,
                t2,
                Verdict::Now,
                format!("Postgres and Redis are healthy: one more of {service} at a time"),
            ),
            step(
                3,
                t3,
                Verdict::Nothing,
                "storage is healthy: leave it, and the pools, as they are",
            ),
        ),
        Layer::Storage => (
            step(
                2,
                t2,
                Verdict::No,
                "storage is the bottleneck: every replica adds connections and commands to it",
            ),
            step(
                3,
                t3,
                Verdict::Now,
                "grow or mend it first; leave the pools as they are until it is healthy",
            ),
        ),
        Layer::Pool if storage_healthy => (
            step(
                2,
                t2,
                Verdict::No,
                format!(
                    "a replica of {service} brings another pool: the connections are what is short"
                ),
            ),
            step(
                3,
                t3,
                Verdict::Now,
                format!(
                    "Postgres itself is healthy: after a look at slow statements, the pool of {service} one step, within the connection budget"
                ),
            ),
        ),
        Layer::Stateless | Layer::Pool | Layer::Queue => (
            step(
                2,
                t2,
                Verdict::No,
                if storage_healthy {
                    "what waits here waits for its cause, not for replicas"
                } else {
                    "storage is not healthy: replicas add to its load"
                },
            ),
            step(
                3,
                t3,
                if storage_healthy {
                    Verdict::Nothing
                } else {
                    Verdict::Now
                },
                if storage_healthy {
                    "storage is healthy: leave it, and the pools, as they are"
                } else {
                    "storage first, pools last"
                },
            ),
        ),
        Layer::Outside => (
            step(
                2,
                t2,
                Verdict::No,
                "it is outside of the deployment: replicas would only wait as well",
            ),
            step(3, t3, Verdict::Nothing, "storage is not what is waited for"),
        ),
    };
    [
        step(1, t1, Verdict::Now, named),
        replicas,
        storage,
        step(
            4,
            t4,
            Verdict::Then,
            format!("{watch} (readiness, lag, replay backlog, DLQ)"),
        ),
        step(5, t5, Verdict::Then, record),
    ]
}

fn worst(signals: &[Reading], id: &str) -> Option<f64> {
    let of = signals.iter().filter(|reading| reading.signal == id);
    of.map(|reading| reading.value).reduce(f64::max)
}

fn summary(observation: &Observation, signals: &[Reading]) -> Summary {
    let counted = Service::ALL.map(|service| (service, observation.replicas(service)));
    let calls = observation.rate(Service::Gateway, names::REQUESTS);
    let (mut costs, mut of_all) = (BTreeMap::new(), None);
    if let Some(calls) = calls.filter(|calls| *calls > 0.0) {
        let processes = observation.processes();
        let busy = processes
            .iter()
            .filter_map(|p| p.rate(names::CPU_SECONDS, &[]));
        of_all = busy
            .reduce(|all, one| all + one)
            .map(|busy| busy * 1e6 / calls);
        // Services that share a process cannot be told apart.
        let apart = processes.len() == observation.targets.len();
        for service in Service::ALL.into_iter().filter(|_| apart) {
            if let Some(busy) = observation.rate(service, names::CPU_SECONDS) {
                costs.insert(service, busy * 1e6 / calls);
            }
        }
    }
    let pools = observation.targets.iter();
    let pools = pools.filter_map(|target| target.last(names::POOL_MAX, &[]));
    Summary {
        replicas: counted
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect(),
        calls_per_second: calls,
        exchanges_per_second: observation.rate(Service::Sts, names::MINTS),
        events_per_second: observation.rate(Service::Audit, names::INSERTS),
        gateway_p99: worst(signals, "gateway_latency"),
        sts_p99: worst(signals, "sts_latency"),
        redis_p95: worst(signals, "redis_latency"),
        pool_wait_p95: worst(signals, "postgres_pool_wait"),
        pool_ratio: worst(signals, "postgres_pool"),
        pool_connections: pools.reduce(|all, one| all + one),
        cpu_us_per_call: costs,
        cpu_us_per_call_of_all: of_all,
    }
}

/// The load, divided by how much of the scarcest resource it used.
fn limit(summary: &Summary, signals: &[Reading]) -> Option<Limit> {
    let calls = summary.calls_per_second.filter(|calls| *calls > 0.0)?;
    // What grows with the calls; memory and connections are there without them.
    let used = signals
        .iter()
        .filter(|reading| ["cpu", "postgres_pool"].contains(&reading.signal))
        .filter(|reading| reading.value > 0.01 && reading.value.is_finite())
        .max_by(|a, b| a.value.total_cmp(&b.value))?;
    let most = calls / used.value.min(1.0);
    let whose = used.service.map_or("storage", Service::name);
    Some(Limit {
        calls_per_second: most,
        resource: format!("{} of {whose}", used.what.to_lowercase()),
        arithmetic: format!("{calls:.1} calls/s / {}", show::share(used.value.min(1.0))),
        alert_at: most * 0.8,
    })
}
