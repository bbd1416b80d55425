//! `caracal audit` against an API behind HTTPS: whom it trusts, and whom not.

use std::path::Path;
use std::process::{Command, Output};

use axum::Json;
use axum::http::HeaderMap;
use caracal_net::egress::server_config;
use caracal_net::testing::authority;
use caracal_net::{Limits, Server};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::{fails, succeeds};

/// An API that has nothing but one key, behind the certificate of `ours`: its port, and what runs it.
fn serve(at: &Path, stop: &CancellationToken) -> (u16, Runtime) {
    let config = server_config(&at.join("ours.pem"), &at.join("ours.key")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0");
    let listener = runtime.block_on(listener).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = |headers: HeaderMap| async move {
        assert_eq!(
            headers.get("authorization").unwrap(),
            "Bearer token-of-a-test"
        );
        Json(json!({"items": [{
            "id": "1", "key": "a-key", "status": "signing", "private_key": "kept",
            "created_at": "2026-05-21T12:00:00.000Z",
        }]}))
    };
    let nothing = || async { Json(json!({"items": []})) };
    let router = axum::Router::new()
        .route("/v1/audit-keys", axum::routing::get(answer))
        .fallback(nothing);
    let server = Server::new(listener, router, Limits::default()).with_tls(config);
    runtime.spawn(server.serve(stop.clone()));
    (port, runtime)
}

#[test]
fn an_api_behind_https_is_asked_with_the_roots_of_the_system_or_those_that_are_given() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    for name in ["ours", "theirs"] {
        authority(at, name);
    }
    std::fs::write(at.join("token"), "token-of-a-test").unwrap();
    std::fs::write(at.join("none.pem"), "no certificate").unwrap();
    let stop = CancellationToken::new();
    let (port, _runtime) = serve(at, &stop);
    let file = |name: &str| at.join(name).display().to_string();
    let asked = |command: &str, more: &str, set: &[(&str, String)]| -> Output {
        let line = format!(
            "audit {command} --api-url https://localhost:{port} --admin-token-file {} {more}",
            file("token")
        );
        Command::new(env!("CARGO_BIN_EXE_caracal"))
            .args(line.split_whitespace())
            .env_clear()
            .env("CARACAL_HOME", at.join("data"))
            .envs(set.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap()
    };
    let (ours, theirs) = (file("ours-ca.pem"), file("theirs-ca.pem"));
    let list = "keys list";
    // An authority that nobody gave is not believed.
    for (more, set) in [
        (String::new(), vec![("SSL_CERT_FILE", theirs.clone())]),
        (format!("--api-ca-file {theirs}"), vec![]),
        (
            format!("--api-ca-file {theirs}"),
            vec![("CARACAL_TLS_EXTRA_CA_FILE", ours.clone())],
        ),
    ] {
        let told = fails(&asked(list, &more, &set));
        assert!(told.contains("unreachable"), "{told}");
    }
    // The first stands for a public root.
    for (more, set) in [
        (String::new(), vec![("SSL_CERT_FILE", ours.clone())]),
        (
            String::new(),
            vec![("CARACAL_TLS_EXTRA_CA_FILE", ours.clone())],
        ),
        (format!("--api-ca-file {ours}"), vec![]),
    ] {
        assert!(succeeds(&asked(list, &more, &set)).contains("a-key"));
    }
    let told = fails(&asked(
        list,
        &format!("--api-ca-file {}", file("absent.pem")),
        &[],
    ));
    assert!(told.contains("absent.pem is not there"), "{told}");
    let told = fails(&asked(
        list,
        &format!("--api-ca-file {}", file("none.pem")),
        &[],
    ));
    assert!(told.contains("PEM"), "{told}");
    // What hands out nothing is not told as sound.
    let ca = format!("--api-ca-file {ours}");
    let told = fails(&asked("verify --zone z1", &ca, &[]));
    assert!(
        told.contains("nothing  the API hands out no events"),
        "{told}"
    );
    assert!(
        told.contains("2 logs were not verified")
            && told.contains("nothing was verified")
            && !told.contains("holds"),
        "{told}"
    );
    let told = fails(&asked("tail --zone z1", &ca, &[]));
    assert!(told.contains("no stream of events"), "{told}");
    for command in ["trace r1 --zone z1", "explain r1 --zone z1"] {
        let reached = asked(command, &ca, &[]);
        let told = super::said(&reached);
        assert!(!told.contains("unreachable"), "{command}: {told}");
    }
    stop.cancel();
}
