//! After a change: looks again and again until the deployment has settled, or time is up.

use std::time::Duration;

use caracal_capacity::watch::{Check, Settling, checks};
use caracal_capacity::{Observation, Thresholds};
use serde::Serialize;

use super::Eye;
use crate::term;

/// How it ended.
#[derive(Debug, Serialize)]
pub struct Settled {
    /// Whether all four were well for as long as asked.
    pub settled: bool,
    /// Seconds since the first look.
    pub after_seconds: f64,
    /// What the last look saw.
    pub checks: [Check; 4],
}

impl Settled {
    /// For people.
    pub fn told(&self) -> String {
        let how = if self.settled {
            "settled"
        } else {
            "NOT settled"
        };
        format!(
            "{how} after {:.0} s: {}",
            self.after_seconds,
            line(&self.checks)
        )
    }
}

fn line(checks: &[Check; 4]) -> String {
    let each = checks.each_ref().map(|check| {
        let mark = if check.ok { "ok" } else { "NOT ok" };
        format!("{} {mark} ({})", check.name, check.detail)
    });
    each.join("; ")
}

/// Looks until all is well for `stable_for`, at most for `within`; answers with the last look.
/// Progress goes to standard error: it may take long.
pub async fn until_settled(
    eye: &Eye,
    thresholds: &Thresholds,
    stable_for: Duration,
    within: Duration,
) -> anyhow::Result<(Observation, Settled)> {
    let began = eye.clock.ticks();
    let mut settling = Settling::default();
    loop {
        let seen = eye.look().await?;
        let passed = eye.clock.ticks().since(began);
        let checks = checks(&seen, thresholds);
        let well = settling.take(passed.as_secs_f64(), &checks);
        let settled = well.is_some_and(|well| well >= stable_for.as_secs_f64());
        if settled || passed >= within {
            let after_seconds = passed.as_secs_f64();
            return Ok((
                seen,
                Settled {
                    settled,
                    after_seconds,
                    checks,
                },
            ));
        }
        term::progress(&format!(
            "{:>4.0} s  {}",
            passed.as_secs_f64(),
            line(&checks)
        ));
        if matches!(eye.from, super::Source::Prometheus(_)) {
            // It learns something new when it scrapes, not before.
            tokio::time::sleep(eye.over / 10).await;
        }
    }
}
