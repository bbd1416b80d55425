//! The report: one structure, three forms.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::args::{Format, Operation, Step};
use crate::evidence::Evidence;
use crate::latency::{Latency, Tally};
use crate::procs::Usage;

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub identities: usize,
    pub processors: usize,
    pub client_threads: usize,
    pub upstream_bytes: usize,
    pub policy_loaded_ms: f64,
    /// The call before the warm-up.
    pub first_call_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_to_ready_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_peak_rss_bytes: Option<u64>,
    pub steps: Vec<StepReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    pub upstream_requests: u64,
}

/// One counted step.
#[derive(Debug, Serialize)]
pub struct StepReport {
    pub operation: Operation,
    pub workers: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    pub seconds: f64,
    pub calls: u64,
    pub per_second: f64,
    pub latency_ms: Percentiles,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mint_ms: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_ms: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_ms: Option<Percentiles>,
    pub errors: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerCost>,
    /// At the end of the load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_rss_bytes: Option<u64>,
    /// Share of the client's threads that it used.
    pub client_busy: f64,
}

/// What the server spent.
#[derive(Debug, Serialize)]
pub struct ServerCost {
    /// With what the load left to do, which is waited for.
    pub cpu_seconds: f64,
    pub cpu_us_per_call: f64,
    pub calls_per_cpu_second: f64,
    /// Each process by its name.
    pub processes: BTreeMap<String, ProcessCost>,
}

/// What one process spent; several of one name together.
#[derive(Debug, Serialize)]
pub struct ProcessCost {
    pub cpu_seconds: f64,
    pub cpu_us_per_call: f64,
    /// At the end of the load.
    pub rss_bytes: u64,
}

/// Milliseconds.
#[derive(Debug, Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl From<&Latency> for Percentiles {
    fn from(all: &Latency) -> Self {
        Self {
            p50: all.ms(50.0),
            p90: all.ms(90.0),
            p95: all.ms(95.0),
            p99: all.ms(99.0),
            p999: all.ms(99.9),
            max: all.ms(100.0),
        }
    }
}

/// What was measured around a step.
pub struct Around {
    pub seconds: f64,
    /// By process: the processor time that it spent, and what it held; empty when none is watched.
    pub server: BTreeMap<String, Usage>,
    pub client_cpu_seconds: f64,
    pub client_threads: usize,
}

impl ServerCost {
    fn new(calls: f64, server: &BTreeMap<String, Usage>) -> Self {
        let each_us = |seconds: f64| {
            if calls > 0.0 {
                seconds * 1e6 / calls
            } else {
                0.0
            }
        };
        let cpu_seconds: f64 = server.values().map(|usage| usage.cpu_seconds).sum();
        let process = |(name, usage): (&String, &Usage)| {
            let cost = ProcessCost {
                cpu_seconds: usage.cpu_seconds,
                cpu_us_per_call: each_us(usage.cpu_seconds),
                rss_bytes: usage.rss_bytes,
            };
            (name.clone(), cost)
        };
        Self {
            cpu_seconds,
            cpu_us_per_call: each_us(cpu_seconds),
            calls_per_cpu_second: if cpu_seconds > 0.0 {
                calls / cpu_seconds
            } else {
                0.0
            },
            processes: server.iter().map(process).collect(),
        }
    }
}

impl StepReport {
    #[expect(clippy::cast_precision_loss, reason = "counts of a run fit 52 bits")]
    pub fn new(step: Step, tally: &Tally, around: &Around) -> Self {
        let calls = tally.calls.count();
        let per = calls as f64;
        let any = |of: &Latency| (of.count() > 0).then(|| of.into());
        let held = around.server.values().map(|usage| usage.rss_bytes).sum();
        Self {
            operation: step.operation,
            workers: step.workers,
            rate: step.rate,
            seconds: around.seconds,
            calls,
            per_second: per / around.seconds,
            latency_ms: (&tally.calls).into(),
            mint_ms: any(&tally.mints),
            gateway_ms: any(&tally.gateway),
            start_ms: any(&tally.starts),
            end_ms: any(&tally.ends),
            errors: tally.errors.clone(),
            server: (!around.server.is_empty()).then(|| ServerCost::new(per, &around.server)),
            server_rss_bytes: (!around.server.is_empty()).then_some(held),
            client_busy: around.client_cpu_seconds
                / (around.seconds * around.client_threads as f64),
        }
    }

    /// Its operation and its load.
    fn title(&self) -> String {
        format!("{}, {}", self.operation.plural(), self.load())
    }

    fn load(&self) -> String {
        self.rate.map_or_else(
            || format!("{} workers", self.workers),
            |rate| format!("{rate}/s"),
        )
    }

    fn cells(&self) -> Vec<String> {
        let ms = |value: f64| format!("{value:.2}");
        let p50 = |part: Option<&Percentiles>| part.map_or_else(|| "-".to_owned(), |of| ms(of.p50));
        let server = self.server.as_ref();
        vec![
            self.operation.plural().to_owned(),
            self.load(),
            format!("{:.0}", self.seconds),
            self.calls.to_string(),
            format!("{:.0}", self.per_second),
            ms(self.latency_ms.p50),
            ms(self.latency_ms.p95),
            ms(self.latency_ms.p99),
            ms(self.latency_ms.max),
            p50(self.mint_ms.as_ref()),
            p50(self.gateway_ms.as_ref()),
            server.map_or_else(
                || "-".to_owned(),
                |cost| format!("{:.0}", cost.cpu_us_per_call),
            ),
            self.server_rss_bytes.map_or_else(
                || "-".to_owned(),
                |bytes| (bytes / (1024 * 1024)).to_string(),
            ),
            format!("{:.0} %", self.client_busy * 100.0),
            self.errors.values().sum::<u64>().to_string(),
        ]
    }
}

const HEADS: [&str; 15] = [
    "of",
    "load",
    "s",
    "done",
    "per s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "max ms",
    "mint p50",
    "gateway p50",
    "server µs each",
    "resident MiB",
    "client",
    "errors",
];

impl Report {
    /// The report in the form asked for.
    pub fn render(&self, format: Format) -> anyhow::Result<String> {
        Ok(match format {
            Format::Json => serde_json::to_string_pretty(self)?,
            Format::Table => self.text(false, "  "),
            Format::Markdown => self.text(true, "- "),
        })
    }

    /// Whether every call succeeded and left its evidence.
    pub fn is_clean(&self) -> bool {
        self.steps.iter().all(|step| step.errors.is_empty())
            && self
                .evidence
                .as_ref()
                .is_none_or(|evidence| evidence.complete)
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let heads = HEADS.iter().map(|&head| head.to_owned()).collect();
        std::iter::once(heads)
            .chain(self.steps.iter().map(StepReport::cells))
            .collect()
    }

    /// The processor time of each process for one of each operation, microseconds; nothing when one
    /// process at most is watched.
    fn processes(&self) -> Vec<Vec<String>> {
        let watched = self.steps.iter().filter_map(|step| step.server.as_ref());
        let names: BTreeSet<&str> = watched
            .flat_map(|server| server.processes.keys().map(String::as_str))
            .collect();
        if names.len() < 2 {
            return Vec::new();
        }
        let head = ["µs each, of", "load"]
            .into_iter()
            .chain(names.iter().copied());
        let mut rows = vec![head.map(str::to_owned).collect::<Vec<_>>()];
        for step in &self.steps {
            let mut row = vec![step.operation.plural().to_owned(), step.load()];
            row.extend(names.iter().map(|name| {
                let server = step.server.as_ref();
                let cost = server.and_then(|server| server.processes.get(*name));
                cost.map_or_else(|| "-".to_owned(), |of| format!("{:.0}", of.cpu_us_per_call))
            }));
            rows.push(row);
        }
        rows
    }

    fn text(&self, markdown: bool, bullet: &str) -> String {
        let mut out = format!("{}\n", table(&self.rows(), markdown));
        let processes = self.processes();
        if !processes.is_empty() {
            out.push_str(&format!("{}\n", table(&processes, markdown)));
        }
        for fact in self.facts() {
            out.extend([bullet, fact.as_str(), "\n"]);
        }
        out.truncate(out.trim_end().len());
        out
    }

    fn facts(&self) -> Vec<String> {
        let mut facts = vec![format!(
            "{} identities, {} processors here, {} client thread(s)",
            self.identities, self.processors, self.client_threads
        )];
        if let Some(ready) = self.start_to_ready_ms {
            facts.push(format!("server: start to ready {ready:.0} ms"));
        }
        if let Some(bytes) = self.server_peak_rss_bytes {
            facts.push(format!("server: peak memory {} MiB", bytes / (1024 * 1024)));
        }
        facts.push(format!(
            "policy loaded {:.0} ms after its activation",
            self.policy_loaded_ms
        ));
        facts.push(format!("the first, cold: {:.1} ms", self.first_call_ms));
        for step in &self.steps {
            if let Some(cost) = &step.server {
                facts.push(format!(
                    "{}: {:.0} a second of server processor time",
                    step.title(),
                    cost.calls_per_cpu_second,
                ));
            }
            if let (Some(start), Some(end)) = (&step.start_ms, &step.end_ms) {
                facts.push(format!(
                    "{}: start p50 {:.2} ms, end p50 {:.2} ms",
                    step.title(),
                    start.p50,
                    end.p50
                ));
            }
        }
        for (what, count) in self.errors() {
            facts.push(format!("error: {what}: {count}"));
        }
        if self.steps.iter().any(|step| step.client_busy > 0.8) {
            facts.push(
                "the client was busy above 80 %: the true figures are better; try --client-threads"
                    .to_owned(),
            );
        }
        if let Some(evidence) = &self.evidence {
            facts.push(format!(
                "evidence: token_exchange {} of {}, gateway_resource_request {} of {}: {} after {:.1} s",
                evidence.found.token_exchange,
                evidence.expected.token_exchange,
                evidence.found.gateway_resource_request,
                evidence.expected.gateway_resource_request,
                if evidence.complete { "complete" } else { "INCOMPLETE" },
                evidence.settled_seconds,
            ));
        }
        facts
    }

    fn errors(&self) -> BTreeMap<&str, u64> {
        let mut all = BTreeMap::new();
        for (what, count) in self.steps.iter().flat_map(|step| &step.errors) {
            *all.entry(what.as_str()).or_default() += count;
        }
        all
    }
}

/// Columns lined up; with bars and a rule for Markdown.
pub fn table(rows: &[Vec<String>], markdown: bool) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|n| {
            rows.iter()
                .filter_map(|row| row.get(n))
                .map(|cell| cell.chars().count())
                .max()
        })
        .map(Option::unwrap_or_default)
        .collect();
    let mut out = String::new();
    for (n, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:>width$}"))
            .collect();
        if markdown {
            out.push_str(&format!("| {} |\n", cells.join(" | ")));
            if n == 0 {
                out.push_str(&format!("|{}\n", "---:|".repeat(columns)));
            }
        } else {
            out.push_str(&format!("  {}\n", cells.join("  ")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn usage(cpu_seconds: f64) -> Usage {
        Usage {
            cpu_seconds,
            rss_bytes: 45 << 20,
            ..Usage::default()
        }
    }

    fn report() -> Report {
        let mut tally = Tally::new().unwrap();
        for ms in 1..=10 {
            tally.calls.note(Duration::from_millis(ms));
            tally.mints.note(Duration::from_millis(1));
        }
        tally.failed("mint 429 provider_rate_limited".to_owned());
        let step = Step {
            operation: Operation::Call,
            counted: true,
            workers: 4,
            rate: None,
            lasts: Duration::from_secs(1),
        };
        let around = Around {
            seconds: 1.0,
            server: BTreeMap::from([
                ("sts".to_owned(), usage(0.0015)),
                ("gateway".to_owned(), usage(0.0005)),
            ]),
            client_cpu_seconds: 0.9,
            client_threads: 1,
        };
        Report {
            identities: 16,
            processors: 2,
            client_threads: 1,
            upstream_bytes: 13,
            policy_loaded_ms: 3.0,
            first_call_ms: 4.0,
            start_to_ready_ms: None,
            stop_ms: None,
            server_peak_rss_bytes: None,
            steps: vec![StepReport::new(step, &tally, &around)],
            evidence: None,
            upstream_requests: 10,
        }
    }

    #[test]
    fn a_report_with_errors_is_not_clean_and_names_them() {
        let report = report();
        assert!(!report.is_clean());
        let text = report.render(Format::Table).unwrap();
        assert!(text.contains("mint 429 provider_rate_limited: 1"), "{text}");
        assert!(text.contains("busy above 80 %"), "{text}");
    }

    #[test]
    fn markdown_has_a_rule_below_its_heads() {
        let text = report().render(Format::Markdown).unwrap();
        assert!(text.lines().nth(1).unwrap().starts_with("|---:|"), "{text}");
    }

    #[test]
    fn json_carries_the_cost_of_a_call() {
        let json: serde_json::Value =
            serde_json::from_str(&report().render(Format::Json).unwrap()).unwrap();
        let cost = |at: &str| json.pointer(at).unwrap().as_f64().unwrap();
        let whole = cost("/steps/0/server/cpu_us_per_call");
        assert!((whole - 200.0).abs() < 1.0, "{whole}");
        let of_sts = cost("/steps/0/server/processes/sts/cpu_us_per_call");
        assert!((of_sts - 150.0).abs() < 1.0, "{of_sts}");
        let text = report().render(Format::Table).unwrap();
        assert!(text.contains("gateway  sts"), "{text}");
    }
}
