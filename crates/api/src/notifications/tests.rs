//! Sinks through the service, and a webhook that listens on this machine.

use std::collections::VecDeque;
use std::future::IntoFuture as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use caracal_audit::Ingest;
use caracal_ledger::Event;
use caracal_model::{EventId, Secret, Timestamp, ZoneId};
use caracal_net::Tasks;
use caracal_store::testing::raw;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::dispatch::pass;
use super::send::signature;
use crate::on_stack;
use crate::tests::Stack;

/// A webhook that answers as it was told, 204 when it was not.
#[derive(Clone, Default)]
struct Hook {
    answers: Arc<Mutex<VecDeque<u16>>>,
    seen: Arc<Mutex<Vec<(HeaderMap, String)>>>,
}

async fn take(State(hook): State<Hook>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let body = String::from_utf8(body.to_vec()).unwrap();
    hook.seen.lock().push((headers, body));
    let answer = hook.answers.lock().pop_front().unwrap_or(204);
    StatusCode::from_u16(answer).unwrap()
}

impl Hook {
    /// Listens; answers with its URL too.
    async fn listen() -> (Self, String) {
        let hook = Self::default();
        let router = Router::new()
            .route("/hook", post(take))
            .with_state(hook.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let serving = axum::serve(listener, router).into_future();
        Tasks::new().spawn("hook", async move { serving.await.unwrap() });
        (hook, url)
    }

    fn will_answer(&self, answers: &[u16]) {
        self.answers.lock().extend(answers);
    }

    /// Ids of the events that it was told of, in their order, and forgets them.
    fn told(&self) -> Vec<String> {
        let seen = std::mem::take(&mut *self.seen.lock());
        let id = |body: &String| {
            let body: Value = serde_json::from_str(body).unwrap();
            body["id"].as_str().unwrap().to_owned()
        };
        seen.iter().map(|(_, body)| id(body)).collect()
    }
}

async fn happen(stack: &Stack, zone: &ZoneId, events: &[(&str, &str)]) {
    let ingest = Ingest::new(stack.store.clone(), None, stack.api.clock.clone());
    let texts = events.iter().map(|(id, event_type)| {
        Event::new(
            EventId::trusted(*id),
            zone.clone(),
            (*event_type).to_owned(),
            "r-1",
            "pending",
            "complete",
            Timestamp::from_unix_micros(1_779_364_800_123_456),
        )
        .metadata(
            json!({"session_id": "anchor"})
                .as_object()
                .cloned()
                .unwrap(),
        )
        .to_wire()
    });
    assert_eq!(
        ingest.commit(texts.collect()).await.unwrap().inserted,
        events.len()
    );
}

async fn sink(stack: &Stack, zone: &ZoneId, more: Value) -> Value {
    let mut body = json!({"name": "pager"});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().cloned().unwrap());
    stack
        .send(
            "POST",
            &format!("/v1/zones/{zone}/notification-sinks"),
            body,
        )
        .await
        .is(201)
}

/// As if all waiting were over.
async fn later(stack: &Stack) {
    let mut tx = stack.store.begin("time passes").await.unwrap();
    tx.execute(
        &raw("UPDATE notification_deliveries SET available_at = 0"),
        &[],
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    pass(&stack.api).await.unwrap();
}

const ISSUED: &str = "step_up_issued";

on_stack! {
    async fn a_sink_is_told_in_order_of_what_it_asked_for_from_now_on(stack: Stack) {
        let zone = stack.zone("Told").await;
        happen(&stack, &zone, &[("before", ISSUED)]).await;
        let (hook, url) = Hook::listen().await;
        let made = sink(&stack, &zone, json!({"url": url, "event_types": [ISSUED, "step_up_decided"]})).await;
        let secret = made["secret"].as_str().unwrap().to_owned();
        assert!(secret.starts_with("nsk_") && secret.len() == 52, "{secret}");
        happen(&stack, &zone, &[("e1", ISSUED), ("x", "token_exchange"), ("y", "step_up_consumed"), ("e2", "step_up_decided")]).await;
        pass(&stack.api).await.unwrap();
        let (headers, body) = hook.seen.lock()[0].clone();
        assert_eq!(body, format!(r#"{{"id":"e1","type":"step_up_issued","zone_id":"{zone}","decision":"pending","occurred_at":"2026-05-21T12:00:00.123Z","data":{{"session_id":"anchor"}}}}"#));
        let header = |name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!((header("x-caracal-event"), header("x-caracal-sink"), header("content-type")), (ISSUED.into(), made["id"].as_str().unwrap().into(), "application/json".into()));
        let seconds = header("x-caracal-timestamp").parse().unwrap();
        assert_eq!(header("x-caracal-signature"), signature(&Secret::new(secret.into_bytes()), seconds, &body));
        assert_eq!(hook.told(), ["e1", "e2"]);
        pass(&stack.api).await.unwrap();
        assert_eq!(hook.told(), [""; 0], "each once");
        let z = format!("/v1/zones/{zone}/notification-sinks/{}", made["id"].as_str().unwrap());
        let row = stack.get(&z).await.is(200);
        assert!(row["last_success_at"].is_string() && row.get("secret").is_none(), "{row}");
        let done = stack.get(&format!("{z}/deliveries?status=delivered")).await.is(200);
        assert_eq!((&done["items"][0]["response_status"], &done["items"][0]["attempts"], done["items"].as_array().unwrap().len()), (&json!(204), &json!(1), 2));
    }

    async fn what_fails_is_tried_eight_times_and_holds_up_what_follows(stack: Stack) {
        let zone = stack.zone("Fails").await;
        let (hook, url) = Hook::listen().await;
        let made = sink(&stack, &zone, json!({"url": url})).await;
        let z = format!("/v1/zones/{zone}/notification-sinks/{}", made["id"].as_str().unwrap());
        hook.will_answer(&[500, 302, 404, 500, 500, 500, 500, 500]);
        happen(&stack, &zone, &[("e1", ISSUED), ("e2", ISSUED)]).await;
        pass(&stack.api).await.unwrap();
        pass(&stack.api).await.unwrap();
        assert_eq!(hook.told(), ["e1"], "not before its time, and nothing past it");
        for _ in 0..6 {
            later(&stack).await;
        }
        assert_eq!(hook.told(), ["e1"; 6]);
        let row = stack.get(&z).await.is(200);
        assert_eq!((&row["consecutive_failures"], &row["last_error"]), (&json!(7), &json!("answered 500")));
        later(&stack).await;
        assert_eq!(hook.told(), ["e1", "e2"], "given up, and on with the next");
        let row = stack.get(&z).await.is(200);
        assert_eq!((&row["consecutive_failures"], &row["last_error"]), (&json!(0), &Value::Null));
        let lost = stack.get(&format!("{z}/deliveries?status=abandoned")).await.is(200);
        assert_eq!((&lost["items"][0]["event_id"], &lost["items"][0]["attempts"]), (&json!("e1"), &json!(8)));
        let again = format!("{z}/deliveries/{}/redeliver", lost["items"][0]["id"].as_str().unwrap());
        stack.send("POST", &again, json!({})).await.is(202);
        pass(&stack.api).await.unwrap();
        assert_eq!(hook.told(), ["e1"]);
        stack.send("POST", &format!("{z}/replay"), json!({"event_id": "e2"})).await.is(202);
        stack.send("POST", &format!("{z}/deliveries/none/redeliver"), json!({})).await.is(404);
        stack.send("POST", &format!("{z}/replay"), json!({"event_id": "e9"})).await.is(404);
        pass(&stack.api).await.unwrap();
        assert_eq!(hook.told(), ["e2"]);
    }

    async fn one_broken_sink_holds_up_no_other_and_none_that_needs_no_order(stack: Stack) {
        let zone = stack.zone("Apart").await;
        let ((broken, broken_url), (fine, fine_url)) = (Hook::listen().await, Hook::listen().await);
        sink(&stack, &zone, json!({"url": broken_url, "ordered": false})).await;
        let paused = sink(&stack, &zone, json!({"url": fine_url})).await;
        let paused = format!("/v1/zones/{zone}/notification-sinks/{}", paused["id"].as_str().unwrap());
        stack.send("PATCH", &paused, json!({"active": false})).await.is(200);
        broken.will_answer(&[500]);
        happen(&stack, &zone, &[("e1", ISSUED), ("e2", ISSUED), ("e3", ISSUED)]).await;
        pass(&stack.api).await.unwrap();
        let mut told = broken.told();
        told.sort();
        assert_eq!(told, ["e1", "e2", "e3"]);
        assert_eq!(fine.told(), [""; 0]);
        stack.send("PATCH", &paused, json!({"active": true})).await.is(200);
        pass(&stack.api).await.unwrap();
        assert_eq!(fine.told(), ["e1", "e2", "e3"], "a pause forgets nothing");
        stack.delete(&paused).await.is(204);
        stack.get(&paused).await.is(404);
        happen(&stack, &zone, &[("e4", ISSUED)]).await;
        pass(&stack.api).await.unwrap();
        assert_eq!(fine.told(), [""; 0]);
    }

    async fn a_ledger_that_does_not_read_holds_up_no_other_zone(stack: Stack) {
        let (damaged, sound) = (stack.zone("Damaged").await, stack.zone("Sound").await);
        let ((first, first_url), (second, second_url)) = (Hook::listen().await, Hook::listen().await);
        sink(&stack, &damaged, json!({"url": first_url})).await;
        sink(&stack, &sound, json!({"url": second_url})).await;
        happen(&stack, &damaged, &[("e1", ISSUED)]).await;
        let mut tx = stack.store.begin("damage a ledger").await.unwrap();
        let damage = raw("UPDATE audit_events SET event = $1");
        tx.execute(&damage, &[caracal_store::Param::from(vec![255_u8; 3])]).await.unwrap();
        tx.commit().await.unwrap();
        happen(&stack, &sound, &[("e2", ISSUED)]).await;
        pass(&stack.api).await.unwrap();
        assert_eq!((first.told(), second.told()), (vec![], vec!["e2".to_owned()]));
    }

    async fn a_delivery_that_a_dead_process_had_taken_is_sent(stack: Stack) {
        let zone = stack.zone("Dies").await;
        let (hook, url) = Hook::listen().await;
        sink(&stack, &zone, json!({"url": url})).await;
        hook.will_answer(&[500]);
        happen(&stack, &zone, &[("e1", ISSUED)]).await;
        pass(&stack.api).await.unwrap();
        hook.told();
        let (now, far) = (Timestamp::from_unix_seconds(4_000_000_000), Timestamp::from_unix_seconds(5_000_000_000));
        let due = stack.store.notifications().due(now, 10).await.unwrap();
        assert!(stack.store.notifications().take(&due[0], now, far).await.unwrap());
        assert!(!stack.store.notifications().take(&due[0], now, far).await.unwrap(), "one takes it");
        later(&stack).await;
        assert_eq!(hook.told(), ["e1"]);
    }

    async fn no_event_is_skipped_while_others_arrive(stack: Stack) {
        let zone = stack.zone("Busy").await;
        let (hook, url) = Hook::listen().await;
        sink(&stack, &zone, json!({"url": url, "event_types": [ISSUED]})).await;
        let arrive = async {
            for n in 0..120 {
                let (one, other) = (format!("e{n:03}"), format!("o{n:03}"));
                happen(&stack, &zone, &[(&one, ISSUED), (&other, "token_exchange")]).await;
            }
        };
        let tell = async {
            while hook.seen.lock().len() < 120 {
                pass(&stack.api).await.unwrap();
            }
        };
        let both = async { futures_util::future::join(arrive, tell).await };
        tokio::time::timeout(Duration::from_secs(120), both).await.unwrap();
        let expected: Vec<_> = (0..120).map(|n| format!("e{n:03}")).collect();
        assert_eq!(hook.told(), expected);
    }

    async fn sinks_are_made_changed_tried_out_and_bounded(stack: Stack) {
        let zone = stack.zone("Sinks").await;
        let z = format!("/v1/zones/{zone}/notification-sinks");
        let (hook, url) = Hook::listen().await;
        let mut table = String::new();
        for body in [
            json!({}),
            json!({"name": "n", "url": "http://hooks.example"}),
            json!({"name": "n", "url": "https://10.0.0.1/"}),
            json!({"name": "n", "url": url, "event_types": []}),
            json!({"name": "n", "url": url, "event_types": ["token_exchange"]}),
            json!({"name": "n", "url": url, "event_types": [ISSUED, ISSUED]}),
            json!({"name": "n", "url": url, "active": "yes"}),
        ] {
            table += &format!("{}\n", stack.send("POST", &z, body).await);
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        400 invalid_sink: name is required
        400 invalid_sink_url: url must be https, or http to localhost, 127.0.0.1 or [::1]
        400 invalid_sink_url: url names an address that may not be asked
        400 invalid_sink: event_types must have 1 to 3 items
        400 invalid_sink: event_types holds token_exchange; known are step_up_issued, step_up_decided, step_up_consumed
        400 invalid_sink: event_types holds step_up_issued twice
        400 invalid_sink: active must be true or false
        ") };
        let made = sink(&stack, &zone, json!({"url": url})).await;
        assert_eq!(made["event_types"], json!(["step_up_issued", "step_up_decided", "step_up_consumed"]));
        let at = format!("{z}/{}", made["id"].as_str().unwrap());
        hook.will_answer(&[418]);
        let tried = stack.send("POST", &format!("{at}/test"), json!({})).await.is(200);
        assert_eq!(tried, json!({"delivered": false, "response_status": 418, "error": "answered 418"}));
        let rotated = stack.send("POST", &format!("{at}/rotate-secret"), json!({})).await.is(200);
        assert_ne!(rotated["secret"], made["secret"]);
        hook.told();
        stack.send("POST", &format!("{at}/test"), json!({})).await.is(200);
        let (headers, body) = hook.seen.lock()[0].clone();
        let secret = Secret::new(rotated["secret"].as_str().unwrap().as_bytes().to_vec());
        let seconds = headers["x-caracal-timestamp"].to_str().unwrap().parse().unwrap();
        assert_eq!(headers["x-caracal-signature"], signature(&secret, seconds, &body));
        for _ in 1..20 {
            sink(&stack, &zone, json!({"url": url})).await;
        }
        let full = stack.send("POST", &z, json!({"name": "n", "url": url})).await;
        assert_eq!((full.status.as_u16(), full.text("error")), (409, "sink_limit_reached"));
        assert_eq!(stack.get(&z).await.is(200)["items"].as_array().unwrap().len(), 20);
        for (method, path) in [("GET", "none"), ("PATCH", "none"), ("DELETE", "none"), ("POST", "none/rotate-secret"), ("POST", "none/test"), ("GET", "none/deliveries")] {
            let reply = stack.send(method, &format!("{z}/{path}"), json!({})).await;
            assert_eq!(reply.text("error"), "sink_not_found", "{method} {path}");
        }
        let other = stack.zone("Other").await;
        let elsewhere = format!("/v1/zones/{other}/notification-sinks/{}", made["id"].as_str().unwrap());
        stack.get(&elsewhere).await.is(404);
    }
}
