//! What is refused, with which code, and in words that say what to fix; nothing changes by it.

use std::fmt::Write as _;

use axum::body::Body;
use caracal_model::TokenUse;
use http::{HeaderValue, Request};
use serde_json::{Value, json};

use crate::support::{OPERATOR, World, on_each, on_each_with, raw};

struct Case {
    name: &'static str,
    method: &'static str,
    path: String,
    token: String,
    body: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
}

async fn table(world: &World, cases: Vec<Case>) -> String {
    let mut table = String::new();
    let before = world.dump().await;
    for case in cases {
        let mut request = Request::builder().method(case.method).uri(&case.path);
        if !case.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", case.token));
        }
        if case.body.is_some() && !case.headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in case.headers {
            request = request.header(name, HeaderValue::from_static(value));
        }
        let body = case.body.map_or_else(Body::empty, Body::from);
        let answer = world.send(request.body(body).unwrap()).await;
        writeln!(table, "{:<28} | {}", case.name, answer.line()).unwrap();
    }
    assert_eq!(
        world.dump().await,
        before,
        "a refused request changed something"
    );
    table
}

fn case(
    world: &World,
    name: &'static str,
    method: &'static str,
    path: &str,
    body: Option<&'static str>,
) -> Case {
    Case {
        name,
        method,
        path: format!("/zones/zone-a{path}"),
        token: world.token.clone(),
        body,
        headers: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_refused_in_the_order_of_their_checks() {
    on_each("tokens", |world| async move {
        let sign = |change: &dyn Fn(&mut caracal_model::Mandate)| {
            let mut claims = world.claims("zone-a", "app-1");
            change(&mut claims);
            world.sign("zone-a", &claims)
        };
        let foreign = world.sign("zone-b", &world.claims("zone-a", "app-1"));
        let other_zone = world.sign("zone-b", &world.claims("zone-b", "app-b"));
        let unknown_zone = world.sign("zone-a", &world.claims("zone-x", "app-1"));
        let mut forged = world.token.clone();
        let flipped = if forged.pop() == Some('A') { 'B' } else { 'A' };
        forged.push(flipped);
        let long = "x".repeat(8_193);
        let tokens: Vec<(&'static str, String)> = vec![
            ("none", String::new()),
            ("over 8 KiB", long),
            ("not a token", "abc".to_owned()),
            ("forged", forged),
            ("foreign key", foreign),
            ("unknown zone", unknown_zone),
            ("other issuer", sign(&|c| c.iss = "https://other".to_owned())),
            ("other audience", sign(&|c| c.aud = vec!["https://other".to_owned()])),
            ("expired", sign(&|c| c.exp -= 961)),
            ("from the future", sign(&|c| c.iat += 61)),
            ("gateway mandate", sign(&|c| c.token_use = TokenUse::Gateway)),
            ("resource mandate", sign(&|c| c.token_use = TokenUse::Resource)),
            ("no lifecycle scope", sign(&|c| c.scope = "pipernet:read".to_owned())),
            ("other zone", other_zone),
            ("unknown application", sign(&|c| {
                c.client_id = caracal_model::ApplicationId::trusted("nobody");
            })),
            ("unknown record", sign(&|c| c.sid = caracal_model::RecordId::trusted("nobody"))),
        ];
        let mut cases = Vec::new();
        for (name, token) in tokens {
            let mut one = case(&world, name, "GET", "/agents", None);
            one.token = token;
            cases.push(one);
        }
        let mut twice = case(&world, "two headers", "GET", "/agents", None);
        twice.headers = vec![("authorization", "Bearer a"), ("authorization", "Bearer b")];
        twice.token = String::new();
        cases.push(twice);
        let mut lower = case(&world, "scheme in lower case", "GET", "/agents", None);
        lower.headers = vec![("authorization", "bearer operator-token")];
        lower.token = String::new();
        cases.push(lower);
        for (name, method, path) in [
            ("operator starts a session", "POST", "/agents"),
            ("operator renews a lease", "POST", "/agents/s/lease"),
            ("operator delegates", "POST", "/delegations"),
        ] {
            let mut one = case(&world, name, method, path, Some("{}"));
            one.token = OPERATOR.to_owned();
            cases.push(one);
        }
        let table = table(&world, cases).await;
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        none                         | 401 missing_token: send `Authorization: Bearer` with a lifecycle token
        over 8 KiB                   | 401 missing_token: send `Authorization: Bearer` with a lifecycle token
        not a token                  | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        forged                       | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        foreign key                  | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        unknown zone                 | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        other issuer                 | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        other audience               | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        expired                      | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        from the future              | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        gateway mandate              | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        resource mandate             | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        no lifecycle scope           | 403 missing_scope: the token lacks the lifecycle scope; exchange one for it
        other zone                   | 403 zone_mismatch: the token belongs to another zone than the path
        unknown application          | 401 identity_revoked: the application or its authority record is no longer active; exchange a new token
        unknown record               | 401 identity_revoked: the application or its authority record is no longer active; exchange a new token
        two headers                  | 401 missing_token: send `Authorization: Bearer` with a lifecycle token
        scheme in lower case         | 401 missing_token: send `Authorization: Bearer` with a lifecycle token
        operator starts a session    | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        operator renews a lease      | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        operator delegates           | 401 invalid_token: the token is not a valid lifecycle token of this zone; exchange a new one
        "); }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_say_what_to_fix() {
    on_each("malformed", |world| async move {
        let on = |name, method, path: &str, body| case(&world, name, method, path, body);
        let mut cases = vec![
            on("unknown route", "GET", "/nothing", None),
            on("wrong method", "PUT", "/agents", None),
            on("bad id", "GET", "/agents/a%20b", None),
            on("id over 128", "GET", &format!("/agents/{}", "x".repeat(129)), None),
            on("start: no body", "POST", "/agents", None),
            on("start: not JSON", "POST", "/agents", Some("{")),
            on("start: not an object", "POST", "/agents", Some("[]")),
            on("start: wrong types", "POST", "/agents", Some(r#"{"application_id":7,"labels":"x","metadata":[],"ttl_seconds":"1","lifecycle":"daemon","parent_authority":1,"parent_id":""}"#)),
            on("start: label too long", "POST", "/agents", Some(r#"{"application_id":"app-1","labels":["ok"," "]}"#)),
            on("start: service with ttl", "POST", "/agents", Some(r#"{"application_id":"app-1","lifecycle":"service","ttl_seconds":5}"#)),
            on("start: ttl of a day and more", "POST", "/agents", Some(r#"{"application_id":"app-1","ttl_seconds":86401}"#)),
            on("start: other application", "POST", "/agents", Some(r#"{"application_id":"app-2"}"#)),
            on("start: no such parent", "POST", "/agents", Some(r#"{"application_id":"app-1","parent_id":"x"}"#)),
            on("list: bad limit", "GET", "/agents?limit=0", None),
            on("list: bad status", "GET", "/agents?status=gone", None),
            on("list: repeated", "GET", "/agents?limit=1&limit=2", None),
            on("get: unknown", "GET", "/agents/x", None),
            on("end: unknown", "DELETE", "/agents/x", None),
            on("end: bad generation", "DELETE", "/agents/x", Some(r#"{"lease_generation":0}"#)),
            on("end: empty reason", "DELETE", "/agents/x?reason=", None),
            on("heartbeat: no generation", "POST", "/agents/x/heartbeat", Some(r#"{"status":"fine","active_invocations":-1}"#)),
            on("heartbeat: unknown", "POST", "/agents/x/heartbeat", Some(r#"{"lease_generation":1}"#)),
            on("lease: unknown", "POST", "/agents/x/lease", None),
            on("suspend: unknown", "PATCH", "/agents/x/suspend", None),
            on("resume: unknown", "PATCH", "/agents/x/resume", Some("{}")),
            on("authority: unknown", "GET", "/agents/x/effective-authority", None),
            on("delegate: no body", "POST", "/delegations", None),
            on("delegate: null scopes", "POST", "/delegations", Some(r#"{"source_session_id":"a","target_session_id":"b","issuer_application_id":"app-1","receiver_application_id":"app-1","scopes":null,"expires_at":"tomorrow"}"#)),
            on("inbound: unknown", "GET", "/delegations/inbound/x", None),
            on("outbound: unknown", "GET", "/delegations/outbound/x", None),
            on("inbound one: unknown", "GET", "/delegations/inbound/x/y", None),
            on("traverse: no admin", "GET", "/delegations/x/traverse", None),
            on("impact: no admin", "GET", "/delegations/x/impact", None),
            on("revoke: unknown", "PATCH", "/delegations/x/revoke", None),
            on("active: bad cursor", "GET", "/delegations/active?cursor=x", None),
            on("requeue: no admin", "POST", "/outbox/x/requeue", None),
        ];
        let mut key = on("start: two keys", "POST", "/agents", Some(r#"{"application_id":"app-1"}"#));
        key.headers = vec![("idempotency-key", "a"), ("idempotency-key", "b")];
        cases.push(key);
        let mut key = on("start: padded key", "POST", "/agents", Some(r#"{"application_id":"app-1"}"#));
        key.headers = vec![("idempotency-key", "a\tb")];
        cases.push(key);
        let mut kind = on("start: form", "POST", "/agents", Some("application_id=app-1"));
        kind.headers = vec![("content-type", "application/x-www-form-urlencoded")];
        cases.push(kind);
        let table = table(&world, cases).await;
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        unknown route                | 404 not_found: no such route
        wrong method                 | 404 not_found: no such route
        bad id                       | 400 invalid_params: ids in the path are 1 to 128 letters, digits, `_`, `.`, `-` or `:`
        id over 128                  | 400 invalid_params: ids in the path are 1 to 128 letters, digits, `_`, `.`, `-` or `:`
        start: no body               | 400 invalid_body: application_id is required
        start: not JSON              | 400 internal_error: the body is not valid JSON
        start: not an object         | 400 invalid_body: the body must be a JSON object
        start: wrong types           | 400 invalid_body: lifecycle must be one of task, service
        start: label too long        | 400 invalid_body: labels.1 must be 1 to 64 characters
        start: service with ttl      | 400 invalid_body: ttl_seconds must be absent: a service lives by its lease
        start: ttl of a day and more | 400 invalid_body: ttl_seconds must be a whole number from 1 to 86400
        start: other application     | 403 application_ownership_required: the application is not the one of the token
        start: no such parent        | 404 parent_not_found: the parent session is not active
        list: bad limit              | 400 invalid_query: limit must be a whole number from 1 to 500
        list: bad status             | 400 invalid_query: status must be one of active, suspended, terminated, expired
        list: repeated               | 400 invalid_query: limit is repeated; send it once
        get: unknown                 | 404 session_not_found: no such live session or authority record in this zone
        end: unknown                 | 404 session_not_found: no such live session or authority record in this zone
        end: bad generation          | 400 invalid_body: lease_generation must be a whole number of at least 1
        end: empty reason            | 400 invalid_query: reason must be 1 to 256 characters
        heartbeat: no generation     | 400 invalid_body: lease_generation is required
        heartbeat: unknown           | 404 session_not_found: no such live session or authority record in this zone
        lease: unknown               | 404 session_not_found: no such live session or authority record in this zone
        suspend: unknown             | 404 session_not_found: no such live session or authority record in this zone
        resume: unknown              | 404 session_not_found: no such live session or authority record in this zone
        authority: unknown           | 404 session_not_found: no such live session or authority record in this zone
        delegate: no body            | 400 invalid_body: source_session_id is required
        delegate: null scopes        | 400 invalid_body: scopes must be a list of strings
        inbound: unknown             | 404 session_not_found: no such live session or authority record in this zone
        outbound: unknown            | 404 session_not_found: no such live session or authority record in this zone
        inbound one: unknown         | 404 delegation_not_found: no such active delegation
        traverse: no admin           | 403 coordinator_admin_required: this route takes the operator token or the scope coordinator.admin
        impact: no admin             | 403 coordinator_admin_required: this route takes the operator token or the scope coordinator.admin
        revoke: unknown              | 404 delegation_not_found: no such active delegation
        active: bad cursor           | 400 invalid_cursor: cursor must be the next_cursor of this list
        requeue: no admin            | 403 coordinator_admin_required: this route takes the operator token or the scope coordinator.admin
        start: two keys              | 400 idempotency_key_multiple: send Idempotency-Key once
        start: padded key            | 400 idempotency_key_invalid: Idempotency-Key must be 1 to 255 bytes without control characters or surrounding white space
        start: form                  | 415 internal_error: send the body as application/json
        "); }
        let large = json!({ "application_id": "app-1", "metadata": {"x": "y".repeat(262_144)} });
        let answer = world.post("/agents", large).await;
        assert_eq!(answer.line(), "413 internal_error: the body is larger than this service accepts");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mistake_of_a_body_is_told_at_once() {
    on_each("issues", |world| async move {
        let body = json!({ "labels": ["ok", 7], "ttl_seconds": 0 });
        let answer = world.post("/agents", body).await;
        let issues = answer.body["details"]["issues"].clone();
        insta::allow_duplicates! { insta::assert_snapshot!(issues, @r#"[{"message":"must be a whole number from 1 to 86400","path":["ttl_seconds"]},{"message":"is required","path":["application_id"]},{"message":"must be a string","path":["labels","1"]}]"#); }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_limited_by_application_and_strangers_by_address() {
    let settings = [
        ("COORDINATOR_RATE_LIMIT_PER_MIN", "3"),
        ("READY_RATE_LIMIT_PER_MIN", "1"),
    ];
    on_each_with("limits", &settings, |world| async move {
        let list = |token: String| {
            let world = world.clone();
            async move { world.call(&token, "GET", "/agents", Value::Null).await }
        };
        for _ in 0..3 {
            list("stranger".to_owned()).await.is(401, "invalid_token");
        }
        let limited = list("stranger".to_owned()).await;
        limited.is(429, "rate_limited");
        assert_eq!(limited.headers["retry-after"], "20");
        // Nobody else at that address has been proven yet, so a valid token waits as well.
        list(world.token.clone()).await.is(429, "rate_limited");
        world.clock.advance(std::time::Duration::from_secs(60));
        for _ in 0..3 {
            assert_eq!(list(world.token.clone()).await.status, 200);
        }
        list(world.token.clone()).await.is(429, "rate_limited");
        assert_eq!(list(world.lifecycle("app-2")).await.status, 200);
        for _ in 0..2 {
            list("stranger".to_owned()).await;
        }
        assert_eq!(list(OPERATOR.to_owned()).await.status, 200);
        // Genuine, but its application is gone: the first look is free, and the rest are a stranger's.
        world.clock.advance(std::time::Duration::from_secs(60));
        let gone = world.lifecycle("nobody");
        for _ in 0..4 {
            list(gone.clone()).await.is(401, "identity_revoked");
        }
        list(gone).await.is(429, "rate_limited");
        let ready = || world.send(World::request("GET", "/ready", "", None));
        assert_eq!(ready().await.ok(), &json!({ "ok": true }));
        ready().await.is(429, "rate_limited");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_metrics_and_stats_are_for_whom_they_are_for() {
    let settings = [
        ("METRICS_BEARER", "metrics-token"),
        ("CARACAL_MODE", "rc"),
        (
            "IDEMPOTENCY_HMAC_KEY",
            "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
        ),
    ];
    on_each_with("open", &settings, |world| async move {
        let get = |path: &'static str, token: &'static str| {
            world.send(World::request("GET", path, token, None))
        };
        assert_eq!(get("/health", "").await.ok(), &json!({ "ok": true }));
        get("/stats", "").await.is(401, "missing_token");
        get("/stats", "metrics-token")
            .await
            .is(403, "operator_token_required");
        let stats = get("/stats", OPERATOR).await;
        assert_eq!(stats.ok()["idempotency"]["outcomes"]["created"], 0);
        assert!(stats.body["outbox"]["dead"].is_u64() && stats.body["outbox"]["pending"].is_u64());
        get("/metrics", "").await.is(401, "missing_token");
        get("/capacity", "").await.is(401, "missing_token");
        for token in ["metrics-token", OPERATOR] {
            let metrics = get("/metrics", token).await;
            let text = metrics.ok().as_str().unwrap();
            for name in [
                "caracal_outbox_total{status=\"dead\"}",
                "caracal_outbox_total{status=\"published\"}",
                "caracal_idempotency_receipts ",
                "caracal_ttl_sweeper_runs_total ",
                "caracal_service_lease_sweeper_runs_total ",
                "caracal_retention_cleaner_runs_total ",
                "caracal_retention_sessions_deleted_total ",
            ] {
                assert!(text.contains(name), "{name} in {text}");
            }
            let differences = caracal_coordinator::CATALOGUE.differences(text);
            assert_eq!(differences, Vec::<String>::new());
            let capacity = get("/capacity", token).await;
            assert_eq!(capacity.ok()["service"], "coordinator");
            assert_eq!(capacity.ok()["ok"], true, "{}", capacity.body);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_not_needed_may_be_there_or_not() {
    on_each("empty bodies", |world| async move {
        let id = world.service().await;
        for (path, body) in [("lease", None), ("lease", Some("{}")), ("lease", Some(""))] {
            let mut request = Request::builder()
                .method("POST")
                .uri(format!("/zones/zone-a/agents/{id}/{path}"))
                .header("authorization", format!("Bearer {}", world.token));
            if body.is_some() {
                request = request.header("content-type", "application/json");
            }
            let request = request
                .body(body.map_or_else(Body::empty, Body::from))
                .unwrap();
            assert_eq!(world.send(request).await.status, 200);
        }
        let mine = Request::builder()
            .uri("/health")
            .header("x-request-id", "mine-1");
        let answer = world.send(mine.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.headers["x-request-id"], "mine-1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_takes_too_long_is_given_up_and_its_caller_told() {
    let settings = [("REQUEST_TIMEOUT_MS", "1500")];
    on_each_with("request timeout", &settings, |world| async move {
        // Somebody else is at the zone's counters, and does not end.
        world
            .post("/agents", json!({"application_id": "app-1"}))
            .await
            .created();
        let mut held = world.store.begin("holding counters").await.unwrap();
        let touch = raw("UPDATE session_counts SET live = live");
        held.execute(&touch, &[]).await.unwrap();
        let before = world.dump().await;
        let answer = world
            .post("/agents", json!({"application_id": "app-1"}))
            .await;
        assert_eq!(
            answer.line(),
            "503 sts_unavailable: the request took too long"
        );
        held.rollback().await;
        // In Postgres it waits there with its commit behind it.
        let after = world.dump().await;
        let started = after.iter().filter(|row| row.starts_with("sessions "));
        let counted = format!("counts zone {}", started.count());
        assert!(
            after == before || after.contains(&counted),
            "given up is done whole or not at all: {after:?}"
        );
        world
            .post("/agents", json!({"application_id": "app-1"}))
            .await
            .created();
        // A caller that is slow itself is told that it is.
        let endless = futures_util::stream::pending::<Result<&str, std::io::Error>>();
        let request = Request::post("/zones/zone-a/agents")
            .header("authorization", format!("Bearer {}", world.token))
            .header("content-type", "application/json");
        let request = request.body(Body::from_stream(endless)).unwrap();
        world.send(request).await.is(408, "internal_error");
    })
    .await;
}
