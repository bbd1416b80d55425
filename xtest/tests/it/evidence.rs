//! What a client was told is on record, exactly once, however the services die.
//!
//! Several workers mint and call without pause while processes are killed at random moments and
//! started again. Each answer that arrived in full names its request; after each round the ledger
//! holds exactly the events that this answer stands for. An answer that broke off promises nothing,
//! and is not looked at, except that no event of it may be there twice.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::{Clock as _, Rng as _};
use parking_lot::Mutex;
use serde_json::Value;
use xtest::http::Answer;
use xtest::world::kind;
use xtest::{Agent, CALLED, DENIED, Deployment, MINTED, Options, Part, REPLAYED, Stack, World};

const WORKERS: usize = 6;
/// A kill comes at most this long after the load began.
const LATEST_KILL_MS: u64 = 400;
/// How long evidence may take from a local log to the ledger.
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);

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
    let replays = Arc::new(Replays(Mutex::new(Instant::now())));
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

fn now() -> String {
    SystemClock::new().now().iso_millis()
}

fn below(bound: u64) -> u64 {
    let mut bytes = [0u8; 8];
    OsRng.fill(&mut bytes);
    u64::from_le_bytes(bytes) % bound
}

/// Events that complete answers stand for, by request id.
#[derive(Default)]
struct Promised {
    events: BTreeMap<String, Vec<&'static str>>,
    statuses: BTreeMap<String, usize>,
}

impl Promised {
    fn answer(&mut self, what: &str, answer: &Answer, stands_for: &[&'static str]) {
        *self
            .statuses
            .entry(format!("{what} {}", answer.status))
            .or_default() += 1;
        if !stands_for.is_empty() {
            let before = self.events.insert(answer.request_id(), stands_for.to_vec());
            assert!(
                before.is_none(),
                "two answers with the request id {}",
                answer.request_id()
            );
        }
    }

    fn mint(&mut self, answer: &Answer) {
        let stands_for: &[_] = match answer.status {
            200 => MINTED,
            403 => DENIED,
            _ => &[],
        };
        self.answer("mint", answer, stands_for);
        assert!(
            [200, 403, 503].contains(&answer.status),
            "{}",
            String::from_utf8_lossy(&answer.body)
        );
    }

    fn call(&mut self, answer: &Answer) {
        let replay = answer.text("error_description").contains("replay");
        let stands_for: &[_] = match answer.status {
            200 => CALLED,
            // The Gateway is alone with this one: a replay that it saw itself.
            401 if replay => REPLAYED,
            _ => &[],
        };
        self.answer("call", answer, stands_for);
        // Its STS may be dead at this moment: 502 and 504 say so.
        let known = [200, 401, 502, 503, 504].contains(&answer.status);
        assert!(
            known,
            "{} {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
    }

    fn add(&mut self, other: Self) {
        self.events.extend(other.events);
        for (what, count) in other.statuses {
            *self.statuses.entry(what).or_default() += count;
        }
    }

    /// Waits until the ledger has them all; none may be there twice.
    async fn are_recorded(&self, world: &World, since: &str, when: &str) {
        let deadline = Instant::now() + ARRIVED_WITHIN;
        loop {
            let recorded = ledger(world, since).await;
            let mut missing = Vec::new();
            for (id, expected) in &self.events {
                let found = recorded.get(id).map(Vec::as_slice).unwrap_or_default();
                assert!(
                    found.len() <= expected.len(),
                    "{when}: {id} is {found:?}, not {expected:?}"
                );
                if found != expected {
                    missing.push((id, found, expected));
                }
            }
            if missing.is_empty() {
                return;
            }
            let some = &missing[..missing.len().min(5)];
            let count = (missing.len(), self.events.len());
            assert!(
                Instant::now() < deadline,
                "{when}: not on record {count:?}: {some:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The events of a zone by request, each list sorted. No id may be there twice.
async fn ledger(world: &World, since: &str) -> BTreeMap<String, Vec<String>> {
    let mut events: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut ids = HashSet::new();
    let mut cursor = String::new();
    loop {
        let path = format!(
            "/v1/zones/{}/audit?limit=1000&since={since}{cursor}",
            world.zone
        );
        let page = world.stack.read(&path).await.expect(200).json();
        for event in page["items"].as_array().expect("a page") {
            let text = |member: &str| event[member].as_str().unwrap_or_default().to_owned();
            assert!(
                ids.insert(text("id")),
                "event {} is there twice",
                text("id")
            );
            events
                .entry(text("request_id"))
                .or_default()
                .push(kind(event));
        }
        match &page["next_cursor"] {
            Value::String(next) => cursor = format!("&cursor={next}"),
            _ => break,
        }
    }
    for kinds in events.values_mut() {
        kinds.sort_unstable();
    }
    events
}

/// One round: load, a kill in the middle of it, a restart below it.
async fn kill_under_load(world: &World, replays: &Arc<Replays>, targets: &[Part]) -> Promised {
    let load = Arc::new(Load {
        world: world.clone(),
        agent: world.agent().await,
        stop: AtomicBool::new(false),
        replays: Arc::clone(replays),
    });
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| tokio::spawn(Arc::clone(&load).works()))
        .collect();
    tokio::time::sleep(Duration::from_millis(20 + below(LATEST_KILL_MS))).await;
    world.stack.kill9(targets);
    // What is left alone goes on for a while.
    tokio::time::sleep(Duration::from_millis(below(200))).await;
    world.stack.restart().await;
    tokio::time::sleep(Duration::from_millis(below(100))).await;
    load.stop.store(true, Ordering::SeqCst);
    let mut told = Promised::default();
    for worker in workers {
        told.add(worker.await.expect("a worker"));
    }
    told
}

/// What the workers of a round share.
struct Load {
    world: World,
    agent: Agent,
    stop: AtomicBool,
    replays: Arc<Replays>,
}

impl Load {
    /// Mints, calls, calls again with the same mandate, and asks for what is denied.
    async fn works(self: Arc<Self>) -> Promised {
        let mut told = Promised::default();
        while !self.stop.load(Ordering::SeqCst) {
            if self.step(&mut told).await.is_err() {
                // Nobody listens, or an answer broke off.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        told
    }

    async fn step(&self, told: &mut Promised) -> Result<(), String> {
        if below(8) == 0 {
            let denied = self.world.exchange(&[("scope", "desk:write")]).await?;
            told.mint(&denied);
        }
        let minted = self.world.mint(&self.agent).await?;
        told.mint(&minted);
        if minted.status == 200 {
            let mandate = minted.text("access_token");
            told.call(&self.world.call(&mandate).await?);
            if self.replays.are_due() {
                told.call(&self.world.call(&mandate).await?);
            }
        }
        Ok(())
    }
}

/// The Gateway records twenty replays of a zone in ten seconds one by one and counts the rest,
/// so that a flood of them does not flood the ledger. These stay below.
struct Replays(Mutex<Instant>);

impl Replays {
    fn are_due(&self) -> bool {
        let mut next = self.0.lock();
        let due = Instant::now() >= *next;
        if due {
            *next = Instant::now() + Duration::from_millis(600);
        }
        due
    }
}
