//! Server spans to a collector, by OTLP over HTTP with protobuf (operations specification §2.6).
//!
//! **Forces.** A collector that is slow or away must cost requests nothing, and this process no more
//! than a bounded piece of memory. **Choice.** Spans go into a queue that drops what it has no room
//! for; one loop sends whatever has gathered. A batch that the collector says it cannot take now is
//! tried again, twice; then it is given up and said so in the log.

mod otlp;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use caracal_model::Clock;
use caracal_net::Tasks;
use caracal_net::egress::{Bounds, FetchError, Fetcher};
use caracal_net::trace::{ServerSpan, SpanSink, export_to};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;
use url::Url;

use self::otlp::Message;
use crate::platform::Settings;
use crate::telemetry;
use crate::version::VERSION;

/// Spans that wait, at most.
const ROOM: usize = 4_096;
/// Spans of one message.
const BATCH: usize = 512;
/// How long a span waits for company.
const GATHER: Duration = Duration::from_secs(1);
/// Longest wait for the collector.
const WITHIN: Duration = Duration::from_secs(5);
/// `SPAN_KIND_SERVER`
const SERVER: u64 = 2;
/// `STATUS_CODE_ERROR`
const ERROR: u64 = 2;
/// Pauses before a batch is tried again.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// The way in: requests leave their spans here.
struct Queue {
    spans: Sender<ServerSpan>,
    dropped: Arc<AtomicU64>,
}

impl SpanSink for Queue {
    fn ended(&self, span: ServerSpan) {
        if self.spans.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends spans to the collector that is set, under `tasks`; without one, nothing is traced.
pub fn start(settings: &Settings, clock: Arc<dyn Clock>, tasks: &Tasks) -> anyhow::Result<()> {
    let Some(endpoint) = &settings.otlp_endpoint else {
        return Ok(());
    };
    let protocol = &settings.otlp_protocol;
    let fetch = Fetcher::operator(settings.extra_ca.as_deref(), clock);
    let attributes = settings.resource_attributes.as_deref();
    let (queue, exporter) = exporter(endpoint, attributes.unwrap_or_default(), fetch)?;
    if export_to(Arc::new(queue)) {
        tasks.spawn("traces", exporter.run(tasks.stop()));
        tracing::info!(collector = %exporter_host(endpoint), %protocol, "server spans are exported");
    }
    Ok(())
}

/// Without what may be a credential in it.
fn exporter_host(endpoint: &Url) -> String {
    endpoint.host_str().unwrap_or_default().to_owned()
}

fn exporter(endpoint: &Url, attributes: &str, fetch: Fetcher) -> anyhow::Result<(Queue, Exporter)> {
    let base = endpoint.as_str().trim_end_matches('/');
    let url = format!("{base}/v1/traces").parse();
    let (spans, queue) = channel(ROOM);
    let dropped = Arc::<AtomicU64>::default();
    let exporter = Exporter {
        url: url.context("OTEL_EXPORTER_OTLP_ENDPOINT cannot be used")?,
        attributes: resource_attributes(attributes),
        fetch,
        queue,
        dropped: Arc::clone(&dropped),
    };
    Ok((Queue { spans, dropped }, exporter))
}

/// The loop that sends.
struct Exporter {
    url: Uri,
    attributes: BTreeMap<String, String>,
    fetch: Fetcher,
    queue: Receiver<ServerSpan>,
    dropped: Arc<AtomicU64>,
}

impl Exporter {
    /// Sends until told to stop, and then what is left, once.
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let mut spans = Vec::with_capacity(BATCH);
            let first = self.queue.recv_many(&mut spans, BATCH);
            if stop.run_until_cancelled(first).await.is_none() {
                break;
            }
            if spans.len() < BATCH {
                // Whoever comes soon travels along.
                let _ = stop.run_until_cancelled(tokio::time::sleep(GATHER)).await;
                self.take(&mut spans);
            }
            self.deliver(&spans, &stop).await;
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                tracing::warn!(dropped, "spans were dropped: the collector is too slow");
            }
        }
        let mut left = Vec::new();
        self.take(&mut left);
        if !left.is_empty()
            && let Err(error) = self.send(&left).await
        {
            tracing::warn!(%error, spans = left.len(), "the last spans were not exported");
        }
    }

    /// Adds what waits, up to a whole batch.
    fn take(&mut self, spans: &mut Vec<ServerSpan>) {
        while spans.len() < BATCH
            && let Ok(span) = self.queue.try_recv()
        {
            spans.push(span);
        }
    }

    async fn deliver(&self, spans: &[ServerSpan], stop: &CancellationToken) {
        let mut pauses = AGAIN.iter();
        loop {
            let error = match self.send(spans).await {
                Ok(()) => return,
                Err(error) => error,
            };
            let pause = pauses.next().filter(|_| error.is_transient());
            let Some(pause) = pause else {
                tracing::warn!(%error, spans = spans.len(), "spans were not exported");
                return;
            };
            let _ = stop.run_until_cancelled(tokio::time::sleep(*pause)).await;
        }
    }

    async fn send(&self, spans: &[ServerSpan]) -> Result<(), Refused> {
        let message = message(spans, &self.attributes).into_bytes();
        let mut request = Request::new(Bytes::from(message));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let kind = HeaderValue::from_static("application/x-protobuf");
        request.headers_mut().insert(CONTENT_TYPE, kind);
        let bounds = Bounds {
            within: WITHIN,
            ..Bounds::default()
        };
        let answer = self.fetch.fetch(request, bounds).await?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(Refused::Status(status)),
        }
    }
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the collector cannot be reached: {0}")]
    Away(#[from] FetchError),
    #[error("the collector answered {0}")]
    Status(StatusCode),
}

impl Refused {
    /// As OTLP has it: these statuses invite another attempt, all others do not.
    fn is_transient(&self) -> bool {
        match self {
            Self::Away(error) => error.is_transient(),
            Self::Status(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
        }
    }
}

/// `ExportTraceServiceRequest`: the spans of each service, under its resource.
fn message(spans: &[ServerSpan], attributes: &BTreeMap<String, String>) -> Message {
    let mut by_service: BTreeMap<&str, Vec<Message>> = BTreeMap::new();
    for span in spans {
        by_service.entry(span.service).or_default().push(wire(span));
    }
    let scope = Message::default().text(1, "caracal").text(2, VERSION);
    let resources = by_service.into_iter().map(|(service, spans)| {
        let scoped = Message::default().message(1, &scope).messages(2, spans);
        Message::default()
            .message(1, &resource(service, attributes))
            .message(2, &scoped)
    });
    Message::default().messages(1, resources)
}

/// `Resource`. Who the service is cannot be set otherwise: several may be in one process.
fn resource(service: &str, attributes: &BTreeMap<String, String>) -> Message {
    let own = [
        ("service.name", format!("caracal-{service}")),
        ("service.version", VERSION.to_owned()),
        ("host.name", telemetry::hostname()),
        ("process.pid", std::process::id().to_string()),
    ];
    let given = attributes
        .iter()
        .filter(|(name, _)| own.iter().all(|(own, _)| own != name))
        .map(|(name, value)| otlp::text(name, value));
    let own = own.iter().map(|(name, value)| otlp::text(name, value));
    Message::default().messages(1, own.chain(given))
}

/// `Span`.
fn wire(span: &ServerSpan) -> Message {
    let start = u64::try_from(span.started.unix_micros()).unwrap_or(0);
    let start = start.saturating_mul(1_000);
    let took = u64::try_from(span.took.as_nanos()).unwrap_or(u64::MAX);
    let mut attributes = vec![
        otlp::text("http.request.method", span.method.as_str()),
        otlp::number("http.response.status_code", span.status.as_u16().into()),
        otlp::text("caracal.request_id", span.request_id.as_str()),
    ];
    if let Some(route) = &span.route {
        attributes.push(otlp::text("http.route", route.as_str()));
    }
    let parent = span.parent.map(u64::to_be_bytes);
    let wire = Message::default()
        .bytes(1, &span.context.trace.to_be_bytes())
        .bytes(2, &span.context.span.to_be_bytes())
        .bytes(4, parent.as_ref().map_or(&[], |id| id.as_slice()))
        .text(5, &format!("caracal.{}.http", span.service))
        .number(6, SERVER)
        .fixed64(7, start)
        .fixed64(8, start.saturating_add(took))
        .messages(9, attributes);
    if span.status.is_server_error() {
        return wire.message(15, &Message::default().number(3, ERROR));
    }
    wire
}

/// `OTEL_RESOURCE_ATTRIBUTES`: `name=value,name=value`, percent-encoded. What is not of this form is
/// left out.
fn resource_attributes(text: &str) -> BTreeMap<String, String> {
    let decoded = |text: &str| {
        let plus = text.trim().replace('+', "%2B");
        let mut pairs = url::form_urlencoded::parse(plus.as_bytes());
        pairs.next().map(|(name, _)| name.into_owned())
    };
    text.split(',')
        .filter_map(|pair| pair.split_once('='))
        .filter_map(|(name, value)| Some((decoded(name)?, decoded(value)?)))
        .collect()
}

#[cfg(test)]
mod tests;
