//! Serving HTTP/1.1.
//!
//! **Forces.** A caller that sends or reads slowly must not hold a connection for ever; a caller
//! that is served must not be cut when the process stops; a response that broke must not look
//! complete. **Choice.** Our own accept loop over hyper: the head has a deadline from its first
//! byte (hyper's own timer would end idle keep-alive connections with it), an idle connection has
//! a longer one, a reader that takes nothing has a third, and a stop drains within a deadline.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

mod watched;
use watched::{Watch, WatchedBody, WatchedIo};

/// What a server puts up with.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest request head; over it the answer is 431.
    pub head_bytes: usize,
    /// From the first byte of a head (or the start of the connection) to its end.
    pub header_read: Duration,
    /// How long a connection may wait for its next request.
    pub idle: Duration,
    /// How long a caller may take nothing of what we send.
    pub write_idle: Duration,
    /// How long requests in flight may take to finish once we stop.
    pub drain: Duration,
    /// Connections at one time; more wait in the backlog of the listener.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 16 * 1024,
            header_read: Duration::from_secs(5),
            idle: Duration::from_secs(75),
            write_idle: Duration::from_secs(60),
            drain: Duration::from_secs(14),
            connections: 16 * 1024,
        }
    }
}

/// Who is on the other end of the connection, in the extensions of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Their address.
    pub address: SocketAddr,
    /// Whether this hop is encrypted.
    pub tls: bool,
}

/// Serves a router on a listener.
pub struct Server {
    listener: TcpListener,
    router: Router,
    limits: Limits,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({:?})", self.listener)
    }
}

impl Server {
    /// A server in the clear.
    pub fn new(listener: TcpListener, router: Router, limits: Limits) -> Self {
        Self {
            listener,
            router,
            limits,
            tls: None,
        }
    }

    /// The same, behind TLS.
    #[must_use]
    pub fn with_tls(mut self, config: Arc<rustls::ServerConfig>) -> Self {
        self.tls = Some(TlsAcceptor::from(config));
        self
    }

    /// Accepts and serves until `stop`, then drains. Ends when the last connection has ended or
    /// was cut at the deadline.
    pub async fn serve(self, stop: CancellationToken) {
        let Self {
            listener,
            router,
            limits,
            tls,
        } = self;
        let places = Arc::new(Semaphore::new(limits.connections));
        let mut connections = JoinSet::new();
        while let Some((stream, peer, place)) = next(&listener, &places, &stop).await {
            while connections.try_join_next().is_some() {}
            let connection = Connection {
                router: router.clone(),
                limits,
                peer,
                stop: stop.clone(),
            };
            connections.spawn(connection.run(stream, tls.clone(), place));
        }
        drop(listener);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(limits.drain, all).await.is_err() {
            tracing::warn!(
                cut = connections.len(),
                "requests in flight did not finish in time"
            );
            connections.shutdown().await;
        }
    }
}

/// The next connection and its place; `None` once we stop.
async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let accept = async {
        let place = places.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => return Some((stream, peer, place)),
                Err(error) => {
                    // Out of descriptors, mostly: waiting lets some of them close.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        accepted = accept => accepted,
    }
}

struct Connection {
    router: Router,
    limits: Limits,
    peer: SocketAddr,
    stop: CancellationToken,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>, _place: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            return self.serve(stream, false).await;
        };
        let handshake = tokio::time::timeout(self.limits.header_read, tls.accept(stream));
        if let Ok(Ok(stream)) = handshake.await {
            self.serve(stream, true).await;
        }
    }

    async fn serve<IO>(self, io: IO, tls: bool)
    where
        IO: AsyncRead + AsyncWrite + watched::Reset + Unpin + Send + 'static,
    {
        let watch = Arc::new(Watch::default());
        let io = TokioIo::new(WatchedIo::new(io, watch.clone(), self.limits.write_idle));
        let peer = Peer {
            address: self.peer,
            tls,
        };
        let handler = Handler {
            router: self.router,
            peer,
            watch: watch.clone(),
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle)
            .max_buf_size(self.limits.head_bytes.max(8 * 1024))
            .serve_connection(io, handler);
        let mut connection = pin!(connection);
        let mut stopping = pin!(self.stop.cancelled());
        let mut asked = false;
        let mut head_deadline: Option<Pin<Box<tokio::time::Sleep>>> = None;
        let end = poll_fn(|cx| {
            if !asked && stopping.as_mut().poll(cx).is_ready() {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                return Poll::Ready(end.map_err(io::Error::other));
            }
            if !watch.is_reading_head() {
                head_deadline = None;
                return Poll::Pending;
            }
            let deadline = head_deadline
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.limits.header_read)));
            deadline
                .as_mut()
                .poll(cx)
                .map(|()| Err(io::ErrorKind::TimedOut.into()))
        });
        if let Err(error) = end.await {
            tracing::debug!(%error, "connection ended early");
        }
    }
}

/// One connection's way into the router.
struct Handler {
    router: Router,
    peer: Peer,
    watch: Arc<Watch>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<WatchedBody>, Infallible>> + Send>>;

impl hyper::service::Service<Request<Incoming>> for Handler {
    type Response = Response<WatchedBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.watch.head_complete();
        // Without chunks and without a length, only a reset tells an HTTP/1.0 caller of a break.
        let reset_on_break = request.version() == Version::HTTP_10;
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.peer);
        let answer = self.router.clone().call(request);
        let watch = self.watch.clone();
        Box::pin(async move {
            let response = answer.await?;
            Ok(response.map(|body| WatchedBody::new(body, watch, reset_on_break)))
        })
    }
}

#[cfg(test)]
mod tests;
