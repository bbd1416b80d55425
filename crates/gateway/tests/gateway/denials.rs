//! The denial sequence, as a caller sees it (spec: gateway §3.1).

use std::fmt::Write as _;
use std::sync::Arc;

use axum::response::IntoResponse as _;
use caracal_bus::{Bus, RedisOptions};
use caracal_client::ExchangeRefused;
use caracal_crypto::SigningKey;
use caracal_crypto::digest::b64url_encode;
use caracal_model::{DelegationId, Kid, Secret, SessionId};
use http::StatusCode;
use serde_json::{Value, json};

use crate::client::Answer;
use crate::stack::{Around, Stack, config};

const ID: &str = "X-Request-Id: r-1\r\n";

/// Status, code and description; the envelope is checked on the way.
fn told(answer: &Answer) -> String {
    assert_eq!(answer.header("x-request-id"), Some("r-1"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.rest.ends_with("}\n"), "{}", answer.rest);
    let body: Value = serde_json::from_str(&answer.rest).unwrap();
    assert_eq!(
        (&body["requestId"], &body["request_id"]),
        (&json!("r-1"), &json!("r-1"))
    );
    let error = body["error"].as_str().unwrap();
    let description = body["error_description"].as_str().unwrap_or("-");
    let retry = answer
        .header("retry-after")
        .map_or(String::new(), |s| format!(" (again in {s})"));
    format!("{} {error}: {description}{retry}", answer.status)
}

fn request(target: &str, headers: &[&str]) -> String {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("POST {target} HTTP/1.1\r\nHost: g\r\nConnection: close\r\n{ID}{headers}\r\n")
}

const RESOURCE: &str = "X-Caracal-Resource: resource://desk";

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong_before_anything_is_spent() {
    let stack = Stack::start().await;
    let good = || format!("Authorization: Bearer {}", stack.bearer());
    let parts = stack.bearer();
    let mut parts = parts.split('.');
    let (header, payload, _) = (
        parts.next().unwrap(),
        parts.next().unwrap(),
        parts.next().unwrap(),
    );
    let signature = b64url_encode(&[7; 64]);
    let none = b64url_encode(br#"{"alg":"none"}"#);
    let stranger = SigningKey::generate(Kid::trusted("key-9")).unwrap();
    let impostor = SigningKey::generate(Kid::trusted("key-1")).unwrap();
    let bearer = |text: String| format!("Authorization: Bearer {text}");

    let mut table = String::new();
    let without = |name: &'static str| {
        let mut claims = serde_json::to_value(stack.mandate()).unwrap();
        claims.as_object_mut().unwrap().remove(name).unwrap();
        bearer(stack.sign(&claims))
    };
    let with = |name: &'static str, value: Value| {
        let mut claims = serde_json::to_value(stack.mandate()).unwrap();
        claims[name] = value;
        bearer(stack.sign(&claims))
    };
    let soon = json!(stack.mandate().iat + 34);
    let mut elsewhere = stack.mandate();
    elsewhere.iss = "https://e".into();
    elsewhere.aud = vec!["https://e".into()];
    let r = || RESOURCE.to_owned();
    #[rustfmt::skip] // a table
    let cases = [
        ("no bearer", "/", vec![r()]),
        ("other scheme", "/", vec!["Authorization: Basic abc".into(), r()]),
        ("empty bearer", "/", vec![bearer(String::new()), r()]),
        ("two bearers", "/", vec![good(), good(), r()]),
        ("oversized bearer", "/", vec![bearer("x".repeat(9000)), r()]),
        ("no token", "/", vec![bearer("abc".into()), r()]),
        ("four parts", "/", vec![bearer(format!("{header}.{payload}.{signature}.x")), r()]),
        ("no JSON", "/", vec![bearer(format!("{header}.YWJj.{signature}")), r()]),
        ("no exp", "/", vec![without("exp"), r()]),
        ("exp 0", "/", vec![with("exp", json!(0)), r()]),
        ("exp as text", "/", vec![with("exp", json!("soon")), r()]),
        ("exp fractional", "/", vec![with("exp", json!(1e12)), r()]),
        ("expired", "/", vec![with("exp", json!(1000)), r()]),
        ("34 s left", "/", vec![with("exp", soon), r()]),
        ("client id header", "/", vec![good(), r(), "X-Caracal-Client-ID: app-1".into()]),
        ("no resource", "/", vec![good()]),
        ("blank resource", "/", vec![good(), "X-Caracal-Resource:  ".into()]),
        ("two resources", "/", vec![good(), r(), "X-Caracal-Resource: resource://b".into()]),
        ("no zone", "/", vec![without("zone_id"), r()]),
        ("bad zone", "/", vec![with("zone_id", json!("a/b")), r()]),
        ("no client", "/", vec![without("client_id"), r()]),
        ("traversal", "/a/%2e%2e/b", vec![good(), r()]),
        ("double encoding", "/a/%252e%252e/b", vec![good(), r()]),
        ("backslash", "/a\\b", vec![good(), r()]),
        ("dot segments", "/a/../b", vec![good(), r()]),
        ("too large", "/", vec![good(), r(), "Content-Length: 1048577".into()]),
        ("alg none", "/", vec![bearer(format!("{none}.{payload}.{signature}")), r()]),
        ("no signature", "/", vec![bearer(format!("{header}.{payload}.")), r()]),
        ("wrong signature", "/", vec![bearer(format!("{header}.{payload}.{signature}")), r()]),
        ("unknown key", "/", vec![bearer(stranger.sign(&stack.mandate()).unwrap()), r()]),
        ("impostor's key", "/", vec![bearer(impostor.sign(&stack.mandate()).unwrap()), r()]),
        ("unknown zone", "/", vec![with("zone_id", json!("z9")), r()]),
        ("session mandate", "/", vec![with("use", json!("session")), r()]),
        ("resource mandate", "/", vec![with("use", json!("resource")), r()]),
        ("no jti", "/", vec![without("jti"), r()]),
        ("empty jti", "/", vec![with("jti", json!("")), r()]),
        ("other issuer", "/", vec![bearer(stack.sign(&elsewhere)), r()]),
        ("other audience", "/", vec![with("aud", json!(["resource://desk"])), r()]),
        ("of the future", "/", vec![with("iat", json!(stack.mandate().iat + 120)), r()]),
    ];
    for (case, target, headers) in cases {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let answer = stack.raw(&request(target, &headers)).await;
        writeln!(table, "{case:<17}| {}", told(&answer)).unwrap();
    }
    insta::assert_snapshot!(table, @r"
    no bearer        | 401 invalid_token: missing bearer token
    other scheme     | 401 invalid_token: missing bearer token
    empty bearer     | 401 invalid_token: missing bearer token
    two bearers      | 401 invalid_token: missing bearer token
    oversized bearer | 401 invalid_token: bearer token too large
    no token         | 401 invalid_token: malformed bearer token
    four parts       | 401 invalid_token: malformed bearer token
    no JSON          | 401 invalid_token: malformed bearer token
    no exp           | 401 invalid_token: malformed bearer token
    exp 0            | 401 invalid_token: malformed bearer token
    exp as text      | 401 invalid_token: malformed bearer token
    exp fractional   | 401 invalid_token: malformed bearer token
    expired          | 401 credential_expired_not_renewable: credential expiring within pre-flight window
    34 s left        | 401 credential_expired_not_renewable: credential expiring within pre-flight window
    client id header | 400 invalid_token: client identity derives from the bearer token
    no resource      | 400 invalid_token: missing routing headers
    blank resource   | 400 invalid_token: missing routing headers
    two resources    | 400 invalid_token: missing routing headers
    no zone          | 401 invalid_token: missing token zone
    bad zone         | 401 invalid_token: missing token zone
    no client        | 401 invalid_token: missing token client
    traversal        | 400 invalid_token: path traversal not permitted
    double encoding  | 400 invalid_token: path traversal not permitted
    backslash        | 400 invalid_token: path traversal not permitted
    dot segments     | 400 invalid_token: path traversal not permitted
    too large        | 413 payload_too_large: request body too large
    alg none         | 401 invalid_token: bearer signature invalid
    no signature     | 401 invalid_token: bearer signature invalid
    wrong signature  | 401 invalid_token: bearer signature invalid
    unknown key      | 401 invalid_token: bearer signature invalid
    impostor's key   | 401 invalid_token: bearer signature invalid
    unknown zone     | 401 invalid_token: bearer signature invalid
    session mandate  | 401 invalid_token: invalid subject_token
    resource mandate | 401 invalid_token: invalid subject_token
    no jti           | 401 invalid_token: invalid subject_token
    empty jti        | 401 invalid_token: invalid subject_token
    other issuer     | 401 invalid_token: invalid subject_token
    other audience   | 401 invalid_token: invalid subject_token
    of the future    | 401 invalid_token: invalid subject_token
    ");
    assert_eq!(*stack.exchange.asked.lock().unwrap(), Vec::<String>::new());
    stack.stop().await;
}

#[tokio::test]
async fn every_anchor_of_a_mandate_revokes_it() {
    let stack = Stack::start().await;
    stack
        .forwards_to(|_| async { "fine".into_response() })
        .await;
    let mut table = String::new();
    let anchors = [
        ("session_id", "record-1"),
        ("session_id", "record-0"),
        ("agent_session_id", "session-1"),
        ("delegation_edge_id", "edge-1"),
        ("delegation_edge_id", "edge-2"),
    ];
    for (at, (anchor, id)) in anchors.into_iter().enumerate() {
        // Names of its own for each round: a mark stays.
        let mut mandate = stack.mandate();
        let named = |id: &str| format!("{id}-{at}");
        mandate.sid = caracal_model::RecordId::trusted(named("record-1"));
        mandate.root_sid = caracal_model::RecordId::trusted(named("record-0"));
        mandate.agent_session_id = Some(SessionId::trusted(named("session-1")));
        mandate.delegation_edge_id = Some(DelegationId::trusted(named("edge-2")));
        mandate.delegation_path = ["edge-1", "edge-2"]
            .map(|id| DelegationId::trusted(named(id)))
            .to_vec();
        let mut calls = |stack: &Stack| {
            mandate.jti = stack.mandate().jti;
            let bearer = format!("Authorization: Bearer {}", stack.sign(&mandate));
            request("/", &[&bearer, RESOURCE])
        };
        let before = stack.raw(&calls(&stack)).await;
        assert_eq!(before.status, 200, "{}", before.rest);
        stack.has_revoked(anchor, &named(id)).await;
        let after = stack.raw(&calls(&stack)).await;
        writeln!(table, "{anchor} {id}: {}", told(&after)).unwrap();
    }
    insta::assert_snapshot!(table, @r"
    session_id record-1: 401 invalid_token: session revoked
    session_id record-0: 401 invalid_token: session revoked
    agent_session_id session-1: 401 invalid_token: session revoked
    delegation_edge_id edge-1: 401 invalid_token: session revoked
    delegation_edge_id edge-2: 401 invalid_token: session revoked
    ");
    stack.stop().await;
}

#[tokio::test]
async fn of_many_uses_of_one_mandate_one_wins() {
    let stack = Arc::new(Stack::start().await);
    stack
        .forwards_to(|_| async { "fine".into_response() })
        .await;
    let bearer = format!("Authorization: Bearer {}", stack.bearer());
    let one = request("/", &[&bearer, RESOURCE]);
    let mut uses = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (stack, one) = (stack.clone(), one.clone());
        uses.spawn(async move { stack.raw(&one).await });
    }
    let answers = uses.join_all().await;
    let winners = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(winners, 1);
    let lost = answers.iter().find(|answer| answer.status != 200).unwrap();
    assert_eq!(told(lost), "401 invalid_token: token replay detected");
    assert_eq!(stack.exchange.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_mandate_of_before_the_restart_is_spent() {
    let before = Stack::start().await;
    let now = u64::try_from(before.clock.now().unix_millis()).unwrap();
    before.stop().await;
    for (floor, status) in [(now + 60_000, 401), (now - 60_000, 200)] {
        let stack = Stack::with(caracal_gateway::Config {
            floor_ms: Some(floor),
            ..config()
        })
        .await;
        stack
            .forwards_to(|_| async { "fine".into_response() })
            .await;
        assert_eq!(stack.get("/").await.status, status);
        let mut timeless = stack.mandate();
        timeless.jti = caracal_model::Jti::trusted("no-uuid");
        let bearer = format!("Authorization: Bearer {}", stack.sign(&timeless));
        let answer = stack.raw(&request("/", &[&bearer, RESOURCE])).await;
        assert_eq!(told(&answer), "401 invalid_token: token replay detected");
        stack.stop().await;
    }
}

#[tokio::test]
async fn a_refusal_of_the_sts_reaches_the_caller_whole() {
    let stack = Stack::start().await;
    let members = json!({"approval_id": "5c0e", "state": "pending"});
    let Value::Object(members) = members else {
        unreachable!()
    };
    let hold = ExchangeRefused::new(
        StatusCode::UNAUTHORIZED,
        "interaction_required",
        "Human approval required",
    )
    .members(members)
    .retry_after(Some(5));
    *stack.exchange.refuses.lock().unwrap() = Some(hold);
    let head = stack
        .head("GET", "/")
        .replace("\r\nHost", "\r\nX-Request-Id: r-1\r\nHost");
    let answer = stack.raw(&format!("{head}\r\n")).await;
    assert_eq!(
        told(&answer),
        "401 interaction_required: Human approval required (again in 5)"
    );
    assert!(
        answer.rest.contains(r#""approval_id":"5c0e""#),
        "{}",
        answer.rest
    );
    assert_eq!(
        stack.stop().await,
        Vec::<Value>::new(),
        "the STS records its own denials"
    );
}

#[tokio::test]
async fn directives_that_cannot_be_carried_out_send_nothing() {
    let stack = Stack::start().await;
    let reached = stack.forwards_to(|_| async { panic!("reached") }).await;
    let mut table = String::new();
    for (case, target, directive) in [
        (
            "metadata service",
            "/",
            json!({"url": "http://169.254.169.254/", "auth_mode": "none"}),
        ),
        (
            "mapped metadata",
            "/",
            json!({"url": "http://[::ffff:169.254.169.254]/", "auth_mode": "none"}),
        ),
        (
            "other scheme",
            "/",
            json!({"url": "ftp://a.example", "auth_mode": "none"}),
        ),
        (
            "credentials in URL",
            "/",
            json!({"url": "http://u:p@a.example", "auth_mode": "none"}),
        ),
        (
            "no such host",
            "/",
            json!({"url": "http://nowhere.invalid", "auth_mode": "none"}),
        ),
        (
            "host not for the token",
            "/",
            json!({"url": reached, "auth_mode": "provider_oauth",
            "provider_token": "t", "allowed_token_hosts": ["api.example"]}),
        ),
        (
            "bad query",
            "/?a=%zz",
            json!({"url": reached, "auth_mode": "none"}),
        ),
        (
            "semicolon",
            "/?a=1;b=2",
            json!({"url": reached, "auth_mode": "none"}),
        ),
        (
            "reserved header",
            "/",
            json!({"url": reached, "auth_mode": "provider_apikey",
            "auth_header": "Host", "provider_token": "k"}),
        ),
        (
            "unknown mode",
            "/",
            json!({"url": reached, "auth_mode": "mtls"}),
        ),
        (
            "refused",
            "/",
            json!({"url": "http://127.0.0.1:1", "auth_mode": "none"}),
        ),
    ] {
        stack.directive(directive);
        let head = stack
            .head("GET", target)
            .replace("\r\nHost", "\r\nX-Request-Id: r-1\r\nHost");
        let answer = stack.raw(&format!("{head}\r\n")).await;
        let event = stack.events(table.lines().count() + 1).await.pop().unwrap();
        writeln!(
            table,
            "{case:<23}| {} | {} {} {}",
            told(&answer),
            event["decision"].as_str().unwrap(),
            event["evaluation_status"].as_str().unwrap(),
            event["metadata_json"]["error_kind"].as_str().unwrap_or("-"),
        )
        .unwrap();
    }
    insta::assert_snapshot!(table, @r"
    metadata service       | 502 internal_error: upstream not addressable | deny upstream_rejected upstream_not_addressable
    mapped metadata        | 502 internal_error: upstream not addressable | deny upstream_rejected upstream_not_addressable
    other scheme           | 502 internal_error: upstream not addressable | deny upstream_rejected upstream_not_addressable
    credentials in URL     | 502 internal_error: upstream not addressable | deny upstream_rejected upstream_not_addressable
    no such host           | 502 internal_error: upstream not addressable | deny upstream_rejected upstream_not_addressable
    host not for the token | 502 internal_error: provider credential not allowed for upstream host | deny upstream_rejected provider_host_not_allowed
    bad query              | 400 internal_error: upstream request build failed | deny build_failed request_build_failed
    semicolon              | 400 internal_error: upstream request build failed | deny build_failed request_build_failed
    reserved header        | 400 internal_error: upstream request build failed | deny build_failed request_build_failed
    unknown mode           | 400 internal_error: upstream request build failed | deny build_failed request_build_failed
    refused                | 502 internal_error: upstream unreachable | allow upstream_error transport_error
    ");
    stack.stop().await;
}

#[tokio::test]
async fn an_allow_list_pins_the_upstreams() {
    let config = caracal_gateway::Config {
        upstream_hosts: ["api.example".to_owned()].into(),
        ..config()
    };
    let stack = Stack::with(config).await;
    stack.forwards_to(|_| async { panic!("reached") }).await;
    let answer = stack.get("/").await;
    assert_eq!(answer.status, 502);
    assert!(answer.rest.contains("upstream not addressable"));
    stack.stop().await;
}

#[tokio::test]
async fn a_mandate_that_cannot_be_claimed_is_refused_for_now() {
    let nobody = Secret::new("redis://127.0.0.1:1".to_owned());
    let bus = || async { Bus::redis(&nobody, RedisOptions::default()).await.unwrap() };
    let stack = Stack::among(
        config(),
        Around {
            claims: Some(bus().await),
            ..Around::default()
        },
    );
    let stack = stack.await;
    stack
        .forwards_to(|_| async { "fine".into_response() })
        .await;
    let head = format!("{}{ID}\r\n", stack.head("GET", "/"));
    let answer = stack.raw(&head).await;
    assert_eq!(
        told(&answer),
        "503 sts_unavailable: replay state unavailable (again in 1)"
    );
    let ready = stack
        .raw("GET /ready HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(
        ready.rest,
        r#"{"error":"redis_unreachable","ok":false,"ready":false,"reason":"redis_unreachable"}"#
    );
    assert_eq!(*stack.exchange.asked.lock().unwrap(), Vec::<String>::new());
    stack.stop().await;

    let open = caracal_gateway::Config {
        jti_fail_open: true,
        ..config()
    };
    let stack = Stack::among(
        open,
        Around {
            claims: Some(bus().await),
            ..Around::default()
        },
    )
    .await;
    stack
        .forwards_to(|_| async { "fine".into_response() })
        .await;
    assert_eq!(stack.get("/").await.status, 200, "in dev, when told so");
    stack.stop().await;
}

#[tokio::test]
async fn without_feed_and_store_nothing_passes() {
    let feed_max_lag = std::time::Duration::from_millis(200);
    let stack = Stack::among(
        config(),
        Around {
            feed_max_lag,
            ..Around::default()
        },
    )
    .await;
    stack
        .forwards_to(|_| async { "fine".into_response() })
        .await;
    assert_eq!(stack.get("/").await.status, 200);
    stack.is_cut_off().await;
    tokio::time::timeout(crate::client::PATIENCE, async {
        while stack.views.lease_holds() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let answer = stack
        .raw(&format!("{}{ID}\r\n", stack.head("GET", "/")))
        .await;
    assert_eq!(
        told(&answer),
        "503 sts_unavailable: revocation state unavailable (again in 1)"
    );
    let ready = stack
        .raw("GET /ready HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(
        ready.rest,
        r#"{"error":"revocation_snapshot_stale","ok":false,"ready":false,"reason":"revocation_snapshot_stale"}"#
    );
    stack.stop().await;
}

/// A Redis that has lost its claims does not know which mandates of before were used.
#[tokio::test]
async fn a_mandate_of_before_the_claims_were_lost_is_spent() {
    #[expect(clippy::disallowed_methods, reason = "where the test server is")]
    let Ok(url) = std::env::var("CARACAL_TEST_REDIS") else {
        eprintln!("skipped: CARACAL_TEST_REDIS is not set");
        return;
    };
    let own = caracal_model::Ids::new(
        std::sync::Arc::new(caracal_crypto::os::SystemClock::new()),
        std::sync::Arc::new(caracal_crypto::os::OsRng),
    );
    let options = RedisOptions {
        prefix: format!("test:{}:", own.uuid()),
        ..RedisOptions::default()
    };
    let claims = Bus::redis(&Secret::new(url), options).await.unwrap();
    let around = Around {
        claims: Some(claims.clone()),
        ..Around::default()
    };
    let stack = Stack::among(config(), around).await;
    stack
        .forwards_to(|_| async { "fine".into_response() })
        .await;
    let before = stack.mandate();
    let mut timeless = stack.mandate();
    timeless.jti = caracal_model::Jti::trusted("no-uuid");
    // Its clock was stepped back before it was made: its id says later than it was.
    let mut ahead = stack.mandate();
    let soon = claims.open_claims().await.unwrap();
    tokio::time::sleep(soon).await;
    ahead.jti = stack.mandate().jti;
    for spent in [before, timeless, ahead] {
        // `iat` is in whole seconds: long enough before.
        let spent = caracal_model::Mandate {
            iat: spent.iat - 2,
            ..spent
        };
        let bearer = format!("Authorization: Bearer {}", stack.sign(&spent));
        let answer = stack.raw(&request("/", &[&bearer, RESOURCE])).await;
        assert_eq!(told(&answer), "401 invalid_token: token replay detected");
    }
    assert_eq!(stack.get("/").await.status, 200, "made after");
    stack.stop().await;
}
