//! From where a log was verified to its head.

use caracal_ledger::merkle::{Hash, Tree};
use caracal_ledger::{Flaw, Head, History, Unsound, Why};
use caracal_model::LogId;
use caracal_tlog::ZoneLog;

use super::head_at;
use crate::ingest::Ingest;
use crate::parallel;
use crate::source::{self, Page};
use crate::verify::{Finding, VerifyError};

/// Events that are read at a time: SQLite reads on the runtime.
const SHORT: u32 = 250;
/// Events that are taken at a time of those that this process appended: hashed on the runtime.
const LONG: usize = 1_000;

/// Adds the entries that the tree does not have yet: those that this process appended itself as it
/// did, all others once they are verified; answers with the head that it
/// has come to and the tree there. With a `base`, that tree is the one at the base and what the
/// events since say, whatever the tiles say; without, the one of the tiles. `None` when another
/// process grows it too.
pub(super) async fn to_head(
    ingest: &Ingest,
    log: &LogId,
    base: Option<Head>,
) -> Result<Option<(Head, Tree)>, VerifyError> {
    let kept = ZoneLog::of(ingest.store(), log);
    let known = match kept.rows().state().await? {
        Some(state) => head_at(state.size, &state.chain_hash, log)?,
        None => Head::GENESIS,
    };
    let mut head = base.unwrap_or_else(|| known.clone());
    if known.seq() < head.seq() {
        // The tree was set back behind what was signed of it.
        return Err(unlike(log, known.seq() + 1, Flaw::Tree));
    }
    let mut tree = kept.tree(head.seq()).await?;
    loop {
        let behind = head.seq() < known.seq();
        if head.seq() == known.seq() && head != known {
            return Err(unlike(log, known.seq(), Flaw::Chain(Why::Head)));
        }
        let (to, leaves) = match appended(ingest, log, &head) {
            Some(own) if !behind => own,
            _ => {
                let page = next(ingest, log, &head).await?;
                let upto = if behind { known.seq() } else { u64::MAX };
                check(ingest, log, &head, page, upto).await?
            }
        };
        if leaves.is_empty() {
            return Ok(Some((head, tree)));
        }
        leaves.iter().for_each(|leaf| tree.append(*leaf));
        if !behind {
            let mut growth = kept.growth(head.seq()).await?;
            leaves.iter().for_each(|leaf| growth.append(*leaf));
            let (from, hash) = (head.chain_hash(), to.chain_hash());
            let stored = kept.store((head.seq(), &from), growth, &hash);
            if !stored.await? {
                return Ok(None);
            }
            let count = u64::try_from(leaves.len()).unwrap_or(u64::MAX);
            ingest.metrics().tamper_checked.inc_by(count);
        }
        head = to;
    }
}

/// What this process appended behind a head, as far as it remembers.
fn appended(ingest: &Ingest, log: &LogId, head: &Head) -> Option<(Head, Vec<Hash>)> {
    if !log.kind().is_events() {
        return None;
    }
    let steps = ingest.recent().after(log.zone(), head, LONG);
    let to = steps.last()?.head.clone();
    Some((to, steps.iter().map(|step| step.leaf).collect()))
}

/// The head and the leaves of a page, as far as `upto`. Off the runtime: a page is milliseconds of
/// unpacking and hashing, and whoever is served there must not wait for it.
async fn check(
    ingest: &Ingest,
    log: &LogId,
    from: &Head,
    page: Page,
    upto: u64,
) -> Result<(Head, Vec<Hash>), VerifyError> {
    let (log, from, key) = (log.clone(), from.clone(), ingest.shared_key());
    parallel::aside(move || {
        let mut rows = page.unpack()?;
        rows.retain(|row| row.seq <= upto);
        let key = key.as_deref();
        let mut history = History::after(&from, source::required(&log, key));
        let checked = source::check_all(&log, &mut history, &rows, key);
        let leaves = checked.map_err(|unsound| Finding::at(&log, unsound))?;
        Ok((history.head().clone(), leaves))
    })
    .await
}

fn unlike(log: &LogId, seq: u64, flaw: Flaw) -> VerifyError {
    Finding::at(log, Unsound { seq, flaw }).into()
}

/// The entries after a head; none at the head of the chain, which must be there.
async fn next(ingest: &Ingest, log: &LogId, from: &Head) -> Result<Page, VerifyError> {
    let store = ingest.store();
    let rows = Page::read(store, log, from.seq(), SHORT).await?;
    if !rows.is_empty() {
        return Ok(rows);
    }
    let head = source::head(store, log).await?;
    if head == *from {
        return Ok(rows);
    }
    // Entries and head move together, so what was appended since the page is there now.
    let late = Page::read(store, log, from.seq(), SHORT).await?;
    if !late.is_empty() {
        return Ok(late);
    }
    let (seq, why) = match head.seq() > from.seq() {
        true => (from.seq() + 1, Why::Truncated),
        false => (head.seq(), Why::Head),
    };
    Err(unlike(log, seq, Flaw::Chain(why)))
}
