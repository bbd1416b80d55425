//! What every answer has, whatever it says, and what is on record of a request.

use http::{HeaderMap, StatusCode};
use serde_json::Value;

/// An answer of a JSON endpoint: its headers fit its body, and a refusal carries nothing but one.
pub fn is_whole(row: &str, status: StatusCode, headers: &HeaderMap, body: &Value) {
    assert_eq!(headers["content-type"], "application/json", "{row}");
    let id = headers["x-request-id"].to_str().unwrap();
    if status.is_success() {
        assert_eq!(body.get("error"), None, "{row}: {body}");
        return;
    }
    assert_eq!(body["requestId"], id, "{row}: {body}");
    assert_eq!(body["request_id"], id, "{row}: {body}");
    for name in ["error", "error_description"] {
        assert!(
            !body[name].as_str().unwrap_or_default().is_empty(),
            "{row}: {body}"
        );
    }
    for name in [
        "access_token",
        "credential",
        "upstreams",
        "target_resources",
    ] {
        assert_eq!(body.get(name), None, "{row}: {body}");
    }
    if status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE {
        let seconds: u32 = headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(seconds > 0, "{row}");
    }
    let challenge = headers.get("www-authenticate");
    if body["error"] == "interaction_required" {
        let expected = "Bearer error=\"interaction_required\"";
        assert_eq!(
            challenge.map(|value| value.to_str().unwrap()),
            Some(expected),
            "{row}"
        );
        assert_eq!(
            body["binding"].as_str().map(str::len),
            Some(64),
            "{row}: {body}"
        );
    }
}

/// An answer of the token endpoint that holds a token (spec: sts §2.8).
pub fn is_token(row: &str, headers: &HeaderMap, body: &Value) {
    assert_eq!(headers["cache-control"], "no-store", "{row}");
    assert_eq!(body["token_type"], "Bearer", "{row}");
    assert!(body["expires_in"].as_i64().unwrap() > 0, "{row}: {body}");
    assert_ne!(body["scope"], "", "{row}: an empty scope is left out");
    assert_ne!(
        body["target_resources"],
        serde_json::json!([]),
        "{row}: so is an empty list"
    );
    let kind = "urn:ietf:params:oauth:token-type:access_token";
    assert_eq!(body["issued_token_type"], kind, "{row}");
}

/// `decision status` of each event, in order; all are of this request. What is no exchange says so.
/// Each is on record at home, whatever zone was named.
pub fn on_record(row: &str, headers: &HeaderMap, events: &[Value]) -> Vec<String> {
    let id = headers["x-request-id"].to_str().unwrap();
    let mut events: Vec<&Value> = events.iter().collect();
    events.sort_by_key(|event| event["id"].as_str().unwrap());
    let one = |event: &&Value| {
        assert_eq!(event["request_id"], id, "{row}: {event}");
        let part = |name: &str| event[name].as_str().unwrap().to_owned();
        let said = format!("{} {}", part("decision"), part("evaluation_status"));
        match part("event_type").as_str() {
            "token_exchange" => said,
            other => format!("{other} {said}"),
        }
    };
    events.iter().map(one).collect()
}
