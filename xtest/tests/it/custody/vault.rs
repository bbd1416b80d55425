//! A deployment on a real Vault, which is sealed while it serves. Vault is what `CARACAL_TEST_VAULT`
//! names; without it this is skipped, and says so.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use xtest::http::{Answer, Http, Request};
use xtest::{Deployment, Options, Process, eventually};

use super::{Stack, Upstream, World, keeps};

const ROOT: &str = "root-of-a-test";

/// In memory, in dev mode; it ends with its test.
struct Vault {
    process: Process,
    url: String,
    http: Http,
    directory: tempfile::TempDir,
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.process.kill9();
    }
}

impl Vault {
    /// Listens before there is a deployment that could be told where.
    fn start() -> Option<Self> {
        let program = PathBuf::from(std::env::var_os("CARACAL_TEST_VAULT")?);
        let directory = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let arguments = [
            "server".to_owned(),
            "-dev".to_owned(),
            format!("-dev-root-token-id={ROOT}"),
            format!("-dev-listen-address={address}"),
        ];
        let home = directory.path().display().to_string();
        let environment = vec![("HOME".to_owned(), home)];
        let log = directory.path().join("log");
        let mut process = Process::new("vault", program, arguments, environment, log);
        process.start();
        for _ in 0..3_000 {
            if TcpStream::connect(&address).is_ok() {
                let url = format!("http://{address}");
                let http = Http::default();
                return Some(Self {
                    process,
                    url,
                    http,
                    directory,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("Vault does not start: {}", process.log_tail(20));
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request {
            method,
            url: format!("{}/v1/{path}", self.url),
            bearer: None,
            headers: vec![("x-vault-token", ROOT.to_owned())],
            body: body.into(),
        };
        self.http.send(request).await
    }

    async fn has(&self, place: &str) -> bool {
        let path = format!("secret/data/{place}");
        self.ask("GET", &path, &Value::Null).await.status == 200
    }

    async fn is_sealed(&self) {
        self.ask("PUT", "sys/seal", &json!({})).await.expect(204);
    }

    async fn is_unsealed(&self) {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap();
        let key = log.lines().find_map(|line| line.split_once("Unseal Key:"));
        let body = json!({"key": key.expect("the unseal key").1.trim()});
        self.ask("PUT", "sys/unseal", &body).await.expect(200);
    }
}

fn on(deployment: Deployment) {
    let Some(vault) = Vault::start() else {
        xtest::visibly("skipped a deployment on Vault: CARACAL_TEST_VAULT is not set");
        return;
    };
    let options = Options::default()
        .env("CARACAL_SECRET_BACKEND", "vault")
        .env("CARACAL_VAULT_ADDR", &vault.url)
        .env("CARACAL_VAULT_TOKEN", ROOT);
    xtest::on(deployment, options, async |stack: Arc<Stack>| {
        eventually("Vault has its mount", async || {
            let mount = vault.ask("GET", "sys/mounts/secret", &Value::Null);
            mount.await.status == 200
        })
        .await;
        let upstream = Upstream::start();
        let world = World::new(Arc::clone(&stack)).await;
        keeps(&world, &upstream, async |place| vault.has(place).await).await;
        sealed(&world, &upstream, &vault).await;
    });
}

/// What is held goes on; what would have to be kept is refused, and nothing of it stays.
async fn sealed(world: &World, upstream: &Upstream, vault: &Vault) {
    let agent = world.agent().await;
    let provider = upstream.provides(world, "k-9").await;
    let call = async || {
        let mandate = world.mandate(&agent).await;
        world.call(&mandate).await.unwrap().expect(200);
        upstream.last()
    };
    assert_eq!(call().await, "k-9");
    vault.is_sealed().await;
    assert_eq!(
        call().await,
        "k-9",
        "what was confirmed a moment ago is good"
    );
    let stack = &world.stack;
    let providers = format!("/v1/zones/{}/providers", world.zone);
    let listed = async || {
        stack.read(&providers).await.expect(200).json()["items"]
            .as_array()
            .unwrap()
            .len()
    };
    let before = listed().await;
    let key = super::key("k-10");
    let refused = stack.post(&providers, &key).await.expect(502);
    assert_eq!(refused.text("error"), "secret_backend_unavailable");
    assert_eq!(listed().await, before, "half of it was applied");
    vault.is_unsealed().await;
    eventually("Vault is used again", async || {
        stack.post(&providers, &key).await.status == 201
    })
    .await;
    assert_eq!(call().await, "k-9");
    let place = format!("zones/{}/providers/{provider}/secretConfig", world.zone);
    assert!(vault.has(&place).await);
}

#[test]
fn embedded_keeps_secrets_in_a_real_vault() {
    on(Deployment::Embedded);
}

#[test]
fn distributed_keeps_secrets_in_a_real_vault() {
    on(Deployment::Distributed);
}
