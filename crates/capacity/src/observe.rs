//! What was seen of a deployment: several looks at each replica, and what stands behind them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::distribution::Distribution;
use crate::exposition::Sample;
use crate::names;

/// A service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// Management API.
    Api,
    /// Token exchange.
    Sts,
    /// Proxy.
    Gateway,
    /// Ledger.
    Audit,
    /// Sessions and Delegations.
    Coordinator,
}

impl Service {
    /// All five.
    pub const ALL: [Self; 5] = [
        Self::Api,
        Self::Sts,
        Self::Gateway,
        Self::Audit,
        Self::Coordinator,
    ];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Sts => "sts",
            Self::Gateway => "gateway",
            Self::Audit => "audit",
            Self::Coordinator => "coordinator",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.name() == name)
    }

    /// Whose metrics these are: by the prefix that only this service has.
    pub fn of_metric(name: &str) -> Option<Self> {
        [
            ("caracal_api_", Self::Api),
            ("caracal_sts_", Self::Sts),
            ("caracal_gateway_", Self::Gateway),
            ("caracal_audit_", Self::Audit),
            ("caracal_ttl_sweeper_", Self::Coordinator),
        ]
        .into_iter()
        .find_map(|(prefix, service)| name.starts_with(prefix).then_some(service))
    }
}

/// What `/ready` said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    /// It can serve.
    Yes,
    /// It cannot, and why.
    No(String),
    /// It did not answer.
    Silent,
    /// Nobody asked.
    Unknown,
}

/// One look at one replica.
#[derive(Clone, Debug)]
pub struct Look {
    /// Seconds on any clock that all looks share.
    pub at: f64,
    /// Its metrics; none when it did not answer.
    pub samples: Vec<Sample>,
    /// Its readiness.
    pub ready: Ready,
}

/// A replica.
#[derive(Clone, Debug)]
pub struct Target {
    /// What it is.
    pub service: Service,
    /// Its address, or its name at the Prometheus server.
    pub instance: String,
    /// Looks, oldest first.
    pub looks: Vec<Look>,
    /// Why its metrics could not be read at the last look; `None` when they were.
    pub silent: Option<String>,
}

/// Postgres, as it describes itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Postgres {
    /// `max_connections`, without those reserved for superusers.
    pub max_connections: Option<f64>,
    /// Open connections of all clients.
    pub connections: Option<f64>,
    /// Connections that run a statement.
    pub active: Option<f64>,
    /// Of these, those that wait for the disk: data files or the log of writes.
    pub waiting_io: Option<f64>,
    /// Of these, those that wait for a lock of another.
    pub waiting_lock: Option<f64>,
}

/// Redis, as it describes itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Redis {
    /// Memory in use, bytes.
    pub used: Option<f64>,
    /// Most memory, bytes; `None` when there is no limit or it is not known.
    pub max: Option<f64>,
    /// One round trip from here, the median of several, seconds.
    pub round_trip: Option<f64>,
    /// Evidence that is not in the ledger, asked of Redis itself.
    pub lag: Option<f64>,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The replicas.
    pub targets: Vec<Target>,
    /// Changes of readiness in ten minutes by container, as the cluster counts them.
    pub flaps: BTreeMap<String, f64>,
    /// The database, if it could be asked.
    pub postgres: Option<Postgres>,
    /// Redis, if it could be asked.
    pub redis: Option<Redis>,
    /// Processors that a replica may use; `None` when it is not known.
    pub cores: Option<f64>,
}

impl Observation {
    /// Replicas of a service.
    pub fn of(&self, service: Service) -> impl Iterator<Item = &Target> {
        self.targets
            .iter()
            .filter(move |target| target.service == service)
    }

    /// How many replicas a service has that answer.
    pub fn replicas(&self, service: Service) -> usize {
        self.of(service)
            .filter(|target| target.silent.is_none())
            .count()
    }

    /// The sum of a counter's rate over the replicas of a service, in units a second.
    pub fn rate(&self, service: Service, name: &str) -> Option<f64> {
        sum(self.of(service).map(|target| target.rate(name, &[])))
    }

    /// The replicas, each process once: embedded, five services share one, and each of them shows its
    /// processor time.
    pub fn processes(&self) -> Vec<&Target> {
        let mut processes: Vec<&Target> = Vec::new();
        for target in &self.targets {
            if !processes.iter().any(|known| known.is_same_process(target)) {
                processes.push(target);
            }
        }
        processes
    }

    /// A histogram over all replicas of a service, of what came between the looks.
    pub fn distribution(
        &self,
        service: Service,
        name: &str,
        labels: &[(&str, &str)],
    ) -> Option<Distribution> {
        self.of(service)
            .filter_map(|target| target.distribution(name, labels))
            .reduce(|all, one| all.and(&one))
    }

    /// Reasons why replicas of a service were not ready at the last look.
    pub fn reasons(&self) -> impl Iterator<Item = (&Target, &str)> {
        self.targets.iter().filter_map(|target| {
            let last = target.looks.last()?;
            match &last.ready {
                Ready::No(reason) => Some((target, reason.as_str())),
                Ready::Yes | Ready::Silent | Ready::Unknown => None,
            }
        })
    }
}

fn sum(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    values
        .flatten()
        .fold(None, |all: Option<f64>, one| Some(all.unwrap_or(0.0) + one))
}

impl Look {
    /// The largest of the samples of this name with these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.samples
            .iter()
            .filter(|sample| sample.name == name && sample.has(labels))
            .map(|sample| sample.value)
            .filter(|value| !value.is_nan())
            .reduce(f64::max)
    }
}

impl Target {
    /// Whether both are answered by one process: the same start, time and memory, as far as these
    /// can be the same of two looks a moment apart.
    fn is_same_process(&self, other: &Self) -> bool {
        let near = |name, share: f64| {
            let (Some(a), Some(b)) = (self.last(name, &[]), other.last(name, &[])) else {
                return false;
            };
            (a - b).abs() <= share * a.max(b)
        };
        self.last(names::STARTED, &[]).is_some()
            && self.last(names::STARTED, &[]) == other.last(names::STARTED, &[])
            && near(names::RESIDENT, 0.02)
            && near(names::CPU_SECONDS, 0.1)
    }

    /// Seconds from the first look to the last.
    pub fn span(&self) -> f64 {
        match (self.seen().next(), self.seen().last()) {
            (Some(first), Some(last)) => last.at - first.at,
            _ => 0.0,
        }
    }

    /// Looks that saw anything.
    fn seen(&self) -> impl Iterator<Item = &Look> {
        self.looks.iter().filter(|look| !look.samples.is_empty())
    }

    /// A gauge at each look.
    fn values(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        self.seen()
            .filter_map(|look| look.value(name, labels))
            .collect()
    }

    /// A gauge at the last look.
    pub fn last(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.values(name, labels).last().copied()
    }

    /// The largest of a gauge.
    pub fn most(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.values(name, labels).into_iter().reduce(f64::max)
    }

    /// The median of a gauge: one moment does not make a signal. Of an even number of looks, the
    /// larger of the two in the middle.
    pub fn median(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut values = self.values(name, labels);
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// How much a gauge grew from the first look to the last.
    pub fn growth(&self, name: &str) -> Option<f64> {
        let values = self.values(name, &[]);
        match (values.first(), values.last()) {
            (Some(first), Some(last)) if values.len() > 1 => Some(last - first),
            _ => None,
        }
    }

    /// How much the counters of this name grew, all labels together; a process that started again
    /// counts from nought.
    pub fn increase(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut looks = self.seen().map(|look| counts(look, name, labels));
        let mut before = looks.next()?;
        let (mut all, mut found) = (0.0, !before.is_empty());
        for now in looks {
            for (labels, value) in &now {
                found = true;
                let was = before.get(labels).copied().unwrap_or(0.0);
                all += if *value >= was { value - was } else { *value };
            }
            before = now;
        }
        found.then_some(all)
    }

    /// That, a second.
    pub fn rate(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let span = self.span();
        (span > 0.0)
            .then(|| self.increase(name, labels))
            .flatten()
            .map(|increase| increase / span)
    }

    /// A histogram, of what came between the looks.
    pub fn distribution(&self, name: &str, labels: &[(&str, &str)]) -> Option<Distribution> {
        let sum = self.increase(&format!("{name}_sum"), labels)?;
        let bucket = format!("{name}_bucket");
        let mut bounds: Vec<String> = Vec::new();
        for look in self.seen() {
            for sample in look.samples.iter().filter(|sample| sample.name == bucket) {
                if let Some(bound) = sample.labels.get("le")
                    && !bounds.contains(bound)
                {
                    bounds.push(bound.clone());
                }
            }
        }
        let counts = bounds.iter().filter_map(|bound| {
            let mut labels = labels.to_vec();
            labels.push(("le", bound));
            let below = self.increase(&bucket, &labels)?;
            Some((crate::exposition::number(bound)?, below))
        });
        Some(Distribution::new(sum, counts.collect()))
    }

    /// How often it was ready at one look and not at the next, or the other way round.
    pub fn flaps(&self) -> Option<f64> {
        let states: Vec<bool> = self
            .looks
            .iter()
            .filter(|look| look.ready != Ready::Unknown)
            .map(|look| look.ready == Ready::Yes)
            .collect();
        let changes = states.iter().zip(states.iter().skip(1));
        let changes = changes.filter(|(before, after)| before != after).count();
        (states.len() > 1).then_some(changes as f64)
    }
}

fn counts<'l>(
    look: &'l Look,
    name: &str,
    labels: &[(&str, &str)],
) -> BTreeMap<&'l BTreeMap<String, String>, f64> {
    look.samples
        .iter()
        .filter(|sample| sample.name == name && sample.has(labels) && sample.value.is_finite())
        .map(|sample| (&sample.labels, sample.value))
        .collect()
}
