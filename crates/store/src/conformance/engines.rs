//! What one engine alone can suffer: races of migrations and relays, cut connections, stalls.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_run_once_however_many_run_them() {
    for database in Database::each("migrations").await {
        let stores = futures_util::future::join_all((0..6).map(|_| database.open())).await;
        let runs = futures_util::future::join_all(stores.iter().map(Store::migrate)).await;
        let mut applied: Vec<u32> = runs.into_iter().flat_map(Result::unwrap).collect();
        applied.sort_unstable();
        let mut once = applied.clone();
        once.dedup();
        assert!(!applied.is_empty() && applied == once, "{applied:?}");
        for store in stores {
            assert!(store.migrate().await.unwrap().is_empty());
            store.shutdown().await;
        }
        database.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_entries_are_claimed_by_one_relay_at_a_time() {
    for database in Database::each("claims").await.into_iter().skip(1) {
        let store = database.open().await;
        store.migrate().await.unwrap();
        let mut tx = store.begin("announcing").await.unwrap();
        for n in 0..40 {
            tx.announce(lifecycle(&ZoneId::trusted("z1"), &n.to_string()));
        }
        tx.commit().await.unwrap();
        let claims = (0..8).map(|_| async { store.outbox().claim(10, LEASE).await.unwrap() });
        let mut claimed: Vec<_> = futures_util::future::join_all(claims)
            .await
            .into_iter()
            .flatten()
            .map(|entry| entry.id)
            .collect();
        let all = claimed.len();
        claimed.sort();
        claimed.dedup();
        assert_eq!((all, claimed.len()), (40, 40));
        store.shutdown().await;
        database.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_is_due_at_once_though_the_clock_stepped_back_since() {
    for database in Database::each("step").await {
        let clock = Arc::new(caracal_model::TestClock::default());
        let store = database.open_with(clock.clone()).await;
        store.migrate().await.unwrap();
        let mut tx = store.begin("announcing").await.unwrap();
        tx.announce(lifecycle(&ZoneId::trusted("z1"), "terminate"));
        tx.commit().await.unwrap();
        clock.step_back(Duration::from_secs(3600));
        assert_eq!(store.outbox().claim(10, LEASE).await.unwrap().len(), 1);
        store.shutdown().await;
        database.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_connections_that_were_cut_are_an_outage_and_are_replaced() {
    for database in Database::each("cut").await.into_iter().skip(1) {
        let (store, killer) = (database.open().await, database.open().await);
        store.migrate().await.unwrap();
        let mut open = store.begin("being cut").await.unwrap();
        open.execute(&sql::ZONE, &zone("z1")).await.unwrap();
        // The role of tests may not, the user behind it may.
        let mut kill = killer.begin("killing").await.unwrap();
        kill.execute(&sql::NO_ROLE, &[]).await.unwrap();
        kill.query(&sql::KILL_OTHERS, &[]).await.unwrap();
        kill.rollback().await;
        let cut = open.commit().await.unwrap_err();
        assert!(cut.is_transient(), "{cut:?}");
        // A connection that looked alive may be handed out once more; then it is replaced.
        let again = async {
            while let Err(error) = store.ping().await {
                assert!(error.is_transient(), "{error:?}");
            }
        };
        tokio::time::timeout(DEADLINE, again).await.unwrap();
        add_zone(&store, "z2").await;
        assert_eq!(ids(&store).await, ["z2"]);
        store.shutdown().await;
        assert!(store.ping().await.unwrap_err().is_transient());
        killer.shutdown().await;
        database.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_transaction_that_stalls_is_rolled_back_and_lets_others_pass() {
    let database = Database::each("stall").await.remove(0);
    let store = Arc::new(database.open().await);
    store.migrate().await.unwrap();
    let mut stalled = store.begin("stalling").await.unwrap();
    stalled.execute(&sql::ZONE, &zone("z1")).await.unwrap();
    // Waits behind the stalled one until that is taken back.
    tokio::time::timeout(DEADLINE, add_zone(&store, "z2"))
        .await
        .unwrap();
    let refused = stalled.execute(&sql::ZONE, &zone("z3")).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Abandoned { .. }),
        "{refused:?}"
    );
    assert_eq!(ids(&store).await, ["z2"]);
    store.shutdown().await;
    assert!(store.ping().await.is_err());
    database.remove().await;
}

/// SQLite checks a deferred reference at the outer COMMIT, which is how a test makes that fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_shared_sqlite_commit_fails_nobody_in_it_hears_of_success() {
    let database = Database::each("group").await.remove(0);
    // On a clock that stands still, a group never is too old to take more in.
    let store = database
        .open_with(Arc::new(caracal_model::TestClock::default()))
        .await;
    store.migrate().await.unwrap();

    let mut poison = store.begin("poisoning").await.unwrap();
    poison.query(&sql::DEFER, &[]).await.unwrap();
    poison
        .execute(&sql::COUNTER, &params!["nowhere"])
        .await
        .unwrap();
    let insert = async |id: &'static str| {
        let mut tx = store.begin("sharing").await.unwrap();
        tx.execute(&sql::ZONE, &zone(id)).await?;
        tx.commit().await
    };
    // The others queue behind the poison, which commits once they have.
    let poisoned = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        poison.commit().await
    };
    let (first, second, poisoned) = futures_util::join!(insert("z1"), insert("z2"), poisoned);
    assert!(poisoned.unwrap_err().is_transient());
    let kept = ids(&store).await;
    assert_eq!(first.is_ok(), kept.contains(&"z1".to_owned()));
    assert_eq!(second.is_ok(), kept.contains(&"z2".to_owned()));
    assert!(first.is_err(), "the first must have shared the commit");
    add_zone(&store, "z3").await;
    store.shutdown().await;
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_from_a_refusal() {
    use crate::{Durability, PoolOptions, StoreConfig, StoreUrl};
    use caracal_model::{Ids, Secret, TestClock, TestRng};

    let clock = Arc::new(TestClock::default());
    let ids = Arc::new(Ids::new(clock.clone(), Arc::new(TestRng::default())));
    let url = StoreUrl::Pg {
        // Nothing listens on the discard port.
        url: Secret::new("postgres://nobody:hunter2@127.0.0.1:9/nothing".into()),
        tls: None,
        pool: PoolOptions {
            max: 1,
            connect_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(2),
            ..PoolOptions::default()
        },
    };
    let config = StoreConfig {
        url,
        durability: Durability::Process,
    };
    let store = Store::open(config, clock, ids).await.unwrap();
    let outage = store.ping().await.unwrap_err();
    assert!(outage.is_transient(), "{outage:?}");
    assert!(!format!("{outage} {outage:?}").contains("hunter2"));
}
