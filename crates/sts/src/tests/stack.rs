//! The service with everything behind it, and its evidence.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use caracal_bus::Bus;
use caracal_crypto::envelope::{Kek, Keyring};
use caracal_crypto::es256::SigningKey;
use caracal_crypto::mac::HmacKey;
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_crypto::verifier::SecretVerifier;
use caracal_evidence::{Drain, Durability, EvidenceLog, Pending, Sink, SinkError};
use caracal_model::{ApplicationId, Clock, Ids, Kid, ZoneId};
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

use super::told::is_whole;
use super::{ISSUER, KEK, KEY};
use crate::issuers::KeySource;
use crate::{Config, Deps, Sts, router};

/// What an identity provider publishes; counts how often it was asked.
pub struct Idp {
    answer: Mutex<Result<Bytes, String>>,
    asked: AtomicUsize,
}

impl Idp {
    pub fn publishes(&self, keys: &[&SigningKey]) {
        let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
        *self.answer.lock() = Ok(serde_json::json!({ "keys": keys }).to_string().into());
    }

    /// Answers with this, whatever it is.
    pub fn says(&self, body: &str) {
        *self.answer.lock() = Ok(Bytes::from(body.to_owned()));
    }

    pub fn is_out(&self) {
        *self.answer.lock() = Err("refused".to_owned());
    }

    pub fn asked(&self) -> usize {
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
    pub idp: Arc<Idp>,
    pub sts: Arc<Sts>,
    router: Router,
    recorded: Arc<Recorded>,
    pub stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for TestSts {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn settings(name: &str) -> Option<String> {
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
    async fn deliver(&self, batch: &[Pending]) -> Result<caracal_evidence::Delivered, SinkError> {
        let events = batch
            .iter()
            .map(|event| serde_json::from_str(&event.wire).unwrap());
        self.0.lock().extend(events);
        Ok(caracal_evidence::Delivered::Kept)
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
pub async fn provision(store: &Store, keyring: &Keyring, pepper: &HmacKey) {
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
pub fn keyring() -> Arc<Keyring> {
    Arc::new(Keyring::new(Kek::from_hex(KEK).unwrap(), None))
}

pub fn system_clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

/// Asks nobody on this machine.
pub fn nowhere() -> Fetcher {
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
    pub async fn replica(
        store: Store,
        bus: Bus,
        views: ViewConfig,
        set: impl FnOnce(&mut Config),
    ) -> Self {
        Self::replica_at(store, bus, (views, system_clock()), set).await
    }

    /// As [`TestSts::replica`], with a clock for what it holds in memory.
    pub async fn replica_at(
        store: Store,
        bus: Bus,
        views: (ViewConfig, Arc<dyn Clock>),
        set: impl FnOnce(&mut Config),
    ) -> Self {
        Self::with(store, bus, nowhere(), views, set).await.0
    }

    /// A replica on a store that is provisioned, and the way of its evidence.
    pub async fn on(store: Store, bus: Bus) -> (Self, Drain) {
        Self::reaching(store, bus, nowhere()).await
    }

    /// The same, asking token endpoints in this way.
    pub async fn reaching(store: Store, bus: Bus, fetch: Fetcher) -> (Self, Drain) {
        let views = (ViewConfig::default(), system_clock());
        Self::with(store, bus, fetch, views, |_| {}).await
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
            tasks: caracal_net::Tasks::new(),
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
        is_whole(case, status, &headers, &body);
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
