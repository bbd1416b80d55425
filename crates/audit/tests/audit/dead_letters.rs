//! What could not be appended: kept, shown, tried again, purged; on the bus and in the store alike.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use caracal_audit::{Config, DEAD_LETTERS, Deps, Ingest, Retry, router, verify_zone};
use caracal_bus::{Bus, Position};
use caracal_crypto::os::SystemClock;
use caracal_evidence::{Pending, Sink};
use caracal_model::change::Fields;
use caracal_model::{Clock, EventId, TestClock};
use caracal_net::metrics::Registry;
use caracal_store::{Store, on_each_engine};
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{KEY, event, key, zone};

const TOPIC: &str = "caracal.audit.events";

struct Desk {
    router: Router,
    ingest: Arc<Ingest>,
    bus: Option<Bus>,
    clock: Arc<TestClock>,
}

impl Desk {
    fn new(store: &Store, on_bus: bool) -> Self {
        let clock = Arc::new(TestClock::default());
        let bus = on_bus.then(|| Bus::memory(clock.clone()));
        let ingest = Ingest::new(store.clone(), Some(key()), clock.clone());
        let ingest = Arc::new(match &bus {
            Some(bus) => ingest.with_bus(bus.clone()),
            None => ingest,
        });
        let settings: std::collections::BTreeMap<String, String> = [
            ("AUDIT_HMAC_KEY", KEY),
            ("AUDIT_ADMIN_TOKEN", "admin"),
            ("AUDIT_READY_DLQ_MAX", "3"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let deps = Deps {
            ingest: ingest.clone(),
            stream: None,
            registry: Registry::new(&caracal_audit::CATALOGUE, Arc::new(SystemClock::new())),
        };
        Self {
            router: router(Config::read(&settings).unwrap(), deps),
            ingest,
            bus,
            clock,
        }
    }

    async fn keep(&self, reason: &str, text: &str) {
        let letter = self.letter(reason, text);
        match &self.bus {
            Some(bus) => drop(bus.append(DEAD_LETTERS, &[letter]).await.unwrap()),
            None => {
                let store = self.ingest.store();
                store.keep_audit_dead_letters(&[letter]).await.unwrap();
            }
        }
        self.clock.advance(Duration::from_secs(10));
    }

    fn letter(&self, reason: &str, text: &str) -> Fields {
        let now = self.clock.now().unix_millis().to_string();
        [
            ("reason", reason),
            ("src_id", "7-0"),
            ("received_at", &now),
            ("src_data", text),
            ("src_sig", &key().sign_hex(text.as_bytes())),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    async fn ask(&self, method: &str, path: &str) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/audit/dlq{path}"))
            .header("authorization", "Bearer admin")
            .body(Body::empty())
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        (
            status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        )
    }

    async fn reasons(&self, path: &str) -> Vec<String> {
        let (status, page) = self.ask("GET", path).await;
        assert_eq!(status, 200, "{page}");
        let entries = page["entries"].as_array().unwrap();
        let reason = |entry: &Value| entry["reason"].as_str().unwrap().to_owned();
        entries.iter().map(reason).collect()
    }

    async fn four(&self) {
        self.keep("hmac_verify_failed", "{}").await;
        self.keep("pg_permanent_error:no", &event("e1")).await;
        self.keep("json_parse_error:x", "not json").await;
        self.keep("transient_exceeded_max_deliveries:late", &event("e2"))
            .await;
    }
}

async fn shows_pages_and_single_letters(desk: Desk) {
    let none = desk.ask("GET", "").await;
    assert_eq!(none, (200, json!({"entries": [], "next_cursor": ""})));
    desk.four().await;
    let (_, page) = desk.ask("GET", "?limit=2").await;
    let entry = &page["entries"][1];
    let id = entry["id"].as_str().unwrap();
    assert_eq!(page["next_cursor"], id);
    assert!(id.parse::<Position>().is_ok());
    let expected = [
        ("source_id", json!("7-0")),
        ("reason", json!("pg_permanent_error:no")),
        ("age_seconds", json!(30)),
        ("replayable", json!(true)),
        ("event_id", json!("e1")),
        ("zone_id", json!("z1")),
        ("event_type", json!("token_exchange")),
        ("request_id", json!("request-of-e1")),
        ("decision", json!("allow")),
    ];
    for (name, value) in expected {
        assert_eq!(entry[name], value, "{name}");
    }
    assert!(entry["received_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(entry["source_sig"].as_str().unwrap().len(), 64);
    // The start is inclusive.
    let rest = desk.reasons(&format!("?start={id}")).await;
    assert_eq!(rest.len(), 3);

    let (status, one) = desk.ask("GET", &format!("/{id}")).await;
    assert_eq!(status, 200);
    assert_eq!(one["source_event"]["id"], "e1");
    assert_eq!(one["fields"]["src_id"], "7-0");
    let (_, broken) = desk.ask("GET", "?reason=json_parse_error").await;
    assert_eq!(broken["entries"][0]["event_id"], "");
    assert_eq!(broken["entries"].as_array().unwrap().len(), 1);
    for (path, status) in [
        ("?limit=0", 400),
        ("?limit=1001", 400),
        ("?limit=x", 400),
        ("?start=x", 400),
        ("?id=1-1,x", 400),
        ("?older_than_seconds=-1", 400),
        ("/1-1", 404),
        ("/x", 404),
    ] {
        assert_eq!(desk.ask("GET", path).await.0, status, "{path}");
    }
}

async fn purges_what_is_named_only(desk: Desk) {
    desk.four().await;
    assert_eq!(desk.ask("DELETE", "").await.0, 400);
    assert_eq!(desk.ask("DELETE", "?limit=3").await.0, 400);
    let (status, purged) = desk.ask("DELETE", "?reason=hmac_verify_failed").await;
    assert_eq!((status, &purged["purged"]), (200, &json!(1)));
    let (_, purged) = desk.ask("DELETE", "?older_than_seconds=25").await;
    assert_eq!(purged["purged"], 1, "one is 40 s old and gone, one 30 s");
    let left = desk.reasons("").await;
    assert_eq!(left[0], "json_parse_error:x");
    let (_, page) = desk.ask("GET", "").await;
    let ids: Vec<&str> = [0, 1]
        .map(|at| page["entries"][at]["id"].as_str().unwrap())
        .into();
    assert_eq!(desk.ask("DELETE", &format!("/{}", ids[0])).await.0, 204);
    assert_eq!(desk.ask("DELETE", &format!("/{}", ids[0])).await.0, 404);
    let both = format!("?id={},{}", ids[0], ids[1]);
    assert_eq!(desk.ask("DELETE", &both).await.1["purged"], 1);
    assert!(desk.reasons("").await.is_empty());
}

async fn retries_what_may_work_now(desk: Desk) {
    desk.four().await;
    let bus = Bus::memory(desk.clock.clone());
    let mut retry = Retry::new(desk.ingest.clone(), bus, "here");
    assert_eq!(retry.turn().await.unwrap(), 2);
    let left = desk.reasons("").await;
    assert_eq!(left, ["hmac_verify_failed", "json_parse_error:x"]);
    let head = verify_zone(desk.ingest.store(), &zone("z1"), Some(&key())).await;
    assert_eq!(head.unwrap().seq(), 2);
    // What fails again waits, longer and longer, and is given up in the end.
    desk.keep("pg_permanent_error:again", "no event").await;
    let failures = desk.ingest.metrics().commit_failures.clone();
    let parsed = desk.ingest.metrics().parse_errors.clone();
    let tried = || failures.get() + parsed.get();
    let before = tried();
    for _ in 0..3 {
        retry.turn().await.unwrap();
    }
    assert_eq!(tried() - before, 1, "only when it is due");
    for _ in 0..40 {
        desk.clock.advance(Duration::from_secs(86_400));
        retry.turn().await.unwrap();
    }
    assert_eq!(tried() - before, 8);
    assert_eq!(desk.reasons("").await.len(), 3, "and kept");
}

on_each_engine! {
    async fn letters_on_the_bus_are_shown(store: Store) {
        shows_pages_and_single_letters(Desk::new(&store, true)).await;
    }

    async fn letters_in_the_store_are_shown(store: Store) {
        shows_pages_and_single_letters(Desk::new(&store, false)).await;
    }

    async fn letters_on_the_bus_are_purged(store: Store) {
        purges_what_is_named_only(Desk::new(&store, true)).await;
    }

    async fn letters_in_the_store_are_purged(store: Store) {
        purges_what_is_named_only(Desk::new(&store, false)).await;
    }

    async fn letters_on_the_bus_are_tried_again(store: Store) {
        retries_what_may_work_now(Desk::new(&store, true)).await;
    }

    async fn letters_in_the_store_are_tried_again(store: Store) {
        retries_what_may_work_now(Desk::new(&store, false)).await;
    }

    async fn what_nobody_can_replay_does_not_stand_before_what_may_work_now(store: Store) {
        let desk = Desk::new(&store, false);
        let poison: Vec<_> = (0..600).map(|_| desk.letter("hmac_verify_failed", "{}")).collect();
        store.keep_audit_dead_letters(&poison).await.unwrap();
        desk.keep("pg_permanent_error:no", &event("e1")).await;
        let bus = Bus::memory(desk.clock.clone());
        let mut retry = Retry::new(desk.ingest.clone(), bus, "here");
        assert_eq!(retry.turn().await.unwrap(), 1);
        let head = verify_zone(&store, &zone("z1"), Some(&key())).await.unwrap();
        assert_eq!(head.seq(), 1);
    }

    async fn a_replay_sends_what_is_replayable_to_the_topic_again(store: Store) {
        let desk = Desk::new(&store, true);
        desk.four().await;
        let (status, answer) = desk.ask("POST", "/replay?limit=2").await;
        assert_eq!(status, 200);
        let counts = ["scanned", "replayed", "skipped"].map(|name| answer[name].as_u64().unwrap());
        assert_eq!(counts, [2, 1, 1]);
        let bus = desk.bus.as_ref().unwrap();
        let sent = bus.range(TOPIC, Position::START, 10).await.unwrap();
        assert_eq!(sent.len(), 1);
        let names: Vec<_> = sent[0].fields.keys().map(String::as_str).collect();
        assert_eq!(names, ["data", "sig"]);
        assert_eq!(desk.reasons("").await.len(), 3);
        // What is named goes whatever its reason: it is verified again on its way.
        let (_, answer) = desk.ask("POST", "/replay?reason=hmac_verify_failed").await;
        assert_eq!(answer["replayed"], 1);
        assert_eq!(bus.len(TOPIC).await.unwrap(), 2);
        let (_, page) = desk.ask("GET", "?limit=1").await;
        let id = page["entries"][0]["id"].as_str().unwrap();
        let (_, answer) = desk.ask("POST", &format!("/replay?id={id}")).await;
        assert_eq!(answer["replayed"], 1);
        assert_eq!(desk.reasons("").await, ["transient_exceeded_max_deliveries:late"]);
    }

    async fn a_replay_without_a_topic_goes_into_the_ledger(store: Store) {
        let desk = Desk::new(&store, false);
        desk.four().await;
        let (_, answer) = desk.ask("POST", "/replay").await;
        let counts = ["scanned", "replayed", "skipped"].map(|name| answer[name].as_u64().unwrap());
        assert_eq!(counts, [4, 2, 2]);
        let head = verify_zone(&store, &zone("z1"), Some(&key())).await.unwrap();
        assert_eq!(head.seq(), 2);
        assert_eq!(desk.reasons("").await.len(), 2);
    }

    async fn an_embedded_producers_poison_is_a_letter_and_counts_for_readiness(store: Store) {
        let desk = Desk::new(&store, false);
        let pending = |id: &str, wire: String| Pending { id: EventId::trusted(id), wire };
        let first = event("e1");
        let forged = first.replace("\"allow\"", "\"deny\"");
        let batch = [pending("e1", first), pending("x", "none".into()), pending("e1", forged)];
        desk.ingest.deliver(&batch).await.unwrap();
        let reasons = desk.reasons("").await;
        assert_eq!(reasons.len(), 2);
        assert!(reasons[0].starts_with("json_parse_error:"), "{reasons:?}");
        assert_eq!(reasons[1], "tamper_on_replay");
        assert_eq!(store.zone(&zone("z1")).audit().alerts().await.unwrap(), 1);
        let ready = async || {
            let request = Request::get("/ready").body(Body::empty()).unwrap();
            desk.router.clone().oneshot(request).await.unwrap().status().as_u16()
        };
        assert_eq!(ready().await, 200);
        desk.keep("json_parse_error:x", "").await;
        assert_eq!(ready().await, 200, "three are not more than three");
        desk.keep("json_parse_error:x", "").await;
        assert_eq!(ready().await, 503);
    }

    async fn letters_need_the_token(store: Store) {
        let desk = Desk::new(&store, false);
        for (method, path) in [("GET", ""), ("GET", "/1-1"), ("POST", "/replay"), ("DELETE", "")] {
            let request = Request::builder()
                .method(method)
                .uri(format!("/api/audit/dlq{path}"))
                .body(Body::empty())
                .unwrap();
            let response = desk.router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status().as_u16(), 401, "{method} {path}");
        }
    }
}
