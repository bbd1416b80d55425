//! What a client was told is on record, exactly once, however the services die: workers mint and call
//! without pause ([`xtest::probe`]) while processes are killed at random moments and started again.
//! After each round the ledger holds exactly the events that the answers stand for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use xtest::probe::{Probe, Promised, Replays, below, now};
use xtest::{Deployment, Options, Part, Stack, World};

/// A kill comes at most this long after the load began.
const LATEST_KILL_MS: u64 = 400;

/// How long it may take until something is served.
const SERVED_WITHIN: Duration = Duration::from_secs(60);

/// What the distributed rounds kill, in turn.
const TARGETS: [&[Part]; 6] = [
    &[Part::Sts],
    &[Part::Gateway],
    &[Part::Audit],
    &[Part::Coordinator, Part::Api],
    &[Part::Sts, Part::Gateway, Part::Audit],
    &Part::ALL,
];

#[test]
fn embedded_no_decision_is_lost_or_doubled_by_a_kill() {
    xtest::on(Deployment::Embedded, Options::default(), scenario);
}

#[test]
fn distributed_no_decision_is_lost_or_doubled_by_a_kill() {
    // What a killed Audit had read is taken over by the next one after this.
    let options = Options::default().env("AUDIT_CLAIM_IDLE_SECS", "1");
    xtest::on(Deployment::Distributed, options, scenario);
}

async fn scenario(stack: Arc<Stack>) {
    let world = World::new(stack).await;
    let rounds = rounds();
    let began = now();
    let mut promised = Promised::default();
    let replays = Arc::new(Replays::default());
    for round in 0..rounds {
        let targets = TARGETS[round % TARGETS.len()];
        let since = now();
        let told = kill_under_load(&world, &replays, targets).await;
        assert!(
            told.statuses.keys().any(|what| what.ends_with(" 200")),
            "{:?}",
            told.statuses
        );
        told.are_recorded(
            &world,
            &since,
            &format!("round {round}, killed {targets:?}"),
        )
        .await;
        promised.add(told);
    }
    promised
        .are_recorded(&world, &began, "after every round")
        .await;
    let verified = world.stack.caracal("audit verify").await;
    assert!(verified.status.success(), "{verified:?}");
    let (answers, statuses) = (promised.events.len(), &promised.statuses);
    xtest::visibly(&format!(
        "{rounds} rounds, {answers} decisions on record: {statuses:?}"
    ));
}

fn rounds() -> usize {
    let set = std::env::var("XTEST_KILL_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    set.unwrap_or(if cfg!(debug_assertions) { 5 } else { 50 })
}

/// One round: load, a kill in the middle of it, a restart below it.
async fn kill_under_load(world: &World, replays: &Arc<Replays>, targets: &[Part]) -> Promised {
    let probe = Probe::start(world, replays, None).await;
    // Something was promised before the kill, however slow the machine is.
    probe.is_served(Instant::now(), 1, SERVED_WITHIN).await;
    tokio::time::sleep(Duration::from_millis(below(LATEST_KILL_MS))).await;
    world.stack.kill9(targets);
    // What is left alone goes on for a while.
    tokio::time::sleep(Duration::from_millis(below(200))).await;
    world.stack.restart().await;
    tokio::time::sleep(Duration::from_millis(below(100))).await;
    probe.stop().await
}
