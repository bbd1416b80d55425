//! Two replicas of every service: news reaches all of them, and one that is killed takes nothing with
//! it but what it had in hand.
//!
//! How fast is told, and asserted only where the machine is known to be idle (`XTEST_TIMINGS=1`);
//! `XTEST_TRIES` says how often each is tried.

use std::sync::Arc;
use std::time::{Duration, Instant};

use xtest::drill::Drill;
use xtest::probe::WORKERS;
use xtest::wishes::{pace, wants_any_of};
use xtest::world::{part_of, policy_set};
use xtest::{Agent, Deployment, Options, Part, Stack, World};

/// Nothing may take longer, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(10);

fn options() -> Options {
    Options::default()
        .replicas(2)
        .env("AUDIT_CLAIM_IDLE_SECS", "1")
        .env("STS_ADMIN_TOKEN", "sts-admin-token-of-a-test")
}

fn tries() -> usize {
    let set = std::env::var("XTEST_TRIES").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(20)
}

#[test]
fn news_reaches_every_replica() {
    xtest::on(
        Deployment::Distributed,
        options(),
        async |stack: Arc<Stack>| {
            let world = World::new(stack).await;
            let lifecycle = world.lifecycle().await;
            let took = revocations(&world, &lifecycle).await;
            tell("revocation", took);
            let took = activations(&world, &lifecycle).await;
            tell("policy activation", took);
            let took = rotations(&world, &lifecycle).await;
            tell("key rotation", took);
        },
    );
}

fn tell(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let (p50, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    xtest::visibly(&format!(
        "{what}, on both replicas: p50 {p50:?}, p99 {p99:?}, of {} tries",
        took.len()
    ));
    if std::env::var("XTEST_TIMINGS").is_ok_and(|set| set == "1") {
        assert!(p99 <= Duration::from_secs(1), "{what}: {p99:?}");
    }
}

/// Where the replicas of this service listen.
fn replicas(world: &World, part: Part) -> Vec<String> {
    let all = world.stack.replicas().into_iter();
    let of_it = all.filter(|(of, _)| *of == part);
    of_it.map(|(_, url)| url).collect()
}

/// From `since` until this is true.
async fn until(what: &str, since: Instant, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    while !holds().await {
        assert!(
            since.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    since.elapsed()
}

/// From the answer of the revoke call until every STS mints nothing and no Gateway lets pass.
async fn revocations(world: &World, lifecycle: &str) -> Vec<Duration> {
    let (stses, gateways) = (replicas(world, Part::Sts), replicas(world, Part::Gateway));
    let mut took = Vec::new();
    for _ in 0..tries() {
        let agent = world.agent_of(lifecycle.to_owned()).await;
        let mut mandates = Vec::new();
        for _ in &gateways {
            mandates.push(world.mandate(&agent).await);
        }
        world.revokes(&agent).await;
        let revoked = Instant::now();
        let mut longest = Duration::ZERO;
        for (gateway, mandate) in gateways.iter().zip(&mandates) {
            // Revocation is looked at before the mandate is used up.
            let told = until("a Gateway knows", revoked, async || {
                let answer = world.call_at(gateway, mandate).await.unwrap();
                answer.text("error_description") == "session revoked"
            });
            longest = longest.max(told.await);
        }
        for sts in &stses {
            let told = until("an STS knows", revoked, async || {
                world.mint_at(sts, &agent).await.unwrap().status == 403
            });
            longest = longest.max(told.await);
        }
        took.push(longest);
        ends(world, &agent).await;
    }
    took
}

/// From the answer of the activation until every STS decides by it.
async fn activations(world: &World, lifecycle: &str) -> Vec<Duration> {
    let (stack, zone) = (&world.stack, &world.zone);
    let agent = world.agent_of(lifecycle.to_owned()).await;
    let worlds = [world.clone()];
    let open = policy_set(stack, zone, &World::grants(&worlds, &["desk:read"])).await;
    let shut = policy_set(stack, zone, &World::grants(&worlds, &["desk:write"])).await;
    let mut took = Vec::new();
    for _ in 0..tries().div_ceil(2) {
        for (set, status) in [(&shut, 403), (&open, 200)] {
            set.activate(stack).await;
            let activated = Instant::now();
            let mut longest = Duration::ZERO;
            for sts in replicas(world, Part::Sts) {
                let told = until("an STS decides by it", activated, async || {
                    world.mint_at(&sts, &agent).await.unwrap().status == status
                });
                longest = longest.max(told.await);
            }
            took.push(longest);
        }
    }
    took
}

/// From the answer of an emergency rotation until every STS publishes the key, signs with it, and
/// every Gateway takes what it has signed.
async fn rotations(world: &World, lifecycle: &str) -> Vec<Duration> {
    let stack = &world.stack;
    let agent = world.agent_of(lifecycle.to_owned()).await;
    let (stses, gateways) = (replicas(world, Part::Sts), replicas(world, Part::Gateway));
    let mut took = Vec::new();
    for _ in 0..tries() {
        let url = format!(
            "{}/internal/zones/{}/signing-key/rotate?emergency=true",
            stses[0], world.zone
        );
        let token = stack.setting("STS_ADMIN_TOKEN");
        let made = stack
            .http
            .json("POST", url, token, &serde_json::json!({}))
            .await;
        let rotated = Instant::now();
        let kid = made.expect(200).text("kid");
        assert!(!kid.is_empty());
        let mut longest = Duration::ZERO;
        for sts in &stses {
            let keys = format!("{sts}/.well-known/jwks.json?zone_id={}", world.zone);
            let told = until("an STS publishes and signs", rotated, async || {
                let minted = world.mint_at(sts, &agent).await.unwrap().expect(200);
                let head = part_of(&minted.text("access_token"), 0);
                let published = stack.http.get(keys.clone(), None).await;
                let published = String::from_utf8_lossy(&published.body).contains(&kid);
                published && head["kid"] == *kid
            });
            longest = longest.max(told.await);
        }
        for gateway in &gateways {
            let told = until("a Gateway takes it", rotated, async || {
                let mandate = world.mandate(&agent).await;
                world.call_at(gateway, &mandate).await.unwrap().status == 200
            });
            longest = longest.max(told.await);
        }
        took.push(longest);
    }
    took
}

/// So that they do not stay live.
async fn ends(world: &World, agent: &Agent) {
    let path = format!("/agents/{}", agent.parent);
    world
        .asks("DELETE", &path, &agent.lifecycle)
        .await
        .expect(204);
}

#[test]
fn a_replica_that_is_killed_takes_with_it_what_it_had_in_hand_and_nothing_else() {
    if !wants_any_of("replicas") {
        return;
    }
    xtest::on(
        Deployment::Distributed,
        options(),
        async |stack: Arc<Stack>| {
            let mut drill = Drill::on(&stack).await;
            for part in Part::ALL {
                for nth in 0..2 {
                    let name = format!("one of two replicas of {} is killed", part.name());
                    let row = drill.suffers(
                        &name,
                        Duration::from_secs(3),
                        async |stack| stack.kill9_replica(part, nth),
                        async |stack| stack.starts_again(),
                    );
                    let Some(row) = Box::pin(row).await else {
                        continue;
                    };
                    // A worker has one call in hand at a time.
                    assert!(row.refused <= WORKERS, "{row:?}");
                    let full = pace().is_none();
                    assert!(!full || row.served > 10 * WORKERS, "{row:?}");
                }
            }
            Box::pin(drill.ends()).await;
        },
    );
}
