//! The context of a request: its id, and its place in a distributed trace (W3C Trace Context; spec:
//! operations §2.6).
//!
//! **Forces.** Whoever looks for one request wants it in every log line and in the traces of whatever
//! is before and behind us; whoever does not trace must not pay for it.
//!
//! **Choice.** Each request is handled within a context of its task, which log lines read. While
//! nobody takes spans ([`export_to`]) there is no trace in it and no header is read. Else each request
//! is one server span: a child of the caller's, and the parent of what we call. A request that one
//! service makes of another in this process is a span as well ([`called`]), so that a trace reads the
//! same in both deployments. Whether it is kept was decided by whoever began the trace; for what
//! begins here, it is.
//!
//! **Rejected.** Spans of a library around everything: the published service has server spans only,
//! and those are known at one place.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::MatchedPath;
use caracal_model::{Clock, Ids, RequestId, Ticks, Timestamp};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

/// The header of W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: u128,
    /// The span within it.
    pub span: u64,
    /// Whether the trace is kept.
    pub sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent`: version 00, or a later one that begins like it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let (version, trace) = (fields.next()?, fields.next()?);
        let (span, flags) = (fields.next()?, fields.next()?);
        let hex = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let fits = hex(version, 2)
            && version != "ff"
            && hex(trace, 32)
            && hex(span, 16)
            && hex(flags, 2)
            && (version != "00" || fields.next().is_none());
        if !fits {
            return None;
        }
        let context = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            span: u64::from_str_radix(span, 16).ok()?,
            sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
        };
        (context.trace != 0 && context.span != 0).then_some(context)
    }

    /// The one valid `traceparent` of a request; two are as good as none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return None;
        };
        Self::parse(value.to_str().ok()?)
    }

    /// A trace that begins here.
    pub fn fresh(ids: &Ids) -> Self {
        let [high, low, span] = [(); 3].map(|()| number(ids));
        Self {
            trace: (u128::from(high) << 64) | u128::from(low),
            span,
            sampled: true,
        }
    }

    /// A span below this one.
    #[must_use]
    pub fn child(self, ids: &Ids) -> Self {
        Self {
            span: number(ids),
            ..self
        }
    }

    /// The trace, as it is written.
    pub fn trace_text(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The span, as it is written.
    pub fn span_text(&self) -> String {
        format!("{:016x}", self.span)
    }

    /// As `traceparent`.
    pub fn header(&self) -> Option<HeaderValue> {
        let flags = u8::from(self.sampled);
        HeaderValue::try_from(format!(
            "00-{:032x}-{:016x}-{flags:02x}",
            self.trace, self.span
        ))
        .ok()
    }
}

/// 64 random bits, not all of them zero. The first half of a random UUID has a fixed digit, so this
/// takes what is random of two.
fn number(ids: &Ids) -> u64 {
    let random = |id: String| {
        let hex: String = id.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&hex, 16).unwrap_or(1)
    };
    let folded = random(ids.uuid4()) ^ random(ids.uuid4()).rotate_left(32);
    #[expect(clippy::cast_possible_truncation, reason = "64 of the bits are wanted")]
    let number = (folded ^ (folded >> 64)) as u64;
    number.max(1)
}

/// What the task that handles a request knows of it.
#[derive(Clone, Debug)]
pub struct Current {
    /// Its id.
    pub request_id: RequestId,
    /// Its server span, while spans are taken.
    pub trace: Option<TraceContext>,
}

tokio::task_local! {
    static CURRENT: Current;
}

/// Handles a request within its context.
pub(crate) async fn within<T>(current: Current, work: impl Future<Output = T>) -> T {
    CURRENT.scope(current, work).await
}

/// The request that this task handles, if it handles one.
pub fn current<T>(read: impl FnOnce(&Current) -> T) -> Option<T> {
    CURRENT.try_with(read).ok()
}

/// Work that goes on for the request that this task handles, in a task of its own: its log lines name
/// the request as well.
pub fn carried<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let at = current(Clone::clone);
    async move {
        match at {
            Some(at) => within(at, work).await,
            None => work.await,
        }
    }
}

/// The server span of the request that this task handles, while spans are taken.
pub fn current_trace() -> Option<TraceContext> {
    current(|current| current.trace).flatten()
}

/// The template of a route.
#[derive(Clone, Debug)]
pub enum Route {
    /// Of a request over the wire.
    Matched(MatchedPath),
    /// Of a function call in place of one.
    Called(&'static str),
}

impl Route {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Matched(path) => path.as_str(),
            Self::Called(path) => path,
        }
    }
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub struct ServerSpan {
    /// The service that answered.
    pub service: &'static str,
    /// Where it stands in its trace.
    pub context: TraceContext,
    /// The span of the caller.
    pub parent: Option<u64>,
    /// When it came.
    pub started: Timestamp,
    /// How long the head of the answer took.
    pub took: Duration,
    /// How it asked.
    pub method: Method,
    /// The template of its route; none where no route matched.
    pub route: Option<Route>,
    /// How it was answered.
    pub status: StatusCode,
    /// Its id.
    pub request_id: RequestId,
}

/// Takes spans. It is called on the path of every request: it must not wait.
pub trait SpanSink: Send + Sync {
    /// A request was answered.
    fn ended(&self, span: ServerSpan);
}

static SINK: OnceLock<Arc<dyn SpanSink>> = OnceLock::new();

/// From now on, each request is a span that is given to this sink. The first one stays; `false` says
/// that there was one.
pub fn export_to(sink: Arc<dyn SpanSink>) -> bool {
    SINK.set(sink).is_ok()
}

/// A server span that has begun.
pub(crate) struct Begun {
    pub context: TraceContext,
    sink: &'static dyn SpanSink,
    parent: Option<u64>,
    method: Method,
    started: Timestamp,
    since: Ticks,
}

impl Begun {
    /// None while nobody takes spans.
    pub fn new(ids: &Ids, clock: &dyn Clock, method: &Method, headers: &HeaderMap) -> Option<Self> {
        Self::below(TraceContext::of(headers), ids, clock, method)
    }

    fn below(
        caller: Option<TraceContext>,
        ids: &Ids,
        clock: &dyn Clock,
        method: &Method,
    ) -> Option<Self> {
        let sink = SINK.get()?.as_ref();
        Some(Self {
            context: caller.map_or_else(|| TraceContext::fresh(ids), |caller| caller.child(ids)),
            parent: caller.map(|caller| caller.span),
            sink,
            method: method.clone(),
            started: clock.now(),
            since: clock.ticks(),
        })
    }

    /// The head of the answer is there.
    pub fn end(
        self,
        service: &'static str,
        route: Option<Route>,
        status: StatusCode,
        request_id: &RequestId,
        clock: &dyn Clock,
    ) {
        if !self.context.sampled {
            return;
        }
        self.sink.ended(ServerSpan {
            service,
            context: self.context,
            parent: self.parent,
            started: self.started,
            took: clock.ticks().since(self.since),
            method: self.method,
            route,
            status,
            request_id: request_id.clone(),
        });
    }
}

/// A service that is asked by a function call in place of a request over the wire.
#[derive(Clone, Copy)]
pub struct Callee<'c> {
    /// Which.
    pub service: &'static str,
    /// The route that the request would have taken, with `POST`.
    pub route: &'static str,
    /// Names its span.
    pub ids: &'c Ids,
    /// Measures it.
    pub clock: &'c dyn Clock,
}

impl std::fmt::Debug for Callee<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Callee({} {})", self.service, self.route)
    }
}

/// Has `callee` do `work` for the request that this task handles: a span of its own below that of
/// the request, while spans are taken. `status` is what the answer would be over the wire.
pub async fn called<T>(
    callee: Callee<'_>,
    work: impl Future<Output = T>,
    status: impl FnOnce(&T) -> StatusCode,
) -> T {
    let Callee { ids, clock, .. } = callee;
    let Some((mut current, caller)) = current(|at| Some((at.clone(), at.trace?))).flatten() else {
        return work.await;
    };
    let Some(span) = Begun::below(Some(caller), ids, clock, &Method::POST) else {
        return work.await;
    };
    let request_id = current.request_id.clone();
    current.trace = Some(span.context);
    let answer = within(current, work).await;
    let route = Some(Route::Called(callee.route));
    span.end(callee.service, route, status(&answer), &request_id, clock);
    answer
}

#[cfg(test)]
mod tests {
    use caracal_model::{TestClock, TestRng};

    use super::*;

    #[test]
    fn a_traceparent_is_read_as_the_specification_says() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = TraceContext::parse(text).unwrap();
        assert_eq!(context.header().unwrap(), text);
        assert_eq!(context.trace_text(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(TraceContext::parse(&format!("cc{}-what-will-be", &text[2..])).is_some());
        assert!(
            !TraceContext::parse(&text.replace("-01", "-00"))
                .unwrap()
                .sampled
        );
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(TraceContext::parse(wrong), None, "{wrong}");
        }
        let mut twice = HeaderMap::new();
        twice.append(TRACEPARENT, text.parse().unwrap());
        assert_eq!(TraceContext::of(&twice), Some(context));
        twice.append(TRACEPARENT, text.parse().unwrap());
        assert_eq!(TraceContext::of(&twice), None);
    }

    #[test]
    fn a_child_keeps_trace_and_choice() {
        let ids = Ids::new(Arc::new(TestClock::default()), Arc::new(TestRng::default()));
        let fresh = TraceContext::fresh(&ids);
        assert!(fresh.sampled && fresh.trace >> 64 != 0);
        let child = fresh.child(&ids);
        assert_eq!((child.trace, child.sampled), (fresh.trace, true));
        assert_ne!(child.span, fresh.span);
        assert_eq!(
            TraceContext::parse(child.header().unwrap().to_str().unwrap()),
            Some(child)
        );
    }

    #[tokio::test]
    async fn a_task_knows_the_request_that_it_handles() {
        assert!(current(|_| ()).is_none());
        let request_id = RequestId::visible_ascii("r1").unwrap();
        let handled = Current {
            request_id,
            trace: None,
        };
        let id = within(handled, async { current(|at| at.request_id.to_string()) }).await;
        assert_eq!(id.as_deref(), Some("r1"));
    }
}
