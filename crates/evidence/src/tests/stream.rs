//! A stream is no place to keep: what was sent on one waits here until the ledger has it.

use caracal_bus::Progress;

use super::*;
use crate::{Delivered, LEDGER_GROUP};

/// A stream whose server can lose what it has, and a ledger that reads it when told to.
struct Stream {
    bus: Mutex<Bus>,
    losses: std::sync::atomic::AtomicUsize,
}

impl Stream {
    async fn new() -> Arc<Self> {
        Arc::new(Self {
            bus: Mutex::new(Self::empty().await),
            losses: std::sync::atomic::AtomicUsize::new(0),
        })
    }

    async fn empty() -> Bus {
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        let topic = Topic::AuditEvents.name();
        bus.ensure_group(topic, LEDGER_GROUP, true).await.unwrap();
        bus
    }

    fn bus(&self) -> Bus {
        self.bus.lock().clone()
    }

    /// As a server that was started again without its data.
    async fn loses_everything(&self) {
        let empty = Self::empty().await;
        *self.bus.lock() = empty;
        self.losses
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }

    /// What the ledger takes now; at most so many.
    async fn read(&self, limit: usize) -> Vec<String> {
        let (bus, topic) = (self.bus(), Topic::AuditEvents.name());
        let read = bus.read_group(topic, LEDGER_GROUP, "one", limit, Duration::ZERO);
        let read = read.await.unwrap();
        let positions: Vec<Position> = read.iter().map(|entry| entry.position).collect();
        bus.ack(topic, LEDGER_GROUP, &positions).await.unwrap();
        read.iter()
            .map(|entry| entry.fields["id"].clone())
            .collect()
    }
}

#[async_trait]
impl Sink for Stream {
    async fn deliver(&self, batch: &[Pending]) -> Result<Delivered, SinkError> {
        BusSink::new(self.bus(), None).deliver(batch).await
    }

    async fn progress(&self) -> Result<Option<Progress>, SinkError> {
        let losses = self.losses.load(std::sync::atomic::Ordering::SeqCst);
        let progress = BusSink::new(self.bus(), None).progress().await?;
        Ok(progress.map(|progress| Progress {
            history: format!("{}-{losses}", progress.history),
            ..progress
        }))
    }
}

#[tokio::test]
async fn what_was_sent_is_kept_until_the_ledger_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let stream = Stream::new().await;
    let relay = Running::start(drain, &stream);
    for numbers in [0..3, 3..5] {
        record(&log, numbers).await;
        // What is told apart is what was sent apart.
        until(&log, |stats| stats.pending == 0).await;
    }
    let stats = log.stats();
    assert_eq!((stats.on_the_way, stats.delivered), (5, 0));
    assert_eq!(on_disk(dir.path()), ids(0..5));
    assert_eq!(stream.read(3).await, ids(0..3));
    until(&log, |stats| stats.on_the_way == 2).await;
    assert_eq!(stream.read(9).await, ids(3..5));
    let stats = until(&log, |stats| stats.on_the_way == 0).await;
    assert_eq!((stats.delivered, stats.resent), (5, 0));
    relay.stop().await;
    log.close().await;
    assert!(on_disk(dir.path()).is_empty());
}

#[tokio::test]
async fn what_a_stream_may_have_lost_is_sent_again_and_what_arrived_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let stream = Stream::new().await;
    let relay = Running::start(drain, &stream);
    for numbers in [0..20, 20..50] {
        record(&log, numbers).await;
        until(&log, |stats| stats.pending == 0).await;
    }
    assert_eq!(stream.read(20).await, ids(0..20));
    until(&log, |stats| stats.on_the_way == 30).await;
    stream.loses_everything().await;
    // Also what is sent to the next one before the loss is noticed comes again, in order.
    record(&log, 50..60).await;
    let stats = until(&log, |stats| stats.pending == 0 && stats.resent >= 30).await;
    assert!(stats.resent <= 40, "{stats:?}");
    let mut got = Vec::new();
    while log.stats().on_the_way > 0 {
        got.extend(stream.read(100).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut distinct = got.clone();
    distinct.sort();
    distinct.dedup();
    let mut wanted = ids(20..60);
    wanted.sort();
    assert_eq!(distinct, wanted);
    assert!(got.ends_with(&ids(20..60)), "in order: {got:?}");
    relay.stop().await;
    log.close().await;
    assert!(on_disk(dir.path()).is_empty());
}

#[tokio::test]
async fn what_had_not_arrived_at_the_end_is_sent_again_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let stream = Stream::new().await;
    let relay = Running::start(drain, &stream);
    record(&log, 0..3).await;
    until(&log, |stats| stats.on_the_way == 3).await;
    tokio::time::timeout(Duration::from_secs(5), relay.stop())
        .await
        .unwrap();
    log.close().await;
    assert_eq!(on_disk(dir.path()), ids(0..3));

    let (log, drain) = open(dir.path());
    assert_eq!(log.stats().pending, 3);
    let relay = Running::start(drain, &stream);
    until(&log, |stats| stats.on_the_way == 3).await;
    assert_eq!(stream.read(9).await, [ids(0..3), ids(0..3)].concat());
    until(&log, |stats| stats.replayed == 3).await;
    relay.stop().await;
    log.close().await;
    assert!(on_disk(dir.path()).is_empty());
}

#[tokio::test]
async fn a_ledger_that_is_away_for_long_is_not_remembered_batch_by_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let stream = Stream::new().await;
    let relay = Running::start(drain, &stream);
    for number in 0..200 {
        record(&log, number..number + 1).await;
        until(&log, |stats| stats.pending == 0).await;
    }
    assert_eq!(log.stats().on_the_way, 200);
    assert_eq!(stream.read(150).await, ids(0..150));
    until(&log, |stats| (50..=137).contains(&stats.on_the_way)).await;
    assert_eq!(stream.read(150).await, ids(150..200));
    until(&log, |stats| stats.on_the_way == 0).await;
    relay.stop().await;
    log.close().await;
}
