//! A server that says yes to the bench's every request, so that the whole run can be tested
//! without a real one.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// What reached the fake.
#[derive(Default)]
pub struct Seen {
    pub ids: AtomicU64,
    pub exchanges: AtomicU64,
    pub forwarded: AtomicU64,
    pub ended: AtomicU64,
    /// Every `n`th Gateway call is refused; 0 refuses none.
    pub refuse_every: AtomicU64,
    /// Events that the audit read keeps back.
    pub lost: AtomicU64,
}

/// Listens on a free port; one base URL serves all four services.
pub async fn start() -> (String, Arc<Seen>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Seen::default());
    let state = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let state = Arc::clone(&state);
            let service = service_fn(move |request| answer(Arc::clone(&state), request));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (url, seen)
}

async fn answer(
    seen: Arc<Seen>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let (status, body) = route(
        &seen,
        &head.method,
        head.uri.path(),
        head.uri.query(),
        &body,
    );
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

fn route(
    seen: &Seen,
    method: &Method,
    path: &str,
    query: Option<&str>,
    body: &[u8],
) -> (u16, Value) {
    let id = seen.ids.fetch_add(1, Ordering::Relaxed);
    if path == "/oauth/2/token" {
        let form = std::str::from_utf8(body).unwrap();
        assert!(form.contains("client_secret=cs_"), "{form}");
        seen.exchanges.fetch_add(1, Ordering::Relaxed);
        return (
            200,
            json!({ "access_token": format!("token.{id}"), "expires_in": 900 }),
        );
    }
    if path == "/" {
        let n = seen.forwarded.load(Ordering::Relaxed);
        let every = seen.refuse_every.load(Ordering::Relaxed);
        if every > 0 && seen.ids.load(Ordering::Relaxed).is_multiple_of(every) {
            return (503, json!({ "error": "sts_unavailable" }));
        }
        seen.forwarded.store(n + 1, Ordering::Relaxed);
        seen.exchanges.fetch_add(1, Ordering::Relaxed);
        return (200, json!({ "ok": true }));
    }
    if *method == Method::DELETE {
        seen.ended.fetch_add(1, Ordering::Relaxed);
        return (204, Value::Null);
    }
    if path.ends_with("/audit") {
        return (200, audit(seen, query.unwrap_or_default()));
    }
    let body = json!({
        "id": format!("id-{id}"),
        "version_id": format!("version-{id}"),
        "client_secret": "cs_secret",
        "agent_session_id": format!("session-{id}"),
        "delegation_edge_id": format!("edge-{id}"),
        "status_url": "/v1/status",
        "propagation_status": "loaded",
    });
    (if *method == Method::GET { 200 } else { 201 }, body)
}

/// Pages of 1000, with the offset as cursor.
fn audit(seen: &Seen, query: &str) -> Value {
    let offset: usize = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("cursor="))
        .map_or(0, |cursor| cursor.parse().unwrap());
    let count = |of: &AtomicU64| usize::try_from(of.load(Ordering::Relaxed)).unwrap();
    let kept = count(&seen.exchanges) - count(&seen.lost);
    let page: Vec<Value> = std::iter::repeat_n("token_exchange", kept)
        .chain(std::iter::repeat_n(
            "gateway_resource_request",
            count(&seen.forwarded),
        ))
        .skip(offset)
        .take(1000)
        .map(|kind| json!({ "event_type": kind }))
        .collect();
    let next = (page.len() == 1000).then(|| (offset + 1000).to_string());
    json!({ "items": page, "next_cursor": next })
}
