//! The promises of the log, tested through its public face.

mod kill;
mod spool;
mod stream;
mod throughput;
mod trouble;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use caracal_bus::{Bus, Position};
use caracal_crypto::{HmacKey, OsRng, SystemClock};
use caracal_ledger::Event;
use caracal_model::{EventId, Secret, Timestamp, Topic, ZoneId};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{BusSink, Drain, Durability, EvidenceLog, Pending, Relay, Sink, SinkError, Stats};

pub fn event(number: usize) -> Event {
    Event::new(
        EventId::trusted(format!("evt-{number}")),
        ZoneId::trusted("zone-1"),
        "token_exchange",
        "req-1",
        "allow",
        "complete",
        Timestamp::from_unix_seconds(1_779_364_800),
    )
}

pub fn ids(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("evt-{number}")).collect()
}

pub fn open(dir: &Path) -> (EvidenceLog, Drain) {
    open_as(dir, Durability::Process)
}

pub fn open_as(dir: &Path, durability: Durability) -> (EvidenceLog, Drain) {
    EvidenceLog::open(dir, "test", durability, Arc::new(SystemClock::new())).unwrap()
}

pub async fn record(log: &EvidenceLog, numbers: std::ops::Range<usize>) {
    for number in numbers {
        log.record(&[event(number)]).await.unwrap();
    }
}

/// How the sink answers one delivery.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// Keeps nothing and says so.
    Refuse,
    /// Keeps so many, then fails: what a connection that breaks looks like.
    BreakAfter(usize),
}

/// Keeps what it is given; answers as told, then well.
#[derive(Debug, Default)]
pub struct Shelf {
    pub kept: Mutex<Vec<Pending>>,
    pub answers: Mutex<VecDeque<Answer>>,
    pub away: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl Sink for Shelf {
    async fn deliver(&self, batch: &[Pending]) -> Result<crate::Delivered, SinkError> {
        if self.away.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(SinkError::new("away"));
        }
        let answer = self.answers.lock().pop_front();
        let taken = match answer {
            None => batch.len(),
            Some(Answer::Refuse) => 0,
            Some(Answer::BreakAfter(count)) => count.min(batch.len()),
        };
        self.kept.lock().extend_from_slice(&batch[..taken]);
        answer.map_or(Ok(crate::Delivered::Kept), |answer| {
            Err(SinkError::new(format!("{answer:?}")))
        })
    }
}

impl Shelf {
    pub fn ids(&self) -> Vec<String> {
        self.kept
            .lock()
            .iter()
            .map(|event| event.id.to_string())
            .collect()
    }

    /// Without what came again, in the order in which each came first.
    pub fn distinct(&self) -> Vec<String> {
        let mut seen = std::collections::HashSet::new();
        self.ids()
            .into_iter()
            .filter(|id| seen.insert(id.clone()))
            .collect()
    }
}

/// A relay that runs until it is stopped.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test owns the task and waits for it"
    )]
    pub fn start<S: Sink + 'static>(drain: Drain, sink: &Arc<S>) -> Self {
        let relay =
            Relay::new(drain, sink.clone(), Arc::new(OsRng)).with_grace(Duration::from_secs(5));
        let stop = CancellationToken::new();
        Self {
            task: tokio::spawn(relay.run(stop.clone())),
            stop,
        }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Waits until the numbers are as they should be.
pub async fn until(log: &EvidenceLog, condition: impl Fn(&Stats) -> bool) -> Stats {
    for _ in 0..2_000 {
        let stats = log.stats();
        if condition(&stats) {
            return stats;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never so: {:?}", log.stats());
}

/// What the file of a closed log holds.
pub fn on_disk(dir: &Path) -> Vec<String> {
    let file = rusqlite::Connection::open(dir.join("evidence-test.db")).unwrap();
    let mut select = file.prepare("SELECT id FROM pending ORDER BY seq").unwrap();
    let rows = select.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

#[tokio::test]
async fn everything_recorded_is_delivered_in_order_and_then_deleted() {
    for durability in [Durability::Process, Durability::Machine] {
        let dir = tempfile::tempdir().unwrap();
        let (log, drain) = open_as(dir.path(), durability);
        let shelf = Arc::new(Shelf::default());
        let relay = Running::start(drain, &shelf);
        log.record(&(0..3).map(event).collect::<Vec<_>>())
            .await
            .unwrap();
        record(&log, 3..100).await;
        let stats = until(&log, |stats| stats.pending == 0).await;
        assert_eq!(
            (stats.persisted, stats.delivered, stats.replayed),
            (100, 100, 0)
        );
        assert_eq!(
            (stats.bytes, stats.files, stats.oldest_age),
            (0, 0, Duration::ZERO)
        );
        assert_eq!(shelf.ids(), ids(0..100));
        assert_eq!(shelf.kept.lock()[7].wire, event(7).to_wire());
        relay.stop().await;
        log.close().await;
        assert!(on_disk(dir.path()).is_empty());
        assert!(!log.lost());
    }
}

#[tokio::test]
async fn what_was_taken_is_deleted_soon_also_when_nothing_more_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let relay = Running::start(drain, &Arc::new(Shelf::default()));
    record(&log, 0..3).await;
    for _ in 0..400 {
        if on_disk(dir.path()).is_empty() {
            relay.stop().await;
            return log.close().await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("still there: {:?}", on_disk(dir.path()));
}

#[tokio::test]
async fn an_event_is_not_deleted_before_a_sink_has_taken_it() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let shelf = Arc::new(Shelf::default());
    shelf.away.store(true, std::sync::atomic::Ordering::SeqCst);
    let relay = Running::start(drain, &shelf);
    record(&log, 0..5).await;
    until(&log, |stats| stats.sink_errors > 1).await;
    relay.stop().await;
    log.close().await;
    assert_eq!(on_disk(dir.path()), ids(0..5));
}

#[tokio::test]
async fn concurrent_callers_each_get_their_events_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let callers = (0..50).map(|caller| {
        let log = log.clone();
        async move {
            for number in 0..20 {
                log.record(&[event(caller * 20 + number)]).await.unwrap();
            }
        }
    });
    let mut all = tokio::task::JoinSet::new();
    callers.for_each(|caller| drop(all.spawn(caller)));
    all.join_all().await;

    let shelf = Arc::new(Shelf::default());
    let relay = Running::start(drain, &shelf);
    relay.stop().await;
    log.close().await;
    let (mut got, mut wanted) = (shelf.ids(), ids(0..1_000));
    // Each caller's own events keep their order.
    let own: Vec<_> = got
        .iter()
        .filter(|id| ids(0..20).contains(id))
        .cloned()
        .collect();
    assert_eq!(own, ids(0..20));
    got.sort();
    wanted.sort();
    assert_eq!(got, wanted);
}

#[tokio::test]
async fn the_stream_carries_id_text_and_signature() {
    let dir = tempfile::tempdir().unwrap();
    let key = HmacKey::from_bytes(Secret::new(vec![7; 32]));
    for key in [Some(key), None] {
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        let sink = BusSink::new(bus.clone(), key.clone());
        let wire = event(1).to_wire();
        let batch = [Pending {
            id: event(1).id,
            wire: wire.clone(),
        }];
        sink.deliver(&batch).await.unwrap();
        let from = [(Topic::AuditEvents.name(), Position::START)];
        let entries = bus.tail(&from, Duration::ZERO, 10).await.unwrap();
        assert_eq!(entries.len(), 1);
        let fields = &entries[0].fields;
        assert_eq!((fields["id"].as_str(), &fields["data"]), ("evt-1", &wire));
        match key {
            Some(key) => assert!(key.verify_hex(wire.as_bytes(), &fields["sig"])),
            None => assert!(!fields.contains_key("sig")),
        }
    }
    drop(dir);
}

#[tokio::test]
async fn what_waits_is_counted_beside_a_running_process() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent");
    assert_eq!(crate::waiting(&absent).unwrap(), []);
    let (log, _drain) = open(directory.path());
    record(&log, 0..3).await;
    let [found] = crate::waiting(directory.path())
        .unwrap()
        .try_into()
        .unwrap();
    assert_eq!(
        (found.events, found.path.ends_with("evidence-test.db")),
        (3, true)
    );
    assert!(found.bytes > 0 && found.oldest.is_some(), "{found:?}");
    std::fs::write(directory.path().join("evidence-bad.db"), "not a database").unwrap();
    assert!(crate::waiting(directory.path()).is_err());
}
