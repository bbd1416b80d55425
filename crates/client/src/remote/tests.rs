use super::*;
use axum::body::Body;
use caracal_crypto::digest::sha256;
use caracal_model::claims::SubjectType;
use caracal_model::{
    ApplicationId, Jti, Mandate, RecordId, RequestId, TestClock, TestRng, TokenUse, ZoneId,
};
use caracal_net::egress::{AddressGuard, Egress, PoolSettings, SystemResolver, client_config};
use caracal_net::{Limits, Server, Tasks};
use std::fmt::Write as _;
use std::sync::Mutex;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn mandate() -> Mandate {
    Mandate {
        iss: "https://sts.example".into(),
        sub: "app-1".into(),
        aud: vec!["https://sts.example".into()],
        exp: 0,
        iat: 0,
        jti: Jti::trusted("j"),
        zone_id: ZoneId::trusted("zone-1"),
        client_id: ApplicationId::trusted("app-1"),
        scope: String::new(),
        sid: RecordId::trusted("r"),
        root_sid: RecordId::trusted("r"),
        token_use: TokenUse::Gateway,
        sub_type: SubjectType::Application,
        target: vec![],
        agent_session_id: None,
        delegation_edge_id: None,
        source_session_id: None,
        target_session_id: None,
        delegation_path: vec![],
        delegation_chain: vec![],
        hop_count: None,
        delegation_graph_epoch: None,
        act: None,
    }
}

type Answer = (u16, &'static str, String);

/// An STS that gives one answer and keeps what it was asked.
struct TestSts {
    exchange: RemoteExchange,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<Mutex<Vec<(http::request::Parts, String)>>>,
    clock: Arc<TestClock>,
    tasks: Tasks,
}

impl TestSts {
    async fn start() -> Self {
        let answer = Arc::new(Mutex::new((200, "application/json", String::new())));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (says, keeps) = (answer.clone(), asked.clone());
        let handler = move |request: Request<Body>| async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            keeps
                .lock()
                .unwrap()
                .push((parts, String::from_utf8(body.to_vec()).unwrap()));
            let (status, media, text) = says.lock().unwrap().clone();
            if status == 0 {
                std::future::pending::<()>().await;
            }
            let response = Response::builder()
                .status(status)
                .header("retry-after", "7");
            response
                .header("content-type", media)
                .body(Body::from(text))
                .unwrap()
        };
        let router = axum::Router::new().fallback(handler);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let tasks = Tasks::new();
        tasks.spawn(
            "sts",
            Server::new(listener, router, Limits::default()).serve(tasks.stop()),
        );
        let clock = Arc::new(TestClock::default());
        let egress = Egress::new(
            AddressGuard::upstream(),
            Arc::new(SystemResolver),
            clock.clone(),
        );
        let tls = client_config(None).unwrap();
        let exchange = RemoteExchange::new(
            &base,
            Some(HmacKey::from_hex(KEY).unwrap()),
            clock.clone(),
            Arc::new(TestRng::default()),
            Forwarder::new(egress, tls, PoolSettings::default()),
            Duration::from_millis(300),
        );
        Self {
            exchange: exchange.unwrap(),
            answer,
            asked,
            clock,
            tasks,
        }
    }

    fn answers(&self, status: u16, media: &'static str, text: &str) {
        *self.answer.lock().unwrap() = (status, media, text.to_owned());
    }

    async fn ask(&self) -> Result<GatewayGrant, ExchangeRefused> {
        let mandate = mandate();
        let request_id = RequestId::trusted("req-0001");
        let request = GatewayExchange {
            token: "aaa.bbb.ccc",
            mandate: &mandate,
            resource: "resource://pipernet",
            method: "POST",
            path: "/v1/items",
            request_id: &request_id,
            within: Duration::from_millis(300),
        };
        self.exchange.exchange(request).await
    }
}

use http_body_util::BodyExt as _;

const GRANT: &str = r#"{"access_token":"m","token_type":"Bearer","expires_in":900,
    "upstreams":{"resource://pipernet":{"url":"https://api.example/v2","auth_mode":"none"}}}"#;

#[tokio::test]
async fn the_request_is_that_of_the_specification() {
    let sts = TestSts::start().await;
    sts.answers(200, "application/json; charset=utf-8", GRANT);
    let grant = sts.ask().await.unwrap();
    assert_eq!(grant.directive.url, "https://api.example/v2");
    assert_eq!(grant.expires_in, 900);

    let (head, body) = sts.asked.lock().unwrap().pop().unwrap();
    assert_eq!(
        body,
        concat!(
            "application_id=app-1&gateway_request_id=req-0001&grant_type=urn%3Aietf%3Aparams%3A",
            "oauth%3Agrant-type%3Atoken-exchange&request_method=POST&request_path=%2Fv1%2Fitems",
            "&resource=resource%3A%2F%2Fpipernet&subject_token=aaa.bbb.ccc&subject_token_type=",
            "urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token&zone_id=zone-1",
        )
    );
    let text = |name: &str| head.headers[name].to_str().unwrap();
    assert_eq!(
        (head.method.as_str(), head.uri.path()),
        ("POST", "/oauth/2/token")
    );
    assert_eq!(head.uri.query(), None);
    assert_eq!(text("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(text("accept"), "application/json");
    assert_eq!(text("user-agent"), "caracal-gateway");
    assert_eq!(text("x-request-id"), "req-0001");
    assert_eq!(text("x-caracal-gateway-timeout"), "300");
    let nonce = text("x-caracal-gateway-request");
    assert!(
        nonce.len() == 64
            && nonce
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    );
    let signed = GatewaySignature {
        timestamp: text("x-caracal-gateway-timestamp").parse().unwrap(),
        nonce,
        method: "POST",
        path: "/oauth/2/token",
        body_sha256: sha256(body.as_bytes()),
    };
    assert_eq!(signed.timestamp, sts.clock.now().unix_seconds());
    let key = HmacKey::from_hex(KEY).unwrap();
    assert!(signed.verify(&key, text("x-caracal-gateway-signature")));
    assert!(sts.exchange.healthy().await);
    assert!(sts.tasks.shutdown(Duration::from_secs(5)).await.is_empty());
}

#[tokio::test]
async fn outcomes_are_told_as_the_table_says() {
    let sts = TestSts::start().await;
    let json = "application/json";
    let mut table = String::new();
    let hold = r#"{"error":"interaction_required","error_description":"Human approval required",
        "approval_id":"5c0e","state":"pending","requestId":"other"}"#;
    let other = r#"{"access_token":"m","upstreams":{"resource://other":{"url":"https://a"}}}"#;
    let no_url = r#"{"access_token":"m","upstreams":{"resource://pipernet":{}}}"#;
    let large = format!(r#"{{"access_token":"{}"}}"#, "x".repeat(300 * 1024));
    for (case, status, media, text) in [
        (
            "denied",
            403,
            json,
            r#"{"error":"access_denied","error_description":"no"}"#,
        ),
        ("hold", 401, json, hold),
        ("limited", 429, json, r#"{"error":"provider_rate_limited"}"#),
        ("no json", 500, "text/plain", "boom"),
        ("json without error", 404, json, "{}"),
        ("200 as text", 200, "text/plain", GRANT),
        ("200 undecodable", 200, json, "{"),
        ("200 without token", 200, json, r#"{"access_token":""}"#),
        ("200 too large", 200, json, &large),
        ("other resource", 200, json, other),
        ("no url", 200, json, no_url),
        ("silence", 0, json, ""),
    ] {
        sts.answers(status, media, text);
        let refused = sts.ask().await.unwrap_err();
        let response = caracal_net::Problem::from(refused).respond(None);
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = std::str::from_utf8(&body).unwrap().trim_end();
        let retry = head
            .headers
            .get("retry-after")
            .map_or("-", |v| v.to_str().unwrap());
        writeln!(
            table,
            "{case:<18} | {} retry={retry} {body}",
            head.status.as_u16()
        )
        .unwrap();
        // Failures in a row would open the circuit: a success between them keeps it closed.
        sts.answers(200, json, GRANT);
        sts.ask().await.unwrap();
    }
    insta::assert_snapshot!(table, @r#"
    denied             | 403 retry=7 {"error":"access_denied","error_description":"no"}
    hold               | 401 retry=7 {"error":"interaction_required","error_description":"Human approval required","approval_id":"5c0e","state":"pending"}
    limited            | 429 retry=7 {"error":"provider_rate_limited"}
    no json            | 500 retry=7 {"error":"sts_unavailable","error_description":"Internal Server Error"}
    json without error | 404 retry=7 {"error":"sts_unavailable","error_description":"Not Found"}
    200 as text        | 502 retry=- {"error":"sts_unavailable","error_description":"sts response invalid"}
    200 undecodable    | 502 retry=- {"error":"sts_unavailable","error_description":"sts response invalid"}
    200 without token  | 502 retry=- {"error":"sts_unavailable","error_description":"sts response invalid"}
    200 too large      | 502 retry=- {"error":"sts_unavailable","error_description":"sts response invalid"}
    other resource     | 403 retry=- {"error":"access_denied","error_description":"resource upstream not configured"}
    no url             | 403 retry=- {"error":"access_denied","error_description":"resource upstream not configured"}
    silence            | 504 retry=- {"error":"sts_unavailable","error_description":"sts timeout"}
    "#);
}

#[tokio::test]
async fn an_sts_that_fails_is_left_alone_for_a_while() {
    let sts = TestSts::start().await;
    sts.answers(503, "application/json", r#"{"error":"sts_unavailable"}"#);
    for _ in 0..3 {
        sts.ask().await.unwrap_err();
    }
    let before = sts.asked.lock().unwrap().len();
    let refused = sts.ask().await.unwrap_err();
    assert_eq!(refused.to_string(), "503 sts_unavailable: sts unavailable");
    assert_eq!(sts.asked.lock().unwrap().len(), before);
    assert_eq!(
        sts.exchange.circuit(),
        Circuit {
            open: true,
            opened: 1,
            fast_failed: 1
        }
    );

    sts.clock.advance(OPEN);
    sts.answers(200, "application/json", GRANT);
    sts.ask().await.unwrap();
    assert!(!sts.exchange.circuit().open);
}

#[tokio::test]
async fn an_sts_that_is_not_there_is_unreachable() {
    let sts = TestSts::start().await;
    assert!(sts.tasks.shutdown(Duration::from_secs(5)).await.is_empty());
    let refused = sts.ask().await.unwrap_err();
    assert_eq!(refused.to_string(), "502 sts_unavailable: sts unavailable");
    assert!(!sts.exchange.healthy().await);
}
