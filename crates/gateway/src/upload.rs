//! The request body on its way to the upstream: streamed, bounded, and with a memory of why it
//! ended, because the client that sends it reports only that it did.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::progress::Stall;

const FINE: u8 = 0;
const TOO_LARGE: u8 = 1;
const GONE: u8 = 2;
const STALLED: u8 = 3;

/// Why an upload ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Over `MAX_REQUEST_BYTES`.
    TooLarge,
    /// The caller went away.
    Gone,
    /// The caller sent nothing for too long.
    Stalled,
}

/// Tells how an upload went.
#[derive(Clone, Debug, Default)]
pub struct UploadWatch(Arc<AtomicU8>);

impl UploadWatch {
    /// Why it ended early, if it did.
    pub fn broken(&self) -> Option<Broken> {
        match self.0.load(Ordering::Acquire) {
            TOO_LARGE => Some(Broken::TooLarge),
            GONE => Some(Broken::Gone),
            STALLED => Some(Broken::Stalled),
            _ => None,
        }
    }
}

/// A request body with a bound.
pub struct Upload {
    body: Body,
    left: u64,
    stall: Stall,
    watch: UploadWatch,
}

impl Upload {
    /// At most `limit` bytes of this body.
    pub fn new(body: Body, limit: u64, stall: Stall) -> (Self, UploadWatch) {
        let watch = UploadWatch::default();
        debug_assert_eq!(watch.0.load(Ordering::Relaxed), FINE);
        (
            Self {
                body,
                left: limit,
                stall,
                watch: watch.clone(),
            },
            watch,
        )
    }

    fn broke(&self, why: u8) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.watch.0.store(why, Ordering::Release);
        Poll::Ready(Some(Err(io::ErrorKind::InvalidData.into())))
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending if self.stall.poll(cx).is_ready() => return self.broke(STALLED),
                Poll::Pending => return Poll::Pending,
            };
            self.stall.progress();
            let data = match frame {
                None => return Poll::Ready(None),
                Some(Err(_)) => return self.broke(GONE),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    // Trailers of a request are not carried.
                    Err(_) => continue,
                },
            };
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            let Some(left) = self.left.checked_sub(length) else {
                return self.broke(TOO_LARGE);
            };
            self.left = left;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
