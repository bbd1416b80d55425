//! From the text of an event to its row: what reads filter by is copied out of the metadata, the
//! text itself is kept as it came.

use caracal_crypto::digest::sha256_hex;
use caracal_ledger::chain::Link;
use caracal_ledger::{Event, LedgerError};
use caracal_model::Timestamp;
use caracal_store::audit_events::AuditEvent;
use serde_json::Value;

/// Longest request id that is searchable; a database index holds no longer ones.
const MAX_INDEXED: usize = 512;

/// An event on its way into the ledger.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub text: String,
    pub event: Event,
    pub sha256: String,
}

impl Incoming {
    pub fn parse(text: String) -> Result<Self, LedgerError> {
        let event = Event::parse(&text)?;
        let sha256 = sha256_hex(text.as_bytes());
        Ok(Self {
            text,
            event,
            sha256,
        })
    }

    pub fn id(&self) -> &str {
        self.event.id.as_str()
    }

    pub fn row(&self, link: Link, ingested_at: Timestamp) -> AuditEvent {
        row(&self.event, self.text.clone(), link, ingested_at)
    }
}

/// The row of an event: every column but the chain follows from the text.
pub(crate) fn row(event: &Event, text: String, link: Link, ingested_at: Timestamp) -> AuditEvent {
    let metadata = |name: &str| event.metadata_text(name).map(indexed);
    AuditEvent {
        zone: event.zone_id.clone(),
        chain_seq: link.seq,
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
        ingested_at,
        event: text,
        content_sha256: link.content_sha256,
        chain_hash: link.chain_hash,
        chain_hmac: link.chain_hmac,
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
