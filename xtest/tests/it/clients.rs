//! The published Python clients, unmodified, against both deployments.
//!
//! `CARACAL_TEST_PYTHON` names an interpreter that has the packages; without it this is skipped.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use xtest::{Agent, Deployment, Options, Stack, World};

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

#[test]
fn embedded_resource_servers_miss_no_revocation_when_redis_is_started_again() {
    follows(Deployment::Embedded);
}

#[test]
fn distributed_resource_servers_miss_no_revocation_when_redis_is_started_again() {
    follows(Deployment::Distributed);
}

/// The interpreter that has the packages, if there is one.
fn python(deployment: Deployment) -> Option<std::ffi::OsString> {
    let python = std::env::var_os("CARACAL_TEST_PYTHON");
    if python.is_none() {
        xtest::visibly(&format!(
            "skipped clients, {deployment:?}: CARACAL_TEST_PYTHON is not set"
        ));
    }
    python
}

/// A script of ours, as a deployment's user would run it.
fn script(python: &std::ffi::OsStr, name: &str, stack: &Stack) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("clients")
        .join(name);
    let settings = stack.environment().iter();
    let mut command = Command::new(python);
    command
        .arg(script)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("CARACAL_STS_URL", &stack.urls.sts)
        .env("CARACAL_AUDIT_URL", &stack.urls.audit)
        .env(
            "CARACAL_TEST_REDIS_URL",
            stack.redis_url().expect("a Redis"),
        )
        .envs(settings.map(|(name, value)| (name, value)))
        .kill_on_drop(true);
    command
}

fn on(deployment: Deployment, name: &str) {
    let Some(python) = python(deployment) else {
        return;
    };
    // Resource servers read revocations from Redis, also beside an embedded deployment.
    let options = Options::default().mirrored();
    xtest::on(deployment, options, async |stack: Arc<Stack>| {
        let output = script(&python, name, &stack).output().await;
        let output = output.expect("the interpreter runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{complained}");
        assert!(said.ends_with(" passed, 0 failed\n"), "{said}");
    });
}

/// The published consumers of a resource server, as they run for a while.
struct ResourceServer {
    _process: Child,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl ResourceServer {
    fn start(python: &std::ffi::OsStr, stack: &Stack) -> Self {
        let mut process = script(python, "revocations.py", stack)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter runs");
        Self {
            questions: process.stdin.take().expect("a pipe"),
            answers: BufReader::new(process.stdout.take().expect("a pipe")).lines(),
            _process: process,
        }
    }

    async fn says(&mut self, question: &str) -> String {
        let line = format!("{question}\n");
        self.questions
            .write_all(line.as_bytes())
            .await
            .expect("it listens");
        let answer = self.answers.next_line().await.expect("it answers");
        answer.expect("it lives")
    }

    async fn comes_to_say(&mut self, question: &str, expected: &str, when: &str) {
        // What it had read and not finished when Redis went away, it takes up after half a minute.
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let said = self.says(question).await;
            if said == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{when}: {question} is {said}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Every revocation of before, during and after a restart of Redis, with its data and without it, is
/// in force at a resource server that knows nothing but the streams.
fn follows(deployment: Deployment) {
    let Some(python) = python(deployment) else {
        return;
    };
    let options = Options::default().mirrored().durable_redis();
    xtest::on(deployment, options, async |stack: Arc<Stack>| {
        let world = World::new(Arc::clone(&stack)).await;
        let lifecycle = world.lifecycle().await;
        let mut server = ResourceServer::start(&python, &stack);
        let mut revoked: Vec<Agent> = Vec::new();
        let live = world.agent_of(lifecycle.clone()).await;
        for keeps in [true, false] {
            let mut agents = Vec::new();
            for _ in 0..3 {
                agents.push(world.agent_of(lifecycle.clone()).await);
            }
            let [before, during, after] = &agents[..] else {
                unreachable!("three")
            };
            world.revokes(before).await;
            stack.kill9_redis().await;
            // Nobody waits for Redis to take a right away.
            let path = format!("/delegations/{}/revoke", during.edge);
            world.asks("PATCH", &path, &lifecycle).await.expect(200);
            stack.start_redis(keeps).await;
            stack.is_ready().await;
            world.revokes(after).await;
            revoked.append(&mut agents);
            for agent in &revoked {
                let when = format!("Redis with its data: {keeps}");
                server.comes_to_say(&agent.edge, "revoked", &when).await;
            }
            assert_eq!(server.says(&live.edge).await, "live");
        }
        let epoch = server.says(&format!("zone {}", world.zone)).await;
        assert!(epoch.parse::<u64>().is_ok_and(|epoch| epoch > 0), "{epoch}");
    });
}
