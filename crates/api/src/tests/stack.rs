//! A service with everything behind it, and requests to it.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use caracal_bus::Bus;
use caracal_crypto::HmacKey;
use caracal_crypto::envelope::{Kek, Keyring};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_evidence::{Drain, Durability, EvidenceLog};
use caracal_model::{Clock, Ids, Secret, ZoneId};
use caracal_net::Tasks;
use caracal_net::egress::{Fetcher, Resolver};
use caracal_net::settings::Mistakes;
use caracal_store::Store;
use caracal_store::custody::{Custody, SecretBackend};
use caracal_store::testing::Database;
use caracal_trail::Trail;
use caracal_view::{Local, Relay, RelayOptions, ViewConfig, Views};
use http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{Api, Config, Deps, Hooks, derived_token, router, seed};

/// The token that every stack starts with.
pub const BOOTSTRAP: &str = "bootstrap-token-of-the-tests";

/// Seals everything in these tests.
pub const KEK: &str = "3f0a9c5d7e1b2846a5c3f1e0d9b8a7564738291a0b1c2d3e4f5061728394a5b6";

/// A certificate that stands in the open; every host of these tests shows it.
pub const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../net/testdata/test-only.pem");

/// Every name is this machine.
struct Here;

impl Resolver for Here {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>> {
        Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) })
    }
}

/// A running service.
pub struct Stack {
    pub api: Arc<Api>,
    pub store: Store,
    pub views: Views,
    pub evidence: EvidenceLog,
    router: Router,
    tasks: Tasks,
    _drain: Drain,
    _dir: tempfile::TempDir,
}

/// An answer.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
    pub bytes: Vec<u8>,
    pub body: Value,
}

impl Reply {
    /// A member of the body, as text.
    pub fn text(&self, name: &str) -> &str {
        self.body[name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name} in {self}"))
    }

    /// The body, after its status was checked.
    #[track_caller]
    pub fn is(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self}");
        self.body
    }
}

impl fmt::Display for Reply {
    /// Status, code and description of a refusal, or the status and the body.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(error) = self.body["error"].as_str() else {
            return write!(f, "{} {}", self.status.as_u16(), self.text);
        };
        assert_eq!(self.body["requestId"], self.body["request_id"]);
        assert_eq!(
            self.headers["x-request-id"],
            self.body["requestId"].as_str().unwrap()
        );
        let why = self.body["error_description"]
            .as_str()
            .unwrap_or("(no description)");
        write!(f, "{} {error}: {why}", self.status.as_u16())
    }
}

impl Stack {
    async fn start(store: Store, settings: &[(&str, &str)]) -> Self {
        Self::start_over(store, settings, None).await
    }

    /// As [`Stack::start`], with secrets kept outside.
    pub async fn start_over(
        store: Store,
        settings: &[(&str, &str)],
        backend: Option<Arc<dyn SecretBackend>>,
    ) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let rng = Arc::new(OsRng);
        let ids = Arc::new(Ids::new(clock.clone(), rng.clone()));
        let keyring = Arc::new(Keyring::new(Kek::from_hex(KEK).unwrap(), None));
        let bus = Bus::memory(clock.clone());
        let (views, follower) = Views::new(
            store.clone(),
            bus.clone(),
            clock.clone(),
            Some(keyring.clone()),
            ViewConfig {
                backend: backend.clone(),
                ..ViewConfig::default()
            },
        );
        let options = RelayOptions::default();
        let relay = Relay::new(
            store.clone(),
            bus.clone(),
            clock.clone(),
            None,
            None,
            options,
        );
        views.start().await.unwrap();
        let tasks = Tasks::new();
        tasks.spawn("follower", follower.run(tasks.stop()));
        tasks.spawn("relay", relay.clone().run(tasks.stop()));
        let dir = tempfile::tempdir().unwrap();
        let (evidence, drain) =
            EvidenceLog::open(dir.path(), "api", Durability::Process, clock.clone()).unwrap();
        let fetch =
            Fetcher::for_tests(Arc::new(Here), CERTIFICATE.as_ref(), clock.clone()).unwrap();
        let key = HmacKey::from_hex(&"a1".repeat(32)).unwrap();
        let (trail, chainer) = Trail::new(store.clone(), Some(key), clock.clone(), ids.clone());
        tasks.spawn("admin audit", chainer.run(tasks.stop()));
        let api = Api::new(
            config(settings),
            Deps {
                store: store.clone(),
                views: views.clone(),
                announce: Arc::new(Local::new(relay, views.clone())),
                bus,
                keyring,
                custody: Custody::new(store.clone(), backend),
                hooks: Hooks {
                    strict: fetch.clone(),
                    loopback: Some(Fetcher::loopback(clock.clone())),
                },
                fetch,
                evidence: evidence.clone(),
                trail,
                clock,
                ids,
                rng,
                draining: tasks.stop(),
            },
        );
        seed(&api).await.unwrap();
        tasks.spawn("audit tail", crate::follow(api.clone(), tasks.stop()));
        let router = router(&api, true);
        Self {
            api,
            store,
            views,
            evidence,
            router,
            tasks,
            _drain: drain,
            _dir: dir,
        }
    }

    /// Ends everything.
    pub async fn stop(self) {
        self.tasks.shutdown(Duration::from_secs(5)).await;
        self.evidence.close().await;
    }

    /// Opens an answer that does not end by itself.
    pub async fn open(&self, request: Request<Body>) -> axum::response::Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// What tells the service that the process stops.
    pub fn drain(&self) {
        self.tasks.stop().cancel();
    }

    /// Sends a request as it stands.
    pub async fn raw(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 24).await.unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Reply {
            status: parts.status,
            headers: parts.headers,
            text,
            bytes: bytes.to_vec(),
            body,
        }
    }

    /// Sends a request with this token and this body, unless they are empty.
    pub async fn send_as(&self, token: &str, method: &str, path: &str, body: &str) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        self.raw(request.body(Body::from(body.to_owned())).unwrap())
            .await
    }

    /// Sends JSON with the bootstrap token.
    pub async fn send(&self, method: &str, path: &str, body: Value) -> Reply {
        self.send_as(BOOTSTRAP, method, path, &body.to_string())
            .await
    }

    /// Reads with the bootstrap token.
    pub async fn get(&self, path: &str) -> Reply {
        self.send_as(BOOTSTRAP, "GET", path, "").await
    }

    /// Deletes with the bootstrap token.
    pub async fn delete(&self, path: &str) -> Reply {
        self.send_as(BOOTSTRAP, "DELETE", path, "").await
    }

    /// A new zone.
    pub async fn zone(&self, name: &str) -> ZoneId {
        let body = self
            .send("POST", "/v1/zones", json!({ "name": name }))
            .await
            .is(201);
        ZoneId::parse(body["id"].as_str().unwrap()).unwrap()
    }

    /// Makes something; answers with its id.
    pub async fn make(&self, path: &str, body: Value) -> String {
        self.send("POST", path, body).await.is(201)["id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// A new token.
    pub async fn token(&self, capability: &str, zone: Option<&ZoneId>) -> String {
        let scope = if zone.is_some() { "zone" } else { "global" };
        let body = json!({"name": "t", "scope": scope, "zone_id": zone, "capability": capability});
        let made = self.send("POST", "/v1/admin-tokens", body).await.is(201);
        made["token"].as_str().unwrap().to_owned()
    }

    /// The token that the console derives.
    pub fn console(&self, kind: &str) -> String {
        let secret = Secret::new(BOOTSTRAP.to_owned());
        derived_token(&secret, &format!("caracal:console:{kind}:v1"))
            .expose()
            .clone()
    }

    /// A policy set in force that grants `resource://crm` to an application.
    pub async fn activated_set(&self, zone: &ZoneId) -> (String, String) {
        let z = format!("/v1/zones/{zone}");
        let policy = json!({"name": "application-grants", "content": grants("app-1")});
        let policy = self
            .send("POST", &format!("{z}/policies"), policy)
            .await
            .is(201);
        let set = self
            .make(&format!("{z}/policy-sets"), json!({"name": "the-set"}))
            .await;
        let manifest = json!({"manifest": [{"policy_version_id": policy["version_id"]}]});
        let path = format!("{z}/policy-sets/{set}/versions");
        let version = self.send("POST", &path, manifest).await.is(201);
        let version = version["version_id"].as_str().unwrap().to_owned();
        let path = format!("{z}/policy-sets/{set}/activate");
        self.send("POST", &path, json!({ "version_id": version }))
            .await
            .is(202);
        (set, version)
    }
}

/// A grants document as published clients write it.
pub fn grants(application: &str) -> String {
    format!(
        "# caracal:data-document\npackage caracal.authz\nimport rego.v1\n\
         app_ids := {{\"{application}\":\"{application}\"}}\n\
         grants := {{\"resource://crm\":{{\"application\":\"{application}\",\
         \"roles\":{{\"{application}\":[\"crm:read\"]}}}}}}\n"
    )
}

fn config(settings: &[(&str, &str)]) -> Config {
    let defaults = [
        ("CARACAL_ADMIN_TOKEN", BOOTSTRAP),
        ("API_V1_RATE_LIMIT_PER_MIN", "0"),
    ];
    let all = defaults.iter().chain(settings);
    let from: std::collections::BTreeMap<String, String> = all
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let mut mistakes = Mistakes::default();
    Config::load(&from, &mut mistakes).unwrap_or_else(|| panic!("{mistakes}"))
}

/// Runs a test with a service of its own on each engine.
pub async fn on_each_engine<F, T>(name: &str, settings: &[(&str, &str)], test: F)
where
    F: Fn(Rc<Stack>) -> T,
    T: Future<Output = ()>,
{
    for database in Database::each(name).await {
        let store = database.open().await;
        store.migrate().await.unwrap();
        let stack = Rc::new(Stack::start(store.clone(), settings).await);
        Box::pin(test(stack.clone())).await;
        let stack = Rc::into_inner(stack).expect("the test let go of its stack");
        stack.stop().await;
        store.shutdown().await;
        drop(store);
        database.remove().await;
    }
}

/// A test on each engine: `on_stack! { async fn a_sentence(stack: Stack) { … } }`.
#[macro_export]
macro_rules! on_stack {
    ($($(#[$meta:meta])* async fn $name:ident($stack:ident: Stack) $([$($setting:expr),*])? $body:block)+) => {$(
        $(#[$meta])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let settings: &[(&str, &str)] = &[$($($setting),*)?];
            $crate::tests::on_each_engine(stringify!($name), settings, |$stack| async move $body)
                .await;
        }
    )+};
}
