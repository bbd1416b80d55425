//! Credentials of secret backends, shown to a server that repeats in its errors whatever it is shown.

use std::path::Path;
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
    match asked.path.as_str() {
        "/assume" => return (200, assumed().into_bytes()),
        "/refuse" => {
            let error = format!("<Code>{shown}</Code><Message>{shown}</Message>");
            let refused = format!("<ErrorResponse><Error>{error}</Error></ErrorResponse>");
            return (403, refused.into_bytes());
        }
        "/keys" => {
            let keys = json!({
                "AccessKeyId": "ASIACANARY", "SecretAccessKey": ISSUED, "Token": ISSUED,
                "Expiration": "2090-01-01T00:00:00Z",
            });
            return (200, keys.to_string().into_bytes());
        }
        _ => {}
    }
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

/// Keys of a role, as AWS issues them.
fn assumed() -> String {
    let keys = format!(
        "<AccessKeyId>ASIACANARY</AccessKeyId><SecretAccessKey>{ISSUED}</SecretAccessKey>\
         <SessionToken>{ISSUED}</SessionToken><Expiration>2090-01-01T00:00:00Z</Expiration>"
    );
    let result = "AssumeRoleWithWebIdentityResult";
    format!("<R><{result}><Credentials>{keys}</Credentials></{result}></R>")
}

/// A backend, its settings, and what of them is secret.
struct Backend {
    name: &'static str,
    settings: Vec<(&'static str, String)>,
    secret: &'static [&'static str],
    /// Secrets in files that the settings name.
    in_files: Vec<(&'static str, String)>,
}

impl Backend {
    /// With this secret, in a file that this setting names.
    fn reads(mut self, at: &Path, setting: &'static str, secret: &str) -> Self {
        let file = at.join(setting.to_lowercase());
        std::fs::write(&file, format!("{secret}\n")).unwrap();
        self.settings.push((setting, file.display().to_string()));
        self.in_files.push((setting, secret.to_owned()));
        self
    }
}

fn backend(
    name: &'static str,
    settings: Vec<(&'static str, String)>,
    secret: &'static [&'static str],
) -> Backend {
    Backend {
        name,
        settings,
        secret,
        in_files: Vec::new(),
    }
}

/// Backends whose proof is in a file, or is issued for one.
fn with_files(url: &str, at: &Path) -> Vec<Backend> {
    let own = |text: &str| text.to_owned();
    let vault = |auth: &str| {
        let settings = vec![
            ("CARACAL_VAULT_ADDR", own(url)),
            ("CARACAL_VAULT_AUTH", own(auth)),
            ("CARACAL_VAULT_ROLE", own("caracal")),
        ];
        backend("vault", settings, &[])
    };
    let aws = |more: Vec<(&'static str, String)>, secret| {
        let mut settings = vec![
            ("AWS_REGION", own("eu-west-1")),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", own(url)),
        ];
        settings.extend(more);
        backend("awssecretsmanager", settings, secret)
    };
    let role = |sts: &str| {
        let role = [
            ("AWS_ROLE_ARN", own("arn:aws:iam::1:role/caracal")),
            ("AWS_ENDPOINT_URL_STS", format!("{url}{sts}")),
        ];
        aws(role.to_vec(), &[])
    };
    let container = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{url}/keys"));
    let token = (
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        own("canary-container-token-a441"),
    );
    vec![
        vault("kubernetes").reads(
            at,
            "CARACAL_VAULT_KUBERNETES_TOKEN_FILE",
            "canary-pods-token-a1d4",
        ),
        vault("token").reads(
            at,
            "CARACAL_VAULT_TOKEN_FILE",
            "hvs.canary-token-of-a-file-b2e5",
        ),
        role("/assume").reads(
            at,
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "canary-web-identity-c3f6",
        ),
        role("/refuse").reads(
            at,
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "canary-web-identity-d407",
        ),
        aws(
            vec![container.clone(), token],
            &["AWS_CONTAINER_AUTHORIZATION_TOKEN"],
        ),
        aws(vec![container], &[]).reads(
            at,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "canary-container-token-e518",
        ),
    ]
}

fn backends(url: &str, key_file: &str) -> Vec<Backend> {
    let own = |text: &str| text.to_owned();
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
    let with_files = with_files(&url, directory.path());
    for backend in backends(&url, &key_file.display().to_string())
        .into_iter()
        .chain(with_files)
    {
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
    let in_files = backend.in_files.iter().cloned();
    let secrets: Vec<_> = set.chain(more).chain(in_files).collect();
    let leaks = seen.leaks(&secrets);
    assert!(leaks.is_empty(), "{}: {leaks:#?}", backend.name);
}
