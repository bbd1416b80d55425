//! What can be measured, described once (spec: operations §3, §4, §17.4).
//!
//! **Forces.** Names are contracts: dashboards, alerts and scrape configurations outlive releases.
//! What is registered, what `/metrics` says in HELP, what the reference page says and what the
//! dashboards draw must not disagree.
//!
//! **Choice.** Each service has a table of its own; what all services have is [`COMMON`]. A
//! [`Registry`](super::Registry) takes every help text from there, and tests hold each live
//! exposition to its table, both ways.

use serde_json::{Value, json};

/// The metrics and the capacity signals of one service.
#[derive(Debug)]
pub struct Catalogue {
    /// As in `caracal serve`.
    pub service: &'static str,
    /// What the names of its own start with, before `_`.
    pub prefix: &'static str,
    /// Its own metrics; those of [`COMMON`] come on top.
    pub metrics: &'static [Metric],
    /// Its own signals; those of [`COMMON_SIGNALS`] come on top.
    pub signals: &'static [Signal],
}

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from nought at the start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Sorts what it counts into buckets.
    Histogram,
}

impl Kind {
    /// As in the exposition.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// As in the exposition, with every prefix and suffix.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it is counted in; empty for things and for what is true (1) or not (0).
    pub unit: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it says, without a full stop.
    pub help: &'static str,
}

/// A counter.
pub const fn counter(name: &'static str, help: &'static str) -> Metric {
    metric(name, Kind::Counter, help)
}

/// A gauge.
pub const fn gauge(name: &'static str, help: &'static str) -> Metric {
    metric(name, Kind::Gauge, help)
}

/// A histogram of seconds.
pub const fn seconds(name: &'static str, help: &'static str) -> Metric {
    metric(name, Kind::Histogram, help).of("seconds")
}

/// A histogram of counts.
pub const fn sizes(name: &'static str, help: &'static str) -> Metric {
    metric(name, Kind::Histogram, help)
}

const fn metric(name: &'static str, kind: Kind, help: &'static str) -> Metric {
    Metric {
        name,
        kind,
        unit: "",
        labels: &[],
        help,
    }
}

impl Metric {
    /// The same, in this unit.
    #[must_use]
    pub const fn of(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }

    /// The same, by these labels.
    #[must_use]
    pub const fn by(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }
}

/// When a signal is over its threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Above it.
    Above,
    /// At it, or below.
    AtMost,
}

/// What tells that a service nears its limits (spec: operations §3).
#[derive(Debug)]
pub struct Signal {
    /// Its short name.
    pub name: &'static str,
    /// The metric that shows it, or one series of it; of several series, the worst counts.
    pub metric: &'static str,
    /// When it is over.
    pub over: Over,
    /// Over what, in the unit of the metric.
    pub threshold: f64,
    /// For how many seconds it has to be over before that is an alarm.
    pub for_seconds: u32,
    /// What to do first.
    pub action: &'static str,
}

/// What every service has.
#[rustfmt::skip] // one line a metric
pub const COMMON: &[Metric] = &[
    counter("caracal_log_emitted_total", "Log lines written"),
    counter("caracal_log_dropped_total", "Log lines that could not be written"),
    counter("caracal_log_sampled_total", "Debug lines left out by sampling"),
    gauge("caracal_db_pool_in_use_ratio", "Database connections in use, of all that there may be").of("ratio").by(&["service"]),
    gauge("caracal_db_pool_max_conns", "Database connections that there may be").by(&["service"]),
    gauge("caracal_db_pool_acquired_conns", "Database connections in use").by(&["service"]),
    seconds("caracal_db_pool_wait_seconds", "Waits for a database connection").by(&["service"]),
    seconds("caracal_redis_command_duration_seconds", "Commands on the bus that answer at once, by what they do").by(&["service", "command"]),
    seconds("caracal_http_request_duration_seconds", "Requests, to the head of the response, by route template and status").by(&["service", "route", "code"]),
    gauge("caracal_ready", "What /ready answered last: 1 ready, 0 not, or not asked yet").by(&["service"]),
    counter("caracal_ready_changes_total", "Changes of what /ready answers").by(&["service"]),
    gauge("caracal_ready_changes_10m", "Changes of what /ready answers, in the last ten minutes").by(&["service"]),
    gauge("process_resident_memory_bytes", "Memory of the process that is in RAM").of("bytes"),
    counter("process_cpu_seconds_total", "Processor time of the process, user and system").of("seconds"),
    gauge("process_open_fds", "Open file descriptors of the process"),
    gauge("process_max_fds", "File descriptors that the process may open"),
    gauge("process_start_time_seconds", "When the process started, in seconds since 1970").of("seconds"),
];

/// What every service may run out of.
pub const COMMON_SIGNALS: &[Signal] = &[
    Signal {
        name: "db_pool",
        metric: "caracal_db_pool_in_use_ratio",
        over: Over::Above,
        threshold: 0.9,
        for_seconds: 300,
        action: "look for slow statements, then raise storage or this pool one step; more replicas only make it worse",
    },
    Signal {
        name: "readiness_flapping",
        metric: "caracal_ready_changes_10m",
        over: Over::Above,
        threshold: 4.0,
        for_seconds: 300,
        action: "ask /ready for the reason, and mend that dependency before adding replicas",
    },
];

impl Catalogue {
    /// Everything that the service exposes.
    pub fn all(&self) -> impl Iterator<Item = &'static Metric> {
        self.metrics.iter().chain(COMMON)
    }

    /// Everything that it may run out of.
    pub fn all_signals(&self) -> impl Iterator<Item = &'static Signal> {
        self.signals.iter().chain(COMMON_SIGNALS)
    }

    /// The metric with this name; that of a counter may lack its `_total`.
    pub fn find(&self, name: &str) -> Option<&'static Metric> {
        self.all().find(|metric| {
            metric.name == name
                || (metric.kind == Kind::Counter
                    && metric.name.strip_suffix("_total") == Some(name))
        })
    }

    /// What this exposition (text 0.0.4) has and the catalogue has not, and the other way round;
    /// empty when both agree in names and types.
    pub fn differences(&self, exposition: &str) -> Vec<String> {
        let line = |metric: &Metric| format!("{} {}", metric.name, metric.kind.name());
        let said: Vec<String> = self.all().map(line).collect();
        let live: Vec<&str> = exposition
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .collect();
        let unsaid = live
            .iter()
            .filter(|one| !said.iter().any(|said| said == *one));
        let missing = said.iter().filter(|one| !live.contains(&one.as_str()));
        unsaid
            .map(|one| format!("not in the catalogue: {one}"))
            .chain(missing.map(|one| format!("not exposed: {one}")))
            .collect()
    }
}

impl Signal {
    /// For machines; `of` is the service that has it.
    pub fn json(&self, of: &str) -> Value {
        json!({
            "service": of,
            "signal": self.name,
            "metric": self.metric,
            "comparison": self.over.text(),
            "threshold": self.threshold,
            "for_seconds": self.for_seconds,
            "first_action": self.action,
        })
    }
}

impl Over {
    /// As in an alert rule.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Above => ">",
            Self::AtMost => "<=",
        }
    }
}
