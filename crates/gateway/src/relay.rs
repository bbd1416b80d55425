//! The response body on its way to the caller.
//!
//! **Forces.** Frames must leave as they come; a revocation must cut the stream at once, also one
//! that is silent; a broken upstream must not look like a complete answer; and the end of the
//! answer must not leave before its record is durable. **Choice.** What ends the body (the last
//! chunk, or the frame that completes a declared length) is held back until the record is written.
//! A cut sets the trailer where the caller reads one, and breaks the connection where not.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use caracal_evidence::EvidenceError;
use caracal_net::egress::ForwardBody;
use caracal_net::metrics::{Gauge, InFlight};
use http::{HeaderMap, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::evidence::{Ended, OpenCall};
use crate::headers::X_CARACAL_REVOKED;
use crate::progress::Stall;
use crate::revocation::{Cut, RevocationWatch};

/// Why a response did not end as it should. The connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// The upstream broke off.
    #[error("the upstream broke off")]
    Upstream,
    /// The upstream sent nothing for too long.
    #[error("the upstream stalled")]
    Stalled,
    /// The mandate was revoked.
    #[error("revoked")]
    Revoked,
    /// Nobody can tell whether the mandate was revoked.
    #[error("revocation state unavailable")]
    Blind,
    /// The record could not be written.
    #[error("no evidence, no answer")]
    NoEvidence,
}

/// What follows once the record is written.
enum Then {
    Frame(Frame<Bytes>),
    End,
    Trailer,
    Fail(RelayError),
}

type Recording = Pin<Box<dyn Future<Output = Result<(), EvidenceError>> + Send>>;

enum State {
    Open(ForwardBody),
    Recording(Recording, Then),
    Done,
}

/// A response under way.
pub struct Relay {
    state: State,
    /// What a declared length leaves to come; none for chunks.
    left: Option<u64>,
    /// Whether a trailer can be sent.
    trailers: bool,
    hint: SizeHint,
    call: OpenCall,
    watch: RevocationWatch,
    stall: Stall,
    _active: Active,
}

impl Relay {
    /// Relays this body.
    pub fn new(
        body: ForwardBody,
        trailers: bool,
        call: OpenCall,
        watch: RevocationWatch,
        stall: Stall,
        active: Active,
    ) -> Self {
        let hint = body.size_hint();
        let left = hint.exact();
        Self {
            state: State::Open(body),
            left,
            trailers: trailers && left.is_none(),
            hint,
            call,
            watch,
            stall,
            _active: active,
        }
    }

    /// Closes the call; the body of the upstream is dropped with the state.
    fn end(&mut self, ended: Ended, then: Then) {
        self.state = State::Recording(Box::pin(self.call.close(ended)), then);
    }

    fn cut(&mut self, cut: Cut) {
        match cut {
            Cut::Revoked => self.revoked(),
            Cut::Blind => self.end(Ended::CutBlind, Then::Fail(RelayError::Blind)),
        }
    }

    fn revoked(&mut self) {
        if let Some(record) = self.call.record() {
            record.revoked = true;
        }
        let then = if self.trailers {
            Then::Trailer
        } else {
            Then::Fail(RelayError::Revoked)
        };
        self.end(Ended::Executed, then);
    }

    /// One answer of the upstream; a frame that may leave at once is returned.
    fn take(&mut self, frame: Option<Result<Frame<Bytes>, hyper::Error>>) -> Option<Frame<Bytes>> {
        if let Some(cut) = self.watch.cut() {
            self.cut(cut);
            return None;
        }
        self.stall.progress();
        let frame = match frame {
            None => {
                self.end(Ended::Executed, Then::End);
                return None;
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "upstream broke off");
                self.end(Ended::CopyFailed, Then::Fail(RelayError::Upstream));
                return None;
            }
            Some(Ok(frame)) => frame,
        };
        // Trailers of an upstream are not carried.
        let length = u64::try_from(frame.data_ref()?.len()).unwrap_or(u64::MAX);
        if let Some(record) = self.call.record() {
            record.response_bytes = record.response_bytes.saturating_add(length);
        }
        self.left = self.left.map(|left| left.saturating_sub(length));
        if self.left == Some(0) {
            self.end(Ended::Executed, Then::Frame(frame));
            return None;
        }
        Some(frame)
    }

    fn recorded(&mut self, then: Then) -> Option<Result<Frame<Bytes>, RelayError>> {
        match then {
            Then::Frame(frame) => Some(Ok(frame)),
            Then::End => None,
            Then::Fail(error) => Some(Err(error)),
            Then::Trailer => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(X_CARACAL_REVOKED, HeaderValue::from_static("true"));
                Some(Ok(Frame::trailers(trailers)))
            }
        }
    }
}

impl HttpBody for Relay {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Open(body) => match Pin::new(body).poll_frame(cx) {
                    Poll::Ready(frame) => {
                        if let Some(frame) = this.take(frame) {
                            return Poll::Ready(Some(Ok(frame)));
                        }
                    }
                    Poll::Pending => match this.watch.poll_cut(cx) {
                        Some(cut) => this.cut(cut),
                        None if this.stall.poll(cx).is_ready() => {
                            this.end(Ended::CopyFailed, Then::Fail(RelayError::Stalled));
                        }
                        None => return Poll::Pending,
                    },
                },
                State::Recording(recording, _) => {
                    let outcome = ready!(recording.as_mut().poll(cx));
                    let State::Recording(_, then) = std::mem::replace(&mut this.state, State::Done)
                    else {
                        return Poll::Ready(None);
                    };
                    return Poll::Ready(match outcome {
                        Ok(()) => this.recorded(then),
                        Err(_) => Some(Err(RelayError::NoEvidence)),
                    });
                }
                State::Done => return Poll::Ready(None),
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

/// Counts a response as under way while it lives, and as allowed once it is over.
pub struct Active {
    active: Gauge,
    allowed: caracal_net::metrics::Counter,
    _in_flight: Option<InFlight>,
}

impl Active {
    /// From now on.
    pub fn new(
        active: Gauge,
        allowed: caracal_net::metrics::Counter,
        in_flight: Option<InFlight>,
    ) -> Self {
        active.inc();
        Self {
            active,
            allowed,
            _in_flight: in_flight,
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.active.dec();
        self.allowed.inc();
    }
}
