//! How long a mandate outlives the revocation of what it stands on.
//!
//! Embedded, the revoke call answers only when the Gateway of the same process knows. Distributed,
//! the news crosses processes; how fast it does is asserted only where the machine is known to be
//! idle (`XTEST_TIMINGS=1`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use xtest::{Agent, Deployment, Options, Stack, World};

const TRIES: usize = 200;

#[test]
fn embedded_the_very_next_call_is_refused() {
    xtest::on(
        Deployment::Embedded,
        Options::default(),
        async |stack: Arc<Stack>| {
            let world = World::new(stack).await;
            let lifecycle = world.lifecycle().await;
            for n in 0..TRIES {
                let agent = world.agent_of(lifecycle.clone()).await;
                let mandate = world.mandate(&agent).await;
                world.revokes(&agent).await;
                let answer = world.call(&mandate).await.unwrap();
                assert_eq!(
                    (answer.status, &*answer.text("error")),
                    (401, "invalid_token"),
                    "try {n}"
                );
                let answer = world.mint(&agent).await.unwrap();
                assert_eq!(
                    (answer.status, &*answer.text("error")),
                    (403, "access_denied"),
                    "try {n}"
                );
                ends(&world, &agent).await;
            }
            assert_eq!(world.reached(), 0);
        },
    );
}

#[test]
fn embedded_the_end_of_a_session_refuses_the_very_next_call() {
    xtest::on(
        Deployment::Embedded,
        Options::default(),
        async |stack: Arc<Stack>| {
            let world = World::new(stack).await;
            let lifecycle = world.lifecycle().await;
            for n in 0..TRIES {
                let agent = world.agent_of(lifecycle.clone()).await;
                let mandate = world.mandate(&agent).await;
                let path = format!("/agents/{}", agent.session);
                world.asks("DELETE", &path, &lifecycle).await.expect(204);
                let answer = world.call(&mandate).await.unwrap();
                assert_eq!(
                    (answer.status, &*answer.text("error")),
                    (401, "invalid_token"),
                    "try {n}"
                );
                ends(&world, &agent).await;
            }
            assert_eq!(world.reached(), 0);
        },
    );
}

#[test]
fn distributed_the_news_arrives_before_patience_ends() {
    xtest::on(
        Deployment::Distributed,
        Options::default(),
        async |stack: Arc<Stack>| {
            let world = World::new(stack).await;
            let lifecycle = world.lifecycle().await;
            let mut took = Vec::new();
            for _ in 0..TRIES {
                let agent = world.agent_of(lifecycle.clone()).await;
                let mut mandates = Vec::new();
                for _ in 0..PAUSES.len() {
                    mandates.push(world.mandate(&agent).await);
                }
                world.revokes(&agent).await;
                took.push(refused_after(&world, &mandates).await);
                ends(&world, &agent).await;
            }
            took.sort_unstable();
            let (p50, p99) = (took[TRIES / 2], took[TRIES * 99 / 100]);
            xtest::visibly(&format!(
                "revoke answered -> first refusal: p50 {p50:?}, p99 {p99:?}"
            ));
            let bound = match std::env::var("XTEST_TIMINGS") {
                Ok(set) if set == "1" => Duration::from_millis(100),
                _ => Duration::from_secs(5),
            };
            assert!(p99 < bound, "{p99:?} is not under {bound:?}");
        },
    );
}

/// Waits before each look: a look spends a mandate, so the first ones are close together.
const PAUSES: [u64; 10] = [0, 0, 1, 2, 4, 8, 20, 60, 900, 4000];

/// From now, which is the answer of the revoke call, to the first refusal.
async fn refused_after(world: &World, mandates: &[String]) -> Duration {
    let revoked = Instant::now();
    for (mandate, pause) in mandates.iter().zip(PAUSES) {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        // The news may also cut off what a look had begun.
        let Ok(answer) = world.call(mandate).await else {
            continue;
        };
        if answer.status != 200 {
            assert_eq!(
                (answer.status, &*answer.text("error")),
                (401, "invalid_token")
            );
            return revoked.elapsed();
        }
    }
    panic!(
        "a revoked Delegation still works after {:?}",
        revoked.elapsed()
    );
}

/// Two hundred pairs of Sessions would otherwise stay live.
async fn ends(world: &World, agent: &Agent) {
    let path = format!("/agents/{}", agent.parent);
    world
        .asks("DELETE", &path, &agent.lifecycle)
        .await
        .expect(204);
}
