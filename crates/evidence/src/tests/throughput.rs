//! Not a check but a measurement: `cargo test -p caracal-evidence -- --ignored --nocapture rate`.

use caracal_model::Clock as _;

use super::*;

async fn rate(durability: Durability, callers: usize, each: usize, sink: bool) {
    let dir = tempfile::tempdir().unwrap();
    let (log, drain) = open_as(dir.path(), durability);
    let relay = sink.then(|| Running::start(drain, &Arc::new(Shelf::default())));
    let mut metadata = serde_json::Map::new();
    for name in [
        "application_id",
        "resource",
        "session_id",
        "agent_session_id",
        "subject_kind",
    ] {
        metadata.insert(
            name.to_owned(),
            "0199c0de-0000-7000-8000-000000000001".into(),
        );
    }
    let made = event(1).metadata(metadata);
    let clock = SystemClock::new();
    let start = clock.ticks();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let (log, made) = (log.clone(), made.clone());
        all.spawn(async move {
            for _ in 0..each {
                log.record(std::slice::from_ref(&made)).await.unwrap();
            }
        });
    }
    all.join_all().await;
    let took = clock.ticks().since(start);
    let events = callers * each;
    println!(
        "{durability:?}, {callers} callers, relay {sink}: {:.0} events/s, {:.1} us each",
        events as f64 / took.as_secs_f64(),
        took.as_secs_f64() * 1e6 / events as f64
    );
    if let Some(relay) = relay {
        until(&log, |stats| stats.pending == 0).await;
        println!("  delivered after {:?}", clock.ticks().since(start));
        relay.stop().await;
    }
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn rate_of_recording() {
    for durability in [Durability::Process, Durability::Machine] {
        rate(durability, 1, 2_000, false).await;
        rate(durability, 16, 1_000, true).await;
        rate(durability, 512, 200, false).await;
        rate(durability, 512, 200, true).await;
    }
}
