//! What a log is made of, whichever it is: its rows, in one shape, and its head.

use caracal_crypto::HmacKey;
use caracal_crypto::digest::hex_decode_array;
use caracal_ledger::chain::StoredLink;
use caracal_ledger::merkle::Hash;
use caracal_ledger::{AdminRecord, Flaw, Head, History, Unsound, Why};
use caracal_model::{LogId, LogKind};
use caracal_store::admin_audit::{AdminEvent, AdminHead, deployment};
use caracal_store::audit_events::{AuditEvent, ChainPage};
use caracal_store::{Store, StoreError};

use crate::entry;
use crate::ingest::head_of;

/// An entry with its link.
pub(crate) struct Row {
    pub seq: u64,
    text: String,
    content_sha256: String,
    chain_hash: String,
    chain_hmac: String,
    /// Whether its columns say what its text says.
    is_honest: bool,
}

impl From<AuditEvent> for Row {
    fn from(row: AuditEvent) -> Self {
        Self {
            is_honest: entry::says_what_it_says(&row),
            seq: row.chain_seq,
            text: row.event,
            content_sha256: row.content_sha256,
            chain_hash: row.chain_hash,
            chain_hmac: row.chain_hmac,
        }
    }
}

impl From<AdminEvent> for Row {
    fn from(row: AdminEvent) -> Self {
        Self {
            is_honest: says_what_it_says(&row),
            seq: row.chain_seq,
            text: row.record,
            content_sha256: row.content_sha256,
            chain_hash: row.chain_hash,
            chain_hmac: row.chain_hmac,
        }
    }
}

fn says_what_it_says(row: &AdminEvent) -> bool {
    let Some(record) = AdminRecord::parse(&row.record) else {
        return false;
    };
    record.id == row.id
        && record.zone_id.unwrap_or_else(deployment) == row.zone
        && record.actor_id == row.actor_id
        && record.method == row.method
        && record.entity_type == row.entity_type
        && record.entity_id == row.entity_id
        && record.occurred_at == row.occurred_at
}

/// Rows as they were read. Unpacking them takes time, on a thread of the caller's choice.
pub(crate) enum Page {
    Events(ChainPage),
    Admin(Vec<AdminEvent>),
}

impl Page {
    /// Those after a place of the chain, in its order.
    pub async fn read(
        store: &Store,
        log: &LogId,
        after: u64,
        limit: u32,
    ) -> Result<Self, StoreError> {
        Ok(match log.kind() {
            LogKind::Events => {
                let audit = store.zone(log.zone()).audit();
                Self::Events(audit.chain_page(after, limit).await?)
            }
            LogKind::Admin => {
                let audit = store.admin_audit();
                Self::Admin(audit.chain(log.zone(), after, limit).await?)
            }
        })
    }

    pub fn is_empty(&self) -> bool {
        match self {
            Self::Events(page) => page.is_empty(),
            Self::Admin(rows) => rows.is_empty(),
        }
    }

    pub fn unpack(self) -> Result<Vec<Row>, StoreError> {
        Ok(match self {
            Self::Events(page) => page.unpack()?.into_iter().map(Row::from).collect(),
            Self::Admin(rows) => rows.into_iter().map(Row::from).collect(),
        })
    }
}

/// The recorded end of a log.
pub(crate) async fn head(store: &Store, log: &LogId) -> Result<Head, StoreError> {
    match log.kind() {
        LogKind::Events => {
            let head = store.zone(log.zone()).audit().head().await?;
            head.map_or(Ok(Head::GENESIS), |head| head_of(&head))
        }
        LogKind::Admin => {
            let heads = store.admin_audit().heads(&[log.zone().as_str()]).await?;
            heads.first().map_or(Ok(Head::GENESIS), admin_head)
        }
    }
}

fn admin_head(stored: &AdminHead) -> Result<Head, StoreError> {
    let head = Head::stored(stored.chain_seq, &stored.chain_hash);
    head.ok_or_else(|| StoreError::Corrupt {
        what: format!("the chain hash in the admin head of zone {}", stored.zone),
    })
}

/// Continues a history with rows, whose columns must say what their texts say; answers with their
/// leaves.
pub(crate) fn check(history: &mut History<'_>, rows: &[Row]) -> Result<Vec<Hash>, Unsound> {
    let mut leaves = Vec::with_capacity(rows.len());
    for row in rows {
        let link = StoredLink {
            seq: row.seq,
            wire: &row.text,
            content_sha256: &row.content_sha256,
            chain_hash: &row.chain_hash,
            chain_hmac: &row.chain_hmac,
        };
        leaves.push(history.check(&link)?);
        if !row.is_honest {
            return Err(Unsound {
                seq: row.seq,
                flaw: Flaw::Columns,
            });
        }
    }
    Ok(leaves)
}

/// The key that every link of this log must carry the code of. A service may run without the key: it
/// leaves its records of what administrators did without a code, and they say so themselves.
pub(crate) fn required<'k>(log: &LogId, key: Option<&'k HmacKey>) -> Option<&'k HmacKey> {
    key.filter(|_| log.kind().is_events())
}

/// As [`check`], of a history that goes by [`required`]: what is not required must not be forged.
pub(crate) fn check_all(
    log: &LogId,
    history: &mut History<'_>,
    rows: &[Row],
    key: Option<&HmacKey>,
) -> Result<Vec<Hash>, Unsound> {
    let leaves = check(history, rows)?;
    match key {
        Some(key) if required(log, Some(key)).is_none() => codes_hold(rows, key)?,
        _ => {}
    }
    Ok(leaves)
}

fn codes_hold(rows: &[Row], key: &HmacKey) -> Result<(), Unsound> {
    let is_forged = |row: &&Row| {
        let code = row.chain_hmac.as_str();
        let hash: Option<[u8; 32]> = hex_decode_array(&row.chain_hash);
        !code.is_empty() && !hash.is_some_and(|hash| key.verify_hex(&hash, code))
    };
    rows.iter().find(is_forged).map_or(Ok(()), |row| {
        Err(Unsound {
            seq: row.seq,
            flaw: Flaw::Chain(Why::Author),
        })
    })
}
