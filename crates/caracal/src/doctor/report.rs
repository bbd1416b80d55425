//! What was found, as a table and as JSON (operations specification §12).

use std::fmt::Write as _;

use serde::Serialize;

use crate::exit::masked;
use crate::term;

/// Where a check belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// Settings, machine and backends.
    Preflight,
    /// Whether somebody answers.
    Health,
    /// Whether they can serve, by their own numbers.
    Readiness,
    /// Each zone.
    Zones,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, and will not for ever or not for everybody.
    Warn,
    /// Must be fixed.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    section: Section,
    check: String,
    status: Status,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    /// Says what to do about it.
    pub fn advise(&mut self, advice: impl Into<String>) {
        self.advice = Some(advice.into());
    }
}

/// Everything that was looked at, in order.
#[derive(Clone, Debug, Default)]
pub struct Checks(Vec<Check>);

impl Checks {
    /// As it should be.
    pub fn ok(&mut self, section: Section, check: impl Into<String>, detail: impl Into<String>) {
        self.add(section, check.into(), Status::Ok, detail.into());
    }

    /// Needs a look.
    pub fn warn(
        &mut self,
        section: Section,
        check: impl Into<String>,
        detail: impl Into<String>,
    ) -> &mut Check {
        self.add(section, check.into(), Status::Warn, detail.into())
    }

    /// Must be fixed.
    pub fn fail(
        &mut self,
        section: Section,
        check: impl Into<String>,
        detail: impl Into<String>,
    ) -> &mut Check {
        self.add(section, check.into(), Status::Fail, detail.into())
    }

    #[expect(clippy::indexing_slicing, reason = "what was pushed is there")]
    fn add(
        &mut self,
        section: Section,
        check: String,
        status: Status,
        detail: String,
    ) -> &mut Check {
        self.0.push(Check {
            section,
            check,
            status,
            // Errors quote what they could not use.
            detail: masked(&detail),
            advice: None,
        });
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    fn count(&self, status: Status) -> usize {
        self.0.iter().filter(|check| check.status == status).count()
    }

    /// Names and outcomes, for tests.
    #[cfg(test)]
    pub fn outcomes(&self) -> Vec<(&str, Status)> {
        let all = self.0.iter();
        all.map(|check| (check.check.as_str(), check.status))
            .collect()
    }
}

/// Which zones were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    All,
    Selected,
    None,
}

/// What was examined.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    pub api_url: String,
    pub zone_scope: Scope,
    pub zone_ids: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Summary {
    ok: usize,
    warn: usize,
    fail: usize,
    total: usize,
}

/// The whole of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    command: &'static str,
    mode: &'static str,
    ready: bool,
    strict: bool,
    context: Context,
    summary: Summary,
    checks: Vec<Check>,
}

impl Report {
    pub fn new(checks: Checks, context: Context, is_preflight: bool, strict: bool) -> Self {
        let summary = Summary {
            ok: checks.count(Status::Ok),
            warn: checks.count(Status::Warn),
            fail: checks.count(Status::Fail),
            total: checks.0.len(),
        };
        Self {
            command: "doctor",
            mode: if is_preflight { "preflight" } else { "system" },
            ready: summary.fail == 0 && !(strict && summary.warn > 0),
            strict,
            context,
            summary,
            checks: checks.0,
        }
    }

    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// For people: a line a check, and below it what to do.
    pub fn table(&self) -> String {
        let width = self.checks.iter().map(|check| check.check.len()).max();
        let width = width.unwrap_or(0);
        let mut table = String::new();
        let mut section = None;
        for check in &self.checks {
            if section.replace(check.section) != Some(check.section) {
                let name = match check.section {
                    Section::Preflight => "SETTINGS, MACHINE AND BACKENDS",
                    Section::Health => "HEALTH",
                    Section::Readiness => "READINESS",
                    Section::Zones => "ZONES",
                };
                let _ = writeln!(table, "{}", term::bold(name));
            }
            let mark = match check.status {
                Status::Ok => term::green("ok  "),
                Status::Warn => term::bold("warn"),
                Status::Fail => term::red("FAIL"),
            };
            let name = &check.check;
            let _ = writeln!(table, "  {mark}  {name:<width$}  {}", check.detail);
            if let Some(advice) = &check.advice {
                let _ = writeln!(
                    table,
                    "        {:<width$}  {}",
                    "",
                    term::dim(&format!("→ {advice}"))
                );
            }
        }
        let Summary { ok, warn, fail, .. } = self.summary;
        let _ = writeln!(table, "{ok} ok, {warn} to look at, {fail} failed");
        table
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(strict: bool, fails: bool) -> Report {
        let mut checks = Checks::default();
        checks.ok(Section::Health, "API", "200");
        checks
            .warn(Section::Preflight, "Redis", "AOF is off")
            .advise("appendonly yes");
        if fails {
            checks.fail(Section::Zones, "zone", format!("cat_{}", "A".repeat(43)));
        }
        let context = Context {
            api_url: "http://localhost:3000".to_owned(),
            zone_scope: Scope::All,
            zone_ids: vec!["z1".to_owned()],
        };
        Report::new(checks, context, false, strict)
    }

    #[test]
    fn a_report_has_the_published_form_and_shows_no_secret() {
        let report = serde_json::to_value(report(false, true)).unwrap();
        assert_eq!(
            report,
            json!({
                "command": "doctor", "mode": "system", "ready": false, "strict": false,
                "context": {"apiUrl": "http://localhost:3000", "zoneScope": "all", "zoneIds": ["z1"]},
                "summary": {"ok": 1, "warn": 1, "fail": 1, "total": 3},
                "checks": [
                    {"section": "health", "check": "API", "status": "ok", "detail": "200"},
                    {"section": "preflight", "check": "Redis", "status": "warn",
                        "detail": "AOF is off", "advice": "appendonly yes"},
                    {"section": "zones", "check": "zone", "status": "fail", "detail": "***"},
                ],
            })
        );
    }

    #[test]
    fn warnings_count_only_when_it_is_strict() {
        assert!(report(false, false).is_ready());
        assert!(!report(true, false).is_ready());
        assert!(!report(false, true).is_ready());
        assert!(report(false, true).table().contains("→ appendonly yes"));
    }
}
