//! Providers and issuers that are slow or lie; circuits that close again; replicas that share a
//! refresh (spec: sts §6.2, §6.3, §7).

use std::sync::atomic::{AtomicU64, Ordering};

use caracal_bus::{Bus, RedisOptions};
use caracal_model::TestClock;
use caracal_view::IssuerRow;

use super::*;
use crate::issuers::IssuerKeys;
use crate::tests::eventually;

/// Longer than anything that is asked for may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// A bus on Redis of a test's own, once for each replica.
async fn redis<const N: usize>() -> Option<[Bus; N]> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    #[expect(
        clippy::disallowed_methods,
        reason = "how tests are told of their servers"
    )]
    let Ok(url) = std::env::var("CARACAL_TEST_REDIS") else {
        eprintln!("skipped: CARACAL_TEST_REDIS is not set");
        return None;
    };
    let run = SystemClock::new().now().unix_micros();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("test:sts:{}:{run}:{number}:", std::process::id());
    let mut buses = Vec::new();
    for _ in 0..N {
        let options = RedisOptions {
            prefix: prefix.clone(),
            ..RedisOptions::default()
        };
        buses.push(
            Bus::redis(&Secret::new(url.clone()), options)
                .await
                .unwrap(),
        );
    }
    buses.try_into().ok()
}

caracal_store::on_each_engine! {
    async fn a_circuit_closes_again_after_thirty_seconds(store: Store) {
        let clock = Arc::new(TestClock::default());
        let world = World::on(store, Bus::memory(clock.clone())).await;
        // What is granted is not asked for again, so each success has a configuration of its own.
        let provider = |n: u8| Provider { fingerprint: [n; 32], ..world.service("p1") };
        let told = async |n| (world.credential(&provider(n), "app").await, world.endpoint.count());
        let failed = |asked| ("Failed".to_owned(), asked);
        world.mode("garbage");
        for n in 1..=5 {
            assert_eq!(told(1).await, failed(n));
        }
        assert_eq!(told(1).await, failed(5), "it is open");
        clock.advance(29 * SECOND);
        assert_eq!(told(1).await, failed(5), "and stays so for thirty seconds");
        clock.advance(2 * SECOND);
        assert_eq!(told(1).await, failed(6), "one may try");
        assert_eq!(told(1).await, failed(6), "and was one failure too many");
        clock.advance(31 * SECOND);
        world.mode("");
        assert_eq!(told(1).await, ("t1".to_owned(), 1), "it is closed");
        // A success is a new beginning: it takes five failures again.
        world.mode("garbage");
        for n in 1..=5 {
            assert_eq!(told(2).await, failed(n));
        }
        assert_eq!(told(2).await, failed(5));
    }

    async fn replicas_on_redis_use_a_refresh_token_once(store: Store) {
        let Some([here, there]) = redis().await else {
            return;
        };
        let world = World::on(store.clone(), here).await;
        let other = TestSts::replica_with(store, there, world.fetch.clone()).await;
        let provider = world.accounts("p1").await;
        for round in 0..4 {
            let subject = format!("user-{round}");
            world.mode("rotating");
            "r0".clone_into(&mut world.endpoint.refresh.lock());
            world.connect(&provider, &subject, "t0", Some("r0"), 20).await;
            let ask = |n: usize| {
                let sts = if n.is_multiple_of(2) { &world.sts } else { &other };
                credential(sts, &world.zone, &provider, &subject)
            };
            let tokens = futures_util::future::join_all((0..12).map(ask)).await;
            assert!(tokens.iter().all(|token| token == "t1"), "{round}: {tokens:?}");
            assert_eq!(world.endpoint.count(), 1, "{round}");
        }
    }

    async fn a_provider_that_is_slow_or_lies_gives_its_code_in_time_and_nothing_else(store: Store) {
        let world = World::start(store).await;
        for (n, mode) in ["slow", "slow body", "huge", "garbage", "page", "moved", "other type", "down"].into_iter().enumerate() {
            world.mode(mode);
            // Each has a circuit of its own.
            let service = world.service(&format!("s{n}"));
            let provider = world.accounts(&format!("p{n}")).await;
            let subject = format!("user-{n}");
            world.connect(&provider, &subject, "t0", Some("r0"), 20).await;
            let both = async {
                tokio::join!(
                    world.credential(&service, "app"),
                    world.credential(&provider, &subject),
                )
            };
            let told = tokio::time::timeout(DEADLINE, both).await;
            let (fetched, refreshed) = told.expect("within the deadline");
            assert_eq!((&*fetched, &*refreshed), ("Failed", "RefreshFailed"), "{mode}");
            // What was held before is neither used nor lost.
            let kept = world.sts.sts.store.zone(&world.zone).connections();
            let kept = kept.active(&provider.id, &subject).await.unwrap().unwrap();
            assert_eq!(kept.version, 1, "{mode}");
        }
        let row = CredentialFault::RefreshFailed.refusal().row();
        assert_eq!((row.status, row.error), (403, "credential_refresh_failed"));
    }

    async fn what_is_too_late_for_one_call_serves_the_next(store: Store) {
        let world = World::start(store).await;
        let provider = world.service("p1");
        let short = || Patience::of_gateway(world.sts.sts.clock.as_ref(), Duration::from_millis(200));
        world.mode("late");
        for _ in 0..3 {
            let told = credential_within(&world.sts, &world.zone, &provider, "app", short()).await;
            assert_eq!(told, "Failed");
        }
        // They have waited for one request, which is still on its way.
        let next = world.credential(&provider, "app");
        let (told, ()) = tokio::join!(next, async { world.endpoint.now.notify_one() });
        assert_eq!((&*told, world.endpoint.count()), ("t1", 1));
    }

    async fn a_refresh_that_began_outlives_whoever_asked_for_it(store: Store) {
        let world = World::start(store).await;
        let provider = world.accounts("p1").await;
        "r0".clone_into(&mut world.endpoint.refresh.lock());
        world.mode("late rotating");
        world.connect(&provider, "user-1", "t0", Some("r0"), 20).await;
        let short = Patience::of_gateway(world.sts.sts.clock.as_ref(), Duration::from_millis(200));
        let told = credential_within(&world.sts, &world.zone, &provider, "user-1", short).await;
        assert_eq!(told, "RefreshFailed");
        // One who hangs up, and one who stays: the refresh token is spent once, and not lost.
        let hung_up = tokio::time::timeout(Duration::from_millis(50), world.credential(&provider, "user-1"));
        assert!(hung_up.await.is_err());
        world.endpoint.now.notify_one();
        assert_eq!(world.credential(&provider, "user-1").await, "t1");
        assert_eq!(world.endpoint.count(), 1);
        let row = world.sts.sts.store.zone(&world.zone).connections().active(&provider.id, "user-1").await;
        let row = row.unwrap().unwrap();
        let kept = world.sts.sts.keyring.open(REFRESH_TOKEN_AAD, &row.refresh_token.unwrap()).unwrap();
        assert_eq!(kept.expose(), b"r1");
    }

    /// A slow Redis, or one that was emptied: the provider has taken the refresh token all the same.
    async fn a_refresh_that_lost_its_lease_keeps_what_it_gets(store: Store) {
        let clock = Arc::new(TestClock::default());
        let bus = Bus::memory(clock.clone());
        let world = World::on(store, bus.clone()).await;
        let provider = world.accounts("p1").await;
        "r0".clone_into(&mut world.endpoint.refresh.lock());
        world.mode("late rotating");
        world.connect(&provider, "user-1", "t0", Some("r0"), 20).await;
        let connections = || world.sts.sts.store.zone(&world.zone).connections();
        let row = async || connections().active(&provider.id, "user-1").await.unwrap().unwrap();
        let lock = format!("provider-refresh:{}:lock", row().await.id);
        let losing = async {
            eventually("the provider is asked", async || world.endpoint.count() == 1).await;
            eventually("it has lapsed", async || {
                clock.advance(16 * SECOND);
                bus.lead(&lock, "another", 3_600 * SECOND).await.unwrap()
            })
            .await;
            world.endpoint.now.notify_one();
        };
        tokio::join!(world.credential(&provider, "user-1"), losing);
        eventually("it is kept", async || row().await.version == 2).await;
        let kept = row().await.refresh_token.unwrap();
        let kept = world.sts.sts.keyring.open(REFRESH_TOKEN_AAD, &kept).unwrap();
        assert_eq!(kept.expose(), b"r1");
        assert_eq!(world.credential(&provider, "user-1").await, "t1");
    }

    async fn an_issuer_that_is_slow_or_lies_vouches_for_nobody(store: Store) {
        let world = World::start(store).await;
        let url = world.url.replace("/token", "/keys");
        for mode in ["slow", "slow body", "huge", "garbage", "page", "moved", "down"] {
            world.mode(mode);
            let keys = IssuerKeys::new(Arc::new(world.fetch.clone()), Arc::new(SystemClock::new()));
            let issuer = IssuerRow {
                id: mode.to_owned(),
                issuer: "https://upstream.test".to_owned(),
                jwks_url: url.clone(),
                audience: "caracal".to_owned(),
            };
            let asked = tokio::time::timeout(DEADLINE, keys.with(&issuer, "k1", DEADLINE)).await;
            let refused = asked.expect("within the deadline").map(|_| ()).unwrap_err();
            let row = refused.refusal.row();
            assert_eq!((row.status, row.error), (503, "sts_unavailable"), "{mode}");
        }
    }
}
