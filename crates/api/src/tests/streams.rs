//! The live tail of the ledger.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use caracal_model::ZoneId;
use futures_util::StreamExt as _;
use http::Request;
use serde_json::{Value, json};

use super::Stack;
use super::audit::{append_after, event};
use super::stack::BOOTSTRAP;
use crate::on_stack;

const PATIENCE: Duration = Duration::from_secs(20);

/// A stream that is read.
struct Reader {
    body: BodyDataStream,
    buffer: String,
}

/// One event of a stream.
#[derive(Debug, PartialEq)]
struct Frame {
    kind: String,
    id: String,
    data: Value,
}

impl Reader {
    async fn open(stack: &Stack, path: &str, last: Option<&str>) -> Self {
        let mut request = Request::get(path).header("authorization", format!("Bearer {BOOTSTRAP}"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = stack.open(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self {
            body: response.into_body().into_data_stream(),
            buffer: String::new(),
        }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, rest)) = self.buffer.split_once("\n\n") {
                let fields: BTreeMap<&str, &str> = frame
                    .lines()
                    .filter_map(|line| line.split_once(": "))
                    .collect();
                let frame = fields.get("event").map(|kind| Frame {
                    kind: (*kind).to_owned(),
                    id: fields["id"].to_owned(),
                    data: serde_json::from_str(fields["data"]).unwrap(),
                });
                self.buffer = rest.to_owned();
                if frame.is_some() {
                    return frame;
                }
                continue;
            }
            let chunk = tokio::time::timeout(PATIENCE, self.body.next()).await;
            let chunk = chunk.expect("an event in time")?.unwrap();
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The id of the next `n` events of the ledger, and the cursor of the last.
    async fn events(&mut self, n: usize) -> (Vec<String>, String) {
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        while ids.len() < n {
            let frame = self.next().await.expect("no end");
            if frame.kind == "audit" {
                ids.push(frame.data["id"].as_str().unwrap().to_owned());
            } else {
                assert_eq!(frame.kind, "ready");
            }
            cursor = frame.id;
        }
        (ids, cursor)
    }
}

async fn append(stack: &Stack, zone: &ZoneId, before: u64, decisions: &[&str]) {
    let made = decisions.iter().enumerate().map(|(at, decision)| {
        let metadata = json!({"resource": "x", "session_id": "hidden"});
        event(
            zone,
            usize::try_from(before).unwrap() + at,
            "r",
            decision,
            &metadata,
        )
    });
    append_after(stack, zone, before, made.collect()).await;
}

on_stack! {
    async fn a_stream_has_what_is_appended_while_it_is_open(stack: Stack) {
        let zone = stack.zone("Live").await;
        append(&stack, &zone, 0, &["allow"]).await;
        let mut reader = Reader::open(&stack, &format!("/v1/zones/{zone}/audit/stream"), None).await;
        assert_eq!(reader.next().await.unwrap().kind, "ready");
        append(&stack, &zone, 1, &["deny", "allow"]).await;
        let first = reader.next().await.unwrap();
        assert_eq!((first.kind.as_str(), &first.data["id"]), ("audit", &json!("evt-1")));
        assert_eq!(first.data["metadata_json"]["session_id"], "[redacted]");
        assert_eq!(reader.events(1).await.0, ["evt-2"]);
        // Another one at the same time.
        let mut denied = Reader::open(
            &stack, &format!("/v1/zones/{zone}/audit/stream?decision=deny&fields=id,decision"), None).await;
        assert_eq!(denied.next().await.unwrap().kind, "ready");
        append(&stack, &zone, 3, &["allow", "deny"]).await;
        let frame = denied.next().await.unwrap();
        assert_eq!(frame.data, json!({"id": "evt-4", "decision": "deny"}));
        assert_eq!(reader.events(2).await.0, ["evt-3", "evt-4"]);
    }

    async fn a_stream_goes_on_where_another_ended(stack: Stack) {
        let zone = stack.zone("Resumed").await;
        let path = format!("/v1/zones/{zone}/audit/stream");
        let mut reader = Reader::open(&stack, &path, None).await;
        reader.next().await.unwrap();
        append(&stack, &zone, 0, &["allow", "allow"]).await;
        let (_, cursor) = reader.events(1).await;
        drop(reader);
        // More than a page is missed.
        append(&stack, &zone, 2, &["allow"; 450]).await;
        let mut again = Reader::open(&stack, &path, Some(&cursor)).await;
        let (ids, last) = again.events(451).await;
        let expected: Vec<String> = (1..452).map(|n| format!("evt-{n}")).collect();
        assert_eq!(ids, expected);
        append(&stack, &zone, 452, &["allow"]).await;
        assert_eq!(again.events(1).await.0, ["evt-452"]);
        let by_query = format!("{path}?cursor={last}");
        assert_eq!(Reader::open(&stack, &by_query, None).await.events(1).await.0, ["evt-452"]);
        let since = format!("{path}?since=2026-05-21T12:00:00.000450Z");
        assert_eq!(Reader::open(&stack, &since, None).await.events(3).await.0,
            ["evt-450", "evt-451", "evt-452"]);
    }

    async fn a_stream_says_why_it_ends(stack: Stack) {
        let zone = stack.zone("Ending").await;
        let path = format!("/v1/zones/{zone}/audit/stream");
        let mut slow = Reader::open(&stack, &path, None).await;
        slow.next().await.unwrap();
        let mut quick = Reader::open(&stack, &path, None).await;
        quick.next().await.unwrap();
        // More than a listener may be behind, while only one of them reads.
        for before in (0..1_500).step_by(500) {
            append(&stack, &zone, before, &["allow"; 500]).await;
            quick.events(500).await;
        }
        let end = slow.next().await.unwrap();
        assert_eq!((end.kind.as_str(), &end.data["reason"]), ("end", &json!("slow_consumer")));
        assert_eq!(end.data["cursor"], json!(end.id));
        assert_eq!(slow.next().await, None);
        let metrics = stack.get("/metrics").await.text;
        assert!(metrics.contains("caracal_api_audit_streams_cut_total 1\n"), "{metrics}");
        assert!(metrics.contains("caracal_api_audit_streams 1\n"), "{metrics}");
        // It has lost nothing.
        assert_eq!(Reader::open(&stack, &path, Some(&end.id)).await.events(2).await.0, ["evt-0", "evt-1"]);
        stack.drain();
        let end = quick.next().await.unwrap();
        assert_eq!((end.kind.as_str(), &end.data["reason"]), ("end", &json!("draining")));
        assert_eq!(quick.next().await, None);
    }

    async fn there_are_only_so_many_streams_of_a_zone(stack: Stack) {
        let zone = stack.zone("Many").await;
        let path = format!("/v1/zones/{zone}/audit/stream");
        let mut readers = Vec::new();
        for _ in 0..64 {
            readers.push(Reader::open(&stack, &path, None).await);
        }
        let refused = stack.get(&path).await;
        assert_eq!(refused.headers["retry-after"], "30");
        assert_eq!(refused.is(429)["error"], "rate_limited");
        readers.pop();
        Reader::open(&stack, &path, None).await;
    }

    async fn what_is_no_stream_is_refused(stack: Stack) {
        let (zone, other) = (stack.zone("One").await, stack.zone("Other").await);
        let path = format!("/v1/zones/{zone}/audit/stream");
        let cursor = Reader::open(&stack, &path, None).await.next().await.unwrap().id;
        for (query, error) in [
            (format!("?cursor={cursor}x"), "invalid_cursor"),
            ("?cursor=e30".to_owned(), "invalid_cursor"),
            ("?format=csv".to_owned(), "invalid_query"),
            ("?decision=maybe".to_owned(), "invalid_query"),
            ("?since=now".to_owned(), "invalid_query"),
            ("?fields=nope".to_owned(), "invalid_fields"),
        ] {
            let refused = stack.get(&format!("{path}{query}")).await;
            assert_eq!(refused.is(400)["error"], error, "{query}");
        }
        let elsewhere = format!("/v1/zones/{other}/audit/stream?cursor={cursor}");
        assert_eq!(stack.get(&elsewhere).await.is(400)["error"], "invalid_cursor");
        let of_other = stack.token("read", Some(&other)).await;
        let refused = stack.send_as(&of_other, "GET", &path, "").await;
        assert_eq!(refused.is(403)["error"], "admin_token_zone_mismatch");
        assert_eq!(stack.send_as("", "GET", &path, "").await.is(401)["error"], "invalid_admin_token");
    }
}
