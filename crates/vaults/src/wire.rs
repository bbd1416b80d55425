//! Requests to a backend, and what may be told of its answers.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use caracal_net::egress::{Bounds, Fetcher, presentable};
use caracal_store::custody::BackendError;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Builder;
use http::{Method, Request, Response, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

/// Spec: admin-api §14.
const BOUNDS: Bounds = Bounds {
    within: Duration::from_secs(10),
    bytes: 256 * 1024,
};
/// What an error of a backend may add to a line of the log.
const TOLD: usize = 120;
/// What stands in a path segment as it is (RFC 3986 §2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The way to one backend.
#[derive(Clone, Debug)]
pub struct Wire {
    name: &'static str,
    fetch: Fetcher,
}

/// A whole answer.
pub type Answer = Response<Bytes>;

impl Wire {
    /// To the backend of this name.
    pub fn new(name: &'static str, fetch: Fetcher) -> Self {
        Self { name, fetch }
    }

    /// As `CARACAL_SECRET_BACKEND` names it.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// An error of this backend.
    pub fn failed(&self, why: impl Into<String>) -> BackendError {
        BackendError {
            backend: self.name,
            why: why.into(),
        }
    }

    /// Sends a request and waits for the whole answer, whatever its status.
    ///
    /// # Errors
    /// When there is none.
    pub async fn send(
        &self,
        request: Builder,
        body: impl Into<Bytes>,
    ) -> Result<Answer, BackendError> {
        let request: Request<Bytes> = request
            .body(body.into())
            .map_err(|_| self.failed("the request cannot be made: check the settings"))?;
        let answer = self.fetch.fetch(request, BOUNDS).await;
        answer.map_err(|error| self.failed(format!("no answer: {error}")))
    }

    /// The error that this answer is, when it is none that was hoped for.
    pub fn refused(&self, answer: &Answer) -> BackendError {
        let status = answer.status().as_u16();
        let mut why = format!("answered {status}");
        if let Some(code) = code(answer.body()) {
            why.push_str(": ");
            why.push_str(&code);
        }
        self.failed(why)
    }

    /// The body of a successful answer.
    ///
    /// # Errors
    /// When it was none, or is not what it should be.
    pub fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, BackendError> {
        if !answer.status().is_success() {
            return Err(self.refused(answer));
        }
        // What serde says may repeat what it read.
        serde_json::from_slice(answer.body())
            .map_err(|_| self.failed("the answer is not what it should be"))
    }

    /// Whether what was asked has happened.
    ///
    /// # Errors
    /// When it has not.
    pub fn done(&self, answer: &Answer) -> Result<(), BackendError> {
        if answer.status().is_success() {
            return Ok(());
        }
        Err(self.refused(answer))
    }

    /// As [`Wire::done`]; what is not there is deleted already.
    ///
    /// # Errors
    /// When it has not.
    pub fn gone(&self, answer: &Answer) -> Result<(), BackendError> {
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(());
        }
        self.done(answer)
    }

    /// An envelope from its text.
    ///
    /// # Errors
    /// When it is not base64.
    pub fn decode(&self, text: &str) -> Result<Vec<u8>, BackendError> {
        let decoded = STANDARD.decode(text.trim());
        decoded.map_err(|_| self.failed("holds a value that is not base64"))
    }

    /// A header that is never shown.
    ///
    /// # Errors
    /// When the secret has characters that no header may have.
    pub fn hidden(&self, secret: &str) -> Result<HeaderValue, BackendError> {
        let mut value = HeaderValue::from_str(secret)
            .map_err(|_| self.failed("the token has characters that no header may have"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// An envelope as text.
pub fn encode(envelope: &[u8]) -> String {
    STANDARD.encode(envelope)
}

/// A request with a JSON body.
pub fn json(method: Method, uri: &str) -> Builder {
    Request::builder()
        .method(method)
        .uri(uri)
        .header(CONTENT_TYPE, "application/json")
}

/// A path below a base, without doubling the slash between them.
pub fn below(base: &Url, path: &str) -> String {
    format!("{}/{path}", base.as_str().trim_end_matches('/'))
}

/// A reference as a path: its slashes stay.
pub fn path(at: &str) -> String {
    let segments = at.split('/').map(segment);
    segments.collect::<Vec<_>>().join("/")
}

/// Text as one segment of a path, or as a value of a query.
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// What the backend calls its error, in any of their dialects: a short text. A backend that repeats
/// what it was shown, or a stranger that sits in its place, does not get that into our log.
fn code(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let places = [
        "/error/innererror/code",
        "/error/code",
        "/error/status",
        "/error",
        "/errors/0",
        "/__type",
    ];
    let texts = places.iter().filter_map(|at| body.pointer(at)?.as_str());
    let text = texts.into_iter().next()?;
    Some(presentable(text, TOLD))
}
