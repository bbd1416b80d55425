//! What a policy-set version would have decided about requests that were decided already.
//!
//! **Choice.** A page of events is asked again, newest first, and only what differs is shown; the
//! caller turns the pages, so that no request takes long. A candidate that is slow ends its page
//! early, with a cursor that goes on there. Nothing is put in force and nothing is recorded: it is a
//! read.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use caracal_model::policy::{Contract, PolicyResult};
use caracal_policy::{not_recorded, recorded};
use caracal_store::audit_events::{AuditEvent, AuditFilter};
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::manifest::Manifest;
use crate::page::{Cursor, Page};
use crate::policy_sets::{documents, no_set};
use crate::query::Query;
use crate::rego;
use crate::service::Api;
use crate::wire::{self, Answer, At};

/// The events that policy decides.
const DECISIONS: [&str; 1] = ["token_exchange"];
/// How long a candidate is asked about the events of one page; a request may take less.
const WITHIN: Duration = Duration::from_secs(10);

/// `GET /v1/zones/{zone}/policy-sets/{id}/versions/{version}/replay`
pub async fn replay(State(api): State<Arc<Api>>, at: At, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let filter = AuditFilter {
        since: query.time("since")?,
        until: query.time("until")?,
        decision: None,
        event_types: &DECISIONS,
        request_id: None,
        application_id: query.text("application_id", 128)?,
        session_id: None,
        authority_record_id: None,
        label: None,
    };
    let page = Page::of(&query, 200, 1000)?;
    let sets = api.store.zone(&at.zone).policy_sets();
    sets.get(&at.id).await?.ok_or_else(|| no_set(&at.id))?;
    let version = sets.version(&at.id, &at.version).await?.ok_or_else(|| {
        let why = format!("there is no version {} of this set", at.version);
        Failure::absent("policy_set_version_not_found", why)
    })?;
    let documents = documents(&api, &at.zone, &Manifest::of(&version)?).await?;
    let after = page.after.as_ref();
    let after = after.map(|cursor| (cursor.at, cursor.id.as_str()));
    let audit = api.store.zone(&at.zone).audit();
    let events = audit.page(&filter, after, page.limit).await?;

    let texts = rego::texts(documents.clone());
    let reads = rego::off_the_runtime(move || caracal_policy::inputs_read(&texts));
    let candidate = Candidate {
        reads: reads.await?.unwrap_or_default(),
        contract: rego::compile(documents).await?,
    };
    let full = events.len() >= usize::try_from(page.limit).unwrap_or(usize::MAX);
    let clock = Arc::clone(&api.clock);
    let patience = WITHIN.min(api.config.request_timeout / 2);
    let (next, report) = rego::off_the_runtime(move || {
        let began = clock.ticks();
        let mut report = Report::default();
        let mut rest = events.iter();
        let mut last = None;
        for event in rest.by_ref() {
            report.add(event, candidate.ask(event));
            last = Some(event);
            if clock.ticks().since(began) >= patience {
                break;
            }
        }
        let more = full || rest.next().is_some();
        let next = last.filter(|_| more).map(|last| Cursor {
            at: last.occurred_at,
            id: last.id.clone(),
        });
        (next, report)
    })
    .await?;
    let mut answer = report.show();
    answer.insert("policy_set_id".to_owned(), json!(at.id));
    answer.insert("version_id".to_owned(), json!(version.id));
    answer.insert("manifest_sha256".to_owned(), json!(version.manifest_sha256));
    let next = next.as_ref().map(Cursor::encode);
    answer.insert("next_cursor".to_owned(), json!(next));
    wire::ok(Value::Object(answer))
}

/// The version that is asked again.
struct Candidate {
    contract: Arc<dyn Contract>,
    reads: Vec<String>,
}

/// What a replay makes of one event.
#[derive(Debug)]
enum Outcome {
    /// Policy was not asked then: something else had refused before.
    NotAsked,
    /// Both answers, and whether they are the same.
    Answered {
        was: String,
        now: &'static str,
        rule: String,
    },
    /// It cannot be known, and why.
    Undecidable(String),
}

impl Candidate {
    fn ask(&self, event: &AuditEvent) -> Outcome {
        let Ok(text) = serde_json::from_str::<Map<String, Value>>(&event.event) else {
            return Outcome::Undecidable("the event does not read".to_owned());
        };
        let asked = text.get("manifest_sha").and_then(Value::as_str);
        if asked.is_none_or(str::is_empty) {
            return Outcome::NotAsked;
        }
        let of = |name: &str| text.get("metadata_json")?.get(name);
        let was = of("policy_decision").and_then(Value::as_str);
        let question = of("policy_input").and_then(|kept| recorded(kept, &event.request_id));
        let (Some(was), Some(question)) = (was, question) else {
            let why = "the event does not hold what policy was asked";
            return Outcome::Undecidable(why.to_owned());
        };
        if let Some(path) = not_recorded(&self.reads, &question) {
            let why = format!("the candidate reads {path}, which evidence does not keep");
            return Outcome::Undecidable(why);
        }
        match self.contract.evaluate(&question) {
            Ok(answer) => Outcome::Answered {
                was: was.to_owned(),
                now: word(&answer),
                rule: rule(&answer),
            },
            Err(fault) => Outcome::Undecidable(format!("the candidate fails: {}", fault.0)),
        }
    }
}

/// The answer in a word, as evidence has it.
pub fn word(answer: &PolicyResult) -> &'static str {
    match (answer.allow, answer.step_up()) {
        (true, None) => "allow",
        (true, Some(_)) => "hold",
        (false, _) => "deny",
    }
}

fn rule(answer: &PolicyResult) -> String {
    match answer.reason() {
        Some(reason) if !answer.allow => reason.to_owned(),
        _ => answer.determining.join(", "),
    }
}

/// What changes from one answer to the other; `None` when nothing does. A failure granted nothing,
/// which for whoever asked is a denial.
fn change(was: &str, now: &str) -> Option<&'static str> {
    let was = if was == "fault" { "deny" } else { was };
    match (was, now) {
        (was, now) if was == now => None,
        (_, "allow") => Some("newly_allowed"),
        (_, "hold") => Some("newly_held"),
        _ => Some("newly_denied"),
    }
}

/// Counts of a page, and the events that make a difference.
#[derive(Debug, Default)]
struct Report {
    examined: u32,
    counts: Counts,
    items: Vec<Value>,
}

#[derive(Debug, Default, serde::Serialize)]
struct Counts {
    not_asked: u32,
    unchanged: u32,
    newly_allowed: u32,
    newly_held: u32,
    newly_denied: u32,
    undecidable: u32,
}

impl Report {
    fn add(&mut self, event: &AuditEvent, outcome: Outcome) {
        self.examined += 1;
        match outcome {
            Outcome::NotAsked => self.counts.not_asked += 1,
            Outcome::Undecidable(why) => {
                self.counts.undecidable += 1;
                self.items
                    .push(item(event, "undecidable", json!({ "reason": why })));
            }
            Outcome::Answered { was, now, rule } => {
                let count = match change(&was, now) {
                    None => {
                        self.counts.unchanged += 1;
                        return;
                    }
                    Some("newly_allowed") => &mut self.counts.newly_allowed,
                    Some("newly_held") => &mut self.counts.newly_held,
                    Some(_) => &mut self.counts.newly_denied,
                };
                *count += 1;
                let more = json!({
                    "recorded": { "decision": was },
                    "candidate": { "decision": now, "rule": rule },
                });
                let what = change(&was, now).unwrap_or_default();
                self.items.push(item(event, what, more));
            }
        }
    }

    fn show(self) -> Map<String, Value> {
        let mut members = Map::new();
        members.insert("examined".to_owned(), json!(self.examined));
        members.insert("counts".to_owned(), json!(self.counts));
        members.insert("items".to_owned(), json!(self.items));
        members
    }
}

/// An event as the report shows it: enough to find it and to say what it was about.
fn item(event: &AuditEvent, change: &str, more: Value) -> Value {
    let text: Value = serde_json::from_str(&event.event).unwrap_or_default();
    let of = |name: &str| text.pointer(&format!("/metadata_json/{name}")).cloned();
    let version = text.get("policy_set_version_id").cloned();
    let mut item = json!({
        "change": change,
        "event_id": event.id,
        "request_id": event.request_id,
        "occurred_at": event.occurred_at.iso_millis(),
        "application_id": event.application_id,
        "agent_session_id": event.agent_session_id,
        "resource": of("resource"),
        "requested_scopes": of("requested_scopes"),
        "method": of("method"),
        "path": of("path"),
    });
    if let (Some(members), Value::Object(more)) = (item.as_object_mut(), more) {
        members.extend(more);
        if let (Some(Value::Object(recorded)), Some(version)) =
            (members.get_mut("recorded"), version)
        {
            recorded.insert("policy_set_version_id".to_owned(), version);
        }
    }
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_named_by_what_the_caller_would_see() {
        for (was, now, expected) in [
            ("allow", "allow", None),
            ("deny", "deny", None),
            ("hold", "hold", None),
            ("fault", "deny", None),
            ("deny", "allow", Some("newly_allowed")),
            ("hold", "allow", Some("newly_allowed")),
            ("fault", "allow", Some("newly_allowed")),
            ("allow", "hold", Some("newly_held")),
            ("deny", "hold", Some("newly_held")),
            ("allow", "deny", Some("newly_denied")),
            ("hold", "deny", Some("newly_denied")),
        ] {
            assert_eq!(change(was, now), expected, "{was} {now}");
        }
    }
}
