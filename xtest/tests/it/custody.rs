//! Secrets in a service outside, on both deployments: what is kept there, what a call injects of it, and
//! that it is forgotten. Here with `CARACAL_SECRET_BACKEND=custom`; with a real Vault in [`vault`].

mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use xtest::{Deployment, Options, Stack, World, eventually};

use crate::answering::{Asked, answering};

const TOKEN: &str = "the-token-of-the-secret-service";

/// Sealed secrets, by their place.
type Held = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// A service of secrets, and where it is.
fn service() -> (Held, String) {
    let held = Held::default();
    let keeper = Arc::clone(&held);
    let url = answering(move |asked| {
        let Some(at) = asked.path.strip_prefix("/secrets/") else {
            return (404, Vec::new());
        };
        if asked.header("authorization") != format!("Bearer {TOKEN}") {
            return (401, Vec::new());
        }
        let at = at.to_owned();
        keep(&mut keeper.lock(), &at, asked)
    });
    (held, url)
}

fn keep(held: &mut BTreeMap<String, Vec<u8>>, at: &str, asked: Asked) -> (u16, Vec<u8>) {
    match &*asked.method {
        "PUT" => {
            held.insert(at.to_owned(), asked.body);
            (204, Vec::new())
        }
        "DELETE" if held.remove(at).is_some() => (204, Vec::new()),
        "GET" => match held.get(at) {
            Some(envelope) => (200, envelope.clone()),
            None => (404, Vec::new()),
        },
        _ => (404, Vec::new()),
    }
}

/// What is called with a secret, and which it was.
struct Upstream {
    url: String,
    keys: Arc<Mutex<Vec<String>>>,
}

/// A provider that injects this.
fn key(key: &str) -> Value {
    let config = json!({"header_name": "X-Key", "api_key": key});
    json!({"name": key, "kind": "api_key", "config_json": config})
}

impl Upstream {
    fn start() -> Self {
        let keys = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&keys);
        let url = answering(move |asked| {
            seen.lock().push(asked.header("x-key").to_owned());
            (200, b"{\"ok\":true}".to_vec())
        });
        Self { url, keys }
    }

    fn last(&self) -> String {
        self.keys.lock().last().cloned().unwrap_or_default()
    }

    /// The resource of the world is called here, with a key of a new provider; its id.
    async fn provides(&self, world: &World, secret: &str) -> String {
        let stack = &world.stack;
        let z = format!("/v1/zones/{}", world.zone);
        let made = stack.post(&format!("{z}/providers"), &key(secret)).await;
        let provider = made.expect(201).text("id");
        let through = json!({"credential_provider_id": provider, "upstream_url": self.url});
        patch(world, &resource(world).await, &through).await;
        provider
    }
}

/// The path of the resource of the world.
async fn resource(world: &World) -> String {
    let path = format!("/v1/zones/{}/resources", world.zone);
    let listed = world.stack.read(&path).await.expect(200).json();
    format!("{path}/{}", listed["items"][0]["id"].as_str().unwrap())
}

async fn patch(world: &World, path: &str, body: &Value) {
    let stack = &world.stack;
    let url = format!("{}{path}", stack.urls.api);
    let token = &stack.admin_token;
    stack.http.json("PATCH", url, token, body).await.expect(200);
}

/// Secrets are kept outside, used from there, changed there, and forgotten there.
async fn keeps(world: &World, upstream: &Upstream, has: impl AsyncFn(&str) -> bool) {
    let stack = &world.stack;
    let z = format!("zones/{}", world.zone);
    let of_app = format!("{z}/applications/{}/clientSecret", world.app);
    assert!(has(&of_app).await, "{of_app}");
    let plain = world_provider(world).await;
    let provider = upstream.provides(world, "k-1").await;
    let place = format!("{z}/providers/{provider}/secretConfig");
    assert!(has(&place).await);
    let agent = world.agent().await;
    let call = async || {
        let mandate = world.mandate(&agent).await;
        world.call(&mandate).await.unwrap().expect(200);
        upstream.last()
    };
    assert_eq!(call().await, "k-1");

    let path = format!("/v1/{z}/providers/{provider}");
    let changed = json!({"config_json": {"header_name": "X-Key", "api_key": "k-2"}});
    patch(world, &path, &changed).await;
    assert_eq!(call().await, "k-2");

    let again = json!({ "credential_provider_id": plain });
    patch(world, &resource(world).await, &again).await;
    let (url, token) = (format!("{}{path}", stack.urls.api), &stack.admin_token);
    let gone = stack.http.json("DELETE", url, token, &json!({})).await;
    gone.expect(204);
    eventually("the secret is forgotten", async || !has(&place).await).await;
}

/// The provider that the world began with.
async fn world_provider(world: &World) -> String {
    let path = format!("/v1/zones/{}/providers", world.zone);
    let listed = world.stack.read(&path).await.expect(200).json();
    let mut all = listed["items"].as_array().unwrap().iter();
    let plain = all.find(|row| row["kind"] == "none").unwrap();
    plain["id"].as_str().unwrap().to_owned()
}

fn on(deployment: Deployment) {
    let (held, url) = service();
    let options = Options::default()
        .env("CARACAL_SECRET_BACKEND", "custom")
        .env("CARACAL_CUSTOM_SECRETS_URL", &url)
        .env("CARACAL_CUSTOM_SECRETS_TOKEN", TOKEN);
    xtest::on(deployment, options, async |stack: Arc<Stack>| {
        let world = World::new(stack).await;
        let sealed = |envelope: &Vec<u8>| envelope.starts_with(b"CSS1");
        let has = async |at: &str| held.lock().get(at).is_some_and(sealed);
        keeps(&world, &Upstream::start(), has).await;
    });
}

#[test]
fn embedded_keeps_secrets_outside() {
    on(Deployment::Embedded);
}

#[test]
fn distributed_keeps_secrets_outside() {
    on(Deployment::Distributed);
}
