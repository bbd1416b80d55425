//! Does the admin audit still say what was said? As [`crate::verify_zone`], of what administrators
//! did (spec: audit-and-streams §12).

use caracal_crypto::HmacKey;
use caracal_ledger::chain::{StoredLink, Verifier};
use caracal_ledger::{AdminRecord, Broken, Flaw, Head};
use caracal_model::ZoneId;
use caracal_store::admin_audit::{AdminEvent, AdminHead, deployment};
use caracal_store::{Store, StoreError};

use crate::verify::{Finding, VerifyError};

/// Records that are read at a time.
const PAGE: u32 = 1_000;
/// How the chain of what has no zone is called in findings.
const DEPLOYMENT: &str = "(deployment)";

/// Verifies the admin chain of every zone, and that of what has none; answers with how far each
/// goes. With a key, also who made it.
///
/// # Errors
/// [`VerifyError::Found`] names the first record that cannot be trusted.
pub async fn verify_admin(
    store: &Store,
    key: Option<&HmacKey>,
) -> Result<Vec<(ZoneId, Head)>, VerifyError> {
    let mut heads = Vec::new();
    for zone in store.admin_audit().zones().await? {
        let head = verify_admin_zone(store, &zone, key).await?;
        heads.push((zone, head));
    }
    Ok(heads)
}

/// Verifies the admin chain of a zone, the empty zone for what has none, from its first record to
/// its recorded head; answers with that head.
///
/// # Errors
/// [`VerifyError::Found`] names the first record that cannot be trusted.
pub async fn verify_admin_zone(
    store: &Store,
    zone: &ZoneId,
    key: Option<&HmacKey>,
) -> Result<Head, VerifyError> {
    let audit = store.admin_audit();
    let mut chain = Verifier::new(None, key);
    loop {
        let page = audit.chain(zone, chain.head().seq(), PAGE).await?;
        let ended = page.is_empty();
        check(zone, &mut chain, &page)?;
        if !ended {
            tokio::task::yield_now().await;
            continue;
        }
        let kept = audit.heads(&[zone.as_str()]).await?;
        let head = kept.first().map_or(Ok(Head::default()), head_of)?;
        // Records and head move together, so what was appended since the page is there now.
        let late = audit.chain(zone, chain.head().seq(), PAGE).await?;
        if head.seq() > chain.head().seq() && !late.is_empty() {
            check(zone, &mut chain, &late)?;
            continue;
        }
        chain.ends_at(&head).map_err(|broken| found(zone, broken))?;
        return Ok(head);
    }
}

fn head_of(stored: &AdminHead) -> Result<Head, StoreError> {
    let head = Head::stored(stored.chain_seq, &stored.chain_hash);
    head.ok_or_else(|| StoreError::Corrupt {
        what: format!("the chain hash in the admin head of zone {}", stored.zone),
    })
}

fn check(zone: &ZoneId, chain: &mut Verifier<'_>, rows: &[AdminEvent]) -> Result<(), Finding> {
    for row in rows {
        let link = StoredLink {
            seq: row.chain_seq,
            wire: &row.record,
            content_sha256: &row.content_sha256,
            chain_hash: &row.chain_hash,
            chain_hmac: &row.chain_hmac,
        };
        chain.check(&link).map_err(|broken| found(zone, broken))?;
        if !says_what_it_says(row) {
            return Err(Finding {
                zone: named(zone),
                seq: row.chain_seq,
                flaw: Flaw::Columns,
            });
        }
    }
    Ok(())
}

/// Whether the columns are those that the text gives.
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

fn named(zone: &ZoneId) -> ZoneId {
    if *zone == deployment() {
        ZoneId::trusted(DEPLOYMENT)
    } else {
        zone.clone()
    }
}

fn found(zone: &ZoneId, broken: Broken) -> Finding {
    Finding {
        zone: named(zone),
        seq: broken.seq,
        flaw: Flaw::Chain(broken.why),
    }
}
