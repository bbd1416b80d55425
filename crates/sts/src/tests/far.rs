//! A token endpoint that behaves as told, over TLS on this machine.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use caracal_crypto::os::SystemClock;
use caracal_net::egress::{Fetcher, Resolver, server_config};
use caracal_net::{Limits, Server, Tasks};
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How the endpoint behaves, and what it was asked.
#[derive(Default)]
pub struct Endpoint {
    pub mode: Mutex<&'static str>,
    pub asked: Mutex<Vec<BTreeMap<String, String>>>,
    /// The refresh token that is good now: each use replaces it.
    pub refresh: Mutex<String>,
    /// What is `late` is answered once this is told.
    pub now: tokio::sync::Notify,
}

impl Endpoint {
    pub fn count(&self) -> usize {
        self.asked.lock().len()
    }
}

async fn token(State(endpoint): State<Arc<Endpoint>>, form: String) -> Response {
    let form: BTreeMap<String, String> = form_urlencoded::parse(form.as_bytes())
        .into_owned()
        .collect();
    endpoint.asked.lock().push(form.clone());
    let n = endpoint.count();
    let answer = |body: Value| axum::Json(body).into_response();
    let mode = *endpoint.mode.lock();
    if let Some(lie) = lie(mode).await {
        return lie;
    }
    let late = mode.strip_prefix("late");
    if late.is_some() {
        endpoint.now.notified().await;
    }
    match late.unwrap_or(mode).trim_start() {
        "once down" if n == 1 => (StatusCode::BAD_GATEWAY, "down").into_response(),
        "denies" => (
            StatusCode::BAD_REQUEST,
            axum::Json(json!({"error": "invalid_grant"})),
        )
            .into_response(),
        "other type" => answer(json!({"access_token": "t", "token_type": "mac"})),
        "rotating" => {
            let mut good = endpoint.refresh.lock();
            if form.get("refresh_token") != Some(&*good) {
                return (
                    StatusCode::BAD_REQUEST,
                    axum::Json(json!({"error": "invalid_grant"})),
                )
                    .into_response();
            }
            *good = format!("r{n}");
            answer(
                json!({"access_token": format!("t{n}"), "token_type": "bearer", "expires_in": 600, "refresh_token": *good}),
            )
        }
        _ => answer(
            json!({"access_token": format!("t{n}"), "token_type": "Bearer", "expires_in": 600}),
        ),
    }
}

/// What neither a token endpoint nor an issuer should answer.
async fn lie(mode: &str) -> Option<Response> {
    Some(match mode {
        "slow" => std::future::pending().await,
        "slow body" => {
            let first = futures_util::stream::iter([Ok::<_, io::Error>("{")]);
            let never = futures_util::stream::pending();
            let body = futures_util::StreamExt::chain(first, never);
            axum::body::Body::from_stream(body).into_response()
        }
        "down" => (StatusCode::SERVICE_UNAVAILABLE, "down").into_response(),
        "moved" => Redirect::temporary("https://elsewhere.example/").into_response(),
        "huge" => "x".repeat(300_000).into_response(),
        "garbage" => "access_token=t".into_response(),
        "page" => axum::response::Html("<h1>Sign in</h1>").into_response(),
        _ => return None,
    })
}

async fn keys(State(endpoint): State<Arc<Endpoint>>) -> Response {
    let mode = *endpoint.mode.lock();
    let lie = lie(mode).await;
    lie.unwrap_or_else(|| axum::Json(json!({"keys": []})).into_response())
}

/// Every name is this machine.
struct Here;

impl Resolver for Here {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>> {
        Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) })
    }
}

/// Certificate and key that stand in the open: they prove nothing to anybody.
fn testdata(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../net/testdata");
    directory.join(name)
}

/// The endpoint, and who may ask it.
pub struct Far {
    pub endpoint: Arc<Endpoint>,
    pub url: String,
    /// Finds it under every name.
    pub fetch: Fetcher,
    pub tasks: Tasks,
}

impl Far {
    pub async fn start() -> Self {
        let endpoint = Arc::new(Endpoint::default());
        let router = Router::new()
            .route("/token", post(token))
            .route("/keys", get(keys))
            .with_state(endpoint.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!(
            "https://upstream.test:{}/token",
            listener.local_addr().unwrap().port()
        );
        let tls = server_config(&testdata("test-only.pem"), &testdata("test-only.key")).unwrap();
        let tasks = Tasks::new();
        let server = Server::new(listener, router, Limits::default()).with_tls(tls);
        tasks.spawn("endpoint", server.serve(tasks.stop()));
        let clock = Arc::new(SystemClock::new());
        let fetch = Fetcher::for_tests(Arc::new(Here), &testdata("test-only.pem"), clock).unwrap();
        Self {
            endpoint,
            url,
            fetch,
            tasks,
        }
    }

    /// From now on it behaves so, and was asked nothing yet.
    pub fn behaves(&self, mode: &'static str) {
        *self.endpoint.mode.lock() = mode;
        self.endpoint.asked.lock().clear();
    }
}
