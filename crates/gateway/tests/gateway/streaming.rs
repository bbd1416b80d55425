//! Responses that take their time.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use futures_util::stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};

use crate::client::PATIENCE;
use crate::stack::{Around, Stack, config};

/// An upstream whose chunks a test sends one by one.
struct Tap {
    chunks: mpsc::UnboundedSender<Result<&'static str, io::Error>>,
}

impl Tap {
    async fn of(stack: &Stack, content_length: Option<usize>) -> Self {
        let (chunks, receiver) = mpsc::unbounded_channel();
        let receiver = Arc::new(tokio::sync::Mutex::new(Some(receiver)));
        stack
            .forwards_to(move |_| {
                let receiver = receiver.clone();
                async move {
                    let receiver = receiver.lock().await.take().unwrap();
                    let body = stream::unfold(receiver, |mut receiver| async {
                        receiver.recv().await.map(|chunk| (chunk, receiver))
                    });
                    let mut response =
                        Response::builder().header("content-type", "text/event-stream");
                    if let Some(length) = content_length {
                        response = response.header("content-length", length);
                    }
                    response.body(Body::from_stream(body)).unwrap()
                }
            })
            .await;
        Self { chunks }
    }

    fn sends(&self, chunk: &'static str) {
        self.chunks.send(Ok(chunk)).unwrap();
    }

    fn breaks(&self) {
        self.chunks.send(Err(io::Error::other("gone"))).unwrap();
    }
}

#[tokio::test]
async fn a_chunk_arrives_before_the_upstream_has_finished() {
    let stack = Stack::start().await;
    let tap = Tap::of(&stack, None).await;
    let mut call = stack.open().await;
    call.send(&format!("{}\r\n", stack.head("GET", "/events")))
        .await;
    tap.sends("data: one\n\n");
    call.sees("data: one\n\n").await;
    tap.sends("data: two\n\n");
    call.sees("data: two\n\n").await;
    assert_eq!(
        stack.evidence.stats().persisted,
        0,
        "the end is what waits for its record"
    );
    drop(tap);
    let answer = call.answer().await;
    assert!(answer.is_complete() && !answer.reset);
    assert_eq!(answer.header("trailer"), Some("X-Caracal-Revoked"));
    assert!(!answer.rest.contains("x-caracal-revoked"));
    let record = stack.events(1).await.pop().unwrap();
    assert_eq!(record["metadata_json"]["response_bytes"], 22);
    stack.stop().await;
}

#[tokio::test]
async fn a_revocation_cuts_a_stream_that_is_silent_and_says_so_in_the_trailer() {
    let stack = Stack::start().await;
    let tap = Tap::of(&stack, None).await;
    let mut call = stack.open().await;
    call.send(&format!(
        "{}TE: trailers\r\n\r\n",
        stack.head("GET", "/events")
    ))
    .await;
    tap.sends("data: one\n\n");
    call.sees("data: one\n\n").await;
    stack.has_revoked("agent_session_id", "someone-else").await;
    tap.sends("data: two\n\n");
    call.sees("data: two\n\n").await;
    stack.revokes("delegation_edge_id", "edge-1").await;
    let answer = call.answer().await;
    assert!(
        answer
            .rest
            .ends_with("0\r\nx-caracal-revoked: true\r\n\r\n"),
        "{}",
        answer.rest
    );
    let record = stack.events(1).await.pop().unwrap();
    assert_eq!(record["metadata_json"]["revocation_interrupted"], true);
    assert_eq!(record["evaluation_status"], "executed");
    drop(tap);
    stack.stop().await;
}

#[tokio::test]
async fn a_revocation_breaks_off_a_stream_whose_caller_reads_no_trailers() {
    let stack = Stack::start().await;
    let tap = Tap::of(&stack, None).await;
    let mut call = stack.open().await;
    call.send(&format!("{}\r\n", stack.head("GET", "/events")))
        .await;
    tap.sends("data: one\n\n");
    call.sees("data: one\n\n").await;
    stack.revokes("delegation_edge_id", "edge-2").await;
    let answer = call.answer().await;
    assert!(!answer.is_complete(), "{}", answer.rest);
    let record = stack.events(1).await.pop().unwrap();
    assert_eq!(record["metadata_json"]["revocation_interrupted"], true);
    drop(tap);
    stack.stop().await;
}

#[tokio::test]
async fn a_revocation_breaks_off_an_answer_that_cannot_carry_a_trailer() {
    let stack = Stack::start().await;
    let tap = Tap::of(&stack, Some(100)).await;
    let mut call = stack.open().await;
    call.send(&format!("{}\r\n", stack.head("GET", "/download")))
        .await;
    tap.sends("first");
    call.sees("first").await;
    stack.revokes("agent_session_id", "session-1").await;
    let answer = call.answer().await;
    assert!(!answer.is_complete());
    stack.events(1).await;
    drop(tap);

    let tap = Tap::of(&stack, None).await;
    let mut old = stack.open().await;
    let mut mandate = stack.mandate();
    mandate.agent_session_id = None;
    let head = format!(
        "GET / HTTP/1.0\r\nAuthorization: Bearer {}\r\nX-Caracal-Resource: resource://desk\r\n\r\n",
        stack.sign(&mandate)
    );
    old.send(&head).await;
    tap.sends("first");
    old.sees("first").await;
    stack.revokes("session_id", "record-0").await;
    assert!(old.answer().await.reset, "an HTTP/1.0 caller sees a reset");
    stack.events(2).await;
    stack.stop().await;
}

fn a_short_lease() -> Around {
    Around {
        feed_max_lag: Duration::from_millis(1500),
        ..Around::default()
    }
}

#[tokio::test]
async fn a_revocation_cuts_a_stream_while_the_feed_is_lost() {
    let stack = Stack::among(config(), a_short_lease()).await;
    let tap = Tap::of(&stack, None).await;
    let mut call = stack.open().await;
    call.send(&format!(
        "{}TE: trailers\r\n\r\n",
        stack.head("GET", "/events")
    ))
    .await;
    tap.sends("data: one\n\n");
    call.sees("data: one\n\n").await;
    stack.loses_its_feed().await;
    stack.revokes_in_the_store("record-1").await;
    let answer = call.answer().await;
    assert!(
        answer.rest.ends_with("x-caracal-revoked: true\r\n\r\n"),
        "{}",
        answer.rest
    );
    let record = stack.events(1).await.pop().unwrap();
    assert_eq!(record["metadata_json"]["revocation_interrupted"], true);
    stack.stop().await;
}

#[tokio::test]
async fn a_stream_is_cut_once_nobody_can_tell_whether_it_was_revoked() {
    let stack = Stack::among(config(), a_short_lease()).await;
    let tap = Tap::of(&stack, None).await;
    let mut call = stack.open().await;
    call.send(&format!(
        "{}TE: trailers\r\n\r\n",
        stack.head("GET", "/events")
    ))
    .await;
    tap.sends("data: one\n\n");
    call.sees("data: one\n\n").await;
    stack.is_cut_off().await;
    let answer = call.answer().await;
    assert!(!answer.is_complete(), "{}", answer.rest);
    assert!(!answer.rest.contains("x-caracal-revoked: true"));
    let record = stack.events(1).await.pop().unwrap();
    let metadata = &record["metadata_json"];
    assert_eq!(metadata["error_kind"], "revocation_state_unavailable");
    assert!(metadata["revocation_interrupted"].is_null(), "{metadata}");
    stack.stop().await;
}

#[tokio::test]
async fn a_revocation_before_the_head_of_the_response_denies_it() {
    let stack = Stack::start().await;
    let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, gate) = (entered.clone(), release.clone());
    stack
        .forwards_to(move |_| {
            let (inside, gate) = (inside.clone(), gate.clone());
            async move {
                inside.notify_one();
                gate.notified().await;
                Response::new(Body::from("too late"))
            }
        })
        .await;
    let mut call = stack.open().await;
    call.send(&format!("{}\r\n", stack.head("GET", "/"))).await;
    entered.notified().await;
    stack.has_revoked("session_id", "record-1").await;
    release.notify_one();
    let answer = call.answer().await;
    assert_eq!(answer.status, 401);
    assert!(answer.rest.contains("session revoked") && !answer.rest.contains("too late"));
    let record = stack.events(1).await.pop().unwrap();
    assert_eq!(record["metadata_json"]["revocation_interrupted"], true);
    assert_eq!(record["metadata_json"]["gateway_status"], 401);
    stack.stop().await;
}

#[tokio::test]
async fn an_upstream_that_breaks_off_does_not_look_complete() {
    for length in [None, Some(100)] {
        let stack = Stack::start().await;
        let tap = Tap::of(&stack, length).await;
        let mut call = stack.open().await;
        call.send(&format!("{}\r\n", stack.head("GET", "/"))).await;
        tap.sends("first");
        call.sees("first").await;
        tap.breaks();
        let answer = call.answer().await;
        assert!(!answer.is_complete(), "{}", answer.rest);
        let record = stack.events(1).await.pop().unwrap();
        assert_eq!(
            record["metadata_json"]["error_kind"],
            "response_copy_failed"
        );
        assert_eq!(record["decision"], "allow");
        stack.stop().await;
    }
}

#[tokio::test]
async fn an_upstream_that_falls_silent_is_given_up() {
    let config = caracal_gateway::Config {
        stream_idle_timeout: Duration::from_secs(1),
        upstream_timeout: Duration::from_secs(2),
        ..config()
    };
    let stack = Stack::with(config).await;
    let tap = Tap::of(&stack, None).await;
    let mut call = stack.open().await;
    call.send(&format!("{}\r\n", stack.head("GET", "/"))).await;
    tap.sends("first");
    call.sees("first").await;
    assert!(!call.answer().await.is_complete());

    stack.forwards_to(|_| std::future::pending()).await;
    let answer = stack.get("/").await;
    assert_eq!(answer.status, 504);
    assert!(answer.rest.contains("upstream timeout"));
    stack.stop().await;
}

#[tokio::test]
async fn a_caller_that_leaves_is_recorded_too() {
    let stack = Stack::start().await;
    let tap = Tap::of(&stack, None).await;
    let mut call = stack.open().await;
    call.send(&format!("{}\r\n", stack.head("GET", "/"))).await;
    tap.sends("first");
    call.sees("first").await;
    drop(call);
    let record = stack.events(1).await.pop().unwrap();
    assert_eq!(
        record["metadata_json"]["error_kind"],
        "response_copy_failed"
    );

    let entered = Arc::new(Notify::new());
    let inside = entered.clone();
    stack
        .forwards_to(move |_| {
            inside.notify_one();
            std::future::pending()
        })
        .await;
    let mut call = stack.open().await;
    call.send(&format!("{}\r\n", stack.head("GET", "/"))).await;
    entered.notified().await;
    drop(call);
    let record = stack.events(2).await.pop().unwrap();
    assert_eq!(record["metadata_json"]["error_kind"], "transport_error");
    assert_eq!(record["metadata_json"]["gateway_status"], 499);
    stack.stop().await;
}

#[tokio::test]
async fn an_upload_streams_and_its_stall_is_told() {
    let config = caracal_gateway::Config {
        read_timeout: Duration::from_millis(100),
        ..config()
    };
    let stack = Stack::with(config).await;
    let got = Arc::new(Notify::new());
    let tell = got.clone();
    stack
        .forwards_to(move |request| {
            let tell = tell.clone();
            async move {
                let mut body = request.into_body().into_data_stream();
                use futures_util::StreamExt as _;
                while let Some(Ok(chunk)) = body.next().await {
                    if chunk.starts_with(b"first") {
                        tell.notify_one();
                    }
                }
                Response::new(Body::from("whatever"))
            }
        })
        .await;
    let mut call = stack.open().await;
    call.send(&format!(
        "{}Content-Length: 100\r\n\r\nfirst",
        stack.head("POST", "/")
    ))
    .await;
    tokio::time::timeout(PATIENCE, got.notified())
        .await
        .expect("the first part was not streamed");
    let answer = call.answer().await;
    assert_eq!(answer.status, 408);
    stack.stop().await;
}

#[tokio::test]
async fn a_pooled_connection_that_died_does_not_fail_the_next_call() {
    let stack = Stack::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    stack.directive(serde_json::json!({"url": url, "auth_mode": "none"}));
    let (closed, tell) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (was_closed, close) = (closed.clone(), tell.clone());
    // One answer a connection, without saying that it will close.
    let upstream = async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0u8; 4096];
            let _ = stream.read(&mut head).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")
                .await
                .unwrap();
            close.notified().await;
            drop(stream);
            was_closed.notify_one();
        }
    };
    let stop = stack.tasks.stop();
    stack.tasks.spawn("one answer each", async move {
        let _ = stop.run_until_cancelled(upstream).await;
    });
    for _ in 0..5 {
        let answer = stack.get("/").await;
        assert_eq!(answer.status, 200, "{}", answer.rest);
        tell.notify_one();
        closed.notified().await;
    }
    stack.stop().await;
}

#[tokio::test]
async fn a_large_answer_passes_whole() {
    let stack = Stack::start().await;
    stack
        .forwards_to(|_| async {
            let parts = (0..64).map(|_| Ok::<_, Infallible>(vec![b'x'; 64 * 1024]));
            Response::new(Body::from_stream(stream::iter(parts)))
        })
        .await;
    let answer = stack.get("/").await;
    assert!(answer.is_complete());
    assert_eq!(answer.rest.matches('x').count(), 64 * 64 * 1024);
    stack.stop().await;
}
