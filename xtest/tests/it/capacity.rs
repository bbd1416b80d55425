//! `caracal capacity` on deployments that are short of something for a real cause.

use std::future::Future;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use xtest::http::Request;
use xtest::{Deployment, Fault, Options, Part, Stack, World, eventually, on_both_stacks};

/// Signals of time: the machine that runs the tests is short of processors itself.
const PATIENT: &str = "--threshold redis_latency=60 --threshold sts_latency=60 \
    --threshold gateway_latency=60 --threshold postgres_pool_wait=60 --threshold cpu=60";
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

/// Asks for a verdict while callers do something over and over.
async fn meanwhile<F: Future<Output = ()>>(
    stack: &Stack,
    line: &str,
    does: impl Fn() -> F,
) -> (Value, i32) {
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

on_both_stacks! {
    async fn a_deployment_that_is_short_of_nothing_says_so(stack: Arc<Stack>) {
        let world = World::new(Arc::clone(&stack)).await;
        let agent = world.agent().await;
        for _ in 0..4 {
            world.call(&world.mandate(&agent).await).await.unwrap().expect(200);
        }
        let (verdict, code) = capacity(&stack, &format!("--over 1s {PATIENT}")).await;
        assert_eq!((verdict["healthy"].as_bool(), code), (Some(true), 0), "{verdict:#}");
        assert_eq!(verdict["steps"].as_array().unwrap().len(), 5);
        assert_eq!(verdict["summary"]["replicas"], json!({"api": 1, "sts": 1, "gateway": 1, "audit": 1, "coordinator": 1}));

        let text = stack.caracal(&format!("capacity --over 1s {PATIENT}")).await;
        assert!(text.status.success() && said(&text).starts_with("No bottleneck."), "{}", said(&text));
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
            let steps = &verdict.0["steps"];
            assert_eq!(
                (&steps[1]["verdict"], &steps[2]["verdict"]),
                (&json!("no"), &json!("now"))
            );
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

#[test]
fn a_delayed_redis_is_named() {
    let options = Options::default().faulty();
    xtest::on(
        Deployment::Distributed,
        options,
        async |stack: Arc<Stack>| {
            let world = World::new(Arc::clone(&stack)).await;
            let agent = world.agent().await;
            stack
                .redis_proxy()
                .does(Fault::Slow(Duration::from_millis(150)));
            let verdict = meanwhile(&stack, "--over 3s", async || {
                // Some are refused while the feed is late; that is not what is asked here.
                if let Ok(minted) = world.mint(&agent).await
                    && minted.status == 200
                {
                    drop(world.call(&minted.text("access_token")).await);
                }
            })
            .await;
            names(&verdict, "redis_latency");
            let steps = &verdict.0["steps"];
            assert_eq!(
                (&steps[1]["verdict"], &steps[2]["verdict"]),
                (&json!("no"), &json!("now"))
            );
            assert_eq!(verdict.0["storage_healthy"], false);
        },
    );
}

/// The same through a Prometheus server: one that answers queries with what the services say now.
#[test]
fn a_prometheus_server_is_as_good_as_the_services() {
    let options = Options::default();
    xtest::on(
        Deployment::Distributed,
        options,
        async |stack: Arc<Stack>| {
            let url = prometheus(Arc::clone(&stack)).await;
            let line = format!("--prometheus {url} --over 1s {PATIENT}");
            let (verdict, code) = capacity(&stack, &line).await;
            assert_eq!(
                (verdict["healthy"].as_bool(), code),
                (Some(true), 0),
                "{verdict:#}"
            );
            assert_eq!(
                verdict["summary"]["replicas"]["coordinator"], 1,
                "{verdict:#}"
            );
            stack.kill9(&[Part::Audit]);
            let verdict = capacity(&stack, &line).await;
            names(&verdict, "audit_ingest");
            assert!(
                evidence(&verdict.0).contains("cannot scrape"),
                "{:#}",
                verdict.0
            );
            let gone = stack
                .caracal("capacity --prometheus http://127.0.0.1:9 --over 1s")
                .await;
            assert_eq!(gone.status.code(), Some(3), "{}", said(&gone));
        },
    );
}

/// Answers `/api/v1/query`: the series of ours, `up`, and an empty vector to everything else.
async fn prometheus(stack: Arc<Stack>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stack = Arc::clone(&stack);
            tokio::spawn(async move { answer(stream, &stack).await });
        }
    });
    url
}

async fn answer(stream: tokio::net::TcpStream, stack: &Stack) {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::io::BufReader::new(stream);
    let mut query = String::new();
    let mut line = String::new();
    while stream
        .read_line(&mut line)
        .await
        .is_ok_and(|length| length > 2)
    {
        if let Some(path) = line.strip_prefix("GET ") {
            let pairs = path.split_once('?').map_or("", |(_, pairs)| pairs);
            let pairs = pairs.split(' ').next().unwrap_or_default().as_bytes();
            let found = form_urlencoded::parse(pairs).find(|(name, _)| name == "query");
            query = found.expect("a query").1.into_owned();
        }
        line.clear();
    }
    let mut result = Vec::new();
    for part in Part::ALL {
        let instance = stack.urls.of(part).trim_start_matches("http://");
        let of = json!({"instance": instance, "job": format!("caracal-{}", part.name())});
        let scraped = stack
            .http
            .try_send(Request {
                method: "GET",
                url: format!("{}/metrics", stack.urls.of(part)),
                bearer: Some(stack.setting("METRICS_BEARER")),
                headers: vec![],
                body: bytes::Bytes::new(),
            })
            .await;
        if query.starts_with("{__name__=~\"caracal_") {
            let text = scraped.map(|answer| String::from_utf8(answer.body.to_vec()).unwrap());
            result.extend(
                text.unwrap_or_default()
                    .lines()
                    .filter_map(|line| series(line, &of)),
            );
            // It was there at the first look.
            result.push(
                json!({"metric": merged(&of, &[("__name__", first_of(part))]), "value": [0, "0"]}),
            );
        } else if query.starts_with("up{") && scraped.is_err() {
            result.push(json!({"metric": merged(&of, &[("__name__", "up")]), "value": [0, "0"]}));
        }
    }
    let body = json!({"status": "success", "data": {"resultType": "vector", "result": result}});
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    drop(stream.write_all(format!("{head}{body}").as_bytes()).await);
}

/// A metric that only this service has.
fn first_of(part: Part) -> &'static str {
    match part {
        Part::Api => "caracal_api_outbox_dead_total",
        Part::Sts => "caracal_sts_opa_compile_errors_total",
        Part::Gateway => "caracal_gateway_requests_total",
        Part::Coordinator => "caracal_ttl_sweeper_runs_total",
        Part::Audit => "caracal_audit_dlq_size",
    }
}

fn merged(labels: &Value, more: &[(&str, &str)]) -> Value {
    let mut labels = labels.clone();
    for (name, value) in more {
        labels[*name] = json!(value);
    }
    labels
}

/// A line of an exposition as an element of a vector.
fn series(line: &str, of: &Value) -> Option<Value> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let mut metric = merged(of, &[("__name__", name)]);
    for label in labels
        .trim_end_matches('}')
        .split("\",")
        .filter(|label| !label.is_empty())
    {
        let (name, value) = label.split_once("=\"")?;
        metric[name] = json!(value.trim_end_matches('"'));
    }
    Some(json!({"metric": metric, "value": [0, value]}))
}
