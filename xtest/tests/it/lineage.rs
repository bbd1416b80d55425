//! Authority across applications: it narrows on the way, it ends with any ancestor, and it goes no
//! further than it was allowed to (coordinator §17.9).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use xtest::http::Answer;
use xtest::world::part_of;
use xtest::{Stack, World, eventually, on_both_stacks};

/// Three applications of one zone, a Session of each, and `archive`'s resource delegated along
/// them: desk -> helper -> archive.
struct Chain {
    desk: World,
    helper: World,
    archive: World,
    tokens: [String; 3],
    sessions: [String; 3],
    edges: [String; 2],
}

impl Chain {
    async fn new(stack: Arc<Stack>) -> Self {
        let [desk, helper, archive] = World::several(stack, ["desk", "helper", "archive"]).await;
        let mut tokens = Vec::new();
        let mut sessions = Vec::new();
        for world in [&desk, &helper, &archive] {
            let token = world.lifecycle().await;
            let session = world.session(&token, json!({})).await.expect(201);
            sessions.push(session.text("agent_session_id"));
            tokens.push(token);
        }
        let mut chain = Self {
            desk,
            helper,
            archive,
            tokens: tokens.try_into().unwrap(),
            sessions: sessions.try_into().unwrap(),
            edges: Default::default(),
        };
        let wish = json!({"scopes": ["desk:read", "desk:write"], "constraints": {"max_hops": 2}});
        chain.edges[0] = chain
            .first(wish)
            .await
            .expect(201)
            .text("delegation_edge_id");
        chain.edges[1] = chain
            .second(json!({}))
            .await
            .expect(201)
            .text("delegation_edge_id");
        chain
    }

    /// desk -> helper.
    async fn first(&self, more: Value) -> Answer {
        let mut wish = json!({
            "resource_id": self.archive.resource, "receiver_application_id": self.helper.app,
        });
        extend(&mut wish, more);
        let [from, to, _] = &self.sessions;
        self.desk.delegates(&self.tokens[0], from, to, wish).await
    }

    /// helper -> archive.
    async fn second(&self, more: Value) -> Answer {
        let mut wish = json!({
            "resource_id": self.archive.resource, "receiver_application_id": self.archive.app,
            "parent_edge_id": self.edges[0], "ttl_seconds": 600,
        });
        extend(&mut wish, more);
        let [_, from, to] = &self.sessions;
        self.helper.delegates(&self.tokens[1], from, to, wish).await
    }

    /// A mint at the end of the chain.
    async fn mint(&self, scope: &str) -> Answer {
        self.archive
            .mints(&self.sessions[2], &self.edges[1], scope)
            .await
            .unwrap()
    }

    /// A mandate from before and a mint from now are refused.
    async fn is_dead(&self, mandates: &[String]) {
        eventually("a mint is refused", async || {
            let minted = self.mint("desk:read").await;
            minted.status == 403 && minted.text("error") == "access_denied"
        })
        .await;
        let mut mandates = mandates.iter();
        // A look spends a mandate, so the first ones are close together.
        let mut pauses = (0..).map(|look| Duration::from_millis(1 << look.min(10)));
        eventually("the Gateway refuses", async || {
            let mandate = mandates
                .next()
                .expect("refused before the mandates are spent");
            // The news may also cut off what a look had begun.
            let Ok(answer) = self.archive.call(mandate).await else {
                return false;
            };
            assert!([200, 401, 403].contains(&answer.status), "{answer:?}");
            if answer.status == 200 {
                tokio::time::sleep(pauses.next().expect("a pause for each look")).await;
            }
            answer.status != 200
        })
        .await;
    }

    /// Mandates that were minted while all was well.
    async fn mandates(&self) -> Vec<String> {
        let mut mandates = Vec::new();
        for _ in 0..20 {
            mandates.push(
                self.mint("desk:read")
                    .await
                    .expect(200)
                    .text("access_token"),
            );
        }
        mandates
    }
}

fn extend(body: &mut Value, more: Value) {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
}

fn claims(answer: &Answer) -> Value {
    part_of(&answer.text("access_token"), 1)
}

#[track_caller]
fn is_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(
        (answer.status, &*answer.text("error")),
        (status, code),
        "{:?}",
        answer.json()
    );
}

on_both_stacks! {
    async fn a_chain_across_three_applications_mints_and_calls(stack: Arc<Stack>) {
        let chain = Chain::new(stack).await;
        let minted = chain.mint("desk:read").await.expect(200);
        let claims = claims(&minted);
        assert_eq!(claims["use"], "gateway");
        assert_eq!(claims["hop_count"], 2);
        assert_eq!(claims["delegation_path"], json!(chain.edges));
        let [desk, helper, archive] = [&chain.desk.app, &chain.helper.app, &chain.archive.app];
        let [from, through, to] = &chain.sessions;
        let hops = json!([
            {"application_id": desk, "agent_session_id": from, "delegation_edge_id": chain.edges[0]},
            {"application_id": helper, "agent_session_id": through, "delegation_edge_id": chain.edges[1]},
            {"application_id": archive, "agent_session_id": to},
        ]);
        assert_eq!(claims["delegation_chain"], hops);
        chain.archive.call(&minted.text("access_token")).await.unwrap().expect(200);
        assert_eq!(chain.archive.reached(), 1);
    }

    async fn what_a_link_narrowed_stays_narrow(stack: Arc<Stack>) {
        let chain = Chain::new(stack).await;
        // The first link holds desk:write, the second does not.
        is_refused(&chain.mint("desk:write").await, 403, "access_denied");
        is_refused(&chain.mint("desk:read desk:write").await, 403, "access_denied");
        let exceeds = "delegation_exceeds_parent_authority";
        is_refused(&chain.second(json!({"ttl_seconds": 1000})).await, 403, exceeds);
        is_refused(&chain.second(json!({"resource_id": chain.desk.resource})).await, 403, exceeds);
        is_refused(&chain.second(json!({"constraints": {"max_hops": 2}})).await, 403, exceeds);
        let narrow = json!({"scopes": ["desk:read"], "constraints": {"max_hops": 3}});
        let narrow = chain.first(narrow).await.expect(201).text("delegation_edge_id");
        let wide = json!({"scopes": ["desk:read", "desk:write"], "parent_edge_id": narrow});
        is_refused(&chain.second(wide).await, 403, exceeds);
    }

    async fn authority_goes_no_further_than_its_hops(stack: Arc<Stack>) {
        let chain = Chain::new(stack).await;
        let end = chain.archive.session(&chain.tokens[2], json!({})).await.expect(201);
        let further = json!({
            "resource_id": chain.archive.resource, "parent_edge_id": chain.edges[1], "ttl_seconds": 300,
        });
        let to = end.text("agent_session_id");
        let refused = chain.archive.delegates(&chain.tokens[2], &chain.sessions[2], &to, further).await;
        is_refused(&refused, 403, "delegation_exceeds_parent_authority");
    }

    async fn a_delegation_belongs_to_its_receiver_alone(stack: Arc<Stack>) {
        let chain = Chain::new(stack).await;
        let [_, helper, archive] = &chain.sessions;
        for (session, edge) in [(archive, &chain.edges[1]), (helper, &chain.edges[0])] {
            let stolen = chain.desk.mints(session, edge, "desk:read").await.unwrap();
            is_refused(&stolen, 403, "access_denied");
        }
        // The receiver of the first link has no grant on the resource of another application.
        let minted = chain.helper.mints(helper, &chain.edges[0], "desk:read").await.unwrap();
        is_refused(&minted, 403, "access_denied");
    }

    async fn a_child_inherits_what_its_parent_holds_without_spending_a_hop(stack: Arc<Stack>) {
        let chain = Chain::new(stack).await;
        let start = async |more: Value| {
            chain.archive.session(&chain.tokens[2], more).await.expect(201)
        };
        // The second link has one hop, the default: it is the last explicit one.
        let child = start(json!({"parent_id": chain.sessions[2]})).await;
        let (session, edge) = (child.text("agent_session_id"), child.text("delegation_edge_id"));
        assert!(!edge.is_empty(), "{:?}", child.json());
        let minted = chain.archive.mints(&session, &edge, "desk:read").await.unwrap().expect(200);
        assert_eq!(claims(&minted)["hop_count"], 3);
        assert_eq!(claims(&minted)["delegation_path"], json!([chain.edges[0], chain.edges[1], edge]));
        chain.archive.call(&minted.text("access_token")).await.unwrap().expect(200);
        is_refused(
            &chain.archive.mints(&session, &edge, "desk:write").await.unwrap(),
            403,
            "access_denied",
        );

        let none = json!({"parent_id": chain.sessions[2], "parent_authority": "none"});
        let none = start(none).await;
        assert_eq!(none.json()["delegation_edge_id"], Value::Null);
        let session = none.text("agent_session_id");
        let wish = [("scope", "desk:read"), ("agent_session_id", &*session)];
        is_refused(&chain.archive.exchange(&wish).await.unwrap(), 403, "access_denied");
    }

    async fn a_chain_ends_with_the_first_session_of_it(stack: Arc<Stack>) {
        let chain = Chain::new(stack).await;
        let mandates = chain.mandates().await;
        let path = format!("/agents/{}", chain.sessions[0]);
        chain.desk.asks("DELETE", &path, &chain.tokens[0]).await.expect(204);
        chain.is_dead(&mandates).await;
    }

    async fn a_chain_ends_with_a_session_in_the_middle(stack: Arc<Stack>) {
        let chain = Chain::new(stack).await;
        let mandates = chain.mandates().await;
        let path = format!("/agents/{}", chain.sessions[1]);
        chain.helper.asks("DELETE", &path, &chain.tokens[1]).await.expect(204);
        chain.is_dead(&mandates).await;
    }

    async fn a_chain_ends_with_the_first_delegation_of_it(stack: Arc<Stack>) {
        let chain = Chain::new(stack).await;
        let mandates = chain.mandates().await;
        let path = format!("/delegations/{}/revoke", chain.edges[0]);
        let revoked = chain.desk.asks("PATCH", &path, &chain.tokens[0]).await.expect(200).json();
        assert_eq!(revoked["revoked_edges"], 2, "{revoked}");
        chain.is_dead(&mandates).await;
    }

    async fn a_suspended_ancestor_pauses_the_chain_and_a_resumed_one_does_not(stack: Arc<Stack>) {
        let chain = Chain::new(stack).await;
        let operator = chain.desk.stack.operator_token.clone();
        for session in &chain.sessions {
            let mandates = chain.mandates().await;
            let path = format!("/agents/{session}");
            chain.desk.asks("PATCH", &format!("{path}/suspend"), &operator).await.expect(200);
            chain.is_dead(&mandates).await;
            chain.desk.asks("PATCH", &format!("{path}/resume"), &operator).await.expect(200);
            eventually("a mint works again", async || chain.mint("desk:read").await.status == 200).await;
        }
        let mandate = chain.mint("desk:read").await.expect(200).text("access_token");
        chain.archive.call(&mandate).await.unwrap().expect(200);
    }

    async fn a_chain_ends_when_any_link_of_it_expires(stack: Arc<Stack>) {
        let chain = Chain::new(stack).await;
        let short = json!({"ttl_seconds": 15, "constraints": {"max_hops": 2}});
        // A second inbound link: the child must say on which it stands.
        let first = chain.first(short).await.expect(201).text("delegation_edge_id");
        let wish = json!({"parent_edge_id": first, "ttl_seconds": 3});
        let second = chain.second(wish).await.expect(201).text("delegation_edge_id");
        let mint = async || chain.archive.mints(&chain.sessions[2], &second, "desk:read").await.unwrap();
        let minted = mint().await.expect(200).json();
        assert!(minted["expires_in"].as_i64().unwrap() <= 3, "{minted}");
        eventually("it has expired", async || mint().await.status == 403).await;
        // The other chain between the same Sessions goes on.
        chain.mint("desk:read").await.expect(200);
    }
}
