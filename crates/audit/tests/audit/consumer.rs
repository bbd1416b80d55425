//! From the bus into the ledger, with the failures in between.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use caracal_audit::{
    Consumer, ConsumerOptions, DEAD_LETTERS, EXPORTER_GROUP, GROUP, Health, Ingest, verify_zone,
};
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
    /// What Postgres says while it is starting up.
    SLOW = pg: "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN RAISE EXCEPTION ''later'' USING ERRCODE = ''57P03''; END'",
           lite: "SELECT 1 AS one";
    SLOW_TRIGGER = pg: "CREATE TRIGGER slow BEFORE INSERT ON audit_events FOR EACH ROW
                        WHEN (NEW.id = '\\x00706f69736f6e'::bytea) EXECUTE FUNCTION slow()",
                   lite: "SELECT 1 AS one";
    POISON = pg: "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                  'BEGIN RAISE EXCEPTION ''no''; END'",
             lite: "CREATE TRIGGER poison BEFORE INSERT ON audit_events
                    WHEN NEW.id = x'00706f69736f6e' BEGIN SELECT RAISE(ABORT, 'no'); END";
    POISON_TRIGGER = pg: "CREATE TRIGGER poison BEFORE INSERT ON audit_events FOR EACH ROW
                          WHEN (NEW.id = '\\x00706f69736f6e'::bytea) EXECUTE FUNCTION refuse()",
                     lite: "SELECT 1 AS one";
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
        let ingest = ingest(store).with_bus(bus.clone());
        Self::with(bus, Arc::new(ingest), "ingester-1")
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the test is the owner of this loop"
    )]
    fn with(bus: Bus, ingest: Arc<Ingest>, name: &str) -> Self {
        let options = ConsumerOptions {
            wait: Duration::from_millis(50),
            claim_idle: Duration::from_millis(200),
            max_deliveries: 3,
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
        let letters = self
            .bus
            .range(DEAD_LETTERS, Position::START, 100)
            .await
            .unwrap();
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

    async fn an_exporter_of_somebodys_own_reads_from_now_on_and_holds_what_it_reads(store: Store) {
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        bus.append(TOPIC, &[signed(&event("early"))]).await.unwrap();
        let ingest = Arc::new(ingest(&store).with_bus(bus.clone()));
        let running = Running::with(bus.clone(), ingest, "ingester-1");
        running.is_done().await;
        let read = async || {
            let read = bus.read_group(TOPIC, EXPORTER_GROUP, "siem", 10, Duration::ZERO);
            read.await.unwrap()
        };
        assert!(read().await.is_empty());
        running.publish(&[event("late")]).await;
        until(async || length(&store).await == 2).await;
        let late = read().await;
        assert_eq!(late.len(), 1);
        running.publish(&[event("later")]).await;
        until(async || length(&store).await == 3).await;
        assert!(bus.len(TOPIC).await.unwrap() >= 1, "held until the exporter has it");
        let later = read().await;
        let both: Vec<Position> = late.iter().chain(&later).map(|entry| entry.position).collect();
        bus.ack(TOPIC, EXPORTER_GROUP, &both).await.unwrap();
        running.publish(&[event("last")]).await;
        until(async || length(&store).await == 4).await;
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

    async fn an_unreachable_store_is_backpressure_and_not_the_consumers_fault(store: Store) {
        let running = Running::on(&store);
        running.publish(&events(0..5)).await;
        running.is_done().await;
        store.shutdown().await;
        running.publish(&events(5..10)).await;
        let failed = running.ingest.metrics().commit_failures.clone();
        until(async || failed.get() > 1).await;
        assert!(running.health.is_well(), "it waits for the store");
        assert_eq!(running.bus.group_lag(TOPIC, GROUP).await.unwrap().total(), 5);
        assert!(running.dead_letters().await.is_empty());
        running.stop().await;
    }

    async fn one_that_fails_while_others_succeed_is_a_dead_letter_in_the_end(store: Store) {
        if format!("{store:?}") == "Store(SQLite)" {
            return; // nothing that one row can do makes SQLite say that it may work later
        }
        change(&store, &sql::SLOW).await;
        change(&store, &sql::SLOW_TRIGGER).await;
        let running = Running::on(&store);
        running.publish(&[event("before"), event("poison"), event("after")]).await;
        // Others have to come along, or it may be the store that fails.
        let letter = async || running.dead_letters().await.pop();
        for n in 0.. {
            assert!(n < 400, "it never becomes a dead letter");
            if letter().await.is_some() {
                break;
            }
            running.publish(&[event(&format!("other-{n}"))]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        running.is_done().await;
        let letter = letter().await.unwrap();
        assert!(letter["reason"].starts_with("transient_exceeded_max_deliveries:"), "{letter:?}");
        assert_eq!(running.dead_letters().await.len(), 1);
        let ids = |text: &str| text.contains("poison");
        assert!(ids(&letter["src_data"]));
        length(&store).await;
        running.stop().await;
    }

    async fn one_that_is_refused_alone_does_not_hold_up_what_comes_later(store: Store) {
        change(&store, &sql::POISON).await;
        let mut tx = store.begin("poisoning").await.unwrap();
        tx.query(&sql::POISON_TRIGGER, &[]).await.unwrap();
        tx.commit().await.unwrap();
        let running = Running::on(&store);
        running.publish(&[event("poison")]).await;
        let failed = running.ingest.metrics().commit_failures.clone();
        until(async || failed.get() >= 4).await;
        assert!(running.dead_letters().await.is_empty(), "it may be the store that fails");
        running.publish(&events(0..5)).await;
        running.is_done().await;
        assert_eq!(length(&store).await, 5);
        let letters = running.dead_letters().await;
        assert_eq!(letters.len(), 1);
        assert!(letters[0]["reason"].starts_with("pg_permanent_error:"), "{letters:?}");
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
    let on_redis = || Arc::new(ingest(&store).with_bus(bus.clone()));
    let first = Running::with(bus.clone(), on_redis(), "ingester-1");
    let second = Running::with(bus.clone(), on_redis(), "ingester-2");
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

    // A store that is away: what was read waits on the bus, for whoever comes when it is back.
    let away = database.open().await;
    away.shutdown().await;
    let third = Arc::new(ingest(&away).with_bus(bus.clone()));
    let third = Running::with(bus.clone(), third, "ingester-3");
    third.publish(&events(5_010..5_020)).await;
    until(async || third.ingest.metrics().commit_failures.get() > 1).await;
    assert!(third.health.is_well());
    assert_eq!(bus.group_lag(TOPIC, GROUP).await.unwrap().total(), 10);
    third.stop().await;
    let fourth = Running::with(bus.clone(), on_redis(), "ingester-4");
    fourth.is_done().await;
    assert_eq!(length(&store).await, 5_020);
    assert!(fourth.dead_letters().await.is_empty());
    let poison = [fields(&[("data", "{}"), ("sig", "00")])];
    bus.append(TOPIC, &poison).await.unwrap();
    fourth.is_done().await;
    let letters = fourth.ingest.dead_letters();
    let letter = letters.list(Position::START, 10).await.unwrap().remove(0);
    assert_eq!(letter.reason(), "hmac_verify_failed");
    assert_eq!(
        letters.get(letter.position).await.unwrap().as_ref(),
        Some(&letter)
    );
    assert_eq!(letters.remove(&[letter.position]).await.unwrap(), 1);
    fourth.stop().await;
    store.shutdown().await;
    database.remove().await;
}
