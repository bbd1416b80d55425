//! What the server needs to know of a connection and hyper does not tell: where in a request it
//! is, whether its reader has stalled, and whether its response broke.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

const HEAD: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;

/// Where a connection is. A new one is expected to send its first head at once.
#[derive(Debug, Default)]
pub(super) struct Watch {
    phase: AtomicU8,
    reset: AtomicBool,
}

impl Watch {
    pub(super) fn is_reading_head(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == HEAD
    }

    pub(super) fn head_complete(&self) {
        self.phase.store(BUSY, Ordering::Relaxed);
    }

    fn answered(&self) {
        self.phase.store(IDLE, Ordering::Relaxed);
    }

    fn bytes_arrived(&self) {
        let _ = self
            .phase
            .compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// A socket that can end with a reset instead of an orderly close.
pub(super) trait Reset {
    fn reset_on_close(&self);
}

impl Reset for TcpStream {
    fn reset_on_close(&self) {
        let _ = self.set_zero_linger();
    }
}

impl<T: Reset> Reset for tokio_rustls::server::TlsStream<T> {
    fn reset_on_close(&self) {
        self.get_ref().0.reset_on_close();
    }
}

/// A socket whose phase is followed and whose stalled writes fail.
pub(super) struct WatchedIo<IO: Reset> {
    io: IO,
    watch: Arc<Watch>,
    write_idle: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<IO: Reset> WatchedIo<IO> {
    pub(super) fn new(io: IO, watch: Arc<Watch>, write_idle: Duration) -> Self {
        Self {
            io,
            watch,
            write_idle,
            stalled: None,
        }
    }

    /// Fails a write that has made no progress for too long.
    fn progress<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let write_idle = self.write_idle;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(write_idle)));
        stalled
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<IO: Reset> Drop for WatchedIo<IO> {
    fn drop(&mut self) {
        if self.watch.reset.load(Ordering::Relaxed) {
            self.io.reset_on_close();
        }
    }
}

impl<IO: AsyncRead + Reset + Unpin> AsyncRead for WatchedIo<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, into))?;
        if into.filled().len() > before {
            self.watch.bytes_arrived();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Reset + Unpin> AsyncWrite for WatchedIo<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, from);
        self.progress(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, from);
        self.progress(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.progress(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_shutdown(cx);
        self.progress(cx, outcome)
    }
}

/// A response body that tells when it is done with, and how it went.
pub(super) struct WatchedBody {
    body: Body,
    watch: Arc<Watch>,
    reset_on_break: bool,
    broken: Option<axum::Error>,
}

impl WatchedBody {
    pub(super) fn new(body: Body, watch: Arc<Watch>, reset_on_break: bool) -> Self {
        Self {
            body,
            watch,
            reset_on_break,
            broken: None,
        }
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.watch.answered();
    }
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(Err(error)) = frame else {
            return Poll::Ready(frame);
        };
        if self.reset_on_break {
            self.watch.reset.store(true, Ordering::Relaxed);
        }
        // An error makes hyper drop what it has not written yet. One turn later, it has.
        self.broken = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
