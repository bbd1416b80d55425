//! Against a real Vault, in memory: whatever `CARACAL_TEST_VAULT` names, which takes the arguments of
//! its dev mode (`testdata/vault` builds one). Without it, these are skipped, and say so.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use caracal_model::TestClock;
use caracal_net::{Limits, Server, Tasks};
use caracal_store::custody::SecretBackend as _;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use url::Url;

use super::{AT, ENVELOPE, TEXT, text, wire};
use crate::token::{Authorized, Given, Shown};
use crate::vault::{By, Login, Vault};
use crate::wire::{below, json as asking};

const ROOT: &str = "root-of-a-test";
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
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
async fn a_token_may_do_no_more_than_documented_is_renewed_and_ends() {
    let Some(real) = Real::start().await else {
        return;
    };
    let clock = Arc::<TestClock>::default();
    let wrong = real.backend(By::Token(text("hvs.guessed")), &clock);
    assert!(
        why(&wrong).await.starts_with("vault: answered 403: "),
        "{}",
        why(&wrong).await
    );
    assert!(wrong.put(AT, ENVELOPE).await.is_err());
    assert!(
        wrong.delete(AT).await.is_err(),
        "what may not be looked at is not deleted"
    );

    let (token, accessor) = real.token(json!({"ttl": "1h"})).await;
    let vault = real.backend(By::Token(text(&token)), &clock);
    vault.put(AT, ENVELOPE).await.unwrap();
    vault.put(AT, ENVELOPE).await.unwrap();
    assert_eq!(vault.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));
    vault.delete(AT).await.unwrap();
    assert_eq!(vault.get(AT).await.unwrap(), None);
    let elsewhere = vault.get("elsewhere").await.unwrap_err().to_string();
    assert!(
        elsewhere.starts_with("vault: answered 403: "),
        "{elsewhere}"
    );
    let renewals = async || real.about(&accessor).await["last_renewal_time"].clone();
    let first = renewals().await;
    assert!(
        first.is_number(),
        "renewed when it was first used, so that its life is known"
    );

    // Half of its life is over.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    clock.advance(HOUR / 2);
    assert_eq!(vault.get(AT).await.unwrap(), None);
    assert!(renewals().await.as_i64() > first.as_i64(), "and again");

    // One that cannot be renewed is used while it lasts.
    let (token, accessor) = real.token(json!({"ttl": "1h", "renewable": false})).await;
    let fixed = real.backend(By::Token(text(&token)), &clock);
    assert_eq!(fixed.get(AT).await.unwrap(), None);
    assert!(real.about(&accessor).await["last_renewal_time"].is_null());
    real.sets(
        "auth/token/revoke-accessor",
        json!({ "accessor": accessor }),
    )
    .await;
    assert!(why(&fixed).await.starts_with("vault: answered 403: "));

    // A sidecar puts another one into the file.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &token).unwrap();
    let fed = real.backend(By::Token(Given::File(file.path().to_owned())), &clock);
    assert!(why(&fed).await.starts_with("vault: answered 403: "));
    std::fs::write(file.path(), real.token(json!({})).await.0).unwrap();
    assert_eq!(fed.get(AT).await.unwrap(), None);
}

#[tokio::test]
async fn a_role_logs_in_is_renewed_and_logs_in_again() {
    let Some(real) = Real::start().await else {
        return;
    };
    real.token(json!({})).await;
    real.sets("sys/auth/approle", json!({"type": "approle"}))
        .await;
    let role = json!({"token_policies": ["zones"], "token_ttl": "1h", "token_max_ttl": "90m"});
    real.sets("auth/approle/role/caracal", role).await;
    let path = "auth/approle/role/caracal/role-id";
    let role_id = real.does(Method::GET, path, Value::Null).await;
    let role_id = role_id["data"]["role_id"].as_str().unwrap().to_owned();
    let secret = real
        .sets("auth/approle/role/caracal/secret-id", json!({}))
        .await;
    let secret = secret["data"]["secret_id"].as_str().unwrap().to_owned();
    let clock = Arc::<TestClock>::default();
    let by = |secret: &str| By::AppRole {
        mount: "approle".to_owned(),
        role_id: role_id.clone(),
        secret_id: text(secret),
    };
    let vault = real.backend(by(&secret), &clock);
    vault.put(AT, ENVELOPE).await.unwrap();
    let accessors = async || {
        let method = Method::from_bytes(b"LIST").unwrap();
        let listed = real.does(method, "auth/token/accessors", Value::Null).await;
        let keys = listed["data"]["keys"].as_array().unwrap().clone();
        let mut of_role = Vec::new();
        for key in keys {
            let about = real.about(key.as_str().unwrap()).await;
            if about["path"] == "auth/approle/login" {
                of_role.push(about);
            }
        }
        of_role
    };
    assert_eq!(accessors().await.len(), 1, "one login for several requests");
    assert_eq!(vault.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));
    clock.advance(HOUR / 2);
    assert_eq!(vault.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));
    let held = accessors().await;
    assert_eq!(held.len(), 1);
    assert!(
        held[0]["last_renewal_time"].is_number(),
        "renewed: {}",
        held[0]
    );

    // It is revoked under its feet.
    let accessor = held[0]["accessor"].clone();
    real.sets(
        "auth/token/revoke-accessor",
        json!({ "accessor": accessor }),
    )
    .await;
    assert_eq!(vault.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));
    assert_ne!(accessors().await[0]["accessor"], accessor, "another login");

    let guessed = real.backend(by("guessed"), &clock);
    let error = why(&guessed).await;
    assert!(error.ends_with("invalid secret id"), "{error}");
    let destroyed = json!({ "secret_id": secret });
    real.sets("auth/approle/role/caracal/secret-id/destroy", destroyed)
        .await;
    let late = real.backend(by(&secret), &clock);
    let error = why(&late).await;
    assert!(error.ends_with("invalid secret id"), "{error}");
    assert!(!error.contains(&secret));
}

/// A token of a service account, as far as Vault looks at it: it asks the cluster about the signature.
fn projected(account: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({
        "iss": "https://kubernetes.default.svc", "sub": format!("system:serviceaccount:apps:{account}"),
        "kubernetes.io": {"namespace": "apps", "serviceaccount": {"name": account, "uid": account}},
    });
    let head = json!({"alg": "ES256", "kid": "k1"});
    format!(
        "{}.{}.{}",
        part(&head),
        part(&claims),
        URL_SAFE_NO_PAD.encode([7; 64])
    )
}

/// A cluster that knows the accounts `caracal` and `other`.
async fn cluster(tasks: &Tasks) -> String {
    let review = async |axum::Json(asked): axum::Json<Value>| {
        let token = asked["spec"]["token"].as_str().unwrap_or_default();
        let known = ["caracal", "other"]
            .into_iter()
            .find(|name| token == projected(name));
        let status = match known {
            Some(name) => json!({"authenticated": true, "user": {
                "username": format!("system:serviceaccount:apps:{name}"), "uid": name,
            }}),
            None => json!({"authenticated": false}),
        };
        let kind = ("authentication.k8s.io/v1", "TokenReview");
        axum::Json(json!({"apiVersion": kind.0, "kind": kind.1, "spec": {}, "status": status}))
    };
    let router = Router::new().route("/apis/authentication.k8s.io/v1/tokenreviews", post(review));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tasks.spawn(
        "cluster",
        Server::new(listener, router, Limits::default()).serve(tasks.stop()),
    );
    url
}

#[tokio::test]
async fn a_pod_logs_in_with_the_token_that_its_file_holds_now() {
    let Some(real) = Real::start().await else {
        return;
    };
    real.token(json!({})).await;
    let tasks = Tasks::new();
    real.sets("sys/auth/kubernetes", json!({"type": "kubernetes"}))
        .await;
    let config = json!({
        "kubernetes_host": cluster(&tasks).await, "disable_local_ca_jwt": true,
        "kubernetes_ca_cert": include_str!("../../../net/testdata/test-only.pem"),
    });
    real.sets("auth/kubernetes/config", config).await;
    let role = json!({
        "bound_service_account_names": ["caracal"], "bound_service_account_namespaces": ["apps"],
        "token_policies": ["zones"], "token_ttl": "1h",
    });
    real.sets("auth/kubernetes/role/caracal", role).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let clock = Arc::<TestClock>::default();
    let vault = real.backend(
        By::Kubernetes {
            mount: "kubernetes".to_owned(),
            role: "caracal".to_owned(),
            token_file: file.path().to_owned(),
        },
        &clock,
    );
    for (what, token) in [
        ("nothing", String::new()),
        ("no token", "x".to_owned()),
        ("an account of nobody", projected("nobody")),
        ("another account", projected("other")),
    ] {
        std::fs::write(file.path(), &token).unwrap();
        let error = why(&vault).await;
        assert!(error.starts_with("vault: answered "), "{what}: {error}");
        assert!(token.len() < 2 || !error.contains(&token), "{what}");
    }
    std::fs::write(file.path(), projected("caracal") + "\n").unwrap();
    vault.put(AT, ENVELOPE).await.unwrap();
    assert_eq!(vault.get(AT).await.unwrap().as_deref(), Some(ENVELOPE));
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
