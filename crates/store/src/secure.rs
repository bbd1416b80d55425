//! TLS to Postgres. Which roots are trusted, and how far, is decided by whoever opens the store
//! (the HTTP kit alone knows a TLS library); this is the socket between the two.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

/// A stream of bytes, both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// A connection that was made secure, or the reason why it was not.
pub type Encrypted = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Makes connections secure.
pub trait Encrypt: Send + Sync {
    /// Speaks TLS with `host` over this connection.
    fn encrypt(&self, host: &str, connection: Box<dyn Stream>) -> Encrypted;
}

/// How connections to Postgres are made secure.
#[derive(Clone)]
pub struct PgTls {
    /// Does it.
    pub encrypt: Arc<dyn Encrypt>,
    /// Whether a server that cannot is not talked to.
    pub required: bool,
}

impl fmt::Debug for PgTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgTls")
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

impl PgTls {
    pub(crate) fn mode(&self) -> SslMode {
        if self.required {
            SslMode::Require
        } else {
            SslMode::Prefer
        }
    }
}

/// As the driver takes it.
#[derive(Clone)]
pub(crate) struct MakeSecure(Arc<dyn Encrypt>);

impl MakeSecure {
    pub fn new(tls: &PgTls) -> Self {
        Self(Arc::clone(&tls.encrypt))
    }
}

impl<S: Stream + 'static> MakeTlsConnect<S> for MakeSecure {
    type Stream = Secured;
    type TlsConnect = ConnectSecure;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<ConnectSecure> {
        Ok(ConnectSecure {
            encrypt: Arc::clone(&self.0),
            host: host.to_owned(),
        })
    }
}

/// One connection about to be made secure.
pub(crate) struct ConnectSecure {
    encrypt: Arc<dyn Encrypt>,
    host: String,
}

impl<S: Stream + 'static> TlsConnect<S> for ConnectSecure {
    type Stream = Secured;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Secured>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let encrypted = self.encrypt.encrypt(&self.host, Box::new(stream));
            encrypted.await.map(Secured)
        })
    }
}

/// A secure connection. Passwords are proven by SCRAM without channel binding.
pub(crate) struct Secured(Box<dyn Stream>);

impl TlsStream for Secured {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
