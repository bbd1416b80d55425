//! The endpoints of operators.

use axum::extract::Request;
use axum::response::IntoResponse as _;
use serde_json::Value;

use crate::stack::{Stack, config};

async fn ask(stack: &Stack, method: &str, target: &str, headers: &str) -> String {
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: g\r\nConnection: close\r\n{headers}\r\n");
    let answer = stack.raw(&request).await;
    assert!(
        answer
            .header("x-request-id")
            .is_some_and(|id| id.len() == 36)
    );
    format!("{} {}", answer.status, answer.rest.trim_end())
}

#[tokio::test]
async fn probes_answer_without_a_credential() {
    let stack = Stack::start().await;
    assert_eq!(ask(&stack, "GET", "/health", "").await, "200 ");
    assert_eq!(ask(&stack, "POST", "/health", "").await, "200 ");
    assert_eq!(
        ask(&stack, "GET", "/ready", "").await,
        r#"200 {"ok":true,"ready":true}"#
    );
    *stack.exchange.healthy.lock().unwrap() = false;
    let not_ready =
        r#"503 {"error":"sts_unreachable","ok":false,"ready":false,"reason":"sts_unreachable"}"#;
    assert_eq!(ask(&stack, "GET", "/ready", "").await, not_ready);
    stack.evidence.close().await;
    stack.tasks.stop().cancel();
}

#[tokio::test]
async fn a_prefix_leaves_the_paths_of_probes_to_upstreams() {
    let mut config = config();
    config.operator_prefix = "/-/caracal".to_owned();
    let stack = Stack::with(config).await;
    stack
        .forwards_to(
            |request: Request| async move { request.uri().path().to_owned().into_response() },
        )
        .await;
    assert_eq!(ask(&stack, "GET", "/-/caracal/health", "").await, "200 ");
    let ready = ask(&stack, "GET", "/-/caracal/ready", "").await;
    assert_eq!(ready, r#"200 {"ok":true,"ready":true}"#);
    let text = ask(&stack, "GET", "/-/caracal/metrics", "").await;
    assert!(text.contains("caracal_gateway_requests_total"), "{text}");
    for path in ["/metrics.json", "/capacity"] {
        let answer = ask(&stack, "GET", &format!("/-/caracal{path}"), "").await;
        assert!(answer.starts_with("200 {"), "{answer}");
    }
    for path in [
        "/health",
        "/ready",
        "/metrics",
        "/metrics.json",
        "/capacity",
    ] {
        let stranger = ask(&stack, "GET", path, "").await;
        assert!(stranger.starts_with("401 "), "{path}: {stranger}");
        let answer = stack.get(path).await;
        assert_eq!((answer.status, answer.rest.trim_end()), (200, path));
    }
    // Neither what is below the prefix nor what only begins like it.
    for path in [
        "/-/caracal",
        "/-/caracal/",
        "/-/caracal/other",
        "/-/caracals/health",
    ] {
        let answer = stack.get(path).await;
        assert_eq!((answer.status, answer.rest.trim_end()), (200, path));
    }
    stack.stop().await;
}

#[tokio::test]
async fn a_reload_needs_the_operators_token() {
    let stack = Stack::start().await;
    stack.has_revoked("session_id", "record-9").await;
    let path = "/internal/revocations/reload";
    assert_eq!(ask(&stack, "POST", path, "").await, "404 not found");
    assert_eq!(
        ask(&stack, "POST", path, "Authorization: Bearer wrong\r\n").await,
        "404 not found"
    );
    let right = ask(&stack, "POST", path, "Authorization: Bearer operator\r\n").await;
    assert_eq!(right, r#"200 {"ok":true,"revocations":1}"#);
    let proxied = ask(&stack, "GET", path, "Authorization: Bearer operator\r\n").await;
    assert!(
        proxied.starts_with("401 "),
        "any other method is proxied: {proxied}"
    );
    stack.stop().await;
}

#[tokio::test]
async fn metrics_have_the_names_of_the_catalogue() {
    let stack = Stack::start().await;
    stack
        .forwards_to(|_| async { "fine".into_response() })
        .await;
    assert_eq!(stack.get("/").await.status, 200);
    assert_eq!(stack.get("/a/%2e%2e").await.status, 400);
    let text = ask(&stack, "GET", "/metrics", "").await;
    let differences = caracal_gateway::CATALOGUE.differences(&text);
    assert_eq!(differences, Vec::<String>::new());
    for name in [
        "requests",
        "requests_allowed",
        "requests_denied",
        "denials_missing_auth",
        "denials_bad_bearer",
        "denials_expiring",
        "denials_bad_routing",
        "denials_path_traversal",
        "denials_signature",
        "denials_jti_replay",
        "denials_revoked",
        "denials_revocation_stale",
        "sts_exchange_errors",
        "sts_circuit_opened",
        "sts_circuit_fast_fail",
        "upstream_errors",
        "audit_dropped",
        "audit_sink_errors",
        "audit_persisted",
        "audit_drained",
        "revocation_messages",
        "revocation_pending_replayed",
        "revocation_dead_letters",
        "revocation_invalid_signatures",
        "revocation_reloads",
        "revocation_reload_errors",
    ] {
        assert!(
            text.contains(&format!("# TYPE caracal_gateway_{name}_total counter\n")),
            "{name}"
        );
    }
    for name in [
        "sts_exchange_latency_ms",
        "sts_circuit_open",
        "audit_replay_files",
        "audit_replay_bytes",
        "audit_replay_oldest_age_seconds",
        "audit_queue_depth",
        "audit_queue_capacity",
        "revocations_active",
        "revocation_snapshot_age_seconds",
        "revocation_snapshot_fresh",
        "revocation_propagation_seconds",
    ] {
        assert!(
            text.contains(&format!("# TYPE caracal_gateway_{name} gauge\n")),
            "{name}"
        );
    }
    for line in [
        "caracal_gateway_requests_total 2\n",
        "caracal_gateway_requests_allowed_total 1\n",
        "caracal_gateway_denials_path_traversal_total 1\n",
        "caracal_gateway_revocation_snapshot_fresh 1\n",
        "caracal_gateway_upstream_duration_seconds_count 1\n",
        "caracal_db_pool_max_conns{service=\"gateway\"} ",
        "caracal_gateway_stage_duration_seconds_count{stage=\"upstream_headers\"} 1\n",
        "caracal_gateway_requests_in_flight 0\n",
        "caracal_http_request_duration_seconds_count{service=\"gateway\",route=\"*\",code=\"200\"} 1\n",
    ] {
        assert!(text.contains(line), "{line}");
    }
    let flat = ask(&stack, "GET", "/metrics.json", "").await;
    let flat: Value = serde_json::from_str(flat.strip_prefix("200 ").unwrap()).unwrap();
    assert_eq!(flat["requests_total"], 2);
    assert_eq!(flat["requests_allowed"], 1);
    assert!(flat["audit_queue_cap"].as_i64().unwrap() > 0);
    let capacity = ask(&stack, "GET", "/capacity", "").await;
    assert!(
        capacity.starts_with("200 ") && capacity.contains("sts_circuit"),
        "{capacity}"
    );
    // With a resource, it is a path like any other.
    let resource = "X-Caracal-Resource: resource://desk\r\n";
    let proxied = ask(&stack, "GET", "/capacity", resource).await;
    assert!(proxied.starts_with("401 "), "{proxied}");
    stack.stop().await;
}
