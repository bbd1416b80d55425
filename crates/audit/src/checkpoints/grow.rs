//! From where a log was verified towards its head.

use caracal_ledger::merkle::{Hash, Tree};
use caracal_ledger::{Flaw, Head, History, Unsound, Why};
use caracal_model::LogId;
use caracal_tlog::ZoneLog;

use super::head_at;
use crate::ingest::Ingest;
use crate::parallel;
use crate::source::{self, Page};
use crate::verify::{Finding, PAGE, VerifyError};

/// Events that are taken at a time of those that this process appended: hashed on the runtime.
const LONG: usize = 1_000;

/// How far a log has come.
pub(super) struct Grown {
    pub head: Head,
    pub tree: Tree,
    /// How long the log was when it was begun.
    pub end: u64,
}

/// Adds the entries that the tree does not have yet: those that this process appended itself as it
/// did, all others once they are verified. It ends after `most` of them, and before any that was
/// appended since it began: who appends faster than this reads must not keep it from an end. With a
/// `base`, the tree of the answer is the one at the base and what the events since say, whatever the
/// tiles say; without, the one of the tiles. `None` when another process grows it too.
pub(super) async fn grow(
    ingest: &Ingest,
    log: &LogId,
    base: Option<Head>,
    most: u64,
) -> Result<Option<Grown>, VerifyError> {
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
    // After the tree, so that it cannot be behind it.
    let end = source::head(ingest.store(), log).await?;
    if end.seq() < known.seq() {
        return Err(unlike(log, end.seq(), Flaw::Chain(Why::Head)));
    }
    let mut tree = kept.tree(head.seq()).await?;
    let mut added = 0;
    loop {
        for place in [&known, &end] {
            if head.seq() == place.seq() && head != *place {
                return Err(unlike(log, head.seq(), Flaw::Chain(Why::Head)));
            }
        }
        let behind = head.seq() < known.seq();
        if head.seq() == end.seq() || added >= most && !behind {
            break;
        }
        let upto = if behind { known.seq() } else { end.seq() };
        let (to, leaves) = match appended(ingest, log, &head, upto) {
            Some(own) if !behind => own,
            _ => read(ingest, log, &head, upto).await?,
        };
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
            added += count;
        }
        head = to;
    }
    let end = end.seq();
    Ok(Some(Grown { head, tree, end }))
}

/// What this process appended behind a head, as far as it remembers, and as far as `upto`.
fn appended(ingest: &Ingest, log: &LogId, head: &Head, upto: u64) -> Option<(Head, Vec<Hash>)> {
    if !log.kind().is_events() {
        return None;
    }
    let mut steps = ingest.recent().after(log.zone(), head, LONG);
    steps.retain(|step| step.head.seq() <= upto);
    let to = steps.last()?.head.clone();
    Some((to, steps.iter().map(|step| step.leaf).collect()))
}

/// The next entries behind a head, which must be there, as far as `upto`, with their head. Verified
/// off the runtime: a page is milliseconds of unpacking and hashing, and whoever is served there must
/// not wait for it.
async fn read(
    ingest: &Ingest,
    log: &LogId,
    from: &Head,
    upto: u64,
) -> Result<(Head, Vec<Hash>), VerifyError> {
    let page = Page::read(ingest.store(), log, from.seq(), PAGE).await?;
    if page.is_empty() {
        // Entries and head move together.
        return Err(unlike(log, from.seq() + 1, Flaw::Chain(Why::Truncated)));
    }
    let (log, from, key) = (log.clone(), from.clone(), ingest.shared_key());
    parallel::aside(move || {
        let mut rows = page.unpack()?;
        rows.retain(|row| row.seq <= upto);
        let key = key.as_deref();
        let mut history = History::after(&from, source::required(&log, key));
        let checked = source::check_all(&log, &mut history, &rows, key);
        let leaves = checked.map_err(|unsound| Finding::at(&log, unsound))?;
        if leaves.is_empty() {
            return Err(unlike(&log, from.seq() + 1, Flaw::Chain(Why::Truncated)));
        }
        Ok((history.head().clone(), leaves))
    })
    .await
}

fn unlike(log: &LogId, seq: u64, flaw: Flaw) -> VerifyError {
    Finding::at(log, Unsound { seq, flaw }).into()
}
