//! Governed calls without pause, and what each answer promises.
//!
//! Workers mint and call, call again with the same mandate, ask for what policy denies, and come
//! with what was revoked. Each answer that arrived in full names its request, and stands for events
//! in the ledger; an answer that broke off promises nothing. Whatever is done to the deployment
//! meanwhile: no worker may get what it should not, and the only other answer is a refusal.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::{Clock as _, Rng as _};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::http::Answer;
use crate::wishes::{long, pace};
use crate::world::kind;
use crate::{Agent, CALLED, DENIED, MINTED, REPLAYED, World};

/// Each has one governed call in hand at a time.
pub const WORKERS: usize = 6;
/// How long evidence may take from a local log to the ledger; after a long outage, how long none may
/// arrive.
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);
/// After an answer that broke off.
const PAUSE: Duration = Duration::from_millis(10);
/// No caller waits longer than this for its answer, whatever has failed.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

/// The time, as the ledger can be asked for it.
pub fn now() -> String {
    SystemClock::new().now().iso_millis()
}

/// As [`now`], but so much earlier.
pub fn before_now(by: Duration) -> String {
    SystemClock::new().now().minus(by).iso_millis()
}

/// A random number below this.
pub fn below(bound: u64) -> u64 {
    let mut bytes = [0u8; 8];
    OsRng.fill(&mut bytes);
    u64::from_le_bytes(bytes) % bound
}

/// How one governed call went: a mint and a call with it.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// When it began.
    pub began: Instant,
    /// When its answer was there, or was given up.
    pub ended: Instant,
    /// Whether it was served.
    pub served: bool,
}

/// What was answered, and which events that stands for, by request id.
#[derive(Default)]
pub struct Promised {
    /// Events that complete answers stand for.
    pub events: BTreeMap<String, Vec<&'static str>>,
    /// How often each answer was given.
    pub statuses: BTreeMap<String, usize>,
    /// How governed calls went, in no order.
    pub looks: Vec<Look>,
    /// Answers that broke off or did not come.
    pub broken: usize,
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
        is_one_of("a mint", answer, &[200, 403, 503]);
    }

    /// `counts_replays`: there are few enough of them that each is an event of its own.
    fn call(&mut self, answer: &Answer, counts_replays: bool) {
        let replay = answer.text("error_description").contains("replay");
        let stands_for: &[_] = match answer.status {
            200 => CALLED,
            // The Gateway is alone with this one: a replay that it saw itself.
            401 if replay && counts_replays => REPLAYED,
            _ => &[],
        };
        self.answer("call", answer, stands_for);
        // Its STS may be dead at this moment: 502 and 504 say so.
        is_one_of("a call", answer, &[200, 401, 502, 503, 504]);
    }

    /// The answer to somebody who must get nothing; what it is called in the counts.
    fn refusal(&mut self, what: &str, answer: &Answer) {
        self.answer(what, answer, &[]);
        is_one_of(what, answer, &[401, 403, 502, 503, 504]);
    }

    /// Takes another one's answers over.
    pub fn add(&mut self, other: Self) {
        self.events.extend(other.events);
        for (what, count) in other.statuses {
            *self.statuses.entry(what).or_default() += count;
        }
        self.looks.extend(other.looks);
        self.broken += other.broken;
    }

    /// Waits until the ledger has them all; none may be there twice.
    ///
    /// # Panics
    /// When some are missing, and for a while none has arrived.
    pub async fn are_recorded(&self, world: &World, since: &str, when: &str) {
        let (mut fewest, mut deadline) = (usize::MAX, Instant::now());
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
            if missing.len() < fewest {
                (fewest, deadline) = (missing.len(), Instant::now() + ARRIVED_WITHIN);
            }
            let some = &missing[..missing.len().min(5)];
            let count = (missing.len(), self.events.len());
            assert!(
                Instant::now() < deadline,
                "{when}: not on record {count:?}: {some:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[track_caller]
fn is_one_of(what: &str, answer: &Answer, statuses: &[u16]) {
    assert!(
        statuses.contains(&answer.status),
        "{what} was answered {} {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    );
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

/// Somebody whose authority was taken away: a Delegation that was revoked, and a mandate of before.
#[derive(Clone)]
pub struct Outcast {
    agent: Agent,
    mandate: String,
    since: Instant,
}

impl Outcast {
    /// Revoked, and refused everywhere already.
    pub async fn of(world: &World) -> Self {
        let agent = world.agent_for(lifetime()).await;
        let (mandate, spare) = (world.mandate(&agent).await, world.mandate(&agent).await);
        world.revokes(&agent).await;
        crate::eventually("the revocation is known everywhere", async || {
            let minted = world.mint(&agent).await;
            let called = world.call(&spare).await;
            // The second look at the same mandate would be refused as a replay.
            let says = |answer: Answer| answer.text("error_description") == "session revoked";
            minted.is_ok_and(|answer| answer.status == 403) && called.is_ok_and(says)
        })
        .await;
        let since = Instant::now();
        Self {
            agent,
            mandate,
            since,
        }
    }

    /// For how long it has been one.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

/// Workers that are at it.
pub struct Probe {
    load: Arc<Load>,
    workers: Vec<JoinHandle<Promised>>,
}

/// What the workers of a probe share.
struct Load {
    world: World,
    agent: Agent,
    outcast: Option<Outcast>,
    stop: AtomicBool,
    /// The latest looks.
    last: Mutex<Vec<Look>>,
    replays: Arc<Replays>,
    pace: Option<Pace>,
}

impl Probe {
    /// From now on, with an agent of its own.
    pub async fn start(world: &World, replays: &Arc<Replays>, outcast: Option<Outcast>) -> Self {
        let load = Arc::new(Load {
            world: world.clone(),
            agent: world.agent_for(lifetime()).await,
            outcast,
            stop: AtomicBool::new(false),
            last: Mutex::default(),
            replays: Arc::clone(replays),
            pace: pace().map(Pace::of),
        });
        let workers = (0..WORKERS)
            .map(|_| tokio::spawn(Arc::clone(&load).works()))
            .collect();
        Self { load, workers }
    }

    /// Waits until so many governed calls that began after `since` were served in a row, by whichever
    /// workers; answers when the first of them was.
    ///
    /// # Panics
    /// When that takes longer than `within`.
    pub async fn is_served(&self, since: Instant, in_a_row: usize, within: Duration) -> Instant {
        let deadline = Instant::now() + within;
        loop {
            let served = {
                let last = self.load.last.lock();
                let later = last.iter().filter(|look| look.began >= since);
                let good = later.rev().take_while(|look| look.served);
                let good: Vec<Instant> = good.map(|look| look.ended).collect();
                (good.len() >= in_a_row)
                    .then(|| good.last().copied())
                    .flatten()
            };
            if let Some(first) = served {
                return first;
            }
            assert!(
                Instant::now() < deadline,
                "not served again within {within:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it.
    ///
    /// # Panics
    /// When a worker got what it should not.
    pub async fn stop(self) -> Promised {
        self.load.stop.store(true, Ordering::SeqCst);
        let mut told = Promised::default();
        for worker in self.workers {
            told.add(worker.await.expect("a worker"));
        }
        told
    }
}

impl Load {
    async fn works(self: Arc<Self>) -> Promised {
        let mut told = Promised::default();
        loop {
            if let Some(pace) = &self.pace {
                pace.waits().await;
            }
            if self.stop.load(Ordering::SeqCst) {
                return told;
            }
            if self.step(&mut told).await.is_err() {
                // Nobody listens, or an answer broke off.
                told.broken += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn step(&self, told: &mut Promised) -> Result<(), String> {
        match below(16) {
            0 => {
                let denied = self.world.exchange(&[("scope", "desk:write")]);
                let denied = in_time(denied).await?;
                assert_ne!(denied.status, 200, "what policy denies was granted");
                told.mint(&denied);
            }
            1 => self.outcast_tries(told).await?,
            _ => {}
        }
        let began = Instant::now();
        let outcome = self.governed_call(told).await;
        let look = Look {
            began,
            ended: Instant::now(),
            served: outcome.as_ref().is_ok_and(|served| *served),
        };
        told.looks.push(look);
        let mut last = self.last.lock();
        last.push(look);
        if last.len() > 2_000 {
            last.drain(..1_000);
        }
        outcome.map(drop)
    }

    async fn governed_call(&self, told: &mut Promised) -> Result<bool, String> {
        let minted = in_time(self.world.mint(&self.agent)).await?;
        told.mint(&minted);
        if minted.status != 200 {
            return Ok(false);
        }
        let mandate = minted.text("access_token");
        let called = in_time(self.world.call(&mandate)).await?;
        // A Redis that lost claims refuses every mandate of before as used: too many to be recorded
        // one by one.
        let counts_replays = self.outcast.is_none();
        told.call(&called, counts_replays);
        let served = called.status == 200;
        if self.replays.are_due() {
            let again = in_time(self.world.call(&mandate)).await?;
            told.call(&again, counts_replays);
            assert!(
                !(served && again.status == 200),
                "a mandate was good for two calls"
            );
        }
        Ok(served)
    }

    async fn outcast_tries(&self, told: &mut Promised) -> Result<(), String> {
        let Some(outcast) = &self.outcast else {
            return Ok(());
        };
        let minted = in_time(self.world.mint(&outcast.agent)).await?;
        told.refusal("mint of an outcast", &minted);
        let called = in_time(self.world.call(&outcast.mandate)).await?;
        told.refusal("call of an outcast", &called);
        Ok(())
    }
}

async fn in_time(answer: impl Future<Output = Result<Answer, String>>) -> Result<Answer, String> {
    let answer = tokio::time::timeout(ANSWERED_WITHIN, answer).await;
    answer.unwrap_or_else(|_| panic!("no answer within {ANSWERED_WITHIN:?}"))
}

/// How long the Sessions of an agent last that has to act throughout a failure, in seconds.
fn lifetime() -> u64 {
    long().as_secs() + 1020
}

/// Lets one governed call begin after another.
struct Pace {
    between: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    fn of(between: Duration) -> Self {
        let next = Mutex::new(Instant::now());
        Self { between, next }
    }

    /// Until it is the caller's turn. A turn that nobody took in time is lost, so that an outage is
    /// not followed by a flood.
    async fn waits(&self) {
        let turn = {
            let mut next = self.next.lock();
            let turn = (*next).max(Instant::now());
            *next = turn + self.between;
            turn
        };
        tokio::time::sleep_until(turn.into()).await;
    }
}

/// The Gateway records twenty replays of a zone in ten seconds one by one and counts the rest,
/// so that a flood of them does not flood the ledger. These stay below.
pub struct Replays(Mutex<Instant>);

impl Default for Replays {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

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
