//! Ways to a token of a real Vault.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use caracal_model::TestClock;
use caracal_net::{Limits, Server, Tasks};
use caracal_store::custody::SecretBackend as _;
use http::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{AT, ENVELOPE, Real, text, why};
use crate::token::Given;
use crate::vault::By;

const HOUR: Duration = Duration::from_secs(3600);

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
        "kubernetes_ca_cert": include_str!("../../../../net/testdata/test-only.pem"),
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
