//! The ledger, end to end: on both engines, and with a bus in front of it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

mod consumer;
mod dead_letters;
mod http;
mod ingest;
mod retention;
mod signing;
mod stranger;
mod verify;
mod verify_admin;

use std::sync::Arc;

use caracal_audit::Ingest;
use caracal_crypto::HmacKey;
use caracal_crypto::os::SystemClock;
use caracal_ledger::Event;
use caracal_model::{Clock, EventId, LogId, ZoneId};
use caracal_store::Store;
use serde_json::json;

const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn key() -> HmacKey {
    HmacKey::from_hex(KEY).unwrap()
}

fn ingest(store: &Store) -> Ingest {
    Ingest::new(store.clone(), Some(key()), Arc::new(SystemClock::new()))
}

/// The events of a zone.
fn log(id: &str) -> LogId {
    LogId::events(zone(id))
}

fn zone(id: &str) -> ZoneId {
    ZoneId::trusted(id)
}

/// The text of an event of zone `z1`.
fn event(id: &str) -> String {
    event_of("z1", id)
}

fn event_of(zone_id: &str, id: &str) -> String {
    let metadata = json!({
        "application_id": "app-1",
        "agent_session_id": "session-1",
        "session_id": "record-1",
        "agent_labels": ["desk", "night shift"],
    });
    let now = SystemClock::new().now();
    Event::new(
        EventId::trusted(id),
        zone(zone_id),
        "token_exchange",
        format!("request-of-{id}"),
        "allow",
        "complete",
        now,
    )
    .metadata(metadata.as_object().unwrap().clone())
    .to_wire()
}

fn events(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| event(&format!("e{n:04}"))).collect()
}
