//! The kill switch of a subject, actors and Control keys, over the wire of both deployments.

use std::sync::Arc;

use serde_json::{Value, json};
use xtest::{Stack, World, eventually, on_both_stacks};

const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// The operator's view of the zone of a world.
struct Zone<'w>(&'w World);

impl Zone<'_> {
    fn path(&self, rest: &str) -> String {
        format!("/v1/zones/{}{rest}", self.0.zone)
    }

    async fn takes_actors(&self) {
        let stack = &self.0.stack;
        let url = format!("{}{}", stack.urls.api, self.path(""));
        let body = json!({"actor_tokens": true});
        let answer = stack
            .http
            .json("PATCH", url, &stack.admin_token, &body)
            .await;
        assert_eq!(answer.expect(200).json()["actor_tokens"], true);
    }

    async fn revokes_subject(&self, subject: &str) -> Value {
        let body = json!({"subject_id": subject, "reason": "left"});
        let path = self.path("/subjects/revoke");
        self.0.stack.post(&path, &body).await.expect(200).json()
    }
}

on_both_stacks! {
    async fn cutting_a_subject_off_ends_its_sessions_and_its_outstanding_mandates(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        let zone = Zone(&world);
        let agent = world.agent().await;
        world.call(&world.mandate(&agent).await).await.unwrap().expect(200);
        let outstanding = world.mandate(&agent).await;
        let done = zone.revokes_subject(&world.app).await;
        assert_eq!((&done["sessions"], &done["delegations"]), (&json!(2), &json!(1)));
        assert!(done["authority_records"].as_u64().unwrap() >= 1);
        world.is_dead(&outstanding).await;
        eventually("the lifecycle token is dead", async || {
            let path = format!("/agents/{}", agent.session);
            world.asks("GET", &path, &agent.lifecycle).await.status == 401
        })
        .await;
        assert_eq!(zone.revokes_subject(&world.app).await["sessions"], 0);
        // Its credential is its own: it may start anew.
        let again = world.agent().await;
        world.call(&world.mandate(&again).await).await.unwrap().expect(200);
    }

    async fn a_mandate_names_who_acts_and_dies_with_it(stack: Arc<Stack>) {
        let [desk, mail] = World::several(stack, ["desk", "mail"]).await;
        let zone = Zone(&desk);
        let actor = mail.lifecycle().await;
        let agent = desk.agent().await;
        let acted = [
            ("scope", "desk:read"), ("agent_session_id", &*agent.session),
            ("delegation_edge_id", &*agent.edge), ("actor_token", &*actor),
            ("actor_token_type", ACCESS_TOKEN),
        ];
        let refused = desk.exchange(&acted).await.unwrap();
        assert_eq!((refused.status, &*refused.text("error")), (400, "invalid_token"));
        zone.takes_actors().await;
        eventually("the zone takes actors", async || {
            desk.exchange(&acted).await.unwrap().status == 200
        })
        .await;
        let mint = async || desk.exchange(&acted).await.unwrap().expect(200).text("access_token");
        desk.call(&mint().await).await.unwrap().expect(200);
        let outstanding = mint().await;
        zone.revokes_subject(&mail.app).await;
        desk.is_dead(&outstanding).await;
        // Its own authority is untouched.
        desk.call(&desk.mandate(&agent).await).await.unwrap().expect(200);
    }

    async fn a_control_key_gets_its_token_without_a_zone(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        let zone = Zone(&world);
        let stack = &world.stack;
        let body = json!({"identifier": "caracal-control", "scopes": ["control:app:read"]});
        stack.post(&zone.path("/resources"), &body).await.expect(201);
        let traits = ["control:invoke", "control:scope:control:app:read", "control:max-ttl:120"];
        let body = json!({"name": "key", "registration_method": "managed", "traits": traits});
        let key = stack.post(&zone.path("/applications"), &body).await.expect(201);
        let ask = async |scope: &str| {
            let fields = [
                ("grant_type", GRANT), ("application_id", &*key.text("id")),
                ("client_secret", &*key.text("client_secret")), ("resource", "caracal-control"),
                ("scope", scope),
            ];
            let url = format!("{}/oauth/2/token", stack.urls.sts);
            stack.http.form(url, &fields).await.unwrap()
        };
        eventually("the key works", async || ask("control:app:read").await.status == 200).await;
        let token = ask("control:app:read").await.expect(200).json();
        assert_eq!((&token["expires_in"], &token["target_resources"]), (&json!(120), &json!(["caracal-control"])));
        let more = ask("control:app:delete").await;
        assert_eq!((more.status, &*more.text("error")), (403, "access_denied"));
        let records = stack.read(&zone.path("/authority-records?kind=application")).await.expect(200).json();
        let own = key.text("id");
        assert!(records["items"].as_array().unwrap().iter().any(|row| row["subject_id"] == *own));
    }
}
