//! The pooled client over the guarded connector (spec: gateway §13). HTTP/1.1, no redirects, no
//! retry of anything that may have been sent.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connector::GuardedConnector;
use super::resolve::{Addresses, Egress, EgressError};

/// How connections are kept and bounded.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// Idle connections kept per host.
    pub idle_per_host: usize,
    /// How long an idle connection is kept.
    pub idle_for: Duration,
    /// Requests at one time per host; more wait, within the deadline of their headers.
    pub in_flight_per_host: usize,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            idle_per_host: 100,
            idle_for: Duration::from_secs(90),
            in_flight_per_host: 200,
        }
    }
}

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No connection, or no response headers, in time.
    #[error("timed out")]
    TimedOut,
    /// The host is not permitted or has no address.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// The request body failed: the source says why.
    #[error("the request body failed")]
    RequestBody(#[source] ClientError),
    /// Everything else: refused, TLS failure, connection lost.
    #[error("transport failure")]
    Transport(#[source] ClientError),
}

/// Sends requests out. Cheap to clone.
#[derive(Clone)]
pub struct Forwarder {
    client: Client<GuardedConnector, Body>,
    egress: Egress,
    places: Arc<Places>,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Forwarder({:?})", self.egress)
    }
}

impl Forwarder {
    /// A client over this way out.
    pub fn new(egress: Egress, tls: Arc<ClientConfig>, pool: PoolSettings) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(pool.idle_for)
            .pool_max_idle_per_host(pool.idle_per_host)
            // Only a request of which no byte was written is ever sent again.
            .retry_canceled_requests(true)
            .build(GuardedConnector::new(egress.clone(), tls));
        Self {
            client,
            egress,
            places: Arc::new(Places::new(pool.in_flight_per_host)),
        }
    }

    /// Judges the host of a URL before anything is sent.
    ///
    /// # Errors
    /// [`EgressError`].
    pub async fn vet(&self, host: &str) -> Result<Addresses, EgressError> {
        self.egress.vet(host).await
    }

    /// Sends a request with an absolute URI and waits at most `headers_within` for the head of the
    /// response. Its body is then the caller's to bound.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub async fn send(
        &self,
        request: Request<Body>,
        headers_within: Duration,
    ) -> Result<Response<ForwardBody>, ForwardError> {
        let answer = async {
            let place = self.places.take(request.uri()).await;
            (self.client.request(request).await, place)
        };
        match tokio::time::timeout(headers_within, answer).await {
            Err(_) => Err(ForwardError::TimedOut),
            Ok((Ok(response), place)) => Ok(response.map(|body| ForwardBody {
                body,
                _place: place,
            })),
            Ok((Err(error), _)) => Err(classify(error)),
        }
    }
}

fn classify(error: ClientError) -> ForwardError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(&error);
    while let Some(inner) = cause {
        if let Some(hyper) = inner.downcast_ref::<hyper::Error>()
            && hyper.is_user()
        {
            return ForwardError::RequestBody(error);
        }
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            if io.kind() == io::ErrorKind::TimedOut {
                return ForwardError::TimedOut;
            }
            if let Some(egress) = io
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<EgressError>())
            {
                return ForwardError::Egress(*egress);
            }
        }
        cause = inner.source();
    }
    ForwardError::Transport(error)
}

/// Places per host. A place is held until the response body has ended.
struct Places {
    per_host: usize,
    hosts: Mutex<HashMap<Box<str>, Arc<Semaphore>>>,
}

impl Places {
    fn new(per_host: usize) -> Self {
        Self {
            per_host,
            hosts: Mutex::default(),
        }
    }

    async fn take(&self, uri: &Uri) -> Option<OwnedSemaphorePermit> {
        let authority = uri.authority()?.as_str();
        let places = self.of(authority);
        places.acquire_owned().await.ok()
    }

    fn of(&self, authority: &str) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock();
        if let Some(places) = hosts.get(authority) {
            return places.clone();
        }
        // Hosts come from configuration, so there are few; those without requests can go.
        if hosts.len() >= 1024 {
            hosts.retain(|_, places| Arc::strong_count(places) > 1);
        }
        let places = Arc::new(Semaphore::new(self.per_host));
        hosts.insert(authority.into(), places.clone());
        places
    }
}

/// A response body that gives its place back when it ends.
#[derive(Debug)]
pub struct ForwardBody {
    body: Incoming,
    _place: Option<OwnedSemaphorePermit>,
}

impl HttpBody for ForwardBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
