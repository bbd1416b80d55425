use super::*;
use crate::egress::{AddressGuard, Resolver, SystemResolver, client_config, server_config};
use crate::{Limits, Peer, Server, Tasks};
use axum::extract::Extension;
use caracal_model::TestClock;
use http_body_util::BodyExt as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
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

fn forwarder(
    resolver: Arc<dyn Resolver>,
    extra_ca: Option<&Path>,
    pool: PoolSettings,
) -> Forwarder {
    let clock = Arc::new(TestClock::default());
    let egress = Egress::new(AddressGuard::upstream(), resolver, clock);
    Forwarder::new(egress, client_config(extra_ca).unwrap(), pool)
}

async fn get(forwarder: &Forwarder, uri: &str) -> Result<String, ForwardError> {
    let request = Request::get(uri).body(Body::empty()).unwrap();
    let response = forwarder.send(request, SOON).await?;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_blocked_host_is_told_from_one_that_does_not_answer() {
    let forwarder = forwarder(Arc::new(SystemResolver), None, PoolSettings::default());
    let blocked = get(&forwarder, "http://169.254.169.254/latest")
        .await
        .unwrap_err();
    assert!(
        matches!(blocked, ForwardError::Egress(EgressError::Blocked)),
        "{blocked:?}"
    );
    let refused = get(&forwarder, "http://127.0.0.1:1/").await.unwrap_err();
    assert!(matches!(refused, ForwardError::Transport(_)), "{refused:?}");
}

/// Certificate and key that stand in the open: they prove nothing to anybody.
fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(name)
}

#[tokio::test]
async fn tls_is_spoken_both_ways_and_only_to_the_named_host() {
    let certificate = testdata("test-only.pem");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hop = |Extension(peer): Extension<Peer>| async move { format!("tls: {}", peer.tls) };
    let router = axum::Router::new().fallback(hop);
    let tls = server_config(&certificate, &testdata("test-only.key")).unwrap();
    let server = Server::new(listener, router, Limits::default()).with_tls(tls);
    let tasks = Tasks::new();
    tasks.spawn("server", server.serve(tasks.stop()));

    let trusting = forwarder(Arc::new(Here), Some(&certificate), PoolSettings::default());
    for host in ["upstream.test", "localhost", "127.0.0.1"] {
        let answer = get(&trusting, &format!("https://{host}:{port}/")).await;
        assert_eq!(answer.unwrap(), "tls: true", "{host}");
    }
    let misnamed = get(&trusting, &format!("https://other.test:{port}/"))
        .await
        .unwrap_err();
    assert!(
        matches!(misnamed, ForwardError::Transport(_)),
        "{misnamed:?}"
    );
    let wary = forwarder(Arc::new(Here), None, PoolSettings::default());
    let unknown = get(&wary, &format!("https://upstream.test:{port}/"))
        .await
        .unwrap_err();
    assert!(matches!(unknown, ForwardError::Transport(_)), "{unknown:?}");
    let plain = get(&wary, &format!("http://upstream.test:{port}/")).await;
    assert!(plain.is_err(), "the listener speaks TLS only");
    assert!(tasks.shutdown(SOON).await.is_empty());
}

#[tokio::test]
async fn a_host_gets_no_more_requests_at_one_time_than_it_has_places() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(|| async { "fine" });
    let tasks = Tasks::new();
    tasks.spawn(
        "server",
        Server::new(listener, router, Limits::default()).serve(tasks.stop()),
    );
    let pool = PoolSettings {
        in_flight_per_host: 1,
        ..PoolSettings::default()
    };
    let forwarder = forwarder(Arc::new(SystemResolver), None, pool);
    let send = |within| {
        let request = Request::get(&url).body(Body::empty()).unwrap();
        forwarder.send(request, within)
    };
    let first = send(SOON).await.unwrap();
    let waited = send(Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(waited, ForwardError::TimedOut), "{waited:?}");
    drop(first);
    assert!(send(SOON).await.is_ok());
}
