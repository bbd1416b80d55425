//! A zone with two applications and a resource, and a Coordinator in front of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use caracal_bus::Bus;
use caracal_coordinator::{Config, Coordinator, Deps};
use caracal_crypto::es256::SigningKey;
use caracal_crypto::os::OsRng;
use caracal_model::{
    ApplicationId, Clock, Ids, Jti, Kid, Mandate, RecordId, SubjectType, TestClock, TokenUse,
    ZoneId,
};
use caracal_net::Tasks;
use caracal_store::testing::Database;
use caracal_store::{Param, Sql, Store, params};
use caracal_trail::Trail;
use caracal_view::{Announce, Local, Relay, RelayOptions, ReplicaStatus, ViewConfig, Views};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub const ISSUER: &str = "https://sts.example";
pub const OPERATOR: &str = "operator-token";
pub const RESOURCE: &str = "resource://pipernet";

pub const fn raw(text: &'static str) -> Sql {
    Sql {
        name: "test",
        pg: text,
        lite: text,
    }
}

const ZONE: Sql = raw(
    "INSERT INTO zones (id, name, slug, dcr_enabled, operator_coauthor_badge,
    operator_governed, created_via_operator, updated_via_operator, created_at, updated_at)
    VALUES ($1, $1, $1, FALSE, FALSE, FALSE, FALSE, FALSE, 0, 0)",
);
const KEY: Sql = raw(
    "INSERT INTO zone_keys (id, zone_id, public_x, public_y, sealed_private,
    created_at, signs_from) VALUES ($1, $2, $3, $4, $5, 0, 0)",
);
const APPLICATION: Sql = raw("INSERT INTO applications (id, zone_id, name, name_key,
    registration_method, traits, expires_at, created_via_operator, updated_via_operator,
    created_at, updated_at) VALUES ($1, $2, $1, $1, $3, '[]', $4, FALSE, FALSE, 0, 0)");
const RECORD: Sql = raw(
    "INSERT INTO authority_records (id, zone_id, record_type, subject_id,
    client_id, status, expires_at, created_at) VALUES ($1, $2, $3, $4, $5, 'active', $6, 0)",
);
const PROVIDER: Sql = raw(
    "INSERT INTO providers (id, zone_id, name, identifier, kind, config_json,
    secret_config_keys, created_via_operator, updated_via_operator, created_at, updated_at)
    VALUES ('p1', 'zone-a', 'none', 'provider://none', 'none', '{}', '[]', FALSE, FALSE, 0, 0)",
);
const PIPERNET: Sql = raw(
    "INSERT INTO resources (id, zone_id, name, identifier, upstream_url,
    credential_provider_id, scopes, operations, operation_enforcement, created_via_operator,
    updated_via_operator, created_at, updated_at)
    VALUES ($1, 'zone-a', $1, $2, NULL, 'p1', $3, '[]', 'transport_uniform', FALSE, FALSE, 0, 0)",
);
const DUMP: [(&str, Sql); 5] = [
    (
        "sessions",
        raw("SELECT id AS what, status AS state FROM sessions ORDER BY id"),
    ),
    (
        "delegations",
        raw("SELECT id AS what, status AS state FROM delegations ORDER BY id"),
    ),
    (
        "outbox",
        raw("SELECT id AS what, topic AS state FROM outbox ORDER BY id"),
    ),
    (
        "receipts",
        raw(
            "SELECT key_hash AS what, result_id AS state FROM idempotency_receipts
        ORDER BY key_hash",
        ),
    ),
    (
        "counts",
        raw(
            "SELECT holder AS what, CAST(live AS TEXT) AS state FROM session_counts
        ORDER BY holder",
        ),
    ),
];
const NEWS: Sql = raw("SELECT topic, fields_json FROM outbox ORDER BY id");

/// What must hold whatever happened: no live child of a dead parent, no live edge at a dead
/// Session, no counter that says something else than the rows.
const BROKEN: [(&str, Sql); 4] = [
    (
        "orphans",
        raw(
            "SELECT c.id AS what FROM sessions c JOIN sessions p ON p.id = c.parent_id
        WHERE c.status IN ('active', 'suspended') AND p.status NOT IN ('active', 'suspended')",
        ),
    ),
    (
        "loose edges",
        raw("SELECT d.id AS what FROM delegations d JOIN sessions s
        ON s.id IN (d.source_session_id, d.target_session_id)
        WHERE d.status = 'active' AND s.status NOT IN ('active', 'suspended')"),
    ),
    (
        "drifting counts",
        raw(
            "SELECT c.holder AS what FROM session_counts c WHERE c.live <> (
        SELECT COUNT(*) FROM sessions s WHERE s.zone_id = c.zone_id
          AND s.status IN ('active', 'suspended')
          AND (c.holder = 'zone' OR c.holder = s.application_id))",
        ),
    ),
    (
        "drifting children",
        raw("SELECT p.id AS what FROM sessions p
        WHERE p.status IN ('active', 'suspended') AND p.live_children <> (
        SELECT COUNT(*) FROM sessions c WHERE c.parent_id = p.id
          AND c.status IN ('active', 'suspended'))"),
    ),
];

/// Counts what was announced to the end.
struct Counted {
    announce: Local,
    count: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl Announce for Counted {
    async fn announce(&self) {
        self.announce.announce().await;
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    async fn prove(&self, zone: &ZoneId, wait: Duration) -> Vec<ReplicaStatus> {
        self.announce.prove(zone, wait).await
    }
}

/// Everything that a test needs.
#[derive(Clone)]
pub struct World {
    pub store: Store,
    pub clock: Arc<TestClock>,
    pub coordinator: Coordinator,
    pub trail: Trail,
    /// How often something was announced.
    pub announced: Arc<AtomicUsize>,
    router: Router,
    keys: Arc<BTreeMap<&'static str, SigningKey>>,
    /// Lifecycle token of `app-1`.
    pub token: String,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }

    pub fn is(&self, status: u16, error: &str) {
        assert_eq!(
            (self.status.as_u16(), self.error()),
            (status, error),
            "{}",
            self.body
        );
    }

    pub fn created(&self) -> &Value {
        assert_eq!(self.status, 201, "{}", self.body);
        &self.body
    }

    pub fn ok(&self) -> &Value {
        assert_eq!(self.status, 200, "{}", self.body);
        &self.body
    }

    pub fn id(&self) -> String {
        self.created()["agent_session_id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    pub fn edge(&self) -> String {
        self.created()["delegation_edge_id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Status, code and description, once it has been checked that the request id is everywhere.
    pub fn line(&self) -> String {
        let id = self.headers["x-request-id"].to_str().unwrap();
        assert_eq!(self.body["requestId"], id, "{}", self.body);
        assert_eq!(self.body["request_id"], id, "{}", self.body);
        let later = self.headers.contains_key("retry-after");
        let may_come_back = matches!(self.status.as_u16(), 429 | 503);
        assert_eq!(later, may_come_back, "{}", self.body);
        let description = self.body["error_description"].as_str().unwrap();
        format!("{} {}: {description}", self.status.as_u16(), self.error())
    }
}

/// Runs a test on each engine.
pub async fn on_each<T: Future<Output = ()>>(name: &str, test: impl Fn(World) -> T) {
    on_each_with(name, &[], test).await;
}

/// Runs a test on each engine, with these settings.
pub async fn on_each_with<T: Future<Output = ()>>(
    name: &str,
    settings: &[(&str, &str)],
    test: impl Fn(World) -> T,
) {
    for database in Database::each(name).await {
        let clock = Arc::new(TestClock::default());
        let store = database.open_with(clock.clone()).await;
        store.migrate().await.unwrap();
        let tasks = Tasks::new();
        let world = Box::pin(World::new(store.clone(), clock, &tasks, settings)).await;
        test(world.clone()).await;
        world.is_sound().await;
        drop(world);
        tasks.shutdown(Duration::from_secs(5)).await;
        store.shutdown().await;
        drop(store);
        database.remove().await;
    }
}

impl World {
    async fn new(
        store: Store,
        clock: Arc<TestClock>,
        tasks: &Tasks,
        settings: &[(&str, &str)],
    ) -> Self {
        let keys = Arc::new(BTreeMap::from([
            (
                "zone-a",
                SigningKey::generate(Kid::trusted("kid-a")).unwrap(),
            ),
            (
                "zone-b",
                SigningKey::generate(Kid::trusted("kid-b")).unwrap(),
            ),
        ]));
        fixture(&store, &keys, clock.as_ref()).await;
        let bus = Bus::memory(clock.clone());
        let config = ViewConfig::default();
        let (views, follower) = Views::new(store.clone(), bus.clone(), clock.clone(), None, config);
        views.start().await.unwrap();
        tasks.spawn("follower", follower.run(tasks.stop()));
        let options = RelayOptions::default();
        let relay = Relay::new(
            store.clone(),
            bus.clone(),
            clock.clone(),
            None,
            None,
            options,
        );
        tasks.spawn("relay", relay.clone().run(tasks.stop()));
        let mut from: BTreeMap<String, String> = [
            ("ISSUER_URL", ISSUER),
            ("CARACAL_COORDINATOR_TOKEN", OPERATOR),
            ("COORDINATOR_RATE_LIMIT_PER_MIN", "0"),
        ]
        .iter()
        .chain(settings)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
        from.entry("CARACAL_MODE".to_owned())
            .or_insert_with(|| "dev".to_owned());
        let announced = Arc::new(AtomicUsize::new(0));
        let ids = Arc::new(Ids::new(clock.clone(), Arc::new(OsRng)));
        let (trail, chainer) = Trail::new(store.clone(), None, clock.clone(), ids.clone());
        tasks.spawn("admin audit", chainer.run(tasks.stop()));
        let deps = Deps {
            store: store.clone(),
            bus,
            draining: tasks.stop(),
            announce: Arc::new(Counted {
                announce: Local::new(relay, views.clone()),
                count: announced.clone(),
            }),
            views,
            trail: trail.clone(),
            clock: clock.clone(),
            rng: Arc::new(OsRng),
            ids,
        };
        let coordinator = Coordinator::new(Config::read(&from).unwrap(), deps);
        let router = caracal_coordinator::router(&coordinator);
        let mut world = Self {
            store,
            clock,
            coordinator,
            trail,
            announced,
            router,
            keys,
            token: String::new(),
        };
        world.token = world.lifecycle("app-1");
        world
    }

    pub fn claims(&self, zone: &str, application: &str) -> Mandate {
        let now = self.clock.now().unix_seconds();
        Mandate {
            iss: ISSUER.to_owned(),
            sub: application.to_owned(),
            aud: vec![ISSUER.to_owned()],
            exp: now + 900,
            iat: now,
            jti: Jti::trusted("jti"),
            zone_id: ZoneId::trusted(zone),
            client_id: ApplicationId::trusted(application),
            scope: "agent:lifecycle".to_owned(),
            sid: RecordId::trusted(format!("record-{application}")),
            root_sid: RecordId::trusted(format!("record-{application}")),
            token_use: TokenUse::Session,
            sub_type: SubjectType::Application,
            target: Vec::new(),
            agent_session_id: None,
            delegation_edge_id: None,
            source_session_id: None,
            target_session_id: None,
            delegation_path: Vec::new(),
            delegation_chain: Vec::new(),
            hop_count: None,
            delegation_graph_epoch: None,
            act: None,
        }
    }

    pub fn sign(&self, zone: &str, claims: &impl serde::Serialize) -> String {
        self.keys[zone].sign(claims).unwrap()
    }

    /// A lifecycle token of an application of zone-a.
    pub fn lifecycle(&self, application: &str) -> String {
        self.sign("zone-a", &self.claims("zone-a", application))
    }

    /// The same, with further scopes.
    pub fn lifecycle_with(&self, application: &str, scopes: &str) -> String {
        let mut claims = self.claims("zone-a", application);
        claims.scope = format!("agent:lifecycle {scopes}");
        self.sign("zone-a", &claims)
    }

    pub fn request(method: &str, path: &str, token: &str, body: Option<&Value>) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        match body {
            None => request.body(Body::empty()),
            Some(body) => request
                .header("content-type", "application/json")
                .body(Body::from(body.to_string())),
        }
        .unwrap()
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    pub async fn call(&self, token: &str, method: &str, path: &str, body: Value) -> Answer {
        let body = (!body.is_null()).then_some(&body);
        let path = format!("/zones/zone-a{path}");
        self.send(Self::request(method, &path, token, body)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(&self.token, "POST", path, body).await
    }

    pub async fn patch(&self, path: &str) -> Answer {
        self.call(&self.token, "PATCH", path, Value::Null).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(&self.token, "DELETE", path, Value::Null).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(&self.token, "GET", path, Value::Null).await
    }

    pub async fn operator(&self, method: &str, path: &str) -> Answer {
        self.call(OPERATOR, method, path, Value::Null).await
    }

    /// Starts a task of app-1.
    pub async fn task(&self) -> String {
        self.post("/agents", json!({ "application_id": "app-1" }))
            .await
            .id()
    }

    pub async fn child(&self, parent: &str, authority: &str) -> String {
        let body = json!({
            "application_id": "app-1", "parent_id": parent, "parent_authority": authority,
        });
        self.post("/agents", body).await.id()
    }

    pub async fn service(&self) -> String {
        let body = json!({ "application_id": "app-1", "lifecycle": "service" });
        self.post("/agents", body).await.id()
    }

    pub fn wish(source: &str, target: &str) -> Value {
        json!({
            "source_session_id": source, "target_session_id": target,
            "issuer_application_id": "app-1", "receiver_application_id": "app-1",
            "resource_id": RESOURCE, "scopes": ["pipernet:read"], "ttl_seconds": 300,
        })
    }

    pub async fn delegate(&self, source: &str, target: &str, more: Value) -> Answer {
        let mut body = Self::wish(source, target);
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().cloned().unwrap_or_default());
        self.post("/delegations", body).await
    }

    pub async fn status(&self, session: &str) -> String {
        let row = self.operator("GET", &format!("/agents/{session}")).await;
        row.ok()["status"].as_str().unwrap().to_owned()
    }

    /// Every row that a request may change, at one moment: what was given up may commit meanwhile.
    pub async fn dump(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut at_once = self.store.snapshot("dump").await.unwrap();
        for (table, sql) in &DUMP {
            for row in at_once.query(sql, &[]).await.unwrap() {
                let what = row.text("what").unwrap();
                lines.push(format!("{table} {what} {}", row.text("state").unwrap()));
            }
        }
        lines
    }

    /// The requests that announced something on a topic, oldest first.
    pub async fn origins(&self, topic: &str) -> Vec<Option<String>> {
        let rows = self.store.query(&NEWS, &[]).await.unwrap();
        rows.iter()
            .filter(|row| row.text("topic").unwrap() == topic)
            .map(|row| {
                let mut fields: BTreeMap<String, String> = row.json("fields_json").unwrap();
                fields.remove("~request_id")
            })
            .collect()
    }

    /// What was announced on a topic, oldest first.
    pub async fn news(&self, topic: &str) -> Vec<BTreeMap<String, String>> {
        let rows = self.store.query(&NEWS, &[]).await.unwrap();
        rows.iter()
            .filter(|row| row.text("topic").unwrap() == topic)
            .map(|row| {
                let mut fields: BTreeMap<String, String> = row.json("fields_json").unwrap();
                // Kept for evidence, not published.
                fields.remove("~request_id");
                fields
            })
            .collect()
    }

    pub async fn is_sound(&self) {
        for (what, sql) in &BROKEN {
            let rows = self.store.query(sql, &[]).await.unwrap();
            let rows: Vec<_> = rows.iter().map(|row| row.string("what").unwrap()).collect();
            assert!(rows.is_empty(), "{what}: {rows:?}");
        }
    }

    pub async fn execute(&self, sql: &Sql, params: &[Param<'_>]) {
        let mut tx = self.store.begin("test").await.unwrap();
        tx.execute(sql, params).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// A user's record, obtained by an application.
    pub async fn user_record(&self, id: &str, application: &str) {
        let until = self.clock.now().plus(Duration::from_secs(3600));
        let params = params![id, "zone-a", "user", "user_123", application, until];
        self.execute(&RECORD, &params).await;
    }
}

async fn fixture(store: &Store, keys: &BTreeMap<&'static str, SigningKey>, clock: &dyn Clock) {
    let mut tx = store.begin("fixture").await.unwrap();
    let later = clock.now().plus(Duration::from_secs(7 * 86_400));
    for (zone, key) in keys {
        tx.execute(&ZONE, &params![*zone]).await.unwrap();
        let public = key.public();
        let sealed: &[u8] = b"sealed";
        let params = params![key.kid(), *zone, &public.x, &public.y, sealed];
        tx.execute(&KEY, &params).await.unwrap();
    }
    let gone = clock.now();
    for (id, zone, method, expires) in [
        ("app-1", "zone-a", "managed", None),
        ("app-2", "zone-a", "managed", None),
        ("app-dcr", "zone-a", "dcr", Some(later)),
        ("app-old", "zone-a", "dcr", Some(gone)),
        ("app-b", "zone-b", "managed", None),
    ] {
        let params = params![id, zone, method, expires];
        tx.execute(&APPLICATION, &params).await.unwrap();
        let record = format!("record-{id}");
        let params = params![&record, zone, "application", id, id, later];
        tx.execute(&RECORD, &params).await.unwrap();
    }
    tx.execute(&PROVIDER, &[]).await.unwrap();
    for (id, identifier, scopes) in [
        ("res-1", RESOURCE, r#"["pipernet:read","pipernet:write"]"#),
        ("res-2", "resource://desk", r#"["desk:read"]"#),
    ] {
        tx.execute(&PIPERNET, &params![id, identifier, scopes])
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
}

/// A moment from now.
pub trait NowPlus {
    fn now_plus(&self, seconds: u64) -> caracal_model::Timestamp;
}

impl NowPlus for TestClock {
    fn now_plus(&self, seconds: u64) -> caracal_model::Timestamp {
        self.now().plus(Duration::from_secs(seconds))
    }
}
