//! A zone with everything that a governed call needs, provisioned over the wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use caracal_crypto::digest::b64url_decode;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::Stack;
use crate::http::{Answer, Request};
pub use crate::policy::{PolicySet, policy_set, put_in_force};
pub use crate::recorded::{CALLED, DENIED, MINTED, REPLAYED, kind, kinds};
use crate::upstream::echo;

/// The resource of the first application of a zone.
pub const DESK: &str = "resource://desk";

/// An application in a zone, and the resource that it is granted.
#[derive(Clone)]
pub struct World {
    /// The deployment.
    pub stack: Arc<Stack>,
    /// The zone.
    pub zone: String,
    /// What the application is called; grants know it, and labels name its role, by this.
    pub name: &'static str,
    /// The application.
    pub app: String,
    /// Its secret.
    pub secret: String,
    /// Its resource: scopes `desk:read` and `desk:write`, of which `GET /tickets` needs the first.
    pub resource: String,
    /// How many requests reached the upstream of its resource.
    pub reached: Arc<AtomicU64>,
    /// The heads of the latest of those requests.
    pub heads: Arc<Mutex<Vec<String>>>,
}

/// Two Sessions and the Delegation between them.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The lifecycle token that made them.
    pub lifecycle: String,
    /// The Session that delegated.
    pub parent: String,
    /// The Session that acts.
    pub session: String,
    /// The Delegation.
    pub edge: String,
}

impl World {
    /// A zone of its own with one application.
    pub async fn new(stack: Arc<Stack>) -> Self {
        let [world] = Self::several(stack, ["desk"]).await;
        world
    }

    /// A zone of its own with an application of each name, each owning the resource of its name.
    ///
    /// # Panics
    /// When the deployment refuses any of it.
    pub async fn several<const N: usize>(stack: Arc<Stack>, names: [&'static str; N]) -> [Self; N] {
        let zone = stack
            .post("/v1/zones", &json!({"name": "world"}))
            .await
            .expect(201)
            .text("id");
        let body = json!({"identifier": "provider://plain", "kind": "none"});
        let provider = stack
            .post(&format!("/v1/zones/{zone}/providers"), &body)
            .await
            .expect(201);
        let provider = provider.text("id");
        let mut worlds = Vec::new();
        for name in names {
            worlds.push(Self::register(&stack, &zone, name, &provider).await);
        }
        let worlds: [Self; N] = worlds
            .try_into()
            .unwrap_or_else(|_| unreachable!("one for each name"));
        Self::grant(&worlds, &["desk:read", "desk:write"]).await;
        worlds
    }

    async fn register(stack: &Arc<Stack>, zone: &str, name: &'static str, provider: &str) -> Self {
        let reached = Arc::new(AtomicU64::new(0));
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let upstream = echo(Arc::clone(&reached), Arc::clone(&heads)).await;
        let z = format!("/v1/zones/{zone}");
        let body = json!({"name": name, "registration_method": "managed"});
        let app = stack
            .post(&format!("{z}/applications"), &body)
            .await
            .expect(201);
        let resource = format!("resource://{name}");
        let body = json!({
            "identifier": resource, "name": name, "scopes": ["desk:read", "desk:write"],
            "upstream_url": upstream, "credential_provider_id": provider,
            "operations": [{"method": "GET", "path": "/tickets", "scope": "desk:read"}],
        });
        stack
            .post(&format!("{z}/resources"), &body)
            .await
            .expect(201);
        Self {
            stack: Arc::clone(stack),
            zone: zone.to_owned(),
            name,
            app: app.text("id"),
            secret: app.text("client_secret"),
            resource,
            reached,
            heads,
        }
    }

    /// Puts grants in force: each application gets these scopes on its own resource.
    ///
    /// # Panics
    /// When the deployment refuses, or does not load them in time.
    pub async fn grant(worlds: &[Self], scopes: &[&str]) {
        if let Some(one) = worlds.first() {
            put_in_force(&one.stack, &one.zone, &Self::grants(worlds, scopes)).await;
        }
    }

    /// What policy says when each application gets these scopes on its own resource.
    pub fn grants(worlds: &[Self], scopes: &[&str]) -> String {
        let mut app_ids = json!({});
        let mut grants = json!({});
        for world in worlds {
            // Grants name an application by an alias, as a person would write them.
            app_ids[world.name] = json!(world.app);
            grants[&world.resource] =
                json!({"application": world.name, "roles": {world.name: scopes}});
        }
        format!("app_ids := {app_ids}\ngrants := {grants}")
    }

    /// A lifecycle token.
    pub async fn lifecycle(&self) -> String {
        let answer = self.exchange(&[("scope", "agent:lifecycle")]).await;
        answer.unwrap().expect(200).text("access_token")
    }

    /// A token exchange of this application for its resource.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn exchange(&self, more: &[(&str, &str)]) -> Result<Answer, String> {
        self.exchange_at(&self.stack.urls.sts, more).await
    }

    /// The same, at this replica of the STS.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn exchange_at(&self, sts: &str, more: &[(&str, &str)]) -> Result<Answer, String> {
        let mut fields = vec![
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            ("zone_id", &*self.zone),
            ("application_id", &*self.app),
            ("client_secret", &*self.secret),
            ("resource", &*self.resource),
        ];
        fields.extend_from_slice(more);
        self.stack
            .http
            .form(format!("{sts}/oauth/2/token"), &fields)
            .await
    }

    /// A call to the Coordinator with a body.
    pub async fn coordinator(
        &self,
        method: &str,
        path: &str,
        bearer: &str,
        body: &Value,
    ) -> Answer {
        let url = format!("{}/zones/{}{path}", self.stack.urls.coordinator, self.zone);
        self.stack.http.json(method, url, bearer, body).await
    }

    /// A call to the Coordinator without one.
    pub async fn asks(&self, method: &str, path: &str, bearer: &str) -> Answer {
        let url = format!("{}/zones/{}{path}", self.stack.urls.coordinator, self.zone);
        let bearer = Some(bearer);
        self.stack
            .http
            .send(Request {
                method,
                url,
                bearer,
                headers: vec![],
                body: Bytes::new(),
            })
            .await
    }

    /// A Session of this application, with the label of its role and what `more` says.
    pub async fn session(&self, lifecycle: &str, more: Value) -> Answer {
        let mut body =
            json!({"application_id": self.app, "labels": [self.name], "ttl_seconds": 1020});
        merge(&mut body, more);
        self.coordinator("POST", "/agents", lifecycle, &body).await
    }

    /// Two Sessions and a Delegation of `desk:read` between them.
    pub async fn agent(&self) -> Agent {
        let lifecycle = self.lifecycle().await;
        self.agent_of(lifecycle).await
    }

    /// The same, made with a lifecycle token that is there already.
    pub async fn agent_of(&self, lifecycle: String) -> Agent {
        self.agent_lasting(lifecycle, 1020).await
    }

    /// As [`World::agent`], with Sessions that last so many seconds, and the Delegation two minutes
    /// less.
    pub async fn agent_for(&self, seconds: u64) -> Agent {
        let lifecycle = self.lifecycle().await;
        self.agent_lasting(lifecycle, seconds).await
    }

    async fn agent_lasting(&self, lifecycle: String, seconds: u64) -> Agent {
        let lasts = json!({"ttl_seconds": seconds});
        let start = async || {
            self.session(&lifecycle, lasts.clone())
                .await
                .expect(201)
                .text("agent_session_id")
        };
        let (parent, session) = (start().await, start().await);
        let edge = self
            .delegates(
                &lifecycle,
                &parent,
                &session,
                json!({"ttl_seconds": seconds - 120}),
            )
            .await
            .expect(201);
        let edge = edge.text("delegation_edge_id");
        Agent {
            lifecycle,
            parent,
            session,
            edge,
        }
    }

    /// A Delegation of `desk:read` on its resource, with what `more` changes.
    pub async fn delegates(&self, bearer: &str, from: &str, to: &str, more: Value) -> Answer {
        let mut body = json!({
            "source_session_id": from, "target_session_id": to,
            "issuer_application_id": self.app, "receiver_application_id": self.app,
            "scopes": ["desk:read"], "resource_id": self.resource, "ttl_seconds": 900,
        });
        merge(&mut body, more);
        self.coordinator("POST", "/delegations", bearer, &body)
            .await
    }

    /// Revokes the Delegation of an agent, as its issuer.
    pub async fn revokes(&self, agent: &Agent) {
        let path = format!("/delegations/{}/revoke", agent.edge);
        self.asks("PATCH", &path, &agent.lifecycle)
            .await
            .expect(200);
    }

    /// A delegated mint of `desk:read`.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn mint(&self, agent: &Agent) -> Result<Answer, String> {
        self.mints(&agent.session, &agent.edge, "desk:read").await
    }

    /// A delegated mint.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn mints(&self, session: &str, edge: &str, scope: &str) -> Result<Answer, String> {
        self.exchange(&delegated(session, edge, scope)).await
    }

    /// As [`World::mint`], at this STS.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn mint_at(&self, sts: &str, agent: &Agent) -> Result<Answer, String> {
        let more = delegated(&agent.session, &agent.edge, "desk:read");
        self.exchange_at(sts, &more).await
    }

    /// A mandate that was minted.
    pub async fn mandate(&self, agent: &Agent) -> String {
        self.mint(agent)
            .await
            .unwrap()
            .expect(200)
            .text("access_token")
    }

    /// A call of `GET /tickets` through the Gateway.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn call(&self, mandate: &str) -> Result<Answer, String> {
        self.calls("GET", "/tickets", mandate).await
    }

    /// A call through the Gateway.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn calls(&self, method: &str, path: &str, mandate: &str) -> Result<Answer, String> {
        let url = format!("{}{path}", self.stack.urls.gateway);
        self.sends(method, url, mandate).await
    }

    /// A call of `GET /tickets` through this Gateway.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn call_at(&self, gateway: &str, mandate: &str) -> Result<Answer, String> {
        self.sends("GET", format!("{gateway}/tickets"), mandate)
            .await
    }

    async fn sends(&self, method: &str, url: String, mandate: &str) -> Result<Answer, String> {
        let request = Request {
            method,
            url,
            bearer: Some(mandate),
            headers: vec![("x-caracal-resource", self.resource.clone())],
            body: Bytes::new(),
        };
        self.stack.http.try_send(request).await
    }

    /// Waits until the Gateway refuses this mandate because what it stands on was taken away: a look
    /// spends it, so that the next one would be refused as a replay in any case.
    ///
    /// # Panics
    /// When that does not come true in 30 s.
    pub async fn is_dead(&self, mandate: &str) {
        eventually("the mandate is dead", async || {
            // The news may also cut off what a look had begun.
            self.call(mandate).await.is_ok_and(|answer| {
                answer.status == 401 && answer.text("error_description") == "session revoked"
            })
        })
        .await;
    }

    /// How many requests reached the upstream so far.
    pub fn reached(&self) -> u64 {
        self.reached.load(Ordering::SeqCst)
    }

    /// The evidence of one request, as far as it has arrived.
    pub async fn evidence(&self, request_id: &str) -> Vec<Value> {
        let path = format!("/v1/zones/{}/audit/by-request/{request_id}", self.zone);
        let answer = self.stack.read(&path).await;
        answer.json().as_array().cloned().unwrap_or_default()
    }

    /// Waits until the evidence of a request is exactly this, in any order (see [`kinds`]).
    pub async fn is_recorded(&self, request_id: &str, expected: &[&str]) {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        let what = format!("request {request_id} is recorded as {expected:?}");
        eventually(&what, async || {
            let mut found = kinds(&self.evidence(request_id).await);
            found.sort_unstable();
            assert!(
                found.len() <= expected.len(),
                "{found:?} is more than {expected:?}"
            );
            found == expected
        })
        .await;
    }
}

/// A part of a token: its header (0) or its claims (1).
///
/// # Panics
/// When it is no token.
pub fn part_of(token: &str, nth: usize) -> Value {
    let part = token.split('.').nth(nth).expect("a JWS");
    serde_json::from_slice(&b64url_decode(part).expect("base64url")).expect("JSON")
}

/// What a delegated mint asks for.
fn delegated<'a>(session: &'a str, edge: &'a str, scope: &'a str) -> [(&'static str, &'a str); 3] {
    [
        ("scope", scope),
        ("agent_session_id", session),
        ("delegation_edge_id", edge),
    ]
}

fn merge(body: &mut Value, more: Value) {
    let Value::Object(more) = more else {
        panic!("{more} is not an object")
    };
    for (name, value) in more {
        body[name] = value;
    }
}

/// Waits for a condition; the deadline is generous because it only bounds a failure.
///
/// # Panics
/// When the condition does not come true in 30 s.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
