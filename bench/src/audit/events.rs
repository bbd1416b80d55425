//! Events as a deployment makes them: of every seven, four exchanges, two calls through the Gateway
//! and one refusal; ten to a Session, two to a request.
#![expect(
    clippy::indexing_slicing,
    reason = "places are taken modulo the length of what they are in"
)]

use caracal_ledger::Event;
use caracal_model::{EventId, Ids, Timestamp, ZoneId};
use serde_json::{Map, Value, json};

/// Events of one Session, one after another.
const PER_SESSION: usize = 10;
const RESOURCES: [&str; 4] = [
    "resource://desk",
    "resource://crm",
    "https://api.example.com/v1",
    "resource://orders",
];

/// Makes events.
pub struct Maker {
    ids: Ids,
    zones: Vec<Zone>,
    made: usize,
    began: Timestamp,
    middle: Option<Timestamp>,
    at: Timestamp,
}

struct Zone {
    id: ZoneId,
    application: String,
    policy: String,
    session: String,
    record: String,
    edge: String,
    request: String,
    made: usize,
}

impl Maker {
    pub fn new(ids: Ids, zones: usize) -> Self {
        let zones = (0..zones)
            .map(|_| Zone {
                id: ZoneId::trusted(ids.uuid()),
                application: ids.uuid(),
                policy: ids.uuid(),
                session: String::new(),
                record: String::new(),
                edge: String::new(),
                request: String::new(),
                made: 0,
            })
            .collect();
        let began = Timestamp::from_unix_seconds(1_790_000_000);
        Self {
            ids,
            zones,
            made: 0,
            began,
            middle: None,
            at: began,
        }
    }

    pub fn zone(&self, at: usize) -> &ZoneId {
        &self.zones[at].id
    }

    /// Request, Session and Authority record of the last event of this zone.
    pub fn last_of(&self, at: usize) -> (&str, &str, &str) {
        let zone = &self.zones[at];
        (&zone.request, &zone.session, &zone.record)
    }

    pub fn began(&self) -> Timestamp {
        self.began
    }

    /// About the middle of what was made, by time.
    pub fn middle(&self) -> Option<Timestamp> {
        self.middle
    }

    /// The text of the next one.
    pub fn event(&mut self) -> String {
        self.made += 1;
        self.at = self.at.plus(std::time::Duration::from_micros(137));
        if self.made.is_power_of_two() {
            self.middle = Some(self.at);
        }
        let count = self.zones.len();
        let zone = &mut self.zones[self.made % count];
        if zone.made.is_multiple_of(PER_SESSION) {
            for id in [&mut zone.session, &mut zone.record, &mut zone.edge] {
                *id = self.ids.uuid();
            }
        }
        if zone.made.is_multiple_of(2) {
            zone.request = self.ids.uuid();
        }
        zone.made += 1;
        let (event_type, decision, status) = match zone.made % 7 {
            0..4 => ("token_exchange", "allow", "complete"),
            4 => ("token_exchange", "deny", "scope_mismatch"),
            _ => ("gateway_resource_request", "allow", "executed"),
        };
        let metadata = if event_type == "token_exchange" {
            exchange(zone, &self.ids, decision)
        } else {
            call(zone, &self.ids)
        };
        let id = EventId::trusted(self.ids.uuid());
        let request = zone.request.clone();
        let event = Event::new(
            id,
            zone.id.clone(),
            event_type,
            request,
            decision,
            status,
            self.at,
        );
        let event = if event_type == "token_exchange" {
            let digest = caracal_crypto::digest::sha256_hex(zone.policy.as_bytes());
            event
                .policy(Some(zone.policy.as_str().into()), Some(digest.into()))
                .determined_by(["grants"])
        } else {
            event
        };
        event.metadata(metadata).to_wire()
    }
}

fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn exchange(zone: &Zone, ids: &Ids, decision: &str) -> Map<String, Value> {
    let resource = RESOURCES[zone.made % RESOURCES.len()];
    members(json!({
        "application_id": zone.application, "application_name": "orders desk",
        "application_registration_method": "managed", "requested_scopes": ["orders:read"],
        "session_id": zone.record, "agent_session_id": zone.session,
        "delegation_edge_id": zone.edge, "subject_kind": "application", "resource": resource,
        "agent_lifecycle": "task", "agent_labels": ["clerk"], "agent_depth": 1,
        "delegation_chain": [{"application_id": zone.application,
            "agent_session_id": zone.session, "delegation_edge_id": zone.edge}],
        "delegation_hop_count": 1, "delegation_graph_epoch": zone.made,
        "policy_decision": decision,
        "policy_input": {
            "schema_version": "2026-05-20",
            "principal": {"type": "Application", "id": zone.application, "zone_id": zone.id,
                "labels": ["clerk"], "registration_method": "managed", "lifecycle": "task"},
            "resource": {"type": "Resource", "identifier": resource, "scopes": ["orders:read"]},
            "session": {"id": zone.record},
            "delegation_edge": {"id": zone.edge, "scopes": ["orders:read"],
                "graph_epoch": zone.made},
            "action": {"id": "TokenExchange"},
            "context": {"requested_scopes": ["orders:read"], "actor_claims": {}},
        },
        "issued_record_id": ids.uuid(), "issued_jti": ids.uuid(), "issued_use": "gateway",
    }))
}

fn call(zone: &Zone, ids: &Ids) -> Map<String, Value> {
    let trace = ids.uuid().replace('-', "");
    members(json!({
        "application_id": zone.application, "resource": RESOURCES[zone.made % RESOURCES.len()],
        "subject_fingerprint": &trace[16..], "method": "GET", "gateway_status": 200,
        "latency_ms": zone.made % 400, "response_bytes": zone.made % 9_000, "trace_id": trace,
        "subject_kind": "application", "upstream_host": "api.example.com", "auth_mode": "api_key",
        "provider_id": zone.policy, "upstream_status": 200, "result_class": "success",
        "agent_session_id": zone.session, "session_id": zone.record,
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use caracal_crypto::os::{OsRng, SystemClock};

    use super::*;

    #[test]
    fn events_are_events_and_differ() {
        let ids = Ids::new(Arc::new(SystemClock::new()), Arc::new(OsRng));
        let mut maker = Maker::new(ids, 2);
        let texts: Vec<String> = (0..100).map(|_| maker.event()).collect();
        let distinct: std::collections::HashSet<_> = texts
            .iter()
            .map(|text| Event::parse(text).unwrap().id)
            .collect();
        assert_eq!(distinct.len(), 100);
        let (request, session, record) = maker.last_of(0);
        let last = texts
            .iter()
            .rfind(|text| text.contains(maker.zone(0).as_str()))
            .unwrap();
        assert!(
            [request, session, record]
                .iter()
                .all(|id| last.contains(id))
        );
    }
}
