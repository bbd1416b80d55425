//! `GET /v1/zones/{zone}/audit/stream`: the ledger of a zone as it grows, as server-sent events
//! (spec: audit-and-streams, better 11).
//!
//! A stream goes by place in the chain, not by time, so that what is ingested late is not missed.
//! It is resumable: every event carries a cursor as its id, which `Last-Event-ID` or `cursor` takes
//! back. The last event says why it ends; a client that wants to go on connects again, with the id.
//! The answer is made as it is read: a reader that takes nothing holds no more than its place, and
//! the server cuts it after a while.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::response::IntoResponse as _;
use caracal_crypto::digest::{b64url_decode, b64url_encode};
use caracal_model::{Secret, Ticks, ZoneId};
use caracal_store::audit_events::AuditEvent;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::tail::Listener;
use super::wanted::Wanted;
use super::{Shown, export};
use crate::admission;
use crate::failure::Failure;
use crate::query::Query;
use crate::service::Api;
use crate::wire::{Answer, At, Caller};

/// Silence after which a comment shows that the stream lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A stream ends after this, so that whoever reads it is asked again who they are.
const LONGEST: Duration = Duration::from_secs(900);
/// Events of the chain that are read at a time, and that one chunk holds.
const PAGE: u32 = 200;
const RETRY_MS: u32 = 2_000;

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The process stops; another one answers.
    Draining,
    /// The reader was too slow.
    SlowConsumer,
    /// The token is not good any more.
    Unauthorized,
    /// It lasted as long as a stream may.
    Renew,
    /// The ledger cannot be read.
    StoreUnavailable,
}

impl End {
    const fn reason(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::SlowConsumer => "slow_consumer",
            Self::Unauthorized => "unauthorized",
            Self::Renew => "renew",
            Self::StoreUnavailable => "store_unavailable",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Cursor {
    zone: ZoneId,
    seq: u64,
}

impl Cursor {
    fn encode(zone: &ZoneId, seq: u64) -> String {
        b64url_encode(json!({ "zone": zone, "seq": seq }).to_string().as_bytes())
    }

    fn decode(text: &str, zone: &ZoneId) -> Option<u64> {
        let bytes = b64url_decode(text).ok()?;
        let cursor: Self = serde_json::from_slice(&bytes).ok()?;
        (cursor.zone == *zone).then_some(cursor.seq)
    }
}

/// `GET /v1/zones/{zone}/audit/stream`
pub async fn stream(
    State(api): State<Arc<Api>>,
    at: At,
    caller: Caller,
    headers: HeaderMap,
    RawQuery(raw): RawQuery,
) -> Answer {
    let query = Query::parse(raw.as_deref());
    let wanted = Wanted::of(&query)?;
    query.word("format", &["json"])?;
    let fields = export::fields(query.text("fields", 4096)?)?;
    let resume = resume(&query, &headers, &at.zone)?;
    let joined = api.tails.join(&api.store, &at.zone).await?;
    let (listener, live_from, head) = joined.ok_or_else(too_many)?;
    let from = match (resume, wanted.since) {
        // Another replica may have been further than this one's tail is.
        (Some(seq), _) => seq.min(head.max(live_from)),
        (None, Some(since)) => {
            let audit = api.store.zone(&at.zone).audit();
            let first = audit.occurred_from(since).await?;
            first.map_or(live_from, |seq| seq.saturating_sub(1).min(live_from))
        }
        (None, None) => live_from,
    };
    let bearer = admission::bearer(&headers).map(|token| Secret::new(token.to_owned()));
    let began = api.clock.ticks();
    let state = Stream {
        api,
        zone: at.zone,
        caller,
        bearer,
        wanted,
        fields,
        listener,
        position: from,
        live_from,
        began,
        checked: began,
        spoke: began,
        lost_track: false,
        phase: Phase::Hello,
    };
    let body = Body::from_stream(stream::unfold(state, Stream::next));
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        ),
        (
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    Ok((headers, body).into_response())
}

/// Where to go on, if that was said. A browser that connects again sends the header.
fn resume(query: &Query<'_>, headers: &HeaderMap, zone: &ZoneId) -> Result<Option<u64>, Failure> {
    let wrong = || {
        Failure::bad(
            "invalid_cursor",
            "the cursor must be the id of an event of this stream",
        )
    };
    let last = match headers.get("last-event-id") {
        None => query.text("cursor", 512)?,
        Some(value) => Some(value.to_str().map_err(|_| wrong())?),
    };
    last.filter(|text| !text.is_empty())
        .map(|text| Cursor::decode(text, zone).ok_or_else(wrong))
        .transpose()
}

fn too_many() -> Failure {
    Failure::rate_limited(30).with("limit", json!("audit_streams"))
}

enum Phase {
    /// Nothing was sent.
    Hello,
    /// What is between the position and where the listener began.
    CatchingUp,
    /// What the listener hears.
    Live,
    /// The last event was sent.
    Ended,
}

struct Stream {
    api: Arc<Api>,
    zone: ZoneId,
    caller: Caller,
    bearer: Option<Secret<String>>,
    wanted: Wanted,
    fields: Option<Vec<&'static str>>,
    listener: Listener,
    /// The last place that was dealt with.
    position: u64,
    /// The listener hears everything after this.
    live_from: u64,
    began: Ticks,
    /// When the token was looked at last.
    checked: Ticks,
    /// When something was sent last.
    spoke: Ticks,
    /// The listener has missed something.
    lost_track: bool,
    phase: Phase,
}

type Chunk = Result<Bytes, Infallible>;

impl Stream {
    async fn next(mut self) -> Option<(Chunk, Self)> {
        let text = loop {
            let step = match self.phase {
                Phase::Hello => {
                    self.phase = Phase::CatchingUp;
                    let id = self.cursor();
                    Ok(format!(
                        "retry: {RETRY_MS}\nid: {id}\nevent: ready\ndata: {{}}\n\n"
                    ))
                }
                Phase::CatchingUp => self.catch_up().await,
                Phase::Live => self.listen().await,
                Phase::Ended => return None,
            };
            match step {
                Ok(text) if text.is_empty() => {}
                Ok(text) => {
                    self.spoke = self.api.clock.ticks();
                    break text;
                }
                Err(end) => {
                    if end == End::SlowConsumer {
                        self.api.tails.cut.inc();
                    }
                    self.phase = Phase::Ended;
                    break self.goodbye(end);
                }
            }
        };
        Some((Ok(Bytes::from(text)), self))
    }

    fn cursor(&self) -> String {
        Cursor::encode(&self.zone, self.position)
    }

    /// The next page of the chain, up to where the listener began.
    async fn catch_up(&mut self) -> Result<String, End> {
        if self.position >= self.live_from {
            self.phase = Phase::Live;
            return Ok(String::new());
        }
        if self.api.draining.is_cancelled() {
            return Err(End::Draining);
        }
        self.may_go_on().await?;
        let audit = self.api.store.zone(&self.zone).audit();
        let page = audit.chain(self.position, PAGE).await.map_err(|error| {
            tracing::warn!(%error, "a stream of the ledger could not read on");
            End::StoreUnavailable
        })?;
        let mut text = String::new();
        if page.is_empty() {
            // What was there is no longer kept.
            self.position = self.live_from;
        }
        for event in &page {
            self.take(event, &mut text);
        }
        Ok(text)
    }

    /// Waits for what is appended; a comment when that takes long.
    async fn listen(&mut self) -> Result<String, End> {
        if self.lost_track {
            return Err(End::SlowConsumer);
        }
        self.may_go_on().await?;
        let silent = self.api.clock.ticks().since(self.spoke);
        let Some(patience) = HEARTBEAT.checked_sub(silent) else {
            // Much may be heard of which nothing is wanted: the id moves on all the same.
            return Ok(format!(": still here\nid: {}\n\n", self.cursor()));
        };
        let draining = self.api.draining.clone();
        let heard = tokio::select! {
            () = draining.cancelled() => return Err(End::Draining),
            heard = self.listener.events.recv() => heard,
            () = tokio::time::sleep(patience) => return Ok(String::new()),
        };
        let mut text = String::new();
        match heard {
            Ok(event) => self.take(&event, &mut text),
            Err(RecvError::Lagged(_)) => return Err(End::SlowConsumer),
            Err(RecvError::Closed) => return Err(End::Draining),
        }
        // What else is there goes into the same chunk.
        for _ in 1..PAGE {
            match self.listener.events.try_recv() {
                Ok(event) => self.take(&event, &mut text),
                Err(TryRecvError::Lagged(_)) => {
                    self.lost_track = true;
                    break;
                }
                Err(_) => break,
            }
        }
        Ok(text)
    }

    /// A stream may last, but not longer than whoever reads it may read.
    async fn may_go_on(&mut self) -> Result<(), End> {
        let now = self.api.clock.ticks();
        if now.since(self.began) >= LONGEST {
            return Err(End::Renew);
        }
        if now.since(self.checked) < HEARTBEAT {
            return Ok(());
        }
        self.checked = now;
        let Some(bearer) = &self.bearer else {
            return Err(End::Unauthorized);
        };
        let found = self.api.tokens.actor_of(&self.api, bearer.expose()).await;
        let found = found.map_err(|_| End::StoreUnavailable)?;
        if found.is_some_and(|actor| actor.id == self.caller.actor.id) {
            Ok(())
        } else {
            Err(End::Unauthorized)
        }
    }

    fn take(&mut self, event: &AuditEvent, text: &mut String) {
        if event.chain_seq <= self.position {
            return;
        }
        self.position = event.chain_seq;
        if !self.wanted.takes(event) {
            return;
        }
        let shown = Shown::of(event);
        let data = match &self.fields {
            Some(fields) => Value::Object(export::flat(&shown, fields)),
            None => Value::Object(shown.row),
        };
        let id = self.cursor();
        // Compact JSON has no line feed.
        text.push_str(&format!("id: {id}\nevent: audit\ndata: {data}\n\n"));
    }

    fn goodbye(&self, end: End) -> String {
        let (id, reason) = (self.cursor(), end.reason());
        let data = json!({ "reason": reason, "cursor": id });
        format!("id: {id}\nevent: end\ndata: {data}\n\n")
    }
}
