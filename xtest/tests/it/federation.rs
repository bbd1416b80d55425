//! Users of a real OpenID provider, on both deployments: from the sign-in to a call in the user's name
//! through the Gateway, and to the end of all of it (spec: sts §7, §20.2).

use std::sync::Arc;

use caracal_crypto::digest::{b64url_decode, b64url_encode};
use serde_json::{Value, json};
use xtest::http::Answer;
use xtest::oauth::OauthProvider;
use xtest::{Agent, Deployment, Stack, World, eventually};

const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const INVALID: &str = "token_exchange deny subject_federation_invalid";

#[test]
fn embedded_lets_users_of_a_real_provider_in_and_out() {
    on(Deployment::Embedded);
}

#[test]
fn distributed_lets_users_of_a_real_provider_in_and_out() {
    on(Deployment::Distributed);
}

fn on(deployment: Deployment) {
    let Some(provider) = OauthProvider::start(&format!("federation, {deployment:?}")) else {
        return;
    };
    xtest::on(
        deployment,
        provider.options(),
        async move |stack: Arc<Stack>| {
            provider.is_up().await;
            let [world] = World::several(stack, ["desk"]).await;
            let scene = Scene { world, provider };
            let id = scene.trusts_the_provider().await;
            scene.lets_nobody_else_in().await;
            scene
                .the_kill_switch_of_a_user_ends_what_runs_in_her_name()
                .await;
            scene
                .an_issuer_that_is_trusted_no_more_lets_nobody_in(&id)
                .await;
        },
    );
}

struct Scene {
    world: World,
    provider: OauthProvider,
}

/// A mandate of a user, and the record that it hangs on.
struct SignedIn {
    token: String,
    sid: String,
}

impl Scene {
    async fn post(&self, rest: &str, body: &Value) -> Answer {
        let path = format!("/v1/zones/{}/{rest}", self.world.zone);
        self.world.stack.post(&path, body).await
    }

    async fn trusts_the_provider(&self) -> String {
        let before = self.federates(&self.provider.id_token("web").await).await;
        self.is_refused(&before, "its issuer is not trusted in this zone")
            .await;
        let issuer = json!({
            "issuer": self.provider.issuer(), "jwks_url": self.provider.endpoint("jwks"),
            "audience": "web",
        });
        let made = self.post("subject-issuers", &issuer).await.expect(201);
        eventually("the issuer is trusted", async || {
            let token = self.provider.id_token("web").await;
            self.federates(&token).await.status == 200
        })
        .await;
        made.text("id")
    }

    /// An exchange of this ID token by the application.
    async fn federates(&self, id_token: &str) -> Answer {
        let world = &self.world;
        let form = [
            ("grant_type", GRANT),
            ("zone_id", &*world.zone),
            ("application_id", &*world.app),
            ("client_secret", &*world.secret),
            ("subject_token", id_token),
            ("subject_token_type", ID_TOKEN),
        ];
        let url = format!("{}/oauth/2/token", world.stack.urls.sts);
        world.stack.http.form(url, &form).await.unwrap()
    }

    async fn is_refused(&self, answer: &Answer, why: &str) {
        assert_eq!(
            (
                answer.status,
                &*answer.text("error"),
                &*answer.text("error_description")
            ),
            (
                401,
                "invalid_token",
                &*format!("invalid subject_token: {why}")
            )
        );
        self.world
            .is_recorded(&answer.request_id(), &[INVALID])
            .await;
    }

    async fn lets_nobody_else_in(&self) {
        let other = self.provider.id_token("other").await;
        self.is_refused(
            &self.federates(&other).await,
            "it is meant for another audience",
        )
        .await;

        let good = self.provider.id_token("web").await;
        let parts: Vec<&str> = good.split('.').collect();
        let changed = |at: usize, name: &str, value: &str| {
            let mut json: Value =
                serde_json::from_slice(&b64url_decode(parts[at]).unwrap()).unwrap();
            assert!(json[name].is_string(), "{json}");
            json[name] = value.into();
            let mut parts: Vec<String> = parts.iter().map(|&part| part.to_owned()).collect();
            parts[at] = b64url_encode(json.to_string().as_bytes());
            parts.join(".")
        };
        for (token, why) in [
            (
                changed(0, "kid", "of-nobody"),
                "its issuer publishes no such key",
            ),
            (changed(1, "sub", "bob"), "its signature is wrong"),
            (changed(1, "aud", "web"), "its signature is wrong"),
            (
                changed(0, "alg", "none"),
                "it must be a JWT signed with RS256, RS384, RS512, ES256, ES384 or ES512",
            ),
        ] {
            self.is_refused(&self.federates(&token).await, why).await;
        }
    }

    /// A user of the provider signs in, and is who the provider says.
    async fn signs_in(&self) -> SignedIn {
        let id_token = self.provider.id_token("web").await;
        let answer = self.federates(&id_token).await.expect(200);
        let token = answer.text("access_token");
        let claims = token
            .split('.')
            .nth(1)
            .and_then(|part| b64url_decode(part).ok())
            .unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(
            [
                &claims["sub"],
                &claims["sub_type"],
                &claims["use"],
                &claims["client_id"],
                &claims["scope"],
                &claims["target"]
            ],
            [
                &json!("alice"),
                &json!("user"),
                &json!("session"),
                &json!(self.world.app),
                &Value::Null,
                &Value::Null
            ]
        );
        self.world
            .is_recorded(&answer.request_id(), &["token_exchange allow complete"])
            .await;
        let evidence = self.world.evidence(&answer.request_id()).await;
        let text = json!(evidence).to_string();
        assert!(
            text.contains(&self.provider.issuer()) && !text.contains("alice"),
            "{text}"
        );
        let sid = claims["sid"].as_str().unwrap().to_owned();
        SignedIn { token, sid }
    }

    /// An agent whose Sessions hang on her record.
    async fn agent_of(&self, user: &SignedIn) -> Agent {
        let world = &self.world;
        let lifecycle = world.lifecycle().await;
        let start = async || {
            let on = json!({"subject_session_id": user.sid, "subject_token": user.token});
            let started = world.session(&lifecycle, on).await;
            started.expect(201).text("agent_session_id")
        };
        let (parent, session) = (start().await, start().await);
        let edge = world
            .delegates(&lifecycle, &parent, &session, json!({}))
            .await;
        let edge = edge.expect(201).text("delegation_edge_id");
        Agent {
            lifecycle,
            parent,
            session,
            edge,
        }
    }

    async fn the_kill_switch_of_a_user_ends_what_runs_in_her_name(&self) {
        let world = &self.world;
        let user = self.signs_in().await;
        let agent = self.agent_of(&user).await;
        world
            .call(&world.mandate(&agent).await)
            .await
            .unwrap()
            .expect(200);
        let apart = world.agent().await;
        let outstanding = world.mandate(&agent).await;
        let records = world
            .stack
            .read(&format!(
                "/v1/zones/{}/authority-records?kind=user",
                world.zone
            ))
            .await;
        assert!(records.expect(200).json().to_string().contains(&user.sid));

        let cut = json!({"subject_id": "alice", "reason": "left"});
        let done = self.post("subjects/revoke", &cut).await.expect(200).json();
        assert_eq!(
            (&done["sessions"], &done["delegations"]),
            (&json!(2), &json!(1)),
            "{done}"
        );
        world.is_dead(&outstanding).await;
        eventually("nothing is minted for her agent", async || {
            world.mint(&agent).await.unwrap().status == 403
        })
        .await;
        eventually("her own mandate anchors nothing", async || {
            let on = json!({"subject_session_id": user.sid, "subject_token": user.token});
            let started = world.session(&apart.lifecycle, on).await;
            started.status == 404 && started.text("error") == "session_not_found"
        })
        .await;
        // What does not run in her name goes on, and she may sign in anew.
        world
            .call(&world.mandate(&apart).await)
            .await
            .unwrap()
            .expect(200);
        let again = self.signs_in().await;
        let agent = self.agent_of(&again).await;
        world
            .call(&world.mandate(&agent).await)
            .await
            .unwrap()
            .expect(200);
    }

    async fn an_issuer_that_is_trusted_no_more_lets_nobody_in(&self, id: &str) {
        let stack = &self.world.stack;
        let url = format!(
            "{}/v1/zones/{}/subject-issuers/{id}",
            stack.urls.api, self.world.zone
        );
        let gone = stack
            .http
            .json("DELETE", url, &stack.admin_token, &json!({}))
            .await;
        assert!(gone.status < 300, "{gone:?}");
        let token = self.provider.id_token("web").await;
        eventually("the issuer is trusted no more", async || {
            self.federates(&token).await.status == 401
        })
        .await;
        let refused = self.federates(&token).await;
        self.is_refused(&refused, "its issuer is not trusted in this zone")
            .await;
    }
}
