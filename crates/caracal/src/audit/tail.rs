//! `caracal audit tail`: the newest events, then every other one as it is appended, over a stream
//! that goes on where it was cut.

use std::collections::{HashSet, VecDeque};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::Value;

use super::events::{Events, Frame};
use super::{Reader, items};
use crate::cli::Api;
use crate::exit::Outcome;
use crate::term;

/// Ids remembered, so that what is both in the list and in the stream is printed once.
const REMEMBERED: usize = 20_000;
/// Waits between attempts to connect again.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES\n  caracal audit tail --decision deny\n  caracal audit tail --session 0198c0de-… --lines 0\n  caracal audit tail --once --json | jq .request_id"
)]
pub struct Tail {
    #[command(flatten)]
    api: Api,
    /// Zone to read [default: the only one]
    #[arg(long)]
    zone: Option<String>,
    /// Only this decision: allow, deny, or a step such as approved, started, revoked
    #[arg(long)]
    decision: Option<String>,
    /// Only these kinds of events
    #[arg(long, value_delimiter = ',')]
    event_type: Vec<String>,
    /// Only of this application
    #[arg(long, value_name = "ID")]
    application: Option<String>,
    /// Only of this Session
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only of Sessions with this label
    #[arg(long)]
    label: Option<String>,
    /// How many of the newest events to print first
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=1000))]
    lines: u16,
    /// Print those and end
    #[arg(long)]
    once: bool,
    /// Whole events, one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Why a stream was left.
enum Left {
    /// It may be opened again.
    Again,
    /// It may not.
    ForGood(String),
}

impl Tail {
    pub fn run(&self) -> Outcome {
        crate::up::small_runtime()?.block_on(async {
            let reader = Reader::open(&self.api)?;
            let zone = reader.zone(self.zone.as_deref()).await?;
            let mut seen = Seen::default();
            if self.once {
                self.newest(&reader, &zone, &mut seen).await?;
                return Ok(ExitCode::SUCCESS);
            }
            let path = self.path(&zone, "/stream", None);
            // Opened before the list is read, so that nothing falls between the two.
            let mut events = reader.events(&path, None).await?;
            self.newest(&reader, &zone, &mut seen).await?;
            term::progress(&format!("following zone {zone}; Ctrl-C ends"));
            let mut cursor = None;
            loop {
                match self.follow(&mut events, &mut cursor, &mut seen).await {
                    Left::Again => {}
                    Left::ForGood(why) => bail!("the stream ended: {why}"),
                }
                events = reopen(&reader, &path, cursor.as_deref()).await;
            }
        })
    }

    async fn newest(&self, reader: &Reader, zone: &str, seen: &mut Seen) -> anyhow::Result<()> {
        if self.lines == 0 {
            return Ok(());
        }
        let page = reader.get(&self.path(zone, "", Some(self.lines))).await?;
        // Newest first on the wire; a reader wants the newest last.
        let fresh: Vec<&Value> = items(&page).filter(|event| seen.is_new(event)).collect();
        fresh.into_iter().rev().for_each(|event| self.print(event));
        Ok(())
    }

    async fn follow(
        &self,
        events: &mut Events,
        cursor: &mut Option<String>,
        seen: &mut Seen,
    ) -> Left {
        loop {
            let Frame { kind, id, data } = match events.next().await {
                Ok(Some(frame)) => frame,
                // It broke, or its server went away.
                Ok(None) | Err(_) => return Left::Again,
            };
            if id.is_some() {
                *cursor = id;
            }
            let data: Value = serde_json::from_str(&data).unwrap_or(Value::Null);
            match kind.as_str() {
                "audit" if seen.is_new(&data) => self.print(&data),
                "end" => return left(&data),
                _ => {}
            }
        }
    }

    fn print(&self, event: &Value) {
        let text = if self.json {
            event.to_string()
        } else {
            line(event)
        };
        println!("{text}");
    }

    fn path(&self, zone: &str, which: &str, limit: Option<u16>) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        if let Some(limit) = limit {
            query.append_pair("limit", &limit.to_string());
        }
        let types = (!self.event_type.is_empty()).then(|| self.event_type.join(","));
        for (name, value) in [
            ("decision", &self.decision),
            ("event_type", &types),
            ("application_id", &self.application),
            ("session_id", &self.session),
            ("label", &self.label),
        ] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        format!("/v1/zones/{zone}/audit{which}?{}", query.finish())
    }
}

fn left(end: &Value) -> Left {
    match end.get("reason").and_then(Value::as_str) {
        Some("unauthorized") => Left::ForGood("the token is not good any more".to_owned()),
        _ => Left::Again,
    }
}

/// Tries until the stream is open again; says once that it is not. Waits before each attempt: who
/// answers with streams that end at once must not be asked without a pause.
async fn reopen(reader: &Reader, path: &str, cursor: Option<&str>) -> Events {
    let mut wait = FIRST_WAIT;
    let mut told = false;
    loop {
        tokio::time::sleep(wait).await;
        match reader.events(path, cursor).await {
            Ok(events) => return events,
            Err(error) if !told => {
                term::progress(&format!("{error}; trying again"));
                told = true;
            }
            Err(_) => {}
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Ids of events that were printed, the oldest forgotten first.
#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    fn is_new(&mut self, event: &Value) -> bool {
        let Some(id) = event.get("id").and_then(Value::as_str) else {
            return true;
        };
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

/// One line for a person: when, what, the verdict and why, who, on what, and the request's id.
fn line(event: &Value) -> String {
    let top = |field: &str| event.get(field).and_then(Value::as_str).unwrap_or("-");
    let about = |field: &str| {
        event
            .pointer(&format!("/metadata_json/{field}"))
            .and_then(Value::as_str)
            .unwrap_or("-")
    };
    let decision = match top("decision") {
        "allow" => term::green("allow"),
        "deny" => term::red("deny "),
        other => other.to_owned(),
    };
    format!(
        "{}  {decision}  {:<26} {:<22} {}  {}  {}",
        top("occurred_at"),
        top("event_type"),
        top("evaluation_status"),
        about("application_id"),
        about("resource"),
        term::dim(top("request_id")),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_printed_once_and_the_memory_is_bounded() {
        let mut seen = Seen::default();
        for n in 0..REMEMBERED + 10 {
            assert!(seen.is_new(&json!({ "id": n.to_string() })));
        }
        assert!(!seen.is_new(&json!({ "id": "100" })));
        assert_eq!(seen.ids.len(), REMEMBERED);
        assert!(
            seen.is_new(&json!({ "no": "id" })),
            "what cannot be told apart is printed"
        );
    }

    #[test]
    fn a_line_shows_what_is_missing_as_a_dash() {
        let line = line(&json!({ "decision": "deny", "event_type": "token_exchange" }));
        assert!(
            line.starts_with("-  ") && line.contains("token_exchange"),
            "{line}"
        );
    }
}
