//! The STS over its router, on each engine: what a client sees, row by row.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use caracal_bus::Bus;
use caracal_crypto::envelope::{Kek, Keyring};
use caracal_crypto::es256::{Jws, SigningKey};
use caracal_crypto::mac::{GatewaySignature, HmacKey};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_crypto::verifier::SecretVerifier;
use caracal_evidence::{Drain, Durability, EvidenceLog, Pending, Sink, SinkError};
use caracal_model::{ApplicationId, Clock, Ids, Kid, Refusal, RequestId, Secret, ZoneId};
use caracal_net::egress::Fetcher;
use caracal_net::settings::Mistakes;
use caracal_store::Store;
use caracal_store::applications::Application;
use caracal_store::zones::{NewZoneKey, Provenance, Zone};
use caracal_view::{Local, Relay, RelayOptions, ViewConfig, Views, ZONE_KEY_AAD};
use http::{Request, StatusCode};
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::issuers::KeySource;
use crate::{Config, Deps, Sts, router};

mod actors;
mod approval_races;
mod approvals;
mod control;
mod federation;
mod gated;
mod keys;
mod limits;
mod outside;
mod poll;
mod rows;
mod scene;

const ISSUER: &str = "https://sts.example";
const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const KEK: &str = "8f3d9a712c45e6b0d18f2a4c6e9b3d57a1c4f8020e6a9c3d5b7f1a2c4e6d8b90";

/// What an identity provider publishes; counts how often it was asked.
struct Idp {
    answer: Mutex<Result<Bytes, String>>,
    asked: AtomicUsize,
}

impl Idp {
    fn publishes(&self, keys: &[&SigningKey]) {
        let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
        *self.answer.lock() = Ok(serde_json::json!({ "keys": keys }).to_string().into());
    }

    /// Answers with this, whatever it is.
    fn says(&self, body: &str) {
        *self.answer.lock() = Ok(Bytes::from(body.to_owned()));
    }

    fn is_out(&self) {
        *self.answer.lock() = Err("refused".to_owned());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl KeySource for Idp {
    async fn fetch(&self, _: &str) -> Result<Bytes, String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.answer.lock().clone()
    }
}

/// The service with everything behind it.
pub struct TestSts {
    idp: Arc<Idp>,
    pub sts: Arc<Sts>,
    router: Router,
    recorded: Arc<Recorded>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for TestSts {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn settings(name: &str) -> Option<String> {
    match name {
        "ISSUER_URL" => Some(ISSUER.to_owned()),
        "STS_ADMIN_TOKEN" => Some("rotate-me".to_owned()),
        // A thousand rounds of a race mint more than that.
        "STS_MINT_RATE_LIMIT_PER_MIN" => Some("1000000".to_owned()),
        _ => None,
    }
}

/// Evidence that left the log.
#[derive(Default)]
struct Recorded(parking_lot::Mutex<Vec<Value>>);

#[async_trait::async_trait]
impl Sink for Recorded {
    async fn deliver(&self, batch: &[Pending]) -> Result<(), SinkError> {
        let events = batch
            .iter()
            .map(|event| serde_json::from_str(&event.wire).unwrap());
        self.0.lock().extend(events);
        Ok(())
    }
}

struct From;

impl caracal_net::settings::Strings for From {
    fn get(&self, name: &str) -> Option<String> {
        settings(name)
    }

    fn file(&self, path: &str) -> std::io::Result<String> {
        std::fs::read_to_string(path)
    }
}

/// Two zones with a key and an application each; the secret of `app-Z` is `cs_of_Z`.
async fn provision(store: &Store, keyring: &Keyring, pepper: &HmacKey) {
    let now = SystemClock::new().now();
    let made = Provenance {
        created_by: None,
        created_via_operator: false,
        updated_by: None,
        updated_via_operator: false,
        created_at: now,
        updated_at: now,
    };
    for zone in ["z1", "z2"] {
        let id = ZoneId::trusted(zone);
        let kid = Kid::trusted(format!("kid-{zone}"));
        let key = SigningKey::generate(kid.clone()).unwrap();
        let sealed = keyring
            .seal(&OsRng, ZONE_KEY_AAD, key.pkcs8().expose())
            .unwrap();
        let mut tx = store.begin("a test's zones").await.unwrap();
        let row = Zone {
            id: id.clone(),
            name: zone.to_owned(),
            slug: zone.to_owned(),
            dcr_enabled: false,
            owner_account_id: None,
            operator_coauthor_badge: true,
            operator_governed: false,
            actor_tokens: false,
            provenance: made.clone(),
        };
        tx.zones().insert(&row).await.unwrap();
        let (x, y) = (&*key.public().x, &*key.public().y);
        let row = NewZoneKey {
            kid: &kid,
            x,
            y,
            sealed_private: &sealed,
            signs_from: now,
        };
        tx.zones().insert_key(&id, &row, now).await.unwrap();
        let verifier = SecretVerifier::for_generated(pepper, &format!("cs_of_{zone}"));
        let row = Application {
            id: ApplicationId::trusted(format!("app-{zone}")),
            name: "desk".to_owned(),
            registration_method: "managed".to_owned(),
            secret_verifier: Some(verifier.to_string()),
            traits: Vec::new(),
            expires_at: None,
            provenance: made.clone(),
            archived_at: None,
        };
        tx.applications(&id).insert(&row).await.unwrap();
        tx.commit().await.unwrap();
    }
}

/// Opens what the tests seal.
fn keyring() -> Arc<Keyring> {
    Arc::new(Keyring::new(Kek::from_hex(KEK).unwrap(), None))
}

fn system_clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

/// Asks nobody on this machine.
fn nowhere() -> Fetcher {
    Fetcher::strict([], None, Arc::new(SystemClock::new()))
}

impl TestSts {
    pub async fn start(store: Store) -> Self {
        Self::start_with(store, nowhere()).await
    }

    /// As [`TestSts::start`], asking token endpoints in this way.
    pub async fn start_with(store: Store, fetch: Fetcher) -> Self {
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        Self::start_on(store, bus, fetch).await
    }

    /// On a bus, asking whoever this lets it ask.
    pub async fn start_on(store: Store, bus: Bus, fetch: Fetcher) -> Self {
        let keyring = keyring();
        provision(&store, &keyring, &keyring.derive(crate::CLIENT_SECRETS)).await;
        // A lease that no busy machine loses.
        let views = ViewConfig {
            feed_max_lag: std::time::Duration::from_secs(30),
            ..ViewConfig::default()
        };
        let views = (views, system_clock());
        let (sts, drain) = Self::with(store, bus, fetch, views, |_| {}).await;
        let sink = sts.recorded.clone();
        let relay = caracal_evidence::Relay::new(drain, sink, Arc::new(OsRng));
        caracal_net::Tasks::new().spawn("evidence", relay.run(sts.stop.clone()));
        sts
    }

    /// Another on the same store, asking whoever this lets it ask.
    pub async fn replica_with(store: Store, bus: Bus, fetch: Fetcher) -> Self {
        let views = (ViewConfig::default(), system_clock());
        Self::with(store, bus, fetch, views, |_| {}).await.0
    }

    /// One of several on a store that is provisioned.
    async fn replica(
        store: Store,
        bus: Bus,
        views: ViewConfig,
        set: impl FnOnce(&mut Config),
    ) -> Self {
        Self::replica_at(store, bus, (views, system_clock()), set).await
    }

    /// As [`TestSts::replica`], with a clock for what it holds in memory.
    async fn replica_at(
        store: Store,
        bus: Bus,
        views: (ViewConfig, Arc<dyn Clock>),
        set: impl FnOnce(&mut Config),
    ) -> Self {
        Self::with(store, bus, nowhere(), views, set).await.0
    }

    /// A replica on a store that is provisioned, and the way of its evidence.
    async fn on(store: Store, bus: Bus) -> (Self, Drain) {
        let views = (ViewConfig::default(), system_clock());
        Self::with(store, bus, nowhere(), views, |_| {}).await
    }

    async fn with(
        store: Store,
        bus: Bus,
        fetch: Fetcher,
        (views, ticking): (ViewConfig, Arc<dyn Clock>),
        set: impl FnOnce(&mut Config),
    ) -> (Self, Drain) {
        let clock = system_clock();
        let keyring = keyring();
        let (views, follower) = Views::new(
            store.clone(),
            bus.clone(),
            ticking,
            Some(keyring.clone()),
            views,
        );
        views.start().await.unwrap();
        let stop = CancellationToken::new();
        let options = RelayOptions::default();
        let relay = Relay::new(
            store.clone(),
            bus.clone(),
            clock.clone(),
            None,
            None,
            options,
        );
        let tasks = caracal_net::Tasks::new();
        tasks.spawn("follower", follower.run(stop.clone()));
        let dir = tempfile::tempdir().unwrap();
        let (evidence, drain) =
            EvidenceLog::open(dir.path(), "sts", Durability::Process, clock.clone()).unwrap();
        let deps = Deps {
            store,
            bus,
            announce: Arc::new(Local::new(relay, views.clone())),
            views,
            evidence,
            keyring,
            fetch,
            gateway_key: Some(HmacKey::from_hex(KEY).unwrap()),
            ids: Arc::new(Ids::new(clock.clone(), Arc::new(OsRng))),
            clock,
            rng: Arc::new(OsRng),
        };
        let mut config = Config::load(&From, &mut Mistakes::default()).unwrap();
        set(&mut config);
        let idp = Arc::new(Idp {
            answer: Mutex::new(Err("not there yet".to_owned())),
            asked: AtomicUsize::new(0),
        });
        let sts = Sts::with_keys(config, deps, idp.clone());
        let started = Self {
            idp,
            router: router(Arc::clone(&sts), false),
            sts,
            recorded: Arc::default(),
            stop,
            _dir: dir,
        };
        (started, drain)
    }

    /// The events of a request, once there are so many.
    pub async fn events(&self, request_id: &str, count: usize) -> Vec<Value> {
        let of_request = |event: &&Value| event["request_id"] == request_id;
        for _ in 0..2_000 {
            let found: Vec<_> = self
                .recorded
                .0
                .lock()
                .iter()
                .filter(of_request)
                .cloned()
                .collect();
            if found.len() >= count {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("{count} events of {request_id} do not come");
    }

    pub async fn send(&self, request: Request<Body>) -> (StatusCode, http::HeaderMap, Value) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (
            head.status,
            head.headers,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    }

    pub async fn row(&self, case: &str, request: Request<Body>) -> String {
        let (status, headers, body) = self.send(request).await;
        let id = headers["x-request-id"].to_str().unwrap();
        assert_eq!(body["requestId"], id, "{case}");
        assert_eq!(body["request_id"], id, "{case}");
        let (code, why) = (
            body["error"].as_str().unwrap(),
            body["error_description"].as_str(),
        );
        let row = format!(
            "{case:<26} | {} {code}: {}",
            status.as_u16(),
            why.unwrap_or_default()
        );
        row.trim_end().to_owned()
    }
}

pub(crate) fn post(path: &str, content_type: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header("content-type", content_type);
    request.body(body.into()).unwrap()
}

fn exchange(fields: &[(&str, &str)]) -> Request<Body> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", crate::form::GRANT_TYPE)
        .extend_pairs(fields);
    post(
        "/oauth/2/token",
        "application/x-www-form-urlencoded",
        form.finish(),
    )
}

fn caller<'a>(zone: &'a str, app: &'a str, secret: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("zone_id", zone),
        ("application_id", app),
        ("client_secret", secret),
    ]
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
                timestamp: at, nonce, method: "POST", path, body: body.as_bytes(),
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
        let key = HmacKey::from_hex(KEY).unwrap();
        let now = SystemClock::new().now().unix_seconds();
        let signed = |method: &str, path: &str, nonce: &str, body: &str| {
            let signature = GatewaySignature {
                timestamp: now, nonce, method, path, body: body.as_bytes(),
            }.sign(&key);
            let request = Request::builder().method(method).uri(path)
                .header("content-type", "application/json")
                .header(crate::gateway::TIMESTAMP, now.to_string())
                .header(crate::gateway::NONCE, nonce)
                .header(crate::gateway::SIGNATURE, signature);
            request.body(Body::from(body.to_owned())).unwrap()
        };
        let simulate = "/internal/policy/simulate";
        let bundle = |content: &str| serde_json::json!({
            "policy_set_id": "ps", "version_id": "v", "manifest_sha256": "m",
            "policies": [{"id": "pv", "content": content}], "input": {},
        }).to_string();
        let head = "# caracal:data-document\npackage caracal.authz\n";
        let good = bundle(&format!("{head}restrict := {{}}"));
        let before = caracal_policy::meter();
        let (status, _, answer) = sts.send(signed("POST", simulate, "s1", &good)).await;
        assert_eq!((status, &answer["result"]["decision"]), (StatusCode::OK, &Value::from("deny")));
        assert_eq!((&answer["policy_set_id"], &answer["version_id"], &answer["manifest_sha256"]),
            (&Value::from("ps"), &Value::from("v"), &Value::from("m")));
        let large = bundle(&format!("{head}restrict := {{}} # {}", "x".repeat(200_000)));
        assert_eq!(sts.send(signed("POST", simulate, "s2", &large)).await.0, 200);
        assert_eq!(caracal_policy::meter().compilation_errors, before.compilation_errors);
        let mut table = String::new();
        for (case, request) in [
            ("unsigned", post(simulate, "application/json", good.clone())),
            ("the same again", signed("POST", simulate, "s1", &good)),
            ("no JSON", signed("POST", simulate, "s3", "{")),
            ("no documents", signed("POST", simulate, "s4", r#"{"policies":[]}"#)),
            ("input of the wrong type", signed("POST", simulate, "s5",
                &good.replace("\"input\":{}", "\"input\":{\"principal\":1}"))),
            ("a document that is none", signed("POST", simulate, "s6", &bundle("x"))),
            ("documents that contradict", signed("POST", simulate, "s7",
                &bundle(&format!("{head}risk := []\nrisk := [1]")))),
            ("status, unsigned",
             Request::get("/internal/policy/status/z1").body(Body::empty()).unwrap()),
        ] {
            writeln!(table, "{}", sts.row(case, request).await).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        unsigned                   | 401 access_denied: invalid gateway exchange signature
        the same again             | 401 access_denied: invalid gateway exchange signature
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
        };
        let before = sts.evidence.stats().persisted;
        let refused = crate::gateway::exchange(sts, call, false).await.err().unwrap();
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
