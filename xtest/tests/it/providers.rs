//! Upstream credentials from a real OpenID provider, on both deployments: tokens of the service, an
//! account that is connected, refreshed and revoked, and the provider gone.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use xtest::http::{Answer, Request};
use xtest::oauth::{CALLBACK, OauthProvider, signer};
use xtest::{Agent, Deployment, Stack, World, eventually};

#[test]
fn embedded_uses_credentials_of_a_real_provider() {
    on(Deployment::Embedded);
}

#[test]
fn distributed_uses_credentials_of_a_real_provider() {
    on(Deployment::Distributed);
}

fn on(deployment: Deployment) {
    let (key, _) = signer();
    let Some(provider) = OauthProvider::start(&format!("providers, {deployment:?}")) else {
        return;
    };
    let options = provider.options();
    xtest::on(deployment, options, async move |stack: Arc<Stack>| {
        provider.is_up().await;
        let scene = Scene::new(stack, provider).await;
        scene.a_service_token_is_fetched_once().await;
        scene
            .a_client_may_sign_instead_of_sharing_a_secret(&key)
            .await;
        scene.an_account_is_connected_refreshed_and_revoked().await;
        scene
            .without_the_provider_only_what_is_at_hand_works()
            .await;
    });
}

/// A zone whose one resource changes its provider from scene to scene.
struct Scene {
    world: World,
    agent: Agent,
    provider: OauthProvider,
    resource: String,
    /// The `Authorization` of every call that reached the upstream.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Scene {
    async fn new(stack: Arc<Stack>, provider: OauthProvider) -> Self {
        let world = World::new(stack).await;
        let agent = world.agent().await;
        let listed = world
            .stack
            .read(&format!("/v1/zones/{}/resources", world.zone))
            .await;
        let listed = listed.expect(200).json();
        let resource = listed["items"][0]["id"].as_str().unwrap().to_owned();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let upstream = upstream(Arc::clone(&seen)).await;
        let scene = Self {
            world,
            agent,
            provider,
            resource,
            seen,
        };
        scene.patch(json!({"upstream_url": upstream})).await;
        scene
    }

    async fn patch(&self, body: Value) {
        let path = format!("/v1/zones/{}/resources/{}", self.world.zone, self.resource);
        self.send("PATCH", &path, &body).await.expect(200);
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let stack = &self.world.stack;
        let token = stack.setting("CARACAL_ADMIN_TOKEN");
        stack
            .http
            .json(method, format!("{}{path}", stack.urls.api), token, body)
            .await
    }

    /// Makes a provider, after a test of it against the real one, and puts the resource behind it.
    async fn behind(&self, name: &str, kind: &str, config: Value, check: bool) -> String {
        let path = format!("/v1/zones/{}/providers", self.world.zone);
        let body = json!({"name": name, "kind": kind, "config_json": config, "check": check});
        let id = self.send("POST", &path, &body).await.expect(201).text("id");
        self.patch(json!({"credential_provider_id": id})).await;
        id
    }

    /// A governed call; answers with the credential that the upstream saw.
    async fn call(&self) -> Result<String, Answer> {
        let mandate = self.world.mandate(&self.agent).await;
        let answer = self.world.call(&mandate).await.unwrap();
        if answer.status != 200 {
            return Err(answer);
        }
        let last = self.seen.lock().last().cloned().unwrap();
        let token = last.strip_prefix("Bearer ").map(str::to_owned);
        Ok(token.unwrap_or_else(|| panic!("not a bearer token: {last}")))
    }

    async fn is_refused(&self, status: u16, code: &str, evidence: &str) {
        let answer = self.call().await.unwrap_err();
        assert_eq!(
            (answer.status, &*answer.text("error")),
            (status, code),
            "{:?}",
            answer.json()
        );
        let id = answer.request_id();
        eventually(&format!("{id} is recorded as {evidence}"), async || {
            xtest::world::kinds(&self.world.evidence(&id).await)
                .iter()
                .any(|kind| kind == evidence)
        })
        .await;
    }

    async fn a_service_token_is_fetched_once(&self) {
        let config = json!({
            "token_endpoint": self.provider.endpoint("token"),
            "client_id": "service", "client_secret": "service-secret",
        });
        self.behind("Service", "oauth2_client_credentials", config, true)
            .await;
        let before = self.provider.asked().await;
        let token = self.call().await.unwrap();
        let about = self.provider.about(&token).await;
        assert_eq!(
            (&about["kind"], &about["client"]),
            (&json!("ClientCredentials"), &json!("service"))
        );
        for _ in 0..3 {
            assert_eq!(self.call().await.unwrap(), token);
        }
        assert_eq!(self.provider.asked().await, before + 1);
    }

    async fn a_client_may_sign_instead_of_sharing_a_secret(&self, key: &str) {
        let config = json!({
            "token_endpoint": self.provider.endpoint("token"), "client_id": "signer",
            "client_auth_method": "private_key_jwt", "private_key": key, "key_id": "k1",
        });
        self.behind("Signer", "oauth2_client_credentials", config, true)
            .await;
        let about = self.provider.about(&self.call().await.unwrap()).await;
        assert_eq!(
            (&about["client"], &about["live"]),
            (&json!("signer"), &json!(true))
        );
    }

    async fn an_account_is_connected_refreshed_and_revoked(&self) {
        let config = json!({
            "authorization_endpoint": self.provider.endpoint("auth"),
            "token_endpoint": self.provider.endpoint("token"),
            "revocation_endpoint": self.provider.endpoint("token/revocation"),
            "redirect_uri": CALLBACK, "client_id": "web", "client_secret": "web-secret",
            "client_auth_method": "client_secret_post", "scopes": ["openid", "offline_access"],
            "authorization_params": {"prompt": "consent"},
        });
        let id = self
            .behind("Accounts", "oauth2_authorization_code", config, true)
            .await;
        self.is_refused(
            403,
            "credential_not_provisioned",
            "token_exchange deny credential_not_provisioned",
        )
        .await;

        let connections = format!("/v1/zones/{}/provider-connections", self.world.zone);
        let wish = json!({"provider_id": id});
        let begun = self
            .send("POST", &format!("{connections}/oauth/authorize"), &wish)
            .await;
        let landed = self
            .provider
            .browse(&begun.expect(200).text("authorization_url"))
            .await;
        let query = landed.strip_prefix(&format!("{CALLBACK}?")).unwrap();
        let stack = &self.world.stack;
        let callback = Request {
            method: "GET",
            url: format!("{}{connections}/oauth/callback?{query}", stack.urls.api),
            bearer: None,
            headers: vec![],
            body: bytes::Bytes::new(),
        };
        assert_eq!(
            stack.http.send(callback).await.expect(201).text("status"),
            "active"
        );

        // Its tokens live for less than a token must have left, so each call refreshes; the provider
        // takes a refresh token once.
        let first = self.call().await.unwrap();
        let about = self.provider.about(&first).await;
        assert_eq!(
            (&about["kind"], &about["account"]),
            (&json!("AccessToken"), &json!("alice"))
        );
        let second = self.call().await.unwrap();
        assert_ne!(first, second);
        let calls = (0..6).map(|_| self.call());
        for outcome in futures_util::future::join_all(calls).await {
            outcome.unwrap();
        }
        let revoked = self
            .send("POST", &format!("{connections}/revoke"), &wish)
            .await
            .expect(200);
        assert_eq!(revoked.text("upstream_revocation"), "revoked");
        self.is_refused(
            403,
            "credential_not_provisioned",
            "token_exchange deny credential_not_provisioned",
        )
        .await;
    }

    async fn without_the_provider_only_what_is_at_hand_works(mut self) {
        let config = || {
            json!({
                "token_endpoint": self.provider.endpoint("token"),
                "client_id": "service", "client_secret": "service-secret",
            })
        };
        let config = [config(), config()];
        let [first, second] = config;
        self.behind("Held", "oauth2_client_credentials", first, false)
            .await;
        let token = self.call().await.unwrap();
        self.provider.process.kill9();
        assert_eq!(
            self.call().await.unwrap(),
            token,
            "a token that is held needs nobody"
        );
        self.behind("Gone", "oauth2_client_credentials", second, false)
            .await;
        self.is_refused(
            502,
            "http_request_failed",
            "token_exchange deny provider_credential_unavailable",
        )
        .await;
    }
}

/// An upstream that notes what it is authenticated with.
async fn upstream(seen: Arc<Mutex<Vec<String>>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let lines = head.lines().filter_map(|line| line.split_once(": "));
                let found = lines
                    .into_iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
                seen.lock()
                    .push(found.map_or(String::new(), |(_, value)| value.to_owned()));
                let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
                drop(stream.write_all(answer).await);
            });
        }
    });
    url
}
