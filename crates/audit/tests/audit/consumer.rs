//! From the bus into the ledger, with the failures in between.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use caracal_audit::{Consumer, ConsumerOptions, DEAD_LETTERS, GROUP, Health, Ingest, verify_zone};
use caracal_bus::{Bus, Position, RedisOptions};
use caracal_crypto::os::SystemClock;
use caracal_model::Secret;
use caracal_model::change::Fields;
use caracal_store::testing::Database;
use caracal_store::{Store, on_each_engine, statements};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{event, events, ingest, key, zone};

const TOPIC: &str = "caracal.audit.events";
const DEADLINE: Duration = Duration::from_secs(20);

statements! { mod sql {
    HIDE = "ALTER TABLE audit_events RENAME TO audit_events_away";
    SHOW = "ALTER TABLE audit_events_away RENAME TO audit_events";
} }

struct Running {
    bus: Bus,
    ingest: Arc<Ingest>,
    health: Health,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn on(store: &Store) -> Self {
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        Self::with(bus, Arc::new(ingest(store)), "ingester-1")
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the test is the owner of this loop"
    )]
    fn with(bus: Bus, ingest: Arc<Ingest>, name: &str) -> Self {
        let options = ConsumerOptions {
            wait: Duration::from_millis(50),
            claim_idle: Duration::from_millis(200),
            ..ConsumerOptions::named(name)
        };
        let consumer = Consumer::new(bus.clone(), Arc::clone(&ingest), options);
        let (health, stop) = (consumer.health(), CancellationToken::new());
        let task = tokio::spawn(consumer.run(stop.clone()));
        Self {
            bus,
            ingest,
            health,
            stop,
            task,
        }
    }

    async fn publish(&self, texts: &[String]) {
        let entries: Vec<Fields> = texts.iter().map(|text| signed(text)).collect();
        self.bus.append(TOPIC, &entries).await.unwrap();
    }

    async fn is_done(&self) {
        until(async || {
            self.bus
                .group_lag(TOPIC, GROUP)
                .await
                .is_ok_and(|lag| lag.total() == 0)
                && self.bus.len(TOPIC).await.unwrap() == 0
        })
        .await;
    }

    async fn dead_letters(&self) -> Vec<Fields> {
        let from = [(DEAD_LETTERS, Position::START)];
        let letters = self.bus.tail(&from, Duration::ZERO, 100).await.unwrap();
        letters.into_iter().map(|entry| entry.fields).collect()
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .unwrap()
            .unwrap();
    }
}

fn signed(text: &str) -> Fields {
    fields(&[
        ("id", "x"),
        ("data", text),
        ("sig", &key().sign_hex(text.as_bytes())),
    ])
}

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

async fn until(condition: impl AsyncFn() -> bool) {
    tokio::time::timeout(DEADLINE, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it does not come about");
}

async fn length(store: &Store) -> u64 {
    verify_zone(store, &zone("z1"), Some(&key()))
        .await
        .unwrap()
        .seq()
}

on_each_engine! {
    async fn what_is_published_is_appended_acknowledged_and_trimmed(store: Store) {
        let running = Running::on(&store);
        let texts = events(0..2_500);
        running.publish(&texts).await;
        running.publish(&texts[..10]).await;
        running.is_done().await;
        assert_eq!(length(&store).await, 2_500);
        running.stop().await;
    }

    async fn what_was_published_before_the_first_start_is_read(store: Store) {
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        bus.append(TOPIC, &[signed(&event("early"))]).await.unwrap();
        let running = Running::with(bus, Arc::new(ingest(&store)), "ingester-1");
        until(async || length(&store).await == 1).await;
        running.stop().await;
    }

    async fn poison_becomes_dead_letters_and_the_rest_is_appended(store: Store) {
        let running = Running::on(&store);
        let good = event("e1");
        running.publish(std::slice::from_ref(&good)).await;
        running.is_done().await;
        let forged = good.replace("\"allow\"", "\"deny\"");
        let entries = [
            fields(&[("id", "nothing")]),
            fields(&[("data", &good)]),
            fields(&[("data", &good), ("sig", "00ff")]),
            signed("{\"id\":\"no-zone\"}"),
            signed(&forged),
            signed(&event("e2")),
        ];
        running.bus.append(TOPIC, &entries).await.unwrap();
        running.is_done().await;
        assert_eq!(length(&store).await, 2);

        let letters = running.dead_letters().await;
        let mut reasons: Vec<_> = letters.iter().map(|letter| letter["reason"].as_str()).collect();
        reasons.sort_unstable();
        assert_eq!(reasons.len(), 5, "{reasons:?}");
        assert_eq!(reasons[..2], ["hmac_verify_failed"; 2]);
        assert!(reasons[2].starts_with("json_parse_error:"), "{reasons:?}");
        assert_eq!(reasons[3..], ["missing_data_field", "tamper_on_replay"]);
        let tampered =
            letters.iter().find(|letter| letter["reason"] == "tamper_on_replay").unwrap();
        assert_eq!(tampered["src_data"], forged);
        assert_eq!(tampered["src_sig"], key().sign_hex(forged.as_bytes()));
        assert!(tampered["src_id"].parse::<Position>().is_ok());
        assert!(tampered["received_at"].parse::<u64>().is_ok());
        let metrics = running.ingest.metrics().clone();
        assert_eq!((metrics.dlq.get(), metrics.hmac_failures.get()), (5, 2));
        running.stop().await;
    }

    async fn an_outage_of_the_store_loses_nothing_and_buries_nothing(store: Store) {
        let running = Running::on(&store);
        until(async || running.health.is_well()).await;
        change(&store, &sql::HIDE).await;
        running.publish(&events(0..50)).await;
        until(async || !running.health.is_well()).await;
        running.publish(&events(50..60)).await;
        change(&store, &sql::SHOW).await;
        running.is_done().await;
        until(async || running.health.is_well()).await;
        assert_eq!(length(&store).await, 60);
        assert!(running.dead_letters().await.is_empty());
        running.stop().await;
    }

    async fn what_a_dead_consumer_had_in_hand_is_taken_over(store: Store) {
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        bus.ensure_group(TOPIC, GROUP, true).await.unwrap();
        let texts = events(0..30);
        let entries: Vec<Fields> = texts.iter().map(|text| signed(text)).collect();
        bus.append(TOPIC, &entries).await.unwrap();
        // One that read and committed, and died before it acknowledged.
        let read = bus.read_group(TOPIC, GROUP, "dead", 20, Duration::ZERO).await.unwrap();
        let committed = read[..10].iter().map(|entry| entry.fields["data"].clone()).collect();
        ingest(&store).commit(committed).await.unwrap();

        let running = Running::with(bus, Arc::new(ingest(&store)), "ingester-2");
        running.is_done().await;
        assert_eq!(length(&store).await, 30);
        assert_eq!(running.ingest.metrics().duplicates.get(), 10);
        assert!(running.ingest.metrics().retries.get() >= 20);
        running.stop().await;
    }
}

async fn change(store: &Store, statement: &caracal_store::Sql) {
    let mut tx = store.begin("changing the schema").await.unwrap();
    tx.execute(statement, &[]).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_consumers_on_redis_share_the_topic_and_make_their_group_again() {
    #[expect(
        clippy::disallowed_methods,
        reason = "how tests are told of their servers"
    )]
    let Ok(url) = std::env::var("CARACAL_TEST_REDIS") else {
        eprintln!("skipped: CARACAL_TEST_REDIS is unset");
        return;
    };
    let database = Database::each("redis").await.remove(0);
    let store = database.open().await;
    store.migrate().await.unwrap();
    let prefix = format!("test:{}:audit:", std::process::id());
    let options = RedisOptions {
        prefix: prefix.clone(),
        ..RedisOptions::default()
    };
    let bus = Bus::redis(&Secret::new(url.clone()), options)
        .await
        .unwrap();
    let first = Running::with(bus.clone(), Arc::new(ingest(&store)), "ingester-1");
    let second = Running::with(bus.clone(), Arc::new(ingest(&store)), "ingester-2");
    first.publish(&events(0..5_000)).await;
    first.is_done().await;
    assert_eq!(length(&store).await, 5_000);
    assert!(first.dead_letters().await.is_empty());

    let group = ["XGROUP", "DESTROY", &format!("{prefix}{TOPIC}"), GROUP];
    let gone = Command::new("redis-cli")
        .args(["-u", &url])
        .args(group)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&gone.stdout).trim(), "1");
    first.publish(&events(5_000..5_010)).await;
    first.is_done().await;
    assert_eq!(length(&store).await, 5_010);
    first.stop().await;
    second.stop().await;
    store.shutdown().await;
    database.remove().await;
}
