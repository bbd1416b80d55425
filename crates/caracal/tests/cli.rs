//! The command line as a person uses it: the built binary, a directory of its own, real ports.
#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "cli/capacity.rs"]
mod capacity;
#[path = "cli/config.rs"]
mod config;
#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/https.rs"]
mod https;
#[path = "cli/run.rs"]
mod run;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A deployment in a directory of its own; stopped when it goes out of scope.
struct Deployment {
    directory: tempfile::TempDir,
    first_port: u16,
}

impl Deployment {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            first_port: five_free_ports(),
        }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn caracal(&self, line: &str) -> Output {
        caracal(&self.data(), line)
    }

    fn up(&self) -> Output {
        self.caracal(&format!("up --detach --ports-from {}", self.first_port))
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        self.caracal("down");
    }
}

fn caracal(data: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_caracal"))
        .args(line.split_whitespace())
        .env_clear()
        .env("CARACAL_HOME", data)
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn five_free_ports() -> u16 {
    loop {
        let first = TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        if first < 65_000
            && (first..first + 5).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        {
            return first;
        }
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    said(output)
}

#[track_caller]
fn fails(output: &Output) -> String {
    assert!(!output.status.success(), "{}", said(output));
    said(output)
}

#[test]
fn a_day_with_an_embedded_deployment() {
    let deployment = Deployment::new();
    let told = succeeds(&deployment.up());
    assert!(
        told.contains("admin token") && told.contains("Next:"),
        "{told}"
    );

    let status = deployment.caracal("status --ready --json");
    succeeds(&status);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["mode"], "ready");
    assert_eq!(status["services"].as_array().unwrap().len(), 5);

    let again = fails(&deployment.up());
    assert!(
        again.contains("already running") && again.contains("caracal down"),
        "{again}"
    );

    let demo = succeeds(&deployment.caracal("demo --keep"));
    for line in [
        "allowed 200",
        "refused 403",
        "refused 401",
        "final decision: deny",
    ] {
        assert!(demo.contains(line), "no `{line}` in\n{demo}");
    }

    let tail = deployment.caracal("audit tail --once --json --decision deny");
    succeeds(&tail);
    let event: Value =
        serde_json::from_slice(tail.stdout.split(|&b| b == b'\n').next().unwrap()).unwrap();
    assert_eq!(event["decision"], "deny");

    let holds = succeeds(&deployment.caracal("audit verify"));
    assert!(holds.contains("holds"), "{holds}");
    let head = holds.split_whitespace().last().unwrap().to_owned();

    assert!(succeeds(&deployment.caracal("down")).contains("stopped"));
    assert!(succeeds(&deployment.caracal("down")).contains("not running"));
    fails(&deployment.caracal("status"));

    // A second start finds everything: the ledger goes on behind the head that was kept.
    succeeds(&deployment.up());
    succeeds(&deployment.caracal(&format!("audit verify --head {head}")));
    succeeds(&deployment.caracal("demo"));
    succeeds(&deployment.caracal(&format!("audit verify --head {head}")));
}

#[test]
fn an_export_verifies_without_a_database_and_shows_a_changed_letter() {
    let deployment = Deployment::new();
    succeeds(&deployment.up());
    succeeds(&deployment.caracal("demo"));
    succeeds(&deployment.caracal("down"));
    let export = deployment.directory.path().join("events.ndjson");
    let file = export.display().to_string();
    succeeds(&deployment.caracal(&format!("audit export --out {file}")));
    let exists = fails(&deployment.caracal(&format!("audit export --out {file}")));
    assert!(exists.contains("must not exist"), "{exists}");

    let empty = deployment.directory.path().join("elsewhere");
    let key = std::fs::read_to_string(deployment.data().join("secrets/auditHmacKey")).unwrap();
    let verify = |with_key: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_caracal"));
        command
            .args(["audit", "verify", "--export", &file])
            .env_clear()
            .env("CARACAL_HOME", &empty);
        if with_key {
            command.env("AUDIT_HMAC_KEY", &key)
        } else {
            command.arg("--without-key")
        }
        .output()
        .unwrap()
    };
    succeeds(&verify(true));

    let text = std::fs::read_to_string(&export)
        .unwrap()
        .replacen("deny", "dent", 1);
    std::fs::write(&export, text).unwrap();
    let broken = fails(&verify(false));
    assert!(
        broken.contains("BROKEN") && broken.contains("changed"),
        "{broken}"
    );
}

#[test]
fn a_port_that_is_taken_is_named_with_what_to_do() {
    let deployment = Deployment::new();
    let _other = TcpListener::bind(("127.0.0.1", deployment.first_port + 1)).unwrap();
    let told = fails(&deployment.up());
    assert!(
        told.contains("sts cannot listen on") && told.contains("--ports-from"),
        "{told}"
    );
}

#[test]
fn up_refuses_a_database_that_it_would_not_use() {
    let nothing = tempfile::tempdir().unwrap();
    let told = Command::new(env!("CARGO_BIN_EXE_caracal"))
        .arg("up")
        .env("CARACAL_HOME", nothing.path())
        .env("DATABASE_URL", "postgres://db/caracal")
        .output()
        .unwrap();
    assert!(fails(&told).contains("caracal serve"));
    assert!(
        !nothing.path().join("secrets").exists(),
        "nothing is made before the mistake is told"
    );
}

#[test]
fn mistakes_are_told_with_the_next_step() {
    let nothing = tempfile::tempdir().unwrap();
    let serve = fails(&caracal(nothing.path(), "serve sts"));
    for told in ["use `caracal up`", "REDIS_URL: ", "ISSUER_URL: "] {
        assert!(serve.contains(told), "{serve}");
    }
    for (line, hint) in [
        ("audit verify --without-key", "caracal up"),
        ("audit tail", "caracal up"),
        (
            "audit verify --export none.ndjson --without-key",
            "none.ndjson",
        ),
        ("demo", "caracal up"),
    ] {
        let told = fails(&caracal(nothing.path(), line));
        assert!(told.contains(hint), "`{line}` says\n{told}");
        assert_eq!(told.lines().count(), 1, "`{line}` says\n{told}");
    }
}

#[test]
fn version_and_help_are_where_one_looks_for_them() {
    let nothing = tempfile::tempdir().unwrap();
    for line in ["-v", "--version", "version"] {
        assert_eq!(
            succeeds(&caracal(nothing.path(), line)).trim(),
            "caracal 0.1.0"
        );
    }
    for line in ["-h", "--help", "help"] {
        assert!(
            succeeds(&caracal(nothing.path(), line)).contains("caracal up --detach"),
            "{line}"
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            succeeds(&caracal(nothing.path(), &format!("completions {shell}"))).contains("caracal")
        );
    }
    let json: Value =
        serde_json::from_slice(&caracal(nothing.path(), "version --json").stdout).unwrap();
    assert_eq!(json["binary"], "caracal");
}
