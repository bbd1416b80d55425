use super::*;
use proptest::prelude::*;
use serde_json::json;

fn event() -> Event {
    Event::new(
        EventId::trusted("evt-1"),
        ZoneId::trusted("zone-1"),
        "token_exchange",
        "req-1",
        "allow",
        "complete",
        Timestamp::from_unix_micros(1_779_364_800_123_456),
    )
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[test]
fn the_text_has_the_fields_in_their_order() {
    let full = event()
        .policy(Some("psv-1".into()), Some("abc".into()))
        .determined_by(["baseline"])
        .diagnostics(vec![json!({"error": "none"})])
        .metadata(object(
            json!({"resource": "resource://api", "application_id": "app-1"}),
        ));
    insta::assert_snapshot!(full.to_wire(), @r#"{"id":"evt-1","zone_id":"zone-1","event_type":"token_exchange","request_id":"req-1","decision":"allow","policy_set_version_id":"psv-1","manifest_sha":"abc","evaluation_status":"complete","determining_policies_json":[{"policy":"baseline"}],"diagnostics_json":[{"error":"none"}],"metadata_json":{"application_id":"app-1","resource":"resource://api"},"occurred_at":"2026-05-21T12:00:00.123456Z"}"#);
    insta::assert_snapshot!(event().to_wire(), @r#"{"id":"evt-1","zone_id":"zone-1","event_type":"token_exchange","request_id":"req-1","decision":"allow","evaluation_status":"complete","determining_policies_json":[],"diagnostics_json":[],"occurred_at":"2026-05-21T12:00:00.123456Z"}"#);
}

#[test]
fn events_of_other_producers_are_read() {
    let text = r#" {"id":"e","zone_id":"unknown","occurred_at":"2026-05-21T14:00:00.123456789+02:00",
        "determining_policies_json":null,"diagnostics_json":{},"metadata_json":[1],
        "policy_set_id":null,"from_the_future":{"a":1}}"#;
    let read = Event::parse(text).unwrap();
    assert_eq!(read.occurred_at.unix_micros(), 1_779_364_800_123_456);
    assert_eq!(read.determining_policies_json, json!([]));
    assert_eq!(read.diagnostics_json, json!({}));
    assert_eq!(read.metadata_json, json!([1]));
    assert_eq!((read.decision.as_ref(), read.request_id.as_str()), ("", ""));
}

#[test]
fn an_event_without_id_zone_or_time_is_refused() {
    let good = object(json!({"id": "e", "zone_id": "z", "occurred_at": "2026-05-21T12:00:00Z"}));
    for (field, bad) in [
        ("id", json!("")),
        ("id", Value::Null),
        ("id", json!("white space")),
        ("zone_id", json!("")),
        ("occurred_at", json!("0001-01-01T00:00:00Z")),
        ("occurred_at", json!("1970-01-01T00:00:00Z")),
        ("occurred_at", json!("yesterday")),
    ] {
        let mut changed = good.clone();
        changed.insert(field.to_owned(), bad);
        let text = Value::Object(changed).to_string();
        assert_eq!(
            Event::parse(&text),
            Err(LedgerError::Missing { field }),
            "{text}"
        );
        let mut lacking = good.clone();
        lacking.remove(field);
        let text = Value::Object(lacking).to_string();
        assert_eq!(
            Event::parse(&text),
            Err(LedgerError::Missing { field }),
            "{text}"
        );
    }
    assert!(Event::parse(&Value::Object(good).to_string()).is_ok());
}

#[test]
fn text_that_is_no_event_is_refused_without_repeating_it() {
    for bad in [
        "",
        "null",
        "[\"e\",\"z\"]",
        "{",
        r#"{"id":"hunter2","id":7}"#,
        r#"{"id":7}"#,
    ] {
        let error = Event::parse(bad).unwrap_err();
        assert!(
            matches!(error, LedgerError::Malformed { .. }),
            "{bad}: {error}"
        );
        assert!(!error.to_string().contains("hunter2"));
    }
}

#[test]
fn nul_is_left_out_on_both_ways() {
    let mut dirty = event().metadata(object(
        json!({"a\0b": ["x\0", {"c": "\0"}], "k": "\\u0000"}),
    ));
    dirty.request_id = "r\0q".to_owned();
    dirty.decision = "al\0low".into();
    dirty.manifest_sha = Some("a\0c".into());
    let text = dirty.to_wire();
    let clean = Event::parse(&text).unwrap();
    assert_eq!(
        clean.metadata_json,
        json!({"ab": ["x", {"c": ""}], "k": "\\u0000"})
    );
    assert_eq!(
        (clean.request_id.as_str(), clean.decision.as_ref()),
        ("rq", "allow")
    );
    assert_eq!(clean.manifest_sha.as_deref(), Some("ac"));

    let raw = dirty.text();
    assert!(raw.contains("r\\u0000q"));
    assert_eq!(Event::parse(&raw).unwrap(), clean);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,4}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn an_event_survives_its_text(
        metadata in prop::collection::vec(("[a-z_]{1,6}", any_json()), 0..6),
        names in prop::collection::vec("[a-z]{1,5}", 0..3),
        at in 1i64..4_000_000_000_000_000,
    ) {
        let mut made = event()
            .determined_by(&names)
            .metadata(metadata.iter().cloned().collect::<Map<_, _>>());
        made.occurred_at = Timestamp::from_unix_micros(at);
        let text = made.to_wire();
        prop_assert_eq!(Event::parse(&text).unwrap().to_wire(), text.clone());

        // The text does not depend on the order in which metadata was filled in.
        let mut last_wins: std::collections::BTreeMap<_, _> = metadata.into_iter().collect();
        let mut backwards = Map::new();
        while let Some((name, value)) = last_wins.pop_last() {
            backwards.insert(name, value);
        }
        prop_assert_eq!(made.metadata(backwards).to_wire(), text);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,64}|[{}\\[\\]\":,a-z0-9]{0,64}") {
        let _ = Event::parse(&text);
    }
}
