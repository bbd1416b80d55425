//! What was verified can be changed afterwards: it is verified again, slice by slice.

use caracal_ledger::{Flaw, Floor, Head, History, Kept, Unsound, Why};
use caracal_model::LogId;
use caracal_store::audit_trees::AuditTree;
use caracal_tlog::ZoneLog;

use super::{Checkpoints, grow, head_at};
use crate::floor;
use crate::source::{self, Page};
use crate::verify::{Finding, PAGE, VerifyError, open_stored};

/// Slices in a round, about.
const SLICES: u64 = 24;
/// Events that a slice has at least.
const SLICE: u64 = 1_000;

impl Checkpoints {
    /// Verifies the next slice of every log, and what came since the last one.
    pub async fn verify_again(&mut self) {
        let logs = match self.ingest.store().audit_logs().await {
            Ok(logs) => logs,
            Err(error) => {
                tracing::warn!(%error, "the ledger could not be verified");
                return;
            }
        };
        self.open_rounds = 0;
        for log in &logs {
            let done = Box::pin(self.slice(log)).await;
            self.settle(log, done).await;
        }
        let metrics = self.ingest.metrics();
        let seconds = self.ingest.clock().now().unix_seconds();
        metrics.last_sweep.set(seconds);
        if self.open_rounds == 0 {
            metrics.last_full.set(seconds);
        }
    }

    async fn slice(&mut self, log: &LogId) -> Result<(), VerifyError> {
        self.last(log).await?;
        let ingest = self.ingest.clone();
        grow::grow(&ingest, log, None, u64::MAX).await?;
        let kept = ZoneLog::of(ingest.store(), log);
        let Some(state) = kept.rows().state().await? else {
            return Ok(());
        };
        let (store, key) = (ingest.store(), ingest.key());
        let floor = floor::of(store, log, key).await?;
        let reached = self.rows_again(log, &state, floor.as_ref()).await;
        if reached.is_err() && floor::of(store, log, key).await? != floor {
            // Retention has dropped what was to be verified; the next slice begins behind it.
            return Ok(());
        }
        let reached = reached?;
        if reached.seq() < state.size {
            self.open_rounds += 1;
            let hash = reached.chain_hash();
            return Ok(kept.rows().verified_again(reached.seq(), &hash).await?);
        }
        if reached.chain_hash() != state.chain_hash {
            let flaw = Flaw::Chain(Why::Head);
            return Err(Finding::at(
                log,
                Unsound {
                    seq: state.size,
                    flaw,
                },
            )
            .into());
        }
        let start = Head::GENESIS;
        Ok(kept
            .rows()
            .verified_again(start.seq(), &start.chain_hash())
            .await?)
    }

    /// The chain, the columns, the leaves and the checkpoints of a slice; how far it came.
    async fn rows_again(
        &mut self,
        log: &LogId,
        state: &AuditTree,
        floor: Option<&Floor>,
    ) -> Result<Head, VerifyError> {
        let ingest = self.ingest.clone();
        let (store, key) = (ingest.store(), ingest.key());
        let kept = ZoneLog::of(store, log);
        let found = |seq, flaw| Finding::at(log, Unsound { seq, flaw });
        let start = match floor {
            Some(floor) if floor.size > state.again_size => {
                head_at(floor.size, &floor.chain_hash, log)?
            }
            _ => head_at(state.again_size, &state.again_hash, log)?,
        };
        let tree = kept.tree(start.seq()).await?;
        let mut history = History::from(&start, tree, source::required(log, key));
        let slice = SLICE.max(state.size / SLICES + 1);
        let end = state.size.min(start.seq().saturating_add(slice));
        self.expect_own(log, &mut history, end).await?;
        while history.head().seq() < end {
            let from = history.head().seq();
            let mut rows = Page::read(store, log, from, PAGE).await?.unpack()?;
            rows.retain(|row| row.seq <= end);
            let checked = source::check_all(log, &mut history, &rows, key);
            let seen = checked.map_err(|unsound| Finding::at(log, unsound))?;
            let to = history.head().seq();
            if to == from {
                return Err(found(from + 1, Flaw::Chain(Why::Truncated)).into());
            }
            let leaves = kept.leaves(from..to).await?;
            for ((row, seen), leaf) in rows.iter().zip(seen).zip(leaves) {
                if seen != leaf {
                    return Err(found(row.seq, Flaw::Tree).into());
                }
            }
            ingest.metrics().tamper_checked.inc_by(to - from);
        }
        Ok(history.head().clone())
    }

    /// Has a slice agree with the checkpoints that were signed within it.
    async fn expect_own(
        &mut self,
        log: &LogId,
        history: &mut History<'_>,
        end: u64,
    ) -> Result<(), VerifyError> {
        let ingest = self.ingest.clone();
        let rows = ZoneLog::of(ingest.store(), log).rows();
        let mut after = history.size();
        loop {
            let mut page = rows.above(after, PAGE).await?;
            page.retain(|stored| stored.size <= end);
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.size;
            for stored in &page {
                let opened = open_stored(&mut self.keys, log, stored)?;
                let expected = history.expect(Kept::of(opened, None));
                expected.map_err(|unsound| Finding::at(log, unsound))?;
            }
        }
    }
}
