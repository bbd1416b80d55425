//! Every refusal on the wire has one shape: `error`, `error_description`, further members,
//! `requestId` and `request_id` (spec README, decision 20), and the id again in `X-Request-Id`.
//!
//! A [`Problem`] is made where something goes wrong, which rarely knows the request id. So it
//! travels in the extensions of its response, and [`crate::request_id::identify`] writes the body
//! anew with the id.

use std::borrow::Cow;

use axum::body::Body;
use axum::response::{IntoResponse, Response};

use caracal_model::{PendingApproval, Refused, RequestId};
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

/// The header that carries the request id.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLOSE: HeaderValue = HeaderValue::from_static("close");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An error answer.
#[derive(Clone, Debug)]
pub struct Problem(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    status: StatusCode,
    error: Cow<'static, str>,
    description: Cow<'static, str>,
    retry_after: Option<u32>,
    members: Vec<(Cow<'static, str>, Value)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// An error with this status and wire code.
    pub fn new(status: StatusCode, error: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            status,
            error: error.into(),
            description: Cow::Borrowed(""),
            retry_after: None,
            members: Vec::new(),
            headers: Vec::new(),
        }))
    }

    /// Our fault: 500 `internal_error`.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error")
    }

    /// Sets `error_description`. Empty text is left out.
    #[must_use]
    pub fn because(mut self, description: impl Into<Cow<'static, str>>) -> Self {
        self.0.description = description.into();
        self
    }

    /// Sets `Retry-After`, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after = Some(seconds);
        self
    }

    /// Adds a member to the body.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) -> Self {
        self.0.members.push((name.into(), value.into()));
        self
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The wire code.
    pub fn error(&self) -> &str {
        &self.0.error
    }

    /// `error_description`; empty when there is none.
    pub fn description(&self) -> &str {
        &self.0.description
    }

    /// The answer to the request of this id.
    pub fn respond(&self, id: Option<&RequestId>) -> Response {
        let mut body = serde_json::to_vec(&Envelope {
            problem: &self.0,
            id,
        })
        .unwrap_or_else(|_| br#"{"error":"internal_error"}"#.to_vec());
        body.push(b'\n');
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.0.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        if let Some(seconds) = self.0.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(
            self.0.status,
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT
        ) {
            // What is left of the body is not read: nothing can follow it on this connection.
            headers.insert(CONNECTION, CLOSE);
        }
        for (name, value) in &self.0.headers {
            headers.append(name, value.clone());
        }
        if let Some(id) = id {
            set_request_id(&mut response, id);
        }
        response
    }
}

/// Sets `X-Request-Id`, replacing what is there.
pub fn set_request_id(response: &mut Response, id: &RequestId) {
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
}

/// How a held caller is challenged.
const HELD: HeaderValue = HeaderValue::from_static("Bearer error=\"interaction_required\"");

impl Problem {
    /// The members and the header of a hold (spec: sts §2.8).
    fn held_by(mut self, approval: PendingApproval) -> Self {
        self = self
            .header(WWW_AUTHENTICATE, HELD)
            .with("approval_id", approval.id.as_str())
            .with("approval_type", "human_approval")
            .with("state", "pending");
        if !approval.tier.is_empty() {
            self = self.with("tier", approval.tier);
        }
        self.with("binding", approval.binding)
            .with("approval_expires_at", approval.expires_at.iso_seconds())
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let row = refused.refusal.row();
        let status = StatusCode::from_u16(row.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut problem = Self::new(status, row.error).because(refused.description);
        // Decision 5: whoever may come back is told when, on every 429 and 503.
        let later = matches!(row.status, 429 | 503).then_some(1);
        problem.0.retry_after = refused.retry_after.or(later);
        match refused.approval {
            Some(approval) => problem.held_by(*approval),
            None => problem,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.respond(None);
        response.extensions_mut().insert(self);
        response
    }
}

struct Envelope<'a> {
    problem: &'a Inner,
    id: Option<&'a RequestId>,
}

impl Serialize for Envelope<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut body = to.serialize_map(None)?;
        body.serialize_entry("error", &self.problem.error)?;
        if !self.problem.description.is_empty() {
            body.serialize_entry("error_description", &self.problem.description)?;
        }
        for (name, value) in &self.problem.members {
            body.serialize_entry(name, value)?;
        }
        if let Some(id) = self.id {
            body.serialize_entry("requestId", id)?;
            body.serialize_entry("request_id", id)?;
        }
        body.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::Refusal;
    use serde_json::json;

    async fn text(response: Response) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), 4096)
            .await
            .unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_envelope_names_the_request_twice_and_ends_with_a_line() {
        let id = RequestId::trusted("r-1");
        let problem = Problem::new(StatusCode::BAD_REQUEST, "invalid_zone")
            .because("name is required")
            .with("details", json!({"issues": []}));
        let response = problem.respond(Some(&id));
        assert_eq!(response.headers()[X_REQUEST_ID], "r-1");
        assert_eq!(
            text(response).await,
            concat!(
                r#"{"error":"invalid_zone","error_description":"name is required","#,
                r#""details":{"issues":[]},"requestId":"r-1","request_id":"r-1"}"#,
                "\n"
            )
        );
    }

    #[tokio::test]
    async fn a_hold_is_told_in_the_body_and_in_a_challenge() {
        let refused = Refusal::InteractionRequired
            .because("Human approval required")
            .until(PendingApproval {
                id: caracal_model::ApprovalId::trusted("5c0e"),
                tier: "high".to_owned(),
                binding: "ab".to_owned(),
                expires_at: caracal_model::Timestamp::from_unix_seconds(1_782_900_000),
            });
        let response = Problem::from(refused).respond(Some(&RequestId::trusted("r-1")));
        assert_eq!(response.status(), 401);
        assert_eq!(
            response.headers()["www-authenticate"],
            "Bearer error=\"interaction_required\""
        );
        assert_eq!(
            text(response).await,
            concat!(
                r#"{"error":"interaction_required","error_description":"Human approval required","#,
                r#""approval_id":"5c0e","approval_type":"human_approval","state":"pending","#,
                r#""tier":"high","binding":"ab","approval_expires_at":"2026-07-01T10:00:00Z","#,
                r#""requestId":"r-1","request_id":"r-1"}"#,
                "\n"
            )
        );
    }

    #[tokio::test]
    async fn a_refusal_for_now_says_when_to_come_back() {
        let refused = Refusal::Unavailable.because("store unreachable");
        let response = Problem::from(refused).respond(None);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        let denied = Problem::from(Refusal::AccessDenied.because("no")).respond(None);
        assert!(!denied.headers().contains_key(RETRY_AFTER));
    }
}
