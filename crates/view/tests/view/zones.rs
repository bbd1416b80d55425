//! Zones are loaded once, on time, and never used past a change.

use std::sync::Arc;
use std::time::Duration;

use caracal_model::{ApplicationId, ZoneId};
use caracal_view::{Announce, Local, ViewError};
use tokio::task::JoinSet;

use crate::support::*;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_published_beforehand_signs_from_its_time_on() {
    let (hand, clock) = test_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        add_key(&store, "k1", clock.now()).await;
        add_key(&store, "k2", clock.now().plus(HOUR)).await;
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let views = &replica.views;
        let signs = async || {
            eventually("the feed is confirmed", || async { views.lease_holds() }).await;
            let zone = views.zone(&zone()).await.unwrap();
            (
                zone.keys.signing.as_ref().unwrap().kid().to_string(),
                zone.keys.jwks.len(),
            )
        };
        assert_eq!(signs().await, ("k1".to_owned(), 2));
        hand.advance(HOUR - Duration::from_secs(1));
        assert_eq!(signs().await, ("k1".to_owned(), 2));
        hand.advance(Duration::from_secs(1));
        assert_eq!(signs().await, ("k2".to_owned(), 2));
        hand.advance(24 * HOUR);
        assert_eq!(signs().await, ("k2".to_owned(), 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_zone_is_loaded_before_anybody_asks_for_it() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let other = ZoneId::trusted("new");
        add_zone(&store, &other).await;
        let announce = Local::new(replica.relay.clone(), replica.views.clone());
        announce.announce().await;
        eventually("it is loaded", || async {
            replica.views.stats().zones == 1
        })
        .await;
        replica.views.zone(&other).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_want_a_zone_share_one_load() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let mut readers = JoinSet::new();
        for _ in 0..64 {
            let views = replica.views.clone();
            readers.spawn(async move { views.zone(&zone()).await.unwrap() });
        }
        let views = readers.join_all().await;
        assert!(views.iter().all(|view| Arc::ptr_eq(view, &views[0])));
        let same = replica.views.zone(&zone()).await.unwrap();
        assert!(Arc::ptr_eq(&same, &views[0]), "and keep it");
        let announce = Local::new(replica.relay.clone(), replica.views.clone());
        change_zone(&store).await;
        announce.announce().await;
        let other = replica.views.zone(&zone()).await.unwrap();
        assert!(!Arc::ptr_eq(&other, &views[0]), "until it changes");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_exist_is_not_found_and_not_remembered() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let views = &replica.views;
        let unknown = views.zone(&ZoneId::trusted("z9")).await.unwrap_err();
        assert!(matches!(unknown, ViewError::UnknownZone), "{unknown:?}");
        assert!(views.session(&zone(), &session(1)).await.unwrap().is_none());
        add_session(&store, &session(1)).await;
        assert!(views.session(&zone(), &session(1)).await.unwrap().is_some());
        let other_zone = ZoneId::trusted("z9");
        assert!(
            views
                .session(&other_zone, &session(1))
                .await
                .unwrap()
                .is_none()
        );
        assert_eq!(views.epoch(&zone()).await.unwrap(), 0);
        let home = views
            .zone_of_application(&ApplicationId::trusted("app"))
            .await
            .unwrap();
        assert_eq!(home, Some(zone()));
        let home = views
            .zone_of_application(&ApplicationId::trusted("nobody"))
            .await
            .unwrap();
        assert_eq!(home, None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_exist_costs_the_store_one_read_until_it_does() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let views = &replica.views;
        eventually("the feed is confirmed", || async { views.lease_holds() }).await;
        let (stranger, nobody) = (ZoneId::trusted("z9"), ApplicationId::trusted("nobody"));
        let ask = async || {
            let zone = views.zone(&stranger).await;
            assert!(matches!(zone, Err(ViewError::UnknownZone)));
            assert_eq!(views.zone_of_application(&nobody).await.unwrap(), None);
        };
        ask().await;
        // The lease may end between two questions when the machine is slow: what is asserted is
        // that nearly all of them are answered from memory.
        let before = store.visits();
        for _ in 0..100 {
            ask().await;
        }
        assert!(store.visits() - before < 50, "{}", store.visits() - before);

        add_zone(&store, &stranger).await;
        Local::new(replica.relay.clone(), views.clone())
            .announce()
            .await;
        assert_eq!(views.zone(&stranger).await.unwrap().id, stranger);
    })
    .await;
}

/// Whoever names zones that do not exist proves nothing, and may hang up at any time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zones_that_are_made_up_leave_nothing_in_memory() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let views = &replica.views;
        for n in 0..50 {
            let made_up = ZoneId::trusted(format!("hung-up-{n}"));
            dropped_at(1 + n % 5, views.zone(&made_up)).await;
        }
        assert_eq!(views.stats().zones, 0, "of those that hung up");
        // One of them waits for the other.
        for n in 0..20 {
            let made_up = ZoneId::trusted(format!("both-{n}"));
            let first = dropped_at(1 + n % 5, views.zone(&made_up));
            let (_, unknown) = tokio::join!(first, views.zone(&made_up));
            assert!(matches!(unknown, Err(ViewError::UnknownZone)));
        }
        assert_eq!(views.stats().zones, 0, "of those that waited");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zones_that_cannot_be_looked_for_leave_nothing_in_memory() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let views = &replica.views;
        views.zone(&zone()).await.unwrap();
        store.shutdown().await;
        for n in 0..20 {
            let made_up = ZoneId::trusted(format!("out-{n}"));
            let both = tokio::join!(views.zone(&made_up), views.zone(&made_up));
            assert!(matches!(both.0, Err(ViewError::Unreachable(_))), "{both:?}");
            assert!(both.1.is_err());
        }
        assert_eq!(views.stats().zones, 1, "the one that exists");
    })
    .await;
}

/// The slot that the callers meet in may be given up by one of them while others wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_hangs_up_takes_no_zone_from_the_others() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let announce = Local::new(replica.relay.clone(), replica.views.clone());
        for n in 0..20 {
            let other = ZoneId::trusted(format!("z-{n}"));
            add_zone(&store, &other).await;
            let views = &replica.views;
            let first = dropped_at(1 + n % 5, views.zone(&other));
            let (_, a, b) = tokio::join!(first, views.zone(&other), views.zone(&other));
            assert_eq!((&a.unwrap().id, &b.unwrap().id), (&other, &other));
            assert!(views.stats().zones > n, "it is where changes find it");
            announce.announce().await;
            assert_eq!(views.zone(&other).await.unwrap().id, other);
        }
    })
    .await;
}
