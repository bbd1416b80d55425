//! Credentials of secret backends, shown to a server that repeats in its errors whatever it is shown.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use xtest::{Deployment, Options, Part, Stack};

use super::Seen;
use crate::answering::{Asked, answering};

/// What the server issues to who logs in.
const ISSUED: &str = "canary-issued-token-90c4e7";
/// Nobody uses this key for anything.
const PEM: &str = include_str!("../../../../crates/vaults/testdata/test-only-rsa.key");

/// What it was asked for.
type Known = Arc<Mutex<Vec<String>>>;

fn parrot() -> (Known, String) {
    let known = Known::default();
    let told = Arc::clone(&known);
    let url = answering(move |asked| {
        told.lock().push(asked.path.clone());
        repeats(&asked)
    });
    (known, url)
}

fn repeats(asked: &Asked) -> (u16, Vec<u8>) {
    let shown = ["authorization", "x-vault-token", "x-amz-security-token"];
    let shown = shown.map(|name| asked.header(name)).concat();
    let shown = format!("{shown} {}", String::from_utf8_lossy(&asked.body));
    let logs_in = ["/login", "/oauth2/", "/token"];
    let logs_in = logs_in.iter().any(|part| asked.path.contains(part));
    let (status, answer) = if logs_in && !asked.path.contains("-self") {
        let auth = json!({"client_token": ISSUED, "lease_duration": 3600, "renewable": true});
        let token = json!({"auth": auth, "access_token": ISSUED, "expires_in": 3600, "token_type": "Bearer"});
        (200, token)
    } else {
        let error = json!({"code": shown, "message": shown, "status": shown});
        let refused = json!({"errors": [shown], "error": error, "__type": shown, "message": shown});
        (403, refused)
    };
    (status, answer.to_string().into_bytes())
}

/// A backend, its settings, and which of them are secret.
struct Backend {
    name: &'static str,
    settings: Vec<(&'static str, String)>,
    secret: &'static [&'static str],
}

fn backends(url: &str, key_file: &str) -> Vec<Backend> {
    let own = |text: &str| text.to_owned();
    let backend = |name, settings, secret| Backend {
        name,
        settings,
        secret,
    };
    vec![
        backend(
            "vault",
            vec![
                ("CARACAL_VAULT_ADDR", own(url)),
                ("CARACAL_VAULT_TOKEN", own("hvs.canary-vault-token-1a55")),
            ],
            &["CARACAL_VAULT_TOKEN"],
        ),
        backend(
            "vault",
            vec![
                ("CARACAL_VAULT_ADDR", own(url)),
                ("CARACAL_VAULT_AUTH", own("approle")),
                ("CARACAL_VAULT_ROLE_ID", own("role-1")),
                ("CARACAL_VAULT_SECRET_ID", own("canary-secret-id-2b66")),
            ],
            &["CARACAL_VAULT_SECRET_ID"],
        ),
        backend(
            "infisical",
            vec![
                ("CARACAL_INFISICAL_URL", own(url)),
                ("CARACAL_INFISICAL_PROJECT_ID", own("p1")),
                (
                    "CARACAL_INFISICAL_TOKEN",
                    own("canary-infisical-token-3c77"),
                ),
            ],
            &["CARACAL_INFISICAL_TOKEN"],
        ),
        backend(
            "azurekeyvault",
            vec![
                ("CARACAL_AZURE_VAULT_URL", own(url)),
                ("AZURE_AUTHORITY_HOST", own(url)),
                ("CARACAL_AZURE_TENANT_ID", own("t1")),
                ("CARACAL_AZURE_CLIENT_ID", own("c1")),
                (
                    "CARACAL_AZURE_CLIENT_SECRET",
                    own("canary-azure-secret-4d88"),
                ),
            ],
            &["CARACAL_AZURE_CLIENT_SECRET"],
        ),
        backend(
            "awssecretsmanager",
            vec![
                ("AWS_REGION", own("eu-west-1")),
                ("AWS_ENDPOINT_URL_SECRETS_MANAGER", own(url)),
                ("AWS_ACCESS_KEY_ID", own("AKIACANARY5E99")),
                ("AWS_SECRET_ACCESS_KEY", own("canary-aws-secret-key-6f00")),
                ("AWS_SESSION_TOKEN", own("canary-aws-session-token-7a11")),
            ],
            &["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"],
        ),
        backend(
            "gcpsecretmanager",
            vec![("CARACAL_GCP_CREDENTIALS_FILE", own(key_file))],
            &[],
        ),
        backend(
            "custom",
            vec![
                ("CARACAL_CUSTOM_SECRETS_URL", own(url)),
                (
                    "CARACAL_CUSTOM_SECRETS_TOKEN",
                    own("canary-custom-token-8b22"),
                ),
            ],
            &["CARACAL_CUSTOM_SECRETS_TOKEN"],
        ),
    ]
}

#[test]
fn no_credential_of_a_backend_is_in_anything_that_leaves_a_process() {
    let (asked, url) = parrot();
    let directory = tempfile::tempdir().unwrap();
    let key_file = directory.path().join("account.json");
    let account = json!({
        "type": "service_account", "client_email": "a@p.example", "private_key": PEM,
        "private_key_id": "k1", "project_id": "p1", "token_uri": format!("{url}/token"),
    });
    std::fs::write(&key_file, account.to_string()).unwrap();
    for backend in backends(&url, &key_file.display().to_string()) {
        let options = super::loud().env("CARACAL_SECRET_BACKEND", backend.name);
        let set = |options: Options, (name, value): &(&str, String)| options.env(name, value);
        let options = backend.settings.iter().fold(options, set);
        asked.lock().clear();
        xtest::on(Deployment::Embedded, options, async |stack: Arc<Stack>| {
            refused(&stack, &backend).await;
        });
        // Google's service has no other address than its own, but its tokens come from here.
        assert!(!asked.lock().is_empty(), "{} was not asked", backend.name);
    }
}

async fn refused(stack: &Stack, backend: &Backend) {
    let mut seen = Seen::default();
    let zone = stack
        .post("/v1/zones", &json!({"name": "z"}))
        .await
        .expect(201)
        .text("id");
    let key = "canary-api-key-in-transit-9c33";
    let body = json!({"name": "p", "kind": "api_key", "config_json": {"header_name": "X-Key", "api_key": key}});
    let answer = stack
        .post(&format!("/v1/zones/{zone}/providers"), &body)
        .await;
    assert_eq!(
        answer.text("error"),
        "secret_backend_unavailable",
        "{}: {answer:?}",
        backend.name
    );
    seen.note("what is told", &answer.expect(502).body);
    for part in [Part::Api, Part::Sts] {
        let bearer = Some(stack.setting("METRICS_BEARER"));
        let metrics = stack
            .http
            .get(format!("{}/metrics", stack.urls.of(part)), bearer)
            .await;
        seen.note("metrics", &metrics.expect(200).body);
    }
    for line in ["doctor", "config explain"] {
        let told = stack.caracal(line).await;
        seen.note(line, [told.stdout, told.stderr].concat());
    }
    let logs = stack.logs();
    assert!(
        logs.contains(backend.name),
        "{} is not in the log",
        backend.name
    );
    seen.note("the logs", logs);
    super::kept::everything(stack, &mut seen).await;

    let set = backend
        .secret
        .iter()
        .map(|name| (*name, stack.setting(name).to_owned()));
    let more = [
        ("an issued token", ISSUED.to_owned()),
        ("a key in transit", key.to_owned()),
        ("a private key", PEM.lines().nth(2).unwrap().to_owned()),
    ];
    let secrets: Vec<_> = set.chain(more).collect();
    let leaks = seen.leaks(&secrets);
    assert!(leaks.is_empty(), "{}: {leaks:#?}", backend.name);
}
