use super::*;
use crate::egress::server_config;
use crate::{Limits, Server, Tasks};
use axum::response::{IntoResponse as _, Redirect};
use axum::routing::{get, post};
use caracal_model::TestClock;
use futures_util::stream;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::pin::Pin;
use tokio::net::TcpListener;

const SOON: Duration = Duration::from_secs(5);

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

fn testdata(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    directory.join(name)
}

/// A stranger that answers in every way that a fetch must survive.
async fn stranger(tasks: &Tasks) -> u16 {
    let endless = || {
        let chunk = || Ok::<_, io::Error>(Bytes::from_static(&[b'x'; 1024]));
        Body::from_stream(stream::repeat_with(chunk))
    };
    let silent = || Body::from_stream(stream::pending::<Result<Bytes, io::Error>>());
    let router = axum::Router::new()
        .route("/fine", get(|| async { "fine" }))
        .route("/echo", post(|body: String| async move { body }))
        .route("/moved", get(|| async { Redirect::temporary("/fine") }))
        .route(
            "/down",
            get(|| async { (http::StatusCode::BAD_GATEWAY, "no").into_response() }),
        )
        .route("/endless", get(move || async move { endless() }))
        .route("/silent", get(move || async move { silent() }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = server_config(&testdata("test-only.pem"), &testdata("test-only.key")).unwrap();
    let server = Server::new(listener, router, Limits::default()).with_tls(tls);
    tasks.spawn("server", server.serve(tasks.stop()));
    port
}

fn fetcher() -> Fetcher {
    let clock = Arc::new(TestClock::default());
    Fetcher::for_tests(Arc::new(Here), &testdata("test-only.pem"), clock).unwrap()
}

async fn told(fetcher: &Fetcher, request: Request<Bytes>, bounds: Bounds) -> String {
    match fetcher.fetch(request, bounds).await {
        Ok(answer) => {
            let text = String::from_utf8_lossy(answer.body()).into_owned();
            format!("{} {text}", answer.status().as_u16())
        }
        Err(error) => format!("{error:?}"),
    }
}

#[tokio::test]
async fn every_answer_is_whole_and_bounded_or_an_error() {
    let tasks = Tasks::new();
    let port = stranger(&tasks).await;
    let brief = Bounds {
        within: Duration::from_millis(300),
        bytes: 64 * 1024,
    };
    for (path, bounds, expected) in [
        ("/fine", Bounds::default(), "200 fine"),
        ("/moved", Bounds::default(), "307 "),
        ("/down", Bounds::default(), "502 no"),
        ("/endless", Bounds::default(), "TooLarge"),
        ("/silent", brief, "TimedOut"),
    ] {
        let uri = format!("https://upstream.test:{port}{path}");
        let request = Request::get(uri).body(Bytes::new()).unwrap();
        assert_eq!(told(&fetcher(), request, bounds).await, expected, "{path}");
    }
    let uri = format!("https://upstream.test:{port}/echo");
    let request = Request::post(uri).body(Bytes::from_static(b"a=b")).unwrap();
    assert_eq!(
        told(&fetcher(), request, Bounds::default()).await,
        "200 a=b"
    );
    assert!(tasks.shutdown(SOON).await.is_empty());
}

#[tokio::test]
async fn what_may_not_be_asked_is_refused_before_it_is_dialled() {
    let clock = || Arc::new(TestClock::default());
    let strict = Fetcher::strict(["listed.example".to_owned()], None, clock());
    let bad_roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bad_roots.path(), "not a certificate").unwrap();
    let closed = Fetcher::strict([], Some(bad_roots.path()), clock());
    for (fetcher, uri, expected) in [
        (&strict, "http://token.example/", "NotHttps"),
        (&strict, "/token", "NotHttps"),
        (&strict, "https://127.0.0.1/", "Blocked"),
        (&strict, "https://localhost/", "Blocked"),
        (&strict, "https://10.0.0.1/", "Blocked"),
        (&strict, "https://[::ffff:169.254.169.254]/", "Blocked"),
        (&closed, "https://token.example/", "NoRoots"),
    ] {
        let request = Request::get(uri).body(Bytes::new()).unwrap();
        assert_eq!(
            told(fetcher, request, Bounds::default()).await,
            expected,
            "{uri}"
        );
    }
}
