//! A Gateway with everything around it: a zone with a key, a bus, evidence, an STS that grants
//! what a test says, and an upstream that does what a test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use caracal_bus::Bus;
use caracal_client::{Directive, Exchange, ExchangeRefused, GatewayExchange, GatewayGrant};
use caracal_crypto::SigningKey;
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_evidence::{Durability, EvidenceLog, Pending, Relay, Sink, SinkError};
use caracal_gateway::{Config, Deps, router};
use caracal_model::claims::SubjectType;
use caracal_model::{
    ApplicationId, Clock, DelegationId, Ids, Jti, Kid, Mandate, RecordId, Secret, SessionId,
    TokenUse, Topic, ZoneId,
};
use caracal_net::metrics::Access;
use caracal_net::{Limits, Server, Tasks};
use caracal_store::authority_records::AuthorityRecord;
use caracal_store::testing::Database;
use caracal_store::zones::{Author, NewZoneKey, Provenance, Zone};
use caracal_view::{ViewConfig, Views};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::client::{Answer, PATIENCE, Wire};

pub const ISSUER: &str = "https://sts.example";

/// What the STS answers, and what it was asked.
pub struct TestExchange {
    pub directive: Mutex<Value>,
    pub refuses: Mutex<Option<ExchangeRefused>>,
    pub asked: Mutex<Vec<String>>,
    pub healthy: Mutex<bool>,
}

#[async_trait]
impl Exchange for TestExchange {
    async fn exchange(
        &self,
        request: GatewayExchange<'_>,
    ) -> Result<GatewayGrant, ExchangeRefused> {
        let asked = format!("{} {} {}", request.method, request.path, request.resource);
        self.asked.lock().unwrap().push(asked);
        if let Some(refused) = self.refuses.lock().unwrap().clone() {
            return Err(refused);
        }
        let directive = self.directive.lock().unwrap().clone();
        let directive: Directive = serde_json::from_value(directive).unwrap();
        let access_token = Some(Secret::new("resource-mandate".to_owned()));
        Ok(GatewayGrant {
            directive,
            expires_in: 900,
            access_token,
        })
    }

    async fn healthy(&self) -> bool {
        *self.healthy.lock().unwrap()
    }
}

/// Keeps every event that was delivered.
#[derive(Clone, Default)]
pub struct Delivered(Arc<Mutex<Vec<Value>>>);

#[async_trait]
impl Sink for Delivered {
    async fn deliver(&self, batch: &[Pending]) -> Result<caracal_evidence::Delivered, SinkError> {
        let events = batch
            .iter()
            .map(|event| serde_json::from_str(&event.wire).unwrap());
        self.0.lock().unwrap().extend(events);
        Ok(caracal_evidence::Delivered::Kept)
    }
}

pub struct Stack {
    pub address: SocketAddr,
    pub exchange: Arc<TestExchange>,
    pub evidence: EvidenceLog,
    pub bus: Bus,
    pub views: Views,
    pub clock: Arc<dyn Clock>,
    pub tasks: Tasks,
    pub key: SigningKey,
    delivery: Tasks,
    follows: Tasks,
    store: caracal_store::Store,
    delivered: Delivered,
    ids: Arc<Ids>,
    database: Option<Database>,
    _dir: tempfile::TempDir,
}

/// What a test may want otherwise.
pub struct Around {
    /// Where mandates are claimed, when not on the bus of the feed.
    pub claims: Option<Bus>,
    pub feed_max_lag: Duration,
}

impl Default for Around {
    fn default() -> Self {
        Self {
            claims: None,
            feed_max_lag: Duration::from_secs(3600),
        }
    }
}

pub fn config() -> Config {
    Config {
        issuer: Some(ISSUER.to_owned()),
        floor_ms: None,
        admin_token: Some(Secret::new("operator".to_owned())),
        metrics: Arc::new(Access {
            bearer: None,
            open: true,
            json_refusal: false,
        }),
        sts_timeout: Duration::from_secs(5),
        upstream_timeout: Duration::from_secs(5),
        read_timeout: Duration::from_secs(5),
        stream_idle_timeout: Duration::from_secs(5),
        max_request_bytes: 1024 * 1024,
        max_bearer_bytes: 8 * 1024,
        upstream_hosts: Default::default(),
        operator_prefix: String::new(),
        trust_proxy: false,
        jti_fail_open: false,
        extra_ca: None,
        limits: Limits::default(),
    }
}

/// An upstream on a socket of its own; answers its base URL.
pub async fn upstream<F, R>(tasks: &Tasks, handler: F) -> String
where
    F: Fn(Request) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let limits = Limits {
        drain: Duration::from_millis(50),
        ..Limits::default()
    };
    let router = Router::new().fallback(handler);
    tasks.spawn(
        "upstream",
        Server::new(listener, router, limits).serve(tasks.stop()),
    );
    url
}

impl Stack {
    pub async fn start() -> Self {
        Self::with(config()).await
    }

    pub async fn with(config: Config) -> Self {
        let around = Around::default();
        Self::among(config, around).await
    }

    pub async fn among(config: Config, around: Around) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let tasks = Tasks::new();
        let ids = Arc::new(Ids::new(clock.clone(), Arc::new(OsRng)));
        // The Gateway only reads its store, so one engine is enough here.
        let mut databases = Database::each("gateway").await;
        let database = databases.swap_remove(0);
        for other in databases {
            other.remove().await;
        }
        let store = database.open_with(clock.clone()).await;
        store.migrate().await.unwrap();
        let key = SigningKey::generate(Kid::trusted("key-1")).unwrap();
        zone(&store, &key, &clock).await;

        let bus = Bus::memory(clock.clone());
        let (views, follower) = Views::new(
            store.clone(),
            bus.clone(),
            clock.clone(),
            None,
            ViewConfig {
                feed_max_lag: around.feed_max_lag,
                ..ViewConfig::default()
            },
        );
        views.start().await.unwrap();
        let follows = Tasks::new();
        follows.spawn("follower", follower.run(follows.stop()));

        let dir = tempfile::tempdir().unwrap();
        let (evidence, drain) =
            EvidenceLog::open(dir.path(), "gateway", Durability::Process, clock.clone()).unwrap();
        let delivered = Delivered::default();
        let relay = Relay::new(drain, Arc::new(delivered.clone()), Arc::new(OsRng));
        // Stopped after everyone who records.
        let delivery = Tasks::new();
        delivery.spawn("relay", relay.run(delivery.stop()));

        let exchange = Arc::new(TestExchange {
            directive: Mutex::new(json!({"url": "http://127.0.0.1:1", "auth_mode": "none"})),
            refuses: Mutex::default(),
            asked: Mutex::default(),
            healthy: Mutex::new(true),
        });
        let limits = config.limits;
        let deps = Deps {
            views: views.clone(),
            bus: around.claims.unwrap_or_else(|| bus.clone()),
            store: store.clone(),
            exchange: exchange.clone(),
            evidence: evidence.clone(),
            clock: clock.clone(),
            ids: ids.clone(),
            tasks: tasks.clone(),
        };
        let router = router(config, deps).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(
            "gateway",
            Server::new(listener, router, limits).serve(tasks.stop()),
        );
        Self {
            address,
            exchange,
            evidence,
            bus,
            views,
            clock,
            tasks,
            key,
            delivery,
            follows,
            store,
            delivered,
            ids,
            database: Some(database),
            _dir: dir,
        }
    }

    pub fn directive(&self, directive: Value) {
        *self.exchange.directive.lock().unwrap() = directive;
    }

    /// Starts an upstream and has the STS direct calls there without a credential.
    pub async fn forwards_to<F, R>(&self, handler: F) -> String
    where
        F: Fn(Request) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response> + Send,
    {
        let url = upstream(&self.tasks, handler).await;
        self.directive(json!({"url": url, "auth_mode": "none"}));
        url
    }

    /// An ingress mandate that is in order.
    pub fn mandate(&self) -> Mandate {
        let now = self.clock.now().unix_seconds();
        Mandate {
            iss: ISSUER.into(),
            sub: "app-1".into(),
            aud: vec![ISSUER.into()],
            exp: now + 300,
            iat: now,
            jti: Jti::trusted(self.ids.uuid()),
            zone_id: ZoneId::trusted("z1"),
            client_id: ApplicationId::trusted("app-1"),
            scope: "desk:read".into(),
            sid: RecordId::trusted("record-1"),
            root_sid: RecordId::trusted("record-0"),
            token_use: TokenUse::Gateway,
            sub_type: SubjectType::Application,
            target: vec!["resource://desk".into()],
            agent_session_id: Some(SessionId::trusted("session-1")),
            delegation_edge_id: Some(DelegationId::trusted("edge-2")),
            source_session_id: None,
            target_session_id: None,
            delegation_path: vec![
                DelegationId::trusted("edge-1"),
                DelegationId::trusted("edge-2"),
            ],
            delegation_chain: vec![],
            hop_count: None,
            delegation_graph_epoch: None,
            act: None,
        }
    }

    pub fn sign(&self, claims: &impl serde::Serialize) -> String {
        self.key.sign(claims).unwrap()
    }

    pub fn bearer(&self) -> String {
        self.sign(&self.mandate())
    }

    /// The head of a request with a fresh mandate, up to the blank line, which is not in it.
    pub fn head(&self, method: &str, target: &str) -> String {
        format!(
            "{method} {target} HTTP/1.1\r\nHost: gateway.example\r\nConnection: close\r\n\
             Authorization: Bearer {}\r\nX-Caracal-Resource: resource://desk\r\n",
            self.bearer()
        )
    }

    pub async fn open(&self) -> Wire {
        Wire::open(self.address).await
    }

    /// Sends a raw request and reads until the connection ends.
    pub async fn raw(&self, request: &str) -> Answer {
        let mut wire = self.open().await;
        wire.send(request).await;
        wire.answer().await
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.raw(&format!("{}\r\n", self.head("GET", target))).await
    }

    /// Publishes a revocation as the relay would.
    pub async fn revokes(&self, anchor: &str, id: &str) {
        let fields = [("zone_id", "z1"), (anchor, id), ("reason", "test")];
        let fields = fields.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let topic = Topic::SessionsRevoke.name();
        self.bus
            .append(topic, &[fields.into_iter().collect()])
            .await
            .unwrap();
    }

    /// As [`Stack::revokes`], and waits until the Gateway knows.
    pub async fn has_revoked(&self, anchor: &str, id: &str) {
        let mut marks = self.views.revocation_watch();
        self.revokes(anchor, id).await;
        tokio::time::timeout(PATIENCE, marks.changed())
            .await
            .unwrap()
            .unwrap();
    }

    /// The events that were recorded, once there are at least this many.
    pub async fn events(&self, count: usize) -> Vec<Value> {
        let there = async {
            loop {
                let events = self.delivered.0.lock().unwrap().clone();
                if events.len() >= count {
                    return events;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, there).await {
            Ok(events) => events,
            Err(_) => panic!(
                "{count} events expected, got {:?}",
                self.delivered.0.lock().unwrap()
            ),
        }
    }

    /// Takes the feed away; the store goes on answering.
    pub async fn loses_its_feed(&self) {
        self.follows.shutdown(PATIENCE).await;
    }

    /// Revokes an authority record where only the store can tell of it.
    pub async fn revokes_in_the_store(&self, record: &str) {
        let now = self.clock.now();
        let row = AuthorityRecord {
            id: RecordId::trusted(record),
            record_type: "application".to_owned(),
            subject_id: "app-1".to_owned(),
            issuer: None,
            client_id: "app-1".to_owned(),
            parent_id: None,
            status: "active".to_owned(),
            expires_at: now.plus(Duration::from_secs(900)),
            created_at: now,
            revoked_at: None,
            revoked_reason: None,
        };
        let mut tx = self.store.begin("test").await.unwrap();
        let zone = ZoneId::trusted("z1");
        let mut at = tx.zone(&zone);
        at.add_authority_records(std::slice::from_ref(&row))
            .await
            .unwrap();
        at.revoke_authority_record(&row.id, "test", now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    /// Takes the feed and the store away.
    pub async fn is_cut_off(&self) {
        self.follows.shutdown(PATIENCE).await;
        self.store.shutdown().await;
    }

    /// Stops everything; answers all events there ever were.
    pub async fn stop(mut self) -> Vec<Value> {
        self.tasks.shutdown(PATIENCE).await;
        self.follows.shutdown(PATIENCE).await;
        self.delivery.shutdown(PATIENCE).await;
        self.evidence.close().await;
        if let Some(database) = self.database.take() {
            drop((self.views, self.exchange));
            database.remove().await;
        }
        self.delivered.0.lock().unwrap().clone()
    }
}

async fn zone(store: &caracal_store::Store, key: &SigningKey, clock: &Arc<dyn Clock>) {
    let author = Author {
        name: "test".into(),
        via_operator: false,
        at: clock.now(),
    };
    let zone = Zone {
        id: ZoneId::trusted("z1"),
        name: "Zone".into(),
        slug: "z1".into(),
        dcr_enabled: false,
        owner_account_id: None,
        operator_coauthor_badge: false,
        operator_governed: false,
        actor_tokens: false,
        provenance: Provenance::created(&author),
    };
    let public = key.public();
    let new = NewZoneKey {
        kid: &public.kid,
        x: &public.x,
        y: &public.y,
        sealed_private: b"not held here",
        signs_from: clock.now(),
    };
    let mut tx = store.begin("test").await.unwrap();
    tx.zones().insert(&zone).await.unwrap();
    tx.zones()
        .insert_key(&zone.id, &new, clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
}
