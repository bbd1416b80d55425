//! `/api/audit/dlq`: what could not be appended, and what to do about it (spec: audit-and-streams
//! §10). Ours beyond that: filters, replay by id or reason, and purge.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::response::{IntoResponse, Response};
use caracal_bus::Position;
use caracal_ledger::Event;
use http::StatusCode;
use http::request::Parts;
use serde_json::{Value, json};

use super::Service;
use super::search::refuse;
use crate::dead_letters::{Letter, LettersError};

const LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;
/// Letters that one request looks at, at most; where it stopped is its cursor.
const MOST_SCANNED: usize = 10_000;

/// Letters that are read at a time where there is a filter.
const PAGE: usize = 250;

type Asked = HashMap<String, String>;

/// Which letters a request is about.
#[derive(Default)]
struct Selection {
    start: Position,
    limit: usize,
    ids: Vec<Position>,
    reason: Option<String>,
    older_than: Option<Duration>,
}

fn bad(what: &'static str) -> Response {
    (StatusCode::BAD_REQUEST, what).into_response()
}

fn unreachable(error: &LettersError) -> Response {
    tracing::warn!(%error, "dead letters cannot be reached");
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "dead letters cannot be reached",
    )
        .into_response()
}

impl Selection {
    fn parse(asked: &Asked) -> Result<Self, &'static str> {
        let text = |name: &str| asked.get(name).map(String::as_str);
        let position = |text: &str| {
            // A bare number of milliseconds is what a stream takes for their first entry.
            let whole = text.parse().or_else(|_| format!("{text}-0").parse());
            whole.map_err(|_| "a place is two numbers with a dash between them")
        };
        let limit = text("limit").map_or(Some(LIMIT), |limit| limit.parse().ok());
        let limit = limit
            .filter(|limit| (1..=MAX_LIMIT).contains(limit))
            .ok_or("limit is a number from 1 to 1000")?;
        let ids = text("id").map_or_else(
            || Ok(Vec::new()),
            |ids| ids.split(',').map(position).collect(),
        )?;
        if ids.len() > MAX_LIMIT {
            return Err("id names at most 1000 letters");
        }
        let older_than = text("older_than_seconds")
            .map(|seconds| seconds.parse().map(Duration::from_secs))
            .transpose()
            .map_err(|_| "older_than_seconds is a whole number")?;
        Ok(Self {
            start: text("start").map_or(Ok(Position::START), position)?,
            limit,
            ids,
            reason: text("reason")
                .filter(|reason| !reason.is_empty())
                .map(str::to_owned),
            older_than,
        })
    }

    fn is_everything(&self) -> bool {
        self.ids.is_empty() && self.reason.is_none() && self.older_than.is_none()
    }

    fn takes(&self, letter: &Letter, age: Duration) -> bool {
        let reason = self
            .reason
            .as_ref()
            .is_none_or(|reason| letter.is_for(reason));
        reason && self.older_than.is_none_or(|least| age > least)
    }
}

/// What was looked at, what of it was chosen, and where to go on.
struct Chosen {
    letters: Vec<Letter>,
    scanned: usize,
    last: Option<Position>,
}

impl Service {
    async fn choose(&self, of: &Selection) -> Result<Chosen, LettersError> {
        let all = self.ingest.dead_letters();
        let now = all.now();
        let mut chosen = Chosen {
            letters: Vec::new(),
            scanned: 0,
            last: None,
        };
        if !of.ids.is_empty() {
            for id in &of.ids {
                chosen.scanned += 1;
                chosen.letters.extend(all.get(*id).await?);
            }
            return Ok(chosen);
        }
        // Few are asked for; how many are looked at for them depends on the filter.
        let at_a_time = if of.is_everything() {
            of.limit
        } else {
            of.limit.max(PAGE)
        };
        let mut from = of.start;
        while chosen.letters.len() < of.limit && chosen.scanned < MOST_SCANNED {
            let page = all.list(from, at_a_time).await?;
            let is_last = page.len() < at_a_time;
            for letter in page {
                if chosen.letters.len() == of.limit {
                    break;
                }
                chosen.scanned += 1;
                chosen.last = Some(letter.position);
                from = letter.position.next();
                if of.takes(&letter, now.since(letter.received_at())) {
                    chosen.letters.push(letter);
                }
            }
            if is_last {
                break;
            }
        }
        Ok(chosen)
    }

    fn entry(&self, letter: &Letter) -> Value {
        let event = letter.text().and_then(|text| Event::parse(text).ok());
        let of = |read: fn(&Event) -> &str| event.as_ref().map_or("", read);
        let received_at = letter.received_at();
        json!({
            "id": letter.position.to_string(),
            "source_id": letter.field("src_id"),
            "reason": letter.reason(),
            "received_at": received_at.iso_millis(),
            "age_seconds": self.ingest.dead_letters().now().since(received_at).as_secs(),
            "replayable": letter.is_replayable(),
            "event_id": of(|event| event.id.as_str()),
            "zone_id": of(|event| event.zone_id.as_str()),
            "event_type": of(|event| &event.event_type),
            "request_id": of(|event| &event.request_id),
            "decision": of(|event| &event.decision),
            "source_sig": letter.field("src_sig"),
        })
    }

    /// Puts these back; answers with how many are no dead letters any more.
    async fn replay(&self, letters: &[&Letter]) -> Result<usize, LettersError> {
        if letters.is_empty() {
            return Ok(0);
        }
        let letters_at = self.ingest.dead_letters();
        if let Some(sent) = letters_at.send_again(letters).await? {
            return Ok(sent);
        }
        let mut taken = 0;
        for letter in letters {
            taken += usize::from(self.ingest.take_back(letter).await?);
        }
        Ok(taken)
    }
}

/// Somebody who has the token, and the letters that the query is about.
pub(super) struct Admitted(Selection);

impl FromRequestParts<Arc<Service>> for Admitted {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        service: &Arc<Service>,
    ) -> Result<Self, Response> {
        if let Some(refusal) = refuse(service, &parts.headers) {
            return Err(refusal);
        }
        let asked = Query::<Asked>::try_from_uri(&parts.uri);
        let asked = asked.map_err(|_| bad("the query cannot be read"))?;
        Selection::parse(&asked).map(Self).map_err(bad)
    }
}

fn answer(outcome: Result<Value, LettersError>) -> Response {
    match outcome {
        Ok(body) => Json(body).into_response(),
        Err(error) => unreachable(&error),
    }
}

fn text_of(position: Option<Position>) -> String {
    position.map(|at| at.to_string()).unwrap_or_default()
}

/// `GET /api/audit/dlq?limit&start&reason`
pub(super) async fn list(
    State(service): State<Arc<Service>>,
    Admitted(selection): Admitted,
) -> Response {
    let chosen = service.choose(&selection).await;
    answer(chosen.map(|chosen| {
        let entry = |letter| service.entry(letter);
        let entries: Vec<Value> = chosen.letters.iter().map(entry).collect();
        json!({"entries": entries, "next_cursor": text_of(chosen.last)})
    }))
}

/// `GET /api/audit/dlq/{id}`
pub(super) async fn one(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
    Admitted(_): Admitted,
) -> Response {
    let found = match id.parse() {
        Ok(id) => service.ingest.dead_letters().get(id).await,
        Err(_) => Ok(None),
    };
    match found {
        Ok(Some(letter)) => {
            let mut entry = service.entry(&letter);
            if let Some(entry) = entry.as_object_mut() {
                let source = letter
                    .text()
                    .and_then(|text| serde_json::from_str(text).ok());
                entry.insert("source_event".to_owned(), source.unwrap_or(Value::Null));
                entry.insert("fields".to_owned(), json!(letter.fields));
            }
            Json(entry).into_response()
        }
        Ok(None) => absent(),
        Err(error) => unreachable(&error),
    }
}

fn absent() -> Response {
    (StatusCode::NOT_FOUND, "no such dead letter").into_response()
}

/// `POST /api/audit/dlq/replay?limit&start&reason&id`: without a reason or ids, what is replayable
/// among the oldest; with them, whatever they name, since it is verified again on its way.
pub(super) async fn replay(
    State(service): State<Arc<Service>>,
    Admitted(selection): Admitted,
) -> Response {
    let outcome = async {
        let chosen = service.choose(&selection).await?;
        let named = !selection.ids.is_empty() || selection.reason.is_some();
        let letters: Vec<&Letter> = chosen
            .letters
            .iter()
            .filter(|letter| letter.is_replayable() || named && letter.text().is_some())
            .collect();
        let (scanned, replayed) = (chosen.scanned, service.replay(&letters).await?);
        tracing::info!(scanned, replayed, "dead letters were replayed");
        Ok(json!({
            "scanned": scanned,
            "replayed": replayed,
            "skipped": scanned.saturating_sub(replayed),
            "next_cursor": text_of(chosen.last),
        }))
    };
    answer(outcome.await)
}

/// `DELETE /api/audit/dlq?id&reason&older_than_seconds&limit`: evidence that nobody will have any
/// more, so it must say which.
pub(super) async fn purge(
    State(service): State<Arc<Service>>,
    Admitted(selection): Admitted,
) -> Response {
    if selection.is_everything() {
        return bad("say which: id, reason or older_than_seconds");
    }
    let outcome = async {
        let chosen = service.choose(&selection).await?;
        let places: Vec<Position> = chosen.letters.iter().map(|one| one.position).collect();
        let purged = service.ingest.dead_letters().remove(&places).await?;
        let (scanned, next_cursor) = (chosen.scanned, text_of(chosen.last));
        tracing::warn!(scanned, purged, "dead letters were purged");
        Ok(json!({"scanned": scanned, "purged": purged, "next_cursor": next_cursor}))
    };
    answer(outcome.await)
}

/// `DELETE /api/audit/dlq/{id}`
pub(super) async fn purge_one(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
    Admitted(_): Admitted,
) -> Response {
    let removed = match id.parse() {
        Ok(id) => service.ingest.dead_letters().remove(&[id]).await,
        Err(_) => Ok(0),
    };
    match removed {
        Ok(0) => absent(),
        Ok(_) => {
            tracing::warn!(id, "a dead letter was purged");
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => unreachable(&error),
    }
}
