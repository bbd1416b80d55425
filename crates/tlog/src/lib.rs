//! The tree of a log (the events of a zone, or what administrators did) as it is kept in the store:
//! growing it, proving with it, handing it out, and the key that its checkpoints are signed with.
//!
//! **Forces.** Audit grows and signs, the API hands out proofs, the command line exports: services
//! do not know each other, and neither the ledger (pure) nor the store (rows) knows the other.
//! **Choice.** What stands between the two is here. A proof reads two tiles a level at most, in one
//! query, however large the ledger is.

mod keys;
pub mod pages;

use std::ops::Range;

use caracal_crypto::CryptoError;
use caracal_ledger::checkpoint::ROTATED;
use caracal_ledger::merkle::{self, Hash, Tree};
use caracal_ledger::tile::{Growth, MissingTile, TileId, Tiles};
use caracal_model::LogId;
use caracal_store::audit_trees::{AuditCheckpoint, AuditTile, AuditTrees, Growing};
use caracal_store::{Store, StoreError};

pub use keys::{Signed, Signer, forget_replaced, list, rotate, vkeys};

/// Checkpoints that are read at a time.
const PAGE: u32 = 1_000;

/// A tree cannot be read, grown or signed.
#[derive(Debug, thiserror::Error)]
pub enum TlogError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A tile is not there: somebody removed it, or the tree is not that large.
    #[error(transparent)]
    Tile(#[from] MissingTile),
    /// The key cannot be opened or used.
    #[error("the checkpoint key: {0}")]
    Key(#[from] CryptoError),
}

/// One log and its tree.
#[derive(Clone, Copy, Debug)]
pub struct ZoneLog<'s> {
    store: &'s Store,
    log: &'s LogId,
    rows: AuditTrees<'s>,
}

impl<'s> ZoneLog<'s> {
    /// Of this log.
    pub fn of(store: &'s Store, log: &'s LogId) -> Self {
        Self {
            store,
            log,
            rows: store.zone(log.key()).audit_tree(),
        }
    }

    /// Its rows.
    pub fn rows(&self) -> AuditTrees<'s> {
        self.rows
    }

    /// Every checkpoint that was signed of it, the smallest first: some hundred bytes each, an hour.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn checkpoints(&self) -> Result<Vec<AuditCheckpoint>, StoreError> {
        let mut all: Vec<AuditCheckpoint> = Vec::new();
        loop {
            let after = all.last().map_or(0, |last| last.size);
            let page = self.rows.above(after, PAGE).await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    /// The checkpoints with which this log changed keys, the smallest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rotations(&self) -> Result<Vec<AuditCheckpoint>, StoreError> {
        self.rows.saying(ROTATED).await
    }

    /// The tree of the first `size` events.
    ///
    /// # Errors
    /// [`TlogError`].
    pub async fn tree(&self, size: u64) -> Result<Tree, TlogError> {
        let whole = 0..size;
        let tiles = self.tiles(std::slice::from_ref(&whole)).await?;
        Ok(tiles.tree(size)?)
    }

    /// Proof that the leaf is in the tree of this size.
    ///
    /// # Errors
    /// [`TlogError`].
    pub async fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>, TlogError> {
        self.hashes(&merkle::inclusion(index, size)).await
    }

    /// Proof that the tree of the old size is a beginning of that of the new size.
    ///
    /// # Errors
    /// [`TlogError`].
    pub async fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, TlogError> {
        self.hashes(&merkle::consistency(old, new)).await
    }

    /// One tile, as wide as it is in a tree of this size; `None` when it has no hash there.
    ///
    /// # Errors
    /// [`TlogError`].
    pub async fn tile(&self, id: TileId, size: u64) -> Result<Option<Vec<u8>>, TlogError> {
        let width = usize::try_from(id.width(size)).unwrap_or_default();
        if width == 0 {
            return Ok(None);
        }
        let stored = self.rows.tiles(&[(id.level, id.index)]).await?;
        let hashes = stored.into_iter().next().map(|(_, _, hashes)| hashes);
        let hashes =
            hashes.and_then(|hashes| hashes.get(..width * size_of::<Hash>()).map(<[u8]>::to_vec));
        Ok(Some(hashes.ok_or(MissingTile(id))?))
    }

    /// What growing a tree of this size starts with.
    ///
    /// # Errors
    /// [`TlogError`].
    pub async fn growth(&self, size: u64) -> Result<Growth, TlogError> {
        let edge = self.fetch(Growth::edge(size)).await?;
        Ok(Growth::from(size, &edge)?)
    }

    /// Stores what a tree has grown to; whether it still was where its growing began.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn store(
        &self,
        from: (u64, &str),
        growth: Growth,
        chain_hash: &str,
    ) -> Result<bool, StoreError> {
        let to = (growth.size(), chain_hash);
        let tiles: Vec<AuditTile> = growth
            .into_changed()
            .into_iter()
            .map(|(id, hashes)| (id.level, id.index, hashes))
            .collect();
        let tiles = &tiles;
        self.rows.grow(&Growing { from, to, tiles }).await
    }

    /// The leaves of a range, side by side with what the tiles say of them.
    ///
    /// # Errors
    /// [`TlogError`].
    pub async fn leaves(&self, range: Range<u64>) -> Result<Vec<Hash>, TlogError> {
        let single: Vec<Range<u64>> = range.map(|leaf| leaf..leaf + 1).collect();
        self.hashes(&single).await
    }

    /// The exact texts of the entries after this many, as far as they are kept: none after a gap.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn entries(&self, after: u64, limit: u32) -> Result<Vec<String>, StoreError> {
        let rows = pages::entries(self.store, self.log, after, limit).await?;
        let placed = (after + 1..).zip(rows);
        let here = placed.take_while(|(place, row)| row.seq == *place);
        Ok(here.map(|(_, row)| row.event).collect())
    }

    async fn hashes(&self, ranges: &[Range<u64>]) -> Result<Vec<Hash>, TlogError> {
        let tiles = self.tiles(ranges).await?;
        let hash = |range| tiles.hash(range).map_err(TlogError::from);
        ranges.iter().map(hash).collect()
    }

    async fn tiles(&self, ranges: &[Range<u64>]) -> Result<Tiles, TlogError> {
        self.fetch(Tiles::needed(ranges)).await
    }

    async fn fetch(&self, ids: impl IntoIterator<Item = TileId>) -> Result<Tiles, TlogError> {
        let ids: Vec<_> = ids.into_iter().map(|id| (id.level, id.index)).collect();
        if ids.is_empty() {
            return Ok(Tiles::default());
        }
        let stored = self.rows.tiles(&ids).await?;
        let tile = |(level, index, hashes)| (TileId { level, index }, hashes);
        Ok(stored.into_iter().map(tile).collect())
    }
}

#[cfg(test)]
mod tests;
