//! From the text of an event to its row: what reads filter by is copied out of the metadata, the
//! text itself is kept as it came.

use caracal_crypto::HmacKey;
use caracal_crypto::digest::{hex_encode, sha256};
use caracal_ledger::chain::{self, Link};
use caracal_ledger::merkle::{self, Hash};
use caracal_ledger::{Head, LedgerError, Outline};
use caracal_model::{Timestamp, ZoneId};
use caracal_store::audit_events::{AuditEvent, Packed, Place, Placed};

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
    leaf: Hash,
}

impl Incoming {
    pub fn parse(text: String) -> Result<Self, LedgerError> {
        let event = Outline::parse(&text)?;
        let content = sha256(text.as_bytes());
        let leaf = merkle::leaf_hash(text.as_bytes());
        let mut row = columns(event, text);
        row.content_sha256 = hex_encode(&content);
        Ok(Self {
            packed: row.pack(),
            row,
            content,
            leaf,
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

    /// It in the tree of its zone.
    pub fn leaf(&self) -> Hash {
        self.leaf
    }

    pub fn link(&self, before: Option<&Head>, key: Option<&HmacKey>) -> Link {
        chain::append_digest(before, &self.content, key)
    }

    /// It at its place.
    pub fn placed(&self, link: Link, ingested_at: Timestamp) -> Placed<'_> {
        Placed {
            event: &self.row,
            place: Place {
                chain_seq: link.seq,
                ingested_at,
                content_sha256: link.content_sha256,
                chain_hash: link.chain_hash,
                chain_hmac: link.chain_hmac,
            },
            packed: self.packed.clone(),
        }
    }
}

/// Whether the columns of a row are those that its text gives. Its links are another matter.
pub(crate) fn says_what_it_says(stored: &AuditEvent) -> bool {
    let Ok(event) = Outline::parse(&stored.event) else {
        return false;
    };
    let AuditEvent {
        zone,
        id,
        event_type,
        request_id,
        decision,
        application_id,
        agent_session_id,
        authority_record_id,
        labels,
        occurred_at,
        // Where it stands and what it weighs: its links tell.
        chain_seq: _,
        ingested_at: _,
        event: _,
        content_sha256: _,
        chain_hash: _,
        chain_hmac: _,
    } = columns(event, String::new());
    zone == stored.zone
        && id == stored.id
        && event_type == stored.event_type
        && request_id == stored.request_id
        && decision == stored.decision
        && application_id == stored.application_id
        && agent_session_id == stored.agent_session_id
        && authority_record_id == stored.authority_record_id
        && labels == stored.labels
        && occurred_at == stored.occurred_at
}

fn columns(event: Outline, text: String) -> AuditEvent {
    AuditEvent {
        zone: event.zone_id,
        chain_seq: 0,
        id: event.id.to_string(),
        event_type: indexed(event.event_type),
        request_id: indexed(event.request_id),
        decision: indexed(event.decision),
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
    let label = label.replace('\u{1f}', "");
    (!label.is_empty()).then_some(label)
}
