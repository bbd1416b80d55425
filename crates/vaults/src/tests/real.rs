//! Against a real Vault, in memory: whatever `CARACAL_TEST_VAULT` names, which takes the arguments of
//! its dev mode (`testdata/vault` builds one). Without it, these are skipped, and say so.

mod logins;

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use caracal_model::TestClock;
use caracal_store::custody::SecretBackend as _;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::{AT, ENVELOPE, TEXT, text, wire};
use crate::token::{Authorized, Shown};
use crate::vault::{By, Login, Vault};
use crate::wire::{below, json as asking};

const ROOT: &str = "root-of-a-test";
const PATIENCE: Duration = Duration::from_secs(60);
/// No more than `docs/providers.md` asks for.
const POLICY: &str = r#"
path "secret/data/zones/*" { capabilities = ["create", "read", "update"] }
path "secret/metadata/zones/*" { capabilities = ["delete"] }
"#;

/// A server of one test; it ends with it.
struct Real {
    process: Child,
    url: Url,
    home: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        self.ends();
    }
}

impl Real {
    /// `None` where there is none.
    async fn start() -> Option<Self> {
        let Some(program) = std::env::var_os("CARACAL_TEST_VAULT") else {
            eprintln!("skipped: CARACAL_TEST_VAULT is not set");
            return None;
        };
        let home = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let said = File::create(home.path().join("said")).unwrap();
        let process = Command::new(program)
            .args(["server", "-dev"])
            .arg(format!("-dev-root-token-id={ROOT}"))
            .arg(format!("-dev-listen-address={address}"))
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(said)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let real = Self {
            process,
            url: Url::parse(&format!("http://{address}")).unwrap(),
            home,
        };
        eventually("Vault is up", async || real.is_up().await).await;
        Some(real)
    }

    fn ends(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    async fn is_up(&self) -> bool {
        let mounted = self
            .answer(Method::GET, "sys/mounts/secret", &Value::Null)
            .await;
        mounted.is_ok_and(|(status, _)| status == StatusCode::OK)
    }

    /// What it answers the operator.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<(StatusCode, Value), String> {
        let uri = below(&self.url, &format!("v1/{path}"));
        let request = asking(method, &uri).header("x-vault-token", ROOT);
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let answer = wire("operator").send(request, body).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let body = serde_json::from_slice(answer.body()).unwrap_or_default();
        Ok((answer.status(), body))
    }

    /// The operator asks for this, and it is done.
    async fn does(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.answer(method, path, &body).await.unwrap();
        assert!(status.is_success(), "{path}: {status} {answer}");
        answer
    }

    async fn sets(&self, path: &str, body: Value) -> Value {
        self.does(Method::POST, path, body).await
    }

    /// The key that opens it when it is sealed.
    fn key(&self) -> String {
        let said = std::fs::read_to_string(self.home.path().join("said")).unwrap();
        let key = said.lines().find_map(|line| line.split_once("Unseal Key:"));
        key.expect("the unseal key").1.trim().to_owned()
    }

    fn backend(&self, by: By, clock: &Arc<TestClock>) -> Vault {
        self.backend_at("secret", by, clock)
    }

    fn backend_at(&self, mount: &str, by: By, clock: &Arc<TestClock>) -> Vault {
        let login = Login::new(self.url.clone(), None, by);
        let shown = Shown::In("x-vault-token");
        Vault {
            at: Authorized::new(wire("vault"), Box::new(login), shown, clock.clone()),
            address: self.url.clone(),
            mount: mount.to_owned(),
            namespace: None,
        }
    }

    /// With the operator's own token.
    fn root(&self) -> Vault {
        self.backend(By::Token(text(ROOT)), &Arc::default())
    }

    /// A token for zones, with what `more` says of it; what Vault tells of it.
    async fn token(&self, more: Value) -> (String, String) {
        self.sets("sys/policies/acl/zones", json!({ "policy": POLICY }))
            .await;
        let mut asked = json!({"policies": ["zones"]});
        asked
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let auth = &self.sets("auth/token/create", asked).await["auth"];
        let part = |name: &str| auth[name].as_str().unwrap().to_owned();
        (part("client_token"), part("accessor"))
    }

    async fn about(&self, accessor: &str) -> Value {
        let body = json!({ "accessor": accessor });
        self.sets("auth/token/lookup-accessor", body).await["data"].clone()
    }
}

/// It is so before long.
async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(done.is_ok(), "{what}");
}

async fn why(vault: &Vault) -> String {
    vault.get(AT).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_real_vault_keeps_versions_and_forgets_them_all() {
    let Some(real) = Real::start().await else {
        return;
    };
    let vault = real.root();
    assert_eq!(vault.get(AT).await.unwrap(), None);
    vault.delete(AT).await.unwrap();
    vault.put(AT, ENVELOPE).await.unwrap();
    assert_eq!(vault.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));
    let data = format!("secret/data/{AT}");
    let kept = real.does(Method::GET, &data, Value::Null).await;
    assert_eq!(kept["data"]["data"], json!({ "value": TEXT }));
    // The newest version counts, however large it is within what a backend may answer.
    let large = vec![0x5a; 64 * 1024];
    vault.put(AT, &large).await.unwrap();
    assert_eq!(vault.get(AT).await.unwrap(), Some(large));

    // Somebody deletes the newest version, or destroys it: there is no secret, and that is no outage.
    real.does(Method::DELETE, &data, Value::Null).await;
    assert_eq!(vault.get(AT).await.unwrap(), None);
    real.sets(&format!("secret/undelete/{AT}"), json!({"versions": [2]}))
        .await;
    assert!(vault.get(AT).await.unwrap().is_some());
    real.sets(&format!("secret/destroy/{AT}"), json!({"versions": [2]}))
        .await;
    assert_eq!(vault.get(AT).await.unwrap(), None);
    vault.put(AT, ENVELOPE).await.unwrap();
    assert_eq!(vault.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));

    // A deletion leaves no version and no name.
    vault.delete(AT).await.unwrap();
    let metadata = format!("secret/metadata/{AT}");
    let (status, _) = real
        .answer(Method::GET, &metadata, &Value::Null)
        .await
        .unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(vault.get(AT).await.unwrap(), None);

    // What somebody else wrote there is no secret of ours, and is not taken for absent either.
    for odd in [
        json!({"other": "x"}),
        json!({"value": "not base64!"}),
        json!({"value": 7}),
    ] {
        real.sets(&data, json!({ "data": odd })).await;
        assert!(vault.get(AT).await.is_err(), "{odd}");
    }
}

#[tokio::test]
async fn a_mount_that_is_not_there_or_is_none_of_version_2_is_an_error() {
    let Some(real) = Real::start().await else {
        return;
    };
    let clock = Arc::<TestClock>::default();
    let at = |mount: &str| real.backend_at(mount, By::Token(text(ROOT)), &clock);
    let nowhere = at("nowhere");
    assert!(
        why(&nowhere)
            .await
            .starts_with("vault: answered 404: no handler for route")
    );
    assert!(nowhere.put(AT, ENVELOPE).await.is_err());
    assert!(nowhere.delete(AT).await.is_err());

    // Version 1 would keep what is deleted: nothing is put there.
    real.sets(
        "sys/mounts/old",
        json!({"type": "kv", "options": {"version": "1"}}),
    )
    .await;
    let error = at("old").put(AT, ENVELOPE).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "vault: the mount is no key-value engine of version 2"
    );

    let strict = json!({"type": "kv", "options": {"version": "2"}});
    real.sets("sys/mounts/strict", strict).await;
    eventually("a new mount is upgraded to version 2", async || {
        at("strict").put("zones/probe", ENVELOPE).await.is_ok()
    })
    .await;
    real.sets("strict/config", json!({"cas_required": true}))
        .await;
    let error = at("strict")
        .put(AT, ENVELOPE)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("vault: answered 400: check-and-set parameter required"),
        "{error}"
    );
}

#[tokio::test]
async fn a_vault_that_is_sealed_or_gone_is_an_outage_and_nothing_is_taken_for_absent() {
    let Some(mut real) = Real::start().await else {
        return;
    };
    let vault = real.root();
    vault.put(AT, ENVELOPE).await.unwrap();
    let fresh = |real: &Real| real.root();
    real.does(Method::PUT, "sys/seal", json!({})).await;
    for vault in [&vault, &fresh(&real)] {
        let error = why(vault).await;
        assert!(error.starts_with("vault: answered 503: "), "{error}");
        assert!(vault.get("zones/never/was").await.is_err());
        assert!(vault.put(AT, b"other").await.is_err());
        assert!(vault.delete(AT).await.is_err());
    }
    real.does(Method::PUT, "sys/unseal", json!({ "key": real.key() }))
        .await;
    eventually("all is mounted again", async || {
        vault.get(AT).await.ok().flatten().as_deref() == Some(ENVELOPE)
    })
    .await;
    real.ends();
    for vault in [&vault, &fresh(&real)] {
        let error = why(vault).await;
        assert!(error.starts_with("vault: no answer: "), "{error}");
    }
    let shown = format!("{vault:?}");
    assert!(!shown.contains(ROOT), "{shown}");
}
