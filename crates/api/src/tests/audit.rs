//! Reads of the ledger.

use caracal_ledger::Event;
use caracal_model::{EventId, Timestamp, ZoneId};
use caracal_store::audit_events::{AuditEvent, AuditHead, HeadMove};
use serde_json::{Value, json};

use super::Stack;
use crate::on_stack;

/// Appends events of the zone, one microsecond after another.
async fn append(stack: &Stack, zone: &ZoneId, events: &[(&str, &str, Value)]) {
    let made = events
        .iter()
        .enumerate()
        .map(|(at, (request, decision, metadata))| event(zone, at, request, decision, metadata));
    append_events(stack, zone, made.collect()).await;
}

/// The event of a decision, the `at`th of its zone.
pub fn event(zone: &ZoneId, at: usize, request: &str, decision: &str, metadata: &Value) -> Event {
    let start = Timestamp::from_unix_seconds(1_779_364_800);
    Event::new(
        EventId::trusted(format!("evt-{at}")),
        zone.clone(),
        "token_exchange",
        request,
        decision.to_owned(),
        "complete",
        start.plus(std::time::Duration::from_micros(at as u64)),
    )
    .metadata(metadata.as_object().unwrap().clone())
}

/// Appends these events to the chain of a zone that has none.
pub async fn append_events(stack: &Stack, zone: &ZoneId, events: Vec<Event>) {
    append_after(stack, zone, 0, events).await;
}

/// Appends these events to the chain of a zone that has so many.
pub async fn append_after(stack: &Stack, zone: &ZoneId, before: u64, events: Vec<Event>) {
    let mut rows = Vec::new();
    for (at, event) in events.iter().enumerate() {
        let wire: Value = serde_json::from_str(&event.to_wire()).unwrap();
        let text = |path: &str| {
            wire.pointer(path)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let of = |name: &str| text(&format!("/metadata_json/{name}"));
        let occurred_at = Timestamp::parse_rfc3339(&text("/occurred_at").unwrap()).unwrap();
        rows.push(AuditEvent {
            zone: zone.clone(),
            chain_seq: before + at as u64 + 1,
            id: text("/id").unwrap(),
            event_type: "token_exchange".into(),
            request_id: text("/request_id").unwrap(),
            decision: text("/decision").unwrap(),
            application_id: of("application_id"),
            agent_session_id: of("agent_session_id"),
            authority_record_id: of("session_id"),
            labels: Vec::new(),
            occurred_at,
            ingested_at: occurred_at,
            event: event.to_wire(),
            content_sha256: "00".into(),
            chain_hash: "00".into(),
            chain_hmac: String::new(),
        });
    }
    let head = |seq| AuditHead {
        zone: zone.clone(),
        chain_seq: seq,
        chain_hash: "00".into(),
    };
    let moved = HeadMove {
        from: head(before),
        to: head(before + rows.len() as u64),
        at: Timestamp::from_unix_micros(0),
    };
    stack
        .store
        .append_audit_events(&[moved], &rows, &[])
        .await
        .unwrap();
}

fn ids(page: &Value) -> Vec<&str> {
    page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["id"].as_str().unwrap())
        .collect()
}

on_stack! {
    async fn pages_of_one_millisecond_lose_nothing(stack: Stack) {
        let zone = stack.zone("Audit").await;
        let events: Vec<_> = (0..5).map(|_| ("r", "allow", json!({"resource": "x"}))).collect();
        append(&stack, &zone, &events).await;
        let path = format!("/v1/zones/{zone}/audit?limit=2");
        let mut seen = Vec::new();
        let mut next = path.clone();
        loop {
            let page = stack.get(&next).await.is(200);
            seen.extend(ids(&page).into_iter().map(str::to_owned));
            match page["next_cursor"].as_str() {
                Some(cursor) => next = format!("{path}&cursor={cursor}"),
                None => break,
            }
        }
        assert_eq!(seen, ["evt-4", "evt-3", "evt-2", "evt-1", "evt-0"]);
    }

    async fn rows_are_filtered_and_redacted(stack: Stack) {
        let zone = stack.zone("Audit").await;
        append(&stack, &zone, &[
            ("r1", "allow", json!({"application_id": "a1", "session_id": "rec-1", "nested": {"Token": "t"}})),
            ("r2", "deny", json!({"application_id": "a2", "agent_session_id": "s-1", "reason": "no"})),
        ]).await;
        let z = format!("/v1/zones/{zone}/audit");
        for (query, expected) in [
            ("decision=deny", "evt-1"),
            ("request_id=r1", "evt-0"),
            ("application_id=a2", "evt-1"),
            ("session_id=s-1", "evt-1"),
            ("authority_record_id=rec-1", "evt-0"),
            ("event_type=token_exchange,other&decision=allow", "evt-0"),
            ("until=2026-05-21T12:00:00.000001Z", "evt-0"),
            ("since=2026-05-21T12:00:00.000001Z", "evt-1"),
        ] {
            assert_eq!(ids(&stack.get(&format!("{z}?{query}")).await.is(200)), [expected], "{query}");
        }
        let page = stack.get(&format!("{z}?request_id=r1")).await.is(200);
        let mut row = page["items"][0].clone();
        row["zone_id"] = json!("<zone>");
        insta::allow_duplicates! { insta::assert_snapshot!(serde_json::to_string_pretty(&row).unwrap(), @r#"
        {
          "decision": "allow",
          "determining_policies_json": [],
          "diagnostics_json": [],
          "evaluation_status": "complete",
          "event_type": "token_exchange",
          "id": "evt-0",
          "ingested_at": "2026-05-21T12:00:00.000Z",
          "manifest_sha": "",
          "metadata_json": {
            "application_id": "a1",
            "nested": {
              "Token": "[redacted]"
            },
            "session_id": "[redacted]"
          },
          "occurred_at": "2026-05-21T12:00:00.000Z",
          "policy_set_id": "",
          "policy_set_version_id": "",
          "request_id": "r1",
          "zone_id": "<zone>"
        }
        "#) };
        let flat = stack.get(&format!("{z}?fields=id,reason,application_id&decision=deny")).await.is(200);
        assert_eq!(flat["items"], json!([{"id": "evt-1", "reason": "no", "application_id": "a2"}]));
        let csv = stack.get(&format!("{z}?format=csv&fields=id,reason")).await;
        assert_eq!(csv.text, "id,reason\r\nevt-1,no\r\nevt-0,\r\n");
        assert_eq!(csv.headers["content-disposition"], format!("attachment; filename=\"audit-{zone}.csv\""));
        assert_eq!(ids(&stack.get("/v1/zones/other/audit").await.is(200)), [""; 0]);
    }

    async fn a_request_is_explained_with_an_input_that_can_be_simulated(stack: Stack) {
        let zone = stack.zone("Explain").await;
        let (set, version) = stack.activated_set(&zone).await;
        append(&stack, &zone, &[
            ("r1", "allow", json!({"resource": "resource://other"})),
            ("r1", "deny", json!({"application_id": "app-2", "resource": "resource://crm", "requested_scopes": ["agent:lifecycle"]})),
        ]).await;
        let z = format!("/v1/zones/{zone}");
        let events = stack.get(&format!("{z}/audit/by-request/r1")).await.is(200);
        assert_eq!(events.as_array().unwrap().len(), 2);
        assert_eq!(events[0]["id"], "evt-0");
        let told = stack.get(&format!("{z}/audit/by-request/r1/explain")).await.is(200);
        assert_eq!((&told["final_decision"], told["events"].as_array().unwrap().len()), (&json!("deny"), 2));
        let input = told["denied"][0]["policy_input"].clone();
        let body = json!({"version_id": version, "input": input});
        let again = stack.send("POST", &format!("{z}/policy-sets/{set}/simulate"), body).await.is(200);
        assert_eq!(again["explanation"]["evaluation"], "executed", "{again}");
        assert_eq!(again["would_activate"], true);
    }
}
