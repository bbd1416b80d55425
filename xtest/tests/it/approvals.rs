//! One hold, decided, presented, spent and overtaken by another policy at the same time, over the
//! wire and at two processes of the STS: never two authorities of one hold, and none after a no.
//!
//! `XTEST_APPROVAL_ROUNDS` says how many rounds; a thousand of them, with expiry too, run against
//! the router of the STS (`sts::tests::approval_races`).

use std::collections::BTreeSet;
use std::sync::Arc;

use caracal_crypto::digest::b64url_decode;
use serde_json::{Value, json};
use tokio::join;
use xtest::http::Answer;
use xtest::world::{PolicySet, policy_set};
use xtest::{Agent, Deployment, Options, Part, Stack, World, eventually};

fn rounds() -> usize {
    let set = std::env::var("XTEST_APPROVAL_ROUNDS").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(24)
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
fn no_hold_is_good_for_two_authorities_at_two_replicas_or_for_one_after_a_no() {
    xtest::on(
        Deployment::Distributed,
        Options::default(),
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
                let agent = cast.agent().await;
                let id = cast
                    .mint(round % 2, &agent, "")
                    .await
                    .expect(401)
                    .text("approval_id");
                // What happens beside the mints: in turn, so that every pair is met.
                let (approves, rejects) = (round % 4 != 3, round % 3 == 0);
                let overtaken = round % 5 == 4;
                if round % 2 == 0 && approves && !rejects {
                    assert!(cast.decides(&id, "approve").await);
                }
                let next = &sets[1 - current];
                let (yes, no, (), a, b, c, d) = join!(
                    async { approves && cast.decides(&id, "approve").await },
                    async { rejects && cast.decides(&id, "reject").await },
                    async {
                        if overtaken {
                            next.activate(&cast.stack).await;
                        }
                    },
                    cast.mint(0, &agent, &id),
                    cast.mint(1, &agent, &id),
                    cast.mint(0, &agent, ""),
                    cast.mint(1, &agent, ""),
                );
                assert!(!(yes && no), "round {round}: decided twice");
                let late = [
                    cast.mint(0, &agent, &id).await,
                    cast.mint(1, &agent, &id).await,
                ];
                let all: Vec<Answer> = [a, b, c, d].into_iter().chain(late).collect();
                let records: BTreeSet<String> = all.iter().filter_map(record).collect();
                assert!(records.len() <= 1, "round {round}: {records:?} of one hold");
                if no {
                    assert!(
                        records.is_empty(),
                        "round {round}: a rejected hold gave {records:?}"
                    );
                }
                if records.is_empty() {
                    refused += 1
                } else {
                    granted += 1
                }
                if overtaken {
                    current = 1 - current;
                    cast.settles(&sets[current]).await;
                }
            }
            assert!(
                granted > 0 && refused > 0,
                "{granted} granted, {refused} refused: the race is none"
            );

            // What is on record says the same: each hold was spent once at most.
            let spent = format!("/v1/zones/{zone}/audit?limit=1000&event_type=step_up_consumed");
            eventually("every spent hold is on record once", async || {
                let events = cast.stack.read(&spent).await.expect(200).json();
                let events = events["items"].as_array().unwrap().clone();
                let first = events
                    .iter()
                    .filter(|event| event["metadata_json"]["reissued"] != json!(true));
                let first: Vec<_> = first
                    .map(|event| event["metadata_json"]["challenge_id"].to_string())
                    .collect();
                let distinct: BTreeSet<_> = first.iter().collect();
                assert_eq!(distinct.len(), first.len(), "a hold was spent twice");
                first.len() == granted
            })
            .await;
        },
    );
}
