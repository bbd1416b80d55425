//! The exchange over HTTP, signed (spec: gateway §9.1 to §9.4).

mod answer;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use caracal_crypto::digest::{hex_encode, sha256};
use caracal_crypto::mac::{GatewaySignature, HmacKey};
use caracal_model::{Clock, Rng};
use caracal_net::breaker::{Breaker, Circuit};
use caracal_net::egress::{ForwardBody, ForwardError, Forwarder};
use caracal_net::trace::{TRACEPARENT, current_trace};
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use url::Url;

use crate::exchange::{Exchange, ExchangeRefused, GatewayExchange, GatewayGrant};

const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const AGENT: HeaderValue = HeaderValue::from_static("caracal-gateway");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-caracal-gateway-timestamp");
const NONCE: HeaderName = HeaderName::from_static("x-caracal-gateway-request");
const SIGNATURE: HeaderName = HeaderName::from_static("x-caracal-gateway-signature");
/// How long we wait, in milliseconds, so that the STS answers before. It need not be signed: made
/// short it denies, and the STS has a limit of its own.
const WAITS: HeaderName = HeaderName::from_static("x-caracal-gateway-timeout");

/// Failures in a row that open the circuit.
const FAILURES: u32 = 3;
/// From then on, and from the end of a probe that failed, until the next one. Short, because there is
/// one probe at a time: an STS that is away has nothing to fear, and one that is back is used within a
/// second.
const OPEN: Duration = Duration::from_secs(1);

/// The STS in another process.
pub struct RemoteExchange {
    token: Uri,
    health: Uri,
    key: Option<HmacKey>,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    forwarder: Forwarder,
    within: Duration,
    breaker: Breaker,
}

impl std::fmt::Debug for RemoteExchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteExchange({})", self.token)
    }
}

/// The base URL of the STS cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("STS_URL is not a usable base URL")]
pub struct BaseUrlError;

impl RemoteExchange {
    /// Exchanges at the STS under `base` (`STS_URL`), which is healthy when it answers `within` that
    /// time. Without a key (dev mode only) requests go unsigned, and the STS refuses them.
    ///
    /// # Errors
    /// [`BaseUrlError`].
    pub fn new(
        base: &Url,
        key: Option<HmacKey>,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
        forwarder: Forwarder,
        within: Duration,
    ) -> Result<Self, BaseUrlError> {
        let base = base.as_str().trim_end_matches('/');
        let below = |path: &str| format!("{base}{path}").parse().map_err(|_| BaseUrlError);
        Ok(Self {
            token: below("/oauth/2/token")?,
            health: below("/health")?,
            key,
            breaker: Breaker::new(clock.clone(), FAILURES, OPEN),
            clock,
            rng,
            forwarder,
            within,
        })
    }

    async fn ask(&self, request: GatewayExchange<'_>) -> Result<GatewayGrant, ExchangeRefused> {
        let outbound = self.build(request)?;
        let call = async {
            let response = self
                .forwarder
                .send(outbound, request.within)
                .await
                .map_err(|error| failed(&error))?;
            answer::read(response, request.resource).await
        };
        match tokio::time::timeout(request.within, call).await {
            Ok(outcome) => outcome,
            Err(_) => Err(timed_out()),
        }
    }

    fn build(&self, request: GatewayExchange<'_>) -> Result<Request<Body>, ExchangeRefused> {
        let body = form(request);
        let mut outbound = Request::new(Body::empty());
        *outbound.method_mut() = Method::POST;
        *outbound.uri_mut() = self.token.clone();
        let headers = outbound.headers_mut();
        headers.insert(CONTENT_TYPE, FORM);
        headers.insert(ACCEPT, JSON);
        headers.insert(USER_AGENT, AGENT);
        let id = header(request.request_id.as_str())?;
        headers.insert(caracal_net::problem::X_REQUEST_ID, id);
        let waits = u64::try_from(request.within.as_millis()).unwrap_or(u64::MAX);
        headers.insert(WAITS, HeaderValue::from(waits));
        // While spans are taken, the exchange is one below the Gateway's.
        if let Some(trace) = current_trace().and_then(|trace| trace.header()) {
            headers.insert(TRACEPARENT, trace);
        }
        if let Some(key) = &self.key {
            let mut nonce = [0u8; 32];
            self.rng.fill(&mut nonce);
            let nonce = hex_encode(&nonce);
            let timestamp = self.clock.now().unix_seconds();
            let signature = GatewaySignature {
                timestamp,
                nonce: &nonce,
                method: "POST",
                path: self.token.path(),
                body_sha256: sha256(body.as_bytes()),
            };
            headers.insert(SIGNATURE, header(&signature.sign(key))?);
            headers.insert(TIMESTAMP, HeaderValue::from(timestamp));
            headers.insert(NONCE, header(&nonce)?);
        }
        *outbound.body_mut() = Body::from(body);
        Ok(outbound)
    }

    async fn probe(&self) -> Result<Response<ForwardBody>, ForwardError> {
        let request = Request::get(self.health.clone()).body(Body::empty());
        let request = request.map_err(|_| ForwardError::TimedOut)?;
        self.forwarder.send(request, self.within).await
    }
}

#[async_trait]
impl Exchange for RemoteExchange {
    async fn exchange(
        &self,
        request: GatewayExchange<'_>,
    ) -> Result<GatewayGrant, ExchangeRefused> {
        let Some(pass) = self.breaker.enter() else {
            return Err(unavailable(
                StatusCode::SERVICE_UNAVAILABLE,
                "sts unavailable",
            ));
        };
        let outcome = self.ask(request).await;
        match &outcome {
            Ok(_) => pass.succeeded(),
            Err(refused) if refused.is_failure() && refused.status() == StatusCode::BAD_GATEWAY => {
                pass.broke();
            }
            Err(refused) if refused.is_failure() => pass.failed(),
            Err(_) => pass.answered(),
        }
        outcome
    }

    async fn healthy(&self) -> bool {
        self.probe()
            .await
            .is_ok_and(|response| response.status().is_success())
    }

    fn circuit(&self) -> Circuit {
        self.breaker.circuit()
    }
}

/// The form, each field once, in byte order of the names.
fn form(request: GatewayExchange<'_>) -> String {
    let mut form = form_urlencoded::Serializer::new(String::with_capacity(2048));
    form.append_pair("application_id", request.mandate.client_id.as_str())
        .append_pair("gateway_request_id", request.request_id.as_str())
        .append_pair("grant_type", TOKEN_EXCHANGE)
        .append_pair("request_method", request.method)
        .append_pair("request_path", request.path)
        .append_pair("resource", request.resource)
        .append_pair("subject_token", request.token)
        .append_pair("subject_token_type", ACCESS_TOKEN)
        .append_pair("zone_id", request.mandate.zone_id.as_str());
    form.finish()
}

fn header(text: &str) -> Result<HeaderValue, ExchangeRefused> {
    HeaderValue::from_str(text).map_err(|_| {
        unavailable(
            StatusCode::INTERNAL_SERVER_ERROR,
            "sts request signing failed",
        )
    })
}

fn failed(error: &ForwardError) -> ExchangeRefused {
    match error {
        ForwardError::TimedOut => timed_out(),
        error => {
            tracing::warn!(%error, source = ?std::error::Error::source(error), "sts unreachable");
            unavailable(StatusCode::BAD_GATEWAY, "sts unavailable")
        }
    }
}

fn timed_out() -> ExchangeRefused {
    unavailable(StatusCode::GATEWAY_TIMEOUT, "sts timeout")
}

fn unavailable(status: StatusCode, description: &str) -> ExchangeRefused {
    ExchangeRefused::new(status, "sts_unavailable", description)
}

#[cfg(test)]
mod tests;
