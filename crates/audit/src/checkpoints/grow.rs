//! From where a zone was verified to its head.

use caracal_ledger::merkle::{Hash, Tree};
use caracal_ledger::{Flaw, Head, History, Unsound, Why};
use caracal_model::ZoneId;
use caracal_store::audit_events::ChainPage;
use caracal_tlog::ZoneLog;

use super::head_at;
use crate::ingest::{Ingest, head_of};
use crate::parallel;
use crate::verify::{Finding, VerifyError, check_rows};

/// Events that are read at a time: SQLite reads on the runtime.
const SHORT: u32 = 250;

/// Verifies the events that the tree does not have yet and adds them; answers with the head that it
/// has come to and the tree there. With a `base`, that tree is the one at the base and what the
/// events since say, whatever the tiles say; without, the one of the tiles. `None` when another
/// process grows it too.
pub(super) async fn to_head(
    ingest: &Ingest,
    zone: &ZoneId,
    base: Option<Head>,
) -> Result<Option<(Head, Tree)>, VerifyError> {
    let log = ZoneLog::of(ingest.store(), zone);
    let known = match log.rows().state().await? {
        Some(state) => head_at(state.size, &state.chain_hash, zone)?,
        None => Head::GENESIS,
    };
    let mut head = base.unwrap_or_else(|| known.clone());
    if known.seq() < head.seq() {
        // The tree was set back behind what was signed of it.
        return Err(unlike(zone, known.seq() + 1, Flaw::Tree));
    }
    let mut tree = log.tree(head.seq()).await?;
    loop {
        let behind = head.seq() < known.seq();
        if head.seq() == known.seq() && head != known {
            return Err(unlike(zone, known.seq(), Flaw::Chain(Why::Head)));
        }
        let page = next(ingest, zone, &head).await?;
        let upto = if behind { known.seq() } else { u64::MAX };
        let (to, leaves) = check(ingest, zone, &head, page, upto).await?;
        if leaves.is_empty() {
            return Ok(Some((head, tree)));
        }
        leaves.iter().for_each(|leaf| tree.append(*leaf));
        if !behind {
            let mut growth = log.growth(head.seq()).await?;
            leaves.iter().for_each(|leaf| growth.append(*leaf));
            let (from, hash) = (head.chain_hash(), to.chain_hash());
            let stored = log.store((head.seq(), &from), growth, &hash);
            if !stored.await? {
                return Ok(None);
            }
            let count = u64::try_from(leaves.len()).unwrap_or(u64::MAX);
            ingest.metrics().tamper_checked.inc_by(count);
        }
        head = to;
    }
}

/// The head and the leaves of a page, as far as `upto`. Off the runtime: a page is milliseconds of
/// unpacking and hashing, and whoever is served there must not wait for it.
async fn check(
    ingest: &Ingest,
    zone: &ZoneId,
    from: &Head,
    page: ChainPage,
    upto: u64,
) -> Result<(Head, Vec<Hash>), VerifyError> {
    let (zone, from, key) = (zone.clone(), from.clone(), ingest.shared_key());
    parallel::aside(move || {
        let mut rows = page.unpack()?;
        rows.retain(|row| row.chain_seq <= upto);
        let mut history = History::after(&from, key.as_deref());
        let checked = check_rows(&mut history, &rows);
        let leaves = checked.map_err(|unsound| Finding::at(&zone, unsound))?;
        Ok((history.head().clone(), leaves))
    })
    .await
}

fn unlike(zone: &ZoneId, seq: u64, flaw: Flaw) -> VerifyError {
    Finding::at(zone, Unsound { seq, flaw }).into()
}

/// The events after a head; none at the head of the chain, which must be there.
async fn next(ingest: &Ingest, zone: &ZoneId, from: &Head) -> Result<ChainPage, VerifyError> {
    let audit = ingest.store().zone(zone).audit();
    let rows = audit.chain_page(from.seq(), SHORT).await?;
    if !rows.is_empty() {
        return Ok(rows);
    }
    let head = audit.head().await?;
    let head = head.map_or(Ok(Head::GENESIS), |head| head_of(&head))?;
    if head == *from {
        return Ok(rows);
    }
    // Events and head move together, so what was appended since the page is there now.
    let late = audit.chain_page(from.seq(), SHORT).await?;
    if !late.is_empty() {
        return Ok(late);
    }
    let (seq, why) = match head.seq() > from.seq() {
        true => (from.seq() + 1, Why::Truncated),
        false => (head.seq(), Why::Head),
    };
    Err(unlike(zone, seq, Flaw::Chain(why)))
}
