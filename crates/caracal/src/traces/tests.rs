use std::net::SocketAddr;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request as Incoming, State};
use axum::routing::{get, post};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::Ids;
use caracal_net::metrics::Registry;
use caracal_net::request_id::{Pattern, RequestIds, finish};
use caracal_net::trace::{TraceContext, current_trace};
use caracal_net::{Limits, Server};
use http_body_util::BodyExt as _;
use tokio::net::TcpListener;

use super::*;

type Collected = tokio::sync::mpsc::UnboundedSender<Vec<u8>>;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Takes what is posted to `/v1/traces`, but refuses the first message for now.
async fn collect(
    State((to, seen)): State<(Collected, Arc<AtomicU64>)>,
    request: Incoming,
) -> StatusCode {
    assert_eq!(request.headers()[CONTENT_TYPE], "application/x-protobuf");
    if seen.fetch_add(1, Ordering::SeqCst) == 0 {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    to.send(body.to_vec()).unwrap();
    StatusCode::OK
}

async fn served(router: Router, tasks: &Tasks) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::new(listener, router, Limits::default());
    tasks.spawn("server", server.serve(tasks.stop()));
    address
}

/// A service that says what trace it is in, and calls itself once below it.
fn service(clock: &Arc<dyn Clock>) -> Router {
    let registry = Registry::new(&caracal_gateway::CATALOGUE, clock.clone());
    let ids = Arc::new(Ids::new(clock.clone(), Arc::new(OsRng)));
    let says = || async {
        current_trace()
            .unwrap()
            .header()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    let router = Router::new()
        .route("/things/{id}", get(says))
        .route("/broken", get(|| async { StatusCode::BAD_GATEWAY }));
    finish(
        router,
        RequestIds::new(Pattern::VisibleAscii, ids).measured(&registry),
    )
}

async fn ask(address: SocketAddr, path: &str, parent: Option<&str>) -> String {
    let fetch = Fetcher::operator(None, Arc::new(SystemClock::new()));
    let mut request = Request::get(format!("http://{address}{path}")).header("x-request-id", "r-1");
    if let Some(parent) = parent {
        request = request.header("traceparent", parent);
    }
    let request = request.body(Bytes::new()).unwrap();
    let answer = fetch.fetch(request, Bounds::default()).await.unwrap();
    let body = answer.map(http_body_util::Full::new).into_body();
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A field of a protobuf message: its number, and what it holds.
#[derive(Debug)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

/// The fields of a message, in their order.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => Field::Number(u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut bytes);
                Field::Bytes(take(&mut bytes, usize::try_from(length).unwrap()).to_vec())
            }
            kind => panic!("wire type {kind} is not used"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn take<'b>(bytes: &mut &'b [u8], count: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return number;
        }
    }
    panic!("a number that does not end")
}

/// Every message of a field.
fn parts(message: &[u8], number: u64) -> Vec<Vec<u8>> {
    let of = |(field, held)| match held {
        Field::Bytes(bytes) if field == number => Some(bytes),
        _ => None,
    };
    fields(message).into_iter().filter_map(of).collect()
}

/// The one message of a field; empty when there is none.
fn part(message: &[u8], number: u64) -> Vec<u8> {
    parts(message, number).pop().unwrap_or_default()
}

/// Attributes by their names.
fn shown(message: &[u8], number: u64) -> BTreeMap<String, String> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let value = |any: Vec<u8>| match fields(&any).pop().unwrap() {
        (1, Field::Bytes(value)) => text(value),
        (3, Field::Number(value)) => value.to_string(),
        other => panic!("{other:?}"),
    };
    let attributes = parts(message, number).into_iter();
    attributes
        .map(|one| (text(part(&one, 1)), value(part(&one, 2))))
        .collect()
}

/// A number of a message; nought when it is not there.
fn held(message: &[u8], number: u64) -> u64 {
    let of = |(field, held)| match held {
        Field::Number(value) if field == number => Some(value),
        _ => None,
    };
    fields(message).into_iter().find_map(of).unwrap_or(0)
}

#[tokio::test]
async fn each_request_is_a_span_below_its_callers() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let tasks = Tasks::new();
    let (to, mut collected) = tokio::sync::mpsc::unbounded_channel();
    let seen = Arc::<AtomicU64>::default();
    let collector = Router::new().route("/base/v1/traces", post(collect));
    let collector = served(collector.with_state((to, seen)), &tasks).await;

    let fetch = Fetcher::operator(None, clock.clone());
    let endpoint = format!("http://{collector}/base/").parse().unwrap();
    let attributes = "team=a%20b,service.name=mine,broken";
    let (queue, exporter) = exporter(&endpoint, attributes, fetch).unwrap();
    assert!(export_to(Arc::new(queue)));
    tasks.spawn("traces", exporter.run(tasks.stop()));

    let service = served(service(&clock), &tasks).await;
    let below = ask(service, "/things/7", Some(PARENT)).await;
    let own = TraceContext::parse(&below).unwrap();
    let fresh = TraceContext::parse(&ask(service, "/things/8", None).await).unwrap();
    let unsampled = ask(service, "/things/9", Some(&PARENT.replace("-01", "-00"))).await;
    assert!(
        unsampled.ends_with("-00"),
        "who calls has decided: {unsampled}"
    );
    ask(service, "/broken", None).await;

    let mut spans = Vec::new();
    let mut resource = BTreeMap::new();
    while spans.len() < 3 {
        let waited = tokio::time::timeout(Duration::from_secs(30), collected.recv());
        for one in parts(&waited.await.unwrap().unwrap(), 1) {
            resource = shown(&part(&one, 1), 1);
            let scopes = parts(&one, 2).into_iter();
            spans.extend(scopes.flat_map(|scope| parts(&scope, 2)));
        }
    }
    let [first, second, broken] = spans.as_slice() else {
        unreachable!("{spans:?}")
    };
    assert_eq!(
        part(first, 1),
        0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes()
    );
    assert_eq!(part(first, 4), 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    assert_eq!(part(first, 2), own.span.to_be_bytes());
    assert_eq!(
        (part(first, 5), held(first, 6)),
        (b"caracal.gateway.http".to_vec(), 2)
    );
    let (start, end) = (held(first, 7), held(first, 8));
    assert!(
        start > 1_700_000_000_000_000_000 && end >= start,
        "{start} to {end}"
    );
    let expected = [
        ("caracal.request_id", "r-1"),
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.route", "/things/{id}"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(shown(first, 9), BTreeMap::from(expected));
    assert_eq!(part(second, 1), fresh.trace.to_be_bytes());
    assert!(parts(second, 4).is_empty() && parts(second, 15).is_empty());
    assert_eq!(held(&part(broken, 15), 3), 2);
    assert_eq!(resource["service.name"], "caracal-gateway");
    assert_eq!(resource["team"], "a b");
    assert!(!resource.contains_key("broken"));
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[test]
fn resource_attributes_are_decoded() {
    let read = resource_attributes("a=b%2Cc, d = e+f ,=x,y");
    let read: Vec<_> = read
        .iter()
        .map(|(name, value)| format!("{name}:{value}"))
        .collect();
    assert_eq!(read, ["a:b,c", "d:e+f"]);
}

#[test]
fn numbers_and_lengths_are_written_as_protobuf_has_them() {
    let inner = Message::default().number(1, 300).number(2, 0).text(3, "");
    let message = Message::default()
        .fixed64(1, 1)
        .message(2, &inner)
        .text(15, "x");
    let expected = [
        9, 1, 0, 0, 0, 0, 0, 0, 0, 0x12, 3, 8, 0xac, 2, 0x7a, 1, b'x',
    ];
    assert_eq!(message.into_bytes(), expected);
}
