//! One hold, decided, presented, spent, expired and overtaken by another policy at the same time, over
//! the wire and at two processes of the STS: never two authorities of one hold, and none of one that
//! was rejected, has expired or is for another policy.
//!
//! `XTEST_APPROVAL_ROUNDS` says how many rounds. No hold may live for less than a minute, so one
//! expires here because its end is set to now in the database.

use std::collections::BTreeSet;
use std::sync::Arc;

use caracal_crypto::digest::b64url_decode;
use serde_json::{Value, json};
use tokio::join;
use tokio_postgres::SimpleQueryMessage;
use xtest::http::Answer;
use xtest::world::{PolicySet, policy_set};
use xtest::{Agent, Deployment, Options, Part, Stack, World, eventually};

fn rounds() -> usize {
    let set = std::env::var("XTEST_APPROVAL_ROUNDS").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(200)
}

/// Whoever reads `desk` needs the yes of an operator.
fn gated(world: &World) -> String {
    let grants =
        json!({&world.resource: {"application": "desk", "roles": {"desk": ["desk:read"]}}});
    format!(
        "app_ids := {}\ngrants := {grants}\n\
         risk := [{{\"scope\": \"desk:read\", \"tier\": \"high\"}}]\n\
         approval_tiers := [{{\"tier\": \"high\"}}]\n",
        json!({"desk": world.app})
    )
}

/// Two replicas of the STS, an application, and whoever approves.
struct Cast {
    stack: Arc<Stack>,
    world: World,
    lifecycle: String,
    sts: [String; 2],
    approver: String,
}

impl Cast {
    async fn new(stack: Arc<Stack>) -> Self {
        let world = World::new(Arc::clone(&stack)).await;
        let lifecycle = world.lifecycle().await;
        let other = stack.another(Part::Sts).await;
        let body = json!({"name": "approver", "scope": "zone", "zone_id": world.zone, "capability": "approve"});
        let approver = stack
            .post("/v1/admin-tokens", &body)
            .await
            .expect(201)
            .text("token");
        Self {
            sts: [stack.urls.sts.clone(), other],
            stack,
            world,
            lifecycle,
            approver,
        }
    }

    /// An agent that nobody has approved anything for.
    async fn agent(&self) -> Agent {
        self.world.agent_of(self.lifecycle.clone()).await
    }

    async fn mint(&self, at: usize, agent: &Agent, approval: &str) -> Answer {
        let mut more = vec![
            ("scope", "desk:read"),
            ("agent_session_id", &*agent.session),
            ("delegation_edge_id", &*agent.edge),
        ];
        if !approval.is_empty() {
            more.push(("approval_id", approval));
        }
        self.world.exchange_at(&self.sts[at], &more).await.unwrap()
    }

    /// Whether this decision was the one that counts.
    async fn decides(&self, id: &str, verb: &str) -> bool {
        let url = format!(
            "{}/v1/zones/{}/approvals/{id}/{verb}",
            self.stack.urls.api, self.world.zone
        );
        let answer = self
            .stack
            .http
            .json("POST", url, &self.approver, &json!({}))
            .await;
        assert!([200, 409].contains(&answer.status), "{answer:?}");
        answer.status == 200
    }

    /// Its end is now, unless it was spent before.
    async fn expires(&self, id: &str) {
        let sql = format!(
            "UPDATE approvals SET expires_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint \
             WHERE id = '{id}' AND consumed_at IS NULL"
        );
        self.stack.sql(&sql).await;
    }

    /// What the store has of it.
    async fn kept(&self, id: &str) -> Kept {
        let sql = format!(
            "SELECT satisfied_at, rejected_at, expires_at, consumed_at, issued_record_id \
             FROM approvals WHERE id = '{id}'"
        );
        let answer = self.stack.sql(&sql).await;
        let row = answer.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.expect("the hold");
        let time = |name: &str| row.get(name).map(|text| text.parse::<i64>().unwrap());
        Kept {
            satisfied: time("satisfied_at"),
            rejected: time("rejected_at"),
            expires: time("expires_at").unwrap(),
            consumed: time("consumed_at"),
            issued: row.get("issued_record_id").map(str::to_owned),
        }
    }

    /// All that may happen to a hold, at once; the records that came of it.
    async fn races(&self, round: usize, other: &PolicySet) -> (Agent, String, BTreeSet<String>) {
        let agent = self.agent().await;
        let id = self.mint(round % 2, &agent, "").await;
        let id = id.expect(401).text("approval_id");
        // What happens beside the mints: in turn, so that every pair is met.
        let (approves, rejects) = (round % 4 != 3, round.is_multiple_of(3));
        let (overtaken, expires) = (overtakes(round), round % 7 > 4);
        if round.is_multiple_of(2) && approves && !rejects {
            assert!(self.decides(&id, "approve").await);
        }
        let too_late = round % 11 == 10;
        if too_late {
            self.expires(&id).await;
        }
        let (yes, no, (), (), a, b, c, d) = join!(
            async { approves && self.decides(&id, "approve").await },
            async { rejects && self.decides(&id, "reject").await },
            async {
                if overtaken {
                    other.activate(&self.stack).await;
                }
            },
            async {
                if expires {
                    self.expires(&id).await;
                }
            },
            self.mint(0, &agent, &id),
            self.mint(1, &agent, &id),
            self.mint(0, &agent, ""),
            self.mint(1, &agent, ""),
        );
        assert!(!(yes && no), "round {round}: decided twice");
        let late = [
            self.mint(0, &agent, &id).await,
            self.mint(1, &agent, &id).await,
        ];
        let all = [a, b, c, d].into_iter().chain(late);
        let records: BTreeSet<String> = all.filter_map(|answer| record(&answer)).collect();
        assert!(
            records.is_empty() || !(no || too_late),
            "round {round}: {records:?} of a hold that was rejected ({no}) or had expired ({too_late})"
        );
        (agent, id, records)
    }

    /// What the store says fits what was given.
    async fn fits(&self, round: usize, id: &str, records: &BTreeSet<String>) {
        assert!(records.len() <= 1, "round {round}: {records:?} of one hold");
        let kept = self.kept(id).await;
        assert_eq!(records.first(), kept.issued.as_ref(), "round {round}");
        if let Some(spent) = kept.consumed {
            assert!(kept.satisfied.is_some(), "round {round}: {kept:?}");
            assert!(kept.rejected.is_none(), "round {round}: {kept:?}");
            assert!(spent < kept.expires, "round {round}: {kept:?}");
        }
    }

    /// Puts it into force, and waits until both replicas decide by it.
    async fn settles(&self, set: &PolicySet) {
        set.activate(&self.stack).await;
        let probe = self.agent().await;
        for at in [0, 1] {
            eventually("the policy is in force", async || {
                let id = self.mint(at, &probe, "").await.text("approval_id");
                if id.is_empty() {
                    return false;
                }
                let path = format!("/v1/zones/{}/approvals/{id}", self.world.zone);
                let shown = self.stack.read(&path).await.expect(200).json();
                shown["metadata_json"]["policy_set_version_id"] == json!(set.version())
            })
            .await;
        }
    }
}

/// A hold, in microseconds.
#[derive(Debug)]
struct Kept {
    satisfied: Option<i64>,
    rejected: Option<i64>,
    expires: i64,
    consumed: Option<i64>,
    issued: Option<String>,
}

/// Whether another policy goes into force in this round.
const fn overtakes(round: usize) -> bool {
    round % 5 == 4
}

/// The authority record that came of it, if one did.
fn record(answer: &Answer) -> Option<String> {
    let code = answer.text("error");
    match answer.status {
        200 => {
            let token = answer.text("access_token");
            let claims = b64url_decode(token.split('.').nth(1).unwrap()).unwrap();
            let claims: Value = serde_json::from_slice(&claims).unwrap();
            Some(claims["sid"].as_str().unwrap().to_owned())
        }
        401 => {
            assert!(
                ["interaction_required", "access_denied"].contains(&&*code),
                "{answer:?}"
            );
            None
        }
        403 => {
            assert_eq!(answer.text("error_description"), "approval was rejected");
            None
        }
        409 => {
            assert_eq!(code, "approval_consumed");
            None
        }
        503 => {
            assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
            None
        }
        _ => panic!("{answer:?}"),
    }
}

#[test]
fn no_hold_is_good_for_two_authorities_at_two_replicas_or_for_one_after_its_end() {
    let options = Options::default()
        .env("MAX_AGENTS_PER_ZONE", "1000000")
        .env("MAX_AGENTS_PER_APP", "1000000");
    xtest::on(
        Deployment::Distributed,
        options,
        async |stack: Arc<Stack>| {
            let cast = Cast::new(stack).await;
            let (world, zone) = (&cast.world, &cast.world.zone);
            let sets = [
                policy_set(&cast.stack, zone, &gated(world)).await,
                policy_set(&cast.stack, zone, &gated(world)).await,
            ];
            let mut current = 0;
            cast.settles(&sets[current]).await;
            let (mut granted, mut refused) = (0, 0);
            for round in 0..rounds() {
                let other = 1 - current;
                let (agent, id, mut records) = Box::pin(cast.races(round, &sets[other])).await;
                if overtakes(round) {
                    current = other;
                    cast.settles(&sets[current]).await;
                    // It was held under a policy that is not in force any more.
                    let before = records.len();
                    for at in [0, 1] {
                        records.extend(record(&cast.mint(at, &agent, &id).await));
                    }
                    assert_eq!(records.len(), before, "round {round}: of a stale hold");
                }
                cast.fits(round, &id, &records).await;
                if records.is_empty() {
                    refused += 1;
                } else {
                    granted += 1;
                }
            }
            assert!(
                granted > 0 && refused > 0,
                "{granted} granted, {refused} refused: the race is none"
            );
            xtest::visibly(&format!("{granted} holds spent once, {refused} never"));
            spent_once(&cast, granted).await;
        },
    );
}

/// What is on record says the same: each hold was spent once at most.
async fn spent_once(cast: &Cast, granted: usize) {
    let path = format!(
        "/v1/zones/{}/audit?limit=200&event_type=step_up_consumed",
        cast.world.zone
    );
    eventually("every spent hold is on record once", async || {
        let (mut ids, mut next) = (Vec::new(), path.clone());
        loop {
            let page = cast.stack.read(&next).await.expect(200).json();
            let events = page["items"].as_array().unwrap().iter();
            let first = events.filter(|event| event["metadata_json"]["reissued"] != json!(true));
            ids.extend(first.map(|event| event["metadata_json"]["challenge_id"].to_string()));
            match page["next_cursor"].as_str() {
                Some(cursor) => next = format!("{path}&cursor={cursor}"),
                None => break,
            }
        }
        let distinct: BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "a hold was spent twice");
        ids.len() == granted
    })
    .await;
}
