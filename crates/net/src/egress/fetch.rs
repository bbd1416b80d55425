//! Small requests to where configuration leads: token endpoints, JWKS, discovery, secret backends.
//!
//! **Forces.** The URL comes from a tenant, the answer from a stranger. It may point inside, send
//! us elsewhere, never end, or trickle. **Choice.** https only; the host is judged and pinned by
//! the guarded connector; a redirect is an answer like any other and never followed; the whole
//! answer is bounded in size and in time. **Consequence.** What is returned is whole, and small
//! enough to be kept; what it says is the caller's to judge.
//!
//! With a bundle of roots that cannot be used, every fetch fails (spec: sts §6.2): half a trust
//! store would fail later, and elsewhere.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use caracal_model::Clock;
use http::{Request, Response, StatusCode};
use rustls::ClientConfig;

use super::forwarder::{ForwardError, Forwarder, PoolSettings};
use super::guard::AddressGuard;
use super::resolve::{Egress, EgressError, Resolver, SystemResolver};
use super::tls::client_config;
use crate::body;

/// What an answer may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the dial to the last byte.
    pub within: Duration,
    /// Longest body.
    pub bytes: usize,
}

impl Default for Bounds {
    /// 5 seconds and 64 KiB.
    fn default() -> Self {
        Self {
            within: Duration::from_secs(5),
            bytes: 64 * 1024,
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The URL is not https, or not a URL.
    #[error("the URL is not https")]
    NotHttps,
    /// The host may not be asked: one of its addresses is not permitted.
    #[error("the host is not permitted")]
    Blocked,
    /// The host has no address.
    #[error("the host has no address")]
    Unresolved,
    /// `CARACAL_TLS_EXTRA_CA_FILE` cannot be used, so nothing is trusted.
    #[error("the bundle of extra roots cannot be used")]
    NoRoots,
    /// No whole answer in time.
    #[error("timed out")]
    TimedOut,
    /// The answer is longer than allowed.
    #[error("the answer is too long")]
    TooLarge,
    /// Refused, broken off, or not the host that its certificate names.
    #[error("transport failure")]
    Transport,
}

impl FetchError {
    /// Whether another attempt may find it otherwise.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Unresolved | Self::TimedOut | Self::Transport)
    }
}

impl From<ForwardError> for FetchError {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::TimedOut => Self::TimedOut,
            ForwardError::Egress(EgressError::Blocked) => Self::Blocked,
            ForwardError::Egress(EgressError::Unresolved) => Self::Unresolved,
            ForwardError::RequestBody(_) | ForwardError::Transport(_) => Self::Transport,
        }
    }
}

/// Fetches. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Fetcher {
    /// None when the roots cannot be used.
    forwarder: Option<Forwarder>,
    plain: bool,
}

impl Fetcher {
    /// For URLs that tenants configure: private addresses only for these hosts
    /// (`CARACAL_PRIVATE_EGRESS_HOSTS`), loopback and link-local never.
    pub fn strict(
        private_hosts: impl IntoIterator<Item = String>,
        extra_ca: Option<&Path>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let guard = AddressGuard::strict(private_hosts);
        Self::guarded(guard, extra_ca, clock, false)
    }

    /// For URLs from the operator's own environment: any address, and http where the setting
    /// allows it.
    pub fn operator(extra_ca: Option<&Path>, clock: Arc<dyn Clock>) -> Self {
        Self::guarded(AddressGuard::operator(), extra_ca, clock, true)
    }

    /// For URLs that tenants configure and that lead to this machine only, where a deployment
    /// allows that: http.
    pub fn loopback(clock: Arc<dyn Clock>) -> Self {
        Self::guarded(AddressGuard::loopback(), None, clock, true)
    }

    fn guarded(
        guard: AddressGuard,
        extra_ca: Option<&Path>,
        clock: Arc<dyn Clock>,
        plain: bool,
    ) -> Self {
        let tls = client_config(extra_ca).inspect_err(|error| {
            tracing::error!(%error, "CARACAL_TLS_EXTRA_CA_FILE cannot be used: no egress");
        });
        let egress = Egress::new(guard, Arc::new(SystemResolver), clock);
        let mut fetcher = Self::over(egress, tls.ok());
        fetcher.plain = plain;
        fetcher
    }

    /// Over this way out, https only; without a TLS configuration every fetch fails.
    pub fn over(egress: Egress, tls: Option<Arc<ClientConfig>>) -> Self {
        let pool = PoolSettings {
            idle_per_host: 8,
            idle_for: Duration::from_secs(30),
            in_flight_per_host: 64,
        };
        Self {
            forwarder: tls.map(|tls| Forwarder::new(egress, tls, pool)),
            plain: false,
        }
    }

    /// For tests of other crates: every name is what `resolver` says, and loopback is permitted.
    ///
    /// # Errors
    /// [`super::TlsError`].
    pub fn for_tests(
        resolver: Arc<dyn Resolver>,
        ca: &Path,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, super::TlsError> {
        let egress = Egress::new(AddressGuard::operator(), resolver, clock);
        Ok(Self::over(egress, Some(client_config(Some(ca))?)))
    }

    /// Sends a request with an absolute URI and answers with the whole response, whatever its
    /// status. Nothing is sent twice.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(
        &self,
        request: Request<Bytes>,
        bounds: Bounds,
    ) -> Result<Response<Bytes>, FetchError> {
        let https = request.uri().scheme_str() == Some("https");
        if !https && !self.plain {
            return Err(FetchError::NotHttps);
        }
        let forwarder = self.forwarder.as_ref().ok_or(FetchError::NoRoots)?;
        let whole = async {
            let request = request.map(Body::from);
            let response = forwarder.send(request, bounds.within).await?;
            let (head, answer) = response.into_parts();
            let read = body::read(Body::new(answer), bounds.bytes, bounds.within).await;
            match read {
                Ok(bytes) => Ok(Response::from_parts(head, bytes)),
                Err(problem) => Err(match problem.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => FetchError::TooLarge,
                    StatusCode::REQUEST_TIMEOUT => FetchError::TimedOut,
                    _ => FetchError::Transport,
                }),
            }
        };
        tokio::time::timeout(bounds.within, Box::pin(whole))
            .await
            .unwrap_or(Err(FetchError::TimedOut))
    }
}

#[cfg(test)]
mod tests;
