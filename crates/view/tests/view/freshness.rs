//! Revocations are seen when they have to be, and nothing is believed for too long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use caracal_authority::{EdgeStatus, RecordStatus, SessionStatus};
use caracal_crypto::os::OsRng;
use caracal_model::{Ids, RecordId, Topic};
use caracal_view::{Anchor, Anchors, Announce, Local, ViewError, Views};
use tokio::task::JoinSet;

use crate::support::*;

async fn is_revoked(views: &Views, number: usize) -> bool {
    let id = session(number);
    let anchors = Anchors {
        session: Some(&id),
        ..Anchors::default()
    };
    views.revoked(&anchors).await.unwrap() == Some(Anchor::Session(id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_is_visible_on_the_very_next_call_after_its_announcement() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let announce = Local::new(replica.relay.clone(), replica.views.clone());
        let views = &replica.views;
        for number in 0..50 {
            add_session(&store, &session(number)).await;
            let held = views
                .session(&zone(), &session(number))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(held.status, SessionStatus::Active);
            assert!(!is_revoked(views, number).await);
            let watch = views.revocation_watch();
            end_session(&store, &session(number), clock.now()).await;
            announce.announce().await;
            assert!(is_revoked(views, number).await, "{number}");
            assert!(watch.has_changed().unwrap(), "open streams are woken");
            let held = views
                .session(&zone(), &session(number))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(held.status, SessionStatus::Terminated);
        }
        assert!(views.lease_holds(), "all of it came from memory");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_on_its_way_when_its_subject_was_cut_off_is_dead() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let announce = Local::new(replica.relay.clone(), replica.views.clone());
        let ids = Ids::new(clock.clone(), Arc::new(OsRng));
        let stands = async |id: &RecordId| {
            let record = replica.views.record(&zone(), id).await.unwrap();
            record.unwrap().status == RecordStatus::Active
        };
        let before = RecordId::trusted(ids.uuid());
        add_record(&store, &before).await;
        assert!(stands(&before).await);
        // Made, signed, and not stored yet.
        let late = RecordId::trusted(ids.uuid());
        let cut_at = clock.now();
        let mut tx = store.begin("test").await.unwrap();
        let of = zone();
        let mut subjects = tx.subjects(&of);
        let cut = subjects.cut_off("piper", "left", cut_at, cut_at).await;
        assert!(cut.unwrap().is_some());
        tx.commit().await.unwrap();
        announce.announce().await;
        add_record(&store, &late).await;
        assert!(!stands(&before).await && !stands(&late).await);
        // The user signs in again.
        while clock.now().unix_millis() <= cut_at.unix_millis() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let again = RecordId::trusted(ids.uuid());
        add_record(&store, &again).await;
        assert!(stands(&again).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_anchor_is_revoked_and_buries_what_is_read_later() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let announce = Local::new(replica.relay.clone(), replica.views.clone());
        let views = &replica.views;
        let record = RecordId::trusted("r1");
        add_record(&store, &record).await;
        add_session(&store, &session(1)).await;
        add_session(&store, &session(2)).await;
        add_edge(&store, &edge(1), None).await;
        add_edge(&store, &edge(2), Some(&edge(1))).await;
        let path = views.lineage(&zone(), &edge(2)).await.unwrap();
        assert_eq!(
            path.iter().map(|edge| &edge.id).collect::<Vec<_>>(),
            [&edge(1), &edge(2)]
        );
        assert_eq!(
            views
                .record(&zone(), &record)
                .await
                .unwrap()
                .unwrap()
                .client_id
                .as_str(),
            "app"
        );
        revoke_edge(&store, &edge(1), clock.now()).await;
        revoke_record(&store, &record, clock.now()).await;
        announce.announce().await;
        let (record_held, path) = (
            views.record(&zone(), &record).await.unwrap().unwrap(),
            views.lineage(&zone(), &edge(2)).await.unwrap(),
        );
        assert_eq!(record_held.status, RecordStatus::Revoked);
        assert_eq!(path[0].status, EdgeStatus::Revoked);
        assert_eq!(path[1].status, EdgeStatus::Active);
        let edges = Anchors {
            edges: &[&edge(2), &edge(1)],
            ..Anchors::default()
        };
        assert_eq!(
            views.revoked(&edges).await.unwrap(),
            Some(Anchor::Delegation(edge(1)))
        );
        let records = Anchors {
            records: &[&record],
            ..Anchors::default()
        };
        assert_eq!(
            views.revoked(&records).await.unwrap(),
            Some(Anchor::Record(record))
        );
    })
    .await;
}

/// A circle in the stored edges ends the walk, in the store as in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circular_lineage_is_read_to_the_bound_and_no_further() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        add_session(&store, &session(1)).await;
        add_session(&store, &session(2)).await;
        add_edge(&store, &edge(1), Some(&edge(2))).await;
        add_edge(&store, &edge(2), Some(&edge(1))).await;
        for from in ["store", "memory"] {
            let path = replica.views.lineage(&zone(), &edge(2)).await.unwrap();
            assert_eq!(path.len(), 11, "from {from}");
        }
        assert!(
            replica
                .views
                .lineage(&zone(), &edge(9))
                .await
                .unwrap()
                .is_empty()
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lapsed_lease_reads_through_and_denies_when_the_store_is_gone() {
    let (hand, clock) = test_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let views = Replica::new(&store, &bus, &clock, "one").views;
        add_session(&store, &session(1)).await;
        views.start().await.unwrap();
        assert!(views.lease_holds());
        assert!(views.session(&zone(), &session(1)).await.unwrap().is_some());
        assert!(!views.zone(&zone()).await.unwrap().archived);

        end_session_silently(&store, &session(1), clock.now()).await;
        hand.advance(Duration::from_millis(999));
        assert!(
            !is_revoked(&views, 1).await,
            "within the bound, memory answers"
        );
        hand.advance(Duration::from_millis(2));
        assert!(!views.lease_holds());
        assert!(is_revoked(&views, 1).await, "past it, the store does");
        let held = views.session(&zone(), &session(1)).await.unwrap().unwrap();
        assert_eq!(held.status, SessionStatus::Terminated);

        store.shutdown().await;
        hand.advance(Duration::from_secs(2));
        let id = session(2);
        let anchors = Anchors {
            session: Some(&id),
            ..Anchors::default()
        };
        let gone = |error: ViewError| assert!(matches!(error, ViewError::Unreachable(_)));
        gone(views.revoked(&anchors).await.unwrap_err());
        gone(views.session(&zone(), &session(1)).await.unwrap_err());
        gone(views.zone(&zone()).await.unwrap_err());
        gone(views.epoch(&zone()).await.unwrap_err());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_was_never_started_asks_the_store() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let views = Replica::new(&store, &bus, &clock, "one").views;
        add_session(&store, &session(1)).await;
        end_session_silently(&store, &session(1), clock.now()).await;
        assert!(is_revoked(&views, 1).await);
        assert!(!is_revoked(&views, 2).await);
        assert_eq!(views.lag(), None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_sees_what_was_true_before_a_change_that_was_announced() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 10_000).await.swap_remove(0);
        let replica = Replica::started(&store, &bus, &clock, "one").await;
        let announce = Local::new(replica.relay.clone(), replica.views.clone());
        add_session(&store, &session(1)).await;
        let announced = Arc::new(AtomicU64::new(0));
        let done = Arc::new(AtomicBool::new(false));
        let mut readers = JoinSet::new();
        for _ in 0..4 {
            let views = replica.views.clone();
            let (announced, done) = (announced.clone(), done.clone());
            readers.spawn(async move {
                let mut reads = 0u64;
                while !done.load(Ordering::SeqCst) {
                    let floor = announced.load(Ordering::SeqCst);
                    let seen = |text: &str| text[text.find('-').unwrap() + 1..].parse::<u64>();
                    let held = views.session(&zone(), &session(1)).await.unwrap().unwrap();
                    assert!(
                        seen(&held.labels[0]).unwrap() >= floor,
                        "{:?} {floor}",
                        held.labels
                    );
                    let held = views.zone(&zone()).await.unwrap();
                    let name = &held.applications["app"].name;
                    assert!(seen(name).unwrap() >= floor, "{name} {floor}");
                    reads += 1;
                    // Memory answers without waiting: let the others have a turn.
                    tokio::task::yield_now().await;
                }
                reads
            });
        }
        for number in 1..=150 {
            rename(&store, number, &session(1)).await;
            announce.announce().await;
            announced.store(number, Ordering::SeqCst);
        }
        done.store(true, Ordering::SeqCst);
        let reads: u64 = readers.join_all().await.into_iter().sum();
        assert!(reads > 150, "{reads}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_loses_no_revocation() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        for bus in buses(&clock, 20).await {
            let mut replica = Replica::new(&store, &bus, &clock, "one");
            replica.views.start().await.unwrap();
            let first = fresh_sessions(&store, 400).await;
            end_sessions(&store, first.clone(), clock.now()).await;
            replica.relay.drain().await.unwrap();
            replica.follow();
            let views = &replica.views;
            eventually("the gap is noticed", || async {
                views.stats().resnapshots == 2
            })
            .await;
            eventually("the feed is confirmed", || async { views.lease_holds() }).await;
            for number in first {
                let id = session(number);
                let anchors = Anchors {
                    session: Some(&id),
                    ..Anchors::default()
                };
                assert!(views.is_marked(&anchors), "{number} is in memory");
            }
        }
    })
    .await;
}

/// Sessions that no earlier round of the same store has used.
async fn fresh_sessions(store: &caracal_store::Store, count: usize) -> std::ops::Range<usize> {
    static NEXT: AtomicU64 = AtomicU64::new(1_000);
    let start = usize::try_from(NEXT.fetch_add(1_000, Ordering::SeqCst)).unwrap();
    add_sessions(store, start..start + count).await;
    start..start + count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_with_a_wrong_signature_is_ignored_and_counted() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        for bus in buses(&clock, 1_000).await {
            let replica = Replica::started(&store, &bus, &clock, "one").await;
            let topic = Topic::SessionsRevoke.name();
            let mut forged = revocation("agent_session_id", "s-forged").fields;
            forged.insert("_sig".to_owned(), "00".repeat(32));
            let unsigned = revocation("agent_session_id", "s-unsigned").fields;
            let mut signed = revocation("agent_session_id", "s-signed").fields;
            caracal_crypto::mac::sign_entry(&streams_key(), topic, &mut signed);
            let last = bus
                .append(topic, &[forged, unsigned, signed])
                .await
                .unwrap()[2];
            let views = &replica.views;
            assert!(views.applied(Topic::SessionsRevoke, last, PATIENCE).await);
            assert_eq!(views.stats().invalid_signatures, 2);
            assert_eq!(views.stats().revoked, 1);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_names_the_replica_that_has_not_applied_the_change() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        for bus in buses(&clock, 1_000).await {
            let one = Replica::lasting(&store, &bus, &clock, "one").await;
            let two = Replica::lasting(&store, &bus, &clock, "two").await;
            let announce = caracal_view::Distributed::new(one.relay.clone(), one.views.clone());
            let number = fresh_sessions(&store, 2).await.start;
            let all_applied = async || {
                let status = announce.prove(&zone(), Duration::from_secs(2)).await;
                status.len() == 2 && status.iter().all(|replica| replica.applied)
            };
            eventually("both replicas report", &all_applied).await;
            end_session(&store, &session(number), clock.now()).await;
            assert!(all_applied().await);
            assert!(is_revoked(&one.views, number).await);
            assert!(is_revoked(&two.views, number).await);

            drop(two);
            end_session(&store, &session(number + 1), clock.now()).await;
            let status = announce.prove(&zone(), Duration::from_secs(2)).await;
            let status: Vec<_> = status
                .iter()
                .map(|one| (one.replica.as_str(), one.applied))
                .collect();
            assert_eq!(status, [("one", true), ("two", false)]);
        }
    })
    .await;
}

/// The bus acknowledged a revocation and lost it before this replica had read it. Positions do not
/// show that: the topic was empty when we looked, and is empty again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_the_bus_lost_is_found_in_the_store() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let Some(mut redis) = OwnRedis::start() else {
            eprintln!("skipped: no Redis of our own");
            return;
        };
        let bus = redis.bus().await;
        let mut replica = Replica::new(&store, &bus, &clock, "one");
        replica.views.start().await.unwrap();
        add_session(&store, &session(1)).await;
        end_session(&store, &session(1), clock.now()).await;
        replica.relay.drain().await.unwrap();
        replica.relay.record().await.unwrap();
        redis.lose_everything(&bus).await;
        replica.follow();
        let views = &replica.views;
        eventually("the feed is confirmed anew", || async {
            views.stats().resnapshots == 2
        })
        .await;
        let id = session(1);
        let anchors = Anchors {
            session: Some(&id),
            ..Anchors::default()
        };
        assert!(views.is_marked(&anchors));
    })
    .await;
}

/// The lease may be longer than a call waits for the own follower.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_local_follower_did_not_apply_in_time_is_read_from_the_store() {
    let (frozen, clock) = test_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = caracal_bus::Bus::memory(clock.clone());
        let config = caracal_view::ViewConfig {
            feed_max_lag: Duration::from_secs(10),
            ..caracal_view::ViewConfig::default()
        };
        let keyring = Some(Arc::new(keyring()));
        // The follower does not run.
        let (views, _follower) =
            Views::new(store.clone(), bus.clone(), clock.clone(), keyring, config);
        let replica = Replica::new(&store, &bus, &clock, "relay");
        let announce = Local::new(replica.relay.clone(), views.clone());
        views.start().await.unwrap();
        add_session(&store, &session(1)).await;
        views.session(&zone(), &session(1)).await.unwrap().unwrap();
        views.zone(&zone()).await.unwrap();
        assert!(views.lease_holds());

        frozen.advance(Duration::from_millis(1));
        rename(&store, 7, &session(1)).await;
        end_session(&store, &session(1), clock.now()).await;
        announce.announce().await;
        assert!(!views.lease_holds(), "nobody knows what is missing");
        frozen.advance(Duration::from_millis(1));
        assert!(is_revoked(&views, 1).await);
        let held = views.session(&zone(), &session(1)).await.unwrap().unwrap();
        assert_eq!(held.status, SessionStatus::Terminated);
        let name = views.zone(&zone()).await.unwrap().applications["app"]
            .name
            .clone();
        assert!(name.ends_with("-7"), "{name}");
    })
    .await;
}
