//! Sinks that fail, disks that are full, queues that overflow.

use std::sync::atomic::Ordering;

use caracal_model::{Refusal, Refused};

use super::*;
use crate::{EvidenceError, OpenError};

#[tokio::test]
async fn a_sink_that_fails_loses_nothing_and_sees_again_only_what_it_did_not_take() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let shelf = Arc::new(Shelf::default());
    let broken = [3, 0, 700, 5_000].map(Answer::BreakAfter);
    let answers = [&[Answer::Refuse; 2][..], &broken].concat();
    let failures = answers.len() as u64;
    *shelf.answers.lock() = answers.into();
    log.record(&(0..2_500).map(event).collect::<Vec<_>>())
        .await
        .unwrap();
    let relay = Running::start(drain, &shelf);
    let stats = until(&log, |stats| stats.pending == 0).await;
    relay.stop().await;
    assert_eq!(stats.sink_errors, failures);
    assert_eq!(shelf.distinct(), ids(0..2_500));
    // Of the first batch 3, then 0, then 700, then all 1000 came before it was acknowledged.
    assert_eq!(shelf.ids().len(), 2_500 + 3 + 700 + 1_000);
    assert_eq!(shelf.ids()[1_703..], ids(0..2_500));
    log.close().await;
    assert!(on_disk(dir.path()).is_empty());
}

/// Refuses a batch of nothing but the first event, as a ledger does that takes others.
#[derive(Default)]
struct Picky(Shelf);

#[async_trait]
impl Sink for Picky {
    async fn deliver(&self, batch: &[Pending]) -> Result<crate::Delivered, SinkError> {
        match batch {
            [only] if only.id.as_str() == "evt-0" => Err(SinkError::new("no")),
            _ => self.0.deliver(batch).await,
        }
    }
}

#[tokio::test]
async fn an_event_that_is_refused_alone_does_not_hold_up_those_that_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    record(&log, 0..1).await;
    let picky = Arc::new(Picky::default());
    let stop = CancellationToken::new();
    let relay = Relay::new(drain, picky.clone(), Arc::new(OsRng)).run(stop.clone());
    let others = async {
        until(&log, |stats| stats.sink_errors > 1).await;
        record(&log, 1..3).await;
        until(&log, |stats| stats.pending == 0).await;
        stop.cancel();
    };
    tokio::join!(relay, others);
    assert_eq!(picky.0.ids(), ids(0..3));
    log.close().await;
}

#[tokio::test]
async fn a_backlog_larger_than_memory_keeps_is_delivered_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    for chunk in 0..20 {
        log.record(
            &(chunk * 1_000..(chunk + 1) * 1_000)
                .map(event)
                .collect::<Vec<_>>(),
        )
        .await
        .unwrap();
    }
    assert_eq!(log.stats().pending, 20_000);
    let shelf = Arc::new(Shelf::default());
    let relay = Running::start(drain, &shelf);
    record(&log, 20_000..20_050).await;
    until(&log, |stats| stats.pending == 0).await;
    relay.stop().await;
    assert_eq!(shelf.ids(), ids(0..20_050));
    log.close().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_dead_sink_longer_than_the_grace_period() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let shelf = Arc::new(Shelf::default());
    shelf.away.store(true, Ordering::SeqCst);
    let relay = Running::start(drain, &shelf);
    record(&log, 0..10).await;
    tokio::time::timeout(Duration::from_secs(30), relay.stop())
        .await
        .unwrap();
    log.close().await;
    assert_eq!(on_disk(dir.path()), ids(0..10));

    // The next process delivers them.
    let (log, drain) = open(dir.path());
    let stats = log.stats();
    assert_eq!((stats.pending, stats.files), (10, 1));
    shelf.away.store(false, Ordering::SeqCst);
    let relay = Running::start(drain, &shelf);
    record(&log, 10..12).await;
    relay.stop().await;
    assert_eq!(shelf.ids(), ids(0..12));
    assert_eq!(log.stats().replayed, 10);
    log.close().await;
}

#[tokio::test]
async fn a_shutdown_delivers_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let shelf = Arc::new(Shelf::default());
    *shelf.answers.lock() = [Answer::Refuse; 2].into();
    log.record(&(0..3_000).map(event).collect::<Vec<_>>())
        .await
        .unwrap();
    Running::start(drain, &shelf).stop().await;
    assert_eq!(shelf.ids(), ids(0..3_000));
    log.close().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_what_already_happened_waits_instead() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(SystemClock::new());
    let opened = EvidenceLog::open_with(dir.path(), "test", Durability::Process, clock, 1);
    let (log, _drain) = opened.unwrap();
    // Somebody else's write lock holds the writer up.
    let holder = rusqlite::Connection::open(dir.path().join("evidence-test.db")).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();

    let mut waiting = tokio::task::JoinSet::new();
    let mut refused = 0;
    for number in 0..10 {
        let mut recording = Box::pin({
            let log = log.clone();
            async move { log.record(&[event(number)]).await }
        });
        // One poll queues the event, or refuses it.
        match futures_poll(recording.as_mut()).await {
            Some(answer) => {
                assert!(
                    matches!(answer, Err(EvidenceError::Overloaded)),
                    "{answer:?}"
                );
                refused += 1;
            }
            None => drop(waiting.spawn(recording)),
        }
    }
    assert!((7..10).contains(&refused), "{refused}");
    let late = log.clone();
    waiting.spawn(async move { late.record_after_the_fact(&[event(99)]).await });
    tokio::task::yield_now().await;
    holder.execute_batch("ROLLBACK").unwrap();
    let answers = waiting.join_all().await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(log.stats().persisted, answers.len() as u64);
    assert!(!log.lost(), "whoever was refused does not count as lost");
    log.close().await;
    assert!(on_disk(dir.path()).contains(&"evt-99".to_owned()));
}

/// The answer of a future that has one after a single poll.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        std::task::Poll::Ready(answer) => std::task::Poll::Ready(Some(answer)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

/// A record of ordinary length, so that a full disk is noticed.
fn long_event(number: usize) -> Event {
    let mut metadata = serde_json::Map::new();
    metadata.insert("resource".to_owned(), "x".repeat(8_192).into());
    event(number).metadata(metadata)
}

fn long_denial(number: usize) -> Event {
    Event {
        decision: "deny".into(),
        ..long_event(number)
    }
}

#[tokio::test]
async fn an_allow_that_was_taken_back_for_want_of_evidence_is_not_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let shelf = Arc::new(Shelf::default());
    let relay = Running::start(drain, &shelf);
    log.execute("PRAGMA max_page_count = 1").await;
    // One decision: what goes with an allow goes the way of it.
    let decision = vec![long_event(1), long_denial(2)];
    log.record(&decision).await.unwrap_err();
    log.record(&[long_denial(3)]).await.unwrap_err();
    log.record_after_the_fact(&[long_event(4)])
        .await
        .unwrap_err();
    log.execute("PRAGMA max_page_count = 1000000").await;
    record(&log, 5..6).await;
    until(&log, |stats| stats.pending == 0).await;
    relay.stop().await;
    let mut kept = shelf.distinct();
    kept.sort();
    assert_eq!(kept, ["evt-3", "evt-4", "evt-5"]);
    assert!(!log.lost());
    log.close().await;
}

#[tokio::test]
async fn a_full_disk_refuses_but_the_event_still_goes_to_the_sink() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let shelf = Arc::new(Shelf::default());
    let relay = Running::start(drain, &shelf);
    record(&log, 0..1).await;
    log.execute("PRAGMA max_page_count = 1").await;
    let refused = log.record(&[long_denial(1)]).await.unwrap_err();
    assert!(
        matches!(refused, EvidenceError::Unwritable { .. }),
        "{refused}"
    );
    assert!(!log.is_writable());
    let refused = Refused::from(refused);
    assert_eq!(refused.refusal, Refusal::Unavailable);
    assert!(!refused.description.contains("disk"));

    log.execute("PRAGMA max_page_count = 1000000").await;
    record(&log, 2..3).await;
    assert!(log.is_writable());
    until(&log, |stats| stats.pending == 0).await;
    relay.stop().await;
    assert_eq!(shelf.distinct().len(), 3);
    assert!(!log.lost());
    log.close().await;
    assert!(on_disk(dir.path()).is_empty());
}

#[tokio::test]
async fn all_who_ask_at_once_are_told_that_the_log_takes_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _drain) = open(dir.path());
    let ask = || (0..2_000).all(|_| log.is_writable());
    std::thread::scope(|threads| {
        let asking: Vec<_> = (0..4).map(|_| threads.spawn(ask)).collect();
        assert!(asking.into_iter().all(|told| told.join().unwrap()));
    });
    log.close().await;
}

#[tokio::test]
async fn a_disk_that_recovers_is_found_out_without_an_event() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _drain) = open(dir.path());
    log.execute("PRAGMA max_page_count = 1").await;
    log.record(&[long_event(1)]).await.unwrap_err();
    assert!(!log.is_writable());
    log.execute("PRAGMA max_page_count = 1000000").await;
    for _ in 0..1_000 {
        if log.is_writable() {
            return log.close().await;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("still not writable");
}

#[tokio::test]
async fn an_event_that_can_be_neither_logged_nor_sent_is_lost_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open(dir.path());
    let shelf = Arc::new(Shelf::default());
    shelf.away.store(true, Ordering::SeqCst);
    let relay = Running::start(drain, &shelf);
    log.execute("PRAGMA max_page_count = 1").await;
    log.record(&[long_denial(1), long_denial(2)])
        .await
        .unwrap_err();
    let stats = until(&log, |stats| stats.dropped > 0).await;
    assert_eq!(stats.dropped, 2);
    assert!(log.lost());
    relay.stop().await;
    log.close().await;
}

#[tokio::test]
async fn one_process_holds_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _drain) = open(dir.path());
    let clock = Arc::new(SystemClock::new());
    let again = EvidenceLog::open(dir.path(), "test", Durability::Process, clock.clone());
    assert!(matches!(again.unwrap_err(), OpenError::InUse { .. }));
    let (other, _other_drain) =
        EvidenceLog::open(dir.path(), "other", Durability::Process, clock).unwrap();
    other.close().await;
    log.close().await;
    let (log, _drain) = open(dir.path());
    log.close().await;
}

#[tokio::test]
async fn a_closed_log_refuses_and_counts_what_can_no_longer_be_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _drain) = open(dir.path());
    log.record(&[]).await.unwrap();
    log.close().await;
    let refused = log.record(&[event(1)]).await;
    assert!(matches!(refused, Err(EvidenceError::Closed)));
    assert!(!log.lost());
    log.record_after_the_fact(&[event(1)]).await.unwrap_err();
    assert_eq!(log.stats().dropped, 1);
}

#[test]
fn files_and_directory_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("replay");
    let (_log, _drain) = open(&inner);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    for file in [
        "evidence-test.db",
        "evidence-test.db-wal",
        "evidence-test.lock",
    ] {
        assert_eq!(mode(&inner.join(file)), 0o600, "{file}");
    }
}

#[test]
fn a_file_that_is_no_log_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evidence-test.db");
    std::fs::write(
        &path,
        "not a database, and longer than a header would be".repeat(4),
    )
    .unwrap();
    let clock = Arc::new(SystemClock::new());
    let refused = EvidenceLog::open(dir.path(), "test", Durability::Process, clock);
    assert!(matches!(refused.unwrap_err(), OpenError::Log { .. }));
    assert!(
        std::fs::read_to_string(&path)
            .unwrap()
            .starts_with("not a database")
    );
}
