//! Who may do what (spec: admin-api §4.3).

use std::fmt::Write as _;

use axum::body::Body;
use http::Request;
use serde_json::json;

use super::stack::BOOTSTRAP;
use crate::admission::assertion;
use crate::on_stack;

on_stack! {
    async fn each_token_is_held_to_its_capability_and_its_zone(stack: Stack) {
        let (own, other) = (stack.zone("own").await, stack.zone("other").await);
        let application = json!({"name": "a", "registration_method": "managed"});
        let id = stack.make(&format!("/v1/zones/{own}/applications"), application).await;
        let read = stack.token("read", None).await;
        let approve = stack.token("approve", None).await;
        let write = stack.token("write", None).await;
        let zoned = stack.token("write", Some(&own)).await;
        let apps = |zone| format!("/v1/zones/{zone}/applications");
        let secret = format!("/v1/zones/{own}/applications/{id}/client-secret");
        let decide = format!("/v1/zones/{own}/approvals/a1/approve");
        let mut table = String::new();
        for (case, token, method, path) in [
            ("no token", "", "GET", "/v1/zones"),
            ("wrong token", "cat_wrong", "GET", "/v1/zones"),
            ("unknown route, no token", "", "GET", "/v1/nothing"),
            ("unknown route", BOOTSTRAP, "GET", "/v1/nothing"),
            ("wrong method", BOOTSTRAP, "PUT", "/v1/zones"),
            ("wrong method, no token", "", "PUT", "/v1/zones"),
            ("outside of v1", "", "GET", "/nothing"),
            ("read writes", &read, "POST", "/v1/zones"),
            ("read validates", &read, "POST", "/v1/policies/validate"),
            ("read reveals", &read, "GET", &secret),
            ("approve writes", &approve, "POST", "/v1/zones"),
            ("approve reveals", &approve, "GET", &secret),
            ("approve decides", &approve, "POST", &decide),
            ("write decides", &write, "POST", &decide),
            ("bootstrap decides", BOOTSTRAP, "POST", &decide),
            ("zone token lists zones", &zoned, "GET", "/v1/zones"),
            ("zone token elsewhere", &zoned, "GET", &apps(&other)),
            ("zone token, encoded", &zoned, "GET", &format!("/v1/zones/{own}%2Fx/applications")),
            ("zone token validates", &zoned, "POST", "/v1/policies/validate"),
            ("zone token mints", &zoned, "POST", "/v1/admin-tokens"),
            ("console mints", &stack.console("write"), "POST", "/v1/admin-tokens"),
        ] {
            let reply = stack.send_as(token, method, path, "").await;
            let reply = if reply.body["error"].is_null() { reply.status.to_string() } else { reply.to_string() };
            writeln!(table, "{case:<24} {reply}").unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        no token                 401 invalid_admin_token: send a live admin token as Authorization: Bearer
        wrong token              401 invalid_admin_token: send a live admin token as Authorization: Bearer
        unknown route, no token  401 invalid_admin_token: send a live admin token as Authorization: Bearer
        unknown route            404 not_found: no such route
        wrong method             404 not_found: no such route
        wrong method, no token   401 invalid_admin_token: send a live admin token as Authorization: Bearer
        outside of v1            404 not_found: no such route
        read writes              403 admin_token_read_only: this token can only read; use one with capability write
        read validates           400 invalid_body: content is required
        read reveals             403 admin_token_read_only: this token can only read; a secret is shown to tokens of capability write
        approve writes           403 admin_token_approve_only: this token can only read and decide approvals; use one with capability write
        approve reveals          403 admin_token_approve_only: this token can only read and decide approvals; a secret is shown to tokens of capability write
        approve decides          404 approval_not_found: there is no approval a1 in this zone
        write decides            403 approve_capability_required: approvals are decided with a token of capability approve
        bootstrap decides        404 approval_not_found: there is no approval a1 in this zone
        zone token lists zones   403 admin_token_zone_mismatch: this token belongs to another zone, or the route needs a global token
        zone token elsewhere     403 admin_token_zone_mismatch: this token belongs to another zone, or the route needs a global token
        zone token, encoded      403 admin_token_zone_mismatch: this token belongs to another zone, or the route needs a global token
        zone token validates     400 invalid_body: content is required
        zone token mints         403 admin_token_zone_mismatch: this token belongs to another zone, or the route needs a global token
        console mints            401 invalid_account_assertion: x-caracal-account must be a current assertion of the console
        ") };
        assert_eq!(stack.send_as(&zoned, "GET", &apps(&own), "").await.is(200)["items"][0]["id"], id);
    }

    async fn answers_are_for_the_caller_alone_and_name_the_request(stack: Stack) {
        let request = Request::get("/v1/zones").header("authorization", format!("Bearer {BOOTSTRAP}"));
        let request = request.header("x-request-id", "mine:1").body(Body::empty()).unwrap();
        let reply = stack.raw(request).await;
        for (name, value) in [
            ("x-request-id", "mine:1"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(reply.headers[name], value);
        }
        let reply = stack.get("/health").await;
        assert_eq!(reply.text, r#"{"ok":true}"#);
        assert!(!reply.headers.contains_key("cache-control"));
        assert_eq!(stack.get("/ready").await.is(200), json!({"ok": true}));
        let metrics = stack.get("/metrics").await.text;
        assert!(metrics.contains("caracal_api_outbox_pending_total"), "{metrics}");
        assert_eq!(crate::CATALOGUE.differences(&metrics), Vec::<String>::new());
        let capacity = stack.get("/capacity").await.is(200);
        assert_eq!((&capacity["service"], &capacity["ok"]), (&json!("api"), &json!(true)));
    }

    async fn a_body_is_not_read_for_strangers(stack: Stack) {
        let endless = futures_util::stream::pending::<Result<&str, std::io::Error>>();
        let request = Request::post("/v1/zones").header("authorization", "Bearer cat_wrong");
        let request = request.body(Body::from_stream(endless)).unwrap();
        assert_eq!(stack.raw(request).await.text("error"), "invalid_admin_token");
    }

    async fn a_request_that_takes_too_long_is_given_up_and_its_caller_told(stack: Stack)
        [("REQUEST_TIMEOUT_MS", "1500")]
    {
        let zone = stack.zone("before").await;
        let path = format!("/v1/zones/{zone}");
        let rename = json!({"name": "after"});
        // Somebody else is at the row, and does not end.
        let mut held = stack.store.begin("holding a zone").await.unwrap();
        let touch = caracal_store::testing::raw("UPDATE zones SET name = name WHERE id = $1");
        held.execute(&touch, &[caracal_store::Param::Text(zone.as_str())]).await.unwrap();
        let reply = stack.send("PATCH", &path, rename.clone()).await;
        assert_eq!(reply.headers["retry-after"], "1");
        assert_eq!(
            reply.to_string(),
            "503 request_timeout: the request took too long; see whether it was done before you try again"
        );
        held.rollback().await;
        assert_eq!(stack.get(&path).await.is(200)["name"], "before", "given up is not done");
        stack.send("PATCH", &path, rename).await.is(200);
        // A caller that is slow itself is told that it is.
        let endless = futures_util::stream::pending::<Result<&str, std::io::Error>>();
        let request = Request::post("/v1/zones").header("authorization", format!("Bearer {BOOTSTRAP}"));
        let request = request.header("content-type", "application/json");
        let reply = stack.raw(request.body(Body::from_stream(endless)).unwrap()).await;
        assert_eq!(reply.to_string(), "408 request_timeout: the request body did not arrive in time");
    }

    async fn the_console_acts_for_the_account_that_it_vouches_for(stack: Stack) {
        let secret = caracal_model::Secret::new(BOOTSTRAP.to_owned());
        let send = async |token: String, account: Option<&str>, method: &str, path: &str, body: &str| {
            let mut request = Request::builder().method(method).uri(path)
                .header("authorization", format!("Bearer {token}"))
                .header("content-type", "application/json");
            if let Some(account) = account {
                request = request.header("x-caracal-account", assertion(&secret, account, 4_000_000_000));
            }
            stack.raw(request.body(Body::from(body.to_owned())).unwrap()).await
        };
        let foreign = stack.zone("foreign").await;
        let (read, write) = (stack.console("read-only"), stack.console("write"));
        let made = send(write.clone(), Some("acct-1"), "POST", "/v1/zones", r#"{"name":"Mine"}"#).await.is(201);
        assert_eq!(made["created_by"], "acct-1");
        let mine = made["id"].as_str().unwrap().to_owned();
        let seen = send(read.clone(), Some("acct-1"), "GET", "/v1/zones", "").await.is(200);
        assert_eq!(seen["items"].as_array().unwrap().len(), 1);
        let mut table = String::new();
        for (case, token, account, method, path) in [
            ("nobody", &read, None, "GET", "/v1/zones".to_owned()),
            ("own zone", &read, Some("acct-1"), "GET", format!("/v1/zones/{mine}/applications")),
            ("of another", &read, Some("acct-2"), "GET", format!("/v1/zones/{mine}/applications")),
            ("of nobody", &read, Some("acct-1"), "GET", format!("/v1/zones/{foreign}")),
            ("no such zone", &read, Some("acct-1"), "GET", "/v1/zones/nope".to_owned()),
            ("tokens", &write, Some("acct-1"), "GET", "/v1/admin-tokens".to_owned()),
        ] {
            let reply = send(token.clone(), account, method, &path, "").await;
            let reply = if reply.body["error"].is_null() { reply.status.to_string() } else { reply.to_string() };
            writeln!(table, "{case:<14} {reply}").unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        nobody         401 invalid_account_assertion: x-caracal-account must be a current assertion of the console
        own zone       200 OK
        of another     403 zone_forbidden: the account does not own this zone
        of nobody      403 zone_forbidden: the account does not own this zone
        no such zone   403 zone_forbidden: the account does not own this zone
        tokens         403 account_scope_required: this route is not for console accounts; use a token of your own
        ") };
    }

    async fn reserved_names_and_zones_are_for_the_platform(stack: Stack) {
        let write = stack.token("write", None).await;
        let zone = stack.zone("plain").await;
        let system = stack.send("POST", "/v1/zones", json!({"name": "caracal.sys/system", "slug": "caracal-sys-internal"})).await.is(201);
        let system = system["id"].as_str().unwrap();
        let listed = stack.get("/v1/zones").await.is(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 1, "reserved zones are not listed");
        let z = format!("/v1/zones/{zone}");
        let mut table = String::new();
        for (method, path, body) in [
            ("POST", "/v1/zones".to_owned(), json!({"name": " Caracal.SYS/x"})),
            ("POST", "/v1/zones".to_owned(), json!({"name": "x", "slug": "caracal-sys-x"})),
            ("POST", "/v1/zones".to_owned(), json!({"name": "Caracal sys  x"})),
            ("PATCH", z.clone(), json!({"slug": "caracal-sys-y"})),
            ("POST", format!("{z}/applications"), json!({"name": "caracal.sys/a", "registration_method": "managed"})),
            ("POST", format!("{z}/providers"), json!({"identifier": "provider://caracal-sys-a", "kind": "none"})),
            ("POST", format!("{z}/resources"), json!({"identifier": "caracal-sys://a", "scopes": ["a"]})),
            ("POST", format!("{z}/policies"), json!({"name": "caracal.sys/a", "content": ""})),
            ("POST", format!("/v1/zones/{system}/applications"), json!({"name": "a", "registration_method": "managed"})),
            ("GET", format!("/v1/zones/{system}"), json!({})),
        ] {
            let reply = stack.send_as(&write, method, &path, &body.to_string()).await;
            let shown = if reply.body["error"].is_null() { reply.status.to_string() } else { reply.to_string() };
            writeln!(table, "{method:<5} {body} -> {shown}").unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r#"
        POST  {"name":" Caracal.SYS/x"} -> 409 reserved_namespace: names that start with caracal.sys/ are reserved; choose another
        POST  {"name":"x","slug":"caracal-sys-x"} -> 409 reserved_namespace: names that start with caracal-sys- are reserved; choose another
        POST  {"name":"Caracal sys  x"} -> 409 reserved_namespace: names that start with caracal-sys- are reserved; choose another
        PATCH {"slug":"caracal-sys-y"} -> 409 reserved_namespace: names that start with caracal-sys- are reserved; choose another
        POST  {"name":"caracal.sys/a","registration_method":"managed"} -> 409 reserved_namespace: names that start with caracal.sys/ are reserved; choose another
        POST  {"identifier":"provider://caracal-sys-a","kind":"none"} -> 409 reserved_namespace: names that start with provider://caracal-sys- are reserved; choose another
        POST  {"identifier":"caracal-sys://a","scopes":["a"]} -> 409 reserved_namespace: names that start with caracal-sys:// are reserved; choose another
        POST  {"content":"","name":"caracal.sys/a"} -> 409 reserved_namespace: names that start with caracal.sys/ are reserved; choose another
        POST  {"name":"a","registration_method":"managed"} -> 403 system_zone_read_only: this zone is kept by the platform and can only be read
        GET   {} -> 200 OK
        "#) };
    }

    async fn too_many_requests_are_told_when_to_come_back(stack: Stack) [("API_V1_RATE_LIMIT_PER_MIN", "3"), ("ADMIN_AUTH_FAIL_LIMIT_PER_MIN", "1")] {
        let first = stack.send_as("cat_wrong", "GET", "/v1/zones", "").await;
        assert_eq!(first.text("error"), "invalid_admin_token");
        let second = stack.send_as("cat_wrong", "GET", "/v1/zones", "").await;
        assert_eq!((second.status.as_u16(), second.text("error")), (429, "rate_limited"));
        let seconds: u32 = second.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds));
        stack.get("/v1/zones").await.is(200);
        stack.get("/v1/zones").await.is(429);
    }
}
