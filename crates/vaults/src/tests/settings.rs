//! What a start refuses, and what it names.

use std::collections::BTreeMap;
use std::sync::Arc;

use caracal_crypto::os::{OsRng, SystemClock};
use caracal_net::settings::Mistakes;
use caracal_store::custody::SecretBackend;

use super::clouds::key_file;
use super::fetch;
use crate::Chosen;

fn load(pairs: &[(&str, &str)]) -> Result<Chosen, Vec<String>> {
    let from: BTreeMap<String, String> = pairs
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    let mut mistakes = Mistakes::default();
    let chosen = Chosen::load(&from, &mut mistakes);
    let told = mistakes.iter().map(|mistake| mistake.name.clone());
    let told: Vec<_> = told.collect();
    assert_eq!(chosen.is_some(), told.is_empty(), "{mistakes}");
    chosen.ok_or(told)
}

/// The backend of these settings.
pub(super) fn open(pairs: &[(&str, &str)]) -> Arc<dyn SecretBackend> {
    let chosen = load(pairs).unwrap();
    let (clock, rng) = (Arc::new(SystemClock::new()), Arc::new(OsRng));
    chosen.open(fetch(), clock, rng).unwrap()
}

type Pairs<'a> = &'a [(&'a str, &'a str)];

const BACKEND: &str = "CARACAL_SECRET_BACKEND";

#[test]
fn a_start_names_what_is_missing() {
    let table: &[(Pairs<'_>, &[&str])] = &[
        (&[(BACKEND, "hashicorp")], &[BACKEND]),
        (
            &[("CARACAL_SECRET_BACKEND_LEAVE", "true")],
            &["CARACAL_SECRET_BACKEND_LEAVE"],
        ),
        (
            &[(BACKEND, "vault")],
            &["CARACAL_VAULT_ADDR", "CARACAL_VAULT_TOKEN"],
        ),
        (
            &[
                (BACKEND, "vault"),
                ("CARACAL_VAULT_ADDR", "http://vault.internal:8200"),
                ("CARACAL_VAULT_TOKEN", "t"),
            ],
            &["CARACAL_VAULT_ADDR"],
        ),
        (
            &[(BACKEND, "vault"), ("CARACAL_VAULT_AUTH", "ldap")],
            &["CARACAL_VAULT_ADDR", "CARACAL_VAULT_AUTH"],
        ),
        (
            &[(BACKEND, "vault"), ("CARACAL_VAULT_AUTH", "approle")],
            &[
                "CARACAL_VAULT_ADDR",
                "CARACAL_VAULT_ROLE_ID",
                "CARACAL_VAULT_SECRET_ID",
            ],
        ),
        (
            &[
                (BACKEND, "vault"),
                ("CARACAL_VAULT_ADDR", "https://vault.internal"),
                ("CARACAL_VAULT_AUTH", "kubernetes"),
            ],
            &["CARACAL_VAULT_ROLE"],
        ),
        (
            &[(BACKEND, "infisical")],
            &["CARACAL_INFISICAL_TOKEN", "CARACAL_INFISICAL_PROJECT_ID"],
        ),
        (&[(BACKEND, "azurekeyvault")], &["CARACAL_AZURE_VAULT_URL"]),
        (
            &[
                (BACKEND, "azurekeyvault"),
                ("CARACAL_AZURE_VAULT_URL", "https://v.vault.azure.net"),
                ("CARACAL_AZURE_CLIENT_SECRET", "s"),
            ],
            &["CARACAL_AZURE_TENANT_ID"],
        ),
        (
            &[
                (BACKEND, "azurekeyvault"),
                ("CARACAL_AZURE_VAULT_URL", "https://v.vault.azure.net"),
                ("CARACAL_AZURE_TENANT_ID", "t"),
                ("CARACAL_AZURE_CLIENT_ID", "c"),
            ],
            &["CARACAL_AZURE_CLIENT_SECRET"],
        ),
        (
            &[(BACKEND, "awssecretsmanager")],
            &["CARACAL_AWS_REGION", "AWS_ACCESS_KEY_ID"],
        ),
        (
            &[
                (BACKEND, "awssecretsmanager"),
                ("AWS_REGION", "eu-central-1"),
                ("AWS_ACCESS_KEY_ID", "k"),
            ],
            &["AWS_SECRET_ACCESS_KEY"],
        ),
        (
            &[
                (BACKEND, "awssecretsmanager"),
                ("AWS_REGION", "evil.example/#"),
                ("AWS_ACCESS_KEY_ID", "k"),
                ("AWS_SECRET_ACCESS_KEY", "s"),
            ],
            &["CARACAL_AWS_REGION"],
        ),
        (
            &[
                (BACKEND, "awssecretsmanager"),
                ("AWS_REGION", "eu-central-1"),
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://keys.example/"),
            ],
            &["AWS_CONTAINER_CREDENTIALS_FULL_URI"],
        ),
        (
            &[
                (BACKEND, "awssecretsmanager"),
                ("AWS_REGION", "eu-central-1"),
                ("AWS_ROLE_ARN", "arn:aws:iam::1:role/caracal"),
            ],
            &["AWS_WEB_IDENTITY_TOKEN_FILE"],
        ),
        (
            &[
                (BACKEND, "awssecretsmanager"),
                ("AWS_REGION", "eu-central-1"),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/token"),
            ],
            &["AWS_ROLE_ARN"],
        ),
        (
            &[
                (BACKEND, "awssecretsmanager"),
                ("AWS_REGION", "eu-central-1"),
                ("AWS_ROLE_ARN", "arn:aws:iam::1:role/caracal"),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/token"),
                ("AWS_ROLE_SESSION_NAME", "two words"),
            ],
            &["AWS_ROLE_SESSION_NAME"],
        ),
        (&[(BACKEND, "gcpsecretmanager")], &["CARACAL_GCP_PROJECT"]),
        (
            &[
                (BACKEND, "gcpsecretmanager"),
                ("CARACAL_GCP_PROJECT", "p"),
                ("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json"),
            ],
            &["GOOGLE_APPLICATION_CREDENTIALS"],
        ),
        (
            &[(BACKEND, "custom")],
            &["CARACAL_CUSTOM_SECRETS_URL", "CARACAL_CUSTOM_SECRETS_TOKEN"],
        ),
        (
            &[
                (BACKEND, "custom"),
                ("CARACAL_CUSTOM_SECRETS_URL", "http://10.0.0.1"),
                ("CARACAL_CUSTOM_SECRETS_TOKEN", "t"),
            ],
            &["CARACAL_CUSTOM_SECRETS_URL"],
        ),
    ];
    for (pairs, expected) in table {
        assert_eq!(load(pairs).unwrap_err(), *expected, "{pairs:?}");
    }
}

#[test]
fn what_is_complete_becomes_a_backend_that_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (key, token) = (dir.path().join("key.json"), dir.path().join("token"));
    std::fs::write(
        &key,
        key_file("https://oauth2.googleapis.com/token").to_string(),
    )
    .unwrap();
    std::fs::write(&token, "canary\n").unwrap();
    let (key, token) = (key.to_str().unwrap(), token.to_str().unwrap());
    let vault = ("CARACAL_AZURE_VAULT_URL", "https://v.vault.azure.net");
    let region = ("CARACAL_AWS_REGION", "cn-north-1");
    let table: &[(&str, Pairs<'_>)] = &[
        (
            "vault",
            &[
                ("CARACAL_VAULT_ADDR", "http://127.0.0.1:8200"),
                ("CARACAL_VAULT_TOKEN_FILE", token),
            ],
        ),
        (
            "vault",
            &[
                ("CARACAL_VAULT_ADDR", "https://vault.internal"),
                ("CARACAL_VAULT_TOKEN", "canary"),
            ],
        ),
        (
            "vault",
            &[
                ("CARACAL_VAULT_ADDR", "https://vault.internal"),
                ("CARACAL_VAULT_AUTH", "approle"),
                ("CARACAL_VAULT_ROLE_ID", "r"),
                ("CARACAL_VAULT_SECRET_ID", "canary"),
            ],
        ),
        (
            "vault",
            &[
                ("CARACAL_VAULT_ADDR", "https://vault.internal"),
                ("CARACAL_VAULT_AUTH", "kubernetes"),
                ("CARACAL_VAULT_ROLE", "r"),
                ("CARACAL_VAULT_KUBERNETES_TOKEN_FILE", token),
            ],
        ),
        (
            "infisical",
            &[
                ("CARACAL_INFISICAL_TOKEN", "canary"),
                ("CARACAL_INFISICAL_PROJECT_ID", "p"),
            ],
        ),
        ("azurekeyvault", &[vault]),
        (
            "azurekeyvault",
            &[vault, ("CARACAL_AZURE_CLIENT_ID", "user assigned")],
        ),
        (
            "azurekeyvault",
            &[
                vault,
                ("CARACAL_AZURE_TENANT_ID", "t"),
                ("CARACAL_AZURE_CLIENT_ID", "c"),
                ("CARACAL_AZURE_CLIENT_SECRET", "canary"),
            ],
        ),
        (
            "awssecretsmanager",
            &[
                region,
                ("AWS_ACCESS_KEY_ID", "k"),
                ("AWS_SECRET_ACCESS_KEY", "canary"),
                ("AWS_SESSION_TOKEN", "canary"),
            ],
        ),
        (
            "awssecretsmanager",
            &[
                region,
                (
                    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                    "/v2/credentials/1",
                ),
            ],
        ),
        (
            "awssecretsmanager",
            &[
                region,
                (
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                    "http://169.254.170.23/v1/credentials",
                ),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token),
            ],
        ),
        (
            "awssecretsmanager",
            &[
                region,
                ("AWS_ROLE_ARN", "arn:aws:iam::1:role/caracal"),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", token),
            ],
        ),
        ("gcpsecretmanager", &[("CARACAL_GCP_PROJECT", "p")]),
        (
            "gcpsecretmanager",
            &[("GOOGLE_APPLICATION_CREDENTIALS", key)],
        ),
        (
            "custom",
            &[
                ("CARACAL_CUSTOM_SECRETS_URL", "http://localhost:1/x"),
                ("CARACAL_CUSTOM_SECRETS_TOKEN", "canary"),
            ],
        ),
    ];
    for (name, pairs) in table {
        let pairs = [&[(BACKEND, *name)][..], pairs].concat();
        let chosen = load(&pairs).unwrap();
        let shown = format!("{chosen:?}");
        let backend = chosen
            .open(fetch(), Arc::new(SystemClock::new()), Arc::new(OsRng))
            .unwrap();
        assert_eq!(backend.name(), *name);
        let shown = format!("{shown} {backend:?}");
        assert!(
            !shown.contains("canary") && !shown.contains("PRIVATE"),
            "{shown}"
        );
    }
    let builtin = load(&[]).unwrap();
    assert!(
        builtin
            .open(fetch(), Arc::new(SystemClock::new()), Arc::new(OsRng))
            .is_none()
    );
}
