//! From the text of an event to its row: what reads filter by is copied out of the metadata, the
//! text itself is kept as it came.

use caracal_crypto::HmacKey;
use caracal_crypto::digest::{hex_encode, sha256};
use caracal_ledger::chain::{self, Link};
use caracal_ledger::{Event, Head, LedgerError};
use caracal_model::{Timestamp, ZoneId};
use caracal_store::audit_events::{AuditEvent, Packed};
use serde_json::Value;

/// Longest request id that is searchable; a database index holds no longer ones.
const MAX_INDEXED: usize = 512;

/// An event on its way into the ledger: everything about it that does not depend on its place.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    /// Its row, without its place in the chain.
    row: AuditEvent,
    /// What is kept of its text.
    packed: Packed,
    content: [u8; 32],
}

impl Incoming {
    pub fn parse(text: String) -> Result<Self, LedgerError> {
        let event = Event::parse(&text)?;
        let content = sha256(text.as_bytes());
        let mut row = columns(&event, text);
        row.content_sha256 = hex_encode(&content);
        Ok(Self {
            packed: row.pack(),
            row,
            content,
        })
    }

    pub fn id(&self) -> &str {
        &self.row.id
    }

    pub fn zone(&self) -> &ZoneId {
        &self.row.zone
    }

    pub fn text(&self) -> &str {
        &self.row.event
    }

    pub fn sha256(&self) -> &str {
        &self.row.content_sha256
    }

    pub fn link(&self, before: Option<&Head>, key: Option<&HmacKey>) -> Link {
        chain::append_digest(before, &self.content, key)
    }

    pub fn row(&self, link: Link, ingested_at: Timestamp) -> (AuditEvent, Packed) {
        (
            linked(self.row.clone(), link, ingested_at),
            self.packed.clone(),
        )
    }
}

/// The row of an event: every column but the chain follows from the text.
pub(crate) fn row(event: &Event, text: String, link: Link, ingested_at: Timestamp) -> AuditEvent {
    linked(columns(event, text), link, ingested_at)
}

fn linked(mut row: AuditEvent, link: Link, ingested_at: Timestamp) -> AuditEvent {
    row.chain_seq = link.seq;
    row.content_sha256 = link.content_sha256;
    row.chain_hash = link.chain_hash;
    row.chain_hmac = link.chain_hmac;
    row.ingested_at = ingested_at;
    row
}

fn columns(event: &Event, text: String) -> AuditEvent {
    let metadata = |name: &str| event.metadata_text(name).map(indexed);
    AuditEvent {
        zone: event.zone_id.clone(),
        chain_seq: 0,
        id: event.id.to_string(),
        event_type: indexed(&event.event_type),
        request_id: indexed(&event.request_id),
        decision: indexed(&event.decision),
        evaluation_status: event.evaluation_status.to_string(),
        application_id: metadata("application_id"),
        agent_session_id: metadata("agent_session_id"),
        authority_record_id: metadata("session_id"),
        labels: labels(event),
        occurred_at: event.occurred_at,
        ingested_at: event.occurred_at,
        event: text,
        content_sha256: String::new(),
        chain_hash: String::new(),
        chain_hmac: String::new(),
    }
}

fn indexed(text: &str) -> String {
    let mut end = text.len().min(MAX_INDEXED);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

fn labels(event: &Event) -> Vec<String> {
    let labels = event
        .metadata_json
        .get("agent_labels")
        .and_then(Value::as_array);
    labels
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|label| label.chars().filter(|&c| c != '\u{1f}').collect::<String>())
        .filter(|label| !label.is_empty())
        .collect()
}
