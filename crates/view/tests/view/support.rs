//! A zone on a store of its own, changed by plain statements: what the services' repositories do
//! is tested where they are.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use caracal_bus::{Bus, MemoryOptions, RedisOptions};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_crypto::{HmacKey, Kek, Keyring, SigningKey};
use caracal_model::{
    Change, Clock, DelegationId, Kid, Outgoing, RecordId, Secret, SessionId, TestClock, Timestamp,
    Topic, ZoneId,
};
use caracal_store::testing::Database;
use caracal_store::{Param, Sql, Store, Tx, params};
use caracal_view::{Relay, RelayOptions, ViewConfig, Views, ZONE_KEY_AAD};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn zone() -> ZoneId {
    ZoneId::trusted("z1")
}

pub fn session(number: usize) -> SessionId {
    SessionId::trusted(format!("s{number}"))
}

pub fn edge(number: usize) -> DelegationId {
    DelegationId::trusted(format!("e{number}"))
}

pub fn streams_key() -> HmacKey {
    HmacKey::from_hex(&"0123456789abcdef".repeat(4)).unwrap()
}

pub fn keyring() -> Keyring {
    let kek = "8f3d9a712c45e6b0d18f2a4c6e9b3d57a1c4f8020e6a9c3d5b7f1a2c4e6d8b90";
    Keyring::new(Kek::from_hex(kek).unwrap(), None)
}

/// A statement of a test.
fn sql(text: &'static str) -> Sql {
    Sql {
        name: "test",
        pg: text,
        lite: text,
    }
}

/// Runs `test` on each engine, with the zone in place.
pub async fn on_each_store<T: Future<Output = ()>>(
    clock: Arc<dyn Clock>,
    test: impl Fn(Store) -> T,
) {
    for database in Database::each("view").await {
        let store = database.open_with(clock.clone()).await;
        store.migrate().await.unwrap();
        seed(&store).await;
        test(store.clone()).await;
        store.shutdown().await;
        drop(store);
        database.remove().await;
    }
}

/// Buses to run a test on, each with this retention.
pub async fn buses(clock: &Arc<dyn Clock>, retention: usize) -> Vec<Bus> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let options = MemoryOptions {
        retention,
        ..MemoryOptions::default()
    };
    let mut buses = vec![Bus::memory_with(clock.clone(), options)];
    #[expect(clippy::disallowed_methods, reason = "where the test server is")]
    match std::env::var("CARACAL_TEST_REDIS") {
        Ok(url) => {
            let run = SystemClock::default().now().unix_micros();
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let prefix = format!("view:{}:{run}:{number}:", std::process::id());
            let options = RedisOptions {
                prefix,
                retention,
                ..RedisOptions::default()
            };
            buses.push(Bus::redis(&Secret::new(url), options).await.unwrap());
        }
        Err(_) => eprintln!("skipped on Redis: CARACAL_TEST_REDIS is not set"),
    }
    buses
}

pub fn system_clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::default())
}

async fn run(store: &Store, statement: &'static str, params: &[Param<'_>]) {
    let mut tx = store.begin("test").await.unwrap();
    tx.execute(&sql(statement), params).await.unwrap();
    tx.commit().await.unwrap();
}

async fn seed(store: &Store) {
    let mut tx = store.begin("test").await.unwrap();
    insert_zone(&mut tx, &zone()).await;
    tx.commit().await.unwrap();
    let application = "INSERT INTO applications (id, zone_id, name, name_key, registration_method,
            traits, created_via_operator, updated_via_operator, created_at, updated_at)
        VALUES ($1, 'z1', 'name-0', $1, 'managed', '[]', FALSE, FALSE, 1, 1)";
    run(store, application, &params!["app"]).await;
}

async fn insert_zone(tx: &mut Tx, id: &ZoneId) {
    let insert = "INSERT INTO zones (id, name, slug, dcr_enabled, operator_coauthor_badge,
            operator_governed, created_via_operator, updated_via_operator, created_at, updated_at)
        VALUES ($1, 'Zone', $1, FALSE, FALSE, FALSE, FALSE, FALSE, 1, 1)";
    tx.execute(&sql(insert), &params![id]).await.unwrap();
}

/// A zone, made with its news.
pub async fn add_zone(store: &Store, id: &ZoneId) {
    let mut tx = store.begin("test").await.unwrap();
    insert_zone(&mut tx, id).await;
    tx.change(&Change::Zone(id.clone()));
    tx.commit().await.unwrap();
}

pub async fn add_session(store: &Store, id: &SessionId) {
    let mut tx = store.begin("test").await.unwrap();
    insert_session(&mut tx, id).await;
    tx.commit().await.unwrap();
}

pub async fn add_sessions(store: &Store, numbers: std::ops::Range<usize>) {
    let mut tx = store.begin("test").await.unwrap();
    for number in numbers {
        insert_session(&mut tx, &session(number)).await;
    }
    tx.commit().await.unwrap();
}

async fn insert_session(tx: &mut Tx, id: &SessionId) {
    let insert = "INSERT INTO sessions (id, zone_id, application_id, subject_record_id,
            subject_type, lifecycle, labels, metadata_json, status, depth, live_children,
            ttl_seconds, started_at, ends_at, last_active_at, lease_generation, updated_at)
        VALUES ($1, 'z1', 'app', 'r-app', 'application', 'task', '[\"l-0\"]', '{}', 'active', 0, 0,
            3600, 1, $2, 1, 0, 1)";
    let ends = Timestamp::from_unix_seconds(4_000_000_000);
    tx.execute(&sql(insert), &params![id, ends]).await.unwrap();
}

pub async fn add_edge(store: &Store, id: &DelegationId, parent: Option<&DelegationId>) {
    let insert = "INSERT INTO delegations (id, zone_id, source_session_id, target_session_id,
            issuer_application_id, receiver_application_id, parent_edge_id, mirrored, scopes,
            constraints_json, status, edge_version, expires_at, created_at)
        VALUES ($1, 'z1', 's1', 's2', 'app', 'app', $2, FALSE, '[\"a:b\"]', '{\"max_hops\":5}',
            'active', 0, $3, 1)";
    let ends = Timestamp::from_unix_seconds(4_000_000_000);
    run(store, insert, &params![id, parent, ends]).await;
}

pub async fn add_record(store: &Store, id: &RecordId) {
    let insert = "INSERT INTO authority_records (id, zone_id, record_type, subject_id, client_id,
            status, expires_at, created_at)
        VALUES ($1, 'z1', 'user', 'piper', 'app', 'active', $2, 1)";
    let ends = Timestamp::from_unix_seconds(4_000_000_000);
    run(store, insert, &params![id, ends]).await;
}

/// A signing key that starts to sign at this time.
pub async fn add_key(store: &Store, kid: &str, signs_from: Timestamp) {
    let key = SigningKey::generate(Kid::trusted(kid)).unwrap();
    let sealed = keyring()
        .seal(&OsRng, ZONE_KEY_AAD, key.pkcs8().expose())
        .unwrap();
    let insert = "INSERT INTO zone_keys (id, zone_id, public_x, public_y, sealed_private,
            created_at, signs_from) VALUES ($1, 'z1', $2, $3, $4, 1, $5)";
    let public = key.public();
    run(
        store,
        insert,
        &params![kid, &public.x, &public.y, &sealed, signs_from],
    )
    .await;
}

/// Ends a Session, as the Coordinator does: the row, the revocation and the change commit together.
pub async fn end_session(store: &Store, id: &SessionId, now: Timestamp) {
    let mut tx = store.begin("test").await.unwrap();
    end(&mut tx, id, now).await;
    tx.commit().await.unwrap();
}

pub async fn end_sessions(store: &Store, numbers: std::ops::Range<usize>, now: Timestamp) {
    let mut tx = store.begin("test").await.unwrap();
    for number in numbers {
        end(&mut tx, &session(number), now).await;
    }
    tx.commit().await.unwrap();
}

async fn end(tx: &mut Tx, id: &SessionId, now: Timestamp) {
    let end = sql("UPDATE sessions SET status = 'terminated', terminated_at = $2 WHERE id = $1");
    tx.execute(&end, &params![id, now]).await.unwrap();
    tx.announce(revocation("agent_session_id", id.as_str()));
    tx.change(&Change::Session(zone(), id.clone()));
}

/// As [`end_session`], with nobody told.
pub async fn end_session_silently(store: &Store, id: &SessionId, now: Timestamp) {
    let end = "UPDATE sessions SET status = 'terminated', terminated_at = $2 WHERE id = $1";
    run(store, end, &params![id, now]).await;
}

pub async fn revoke_edge(store: &Store, id: &DelegationId, now: Timestamp) {
    let mut tx = store.begin("test").await.unwrap();
    let end = sql("UPDATE delegations SET status = 'revoked', revoked_at = $2 WHERE id = $1");
    tx.execute(&end, &params![id, now]).await.unwrap();
    tx.announce(revocation("delegation_edge_id", id.as_str()));
    tx.change(&Change::Delegation(zone(), id.clone()));
    tx.commit().await.unwrap();
}

pub async fn revoke_record(store: &Store, id: &RecordId, now: Timestamp) {
    let mut tx = store.begin("test").await.unwrap();
    let zone = zone();
    tx.zone(&zone)
        .revoke_authority_record(id, "test", now)
        .await
        .unwrap();
    tx.announce(revocation("session_id", id.as_str()));
    tx.change(&Change::Record(zone.clone(), id.clone()));
    tx.commit().await.unwrap();
}

pub fn revocation(anchor: &'static str, id: &str) -> Outgoing {
    let fields = [
        (anchor, Some(id.to_owned())),
        ("reason", Some("test".to_owned())),
    ];
    Outgoing::new(Topic::SessionsRevoke, &zone(), fields)
}

/// Changes the name of the application and the label of a Session in one commit.
pub async fn rename(store: &Store, number: u64, id: &SessionId) {
    let mut tx = store.begin("test").await.unwrap();
    let name = format!("name-{number}");
    let label = format!("[\"l-{number}\"]");
    let application = sql("UPDATE applications SET name = $1 WHERE id = 'app'");
    tx.execute(&application, &params![name]).await.unwrap();
    let session = sql("UPDATE sessions SET labels = $1 WHERE id = $2");
    tx.execute(&session, &params![label, id]).await.unwrap();
    tx.change(&Change::Zone(zone()));
    tx.change(&Change::Session(zone(), id.clone()));
    tx.commit().await.unwrap();
}

/// Tells everybody that the zone changed.
pub async fn change_zone(store: &Store) {
    let mut tx = store.begin("test").await.unwrap();
    tx.change(&Change::Zone(zone()));
    tx.commit().await.unwrap();
}

/// Views with their relay; what runs ends with it.
pub struct Replica {
    pub views: Views,
    pub relay: Relay,
    running: JoinSet<()>,
    follower: Option<caracal_view::Follower>,
}

impl Replica {
    /// Nothing runs yet, nothing was read yet.
    pub fn new(store: &Store, bus: &Bus, clock: &Arc<dyn Clock>, name: &str) -> Self {
        Self::with(store, bus, clock, named(name))
    }

    fn with(store: &Store, bus: &Bus, clock: &Arc<dyn Clock>, config: ViewConfig) -> Self {
        let keyring = Some(Arc::new(keyring()));
        let (views, follower) =
            Views::new(store.clone(), bus.clone(), clock.clone(), keyring, config);
        let relay = Relay::new(
            store.clone(),
            bus.clone(),
            clock.clone(),
            Some(streams_key()),
            None,
            RelayOptions {
                max_attempts: 1,
                ..RelayOptions::default()
            },
        );
        Self {
            views,
            relay,
            running: JoinSet::new(),
            follower: Some(follower),
        }
    }

    /// Follows the feed from now on.
    pub fn follow(&mut self) {
        if let Some(follower) = self.follower.take() {
            self.running.spawn(follower.run(CancellationToken::new()));
        }
    }

    /// A replica that follows and has been confirmed.
    pub async fn started(store: &Store, bus: &Bus, clock: &Arc<dyn Clock>, name: &str) -> Self {
        Self::new(store, bus, clock, name).begun().await
    }

    /// One that is counted as alive for some seconds after it has ended.
    pub async fn lasting(store: &Store, bus: &Bus, clock: &Arc<dyn Clock>, name: &str) -> Self {
        let config = ViewConfig {
            feed_max_lag: Duration::from_secs(3),
            ..named(name)
        };
        Self::with(store, bus, clock, config).begun().await
    }

    async fn begun(mut self) -> Self {
        self.views.start().await.unwrap();
        self.follow();
        self
    }
}

fn named(replica: &str) -> ViewConfig {
    ViewConfig {
        streams_key: Some(streams_key()),
        replica: replica.to_owned(),
        ..ViewConfig::default()
    }
}

/// Drops it when it waits for the nth time, as a caller does that hangs up.
pub async fn dropped_at(nth: usize, work: impl Future) {
    let mut work = std::pin::pin!(work);
    let mut waits = 0;
    std::future::poll_fn(|context| {
        waits += 1;
        match work.as_mut().poll(context) {
            Poll::Pending if waits < nth => Poll::Pending,
            _ => Poll::Ready(()),
        }
    })
    .await;
}

/// Asks again until the answer is yes.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let clock = SystemClock::default();
    let start = clock.ticks();
    while !ask().await {
        assert!(clock.ticks().since(start) < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn test_clock() -> (Arc<TestClock>, Arc<dyn Clock>) {
    let clock = Arc::new(TestClock::default());
    (clock.clone(), clock)
}

/// A Redis of a test's own, which keeps nothing. On a socket in the file system: nobody else takes
/// that while the server is down, as happens to ports.
pub struct OwnRedis {
    socket: PathBuf,
    server: Child,
}

impl OwnRedis {
    /// `None` when tests are not to use Redis, or there is no server program.
    pub fn start() -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        #[expect(
            clippy::disallowed_methods,
            reason = "whether there is Redis to test with"
        )]
        std::env::var("CARACAL_TEST_REDIS").ok()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("caracal-view-{}-{number}.sock", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let server = Self::run(&socket)?;
        Some(Self { socket, server })
    }

    fn run(socket: &Path) -> Option<Child> {
        Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .arg("--unixsocket")
            .arg(socket)
            .stdout(Stdio::null())
            .spawn()
            .ok()
    }

    pub async fn bus(&self) -> Bus {
        let url = Secret::new(format!("redis+unix://{}", self.socket.display()));
        let bus = Bus::redis(&url, RedisOptions::default()).await.unwrap();
        eventually("the server answers", || async { bus.ping().await.is_ok() }).await;
        bus
    }

    /// Kills it with all that it held, and starts an empty one in its place.
    pub async fn lose_everything(&mut self, bus: &Bus) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
        self.server = Self::run(&self.socket).unwrap();
        eventually("the new server answers", || async {
            bus.ping().await.is_ok()
        })
        .await;
    }
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
