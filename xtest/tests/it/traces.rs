//! One trace from the agent to the upstream, across the processes of a deployment, as a collector
//! gets to see it.

use std::sync::Arc;

use bytes::Bytes;
use xtest::http::Request;
use xtest::{Deployment, Options, Stack, World, eventually};

use crate::collector::{Collected, collector};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const AGENT: &str = "00f067aa0ba902b7";

/// A span, as far as it places itself: the service that sent it, its trace, its parent and itself.
#[derive(Clone, Debug)]
struct Span {
    service: String,
    trace: String,
    parent: String,
    own: String,
}

/// The spans of an `ExportTraceServiceRequest`.
fn spans(message: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource in parts(message, 1) {
        let attributes = parts(&part(&resource, 1), 1);
        let named = |one: &&Vec<u8>| part(one, 1) == b"service.name";
        let name = part(&part(attributes.iter().find(named).unwrap(), 2), 1);
        for scope in parts(&resource, 2) {
            spans.extend(parts(&scope, 2).into_iter().map(|span| Span {
                service: String::from_utf8(name.clone()).unwrap(),
                trace: hex(&part(&span, 1)),
                own: hex(&part(&span, 2)),
                parent: hex(&part(&span, 4)),
            }));
        }
    }
    spans
}

/// Every message of a field: OTLP has numbers, times, and what has its length before it.
fn parts(mut message: &[u8], number: u64) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let length = match key & 7 {
            0 => {
                varint(&mut message);
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)).unwrap(),
            kind => panic!("wire type {kind} is not used"),
        };
        let held = take(&mut message, length);
        if key == number << 3 | 2 {
            parts.push(held.to_vec());
        }
    }
    parts
}

fn take<'b>(bytes: &mut &'b [u8], count: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return number;
        }
    }
    panic!("a number that does not end")
}

/// The one message of a field; empty when there is none.
fn part(message: &[u8], number: u64) -> Vec<u8> {
    parts(message, number).pop().unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The span of this service below that one.
fn below(collected: &Collected, service: &str, parent: &str) -> Option<String> {
    let collected = collected.lock();
    let mut spans = collected.iter().flat_map(|message| spans(message));
    let found = spans.find(|span| span.service == service && span.parent == parent)?;
    assert_eq!(found.trace, TRACE);
    Some(found.own)
}

async fn scenario(collected: &Collected, stack: Arc<Stack>) {
    let parent = || ("traceparent", format!("00-{TRACE}-{AGENT}-01"));
    let world = World::new(Arc::clone(&stack)).await;
    let agent = world.agent().await;
    let form = [
        (
            "grant_type",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        ),
        ("zone_id", &*world.zone),
        ("application_id", &*world.app),
        ("client_secret", &*world.secret),
        ("resource", &*world.resource),
        ("scope", "desk:read"),
        ("agent_session_id", &*agent.session),
        ("delegation_edge_id", &*agent.edge),
    ];
    let mut body = form_urlencoded::Serializer::new(String::new());
    let body = body.extend_pairs(form).finish();
    let kind = "application/x-www-form-urlencoded".to_owned();
    let minted = stack.http.send(Request {
        method: "POST",
        url: format!("{}/oauth/2/token", stack.urls.sts),
        bearer: None,
        headers: vec![("content-type", kind), parent()],
        body: body.into(),
    });
    let mandate = minted.await.expect(200).text("access_token");
    let called = stack.http.send(Request {
        method: "GET",
        url: format!("{}/tickets", stack.urls.gateway),
        bearer: Some(&mandate),
        headers: vec![("x-caracal-resource", world.resource.clone()), parent()],
        body: Bytes::new(),
    });
    called.await.expect(200);

    // Below the agent: its mint, and its call; below the call: the exchange and the upstream.
    eventually("the mint is traced", async || {
        below(collected, "caracal-sts", AGENT).is_some()
    })
    .await;
    eventually("the call is traced", async || {
        below(collected, "caracal-gateway", AGENT).is_some()
    })
    .await;
    let call = below(collected, "caracal-gateway", AGENT).unwrap();
    eventually("the exchange is traced", async || {
        below(collected, "caracal-sts", &call).is_some()
    })
    .await;
    let seen = world.heads.lock().join("\n").to_lowercase();
    assert!(
        seen.contains(&format!("traceparent: 00-{TRACE}-{call}-01")),
        "{seen}"
    );
}

fn on(deployment: Deployment) {
    let (collected, url) = collector();
    let options = Options::default().env("OTEL_EXPORTER_OTLP_ENDPOINT", &url);
    let scenario = async |stack: Arc<Stack>| scenario(&collected, stack).await;
    xtest::on(deployment, options, scenario);
}

#[test]
fn a_call_is_one_trace_from_the_agent_to_the_upstream() {
    on(Deployment::Distributed);
}

#[test]
fn a_call_within_one_process_is_the_same_trace() {
    on(Deployment::Embedded);
}
