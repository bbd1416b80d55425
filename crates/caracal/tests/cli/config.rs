//! `caracal config`, and what a start says of settings that it cannot use.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::{fails, said, succeeds};

const KEY: &str = "8f3d9a712c45e6b0d18f2a4c6e9b3d57a1c4f8020e6a9c3d5b7f1a2c4e6d8b90";

fn caracal(home: &Path, line: &str, set: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_caracal"))
        .args(line.split_whitespace())
        .env_clear()
        .env("CARACAL_HOME", home)
        .env("NO_COLOR", "1")
        .envs(set.iter().copied())
        .output()
        .unwrap()
}

/// What an STS needs.
fn complete() -> Vec<(&'static str, &'static str)> {
    vec![
        (
            "DATABASE_URL",
            "postgres://caracal:hunter2@127.0.0.1:9/none",
        ),
        ("REDIS_URL", "redis://127.0.0.1:9"),
        ("ISSUER_URL", "https://sts.example"),
        ("SECRET_STORE_KEK", KEY),
        ("AUDIT_HMAC_KEY", KEY),
        ("STREAMS_HMAC_KEY", KEY),
        ("GATEWAY_STS_HMAC_KEY", KEY),
    ]
}

#[test]
fn a_check_starts_nothing_and_a_start_says_the_same() {
    let home = tempfile::tempdir().unwrap();
    let told = caracal(home.path(), "config check sts", &complete());
    assert!(succeeds(&told).contains("caracal serve sts"));

    let mut wrong = complete();
    wrong.retain(|(name, _)| *name != "ISSUER_URL");
    wrong.extend([
        ("OPA_POLL_SECONDS", "301"),
        ("DB_POOL_MAX", "0"),
        ("DB_MAX_CONN_LIFETIME", "30"),
        ("PORT", "8443"),
        ("JWKS_CACHE_MAX", "9"),
    ]);
    let check = caracal(home.path(), "config check sts", &wrong);
    assert_eq!(check.status.code(), Some(2), "{}", said(&check));
    let start = caracal(home.path(), "serve sts", &wrong);
    let expected = "these settings need a look:\n\
        DB_MAX_CONN_LIFETIME: 30 is not a duration above zero (within 1s and 24h), for example 30m\n\
        DB_POOL_MAX: 0 is not within 1 and 10000, for example 8\n\
        ISSUER_URL: is required, for example https://sts.example\n\
        OPA_POLL_SECONDS: 301 is not within 1 and 300, for example 60\n\
        PORT: 8443 is not 8080, the port of sts. Leave PORT out; STS_PORT moves it on purpose\n";
    for told in [said(&check), fails(&start)] {
        assert!(told.contains(expected), "{told}");
        assert!(!told.contains("hunter2") && !told.contains(KEY), "{told}");
    }
    assert!(said(&check).contains("warning: JWKS_CACHE_MAX: moves nothing"));
}

#[test]
fn a_file_can_be_checked_by_itself() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("sts.env");
    let lines: Vec<_> = complete()
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let line = format!("config check sts --json --env-file {}", file.display());
    // What is wrong in this environment is not in the file.
    let told = caracal(home.path(), &line, &[("OPA_POLL_SECONDS", "never")]);
    succeeds(&told);
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(
        (&told["ok"], &told["as"]),
        (&true.into(), &"`caracal serve sts`".into())
    );

    let bare = caracal(home.path(), "config check", &[]);
    assert!(succeeds(&bare).contains("`caracal up`"), "{}", said(&bare));
}

#[test]
fn settings_are_listed_with_what_is_set_but_never_secrets() {
    let home = tempfile::tempdir().unwrap();
    let set = [("MAX_AGENTS_PER_ZONE", "70"), ("IDEMPOTENCY_HMAC_KEY", KEY)];
    let told = succeeds(&caracal(home.path(), "config explain coordinator", &set));
    assert!(told.contains("= 70") && told.contains("= set"), "{told}");
    assert!(!told.contains(KEY));
    let json = caracal(home.path(), "config explain --json", &set);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    let services = json["settings"].as_array().unwrap().iter();
    let services: std::collections::BTreeSet<_> = services
        .map(|one| one["service"].as_str().unwrap())
        .collect();
    assert_eq!(services.len(), 5);
}
