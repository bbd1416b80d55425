//! Where a chain begins once retention has dropped what was before, and who says so.
//!
//! Whoever can write the database could drop the beginning of a chain and call it retention. So a
//! floor carries a code of the holder of the key over zone, place and hash:
//!
//! ```text
//! code = HMAC-SHA256(AUDIT_HMAC_KEY, "caracal.audit.floor" LF zone LF seq LF chain_hash)
//! ```

use caracal_crypto::HmacKey;
use caracal_ledger::{Flaw, Floor, Head, Why};
use caracal_model::{LogId, LogKind, ZoneId};
use caracal_store::Store;
use caracal_store::audit_retention::AuditFloor;
use caracal_tlog::ZoneLog;

use crate::verify::{Finding, VerifyError};

/// The code for this floor; empty without a key.
pub(crate) fn code(zone: &ZoneId, seq: u64, chain_hash: &str, key: Option<&HmacKey>) -> String {
    key.map(|key| key.sign_hex(&signed(zone, seq, chain_hash)))
        .unwrap_or_default()
}

fn signed(zone: &ZoneId, seq: u64, chain_hash: &str) -> Vec<u8> {
    format!("caracal.audit.floor\n{zone}\n{seq}\n{chain_hash}").into_bytes()
}

/// The head that the rest of the chain continues. With a key, the floor must carry its code.
pub(crate) fn head(floor: &AuditFloor, key: Option<&HmacKey>) -> Result<Head, Finding> {
    let log = LogId::events(floor.zone.clone());
    checked(&log, (floor.chain_seq, &floor.chain_hash), &floor.code, key)
}

fn checked(
    log: &LogId,
    (seq, chain_hash): (u64, &str),
    code: &str,
    key: Option<&HmacKey>,
) -> Result<Head, Finding> {
    let broken = |why| Finding {
        log: log.clone(),
        seq,
        flaw: Flaw::Chain(why),
    };
    let signed = signed(log.zone(), seq, chain_hash);
    if key.is_some_and(|key| !key.verify_hex(&signed, code)) {
        return Err(broken(Why::Author));
    }
    Head::stored(seq, chain_hash).ok_or_else(|| broken(Why::Link))
}

/// Where a log begins, with the tree of what was before; `None` when nothing was dropped.
pub(crate) async fn of(
    store: &Store,
    log: &LogId,
    key: Option<&HmacKey>,
) -> Result<Option<Floor>, VerifyError> {
    // What administrators did is kept whole.
    if log.kind() != LogKind::Events {
        return Ok(None);
    }
    let Some(stored) = store.zone(log.zone()).audit().floor().await? else {
        return Ok(None);
    };
    let head = head(&stored, key)?;
    // Nothing is dropped that is not in the tree.
    let tree = ZoneLog::of(store, log).tree(stored.chain_seq).await?;
    Ok(Some(Floor::new(&head, &tree)))
}

/// Whether somebody may say that a log begins there.
pub(crate) fn check(
    log: &LogId,
    floor: &Floor,
    code: &str,
    key: Option<&HmacKey>,
) -> Result<(), Finding> {
    checked(log, (floor.size, &floor.chain_hash), code, key).map(drop)
}
