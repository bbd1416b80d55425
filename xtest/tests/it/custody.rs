//! Secrets in a service outside (`CARACAL_SECRET_BACKEND=custom`), on both deployments: what is kept
//! there, what a call injects of it, and a start that would not find it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use xtest::{Deployment, Options, Stack, World, eventually};

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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = far.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let far = serving.clone();
                std::thread::spawn(move || far.serve(stream));
            }
        });
        (far, url)
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut answers = stream.try_clone().ok()?;
        let mut requests = BufReader::new(stream);
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                if requests.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                if line.trim().is_empty() {
                    break;
                }
                lines.push(line.trim().to_owned());
            }
            let header = |name: &str| {
                let found = lines.iter().skip(1).find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name).then(|| value.trim())
                });
                found.unwrap_or_default().to_owned()
            };
            let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
            requests.read_exact(&mut body).ok()?;
            let mut line = lines.first()?.split(' ');
            let (method, path) = (line.next()?, line.next()?);
            let (status, body) = match path.strip_prefix("/secrets/") {
                None => {
                    self.keys.lock().push(header("x-key"));
                    (200, b"{\"ok\":true}".to_vec())
                }
                Some(_) if header("authorization") != format!("Bearer {TOKEN}") => {
                    (401, Vec::new())
                }
                Some(at) => self.keep(method, at, body),
            };
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            answers.write_all(head.as_bytes()).ok()?;
            answers.write_all(&body).ok()?;
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
