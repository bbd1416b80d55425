//! `caracal doctor` on deployments that are well, stopped, not there yet and not well.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use caracal_store::testing::Database;
use serde_json::Value;

use super::{Deployment, fails, said, succeeds};

/// A key that nothing was sealed with.
const KEK: &str = "8f3d9a712c45e6b0d18f2a4c6e9b3d57a1c4f8020e6a9c3d5b7f1a2c4e6d8b90";

#[track_caller]
fn report(output: &Output) -> Value {
    assert!(output.stdout.starts_with(b"{"), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Names of the checks that ended so.
fn with<'r>(report: &'r Value, status: &str) -> Vec<&'r str> {
    let checks = report["checks"].as_array().unwrap().iter();
    let ended = checks.filter(|check| check["status"] == status);
    ended
        .map(|check| check["check"].as_str().unwrap())
        .collect()
}

/// Asks about a deployment that does not run, with the STS at this port.
fn preflight(deployment: &Deployment, sts: u16) -> Output {
    let first = deployment.first_port;
    let at = |port: u16| format!("http://localhost:{port}");
    Command::new(env!("CARGO_BIN_EXE_caracal"))
        .args(["doctor", "--preflight", "--json"])
        .env_clear()
        .env("CARACAL_HOME", deployment.data())
        .env("CARACAL_API_URL", at(first))
        .env("CARACAL_STS_URL", at(sts))
        .env("CARACAL_GATEWAY_URL", at(first + 2))
        .env("CARACAL_COORDINATOR_URL", at(first + 3))
        .env("CARACAL_AUDIT_URL", at(first + 4))
        .output()
        .unwrap()
}

#[test]
fn an_embedded_deployment_is_looked_at_before_while_and_after_it_runs() {
    let deployment = Deployment::new();
    let new = preflight(&deployment, deployment.first_port + 1);
    succeeds(&new);
    let new = report(&new);
    assert_eq!(
        (&new["mode"], &new["ready"]),
        (&"preflight".into(), &true.into())
    );

    succeeds(&deployment.up());
    succeeds(&deployment.caracal("demo --keep"));
    let well = deployment.caracal("doctor --json");
    succeeds(&well);
    let well = report(&well);
    assert_eq!(
        (&well["command"], &well["mode"], &well["ready"]),
        (&"doctor".into(), &"system".into(), &true.into())
    );
    assert_eq!(with(&well, "fail"), Vec::<&str>::new(), "{well:#}");
    let zones = well["context"]["zoneIds"].as_array().unwrap();
    assert!(!zones.is_empty(), "{well:#}");
    let fine = with(&well, "ok");
    for check in [
        "data directory",
        "settings",
        "key-encryption key",
        "evidence that waits",
        "ports",
        "store",
        "schema",
        "stored credentials",
        "API",
        "clock of the API",
        "admin token",
        "api is ready",
        "sts is ready",
        "gateway is ready",
        "audit is ready",
        "coordinator is ready",
        "policy compiles",
        "ledger is unchanged",
        "outbox drains",
    ] {
        assert!(fine.contains(&check), "{check} is not ok in {well:#}");
    }
    let table = succeeds(&deployment.caracal("doctor"));
    assert!(
        table.contains("READINESS") && table.contains(" 0 failed"),
        "{table}"
    );
    let zone = zones[0].as_str().unwrap();
    let one = report(&deployment.caracal(&format!("doctor --json --zone {zone}")));
    assert_eq!(one["context"]["zoneScope"], "selected");
    let none = deployment.caracal("doctor --json --zone nobody");
    fails(&none);
    assert_eq!(with(&report(&none), "fail"), ["zone nobody"]);

    succeeds(&deployment.caracal("down"));
    // A secret that others may read, and a service that has gone.
    let secret = deployment.data().join("secrets/secretStoreKek");
    std::fs::set_permissions(&secret, Permissions::from_mode(0o644)).unwrap();
    let ill = deployment.caracal("doctor --json");
    fails(&ill);
    let ill = report(&ill);
    let failed = with(&ill, "fail");
    for check in ["data directory modes", "API", "sts is ready"] {
        assert!(failed.contains(&check), "{check} did not fail in {ill:#}");
    }
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();

    // Another key than what is stored was sealed with.
    std::fs::write(&secret, KEK).unwrap();
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let ill = preflight(&deployment, taken.local_addr().unwrap().port());
    fails(&ill);
    let ill = report(&ill);
    assert_eq!(
        with(&ill, "fail"),
        ["ports", "stored credentials"],
        "{ill:#}"
    );
}

fn distributed(home: &Path, database: &str, redis: &str, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_caracal"))
        .args(line.split_whitespace())
        .env_clear()
        .env("CARACAL_HOME", home)
        .env("DATABASE_URL", database)
        .env("REDIS_URL", redis)
        .envs(
            [
                "AUDIT_HMAC_KEY",
                "STREAMS_HMAC_KEY",
                "GATEWAY_STS_HMAC_KEY",
                "SECRET_STORE_KEK",
            ]
            .map(|name| (name, KEK)),
        )
        .env("ISSUER_URL", "https://sts.example")
        // Nobody asks for a certain one.
        .env("STS_PORT", super::five_free_ports().to_string())
        .env("AUDIT_REPLAY_DIR", home.join("replay"))
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_distributed_deployment_is_looked_at_before_it_starts() {
    #[expect(
        clippy::disallowed_methods,
        reason = "how tests are told of their servers"
    )]
    let redis = std::env::var("CARACAL_TEST_REDIS");
    let databases = Database::each("doctor").await;
    let home = tempfile::tempdir().unwrap();
    for database in databases {
        // Of SQLite nothing was made: an embedded deployment has its own.
        let Some(url) = database.url() else {
            continue;
        };
        if let Ok(redis) = &redis {
            let ask = |line: &str| distributed(home.path(), url.expose(), redis, line);
            let early = ask("doctor --preflight --json sts");
            fails(&early);
            let early = report(&early);
            assert_eq!(with(&early, "fail"), ["schema"], "{early:#}");
            succeeds(&ask("migrate"));
            let ready = ask("doctor --preflight --json sts");
            let ready = report(&ready);
            let fine = with(&ready, "ok");
            for check in [
                "settings",
                "store",
                "clock of the store",
                "row security",
                "schema",
                "Redis",
                "clock of Redis",
            ] {
                assert!(fine.contains(&check), "{check} is not ok in {ready:#}");
            }
            // The server of the tests writes nothing down.
            assert!(
                with(&ready, "warn").contains(&"Redis persistence"),
                "{ready:#}"
            );

            let away = distributed(
                home.path(),
                url.expose(),
                "redis://127.0.0.1:9",
                "doctor --preflight --json sts",
            );
            fails(&away);
            assert_eq!(with(&report(&away), "fail"), ["Redis"]);
        }
        database.remove().await;
    }
}

#[test]
fn every_mistake_in_the_settings_is_a_check_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let told = Command::new(env!("CARGO_BIN_EXE_caracal"))
        .args(["doctor", "--preflight", "--json", "sts"])
        .env_clear()
        .env("CARACAL_HOME", home.path())
        .env("DATABASE_URL", "postgres://127.0.0.1:9/none")
        .env("AUDIT_HMAC_KEY", "short")
        .env("INSECURE_STS", "true")
        .env("STS_PORT", super::five_free_ports().to_string())
        .output()
        .unwrap();
    fails(&told);
    let told = report(&told);
    let failed = with(&told, "fail");
    for setting in ["AUDIT_HMAC_KEY", "ISSUER_URL", "store"] {
        assert!(
            failed.iter().any(|check| check.contains(setting)),
            "{setting} in {told:#}"
        );
    }
    assert!(!told.to_string().contains("short"), "{told:#}");
}
