//! `caracal audit tail`: polls, as every reader of the ledger does; there is no subscription.

use std::collections::{HashSet, VecDeque};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::{Reader, items};
use crate::cli::Api;
use crate::exit::Outcome;
use crate::term;

/// Events carry the time of the decision and arrive later, not always in order: each look goes
/// back over this many of the newest.
const OVERLAP: usize = 200;
/// Ids remembered, so that none is printed twice.
const REMEMBERED: usize = 20_000;

#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES\n  caracal audit tail --decision deny\n  caracal audit tail --once --json | jq .request_id"
)]
pub struct Tail {
    #[command(flatten)]
    api: Api,
    /// Zone to read [default: the only one]
    #[arg(long)]
    zone: Option<String>,
    /// Only this decision
    #[arg(long, value_parser = ["allow", "deny", "partial"])]
    decision: Option<String>,
    /// Only these kinds of events
    #[arg(long, value_delimiter = ',')]
    event_type: Vec<String>,
    /// Print what is there and end
    #[arg(long)]
    once: bool,
    /// Whole events, one JSON object a line
    #[arg(long)]
    json: bool,
    /// Seconds between two looks
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
}

impl Tail {
    pub fn run(&self) -> Outcome {
        crate::up::small_runtime()?.block_on(async {
            let reader = Reader::open(&self.api)?;
            let path = self.path(&reader.zone(self.zone.as_deref()).await?);
            let mut seen = Seen::default();
            loop {
                let page = reader.get(&path).await?;
                // Newest first on the wire; a reader wants the newest last.
                let fresh: Vec<&Value> = items(&page).filter(|event| seen.is_new(event)).collect();
                for event in fresh.into_iter().rev() {
                    println!(
                        "{}",
                        if self.json {
                            event.to_string()
                        } else {
                            line(event)
                        }
                    );
                }
                if self.once {
                    return Ok(ExitCode::SUCCESS);
                }
                tokio::time::sleep(Duration::from_secs(self.every)).await;
            }
        })
    }

    fn path(&self, zone: &str) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &OVERLAP.to_string());
        if let Some(decision) = &self.decision {
            query.append_pair("decision", decision);
        }
        if !self.event_type.is_empty() {
            query.append_pair("event_type", &self.event_type.join(","));
        }
        format!("/v1/zones/{zone}/audit?{}", query.finish())
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
