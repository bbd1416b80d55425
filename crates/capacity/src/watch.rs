//! After a change: is the deployment settled? Readiness, lag, replay backlog and dead letters must all
//! be well, and stay so for a while (operations specification §3, fourth step).

use serde::Serialize;

use crate::observe::{Observation, Ready, Service};
use crate::show;
use crate::signal::{self, Thresholds};

/// One of the four.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `readiness`, `lag`, `replay` or `dlq`.
    pub name: &'static str,
    /// Whether it is well.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
}

/// The four checks of one look.
pub fn checks(observation: &Observation, thresholds: &Thresholds) -> [Check; 4] {
    [
        readiness(observation),
        signal(observation, thresholds, "lag", &["audit_lag"]),
        signal(
            observation,
            thresholds,
            "replay",
            &["replay_age", "evidence_lost"],
        ),
        signal(observation, thresholds, "dlq", &["dlq_size", "dlq_growth"]),
    ]
}

fn readiness(observation: &Observation) -> Check {
    let mut bad = Vec::new();
    for target in &observation.targets {
        let why = match target.looks.last().map(|look| &look.ready) {
            Some(Ready::Yes) => continue,
            Some(Ready::No(reason)) => reason.as_str(),
            Some(Ready::Silent) => "silent",
            // At a Prometheus server, whoever answers counts as ready.
            Some(Ready::Unknown) | None if target.silent.is_none() => continue,
            Some(Ready::Unknown) | None => "silent",
        };
        bad.push(format!(
            "{} at {} {why}",
            target.service.name(),
            target.instance
        ));
    }
    let all = observation.targets.len();
    let detail = if bad.is_empty() {
        format!("{all} of {all} ready")
    } else {
        bad.join(", ")
    };
    Check {
        name: "readiness",
        ok: bad.is_empty() && all > 0,
        detail,
    }
}

fn signal(
    observation: &Observation,
    thresholds: &Thresholds,
    name: &'static str,
    ids: &[&str],
) -> Check {
    let (readings, _) = signal::read(observation, thresholds);
    let readings: Vec<_> = readings
        .iter()
        .filter(|reading| ids.contains(&reading.signal))
        .collect();
    let Some(worst) = readings.iter().max_by(|a, b| {
        (a.breached, a.value)
            .partial_cmp(&(b.breached, b.value))
            .unwrap_or(std::cmp::Ordering::Equal)
    }) else {
        return Check {
            name,
            ok: false,
            detail: "not known: nobody who counts it answers".to_owned(),
        };
    };
    let at = worst.service.map_or("-", Service::name);
    Check {
        name,
        ok: !worst.breached,
        detail: format!(
            "{at} {}, at most {}",
            show::in_unit(worst.value, worst.unit),
            show::in_unit(worst.threshold, worst.unit)
        ),
    }
}

/// Since when all four are well.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settling {
    since: Option<f64>,
}

impl Settling {
    /// Takes one look at this time (seconds); answers for how long all have been well now.
    pub fn take(&mut self, at: f64, checks: &[Check; 4]) -> Option<f64> {
        if checks.iter().all(|check| check.ok) {
            let since = *self.since.get_or_insert(at);
            Some(at - since)
        } else {
            self.since = None;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four(ok: bool) -> [Check; 4] {
        ["readiness", "lag", "replay", "dlq"].map(|name| Check {
            name,
            ok: ok || name != "lag",
            detail: String::new(),
        })
    }

    #[test]
    fn one_bad_look_begins_anew() {
        let mut settling = Settling::default();
        assert_eq!(settling.take(0.0, &four(true)), Some(0.0));
        assert_eq!(settling.take(5.0, &four(true)), Some(5.0));
        assert_eq!(settling.take(10.0, &four(false)), None);
        assert_eq!(settling.take(15.0, &four(true)), Some(0.0));
    }

    #[test]
    fn nobody_to_ask_is_not_well() {
        let checks = checks(&Observation::default(), &Thresholds::default());
        assert!(checks.iter().all(|check| !check.ok), "{checks:?}");
    }
}
