//! What a call, a Session and an event cost, and where each figure comes from.

use serde::Serialize;
use serde_json::Value;

use crate::show;

/// A figure and its source.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Its name, also in a file of costs.
    pub name: &'static str,
    /// The figure.
    pub value: f64,
    /// What it counts.
    pub unit: &'static str,
    /// Where it comes from.
    pub source: String,
}

/// All figures.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Costs(Vec<Cost>);

/// Of the whole cost of a call in our processes and Redis: the share of each. An estimate by the steps
/// of a call (two exchanges, each with a request, a verification or secret, policy and evidence; one
/// proxied request with a verification and a claim; three events). Measure your own.
const SHARES: [(&str, f64); 4] = [
    ("sts_us_per_call", 0.45),
    ("gateway_us_per_call", 0.30),
    ("audit_us_per_call", 0.13),
    ("redis_us_per_call", 0.12),
];
/// Processor time of a call in our processes and Redis, microseconds: docs/benchmarks.md,
/// distributed, 16 workers.
const CALL_US: f64 = 702.0;

const BENCH: &str = "docs/benchmarks.md, distributed, 2026-11-28";
const ESTIMATE: &str = "702 µs of docs/benchmarks.md, split by an estimate";

impl Default for Costs {
    fn default() -> Self {
        let mut costs: Vec<Cost> = SHARES
            .iter()
            .map(|&(name, share)| cost(name, CALL_US * share, "µs of a processor", ESTIMATE))
            .collect();
        costs.extend([
            cost(
                "postgres_us_per_call",
                756.0,
                "µs of a processor",
                "at most: 20 s for 26,451 calls in docs/benchmarks.md, provisioning and reads included",
            ),
            cost("events_per_call", 3.0, "events", BENCH),
            cost(
                "process_bytes",
                68.0 * MIB,
                "bytes of memory",
                "docs/benchmarks.md: 409 MiB for five processes and Redis",
            ),
            cost(
                "session_us_per_start",
                1_600.0,
                "µs of a processor",
                "estimate: two writes that are synced, at the Coordinator and Postgres each",
            ),
            cost(
                "session_bytes",
                983.0,
                "bytes in Postgres",
                "measured: half of two Sessions and the Delegation between them, with their indexes",
            ),
            cost(
                "ledger_bytes_per_event",
                637.0,
                "bytes in Postgres",
                "measured on Postgres, indexes included",
            ),
            cost(
                "stream_bytes_per_event",
                1_800.0,
                "bytes in Redis",
                "measured: MEMORY USAGE of the stream",
            ),
            cost(
                "claim_bytes",
                140.0,
                "bytes in Redis",
                "measured: MEMORY USAGE of a claim, 104, and its expiry",
            ),
            cost(
                "redis_commands_per_second",
                201_000.0,
                "commands",
                "measured: XADD on one processor, 64 in flight",
            ),
            cost(
                "redis_commands_per_call",
                13.25,
                "commands",
                "measured: over 300 calls of a distributed deployment, those within scripts included",
            ),
            cost(
                "audit_events_per_second",
                20_000.0,
                "events",
                "what one replica must take (operations specification §17.2)",
            ),
        ]);
        Self(costs)
    }
}

const MIB: f64 = 1024.0 * 1024.0;

fn cost(name: &'static str, value: f64, unit: &'static str, source: &str) -> Cost {
    Cost {
        name,
        value,
        unit,
        source: source.to_owned(),
    }
}

impl Costs {
    /// A figure; nought when there is none of this name.
    pub fn of(&self, name: &str) -> f64 {
        let found = self.0.iter().find(|cost| cost.name == name);
        found.map_or(0.0, |cost| cost.value)
    }

    /// Takes what a file of measurements holds: a report of `caracal-bench` (`--format json`), one of
    /// `caracal-bench audit`, one of `caracal capacity --json` made under load, or figures by name.
    /// Answers with the names of what it took.
    pub fn learn(&mut self, file: &Value, source: &str) -> Result<Vec<&'static str>, String> {
        let mut taken = Vec::new();
        if let Some(us) = best_step(file) {
            for (name, share) in SHARES {
                let how = format!("{source}: {us:.0} µs a call, split by an estimate");
                taken.extend(self.set(name, us * share, &how)?);
            }
        }
        if let Some(bytes) = file.get("stored_bytes_per_event").and_then(Value::as_f64) {
            taken.extend(self.set("ledger_bytes_per_event", bytes, source)?);
        }
        let live = file
            .pointer("/summary/cpu_us_per_call")
            .and_then(Value::as_object);
        for (service, us) in live.into_iter().flatten() {
            if let Some(us) = us.as_f64() {
                let name = format!("{service}_us_per_call");
                taken.extend(self.set(&name, us, source)?);
            }
        }
        for (name, value) in file
            .get("costs")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let value = value.as_f64().ok_or(format!("`{name}` is not a number"))?;
            if self.set(name, value, source)?.is_none() {
                let all: Vec<_> = self.0.iter().map(|cost| cost.name).collect();
                return Err(format!(
                    "there is no cost `{name}`; there are {}",
                    all.join(", ")
                ));
            }
            taken.extend(
                self.0
                    .iter()
                    .map(|cost| cost.name)
                    .find(|known| known == name),
            );
        }
        if taken.is_empty() {
            return Err(
                "no figures in it: give the JSON of caracal-bench, of caracal-bench audit, of \
                 `caracal capacity --json` made under load, or {\"costs\": {NAME: NUMBER}}"
                    .to_owned(),
            );
        }
        taken.dedup();
        Ok(taken)
    }

    fn set(
        &mut self,
        name: &str,
        value: f64,
        source: &str,
    ) -> Result<Option<&'static str>, String> {
        if !value.is_finite() || value < 0.0 {
            return Err(format!("`{name}` must be a number from 0 on"));
        }
        Ok(self
            .0
            .iter_mut()
            .find(|cost| cost.name == name)
            .map(|cost| {
                cost.value = value;
                source.clone_into(&mut cost.source);
                cost.name
            }))
    }

    /// With sources, for people.
    pub fn table(&self) -> String {
        let rows = self.0.iter().map(|cost| {
            vec![
                cost.name.to_owned(),
                show::count(cost.value),
                cost.unit.to_owned(),
                cost.source.clone(),
            ]
        });
        show::table(&rows.collect::<Vec<_>>())
    }
}

/// Processor time of a call at the fullest step of a run, microseconds.
fn best_step(file: &Value) -> Option<f64> {
    let steps = file.get("steps")?.as_array()?;
    let rate = |step: &Value| step.get("per_second").and_then(Value::as_f64);
    let cost = |step: &Value| {
        step.pointer("/server/cpu_us_per_call")
            .and_then(Value::as_f64)
    };
    steps
        .iter()
        .filter_map(|step| Some((rate(step)?, cost(step)?)))
        .filter(|(_, us)| *us > 0.0)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, us)| us)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_default_split_adds_up_to_what_was_measured() {
        let costs = Costs::default();
        let all: f64 = SHARES.iter().map(|(name, _)| costs.of(name)).sum();
        assert!((all - CALL_US).abs() < 1e-6, "{all}");
    }

    #[test]
    fn a_run_of_the_bench_is_taken_at_its_fullest_step() {
        let mut costs = Costs::default();
        let run = json!({"steps": [
            {"per_second": 1000.0, "server": {"cpu_us_per_call": 900.0}},
            {"per_second": 2000.0, "server": {"cpu_us_per_call": 400.0}},
            {"per_second": 3000.0},
        ]});
        let taken = costs.learn(&run, "run.json").unwrap();
        assert_eq!(taken.len(), SHARES.len());
        assert!((costs.of("sts_us_per_call") - 180.0).abs() < 1e-9);
        let audit = json!({"stored_bytes_per_event": 500.5});
        assert_eq!(
            costs.learn(&audit, "a").unwrap(),
            ["ledger_bytes_per_event"]
        );
        let live =
            json!({"summary": {"cpu_us_per_call": {"sts": 210.0, "gateway": 150.0, "api": 1.0}}});
        let taken = costs.learn(&live, "live.json").unwrap();
        assert_eq!(taken, ["gateway_us_per_call", "sts_us_per_call"]);
        assert_eq!(costs.of("sts_us_per_call"), 210.0);
        let own = json!({"costs": {"claim_bytes": 99}});
        assert_eq!(costs.learn(&own, "own").unwrap(), ["claim_bytes"]);
    }

    #[test]
    fn a_file_without_figures_is_told() {
        let mut costs = Costs::default();
        assert!(
            costs
                .learn(&json!({}), "x")
                .unwrap_err()
                .contains("no figures")
        );
        let unknown = costs
            .learn(&json!({"costs": {"speed": 1}}), "x")
            .unwrap_err();
        assert!(unknown.contains("there is no cost `speed`"), "{unknown}");
        let negative = costs.learn(&json!({"costs": {"claim_bytes": -1}}), "x");
        assert!(negative.unwrap_err().contains("from 0 on"));
    }
}
