//! The exchange of an ingress mandate for an upstream directive (spec: gateway §9).

use std::time::Duration;

use async_trait::async_trait;
use caracal_model::{Mandate, Refused, RequestId, Secret};
use caracal_net::breaker::Circuit;
use http::StatusCode;
use serde_json::{Map, Value};

use crate::directive::Directive;

/// Where exchanges are decided.
#[async_trait]
pub trait Exchange: Send + Sync {
    /// Exchanges one verified mandate. Evidence of the decision is written before the answer.
    ///
    /// # Errors
    /// What the caller of the Gateway is to be told.
    async fn exchange(&self, request: GatewayExchange<'_>)
    -> Result<GatewayGrant, ExchangeRefused>;

    /// Whether the STS can be reached, for readiness.
    async fn healthy(&self) -> bool;

    /// The circuit in front of the STS, for metrics. A function call needs none.
    fn circuit(&self) -> Circuit {
        Circuit::default()
    }
}

/// One exchange. The Gateway has verified the mandate and claimed its `jti`.
#[derive(Clone, Copy, Debug)]
pub struct GatewayExchange<'a> {
    /// The bearer as it arrived.
    pub token: &'a str,
    /// Its verified claims.
    pub mandate: &'a Mandate,
    /// `X-Caracal-Resource`.
    pub resource: &'a str,
    /// The inbound method.
    pub method: &'a str,
    /// The decoded inbound path.
    pub path: &'a str,
    /// The id of the request; equal to `X-Request-Id`.
    pub request_id: &'a RequestId,
    /// How long the Gateway waits for the outcome.
    pub within: Duration,
}

/// What the STS granted.
#[derive(Debug)]
pub struct GatewayGrant {
    /// Where to and with which credential.
    pub directive: Directive,
    /// Whole seconds that the grant lasts.
    pub expires_in: i64,
    /// The `use=resource` mandate; absent when the upstream does not receive one.
    pub access_token: Option<Secret<String>>,
}

/// A refused exchange, as the caller of the Gateway is told of it. Unlike [`Refused`] it can carry
/// codes and members that only the STS knows, such as those of an approval.
#[derive(Clone, Debug, PartialEq)]
pub struct ExchangeRefused(Box<Parts>);

#[derive(Clone, Debug, PartialEq)]
struct Parts {
    status: StatusCode,
    error: String,
    description: String,
    retry_after: Option<u32>,
    members: Map<String, Value>,
}

impl ExchangeRefused {
    /// A refusal with this status, wire code and description.
    pub fn new(
        status: StatusCode,
        error: impl Into<String>,
        description: impl Into<String>,
    ) -> Self {
        Self(Box::new(Parts {
            status,
            error: error.into(),
            description: description.into(),
            retry_after: None,
            members: Map::new(),
        }))
    }

    /// Sets `Retry-After`, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: Option<u32>) -> Self {
        self.0.retry_after = seconds;
        self
    }

    /// Sets the further members of the body, such as those of an approval.
    #[must_use]
    pub fn members(mut self, members: Map<String, Value>) -> Self {
        self.0.members = members;
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

    /// `error_description`.
    pub fn description(&self) -> &str {
        &self.0.description
    }

    /// Whether the STS itself failed, rather than refused: what the circuit breaker counts (spec:
    /// gateway §9.4).
    pub fn is_failure(&self) -> bool {
        self.0.error == "sts_unavailable" && self.0.status.is_server_error()
    }
}

impl From<Refused> for ExchangeRefused {
    fn from(refused: Refused) -> Self {
        let row = refused.refusal.row();
        let status = StatusCode::from_u16(row.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, row.error, refused.description).retry_after(refused.retry_after)
    }
}

impl From<ExchangeRefused> for caracal_net::Problem {
    fn from(refused: ExchangeRefused) -> Self {
        let Parts {
            status,
            error,
            description,
            retry_after,
            members,
        } = *refused.0;
        let mut problem = Self::new(status, error).because(description);
        // Decision 5: whoever may come back is told when, on every 429 and 503.
        let later = matches!(status.as_u16(), 429 | 503).then_some(1);
        if let Some(seconds) = retry_after.or(later) {
            problem = problem.retry_after(seconds);
        }
        members
            .into_iter()
            .fold(problem, |problem, (name, value)| problem.with(name, value))
    }
}

impl std::fmt::Display for ExchangeRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {}: {}",
            self.0.status.as_u16(),
            self.0.error,
            self.0.description
        )
    }
}

impl std::error::Error for ExchangeRefused {}
