//! The dial: only addresses that were judged, several in parallel when the first is slow.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::resolve::{Egress, EgressError};

/// How long one address may take to answer.
const DIAL: Duration = Duration::from_secs(5);
/// How long one address is waited for before the next is tried beside it.
const STAGGER: Duration = Duration::from_millis(250);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A connection, encrypted or not.
pub type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Connects to what [`Egress`] permits. No proxies.
#[derive(Clone, Debug)]
pub struct GuardedConnector {
    egress: Egress,
    tls: Arc<ClientConfig>,
}

impl GuardedConnector {
    /// Connects through this way out.
    pub fn new(egress: Egress, tls: Arc<ClientConfig>) -> Self {
        Self { egress, tls }
    }

    async fn connect(self, target: Uri) -> io::Result<Stream> {
        let host = target
            .host()
            .ok_or_else(|| invalid("the URL has no host"))?;
        let tls = match target.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(invalid("the scheme is neither http nor https")),
        };
        let port = target.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let addresses = self.egress.vet(host).await.map_err(refused)?;
        let stream = dial(&addresses, port).await?;
        if !tls {
            return Ok(MaybeHttpsStream::Http(TokioIo::new(stream)));
        }
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned()).map_err(|_| invalid("not a host name"))?;
        let handshake =
            TlsConnector::from(self.tls).connect(name, TokioIo::new(TokioIo::new(stream)));
        let stream = tokio::time::timeout(HANDSHAKE, handshake)
            .await
            .map_err(|_| io::Error::other("the TLS handshake took too long"))??;
        Ok(MaybeHttpsStream::Https(TokioIo::new(stream)))
    }
}

impl tower::Service<Uri> for GuardedConnector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        Box::pin(self.clone().connect(target))
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn refused(error: EgressError) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, error)
}

/// The first address that answers. Each is given [`DIAL`]; the next starts when one has failed or
/// has been silent for [`STAGGER`].
async fn dial(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let next = waiting.next();
        let more = next.is_some();
        if let Some(address) = next {
            attempts.push(attempt(SocketAddr::new(*address, port)));
        }
        let outcome = if more {
            match tokio::time::timeout(STAGGER, attempts.next()).await {
                Ok(outcome) => outcome,
                Err(_) => continue,
            }
        } else {
            attempts.next().await
        };
        match outcome {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(error)) => last = error,
            None => return Err(last),
        }
    }
}

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_keepalive(true)?;
    let connecting = socket.connect(address);
    let stream = tokio::time::timeout(DIAL, connecting)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn an_address_that_refuses_makes_way_for_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let refuses = "127.0.0.2".parse().unwrap();
        let answers = "127.0.0.1".parse().unwrap();
        assert!(dial(&[refuses, answers], port).await.is_ok());
        drop(listener);
        let error = dial(&[refuses, answers], port).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(dial(&[], port).await.is_err());
    }
}
