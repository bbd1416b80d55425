//! `caracal capacity` on deployments that are short of something for a real cause: the rows of the
//! page's three tables. Most share one deployment ([`rows`]); here are those that need one of their
//! own, and the deployment that is short of nothing.

mod prometheus;
mod rows;

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtest::http::Request;
use xtest::{Deployment, Options, Part, Stack, World, eventually, on_both_stacks};

/// Signals of time: the machine that runs the tests is short of processors itself.
const PATIENT: &str = "--threshold redis_latency=60 --threshold sts_latency=60 \
    --threshold gateway_latency=60 --threshold postgres_pool_wait=60 --threshold cpu=60";
/// How long a deployment may take to be well, on a machine that does much else.
const WELL_WITHIN: Duration = Duration::from_secs(60);
/// Calls at the same time.
const CALLERS: usize = 16;

/// The verdict, which must be one: neither a usage error nor blindness.
async fn capacity(stack: &Stack, line: &str) -> (Value, i32) {
    let output = stack.caracal(&format!("capacity --json {line}")).await;
    let code = output.status.code().expect("an exit code");
    let verdict = serde_json::from_slice(&output.stdout);
    (
        verdict.unwrap_or_else(|error| panic!("{error}: {}", said(&output))),
        code,
    )
}

/// Looks until the deployment is short of nothing: one look may meet what else the machine does.
async fn is_well(stack: &Stack, line: &str) -> Value {
    // Whether Postgres waits for its disk is the disk's doing, not the deployment's.
    let line = format!("--over 1s {PATIENT} --threshold postgres_io_wait=60 {line}");
    let began = Instant::now();
    loop {
        let (verdict, code) = capacity(stack, &line).await;
        let well = verdict["healthy"] == true;
        if well || began.elapsed() > WELL_WITHIN {
            assert_eq!((well, code), (true, 0), "{verdict:#}");
            return verdict;
        }
    }
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// All evidence of the first finding, as one text.
fn evidence(verdict: &Value) -> String {
    verdict["findings"][0]["evidence"].to_string()
}

#[track_caller]
fn names((verdict, code): &(Value, i32), bottleneck: &str) {
    assert_eq!(verdict["bottleneck"], bottleneck, "{verdict:#}");
    assert_eq!(*code, 1);
    assert!(verdict["first_action"].is_string() && verdict["expected_outcome"].is_string());
}

/// What is said of something that is short besides; null when it is not.
fn finding(verdict: &Value, bottleneck: &str) -> Value {
    let findings = verdict["findings"].as_array().into_iter().flatten();
    let mut found = findings.filter(|finding| finding["bottleneck"] == bottleneck);
    found.next().cloned().unwrap_or_default()
}

/// No replicas, then storage or the pool: and whether it is Postgres or Redis themselves.
#[track_caller]
fn names_storage_first((verdict, _): &(Value, i32), is_storage: bool) {
    let step = |nth: usize| &verdict["steps"][nth]["verdict"];
    assert_eq!(
        (step(1), step(2)),
        (&json!("no"), &json!("now")),
        "{verdict:#}"
    );
    assert_eq!(verdict["storage_healthy"], !is_storage, "{verdict:#}");
}

/// Asks for a verdict while callers do something over and over.
async fn meanwhile(stack: &Stack, line: &str, does: impl AsyncFn()) -> (Value, i32) {
    let callers = (0..CALLERS).map(|_| async {
        loop {
            does().await;
        }
    });
    tokio::select! {
        verdict = capacity(stack, line) => verdict,
        _ = futures_util::future::join_all(callers) => unreachable!("callers do not end"),
    }
}

/// Writes what each service says, but its histograms: tests of the tables bring their own.
///
/// `XTEST_RECORD_METRICS` names the directory for it in crate `capacity`.
async fn record(stack: &Stack) {
    let Some(directory) = std::env::var_os("XTEST_RECORD_METRICS") else {
        return;
    };
    for part in Part::ALL {
        let answer = stack
            .http
            .send(Request {
                method: "GET",
                url: format!("{}/metrics", stack.urls.of(part)),
                bearer: Some(stack.setting("METRICS_BEARER")),
                headers: vec![],
                body: bytes::Bytes::new(),
            })
            .await;
        let text = String::from_utf8(answer.expect(200).body.to_vec()).unwrap();
        let histograms: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram"))
            .collect();
        let of_one = |line: &&str| {
            let named = line
                .trim_start_matches("# HELP ")
                .trim_start_matches("# TYPE ");
            histograms.iter().any(|name| named.starts_with(name))
        };
        let kept: Vec<&str> = text.lines().filter(|line| !of_one(line)).collect();
        let file = Path::new(&directory).join(format!("{}.prom", part.name()));
        std::fs::write(&file, kept.join("\n") + "\n").unwrap();
    }
}

on_both_stacks! {
    async fn a_deployment_that_is_short_of_nothing_says_so(stack: Arc<Stack>) {
        let world = World::new(Arc::clone(&stack)).await;
        let agent = world.agent().await;
        for _ in 0..4 {
            world.call(&world.mandate(&agent).await).await.unwrap().expect(200);
        }
        if stack.deployment == Deployment::Distributed {
            record(&stack).await;
        }
        let verdict = is_well(&stack, "").await;
        assert_eq!(verdict["steps"].as_array().unwrap().len(), 5);
        assert_eq!(verdict["summary"]["replicas"], json!({"api": 1, "sts": 1, "gateway": 1, "audit": 1, "coordinator": 1}));

        eventually("it is said in words", async || {
            let line = format!("capacity --over 1s {PATIENT} --threshold postgres_io_wait=60");
            let text = stack.caracal(&line).await;
            text.status.success() && said(&text).starts_with("No bottleneck.")
        })
        .await;
        // Whoever may not see the metrics is told so, and gets no verdict.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "another").unwrap();
        let line = format!("capacity --over 1s --bearer-file {}", file.path().display());
        let blind = stack.caracal(&line).await;
        assert_eq!(blind.status.code(), Some(3), "{}", said(&blind));
        assert!(said(&blind).contains("METRICS_BEARER"), "{}", said(&blind));
        let wrong = stack.caracal("capacity --threshold speed=1").await;
        assert_eq!(wrong.status.code(), Some(2), "{}", said(&wrong));
    }
}

#[test]
fn a_pool_of_two_is_named() {
    let options = Options::default().env("DB_POOL_MAX", "2");
    xtest::on(
        Deployment::Distributed,
        options,
        async |stack: Arc<Stack>| {
            let world = World::new(Arc::clone(&stack)).await;
            let lifecycle = world.lifecycle().await;
            // Postgres itself is not asked: here it stands on the same disk as everything else.
            let line = format!("--over 3s --no-backends {PATIENT}");
            let verdict = meanwhile(&stack, &line, async || {
                let started = world.session(&lifecycle, json!({})).await;
                let session = started.expect(201).text("agent_session_id");
                world
                    .asks("DELETE", &format!("/agents/{session}"), &lifecycle)
                    .await;
            })
            .await;
            names(&verdict, "postgres_pool");
            assert_eq!(
                verdict.0["findings"][0]["service"], "coordinator",
                "{:#}",
                verdict.0
            );
            names_storage_first(&verdict, false);
            // Somebody holds a lock: the pool is full all the same, but that is why.
            let held = stack.holds("LOCK TABLE session_counts").await;
            let line = format!("--over 1s --threshold postgres_io_wait=60 {PATIENT}");
            let verdict = meanwhile(&stack, &line, async || {
                drop(world.session(&lifecycle, json!({})).await);
            })
            .await;
            names(&verdict, "postgres_locks");
            names_storage_first(&verdict, true);
            let pool = finding(&verdict.0, "postgres_pool");
            assert_eq!(pool["because_of"], "postgres_locks", "{:#}", verdict.0);
            held.lets_go().await;
        },
    );
}

#[test]
fn a_paused_audit_is_named_and_seen_to_recover() {
    let options = Options::default();
    xtest::on(
        Deployment::Distributed,
        options,
        async |stack: Arc<Stack>| {
            let world = World::new(Arc::clone(&stack)).await;
            let agent = world.agent().await;
            stack.pause(Part::Audit);
            for _ in 0..10 {
                world
                    .call(&world.mandate(&agent).await)
                    .await
                    .unwrap()
                    .expect(200);
            }
            let line = format!("--over 1s --threshold audit_lag=10 {PATIENT}");
            // Until the relays have delivered, the stream holds less.
            let mut verdict = capacity(&stack, &line).await;
            eventually("what waits is seen in Redis", async || {
                let waits = evidence(&verdict.0).contains("Evidence not in the ledger");
                if !waits {
                    verdict = capacity(&stack, &line).await;
                }
                waits
            })
            .await;
            names(&verdict, "audit_ingest");
            assert!(
                evidence(&verdict.0).contains("no answer within"),
                "{:#}",
                verdict.0
            );

            // Not settled while nothing was done about it.
            let given_up = format!("{line} --watch --stable-for 1s --within 1s");
            let (verdict, code) = capacity(&stack, &given_up).await;
            assert_eq!(
                (&verdict["watch"]["settled"], code),
                (&json!(false), 1),
                "{verdict:#}"
            );
            stack.resume(Part::Audit);
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("capacity.md");
            let watch = format!(
                "{line} --watch --stable-for 1s --within 60s --record {}",
                file.display()
            );
            let (verdict, code) = capacity(&stack, &watch).await;
            assert_eq!(
                (&verdict["watch"]["settled"], code),
                (&json!(true), 0),
                "{verdict:#}"
            );
            let record = std::fs::read_to_string(&file).unwrap();
            assert!(
                record.starts_with("## 20") && record.contains("After the change, lag: well"),
                "{record}"
            );
        },
    );
}

#[test]
fn a_stopped_sts_is_named() {
    let options = Options::default();
    xtest::on(
        Deployment::Distributed,
        options,
        async |stack: Arc<Stack>| {
            let world = World::new(Arc::clone(&stack)).await;
            let agent = world.agent().await;
            let mut mandates = Vec::new();
            for _ in 0..4 {
                mandates.push(world.mandate(&agent).await);
            }
            stack.kill9(&[Part::Sts]);
            for mandate in &mandates {
                let answer = world.call(mandate).await.unwrap();
                assert!(
                    [502, 503, 504].contains(&answer.status),
                    "{}",
                    answer.status
                );
            }
            let verdict = capacity(&stack, &format!("--over 1s {PATIENT}")).await;
            names(&verdict, "sts_unavailable");
            let told = evidence(&verdict.0);
            assert!(
                told.contains("nobody answers") && told.contains("circuit"),
                "{told}"
            );
            assert_eq!(
                verdict.0["steps"][1]["verdict"], "now",
                "storage is healthy: the STS"
            );
            stack.restart().await;
            let watch = format!("--over 1s --watch --stable-for 1s --within 60s {PATIENT}");
            let (verdict, _) = capacity(&stack, &watch).await;
            assert_eq!(verdict["watch"]["settled"], true, "{verdict:#}");
        },
    );
}
