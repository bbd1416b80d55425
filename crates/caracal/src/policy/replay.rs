//! `caracal policy replay`: turns the pages of the API's replay and adds them up.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use caracal_crypto::os::SystemClock;
use caracal_model::Clock as _;
use clap::Args;
use serde_json::{Value, json};

use crate::audit::{Reader, items};
use crate::cli::Api;
use crate::exit::Outcome;
use crate::term;

/// Events of one request to the API.
const PAGE: u32 = 500;
/// The counts of a report, in the order in which they are told.
const COUNTS: [(&str, &str); 6] = [
    ("newly_denied", "newly denied"),
    ("newly_allowed", "newly allowed"),
    ("newly_held", "newly held for approval"),
    ("undecidable", "undecidable"),
    ("unchanged", "unchanged"),
    ("not_asked", "refused before policy was asked"),
];

#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES\n  caracal policy replay --since 7d --candidate application-grants\n  caracal policy replay --since 24h --candidate SET --version VERSION --json --fail-on-change\n\nEXIT CODE\n  0; with --fail-on-change 1 when any answer differs or cannot be known"
)]
pub struct Replay {
    #[command(flatten)]
    api: Api,
    /// Policy set to try, by name or id
    #[arg(long, value_name = "SET")]
    candidate: String,
    /// Version of the set [default: its newest]
    #[arg(long)]
    version: Option<String>,
    /// How far back: a number and s, m, h or d
    #[arg(long, default_value = "7d", value_parser = span)]
    since: Duration,
    /// Only requests of this application
    #[arg(long)]
    application: Option<String>,
    /// Zone to read [default: the only one]
    #[arg(long)]
    zone: Option<String>,
    /// One JSON object: the counts and every request that differs
    #[arg(long)]
    json: bool,
    /// End with code 1 when anything differs or cannot be known
    #[arg(long)]
    fail_on_change: bool,
}

/// `90s`, `30m`, `24h`, `7d`.
fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "a whole number and s, m, h or d, such as 7d".to_owned();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let each = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number = text.strip_suffix(unit).ok_or_else(wrong)?;
    let count: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = count.checked_mul(each).filter(|&seconds| seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

/// All pages together.
#[derive(Debug, Default)]
struct Report {
    counts: [u64; COUNTS.len()],
    examined: u64,
    items: Vec<Value>,
}

impl Report {
    fn add(&mut self, page: &Value) {
        let number = |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or(0);
        self.examined += number(page.get("examined"));
        for (sum, (name, _)) in self.counts.iter_mut().zip(COUNTS) {
            *sum += number(page.pointer(&format!("/counts/{name}")));
        }
        self.items.extend(items(page).cloned());
    }

    /// Whether anything differs or cannot be known.
    fn differs(&self) -> bool {
        let certain = ["unchanged", "not_asked"];
        let mut counts = self.counts.iter().zip(COUNTS);
        counts.any(|(&count, (name, _))| count > 0 && !certain.contains(&name))
    }

    fn json(&self, set: &str, version: &str) -> Value {
        let counts: serde_json::Map<String, Value> = self
            .counts
            .iter()
            .zip(COUNTS)
            .map(|(&count, (name, _))| (name.to_owned(), json!(count)))
            .collect();
        json!({
            "policy_set_id": set, "version_id": version, "examined": self.examined,
            "counts": counts, "items": self.items,
        })
    }

    fn text(&self) -> String {
        let mut lines: Vec<String> = self.items.iter().map(line).collect();
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.push(format!("{} recorded decisions", self.examined));
        for (&count, (name, words)) in self.counts.iter().zip(COUNTS) {
            let shown = format!("{count:>8}  {words}");
            lines.push(match name {
                "newly_denied" if count > 0 => term::red(&shown),
                _ => shown,
            });
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

fn line(item: &Value) -> String {
    let of = |path: &str| item.pointer(path).and_then(Value::as_str).unwrap_or("-");
    let change = match of("/change") {
        "newly_denied" => term::red("newly denied "),
        "newly_allowed" => term::green("newly allowed"),
        other => format!("{:<13}", other.replace('_', " ")),
    };
    let why = match item.get("reason").and_then(Value::as_str) {
        Some(reason) => reason,
        None => of("/candidate/rule"),
    };
    format!(
        "{}  {change}  {}  {}  {why}  {}",
        of("/occurred_at"),
        of("/application_id"),
        of("/resource"),
        term::dim(of("/request_id")),
    )
}

impl Replay {
    pub fn run(&self) -> Outcome {
        crate::up::small_runtime()?.block_on(async {
            let reader = Reader::open(&self.api)?;
            let zone = reader.zone(self.zone.as_deref()).await?;
            let set = self.set(&reader, &zone).await?;
            let version = self.candidate_version(&reader, &zone, &set).await?;
            let work = self.replay(&reader, &zone, &set, &version);
            let report = term::patiently("deciding recorded requests again", work).await?;
            if self.json {
                println!("{}", report.json(&set, &version));
            } else {
                print!("{}", report.text());
            }
            Ok(if self.fail_on_change && report.differs() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            })
        })
    }

    /// The id of the set that is named by name or id.
    async fn set(&self, reader: &Reader, zone: &str) -> anyhow::Result<String> {
        let mut cursor = None;
        loop {
            let page = reader
                .get(&listing(zone, "policy-sets", cursor.as_deref()))
                .await?;
            for set in items(&page) {
                let of = |name: &str| set.get(name).and_then(Value::as_str);
                if let (Some(id), name) = (of("id"), of("name"))
                    && (id == self.candidate || name == Some(&*self.candidate))
                {
                    return Ok(id.to_owned());
                }
            }
            cursor = next(&page);
            if cursor.is_none() {
                bail!(
                    "there is no policy set named `{}` in this zone",
                    self.candidate
                );
            }
        }
    }

    async fn candidate_version(
        &self,
        reader: &Reader,
        zone: &str,
        set: &str,
    ) -> anyhow::Result<String> {
        if let Some(version) = &self.version {
            return Ok(version.clone());
        }
        let path = format!("/v1/zones/{zone}/policy-sets/{set}/versions?limit=1");
        let page = reader.get(&path).await?;
        let newest = items(&page).next().and_then(|row| row.get("id"));
        let newest = newest.and_then(Value::as_str).map(str::to_owned);
        newest.context("the set has no version yet; add one, or name a version with --version")
    }

    async fn replay(
        &self,
        reader: &Reader,
        zone: &str,
        set: &str,
        version: &str,
    ) -> anyhow::Result<Report> {
        // Both ends are fixed first: what is decided meanwhile is not part of it.
        let until = SystemClock::new().now();
        let since = until.minus(self.since);
        let mut report = Report::default();
        let mut cursor: Option<String> = None;
        loop {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("limit", &PAGE.to_string());
            query.append_pair("since", &since.iso_micros());
            query.append_pair("until", &until.iso_micros());
            if let Some(application) = &self.application {
                query.append_pair("application_id", application);
            }
            if let Some(cursor) = &cursor {
                query.append_pair("cursor", cursor);
            }
            let base = format!("/v1/zones/{zone}/policy-sets/{set}/versions/{version}/replay");
            let page = reader.get(&format!("{base}?{}", query.finish())).await?;
            report.add(&page);
            cursor = next(&page);
            if cursor.is_none() {
                return Ok(report);
            }
        }
    }
}

fn listing(zone: &str, what: &str, cursor: Option<&str>) -> String {
    let cursor = cursor.map_or_else(String::new, |cursor| format!("?cursor={cursor}"));
    format!("/v1/zones/{zone}/{what}{cursor}")
}

fn next(page: &Value) -> Option<String> {
    page.get("next_cursor")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_a_number_and_a_unit() {
        assert_eq!(span("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        for text in [
            "",
            "7",
            "d",
            "0d",
            "-1h",
            "1w",
            "1.5h",
            "99999999999999999999d",
            "7é",
        ] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pages_add_up_and_only_what_differs_makes_a_difference() {
        let page = |name: &str, count: u64| json!({"examined": count, "counts": {name: count}, "items": [], "next_cursor": null});
        let mut report = Report::default();
        report.add(&page("unchanged", 3));
        report.add(&page("not_asked", 1));
        assert!(!report.differs());
        assert_eq!(report.examined, 4);
        report.add(&json!({
            "examined": 1, "counts": {"newly_denied": 1},
            "items": [{"change": "newly_denied", "request_id": "r1", "resource": "resource://r",
                "application_id": "a1", "occurred_at": "t", "candidate": {"rule": "role_scope_mismatch"}}],
        }));
        assert!(report.differs());
        let text = report.text();
        assert!(
            text.starts_with("t  newly denied   a1  resource://r  role_scope_mismatch  r1\n"),
            "{text}"
        );
        assert!(
            text.contains("5 recorded decisions\n       1  newly denied\n"),
            "{text}"
        );
        assert_eq!(report.json("s", "v")["counts"]["unchanged"], 3);
    }
}
