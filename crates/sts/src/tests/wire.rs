//! What a client sees of each endpoint, row by row.

use std::fmt::Write as _;

use caracal_crypto::digest::{sha256, sha256_hex};
use futures_util::{FutureExt as _, StreamExt as _, stream};

use super::*;

const SIMULATE: &str = "/internal/policy/simulate";

/// A request as the API signs it.
fn signed(method: &str, path: &str, nonce: &str, body: &str) -> Request<Body> {
    let timestamp = SystemClock::new().now().unix_seconds();
    let body_sha256 = sha256(body.as_bytes());
    let signature = GatewaySignature {
        timestamp,
        nonce,
        method,
        path,
        body_sha256,
    };
    let signature = signature.sign(&HmacKey::from_hex(KEY).unwrap());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .header(crate::gateway::TIMESTAMP, timestamp.to_string())
        .header(crate::gateway::NONCE, nonce)
        .header(crate::gateway::SIGNATURE, signature);
    request.body(Body::from(body.to_owned())).unwrap()
}

/// A simulation that says beforehand of which digest its body is.
fn announced(nonce: &str, body: &str, digest: &str) -> Request<Body> {
    let mut request = signed("POST", SIMULATE, nonce, body);
    let digest = digest.parse().unwrap();
    request
        .headers_mut()
        .insert(crate::gateway::BODY_SHA256, digest);
    request
}

/// A bundle of one document, asked nothing.
fn bundle(content: &str) -> String {
    let documents = [(
        "pv",
        format!("# caracal:data-document\npackage caracal.authz\n{content}"),
    )];
    simulation(&documents)
}

fn simulation(documents: &[(&str, String)]) -> String {
    let policies: Vec<_> = documents
        .iter()
        .map(|(id, content)| serde_json::json!({"id": id, "content": content}))
        .collect();
    serde_json::json!({
        "policy_set_id": "ps", "version_id": "v", "manifest_sha256": "m",
        "policies": policies, "input": {},
    })
    .to_string()
}

caracal_store::on_each_engine! {
    async fn messages_that_are_wrong_say_what_to_fix(store: Store) {
        let sts = TestSts::start(store).await;
        let form = "application/x-www-form-urlencoded";
        let mut table = String::new();
        for (case, request) in [
            ("other method", Request::get("/oauth/2/token").body(Body::empty()).unwrap()),
            ("query string", post("/oauth/2/token?zone_id=z1", form, "zone_id=z1")),
            ("JSON", post("/oauth/2/token", "application/json", "{}")),
            ("65,537 bytes", post("/oauth/2/token", form, "a".repeat(65_537))),
            ("empty form", post("/oauth/2/token", form, "")),
            ("jwks without zone", Request::get("/.well-known/jwks.json").body(Body::empty()).unwrap()),
            ("jwks of two zones",
             Request::get("/.well-known/jwks.json?zone_id=z1&zone_id=z2").body(Body::empty()).unwrap()),
            ("jwks of no zone",
             Request::get("/.well-known/jwks.json?zone_id=z9").body(Body::empty()).unwrap()),
            ("rotation without token",
             post("/internal/zones/z1/signing-key/rotate", form, "")),
            ("unknown route", Request::get("/nowhere").body(Body::empty()).unwrap()),
        ] {
            writeln!(table, "{}", sts.row(case, request).await).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        other method               | 405 invalid_token: tokens are exchanged by POST
        query string               | 400 invalid_token: query string must be empty: send every field in the form
        JSON                       | 415 invalid_token: content type must be application/x-www-form-urlencoded
        65,537 bytes               | 413 payload_too_large: request body too large
        empty form                 | 400 invalid_token: grant_type must be urn:ietf:params:oauth:grant-type:token-exchange
        jwks without zone          | 400 invalid_token: zone_id is required, once: the zone whose keys are wanted
        jwks of two zones          | 400 invalid_token: zone_id is required, once: the zone whose keys are wanted
        jwks of no zone            | 404 resource_not_found: the zone does not exist or has no keys
        rotation without token     | 401 access_denied: STS_ADMIN_TOKEN is required as bearer
        unknown route              | 404 not_found: no such route
        "); }
    }

    async fn callers_are_told_apart_only_by_a_right_secret(store: Store) {
        let sts = TestSts::start(store).await;
        let mut table = String::new();
        let resource = ("resource", "resource://desk");
        let with = |mut fields: Vec<(&'static str, &'static str)>, more: &[(&'static str, &'static str)]| {
            fields.push(resource);
            fields.extend_from_slice(more);
            exchange(&fields)
        };
        for (case, request) in [
            ("unknown application", with(caller("z1", "app-z9", "cs_of_z1"), &[])),
            ("wrong secret", with(caller("z1", "app-z1", "cs_of_z2"), &[])),
            ("no secret", with(vec![("zone_id", "z1"), ("application_id", "app-z1")], &[])),
            ("no zone", with(vec![("application_id", "app-z1"), ("client_secret", "cs_of_z1")], &[])),
            ("unknown zone, wrong secret", with(caller("z9", "app-z1", "cs_of_z2"), &[])),
            ("wrong zone, right secret", with(caller("z2", "app-z1", "cs_of_z1"), &[])),
            ("no resource", exchange(&caller("z1", "app-z1", "cs_of_z1"))),
            ("unknown resource", with(caller("z1", "app-z1", "cs_of_z1"), &[("scope", "agent:lifecycle")])),
            ("ttl over the cap", with(caller("z1", "app-z1", "cs_of_z1"), &[("ttl_seconds", "3601")])),
            ("delegation alone", with(caller("z1", "app-z1", "cs_of_z1"), &[("delegation_edge_id", "e1")])),
            ("unknown session", with(caller("z1", "app-z1", "cs_of_z1"), &[("agent_session_id", "s1")])),
            ("unknown record", with(caller("z1", "app-z1", "cs_of_z1"), &[("session_id", "r1")])),
            ("approval", with(caller("z1", "app-z1", "cs_of_z1"), &[("approval_id", "a1")])),
            ("id token",
             with(caller("z1", "app-z1", "cs_of_z1"),
                  &[("subject_token", "x"), ("subject_token_type", crate::form::ID_TOKEN_TYPE)])),
        ] {
            writeln!(table, "{}", sts.row(case, request).await).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        unknown application        | 401 access_denied: invalid client credentials
        wrong secret               | 401 access_denied: invalid client credentials
        no secret                  | 401 access_denied: invalid client credentials
        no zone                    | 401 access_denied: invalid client credentials
        unknown zone, wrong secret | 401 access_denied: invalid client credentials
        wrong zone, right secret   | 403 zone_invalid: the application belongs to zone z1, not to zone z2
        no resource                | 400 invalid_token: at least one resource is required
        unknown resource           | 403 access_denied: policy denied (resource_not_found)
        ttl over the cap           | 400 invalid_token: ttl_seconds must not exceed 3600
        delegation alone           | 403 access_denied: a delegation needs its agent session
        unknown session            | 403 access_denied: agent session is not live
        unknown record             | 403 access_denied: authority record is not active
        approval                   | 401 access_denied: approval not found or bindings do not match
        id token                   | 400 invalid_token: resource does not go with an id_token: leave it out
        "); }
    }

    async fn guesses_through_another_zone_are_on_record(store: Store) {
        let sts = TestSts::start(store).await;
        let resource = ("resource", "resource://desk");
        let before = sts.sts.evidence.stats().persisted;
        for (zone, secret, status) in [
            ("z2", "cs_of_z1", "403 zone_invalid"),
            ("z2", "cs_of_z2", "401 access_denied"),
            ("z9", "cs_of_z2", "401 access_denied"),
        ] {
            let mut fields = caller(zone, "app-z1", secret);
            fields.push(resource);
            let row = sts.row(zone, exchange(&fields)).await;
            assert!(row.contains(status), "{row}");
            assert_eq!(sts.sts.evidence.stats().persisted, before + 1, "the first, at once");
        }
        crate::guesses::settle_now(&sts.sts, true).await;
        assert_eq!(sts.sts.evidence.stats().persisted, before + 2, "the others, as a number");
    }

    async fn only_a_signature_that_is_right_fresh_and_new_speaks_for_the_gateway(store: Store) {
        let sts = TestSts::start(store).await;
        let key = HmacKey::from_hex(KEY).unwrap();
        let body = format!("grant_type={}&gateway_request_id=r1&zone_id=z1&application_id=app-z1\
             &resource=r&subject_token=x&subject_token_type={}", crate::form::GRANT_TYPE,
             crate::form::ACCESS_TOKEN_TYPE);
        let now = SystemClock::new().now().unix_seconds();
        let signed = |at: i64, nonce: &str, path: &str, id: &str| {
            let signature = GatewaySignature {
                timestamp: at, nonce, method: "POST", path, body_sha256: sha256(body.as_bytes()),
            }.sign(&key);
            let mut request = post("/oauth/2/token", "application/x-www-form-urlencoded", body.clone());
            let headers = request.headers_mut();
            headers.insert("x-request-id", id.parse().unwrap());
            headers.insert(crate::gateway::TIMESTAMP, at.to_string().parse().unwrap());
            headers.insert(crate::gateway::NONCE, nonce.parse().unwrap());
            headers.insert(crate::gateway::SIGNATURE, signature.parse().unwrap());
            request
        };
        let mut partly = signed(now, "n9", "/oauth/2/token", "r1");
        partly.headers_mut().remove(crate::gateway::NONCE);
        let mut table = String::new();
        for (case, request) in [
            ("one header missing", partly),
            ("other path", signed(now, "n1", "/oauth/2/tokens", "r1")),
            ("61 s old", signed(now - 62, "n2", "/oauth/2/token", "r1")),
            ("other request id", signed(now, "n3", "/oauth/2/token", "r2")),
            ("signed, bad mandate", signed(now, "n4", "/oauth/2/token", "r1")),
            ("the same again", signed(now, "n4", "/oauth/2/token", "r1")),
        ] {
            writeln!(table, "{}", sts.row(case, request).await).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        one header missing         | 401 access_denied: invalid gateway exchange signature
        other path                 | 401 access_denied: invalid gateway exchange signature
        61 s old                   | 401 access_denied: invalid gateway exchange signature
        other request id           | 401 access_denied: invalid gateway exchange signature
        signed, bad mandate        | 401 invalid_token: invalid subject_token
        the same again             | 401 access_denied: invalid gateway exchange signature
        "); }
    }

    async fn policy_is_asked_over_the_wire_with_the_shared_key_only(store: Store) {
        let sts = TestSts::start(store).await;
        let good = bundle("restrict := {}");
        let before = caracal_policy::meter();
        let (status, _, answer) = sts.send(signed("POST", SIMULATE, "s1", &good)).await;
        assert_eq!((status, &answer["result"]["decision"]), (StatusCode::OK, &Value::from("deny")));
        assert_eq!((&answer["policy_set_id"], &answer["version_id"], &answer["manifest_sha256"]),
            (&Value::from("ps"), &Value::from("v"), &Value::from("m")));
        let large = bundle(&format!("restrict := {{}} # {}", "x".repeat(200_000)));
        let digest = sha256_hex(large.as_bytes());
        assert_eq!(sts.send(announced("s2", &large, &digest)).await.0, 200);
        assert_eq!(caracal_policy::meter().compilation_errors, before.compilation_errors);
        let mut table = String::new();
        for (case, request) in [
            ("unsigned", post(SIMULATE, "application/json", good.clone())),
            ("the same again", signed("POST", SIMULATE, "s1", &good)),
            ("large, not announced", signed("POST", SIMULATE, "s10", &large)),
            ("announced, not as signed", announced("s11", &good, &digest)),
            ("announced, no digest", announced("s12", &good, "x")),
            ("announced, the same again", announced("s2", &large, &digest)),
            ("no JSON", signed("POST", SIMULATE, "s3", "{")),
            ("no documents", signed("POST", SIMULATE, "s4", r#"{"policies":[]}"#)),
            ("input of the wrong type", signed("POST", SIMULATE, "s5",
                &good.replace("\"input\":{}", "\"input\":{\"principal\":1}"))),
            ("a document that is none", signed("POST", SIMULATE, "s6", &simulation(&[("pv", "x".into())]))),
            ("documents that contradict", signed("POST", SIMULATE, "s7",
                &bundle("risk := []\nrisk := [1]"))),
            ("status, unsigned",
             Request::get("/internal/policy/status/z1").body(Body::empty()).unwrap()),
        ] {
            writeln!(table, "{}", sts.row(case, request).await).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        unsigned                   | 401 access_denied: invalid gateway exchange signature
        the same again             | 401 access_denied: invalid gateway exchange signature
        large, not announced       | 413 payload_too_large: request body too large
        announced, not as signed   | 401 access_denied: invalid gateway exchange signature
        announced, no digest       | 401 access_denied: invalid gateway exchange signature
        announced, the same again  | 401 access_denied: invalid gateway exchange signature
        no JSON                    | 400 invalid_request: the body is not a simulation: EOF while parsing an object at line 1 column 1
        no documents               | 400 invalid_request: policies must have at least one document
        input of the wrong type    | 400 invalid_request: invalid type: integer `1`, expected struct Principal
        a document that is none    | 422 policy_eval_failed: document `pv` is not accepted: missing_package_declaration
        documents that contradict  | 422 policy_eval_failed: policy evaluation failed: rule conflicts with rule at pv:3:1
        status, unsigned           | 401 access_denied: invalid gateway exchange signature
        "); }

        let status = async |zone: &str, nonce: &str| {
            let path = format!("/internal/policy/status/{zone}");
            sts.send(signed("GET", &path, nonce, "")).await.2
        };
        let bare = status("z1", "t1").await;
        assert_eq!((&bare["loaded"], &bare["manifest_sha256"]),
            (&Value::Bool(true), &Value::from("no_active_policy_set")));
        assert!(bare.get("policy_set_version_id").is_none() && bare["loaded_at"].is_string(), "{bare}");
        assert_eq!(status("z9", "t2").await, serde_json::json!({"zone_id": "z9", "loaded": false}));
    }

    async fn a_stranger_whose_body_trickles_holds_up_nobody(store: Store) {
        let sts = TestSts::start(store).await;
        let good = bundle("restrict := {}");
        let digest = sha256_hex(good.as_bytes());
        let trickling = |nonce: &str| {
            let mut request = signed("POST", SIMULATE, nonce, "");
            let forged = "0".repeat(64).parse().unwrap();
            request.headers_mut().insert(crate::gateway::SIGNATURE, forged);
            let parts = stream::iter([Ok::<_, std::io::Error>("{")]).chain(stream::pending());
            *request.body_mut() = Body::from_stream(parts);
            request
        };
        let mut told = trickling("k0");
        told.headers_mut().insert(crate::gateway::BODY_SHA256, digest.parse().unwrap());
        assert_eq!(sts.send(told).await.0, 401, "refused before its body is read");

        let mut strangers: Vec<_> = ["k1", "k2", "k3"]
            .map(|nonce| Box::pin(sts.send(trickling(nonce))))
            .into();
        for stranger in &mut strangers {
            assert!(stranger.now_or_never().is_none(), "its body is waited for");
        }
        assert_eq!(sts.send(announced("k4", &good, &digest)).await.0, 200);
        assert_eq!(sts.send(signed("POST", SIMULATE, "k5", &good)).await.0, 200);
    }

    async fn policy_is_measured(store: Store) {
        let sts = TestSts::start(store).await;
        let text = sts.sts.registry.render().await;
        for name in [
            "opa_eval_total", "opa_eval_errors_total", "opa_eval_interpreted_total",
            "opa_eval_duration_seconds_total", "opa_compile_total", "opa_compile_errors_total",
            "opa_compile_duration_seconds_total", "opa_max_policy_age_seconds",
            "opa_poll_interval_seconds",
        ] {
            assert!(text.contains(&format!("\ncaracal_sts_{name} ")), "{name}\n{text}");
        }
        assert_eq!(crate::CATALOGUE.differences(&text), Vec::<String>::new());
    }

    async fn a_call_of_an_application_that_is_gone_is_refused_on_record(store: Store) {
        let TestSts { sts, .. } = &TestSts::start(store).await;
        let mandate = serde_json::from_value(serde_json::json!({
            "iss": ISSUER, "sub": "app-gone", "aud": [ISSUER], "exp": 4_000_000_000_i64, "iat": 1,
            "jti": "j1", "zone_id": "z1", "client_id": "app-gone", "sid": "r1", "root_sid": "r1",
            "use": "gateway", "sub_type": "application",
        })).unwrap();
        let request_id = RequestId::visible_ascii("r1").unwrap();
        let call = caracal_client::GatewayExchange {
            token: "x", mandate: &mandate, resource: "resource://desk", method: "GET", path: "/",
            request_id: &request_id,
            within: WAITS,
        };
        let before = sts.evidence.stats().persisted;
        let refused = crate::gateway::exchange(sts, call, false, patience(sts)).await.err().unwrap();
        assert_eq!(refused.refusal, Refusal::ClientCredentials);
        assert_eq!(sts.evidence.stats().persisted, before + 1);
    }

    async fn keys_are_published_before_they_sign(store: Store) {
        let sts = TestSts::start(store).await;
        let jwks = || Request::get("/.well-known/jwks.json?zone_id=z1").body(Body::empty()).unwrap();
        let (status, headers, body) = sts.send(jwks()).await;
        assert_eq!(status, 200);
        assert_eq!(headers["cache-control"], "public, max-age=300, must-revalidate");
        assert_eq!(body["keys"].as_array().unwrap().len(), 1);
        let mut again = jwks();
        again.headers_mut().insert("if-none-match", headers["etag"].clone());
        assert_eq!(sts.send(again).await.0, 304);

        let mut rotate = post("/internal/zones/z1/signing-key/rotate", "text/plain", "");
        rotate.headers_mut().insert("authorization", "Bearer rotate-me".parse().unwrap());
        let (status, _, rotated) = sts.send(rotate).await;
        assert_eq!((status, &rotated["rotated"]), (StatusCode::OK, &Value::Bool(true)));
        let (_, _, body) = sts.send(jwks()).await;
        let kids: Vec<_> = body["keys"].as_array().unwrap().iter().map(|key| &key["kid"]).collect();
        assert!(kids.contains(&&rotated["kid"]), "the next key is published at once");
        assert_eq!(kids.len(), 2);
    }
}

#[test]
fn what_is_not_a_token_is_never_parsed_as_one() {
    assert!(Jws::parse("x").is_err());
}

/// A client may hold a secret in memory for as long as it likes; we do not show it.
#[test]
fn requests_do_not_show_their_secret() {
    let form = format!(
        "grant_type={}&client_secret=cs_hidden",
        crate::form::GRANT_TYPE
    );
    let request = crate::form::TokenRequest::parse(form.as_bytes()).unwrap();
    assert!(!format!("{request:?}").contains("cs_hidden"));
    assert!(request.client_secret == Some(Secret::new("cs_hidden".to_owned())));
}
