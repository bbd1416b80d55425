//! The published Python clients, unmodified, against both deployments.
//!
//! `CARACAL_TEST_PYTHON` names an interpreter that has the packages; without it this is skipped.

use std::path::Path;
use std::sync::Arc;

use xtest::{Deployment, Options, Stack};

#[test]
fn embedded_serves_the_published_clients() {
    on(Deployment::Embedded, "governed_call.py");
}

#[test]
fn distributed_serves_the_published_clients() {
    on(Deployment::Distributed, "governed_call.py");
}

#[test]
fn embedded_holds_the_published_clients_until_a_human_approves() {
    on(Deployment::Embedded, "approvals.py");
}

#[test]
fn distributed_holds_the_published_clients_until_a_human_approves() {
    on(Deployment::Distributed, "approvals.py");
}

fn on(deployment: Deployment, script: &str) {
    let Some(python) = std::env::var_os("CARACAL_TEST_PYTHON") else {
        xtest::visibly(&format!(
            "skipped clients, {deployment:?}: CARACAL_TEST_PYTHON is not set"
        ));
        return;
    };
    // Resource servers read revocations from Redis, also beside an embedded deployment.
    let options = Options::default().mirrored();
    xtest::on(deployment, options, async |stack: Arc<Stack>| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("clients")
            .join(script);
        let output = tokio::process::Command::new(python)
            .arg(script)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("CARACAL_STS_URL", &stack.urls.sts)
            .env("CARACAL_AUDIT_URL", &stack.urls.audit)
            .env(
                "CARACAL_TEST_REDIS_URL",
                stack.redis_url().expect("a Redis"),
            )
            .envs(
                stack
                    .environment()
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .output()
            .await
            .expect("the interpreter runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{complained}");
        assert!(said.ends_with(" passed, 0 failed\n"), "{said}");
    });
}
