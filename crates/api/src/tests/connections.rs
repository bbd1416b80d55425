//! Accounts at OAuth providers: the connect flow, and tests of a provider, against endpoints that
//! behave as told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use caracal_crypto::digest::{b64url_encode, sha256};
use caracal_net::egress::server_config;
use caracal_net::{Limits, Server, Tasks};
use caracal_store::connections::{ACCESS_TOKEN_AAD, REFRESH_TOKEN_AAD};
use http::{Request, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::stack::CERTIFICATE;
use crate::on_stack;

type Form = BTreeMap<String, String>;

/// A provider: what it answers next, and what it was asked.
#[derive(Default)]
struct Provider {
    answer: Mutex<(u16, Value)>,
    asked: Mutex<Vec<Form>>,
    port: Mutex<u16>,
}

impl Provider {
    fn answers(&self, status: u16, body: Value) {
        *self.answer.lock() = (status, body);
        self.asked.lock().clear();
    }
}

async fn token(State(provider): State<Arc<Provider>>, form: String) -> Response {
    let form = url::form_urlencoded::parse(form.as_bytes()).into_owned();
    provider.asked.lock().push(form.collect());
    let (status, body) = provider.answer.lock().clone();
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

async fn metadata(State(provider): State<Arc<Provider>>) -> Json<Value> {
    let base = format!("https://upstream.test:{}", provider.port.lock());
    Json(json!({
        "issuer": format!("{base}/"), "token_endpoint": format!("{base}/token"),
        "authorization_endpoint": "http://plain.example/", "scopes_supported": ["a", 7],
    }))
}

async fn start(tasks: &Tasks) -> (Arc<Provider>, String) {
    let provider = Arc::new(Provider::default());
    let router = Router::new()
        .route("/token", post(token))
        .route("/revoke", post(token))
        .route("/.well-known/openid-configuration", get(metadata))
        .with_state(provider.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    *provider.port.lock() = port;
    let tls = server_config(
        CERTIFICATE.as_ref(),
        CERTIFICATE.replace(".pem", ".key").as_ref(),
    );
    let server = Server::new(listener, router, Limits::default()).with_tls(tls.unwrap());
    tasks.spawn("provider", server.serve(tasks.stop()));
    (provider, format!("https://upstream.test:{port}"))
}

fn accounts(base: &str) -> Value {
    json!({"name": "Accounts", "kind": "oauth2_authorization_code", "config_json": {
        "authorization_endpoint": "https://id.example/authorize?tenant=t",
        "token_endpoint": format!("{base}/token"), "revocation_endpoint": format!("{base}/revoke"),
        "redirect_uri": "https://us.example/cb", "client_id": "c", "client_secret": "s",
        "scopes": ["mail", "files"],
    }})
}

fn param(url: &str, name: &str) -> String {
    let url = url::Url::parse(url).unwrap();
    let found = url.query_pairs().find(|(key, _)| key == name);
    found
        .unwrap_or_else(|| panic!("no {name} in {url}"))
        .1
        .into_owned()
}

on_stack! {
    async fn an_account_is_connected_used_and_revoked(stack: Stack) {
        let tasks = Tasks::new();
        let (provider, base) = start(&tasks).await;
        let zone = stack.zone("Connect").await;
        let z = format!("/v1/zones/{zone}");
        let id = stack.make(&format!("{z}/providers"), accounts(&base)).await;
        let connections = format!("{z}/provider-connections");

        let wish = json!({"provider_id": id, "subject_id": "user-1"});
        let begun = stack.send("POST", &format!("{connections}/oauth/authorize"), wish.clone()).await.is(200);
        let url = begun["authorization_url"].as_str().unwrap();
        assert!(url.starts_with("https://id.example/authorize?tenant=t&response_type=code&client_id=c"), "{url}");
        let state = begun["state"].as_str().unwrap();
        assert_eq!(param(url, "state"), state);
        assert_eq!(param(url, "scope"), "mail files");
        assert_eq!(param(url, "code_challenge_method"), "S256");

        let token = json!({"access_token": "at-1", "refresh_token": "rt-1", "expires_in": 60, "token_type": "bearer"});
        provider.answers(200, token);
        let callback = format!("{connections}/oauth/callback?state={state}&code=code-1");
        let made = stack.send_as("", "GET", &callback, "").await.is(201);
        assert_eq!((&made["status"], &made["subject_id"]), (&json!("active"), &json!("user-1")));
        assert_eq!(made["renewable"], true);
        let asked = provider.asked.lock()[0].clone();
        assert_eq!((&*asked["code"], &*asked["redirect_uri"]), ("code-1", "https://us.example/cb"));
        let challenge = b64url_encode(&sha256(asked["code_verifier"].as_bytes()));
        assert_eq!(param(url, "code_challenge"), challenge);
        // A state is good for one callback.
        let again = stack.send_as("", "GET", &callback, "").await;
        assert_eq!((again.status.as_u16(), again.text("error")), (400, "oauth_state_expired"));

        let row = stack.store.zone(&zone).connections().active(&caracal_model::ProviderId::trusted(&*id), "user-1").await.unwrap().unwrap();
        let open = |aad, sealed: &[u8]| stack.api.keyring.open(aad, sealed).unwrap().expose().clone();
        assert_eq!(open(ACCESS_TOKEN_AAD, &row.access_token), b"at-1");
        assert_eq!(open(REFRESH_TOKEN_AAD, &row.refresh_token.unwrap()), b"rt-1");

        let listed = stack.get(&format!("{connections}?subject_id=user-1&status=active")).await.is(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 1);
        assert!(!listed.to_string().contains("at-1"));
        provider.answers(200, json!({}));
        let revoked = stack.send("POST", &format!("{connections}/revoke"), wish.clone()).await.is(200);
        assert_eq!((&revoked["status"], &revoked["upstream_revocation"]), (&json!("revoked"), &json!("revoked")));
        assert_eq!(provider.asked.lock()[0]["token"], "rt-1");
        let gone = stack.send("POST", &format!("{connections}/revoke"), wish).await;
        assert_eq!((gone.status.as_u16(), gone.text("error")), (404, "provider_connection_not_found"));
    }

    async fn every_way_that_a_connect_flow_fails_has_its_code(stack: Stack) {
        let tasks = Tasks::new();
        let (provider, base) = start(&tasks).await;
        let zone = stack.zone("Failing").await;
        let elsewhere = stack.zone("Elsewhere").await;
        let z = format!("/v1/zones/{zone}");
        let id = stack.make(&format!("{z}/providers"), accounts(&base)).await;
        let key = json!({"name": "Key", "kind": "api_key", "config_json": {"header_name": "X-Key", "api_key": "k"}});
        let keyed = stack.make(&format!("{z}/providers"), key).await;
        let connections = format!("{z}/provider-connections");
        let authorize = format!("{connections}/oauth/authorize");
        let begin = async || {
            let begun = stack.send("POST", &authorize, json!({"provider_id": id})).await.is(200);
            begun["state"].as_str().unwrap().to_owned()
        };
        let mut table = String::new();
        for (case, path, body) in [
            ("no provider named", &authorize, json!({})),
            ("unknown provider", &authorize, json!({"provider_id": "p-9"})),
            ("other kind", &authorize, json!({"provider_id": keyed})),
            ("no token", &connections, json!({"provider_id": id})),
            ("token with a space", &connections, json!({"provider_id": id, "access_token": "a b"})),
            ("bad time", &connections, json!({"provider_id": id, "access_token": "a", "expires_at": "soon"})),
        ] {
            writeln!(table, "{case:<22} {}", stack.send("POST", path, body).await).unwrap();
        }
        let (long, at) = ("s".repeat(43), |zone: &caracal_model::ZoneId, query: &str| {
            format!("/v1/zones/{zone}/provider-connections/oauth/callback?{query}")
        });
        let ok = json!({"access_token": "t"});
        for (case, place, query, answer) in [
            ("no state", &zone, "code=c".to_owned(), (200, &ok)),
            ("short state", &zone, "state=s&code=c".to_owned(), (200, &ok)),
            ("unknown state", &zone, format!("state={long}&code=c"), (200, &ok)),
            ("other zone", &elsewhere, format!("state={}&code=c", begin().await), (200, &ok)),
            ("denied", &zone, format!("state={}&error=access_denied", begin().await), (200, &ok)),
            ("no code", &zone, format!("state={}", begin().await), (200, &ok)),
            ("endpoint fails", &zone, format!("state={}&code=c", begin().await), (500, &ok)),
            ("code refused", &zone, format!("state={}&code=c", begin().await), (400, &json!({"error": "invalid_grant"}))),
            ("no token in it", &zone, format!("state={}&code=c", begin().await), (200, &json!({}))),
            ("other token type", &zone, format!("state={}&code=c", begin().await), (200, &json!({"access_token": "t", "token_type": "mac"}))),
        ] {
            provider.answers(answer.0, answer.1.clone());
            let reply = stack.send_as("", "GET", &at(place, &query), "").await;
            writeln!(table, "{case:<22} {reply}").unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r#"
        no provider named      400 invalid_provider_oauth_authorize: provider_id is required
        unknown provider       404 provider_not_found: there is no provider p-9 in this zone
        other kind             400 provider_connection_unsupported: only providers of kind oauth2_authorization_code have connections
        no token               400 invalid_provider_connection: access_token is required
        token with a space     400 invalid_provider_connection: access_token must be one word of visible characters
        bad time               400 invalid_provider_connection: expires_at must be a time such as 2026-01-01T00:00:00Z
        no state               400 invalid_oauth_callback: state must be that of an authorization_url
        short state            400 invalid_oauth_callback: state must be that of an authorization_url
        unknown state          400 oauth_state_expired: the connect flow has ended or was completed already; start it again
        other zone             400 oauth_state_mismatch: the connect flow was started in another zone
        denied                 400 provider_oauth_denied: the provider did not let the account be connected
        no code                400 authorization_code_required: the provider sent the browser back without a code
        endpoint fails         502 provider_token_exchange_failed: the endpoint answered 500
        code refused           502 provider_token_exchange_failed: the endpoint answered 400 (invalid_grant)
        no token in it         502 provider_token_response_invalid: the endpoint's answer holds no usable token
        other token type       502 provider_token_type_unsupported: the endpoint issued a token that is not a bearer token
        "#); }

        let page = Request::get(at(&zone, "state=x")).header("accept", "text/html").body(Body::empty());
        let page = stack.raw(page.unwrap()).await;
        assert_eq!(page.status.as_u16(), 400);
        assert!(page.text.contains("<h1>Account not connected</h1>"), "{}", page.text);
    }

    async fn a_provider_is_tested_for_real(stack: Stack) {
        let tasks = Tasks::new();
        let (provider, base) = start(&tasks).await;
        let zone = stack.zone("Tested").await;
        let path = format!("/v1/zones/{zone}/providers");
        let service = |check: bool, name: &str| json!({"name": name, "check": check, "kind": "oauth2_client_credentials", "config_json": {
            "token_endpoint": format!("{base}/token"), "client_id": "c", "client_secret": "s",
        }});
        provider.answers(401, json!({"error": "invalid_client"}));
        let refused = stack.send("POST", &path, service(true, "A")).await;
        assert_eq!((refused.status.as_u16(), refused.text("error")), (422, "provider_check_failed"));
        assert_eq!(refused.body["details"]["check"]["status"], "auth_failed");
        provider.answers(200, json!({"access_token": "t"}));
        let made = stack.send("POST", &path, service(true, "A")).await.is(201);
        assert_eq!(made["connectivity_failed_at"], Value::Null);
        let unchecked = stack.send("POST", &path, service(false, "B")).await.is(201);
        assert!(unchecked["connectivity_failed_at"].is_string());
        let test = format!("{path}/{}/test", unchecked["id"].as_str().unwrap());
        let mut seen = String::new();
        for (status, body) in [
            (200, json!({"access_token": "t"})), (200, json!({})), (400, json!({"error": "invalid_scope"})),
            (401, json!("no")), (500, json!({"error": "<b>"})), (302, json!({})),
        ] {
            provider.answers(status, body.clone());
            let told = stack.send("POST", &test, json!({})).await.is(200);
            writeln!(seen, "{status} {body}: {} ({})", told["status"], told["detail"]).unwrap();
        }
        let codes = stack.make(&path, accounts(&base)).await;
        provider.answers(400, json!({"error": "invalid_grant"}));
        let told = stack.send("POST", &format!("{path}/{codes}/test"), json!({})).await.is(200);
        writeln!(seen, "code: {}", told["status"]).unwrap();
        assert_eq!(stack.get(&format!("{path}/{codes}")).await.is(200)["connectivity_failed_at"], Value::Null);
        insta::allow_duplicates! { insta::assert_snapshot!(seen, @r#"
        200 {"access_token":"t"}: "ok" ("the token endpoint answered 200")
        200 {}: "endpoint_error" ("the token endpoint answered 200")
        400 {"error":"invalid_scope"}: "config_error" ("the token endpoint answered 400 (invalid_scope)")
        401 "no": "auth_failed" ("the token endpoint answered 401")
        500 {"error":"<b>"}: "endpoint_error" ("the token endpoint answered 500")
        302 {}: "endpoint_error" ("the token endpoint answered 302")
        code: "ok"
        "#); }
        // More than a minute's worth, in less than a minute.
        let mut limited = None;
        for _ in 0..25 {
            let reply = stack.send("POST", &test, json!({})).await;
            limited = (reply.status.as_u16() == 429).then_some(reply);
            if limited.is_some() {
                break;
            }
        }
        let limited = limited.expect("a limit");
        assert_eq!(limited.text("error"), "provider_test_rate_limited");
        assert!(limited.headers.contains_key("retry-after"));
    }

    async fn an_issuer_is_discovered_by_what_it_publishes(stack: Stack) {
        let tasks = Tasks::new();
        let (_, base) = start(&tasks).await;
        let zone = stack.zone("Discovered").await;
        let path = format!("/v1/zones/{zone}/providers/discovery");
        let found = stack.send("POST", &path, json!({"issuer": base})).await.is(200);
        let expected = json!({"issuer": format!("{base}/"), "token_endpoint": format!("{base}/token"), "scopes_supported": ["a"]});
        assert_eq!(found, expected);
        for (issuer, status, error) in [
            ("http://id.example", 400, "invalid_issuer"),
            ("https://id.example/?q", 400, "invalid_issuer"),
            (&*format!("{base}/other"), 422, "provider_discovery_failed"),
        ] {
            let refused = stack.send("POST", &path, json!({"issuer": issuer})).await;
            assert_eq!((refused.status.as_u16(), refused.text("error")), (status, error), "{issuer}");
        }
    }
}
