//! The same verdicts through a Prometheus server.

use std::sync::Arc;

use serde_json::{Value, json};
use xtest::http::Request;
use xtest::{Deployment, Options, Part, Stack};

use super::{PATIENT, capacity, evidence, names, said};

/// One that answers queries with what the services say now.
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
