//! The secret of a provider that a backend outside keeps: what a call gets of it, and for how long
//! after the backend is gone (spec: sts §13).

use std::time::Duration;

use caracal_model::{Change, Mandate, TestClock};
use caracal_store::custody::{Custody, MemoryBackend};
use caracal_store::secrets::provider_secret_ref;
use caracal_store::testing::raw;
use serde_json::json;

use super::gated::{change, provision_gated};
use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// How long a call waits for the backend here.
const PATIENCE: Duration = Duration::from_millis(200);

const API_KEY: caracal_store::Sql = raw(
    "UPDATE providers SET kind = 'api_key', config_json = '{\"header_name\":\"X-Key\"}' \
     WHERE id = 'p1'",
);

struct Scene {
    store: Store,
    bus: Bus,
    clock: Arc<TestClock>,
    vault: Arc<MemoryBackend>,
    zone: ZoneId,
}

impl Scene {
    async fn start(store: Store) -> Self {
        provision_gated(&store).await;
        change(&store, &API_KEY, &[]).await;
        let clock = Arc::<TestClock>::default();
        // The zone's key was made by the clock on the wall.
        clock.advance(system_clock().now().since(clock.now()) + SECOND);
        let scene = Self {
            bus: Bus::memory(system_clock()),
            clock,
            vault: Arc::default(),
            zone: ZoneId::trusted("z1"),
            store,
        };
        scene.stores("key-1").await;
        scene.vault.asked();
        scene
    }

    /// One of the replicas on this store, and this backend.
    async fn sts(&self) -> TestSts {
        self.sts_that_waits(PATIENCE).await
    }

    async fn sts_that_waits(&self, for_the_backend: Duration) -> TestSts {
        let views = ViewConfig {
            backend: Some(self.vault.clone()),
            backend_patience: for_the_backend,
            ..ViewConfig::default()
        };
        let views = (views, self.clock.clone() as Arc<dyn Clock>);
        TestSts::replica_at(self.store.clone(), self.bus.clone(), views, |_| {}).await
    }

    fn place(&self) -> String {
        provider_secret_ref(&self.zone, "p1")
    }

    /// As the API changes it.
    async fn stores(&self, key: &str) {
        let custody = Custody::new(self.store.clone(), Some(self.vault.clone()));
        let (place, plain) = (self.place(), json!({ "api_key": key }).to_string());
        let sealed = keyring().seal(&OsRng, &place, plain.as_bytes()).unwrap();
        let staged = custody.stage(&self.zone, &place, &sealed).await.unwrap();
        let mut tx = self.store.begin("a test's secret").await.unwrap();
        let now = SystemClock::new().now();
        tx.secrets(&self.zone)
            .put(&place, &sealed, now)
            .await
            .unwrap();
        tx.change(&Change::Zone(self.zone.clone()));
        tx.commit().await.unwrap();
        custody.settle(staged).await;
    }
}

/// A mandate for the Gateway, and what its exchange injects, or is refused with.
async fn injected(sts: &TestSts) -> String {
    injected_within(sts, patience(&sts.sts)).await
}

/// The same, by somebody who waits so long.
async fn injected_within(sts: &TestSts, patience: Patience) -> String {
    let mut fields = caller("z1", "app-z1", "cs_of_z1");
    fields.extend([
        ("resource", "resource://desk"),
        ("scope", "desk:read"),
        ("agent_session_id", "s4"),
        ("delegation_edge_id", "e2"),
    ]);
    let (status, _, body) = sts.send(exchange(&fields)).await;
    assert_eq!(status, 200, "{body}");
    let token = body["access_token"].as_str().unwrap();
    let mandate: Mandate = serde_json::from_slice(Jws::parse(token).unwrap().payload()).unwrap();
    let request_id = RequestId::visible_ascii("r1").unwrap();
    let call = caracal_client::GatewayExchange {
        token,
        mandate: &mandate,
        resource: "resource://desk",
        method: "GET",
        path: "/",
        request_id: &request_id,
        within: WAITS,
    };
    match crate::gateway::exchange(&sts.sts, call, false, patience).await {
        Ok(granted) => {
            let directive = granted.grant.directive;
            assert_eq!(directive.auth_header, "X-Key");
            directive.provider_token.unwrap().expose().clone()
        }
        Err(refused) => {
            let row = refused.refusal.row();
            format!("{} {}: {}", row.status, row.error, refused.description)
        }
    }
}

const LOST: &str = "403 provider_unavailable: the credential of the provider is not available";

caracal_store::on_each_engine! {
    async fn a_warm_call_does_not_ask_the_backend(store: Store) {
        let scene = Scene::start(store).await;
        let sts = scene.sts().await;
        assert_eq!(injected(&sts).await, "key-1");
        assert_eq!(scene.vault.asked(), [format!("get {}", scene.place())]);
        for _ in 0..20 {
            assert_eq!(injected(&sts).await, "key-1");
        }
        assert_eq!(scene.vault.asked(), [""; 0]);
        // One that is in use is confirmed beside the calls, before its minute is over.
        for _ in 0..3 {
            scene.clock.advance(45 * SECOND);
            sts.sts.views.confirm_secrets().await;
            assert_eq!(scene.vault.asked().len(), 1);
            assert_eq!(injected(&sts).await, "key-1");
            assert_eq!(scene.vault.asked(), [""; 0]);
        }
        // One that was not used for long is asked for by the next who wants it.
        scene.clock.advance(3600 * SECOND);
        sts.sts.views.confirm_secrets().await;
        assert_eq!(scene.vault.asked(), [""; 0]);
        assert_eq!(injected(&sts).await, "key-1");
        assert_eq!(scene.vault.asked().len(), 1);
        assert_eq!(sts.sts.views.backend_stats().errors, 0);
    }

    async fn an_outage_of_ten_minutes_is_survived_and_a_longer_one_is_not(store: Store) {
        let scene = Scene::start(store).await;
        let sts = scene.sts().await;
        assert_eq!(injected(&sts).await, "key-1");
        scene.vault.is_out(true);
        for _ in 0..10 {
            scene.clock.advance(60 * SECOND);
            sts.sts.views.confirm_secrets().await;
            assert_eq!(injected(&sts).await, "key-1");
        }
        scene.clock.advance(SECOND);
        assert_eq!(injected(&sts).await, LOST);
        // A replica that never had it says the same.
        let other = scene.sts().await;
        assert_eq!(injected(&other).await, LOST);
        scene.vault.is_out(false);
        scene.clock.advance(10 * SECOND);
        for sts in [&sts, &other] {
            sts.sts.views.confirm_secrets().await;
            assert_eq!(injected(sts).await, "key-1");
        }
        assert!(sts.sts.views.backend_stats().errors >= 10);
    }

    async fn what_the_backend_has_no_more_is_not_used_any_more(store: Store) {
        let scene = Scene::start(store).await;
        let sts = scene.sts().await;
        assert_eq!(injected(&sts).await, "key-1");
        let kept = scene.vault.held(&scene.place());
        scene.vault.tamper(&scene.place(), None);
        scene.clock.advance(45 * SECOND);
        sts.sts.views.confirm_secrets().await;
        assert_eq!(injected(&sts).await, LOST);
        scene.vault.tamper(&scene.place(), kept);
        scene.clock.advance(11 * SECOND);
        assert_eq!(injected(&sts).await, "key-1");
    }

    async fn a_backend_that_is_late_is_gone_for_whoever_waits(store: Store) {
        let scene = Scene::start(store).await;
        let (warm, cold) = (scene.sts().await, scene.sts().await);
        assert_eq!(injected(&warm).await, "key-1");
        scene.vault.is_late(true);
        let told = async {
            // Many wait, and for the first of them only.
            futures_util::future::join_all((0..8).map(|_| injected(&cold))).await
        };
        let told = tokio::time::timeout(10 * SECOND, told).await.expect("within the deadline");
        assert!(told.iter().all(|told| told == LOST), "{told:?}");
        // What was held before is good for as long as in any outage.
        scene.clock.advance(120 * SECOND);
        assert_eq!(injected(&warm).await, "key-1");
        scene.vault.is_late(false);
        scene.clock.advance(11 * SECOND);
        assert_eq!(injected(&cold).await, "key-1");
    }

    async fn no_call_waits_for_a_backend_longer_than_its_gateway_does(store: Store) {
        let scene = Scene::start(store).await;
        let sts = scene.sts_that_waits(3600 * SECOND).await;
        scene.vault.is_late(true);
        let waits = Patience::of_gateway(sts.sts.clock.as_ref(), PATIENCE);
        let told = tokio::time::timeout(60 * SECOND, injected_within(&sts, waits)).await;
        assert_eq!(told.expect("within the deadline"), LOST);
        // Whoever comes next does not wait for it again.
        let told = tokio::time::timeout(60 * SECOND, injected(&sts)).await;
        assert_eq!(told.expect("within the deadline"), LOST);
    }

    async fn a_backend_that_lies_opens_nothing(store: Store) {
        let scene = Scene::start(store).await;
        let genuine = scene.vault.held(&scene.place()).unwrap();
        let sealed = |place: &str, key: &str| {
            let plain = json!({ "api_key": key }).to_string();
            keyring().seal(&OsRng, place, plain.as_bytes()).unwrap()
        };
        let mut turned = genuine.clone();
        *turned.last_mut().unwrap() ^= 1;
        for (lie, envelope) in [
            ("nothing", Vec::new()),
            ("a page", b"<h1>Sign in</h1>".to_vec()),
            ("a secret in the open", b"{\"api_key\":\"key-2\"}".to_vec()),
            ("cut short", genuine[..genuine.len() - 1].to_vec()),
            ("one bit turned", turned),
            ("another provider's", sealed("zones/z1/providers/p2/secretConfig", "key-2")),
            ("another secret, sealed by whoever has the key", sealed(&scene.place(), "key-2")),
        ] {
            scene.vault.tamper(&scene.place(), Some(envelope));
            let sts = scene.sts().await;
            assert_eq!(injected(&sts).await, LOST, "{lie}");
            scene.vault.tamper(&scene.place(), Some(genuine.clone()));
            scene.clock.advance(11 * SECOND);
            assert_eq!(injected(&sts).await, "key-1", "after {lie}");
        }
    }

    async fn a_changed_secret_is_seen_by_every_replica(store: Store) {
        let scene = Scene::start(store).await;
        let replicas = [scene.sts().await, scene.sts().await];
        for sts in &replicas {
            assert_eq!(injected(sts).await, "key-1");
        }
        scene.stores("key-2").await;
        // The news are on their way, as after a commit of any replica.
        replicas[0].sts.announce.announce().await;
        for sts in &replicas {
            let seen = async {
                while injected(sts).await != "key-2" {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(10 * SECOND, seen).await.unwrap();
        }
    }
}
