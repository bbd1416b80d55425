//! From the text of an event to its row: what reads filter by is copied out of the metadata, the
//! text itself is kept as it came.

use caracal_crypto::HmacKey;
use caracal_crypto::digest::{hex_encode, sha256};
use caracal_ledger::chain::{self, Link};
use caracal_ledger::{Head, LedgerError, Outline};
use caracal_model::{Timestamp, ZoneId};
use caracal_store::audit_events::{AuditEvent, Packed};

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
        let event = Outline::parse(&text)?;
        let content = sha256(text.as_bytes());
        let mut row = columns(event, text);
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

    /// The row at its place, whose text is the packed one.
    pub fn row(&self, link: Link, ingested_at: Timestamp) -> (AuditEvent, Packed) {
        let row = self.row.without_text();
        (linked(row, link, ingested_at), self.packed.clone())
    }
}

/// Whether the columns of a row are those that its text gives. Its links are another matter.
pub(crate) fn says_what_it_says(stored: &AuditEvent) -> bool {
    let Ok(event) = Outline::parse(&stored.event) else {
        return false;
    };
    let mut expected = columns(event, stored.event.clone());
    expected.chain_seq = stored.chain_seq;
    expected.ingested_at = stored.ingested_at;
    for (expected, stored) in [
        (&mut expected.content_sha256, &stored.content_sha256),
        (&mut expected.chain_hash, &stored.chain_hash),
        (&mut expected.chain_hmac, &stored.chain_hmac),
    ] {
        expected.clone_from(stored);
    }
    expected == *stored
}

fn linked(mut row: AuditEvent, link: Link, ingested_at: Timestamp) -> AuditEvent {
    row.chain_seq = link.seq;
    row.content_sha256 = link.content_sha256;
    row.chain_hash = link.chain_hash;
    row.chain_hmac = link.chain_hmac;
    row.ingested_at = ingested_at;
    row
}

fn columns(event: Outline, text: String) -> AuditEvent {
    AuditEvent {
        zone: event.zone_id,
        chain_seq: 0,
        id: event.id.to_string(),
        event_type: indexed(event.event_type),
        request_id: indexed(event.request_id),
        decision: indexed(event.decision),
        evaluation_status: event.evaluation_status,
        application_id: event.application_id.map(indexed),
        agent_session_id: event.agent_session_id.map(indexed),
        authority_record_id: event.authority_record_id.map(indexed),
        labels: event.labels.iter().filter_map(|text| label(text)).collect(),
        occurred_at: event.occurred_at,
        ingested_at: event.occurred_at,
        event: text,
        content_sha256: String::new(),
        chain_hash: String::new(),
        chain_hmac: String::new(),
    }
}

fn indexed(mut text: String) -> String {
    let mut end = text.len().min(MAX_INDEXED);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// Without the character that keeps labels apart in the column.
fn label(label: &str) -> Option<String> {
    let label: String = label.chars().filter(|&c| c != '\u{1f}').collect();
    (!label.is_empty()).then_some(label)
}
