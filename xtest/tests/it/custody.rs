//! Secrets in a service outside (`CARACAL_SECRET_BACKEND=custom`), on both deployments: what is kept
//! there, what a call injects of it, and a start that would not find it.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use xtest::{Deployment, Options, Stack, World, eventually};

use crate::answering::{Asked, answering};

const TOKEN: &str = "the-token-of-the-secret-service";

/// The service, and the upstream that is called with a secret from it.
#[derive(Clone, Default)]
struct Far {
    held: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    keys: Arc<Mutex<Vec<String>>>,
}

impl Far {
    /// Listens before there is a deployment that could be told where.
    fn start() -> (Self, String) {
        let far = Self::default();
        let serving = far.clone();
        let url = answering(move |asked| serving.answer(asked));
        (far, url)
    }

    fn answer(&self, asked: Asked) -> (u16, Vec<u8>) {
        let bearer = format!("Bearer {TOKEN}");
        match asked.path.strip_prefix("/secrets/") {
            None => {
                self.keys.lock().push(asked.header("x-key").to_owned());
                (200, b"{\"ok\":true}".to_vec())
            }
            Some(_) if asked.header("authorization") != bearer => (401, Vec::new()),
            Some(at) => self.keep(&asked.method, at, asked.body),
        }
    }

    fn keep(&self, method: &str, at: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        let mut held = self.held.lock();
        match method {
            "PUT" => {
                held.insert(at.to_owned(), body);
                (204, Vec::new())
            }
            "DELETE" => (
                if held.remove(at).is_some() { 204 } else { 404 },
                Vec::new(),
            ),
            _ => match held.get(at) {
                Some(envelope) => (200, envelope.clone()),
                None => (404, Vec::new()),
            },
        }
    }

    fn has(&self, at: &str) -> bool {
        self.held
            .lock()
            .get(at)
            .is_some_and(|envelope| envelope.starts_with(b"CSS1"))
    }
}

fn on(deployment: Deployment) {
    let (far, url) = Far::start();
    let options = Options::default()
        .env("CARACAL_SECRET_BACKEND", "custom")
        .env("CARACAL_CUSTOM_SECRETS_URL", &url)
        .env("CARACAL_CUSTOM_SECRETS_TOKEN", TOKEN);
    xtest::on(deployment, options, async move |stack: Arc<Stack>| {
        let world = World::new(Arc::clone(&stack)).await;
        let z = format!("/v1/zones/{}", world.zone);
        let place = format!(
            "zones/{}/applications/{}/clientSecret",
            world.zone, world.app
        );
        assert!(far.has(&place), "{:?}", far.held.lock().keys());
        let key = json!({"name": "Key", "kind": "api_key", "config_json": {"header_name": "X-Key", "api_key": "k-1"}});
        let provider = stack
            .post(&format!("{z}/providers"), &key)
            .await
            .expect(201)
            .text("id");
        let place = format!("zones/{}/providers/{provider}/secretConfig", world.zone);
        assert!(far.has(&place));

        let listed = stack
            .read(&format!("{z}/resources"))
            .await
            .expect(200)
            .json();
        let resource = listed["items"][0]["id"].as_str().unwrap().to_owned();
        let token = stack.setting("CARACAL_ADMIN_TOKEN");
        let send = async |method: &str, path: String, body| {
            let url = format!("{}{path}", stack.urls.api);
            stack.http.json(method, url, token, &body).await.expect(200)
        };
        let through = json!({"credential_provider_id": provider, "upstream_url": url});
        send("PATCH", format!("{z}/resources/{resource}"), through).await;
        let agent = world.agent().await;
        let mandate = world.mandate(&agent).await;
        world.call(&mandate).await.unwrap().expect(200);
        assert_eq!(*far.keys.lock(), ["k-1"]);

        let changed = json!({"config_json": {"header_name": "X-Key", "api_key": "k-2"}});
        send("PATCH", format!("{z}/providers/{provider}"), changed).await;
        let mandate = world.mandate(&agent).await;
        world.call(&mandate).await.unwrap().expect(200);
        assert_eq!(far.keys.lock().last().unwrap(), "k-2");

        let again = json!({"credential_provider_id": world_provider(&stack, &z).await});
        send("PATCH", format!("{z}/resources/{resource}"), again).await;
        let gone = format!("{}{z}/providers/{provider}", stack.urls.api);
        stack
            .http
            .json("DELETE", gone, token, &json!({}))
            .await
            .expect(204);
        eventually("the service has forgotten the secret", async || {
            !far.has(&place)
        })
        .await;
    });
}

/// The provider that the world began with.
async fn world_provider(stack: &Stack, z: &str) -> String {
    let listed = stack
        .read(&format!("{z}/providers"))
        .await
        .expect(200)
        .json();
    let plain = listed["items"].as_array().unwrap().iter();
    let plain = plain.into_iter().find(|row| row["kind"] == "none").unwrap();
    plain["id"].as_str().unwrap().to_owned()
}

#[test]
fn embedded_keeps_secrets_outside() {
    on(Deployment::Embedded);
}

#[test]
fn distributed_keeps_secrets_outside() {
    on(Deployment::Distributed);
}
