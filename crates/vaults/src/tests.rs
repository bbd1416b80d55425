//! Each backend against a server on this machine that answers as the real one is documented to, and
//! writes down what it was asked. A real one runs only in [`real`].

mod clouds;
mod logins;
mod real;
mod settings;
mod shapes;

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use caracal_crypto::os::SystemClock;
use caracal_model::{Secret, TestClock};
use caracal_net::egress::Fetcher;
use caracal_net::{Limits, Server, Tasks};
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;
use url::Url;

use crate::token::{Authorized, Given, Shown};
use crate::wire::Wire;

/// The reference of every test.
const AT: &str = "zones/z1/providers/p1/secretConfig";
/// Bytes that are no text.
const ENVELOPE: &[u8] = b"CSS1\xff\x00\x01sealed";
/// The same in base64.
const TEXT: &str = "Q1NTMf8AAXNlYWxlZA==";

/// A server that answers as told, in order.
struct Far {
    url: Url,
    seen: Arc<Seen>,
    _tasks: Tasks,
}

#[derive(Default)]
struct Seen {
    answers: Mutex<VecDeque<(u16, Value)>>,
    asked: Mutex<Vec<String>>,
}

/// Headers that are part of the contract.
const TOLD: [&str; 10] = [
    "authorization",
    "content-type",
    "host",
    "metadata",
    "metadata-flavor",
    "x-amz-date",
    "x-amz-security-token",
    "x-amz-target",
    "x-vault-namespace",
    "x-vault-token",
];

async fn answer(State(seen): State<Arc<Seen>>, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let mut told = format!("{} {}", head.method, head.uri);
    for name in TOLD.iter().filter(|name| **name != "host") {
        if let Some(value) = head.headers.get(*name) {
            told.push_str(&format!("\n{name}: {}", value.to_str().unwrap()));
        }
    }
    if !body.is_empty() {
        told.push_str(&format!("\n\n{}", String::from_utf8_lossy(&body)));
    }
    seen.asked.lock().push(told);
    let next = seen.answers.lock().pop_front();
    let (status, body) = next.unwrap_or((500, Value::from("nothing left to answer")));
    let status = StatusCode::from_u16(status).unwrap();
    match body {
        Value::Null => status.into_response(),
        Value::String(text) => (status, text).into_response(),
        body => (status, axum::Json(body)).into_response(),
    }
}

impl Far {
    async fn start() -> Self {
        let seen = Arc::<Seen>::default();
        let router = Router::new().fallback(answer).with_state(seen.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tasks = Tasks::new();
        let server = Server::new(listener, router, Limits::default());
        tasks.spawn("far", server.serve(tasks.stop()));
        Self {
            url: Url::parse(&format!("http://127.0.0.1:{port}")).unwrap(),
            seen,
            _tasks: tasks,
        }
    }

    fn answers(&self, answers: impl IntoIterator<Item = (u16, Value)>) {
        self.seen.answers.lock().extend(answers);
    }

    /// What it was asked since this was last called.
    fn asked(&self) -> Vec<String> {
        assert!(
            self.seen.answers.lock().is_empty(),
            "fewer requests than answers"
        );
        std::mem::take(&mut *self.seen.asked.lock())
    }

    /// It was asked this since then, and nothing else.
    #[track_caller]
    fn was_asked<const N: usize>(&self, expected: [&str; N]) {
        assert_eq!(self.asked(), expected);
    }

    fn url(&self, path: &str) -> Url {
        self.url.join(path).unwrap()
    }
}

fn fetch() -> Fetcher {
    Fetcher::operator(None, Arc::new(SystemClock::new()))
}

fn wire(name: &'static str) -> Wire {
    Wire::new(name, fetch())
}

fn given(name: &'static str, given: Given, shown: Shown) -> Authorized {
    Authorized::new(
        wire(name),
        Box::new(given),
        shown,
        Arc::new(TestClock::default()),
    )
}

fn text(token: &str) -> Given {
    Given::Text(Secret::new(token.to_owned()))
}
