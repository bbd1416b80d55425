//! What a request is refused with. Published clients branch on the status and on `error`; people
//! read `error_description`, which says what to fix (spec: admin-api §2.1).

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use caracal_net::Problem;
use caracal_store::StoreError;
use http::StatusCode;
use serde_json::{Map, Value};

/// A refusal on its way to the wire, where [`Problem`] adds the request id.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// HTTP status.
    pub status: StatusCode,
    /// Wire code.
    pub error: &'static str,
    /// What to fix.
    pub description: Cow<'static, str>,
    /// Further members of the body: `details`, `valid`, `state` and the like.
    pub extra: Map<String, Value>,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
}

impl Failure {
    /// Any refusal.
    pub fn new(
        status: StatusCode,
        error: &'static str,
        description: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            error,
            description: description.into(),
            extra: Map::new(),
            retry_after: None,
        }
    }

    /// 400.
    pub fn bad(error: &'static str, description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, description)
    }

    /// 401.
    pub fn unauthenticated(error: &'static str, description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error, description)
    }

    /// 403.
    pub fn forbidden(error: &'static str, description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error, description)
    }

    /// 404.
    pub fn absent(error: &'static str, description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error, description)
    }

    /// 409.
    pub fn conflict(error: &'static str, description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, error, description)
    }

    /// 422.
    pub fn unprocessable(error: &'static str, description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error, description)
    }

    /// 429, to be tried again after `seconds`.
    pub fn rate_limited(seconds: u32) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limited",
            "too many requests; wait as long as Retry-After says",
        )
        .retry_after(seconds)
    }

    /// 503, to be tried again at once.
    pub fn unavailable(error: &'static str, description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error, description).retry_after(1)
    }

    /// 500: our fault, and nothing that the caller could fix.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "the request could not be completed; report it with its request id",
        )
    }

    /// No such route.
    pub fn no_route() -> Self {
        Self::absent("not_found", "no such route")
    }

    /// The same, with `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The same, with one more member in the body.
    #[must_use]
    pub fn with(mut self, member: &str, value: Value) -> Self {
        self.extra.insert(member.to_owned(), value);
        self
    }
}

impl From<StoreError> for Failure {
    /// For what no handler expects: those that do match on the error before they use `?`.
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Unreachable { .. } | StoreError::Busy { .. } => {
                tracing::warn!(%error, "store not available");
                Self::unavailable(
                    "store_unavailable",
                    "the store cannot be reached; try again",
                )
            }
            _ if error.is_unrecorded() => {
                tracing::error!(%error, "a change was not made: it cannot be recorded");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "audit_unavailable",
                    "the change cannot be recorded, so it was not made; try again",
                )
            }
            _ => {
                tracing::error!(%error, "unexpected answer of the store");
                Self::internal()
            }
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let mut problem = Self::new(failure.status, failure.error).because(failure.description);
        for (name, value) in failure.extra {
            problem = problem.with(name, value);
        }
        match failure.retry_after {
            Some(seconds) => problem.retry_after(seconds),
            None => problem,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}
