//! What was committed reaches its topic: at least once, in order, and signed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use caracal_bus::{Bus, MemoryOptions, Position, RedisOptions};
use caracal_crypto::stream_signature_is_valid;
use caracal_model::{Outgoing, Secret, Topic};
use caracal_store::Store;
use caracal_store::outbox::Entry;
use caracal_view::{Relay, RelayOptions, Witness};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::*;

async fn say(store: &Store, topic: Topic, number: usize) {
    let mut tx = store.begin("test").await.unwrap();
    let fields = [
        ("n", Some(number.to_string())),
        ("reason", Some("two\nlines".to_owned())),
    ];
    tx.announce(Outgoing::new(topic, &zone(), fields));
    tx.commit().await.unwrap();
}

async fn said(bus: &Bus, topic: Topic) -> Vec<usize> {
    let from = [(topic.name(), Position::START)];
    let entries = bus.tail(&from, Duration::ZERO, 10_000).await.unwrap();
    for entry in &entries {
        assert!(stream_signature_is_valid(
            &streams_key(),
            topic.name(),
            &entry.fields
        ));
        assert!(entry.fields.contains_key("outbox_id"));
        assert_eq!(entry.fields["reason"], "two lines");
    }
    entries
        .iter()
        .map(|entry| entry.fields["n"].parse().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_drains_send_everything_once_and_in_order() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        for bus in buses(&clock, 100_000).await {
            let relay = Replica::new(&store, &bus, &clock, "one").relay;
            let mut work = JoinSet::new();
            for worker in 0..8 {
                let (store, relay) = (store.clone(), relay.clone());
                work.spawn(async move {
                    for number in 0..25 {
                        say(&store, Topic::AgentsLifecycle, worker * 100 + number).await;
                        relay.drain().await.unwrap();
                    }
                });
            }
            work.join_all().await;
            let seen = said(&bus, Topic::AgentsLifecycle).await;
            assert_eq!(seen.len(), 200, "each once");
            for worker in 0..8 {
                let of_worker: Vec<_> = seen.iter().filter(|n| *n / 100 == worker).collect();
                assert!(of_worker.is_sorted(), "{of_worker:?}");
            }
            relay.record().await.unwrap();
            assert_eq!(store.outbox().counts().await.unwrap().pending, 0);
            assert_eq!(relay.stats().sent, 200);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_process_committed_and_did_not_send_is_sent() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        for (nth, bus) in buses(&clock, 1_000).await.into_iter().enumerate() {
            // A Redis without a history is told what the store has sent elsewhere as well.
            let (first, second) = (10 * nth + 1, 10 * nth + 2);
            say(&store, Topic::SessionsRevoke, first).await;
            let relay = Replica::new(&store, &bus, &clock, "one").relay;
            let stop = CancellationToken::new();
            let mut running = JoinSet::new();
            running.spawn(relay.clone().run(stop.clone()));
            eventually("it is sent", || async {
                said(&bus, Topic::SessionsRevoke).await.contains(&first)
            })
            .await;
            eventually("it is recorded", || async {
                store.outbox().counts().await.unwrap().pending == 0
            })
            .await;
            // Committed with nobody draining: the bell wakes the loop.
            say(&store, Topic::SessionsRevoke, second).await;
            eventually("it is sent", || async {
                said(&bus, Topic::SessionsRevoke).await.ends_with(&[second])
            })
            .await;
            stop.cancel();
            running.join_all().await;
            assert!(!store.zone(&zone()).has_unsent_revocations().await.unwrap());
        }
    })
    .await;
}

/// Sent and not recorded when the process dies: sent again, recognisable by its id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_entries_are_repeated_and_never_lost() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        say(&store, Topic::SessionsRevoke, 1).await;
        Replica::new(&store, &bus, &clock, "dies")
            .relay
            .drain()
            .await
            .unwrap();
        let heir = Replica::new(&store, &bus, &clock, "heir").relay;
        // In Postgres the claim of the dead process has to lapse first.
        eventually("it is repeated", || async {
            heir.drain().await.unwrap();
            said(&bus, Topic::SessionsRevoke).await == [1, 1]
        })
        .await;
        let from = [(Topic::SessionsRevoke.name(), Position::START)];
        let entries = bus.tail(&from, Duration::ZERO, 10).await.unwrap();
        assert_eq!(
            entries[0].fields["outbox_id"],
            entries[1].fields["outbox_id"]
        );
    })
    .await;
}

/// A caller hangs up in the middle of a round, with what it claimed: also what others committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_announces_after_a_caller_that_hung_up_has_everything_out() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let options = RelayOptions {
            claim: Duration::from_secs(30),
            ..RelayOptions::default()
        };
        let key = Some(streams_key());
        let relay = Relay::new(
            store.clone(),
            bus.clone(),
            clock.clone(),
            key,
            None,
            options,
        );
        for number in 0..30 {
            say(&store, Topic::SessionsRevoke, number).await;
            dropped_at(1 + number % 10, relay.drain()).await;
            relay.drain().await.unwrap();
            let last = said(&bus, Topic::SessionsRevoke).await.pop();
            assert_eq!(last, Some(number));
        }
        assert_eq!(
            said(&bus, Topic::SessionsRevoke).await.len(),
            30,
            "each once"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_bus_kills_no_entry() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let nowhere = Secret::new("redis://127.0.0.1:1/".to_owned());
        let options = RedisOptions {
            timeout: Duration::from_millis(200),
            ..Default::default()
        };
        let away = Bus::redis(&nowhere, options).await.unwrap();
        let relay = Replica::new(&store, &away, &clock, "one").relay;
        say(&store, Topic::SessionsRevoke, 1).await;
        for _ in 0..3 {
            assert!(relay.drain().await.is_err());
        }
        let counts = store.outbox().counts().await.unwrap();
        assert_eq!((counts.pending, counts.dead), (1, 0), "{counts:?}");
        assert_eq!(relay.stats().interrupted, 3);
    })
    .await;
}

/// The memory bus refuses evidence over its bound: a bus that says no, to some entries only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_the_bus_refuses_is_set_aside_and_holds_up_nobody() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let options = MemoryOptions {
            evidence: 0,
            ..MemoryOptions::default()
        };
        let bus = Bus::memory_with(clock.clone(), options);
        let relay = Replica::new(&store, &bus, &clock, "one").relay;
        say(&store, Topic::AuditEvents, 1).await;
        say(&store, Topic::AgentsLifecycle, 2).await;
        relay.drain().await.unwrap();
        assert_eq!(said(&bus, Topic::AgentsLifecycle).await, [2]);
        relay.record().await.unwrap();
        let counts = store.outbox().counts().await.unwrap();
        assert_eq!((counts.pending, counts.dead), (0, 1), "{counts:?}");
        assert_eq!(relay.stats().refused, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_gets_what_others_read_and_holds_up_nobody() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let (bus, mirror) = (Bus::memory(clock.clone()), Bus::memory(clock.clone()));
        let key = Some(streams_key());
        let options = RelayOptions::default();
        let relay = Relay::new(
            store.clone(),
            bus.clone(),
            clock.clone(),
            key,
            Some(mirror.clone()),
            options,
        );
        say(&store, Topic::SessionsRevoke, 1).await;
        say(&store, Topic::ViewChanges, 2).await;
        relay.drain().await.unwrap();
        assert_eq!(said(&bus, Topic::SessionsRevoke).await, [1]);
        relay.record().await.unwrap();
        assert_eq!(relay.stats().mirror_waiting, 1);
        assert_eq!(
            store.outbox().counts().await.unwrap().pending,
            1,
            "not before it is copied"
        );
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(relay.clone().run(stop.clone()));
        eventually("it is recorded", || async {
            store.outbox().counts().await.unwrap().pending == 0
        })
        .await;
        stop.cancel();
        running.join_all().await;
        assert_eq!(said(&mirror, Topic::SessionsRevoke).await, [1]);
        assert_eq!(said(&mirror, Topic::ViewChanges).await, Vec::<usize>::new());
    })
    .await;
}

/// Writes down, or refuses to.
#[derive(Default)]
struct Notebook {
    refuses: AtomicBool,
    seen: Mutex<Vec<String>>,
}

#[async_trait]
impl Witness for Notebook {
    fn minds(&self, topic: &str) -> bool {
        topic == Topic::AgentsLifecycle.name()
    }

    async fn saw(
        &self,
        entries: Vec<Entry>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err("full".into());
        }
        let numbers = entries.iter().map(|entry| entry.fields["n"].clone());
        self.seen.lock().unwrap().extend(numbers);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_that_is_evidence_counts_as_sent_once_it_is_written_down() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let bus = buses(&clock, 1_000).await.swap_remove(0);
        let relay = Replica::new(&store, &bus, &clock, "one").relay;
        let notebook = Arc::new(Notebook::default());
        notebook.refuses.store(true, Ordering::SeqCst);
        relay.witnessed_by(notebook.clone());
        say(&store, Topic::AgentsLifecycle, 1).await;
        say(&store, Topic::SessionsRevoke, 2).await;
        say(&store, Topic::AgentsLifecycle, 3).await;
        relay.drain().await.unwrap();
        relay.record().await.unwrap();
        // It is out, and what is no evidence is done.
        assert_eq!(said(&bus, Topic::AgentsLifecycle).await, [1, 3]);
        assert_eq!(store.outbox().counts().await.unwrap().pending, 2);
        notebook.refuses.store(false, Ordering::SeqCst);
        relay.record().await.unwrap();
        assert_eq!(store.outbox().counts().await.unwrap().pending, 0);
        assert_eq!(*notebook.seen.lock().unwrap(), ["1", "3"]);
        relay.record().await.unwrap();
        assert_eq!(notebook.seen.lock().unwrap().len(), 2, "once is enough");
    })
    .await;
}

/// Resource servers have their marks in the same Redis, and know nothing but the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forgot_is_told_the_revocations_again_and_nothing_else() {
    let clock = system_clock();
    on_each_store(clock.clone(), async |store| {
        let Some(mut server) = OwnRedis::start() else {
            eprintln!("skipped: no Redis of its own");
            return;
        };
        let bus = server.bus().await;
        let mut running = JoinSet::new();
        let relay = Replica::new(&store, &bus, &clock, "one").relay;
        running.spawn(relay.run(CancellationToken::new()));
        for number in 0..3 {
            say(&store, Topic::SessionsRevoke, number).await;
            say(&store, Topic::AgentsLifecycle, number).await;
        }
        let has = async |topic: Topic| bus.len(topic.name()).await.unwrap_or(0);
        eventually("all is sent", || async {
            has(Topic::SessionsRevoke).await >= 3 && has(Topic::AgentsLifecycle).await == 3
        })
        .await;
        let revocations = async || {
            let mut said = said(&bus, Topic::SessionsRevoke).await;
            said.sort_unstable();
            said.dedup();
            said
        };
        server.lose_everything(&bus).await;
        say(&store, Topic::SessionsRevoke, 3).await;
        eventually("it is told again", || async {
            has(Topic::SessionsRevoke).await >= 4 && revocations().await == [0, 1, 2, 3]
        })
        .await;
        assert_eq!(has(Topic::AgentsLifecycle).await, 0);
    })
    .await;
}
