//! A canary in every secret field of the management API, used where it is used: each is stored, read
//! back, sent where it goes, and refused.

use std::sync::Arc;

use serde_json::{Value, json};
use xtest::http::Answer;
use xtest::{Agent, Stack, World};

use super::Seen;

/// Nobody uses this key for anything.
const PEM: &str = include_str!("../../../../crates/vaults/testdata/test-only-rsa.key");

fn canary(name: &str) -> String {
    format!("canary-of-{name}-5d8e1f")
}

/// A secret, and what it is called.
pub type Planted = (&'static str, String);

/// Whoever plants.
pub struct Garden<'a> {
    pub stack: &'a Arc<Stack>,
    pub world: &'a World,
    pub seen: &'a mut Seen,
    pub planted: Vec<Planted>,
}

impl Garden<'_> {
    fn path(&self, rest: &str) -> String {
        format!("/v1/zones/{}/{rest}", self.world.zone)
    }

    async fn post(&mut self, rest: &str, body: &Value) -> Answer {
        let answer = self.stack.post(&self.path(rest), body).await;
        assert!(answer.status < 300, "{rest}: {answer:?}");
        answer
    }

    /// Reads it back, which must show nothing.
    async fn read(&mut self, rest: &str) {
        let answer = self.stack.read(&self.path(rest)).await.expect(200);
        self.seen.note(format!("GET {rest}"), &answer.body);
    }

    fn keep(&mut self, name: &'static str, secret: String) {
        self.planted.push((name, secret));
    }

    /// One provider of each kind that has a secret.
    pub async fn providers(&mut self) -> String {
        let key = PEM.lines().nth(2).expect("a key").to_owned();
        let oauth = |more: Value| {
            let mut config =
                json!({"token_endpoint": "https://id.invalid/token", "client_id": "c"});
            for (name, value) in more.as_object().unwrap() {
                config[name] = value.clone();
            }
            config
        };
        let secrets = ["api-key", "bearer", "password", "service", "account"].map(canary);
        let [api_key, bearer, password, service, account] = &secrets;
        let mut id = String::new();
        for (kind, config) in [
            (
                "api_key",
                json!({"header_name": "X-Key", "api_key": api_key, "allow_runtime_injection": true}),
            ),
            ("bearer_token", json!({"bearer_token": bearer})),
            ("http_basic", json!({"username": "u", "password": password})),
            (
                "oauth2_client_credentials",
                oauth(json!({"client_secret": service})),
            ),
            (
                "oauth2_client_credentials",
                oauth(json!({"client_auth_method": "private_key_jwt", "private_key": PEM})),
            ),
            (
                "oauth2_authorization_code",
                oauth(json!({
                    "authorization_endpoint": "https://id.invalid/authorize",
                    "redirect_uri": "https://api.invalid/callback", "client_secret": account,
                })),
            ),
        ] {
            let name = self.stack.unique("provider");
            let body = json!({"name": name, "kind": kind, "config_json": config});
            let made = self.post("providers", &body).await;
            self.seen.note("a provider", &made.body);
            id = made.text("id");
            // Whatever its endpoint is, it does not answer.
            let tested = self
                .stack
                .post(&self.path(&format!("providers/{id}/test")), &json!({}))
                .await;
            self.seen.note("a provider's test", &tested.body);
        }
        let wrong = json!({"name": "x", "kind": "api_key", "config_json": {"api_key": api_key, "odd": bearer}});
        let refused = self
            .stack
            .post(&self.path("providers"), &wrong)
            .await
            .expect(400);
        self.seen.note("a provider that is refused", &refused.body);
        let names = [
            "an API key",
            "a bearer token",
            "a password",
            "a service's secret",
            "an account's secret",
        ];
        for (name, secret) in names.into_iter().zip(secrets) {
            self.keep(name, secret);
        }
        self.keep("a private key", key);
        self.read("providers").await;
        id
    }

    /// The account of a user at the last provider.
    pub async fn connection(&mut self, provider: &str) {
        let (access, refresh) = (canary("access-token"), canary("refresh-token"));
        let body = json!({
            "provider_id": provider, "subject_id": "user-1", "access_token": access,
            "refresh_token": refresh, "expires_at": "2030-01-01T00:00:00Z",
        });
        let made = self.post("provider-connections", &body).await;
        self.seen.note("a connection", &made.body);
        self.read("provider-connections").await;
        self.keep("an access token", access);
        self.keep("a refresh token", refresh);
    }

    /// A launcher, its credential, and one with a wrong secret.
    pub async fn workload(&mut self) {
        let made = self.post("workloads", &json!({"name": "nightly"})).await;
        let (id, secret) = (made.text("id"), made.text("secret"));
        assert!(secret.starts_with("ws_"), "{made:?}");
        self.read("workloads").await;
        let sts = &self.stack.urls.sts;
        let right = [("workload_id", &*id), ("secret", &*secret)];
        let listed = self
            .stack
            .http
            .form(format!("{sts}/v1/run/manifest"), &right)
            .await
            .unwrap();
        self.seen.note("a manifest", &listed.body);
        let more = [("workload_id", &*id), ("secret", &*secret), ("env", "NONE")];
        let refused = self
            .stack
            .http
            .form(format!("{sts}/v1/run/credential"), &more)
            .await
            .unwrap();
        self.seen
            .note("a credential that is refused", &refused.body);
        let guess = canary("workload-guess");
        let wrong = [("workload_id", &*id), ("secret", &*guess), ("env", "NONE")];
        let refused = self
            .stack
            .http
            .form(format!("{sts}/v1/run/credential"), &wrong)
            .await
            .unwrap();
        self.seen
            .note("a wrong workload secret", &refused.expect(401).body);
        self.keep("a workload's secret", secret);
        self.keep("a guess at it", guess);
    }

    /// The signing secret of a webhook, which takes nothing and repeats what it is sent.
    pub async fn sink(&mut self, refusing: &str) {
        let body = json!({"name": "pager", "url": format!("{refusing}/hook"), "event_types": ["step_up_issued"]});
        let made = self.post("notification-sinks", &body).await;
        let path = format!("notification-sinks/{}", made.text("id"));
        let tested = self.post(&format!("{path}/test"), &json!({})).await;
        assert_eq!(
            (
                &tested.json()["delivered"],
                &tested.json()["response_status"]
            ),
            (&json!(false), &json!(403))
        );
        self.seen.note("a webhook's test", &tested.body);
        self.read(&format!("{path}/deliveries")).await;
        let secret = ["secret", "signing_secret"]
            .map(|name| made.text(name))
            .concat();
        assert!(secret.len() > 16, "{made:?}");
        self.read("notification-sinks").await;
        self.keep("a webhook's secret", secret);
    }

    /// A token of an administrator, good and then forged.
    pub async fn token(&mut self) {
        let body = json!({"name": "reader", "scope": "zone", "zone_id": self.world.zone, "capability": "read"});
        let made = self.stack.post("/v1/admin-tokens", &body).await.expect(201);
        let token = made.text("token");
        let url = format!("{}{}", self.stack.urls.api, self.path("providers"));
        let read = self
            .stack
            .http
            .get(url.clone(), Some(&token))
            .await
            .expect(200);
        self.seen.note("what a token reads", &read.body);
        let forged = format!("{token}x");
        let refused = self.stack.http.get(url, Some(&forged)).await.expect(401);
        self.seen.note("a forged token", &refused.body);
        let listed = self.stack.read("/v1/admin-tokens").await.expect(200);
        self.seen.note("the list of tokens", &listed.body);
        self.keep("a token of an administrator", token);
    }

    /// An ID token, as a user's browser has it, of an issuer that is not to be reached; and actor
    /// tokens, one that is good and one that is none.
    pub async fn users(&mut self, agent: &Agent) {
        let stack = self.stack;
        let url = format!("{}{}", stack.urls.api, self.path(""));
        let url = url.trim_end_matches('/').to_owned();
        let takes = json!({"actor_tokens": true});
        let changed = stack
            .http
            .json("PATCH", url, &stack.admin_token, &takes)
            .await;
        self.seen
            .note("a zone that takes actors", &changed.expect(200).body);
        let issuer = json!({
            "issuer": "https://id.invalid", "jwks_url": "https://id.invalid/keys", "audience": "caracal",
        });
        self.post("subject-issuers", &issuer).await;
        self.read("subject-issuers").await;
        let part = |value: &Value| b64url(value.to_string().as_bytes());
        let claims = json!({"iss": "https://id.invalid", "aud": "caracal", "sub": canary("subject"),
            "exp": 4_000_000_000_u64, "iat": 1});
        let signed = |kid: &str| {
            let head = json!({"alg": "ES256", "kid": kid});
            format!("{}.{}.{}", part(&head), part(&claims), b64url(&[7; 64]))
        };
        let (id_token, odd) = (signed("k1"), canary("token-that-is-none"));
        let sts = format!("{}/oauth/2/token", stack.urls.sts);
        let grant = "urn:ietf:params:oauth:grant-type:token-exchange";
        for token in [&id_token, &odd] {
            let form = [
                ("grant_type", grant),
                ("zone_id", &*self.world.zone),
                ("application_id", &*self.world.app),
                ("client_secret", &*self.world.secret),
                ("subject_token", token),
                (
                    "subject_token_type",
                    "urn:ietf:params:oauth:token-type:id_token",
                ),
            ];
            let refused = stack.http.form(sts.clone(), &form).await.unwrap();
            assert!([401, 503].contains(&refused.status), "{refused:?}");
            self.seen.note("an ID token that is refused", &refused.body);
        }
        // Its own application may act in its own name; that of nobody may not.
        let actor = self.world.lifecycle().await;
        for token in [&actor, &odd, &id_token] {
            let more = [
                ("scope", "desk:read"),
                ("agent_session_id", &*agent.session),
                ("delegation_edge_id", &*agent.edge),
                ("actor_token", token),
                (
                    "actor_token_type",
                    "urn:ietf:params:oauth:token-type:access_token",
                ),
            ];
            let answer = self.world.exchange(&more).await.unwrap();
            match answer.status {
                200 => self.keep("an acted mandate", answer.text("access_token")),
                _ => self
                    .seen
                    .note("an actor token that is refused", &answer.body),
            }
        }
        self.keep("an ID token", id_token);
        self.keep("a user", canary("subject"));
        self.keep("an actor token", actor);
        self.keep("a token that is none", odd);
    }
}

fn b64url(bytes: &[u8]) -> String {
    caracal_crypto::digest::b64url_encode(bytes)
}
