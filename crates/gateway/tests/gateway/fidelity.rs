//! What reaches the upstream and comes back, byte for byte.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use http::header::{CONTENT_LENGTH, SERVER};
use http_body_util::BodyExt as _;
use serde_json::json;

use crate::stack::{Stack, config};

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    /// Keeps what the upstream got of each request and answers 200.
    fn keeps(
        &self,
        what: fn(&Request) -> String,
    ) -> impl Fn(Request) -> std::future::Ready<Response> + Clone + Send + Sync + 'static + use<>
    {
        let seen = self.0.clone();
        move |request| {
            seen.lock().unwrap().push(what(&request));
            std::future::ready("fine".into_response())
        }
    }

    fn last(&self) -> String {
        self.0.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

#[tokio::test]
async fn paths_and_queries_arrive_as_they_were_sent() {
    let stack = Stack::start().await;
    let seen = Seen::default();
    let url = stack
        .forwards_to(seen.keeps(|request| request.uri().to_string()))
        .await;
    let mut table = String::new();
    let signed = "/o?X-Amz-Signature=a%2Bb%2F&b=2&a=1&&a=1+1&flag&empty=";
    for (base, target) in [
        ("", "/a%2Fb/c"),
        ("", "/100%25"),
        ("", "/50%25-off/%C3%A4"),
        ("", "//a//b/"),
        ("", signed),
        ("", "/?"),
        ("", "/.env?.."),
        ("/v2", "/items/"),
        ("/v2/", "/items%2F1"),
        ("/v2", "/"),
        ("/v2?key=fixed", "/x?key=mine&z=1"),
    ] {
        stack.directive(json!({"url": format!("{url}{base}"), "auth_mode": "none"}));
        assert_eq!(stack.get(target).await.status, 200, "{target}");
        let asked = stack.exchange.asked.lock().unwrap().pop().unwrap();
        writeln!(table, "{base} {target} -> {} [{asked}]", seen.last()).unwrap();
    }
    insta::assert_snapshot!(table, @r"
     /a%2Fb/c -> /a%2Fb/c [GET /a/b/c resource://desk]
     /100%25 -> /100%25 [GET /100% resource://desk]
     /50%25-off/%C3%A4 -> /50%25-off/%C3%A4 [GET /50%-off/ä resource://desk]
     //a//b/ -> //a//b/ [GET //a//b/ resource://desk]
     /o?X-Amz-Signature=a%2Bb%2F&b=2&a=1&&a=1+1&flag&empty= -> /o?X-Amz-Signature=a%2Bb%2F&b=2&a=1&&a=1+1&flag&empty= [GET /o resource://desk]
     /? -> /? [GET / resource://desk]
     /.env?.. -> /.env?.. [GET /.env resource://desk]
    /v2 /items/ -> /v2/items/ [GET /items/ resource://desk]
    /v2/ /items%2F1 -> /v2/items%2F1 [GET /items/1 resource://desk]
    /v2 / -> /v2 [GET / resource://desk]
    /v2?key=fixed /x?key=mine&z=1 -> /v2/x?key=fixed&z=1 [GET /x resource://desk]
    ");
    stack.stop().await;
}

#[tokio::test]
async fn headers_are_cleaned_both_ways() {
    let stack = Stack::start().await;
    let seen = Seen::default();
    let keeps = seen.keeps(|request| {
        let mut lines: Vec<String> = request
            .headers()
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "traceparent" | "host"))
            .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines.concat()
    });
    let url = stack
        .forwards_to(move |request| {
            let answer = keeps(request);
            async move {
                let mut response = answer.await;
                let headers = response.headers_mut();
                headers.insert(SERVER, "nginx".parse().unwrap());
                headers.insert("x-request-id", "upstream".parse().unwrap());
                headers.insert("x-caracal-identity", "leak".parse().unwrap());
                headers.insert("location", "https://elsewhere/".parse().unwrap());
                headers.append("set-cookie", "a=1".parse().unwrap());
                headers.append("set-cookie", "b=2".parse().unwrap());
                response
            }
        })
        .await;
    stack.directive(
        json!({"url": url, "auth_mode": "provider_apikey", "auth_header": "X-Api-Key",
        "provider_token": "k-1", "forward_caracal_identity": true}),
    );
    let head = stack.head("POST", "/v1");
    let answer = stack
        .raw(&format!(
            "{head}X-Request-Id: r-1\r\nX-Api-Key: mine\r\nX-Caracal-Identity: forged\r\n\
             X-Forwarded-For: 10.0.0.1\r\nBaggage: caracal.hop=1,tenant=acme\r\nCookie: a=1\r\n\
             Upgrade: websocket\r\nConnection: X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n\
             Content-Length: 5\r\n\r\nhello"
        ))
        .await;
    insta::assert_snapshot!(seen.last(), @r"
    baggage: tenant=acme
    content-length: 5
    cookie: a=1
    x-api-key: k-1
    x-caracal-identity: resource-mandate
    x-forwarded-for: 127.0.0.1
    x-forwarded-host: gateway.example
    x-forwarded-proto: http
    x-request-id: r-1
    ");
    let mut lines: Vec<String> = answer
        .headers
        .iter()
        .filter(|(name, _)| name != "date")
        .map(|(name, value)| {
            let left = name == "x-caracal-token-expires-in"
                && (290..=300).contains(&value.parse().unwrap());
            if left {
                format!("{name}: (about 300)\n")
            } else {
                format!("{name}: {value}\n")
            }
        })
        .collect();
    lines.sort();
    insta::assert_snapshot!(lines.concat(), @r"
    connection: close
    content-length: 4
    content-type: text/plain; charset=utf-8
    set-cookie: a=1
    set-cookie: b=2
    trailer: X-Caracal-Revoked
    x-caracal-token-expires-in: (about 300)
    x-request-id: r-1
    ");
    stack.stop().await;
}

#[tokio::test]
async fn a_key_goes_into_the_query_and_nowhere_else() {
    let stack = Stack::start().await;
    let seen = Seen::default();
    let url = stack
        .forwards_to(seen.keeps(|request| {
            format!(
                "{} {:?}",
                request.uri(),
                request.headers().get("authorization")
            )
        }))
        .await;
    stack.directive(
        json!({"url": url, "auth_mode": "provider_apikey", "auth_location": "query",
        "query_param_name": "key", "provider_token": "s 1"}),
    );
    let answer = stack.get("/x?key=mine&a=1").await;
    assert_eq!(answer.status, 200);
    assert_eq!(seen.last(), "/x?a=1&key=s+1 None");
    let record = stack.events(1).await.pop().unwrap();
    assert!(!record.to_string().contains("s+1"), "{record}");
    stack.stop().await;
}

/// Says how the body was framed, and gives it back.
async fn echo(request: Request) -> Response {
    let framing = match request.headers().get(CONTENT_LENGTH) {
        Some(length) => format!("length {}", length.to_str().unwrap()),
        None if request.headers().contains_key("transfer-encoding") => "chunked".to_owned(),
        None => "none".to_owned(),
    };
    match request.into_body().collect().await {
        Ok(body) => format!("{framing}: {} bytes", body.to_bytes().len()).into_response(),
        Err(_) => "broken".into_response(),
    }
}

#[tokio::test]
async fn bodies_keep_their_framing_and_their_bound() {
    let stack = Stack::with(caracal_gateway::Config {
        max_request_bytes: 20_000,
        ..config()
    })
    .await;
    stack.forwards_to(echo).await;
    let chunk = |bytes: usize| format!("{bytes:x}\r\n{}\r\n", "x".repeat(bytes));
    let mut table = String::new();
    for (case, rest) in [
        ("no body", "\r\n".to_owned()),
        ("length 0", "Content-Length: 0\r\n\r\n".to_owned()),
        ("length 5", "Content-Length: 5\r\n\r\nhello".to_owned()),
        (
            "chunked",
            format!("Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk(9)),
        ),
        (
            "at the limit",
            format!("Content-Length: 20000\r\n\r\n{}", "x".repeat(20_000)),
        ),
        (
            "declared over it",
            "Content-Length: 20001\r\n\r\n".to_owned(),
        ),
        (
            "chunked over it",
            format!(
                "Transfer-Encoding: chunked\r\n\r\n{}{}0\r\n\r\n",
                chunk(15_000),
                chunk(6_000)
            ),
        ),
    ] {
        let answer = stack
            .raw(&format!("{}{rest}", stack.head("POST", "/")))
            .await;
        let shown = match answer.status {
            200 => answer.rest.clone(),
            _ => serde_json::from_str::<serde_json::Value>(&answer.rest).unwrap()["error_description"].to_string(),
        };
        writeln!(table, "{case:<17}| {} {shown}", answer.status).unwrap();
    }
    insta::assert_snapshot!(table, @r#"
    no body          | 200 length 0: 0 bytes
    length 0         | 200 length 0: 0 bytes
    length 5         | 200 length 5: 5 bytes
    chunked          | 200 chunked: 9 bytes
    at the limit     | 200 length 20000: 20000 bytes
    declared over it | 413 "request body too large"
    chunked over it  | 413 "request body too large"
    "#);
    stack.stop().await;
}

#[tokio::test]
async fn every_method_is_proxied_and_an_upgrade_is_not() {
    let stack = Stack::start().await;
    let seen = Seen::default();
    stack
        .forwards_to(seen.keeps(|request| request.method().to_string()))
        .await;
    for method in [
        "GET", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "HEAD",
    ] {
        let answer = stack.raw(&format!("{}\r\n", stack.head(method, "/"))).await;
        assert_eq!((answer.status, seen.last().as_str()), (200, method));
        assert_eq!(answer.rest.is_empty(), method == "HEAD");
        assert_eq!(answer.header("content-length"), Some("4"), "{method}");
    }
    let answer = stack
        .raw(&format!("{}\r\n", stack.head("CONNECT", "a.example:443")))
        .await;
    assert_eq!(answer.status, 405);
    stack.stop().await;
}

#[tokio::test]
async fn answers_without_a_body_pass() {
    let stack = Stack::start().await;
    stack
        .forwards_to(|request| async move {
            let status: u16 = request.uri().path()[1..].parse().unwrap();
            Response::builder()
                .status(status)
                .body(Body::empty())
                .unwrap()
        })
        .await;
    for status in [200, 204, 302, 304, 404, 500] {
        let answer = stack.get(&format!("/{status}")).await;
        assert_eq!((answer.status, answer.rest.as_str()), (status, ""));
    }
    let events = stack.events(6).await;
    assert!(
        events
            .iter()
            .all(|event| event["evaluation_status"] == "executed")
    );
    stack.stop().await;
}
