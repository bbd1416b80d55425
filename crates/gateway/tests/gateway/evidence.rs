//! What is on record afterwards.

use axum::response::IntoResponse as _;
use serde_json::{Value, json};

use crate::stack::Stack;

/// The members of a record that do not change from run to run.
fn steady(mut event: Value) -> Value {
    let members = event.as_object_mut().unwrap();
    for name in ["id", "occurred_at"] {
        assert!(
            members
                .remove(name)
                .is_some_and(|value| !value.as_str().unwrap().is_empty())
        );
    }
    let metadata = event["metadata_json"].as_object_mut().unwrap();
    for name in [
        "latency_ms",
        "subject_fingerprint",
        "subject_fp",
        "jti",
        "trace_id",
    ] {
        if let Some(value) = metadata.get_mut(name) {
            *value = json!("(some)");
        }
    }
    event
}

#[tokio::test]
async fn an_allowed_call_is_on_record_before_its_answer_is_complete() {
    let stack = Stack::start().await;
    let url = stack
        .forwards_to(|_| async { (http::StatusCode::CREATED, "made").into_response() })
        .await;
    stack.directive(
        json!({"url": url, "auth_mode": "provider_oauth", "provider_token": "t",
        "provider_id": "prov-1", "connection_id": "conn-1"}),
    );
    let head = stack.head("POST", "/secret-path?secret=query");
    let answer = stack.raw(&format!("{head}X-Request-Id: r-1\r\n\r\n")).await;
    assert!(answer.is_complete());
    assert_eq!(
        stack.evidence.stats().persisted,
        1,
        "recorded when the answer was complete"
    );
    let record = steady(stack.events(1).await.pop().unwrap());
    insta::assert_snapshot!(serde_json::to_string_pretty(&record).unwrap(), @r#"
    {
      "decision": "allow",
      "determining_policies_json": [],
      "diagnostics_json": [],
      "evaluation_status": "executed",
      "event_type": "gateway_resource_request",
      "metadata_json": {
        "application_id": "app-1",
        "auth_mode": "provider_oauth",
        "connection_id": "conn-1",
        "gateway_status": 201,
        "latency_ms": "(some)",
        "method": "POST",
        "provider_id": "prov-1",
        "resource": "resource://desk",
        "response_bytes": 4,
        "result_class": "success",
        "subject_fingerprint": "(some)",
        "subject_kind": "application",
        "trace_id": "(some)",
        "upstream_host": "127.0.0.1",
        "upstream_status": 201
      },
      "request_id": "r-1",
      "zone_id": "z1"
    }
    "#);
    stack.stop().await;
}

#[tokio::test]
async fn a_replay_and_a_revoked_mandate_are_on_record() {
    let stack = Stack::start().await;
    stack
        .forwards_to(|_| async { "fine".into_response() })
        .await;
    let once = format!("{}X-Request-Id: r-1\r\n\r\n", stack.head("GET", "/"));
    assert_eq!(stack.raw(&once).await.status, 200);
    assert_eq!(stack.raw(&once).await.status, 401);
    let replay = steady(stack.events(2).await.pop().unwrap());
    insta::assert_snapshot!(serde_json::to_string_pretty(&replay).unwrap(), @r#"
    {
      "decision": "deny",
      "determining_policies_json": [],
      "diagnostics_json": [],
      "evaluation_status": "anomaly",
      "event_type": "replay_detected",
      "metadata_json": {
        "client_id": "app-1",
        "jti": "(some)",
        "request_id": "r-1",
        "resource": "resource://desk",
        "subject_fp": "(some)"
      },
      "request_id": "r-1",
      "zone_id": "z1"
    }
    "#);

    stack.has_revoked("session_id", "record-1").await;
    let head = stack.head("GET", "/");
    assert_eq!(
        stack
            .raw(&format!("{head}X-Request-Id: r-2\r\n\r\n"))
            .await
            .status,
        401
    );
    let denied = steady(stack.events(3).await.pop().unwrap());
    insta::assert_snapshot!(serde_json::to_string_pretty(&denied).unwrap(), @r#"
    {
      "decision": "deny",
      "determining_policies_json": [],
      "diagnostics_json": [],
      "evaluation_status": "revoked",
      "event_type": "gateway_request_denied",
      "metadata_json": {
        "application_id": "app-1",
        "reason": "revoked",
        "resource": "resource://desk",
        "subject_fingerprint": "(some)"
      },
      "request_id": "r-2",
      "zone_id": "z1"
    }
    "#);
    stack.stop().await;
}

#[tokio::test]
async fn a_flood_of_denials_is_counted_not_recorded_one_by_one() {
    let stack = Stack::start().await;
    stack.has_revoked("session_id", "record-1").await;
    for _ in 0..50 {
        assert_eq!(stack.get("/").await.status, 401);
    }
    let events = stack.stop().await;
    assert_eq!(events.len(), 21);
    let told: u64 = events
        .iter()
        .map(|event| event["metadata_json"]["suppressed"].as_u64().unwrap_or(0))
        .sum();
    assert_eq!(told, 30);
}

#[tokio::test]
async fn what_proves_nothing_is_on_record_as_nobodys_and_counted() {
    let stack = Stack::start().await;
    let head = stack.head("GET", "/").replace("Bearer ey", "Bearer ex");
    for _ in 0..30 {
        assert_eq!(stack.raw(&format!("{head}\r\n")).await.status, 401);
    }
    assert_eq!(stack.get("/a/%2e%2e/b").await.status, 400);
    let events = stack.stop().await;
    assert_eq!(events.len(), 3, "{events:?}");
    let mut told: Vec<String> = events
        .iter()
        .map(|event| {
            assert_eq!(event["zone_id"], "unknown");
            assert_eq!(event["event_type"], "gateway_request_denied");
            event["metadata_json"].to_string()
        })
        .collect();
    told.sort();
    assert_eq!(
        told,
        [
            r#"{"aggregated":true,"reason":"signature","suppressed":29}"#,
            r#"{"authenticated":false,"reason":"path_traversal"}"#,
            r#"{"authenticated":false,"reason":"signature"}"#,
        ]
    );
}

#[tokio::test]
async fn without_evidence_no_answer_is_complete() {
    let stack = Stack::start().await;
    stack
        .forwards_to(|request| async move {
            match request.uri().path() {
                "/empty" => http::StatusCode::NO_CONTENT.into_response(),
                _ => "fine".into_response(),
            }
        })
        .await;
    stack.evidence.close().await;
    let answer = stack.get("/empty").await;
    assert_eq!(answer.status, 503);
    assert!(answer.rest.contains("sts_unavailable"), "{}", answer.rest);
    let answer = stack.get("/").await;
    assert!(!answer.is_complete(), "{answer:?}");
    stack.directive(json!({"url": "http://169.254.169.254", "auth_mode": "none"}));
    assert_eq!(stack.get("/").await.status, 503, "not even a denial");
    stack.tasks.stop().cancel();
}
