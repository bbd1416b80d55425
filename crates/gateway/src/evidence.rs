//! What the Gateway puts on record (spec: gateway §14; better item 6).
//!
//! **Forces.** Once the directive is there, something may happen at the upstream, so a record must
//! come out of every way in which a call can end, the caller's hanging up included. A flood of
//! denials must not become a flood of records. **Choice.** An [`OpenCall`] owns the record from
//! that point on: it is closed with an outcome, or by its drop. Denials of proven mandates are
//! recorded one by one up to a rate, and counted beyond it; of all others, which anybody can cause,
//! one a minute is recorded for each cause, with the count of the rest.

use std::sync::Arc;
use std::time::Duration;

use caracal_crypto::digest::{hex_encode, sha256};
use caracal_evidence::{EvidenceError, EvidenceLog, Flood};
use caracal_ledger::{Event, Metadata};
use caracal_model::{Clock, EventId, Ids, Mandate, RequestId, SubjectType, ZoneId};
use caracal_net::Tasks;
use http::StatusCode;
use serde_json::json;

use crate::denial::{Cause, Denied, Whose};

/// Denials of one zone and cause that are recorded one by one within [`FLOOD`].
const ONE_BY_ONE: u32 = 20;
/// How long a count of denials runs.
const FLOOD: Duration = Duration::from_secs(10);
/// How long a count of denials of nobody in particular runs.
const UNPROVEN: Duration = Duration::from_secs(60);
/// The zone of events that belong to none.
const NO_ZONE: &str = "unknown";

/// Writes records.
pub struct Scribe {
    log: EvidenceLog,
    ids: Arc<Ids>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    flood: Flood<(ZoneId, Cause)>,
    unproven: Flood<Cause>,
}

/// The bearer, so that records of one mandate can be told to belong together: the first 8 bytes of
/// its digest.
pub fn fingerprint(bearer: &str) -> String {
    let digest = sha256(bearer.as_bytes());
    hex_encode(digest.get(..8).unwrap_or_default())
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its response was passed on, perhaps cut by a revocation.
    Executed,
    /// Its response broke after the head.
    CopyFailed,
    /// Its response was cut because revocations could not be known.
    CutBlind,
    /// No response.
    TransportError,
    /// The upstream may not be reached.
    NotAddressable,
    /// The credential may not be sent to that host.
    HostNotAllowed,
    /// The request could not be built.
    BuildFailed,
    /// The mandate was revoked before anything was sent.
    Revoked,
}

impl Ended {
    /// Decision, status and kind of error. What was never sent was denied (README, decision 17).
    const fn row(self) -> (&'static str, &'static str, Option<&'static str>) {
        match self {
            Self::Executed => ("allow", "executed", None),
            Self::CopyFailed => ("allow", "upstream_error", Some("response_copy_failed")),
            Self::CutBlind => ("allow", "executed", Some("revocation_state_unavailable")),
            Self::TransportError => ("allow", "upstream_error", Some("transport_error")),
            Self::NotAddressable => (
                "deny",
                "upstream_rejected",
                Some("upstream_not_addressable"),
            ),
            Self::HostNotAllowed => (
                "deny",
                "upstream_rejected",
                Some("provider_host_not_allowed"),
            ),
            Self::BuildFailed => ("deny", "build_failed", Some("request_build_failed")),
            Self::Revoked => ("deny", "revoked", None),
        }
    }
}

/// What a record says of a call. Never tokens, queries, paths, bodies or the subject.
#[derive(Debug)]
pub struct CallRecord {
    /// The mandate.
    pub mandate: Arc<Mandate>,
    /// The request.
    pub request_id: RequestId,
    /// The resource.
    pub resource: String,
    /// See [`fingerprint`].
    pub fingerprint: String,
    /// The inbound method.
    pub method: String,
    /// Of the forwarded `traceparent`.
    pub trace_id: Option<String>,
    /// Host of the directive.
    pub upstream_host: Option<String>,
    /// Mode of the directive.
    pub auth_mode: &'static str,
    /// Provider of the directive.
    pub provider_id: String,
    /// Connection of the directive.
    pub connection_id: String,
    /// What the caller got.
    pub gateway_status: u16,
    /// What the upstream said.
    pub upstream_status: Option<u16>,
    /// From the start of the request to the head of the response.
    pub latency_ms: u64,
    /// Bytes passed on.
    pub response_bytes: u64,
    /// Whether a revocation cut it.
    pub revoked: bool,
}

impl CallRecord {
    fn metadata(&self, error_kind: Option<&str>) -> Metadata {
        let kind = match self.mandate.sub_type {
            SubjectType::Application => "application",
            SubjectType::User => "user",
        };
        let mut metadata = Metadata::new();
        let mut text = |name: &'static str, value: &str| metadata.put(name, value);
        text("application_id", self.mandate.client_id.as_str());
        text("resource", &self.resource);
        text("subject_fingerprint", &self.fingerprint);
        text("subject_kind", kind);
        text("method", &self.method);
        text("auth_mode", self.auth_mode);
        for (name, known) in [
            ("trace_id", self.trace_id.as_deref()),
            ("upstream_host", self.upstream_host.as_deref()),
            ("provider_id", not_empty(&self.provider_id)),
            ("connection_id", not_empty(&self.connection_id)),
            ("error_kind", error_kind),
        ] {
            if let Some(known) = known {
                text(name, known);
            }
        }
        metadata.put("gateway_status", &self.gateway_status);
        metadata.put("latency_ms", &self.latency_ms);
        metadata.put("response_bytes", &self.response_bytes);
        if let Some(status) = self.upstream_status {
            metadata.put("upstream_status", &status);
            metadata.put("result_class", result_class(status));
        }
        if self.revoked {
            metadata.put("revocation_interrupted", &true);
        }
        metadata
    }
}

fn not_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn result_class(status: u16) -> &'static str {
    match status {
        200..=299 => "success",
        300..=399 => "redirect",
        400..=499 => "client_error",
        500.. => "server_error",
        _ => "unknown",
    }
}

impl Scribe {
    /// Writes into this log.
    pub fn new(log: EvidenceLog, ids: Arc<Ids>, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        Self {
            log,
            ids,
            clock,
            tasks,
            flood: Flood::new(ONE_BY_ONE, FLOOD),
            unproven: Flood::new(1, UNPROVEN),
        }
    }

    fn event(
        &self,
        zone: &ZoneId,
        event_type: &'static str,
        request_id: &str,
        decision: &'static str,
        status: &'static str,
    ) -> Event {
        let id = EventId::trusted(self.ids.uuid());
        let now = self.clock.now();
        Event::new(
            id,
            zone.clone(),
            event_type,
            request_id,
            decision,
            status,
            now,
        )
    }

    fn of_call(&self, record: &CallRecord, ended: Ended) -> Event {
        let (decision, status, error_kind) = ended.row();
        let zone = &record.mandate.zone_id;
        let id = record.request_id.as_str();
        self.event(zone, "gateway_resource_request", id, decision, status)
            .metadata(record.metadata(error_kind))
    }

    /// Records what has happened and cannot be refused any more.
    fn record_later(&self, event: Event) {
        let log = self.log.clone();
        self.tasks.spawn("gateway-evidence", async move {
            if let Err(error) = log.record_after_the_fact(&[event]).await {
                tracing::error!(%error, "evidence of a call was not recorded");
            }
        });
    }

    /// Records a denial of a proven mandate, unless there are too many to record one by one.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub async fn denied(
        &self,
        denied: &Denied,
        request_id: &RequestId,
        resource: &str,
        bearer: &str,
    ) -> Result<(), EvidenceError> {
        let Some(whose) = denied.whose() else {
            return Ok(());
        };
        let now = self.clock.ticks();
        let Some(before) = self.flood.admit(&(whose.zone.clone(), denied.cause()), now) else {
            return Ok(());
        };
        let id = request_id.as_str();
        let mut event = if denied.cause() == Cause::JtiReplay {
            let replay = replay(whose, id, resource, bearer);
            self.event(&whose.zone, "replay_detected", id, "deny", "anomaly")
                .metadata(replay)
        } else {
            let reason = denied.refused().refusal.row().reason;
            let mut members = Metadata::new();
            members.put("application_id", whose.application.as_str());
            members.put("resource", resource);
            members.put("reason", reason);
            members.put("subject_fingerprint", &fingerprint(bearer));
            self.event(&whose.zone, "gateway_request_denied", id, "deny", reason)
                .metadata(members)
        };
        if before > 0 {
            event.metadata_json.put("suppressed", &before);
        }
        self.log.record(&[event]).await
    }

    /// Records a denial of who has proven nothing, with how many there were like it; most are only
    /// counted.
    pub fn denied_unproven(&self, denied: &Denied, request_id: &RequestId) {
        if denied.whose().is_some() || !denied.cause().is_unproven() {
            return;
        }
        let Some(before) = self.unproven.admit(&denied.cause(), self.clock.ticks()) else {
            return;
        };
        let mut members = Metadata::new();
        members.put("reason", denied.cause().name());
        members.put("authenticated", &false);
        if before > 0 {
            members.put("suppressed", &before);
        }
        let reason = denied.refused().refusal.row().reason;
        let (zone, id) = (ZoneId::trusted(NO_ZONE), request_id.as_str());
        let event = self.event(&zone, "gateway_request_denied", id, "deny", reason);
        self.record_later(event.metadata(members));
    }

    /// Records how many denials were only counted, once their flood is over or it goes on.
    pub async fn settle_floods(&self, all: bool) {
        let now = self.clock.ticks();
        let unproven = self.unproven.overdue(now, all).into_iter();
        let unproven = unproven.map(|(cause, count)| ((ZoneId::trusted(NO_ZONE), cause), count));
        let proven = self.flood.overdue(now, all);
        for ((zone, cause), count) in proven.into_iter().chain(unproven) {
            let event_type = match cause {
                Cause::JtiReplay => "replay_detected",
                _ => "gateway_request_denied",
            };
            let reason = cause.name();
            let summary = json!({"aggregated": true, "suppressed": count, "reason": reason});
            let id = self.ids.uuid();
            let event = self
                .event(&zone, event_type, &id, "deny", "aggregated")
                .metadata(summary);
            if let Err(error) = self.log.record_after_the_fact(&[event]).await {
                tracing::error!(%error, "a summary of denials was not recorded");
            }
        }
    }
}

fn replay(whose: &Whose, request_id: &str, resource: &str, bearer: &str) -> Metadata {
    let mut members = Metadata::new();
    members.put("jti", whose.jti.as_str());
    members.put("resource", resource);
    members.put("client_id", whose.application.as_str());
    members.put("subject_fp", &fingerprint(bearer));
    members.put("request_id", request_id);
    members
}

/// A call that has its directive, and must leave a record.
pub struct OpenCall {
    scribe: Arc<Scribe>,
    record: Option<Box<CallRecord>>,
}

impl OpenCall {
    /// Opens it.
    pub fn new(scribe: Arc<Scribe>, record: CallRecord) -> Self {
        Self {
            scribe,
            record: Some(Box::new(record)),
        }
    }

    /// What is to be recorded; nothing once it was closed.
    pub fn record(&mut self) -> Option<&mut CallRecord> {
        self.record.as_deref_mut()
    }

    /// Closes it. The answer may leave once this has succeeded. Should it fail, the record is not
    /// given up, but the answer must not look complete.
    pub fn close(
        &mut self,
        ended: Ended,
    ) -> impl Future<Output = Result<(), EvidenceError>> + Send + 'static {
        let scribe = self.scribe.clone();
        let event = self
            .record
            .take()
            .map(|record| scribe.of_call(&record, ended));
        async move {
            let Some(event) = event else { return Ok(()) };
            let recorded = scribe.log.record(std::slice::from_ref(&event)).await;
            if recorded.is_err() {
                scribe.record_later(event);
            }
            recorded
        }
    }
}

impl Drop for OpenCall {
    /// The caller went away.
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else {
            return;
        };
        let ended = if record.upstream_status.is_some() {
            Ended::CopyFailed
        } else {
            record.gateway_status = CLIENT_GONE.as_u16();
            Ended::TransportError
        };
        let event = self.scribe.of_call(&record, ended);
        self.scribe.record_later(event);
    }
}

/// 499: the caller went away.
pub const CLIENT_GONE: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => StatusCode::BAD_REQUEST,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_that_of_the_specification() {
        assert_eq!(fingerprint("aaa.bbb.ccc"), "ce887a8eece06ba3");
    }

    #[test]
    fn results_have_a_class() {
        for (status, class) in [
            (200, "success"),
            (304, "redirect"),
            (404, "client_error"),
            (503, "server_error"),
        ] {
            assert_eq!(result_class(status), class);
        }
    }
}
