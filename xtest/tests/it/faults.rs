//! Fail closed: whatever Postgres or Redis do, nobody gets more than they would with both in order,
//! an outage is told as one, and it heals without hands.
//!
//! Here: the store and the bus, each down, silent, slow and lying, over the wire. What the STS asks
//! besides is asked in its own tests, each down, slow and lying, with the code and a deadline:
//! providers in `tests::rows::directive` (502), `run::tests::credentials` (502) and
//! `credential::tests::faults` (refreshes: 403), issuers in `credential::tests::faults` and
//! `tests::federation` (503), secret backends in `tests::outside` (403), and a real Vault that is sealed
//! or gone in `vaults::tests::real`.

use std::sync::Arc;
use std::time::Duration;

use xtest::http::Answer;
use xtest::{
    Agent, CALLED, Deployment, Fault, FaultProxy, MINTED, Options, Stack, World, eventually,
};

/// No caller waits longer than this for its answer, whatever has failed.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// Looks at a deployment while it is broken.
const LOOKS: usize = 4;

#[test]
fn whatever_postgres_does_nobody_gets_more() {
    under_faults(Stack::postgres_proxy);
}

#[test]
fn whatever_redis_does_nobody_gets_more() {
    under_faults(Stack::redis_proxy);
}

fn under_faults(proxy: fn(&Stack) -> &FaultProxy) {
    let options = Options::default().faulty();
    xtest::on(
        Deployment::Distributed,
        options,
        async |stack: Arc<Stack>| {
            for fault in Fault::ALL {
                survives(&stack, proxy(&stack), fault).await;
            }
            let verified = stack.caracal("audit verify").await;
            assert!(verified.status.success(), "{verified:?}");
        },
    );
}

/// An agent in good standing and one whose Delegation was revoked, with mandates from before.
struct Cast {
    world: World,
    good: Agent,
    revoked: Agent,
    /// Of the good agent.
    mandates: Vec<String>,
    /// Of the other one.
    dead: Vec<String>,
}

impl Cast {
    async fn new(stack: &Arc<Stack>) -> Self {
        let world = World::new(Arc::clone(stack)).await;
        let (good, revoked) = (world.agent().await, world.agent().await);
        let (mut mandates, mut dead) = (Vec::new(), Vec::new());
        for _ in 0..LOOKS {
            mandates.push(world.mandate(&good).await);
            dead.push(world.mandate(&revoked).await);
        }
        let probe = world.mandate(&revoked).await;
        world.revokes(&revoked).await;
        eventually("the revocation is known everywhere", async || {
            // The second look at the same mandate would be refused as a replay.
            world.mint(&revoked).await.unwrap().status == 403
                && world.call(&probe).await.unwrap().text("error_description") == "session revoked"
        })
        .await;
        Self {
            world,
            good,
            revoked,
            mandates,
            dead,
        }
    }

    /// Everything that may be asked, once.
    async fn looks(&self, nth: usize, allowed: &mut Vec<(String, &'static [&'static str])>) {
        let world = &self.world;
        let minted = in_time(world.mint(&self.good)).await;
        is_one_of(&minted, "a mint", &[200, 503]);
        let called = passed_or_cut(world.call(&self.mandates[nth])).await;
        is_one_of(&called, "a call", &[200, 503]);
        let again = passed_or_cut(world.call(&self.mandates[nth])).await;
        let twice = if called.status == 200 {
            &[401, 503][..]
        } else {
            // An outage may come before the claim, so that the mandate is still unused.
            &[200, 401, 503]
        };
        is_one_of(&again, "a call with the same mandate", twice);
        let minted_dead = in_time(world.mint(&self.revoked)).await;
        is_one_of(
            &minted_dead,
            "a mint under a revoked Delegation",
            &[403, 503],
        );
        let called_dead = in_time(world.call(&self.dead[nth])).await;
        is_one_of(
            &called_dead,
            "a call under a revoked Delegation",
            &[401, 503],
        );
        let guess = World {
            secret: "cs_wrong".into(),
            ..world.clone()
        };
        let guessed = in_time(guess.mint(&self.good)).await;
        is_one_of(&guessed, "a guess of the secret", &[401, 503]);
        for (answer, recorded) in [(&minted, MINTED), (&called, CALLED), (&again, CALLED)] {
            if answer.status == 200 && answer.headers.contains_key("x-request-id") {
                allowed.push((answer.request_id(), recorded));
            }
        }
    }
}

async fn survives(stack: &Arc<Stack>, proxy: &FaultProxy, fault: Fault) {
    let cast = Cast::new(stack).await;
    let mut allowed = Vec::new();
    proxy.does(fault);
    for nth in 0..LOOKS {
        cast.looks(nth, &mut allowed).await;
    }
    proxy.does(Fault::None);
    let world = &cast.world;
    eventually(&format!("{fault:?} heals without hands"), async || {
        let minted = world.mint(&cast.good).await.unwrap();
        if minted.status != 200 {
            is_one_of(&minted, "a mint while it heals", &[503]);
            return false;
        }
        // A Gateway that loses the news cuts what it is streaming.
        let Ok(called) = world.call(&minted.text("access_token")).await else {
            return false;
        };
        is_one_of(&called, "a call while it heals", &[200, 503]);
        called.status == 200
    })
    .await;
    let seen = allowed.len();
    for (request_id, recorded) in allowed {
        world.is_recorded(&request_id, recorded).await;
    }
    xtest::visibly(&format!(
        "{fault:?}: {seen} allowed while broken, all on record"
    ));
}

async fn in_time(answer: impl Future<Output = Result<Answer, String>>) -> Answer {
    let answer = tokio::time::timeout(ANSWERED_WITHIN, answer).await;
    answer
        .expect("an answer in time")
        .expect("an answer, not a cut connection")
}

/// As [`in_time`], of a call. A Gateway that can know of no revocation cuts what it has let through
/// (spec: gateway §8): that counts as passed, by a request whose id nobody was told.
async fn passed_or_cut(answer: impl Future<Output = Result<Answer, String>>) -> Answer {
    let answer = tokio::time::timeout(ANSWERED_WITHIN, answer).await;
    answer.expect("an answer in time").unwrap_or_else(|cut| {
        assert!(cut.contains("reading a body"), "{cut}");
        Answer {
            status: 200,
            headers: http::HeaderMap::new(),
            body: bytes::Bytes::new(),
        }
    })
}

#[track_caller]
fn is_one_of(answer: &Answer, what: &str, statuses: &[u16]) {
    let said = String::from_utf8_lossy(&answer.body);
    // The Gateway tells an STS that is late from one that says it cannot (spec: gateway §9.3).
    if answer.status == 504 && what.contains("call") {
        assert_eq!(answer.text("error"), "sts_unavailable", "{what}: {said}");
        return;
    }
    assert!(
        statuses.contains(&answer.status),
        "{what} was answered {} {said}",
        answer.status
    );
    if answer.status == 503 {
        assert_eq!(answer.text("error"), "sts_unavailable", "{what}: {said}");
    }
}
