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

/// Processor time of a call in each process, microseconds.
const CALL: [(&str, f64); 7] = [
    ("api_us_per_call", 0.0),
    ("sts_us_per_call", 209.0),
    ("gateway_us_per_call", 177.0),
    ("audit_us_per_call", 86.0),
    ("coordinator_us_per_call", 1.0),
    ("redis_us_per_call", 82.0),
    ("postgres_us_per_call", 70.0),
];
/// Processor time of a Session that is started and ended, microseconds: every replica hears of both.
const START: [(&str, f64); 7] = [
    ("api_us_per_start", 99.0),
    ("sts_us_per_start", 105.0),
    ("gateway_us_per_start", 148.0),
    ("audit_us_per_start", 191.0),
    ("coordinator_us_per_start", 634.0),
    ("redis_us_per_start", 398.0),
    ("postgres_us_per_start", 3_540.0),
];

const BENCH: &str = "docs/benchmarks.md, distributed, 2026-11-28";
const APART: &str = "measured apart, docs/benchmarks.md, 2026-11-28";

impl Default for Costs {
    fn default() -> Self {
        let measured = CALL.iter().chain(&START);
        let mut costs: Vec<Cost> = measured
            .map(|&(name, us)| cost(name, us, "µs of a processor", APART))
            .collect();
        costs.extend([
            cost("events_per_call", 3.0, "events", BENCH),
            cost(
                "process_bytes",
                68.0 * MIB,
                "bytes of memory",
                "docs/benchmarks.md: 409 MiB for five processes and Redis",
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
        taken.extend(self.learn_run(file, source)?);
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

    /// The processor time of a call, and of a Session, at the fullest step that a run of
    /// `caracal-bench` has of it.
    fn learn_run(&mut self, run: &Value, source: &str) -> Result<Vec<&'static str>, String> {
        let mut taken = Vec::new();
        for (operation, of) in [("call", "call"), ("session", "start")] {
            let Some(cost) = fullest_step(run, operation) else {
                continue;
            };
            let processes = cost.get("processes").and_then(Value::as_object);
            let processes: Vec<_> = processes.into_iter().flatten().collect();
            for (process, cost) in &processes {
                if let Some(us) = cost.get("cpu_us_per_call").and_then(Value::as_f64) {
                    taken.extend(self.set(&format!("{process}_us_per_{of}"), us, source)?);
                }
            }
            // Of one process that is everything, only the whole is known.
            let whole = cost.get("cpu_us_per_call").and_then(Value::as_f64);
            if let (true, "call", Some(us)) = (processes.len() < 2, operation, whole) {
                taken.extend(self.split(us, source)?);
            }
        }
        Ok(taken)
    }

    /// Divides the whole of a call as it was divided until now, but for Postgres, which one process
    /// that is everything does not have.
    fn split(&mut self, us: f64, source: &str) -> Result<Vec<&'static str>, String> {
        let ours = CALL.iter().map(|(name, _)| *name);
        let ours: Vec<&str> = ours
            .filter(|name| *name != "postgres_us_per_call")
            .collect();
        let before: f64 = ours.iter().map(|name| self.of(name)).sum();
        let how = format!("{source}: {us:.0} µs a call, divided as measured apart before");
        let mut taken = Vec::new();
        for name in ours {
            taken.extend(self.set(
                name,
                us * self.of(name) / before.max(f64::MIN_POSITIVE),
                &how,
            )?);
        }
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

/// What the server spent at the fullest step of an operation. A run that names none did calls.
fn fullest_step<'r>(run: &'r Value, operation: &str) -> Option<&'r Value> {
    let steps = run.get("steps")?.as_array()?;
    let of = |step: &Value| {
        let named = step.get("operation").and_then(Value::as_str);
        named.unwrap_or("call") == operation
    };
    let spent = |step: &'r Value| {
        let rate = step.get("per_second")?.as_f64()?;
        let server = step.get("server")?;
        let us = server.get("cpu_us_per_call")?.as_f64()?;
        (us > 0.0).then_some((rate, server))
    };
    let steps = steps.iter().filter(|step| of(step)).filter_map(spent);
    let fullest = steps.max_by(|(a, _), (b, _)| a.total_cmp(b));
    fullest.map(|(_, server)| server)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_of_the_bench_is_taken_at_its_fullest_step() {
        let mut costs = Costs::default();
        let run = json!({"steps": [
            {"per_second": 1000.0, "server": {"cpu_us_per_call": 900.0}},
            {"per_second": 2000.0, "server": {"cpu_us_per_call": 400.0}},
            {"per_second": 3000.0},
        ]});
        let shares = |costs: &Costs| costs.of("sts_us_per_call") / costs.of("gateway_us_per_call");
        let before = shares(&costs);
        let taken = costs.learn(&run, "run.json").unwrap();
        assert_eq!(taken.len(), CALL.len() - 1, "all but Postgres");
        let all: f64 = taken.iter().map(|name| costs.of(name)).sum();
        assert!((all - 400.0).abs() < 1e-9, "{all}");
        assert!((shares(&costs) - before).abs() < 1e-9);
        let audit = json!({"stored_bytes_per_event": 500.5});
        assert_eq!(
            costs.learn(&audit, "a").unwrap(),
            ["ledger_bytes_per_event"]
        );
        let live =
            json!({"summary": {"cpu_us_per_call": {"sts": 210.0, "gateway": 150.0, "api": 1.0}}});
        let taken = costs.learn(&live, "live.json").unwrap();
        let all = ["api_us_per_call", "gateway_us_per_call", "sts_us_per_call"];
        assert_eq!(taken, all);
        assert_eq!(costs.of("sts_us_per_call"), 210.0);
        let own = json!({"costs": {"claim_bytes": 99}});
        assert_eq!(costs.learn(&own, "own").unwrap(), ["claim_bytes"]);
    }

    #[test]
    fn a_run_that_watched_each_process_tells_what_each_operation_costs_it() {
        let mut costs = Costs::default();
        let step = |operation: &str, us: Value| {
            json!({"operation": operation, "per_second": 10.0, "server": {
                "cpu_us_per_call": 9.0,
                "processes": us.as_object().unwrap().iter().map(|(name, us)| {
                    (name.clone(), json!({"cpu_us_per_call": us}))
                }).collect::<serde_json::Map<_, _>>(),
            }})
        };
        let run = json!({"steps": [
            step("call", json!({"sts": 11.0, "gateway": 12.0, "postgres": 13.0, "mine": 1.0})),
            step("mint", json!({"sts": 99.0})),
            step("session", json!({"coordinator": 21.0, "postgres": 22.0})),
        ]});
        costs.learn(&run, "run.json").unwrap();
        let names = [
            "sts_us_per_call",
            "gateway_us_per_call",
            "postgres_us_per_call",
            "coordinator_us_per_start",
            "postgres_us_per_start",
        ];
        assert_eq!(
            names.map(|name| costs.of(name)),
            [11.0, 12.0, 13.0, 21.0, 22.0]
        );
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
