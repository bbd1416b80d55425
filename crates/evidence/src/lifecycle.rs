//! Evidence of what happened to Sessions, Delegations and policy, made of the news that committed
//! with each change (spec: audit-and-streams, better 12).
//!
//! The news is in the outbox and is sent at least once; the event takes its id and its time, so that
//! news which was sent twice is one event.

use caracal_ledger::Event;
use caracal_model::change::Fields;
use caracal_model::{EventId, Timestamp, Topic, ZoneId};
use serde_json::{Map, Value};

/// Whether news of this topic is evidence.
pub fn is_evidence(topic: &str) -> bool {
    kind(topic).is_some()
}

fn kind(topic: &str) -> Option<&'static str> {
    match Topic::from_name(topic)? {
        Topic::AgentsLifecycle => Some("session_lifecycle"),
        Topic::DelegationsInvalidate => Some("delegation_lifecycle"),
        Topic::PolicyInvalidate => Some("policy_activated"),
        _ => None,
    }
}

/// The event of an entry of the outbox; `None` for news that is no evidence. What no request caused
/// has the id of the entry for its request's.
pub fn lifecycle(
    topic: &str,
    outbox_id: &str,
    request_id: Option<&str>,
    zone: &ZoneId,
    fields: &Fields,
    at: Timestamp,
) -> Option<Event> {
    let kind = kind(topic)?;
    let text = |name: &str| fields.get(name).map(String::as_str);
    let decision = match (kind, text("event")) {
        ("policy_activated", _) if text("policy_set_version_id").is_some() => "activated",
        ("policy_activated", _) => "archived",
        (_, Some("spawn")) => "started",
        (_, Some("suspend")) => "suspended",
        (_, Some("resume")) => "resumed",
        (_, Some("terminate")) => "terminated",
        (_, Some("edge_create")) => "created",
        (_, Some("edge_revoke")) => "revoked",
        (_, Some("edge_expire")) => "expired",
        _ => "changed",
    };
    let mut metadata = Map::new();
    for (name, field) in [
        ("application_id", "application_id"),
        ("agent_session_id", "agent_session_id"),
        ("agent_parent_id", "parent_id"),
        ("delegation_edge_id", "edge_id"),
        ("source_session_id", "source_session_id"),
        ("target_session_id", "target_session_id"),
        ("policy_set_id", "policy_set_id"),
        ("policy_set_version_id", "policy_set_version_id"),
        ("reason", "reason"),
    ] {
        if let Some(text) = text(field) {
            metadata.insert(name.to_owned(), text.into());
        }
    }
    for (name, field) in [
        ("delegation_graph_epoch", "epoch"),
        ("affected_edges", "affected_edges"),
    ] {
        if let Some(number) = text(field).and_then(|text| text.parse::<u64>().ok()) {
            metadata.insert(name.to_owned(), number.into());
        }
    }
    let edges = text("edge_ids").and_then(|ids| serde_json::from_str::<Value>(ids).ok());
    if let Some(edges) = edges {
        metadata.insert("delegation_edge_ids".to_owned(), edges);
    }
    let id = EventId::trusted(outbox_id);
    let request = request_id.unwrap_or(outbox_id);
    let mut event = Event::new(id, zone.clone(), kind, request, decision, "complete", at);
    event.policy_set_id = text("policy_set_id").map(Into::into);
    let version = text("policy_set_version_id").map(Into::into);
    Some(event.policy(version, None).metadata(metadata))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(topic: Topic, fields: &[(&str, &str)]) -> Option<(String, String, Value)> {
        let fields = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let at = Timestamp::from_unix_micros(1_779_364_800_123_456);
        let zone = ZoneId::trusted("z1");
        let event = lifecycle(topic.name(), "o1", Some("r1"), &zone, &fields, at)?;
        assert_eq!((event.id.as_str(), event.occurred_at), ("o1", at));
        assert_eq!(event.request_id, "r1");
        let (kind, decision) = (event.event_type.to_string(), event.decision.to_string());
        Some((kind, decision, event.metadata_json.to_value()))
    }

    #[test]
    fn news_becomes_events() {
        let is = |found: Option<(String, String, Value)>, kind: &str, decision: &str, about| {
            assert_eq!(found, Some((kind.to_owned(), decision.to_owned(), about)));
        };
        let ended = [
            ("event", "terminate"),
            ("agent_session_id", "s1"),
            ("reason", "ttl"),
            ("dedupe_key", "terminate:s1"),
        ];
        is(
            told(Topic::AgentsLifecycle, &ended),
            "session_lifecycle",
            "terminated",
            json!({"agent_session_id": "s1", "reason": "ttl"}),
        );
        let expired = [
            ("event", "edge_expire"),
            ("edge_ids", r#"["e1","e2"]"#),
            ("affected_edges", "2"),
            ("epoch", "7"),
        ];
        is(
            told(Topic::DelegationsInvalidate, &expired),
            "delegation_lifecycle",
            "expired",
            json!({
                "delegation_edge_ids": ["e1", "e2"],
                "affected_edges": 2,
                "delegation_graph_epoch": 7,
            }),
        );
        let set = ("policy_set_id", "ps");
        is(
            told(
                Topic::PolicyInvalidate,
                &[set, ("policy_set_version_id", "psv")],
            ),
            "policy_activated",
            "activated",
            json!({"policy_set_id": "ps", "policy_set_version_id": "psv"}),
        );
        is(
            told(Topic::PolicyInvalidate, &[set]),
            "policy_activated",
            "archived",
            json!({"policy_set_id": "ps"}),
        );
    }

    #[test]
    fn other_news_is_no_evidence() {
        for topic in [
            Topic::ViewChanges,
            Topic::SessionsRevoke,
            Topic::AuditEvents,
        ] {
            assert_eq!(told(topic, &[("event", "spawn")]), None);
        }
        assert!(!is_evidence("somebody.elses"));
    }
}
