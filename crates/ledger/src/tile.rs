//! The tree cut into tiles, as it is stored and served (C2SP tlog-tiles): 256 hashes side by side.
//!
//! Tile `n` of level `l` holds the hashes of the full subtrees of height `8 l` from `256 n` on. A
//! tile that is full never changes, and its own hash is one of the tile above it. Whatever a proof
//! needs is in two tiles a level at most: three levels hold sixteen million events.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::merkle::{Hash, Node, Tree, node_hash, nodes, range_hash};

/// Hashes in a full tile.
pub const WIDTH: u64 = 256;
/// Levels of the tree in one of tiles.
const HEIGHT: u32 = 8;
const HASH: usize = 32;

/// Which tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId {
    /// Its level, from 0 for the leaves.
    pub level: u32,
    /// Its place in the level, from 0.
    pub index: u64,
}

impl TileId {
    /// The tile that holds a subtree, or what it is made of.
    fn of(node: Node) -> Self {
        let below = node.height % HEIGHT;
        Self {
            level: node.height / HEIGHT,
            index: node.index >> (HEIGHT - below),
        }
    }

    /// How many hashes it has in a tree of this size: 0 to 256.
    pub fn width(self, size: u64) -> u64 {
        let hashes = size.checked_shr(HEIGHT * self.level).unwrap_or(0);
        let before = self.index.saturating_mul(WIDTH);
        hashes.saturating_sub(before).min(WIDTH)
    }
}

/// Tiles at hand: the hashes of each, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiles(BTreeMap<TileId, Vec<u8>>);

impl FromIterator<(TileId, Vec<u8>)> for Tiles {
    fn from_iter<I: IntoIterator<Item = (TileId, Vec<u8>)>>(tiles: I) -> Self {
        Self(tiles.into_iter().collect())
    }
}

/// A tile that is needed is not there, or not that far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tile {} of level {} is missing or short", .0.index, .0.level)]
pub struct MissingTile(pub TileId);

impl Tiles {
    /// The tiles that the hashes of these ranges come from.
    pub fn needed<'r>(ranges: impl IntoIterator<Item = &'r Range<u64>>) -> BTreeSet<TileId> {
        let nodes = ranges.into_iter().flat_map(nodes);
        nodes.map(TileId::of).collect()
    }

    /// The hash over a range.
    ///
    /// # Errors
    /// [`MissingTile`].
    pub fn hash(&self, range: &Range<u64>) -> Result<Hash, MissingTile> {
        Ok(range_hash(&self.hashes(range)?))
    }

    /// The tree of the first `size` leaves.
    ///
    /// # Errors
    /// [`MissingTile`].
    pub fn tree(&self, size: u64) -> Result<Tree, MissingTile> {
        let peaks = self.hashes(&(0..size))?;
        // As many full subtrees as the size has bits: that is how the range was cut.
        Ok(Tree::stored(size, peaks).unwrap_or_default())
    }

    fn hashes(&self, range: &Range<u64>) -> Result<Vec<Hash>, MissingTile> {
        nodes(range)
            .into_iter()
            .map(|node| self.node(node).ok_or_else(|| MissingTile(TileId::of(node))))
            .collect()
    }

    fn node(&self, node: Node) -> Option<Hash> {
        let below = node.height % HEIGHT;
        let count = 1usize << below;
        let place = usize::try_from((node.index << below) % WIDTH).ok()?;
        let bytes = self.0.get(&TileId::of(node))?;
        let bytes = bytes.get(place * HASH..(place + count) * HASH)?;
        perfect(bytes)
    }
}

/// The hash over a full subtree of these hashes; their number is a power of two.
fn perfect(bytes: &[u8]) -> Option<Hash> {
    let (hashes, rest) = bytes.as_chunks::<HASH>();
    if !rest.is_empty() || !hashes.len().is_power_of_two() {
        return None;
    }
    let mut hashes = hashes.to_vec();
    while hashes.len() > 1 {
        let pairs = hashes.as_chunks::<2>().0;
        hashes = pairs
            .iter()
            .map(|[left, right]| node_hash(left, right))
            .collect();
    }
    hashes.first().copied()
}

/// What the tile above a full tile says of it.
pub fn tile_hash(bytes: &[u8]) -> Option<Hash> {
    (u64::try_from(bytes.len() / HASH) == Ok(WIDTH))
        .then(|| perfect(bytes))
        .flatten()
}

/// The right edge of the tiles, while leaves are added.
#[derive(Clone, Debug)]
pub struct Growth {
    size: u64,
    /// The unfinished tile of each level, from the leaves up; empty where none is begun.
    edge: Vec<(u64, Vec<u8>)>,
    /// Levels whose unfinished tile changed.
    touched: BTreeSet<usize>,
    full: Vec<(TileId, Vec<u8>)>,
}

impl Growth {
    /// The tiles that are not full in a tree of this size: what growing it starts with.
    pub fn edge(size: u64) -> Vec<TileId> {
        (0..u64::BITS / HEIGHT)
            .map(|level| {
                let hashes = size >> (HEIGHT * level);
                (level, hashes)
            })
            .take_while(|(_, hashes)| *hashes > 0)
            .filter(|(_, hashes)| hashes % WIDTH > 0)
            .map(|(level, hashes)| TileId {
                level,
                index: hashes / WIDTH,
            })
            .collect()
    }

    /// Grows a tree of this size whose edge is at hand.
    ///
    /// # Errors
    /// [`MissingTile`] when a tile of the edge is absent, or has another width than the size gives.
    pub fn from(size: u64, tiles: &Tiles) -> Result<Self, MissingTile> {
        let mut edge = Vec::new();
        for level in 0..u64::BITS / HEIGHT {
            let hashes = size >> (HEIGHT * level);
            if hashes == 0 {
                break;
            }
            let id = TileId {
                level,
                index: hashes / WIDTH,
            };
            let bytes = match hashes % WIDTH {
                0 => Vec::new(),
                width => {
                    let stored = tiles.0.get(&id).ok_or(MissingTile(id))?;
                    let fits = u64::try_from(stored.len()) == Ok(width * HASH as u64);
                    fits.then(|| stored.clone()).ok_or(MissingTile(id))?
                }
            };
            edge.push((id.index, bytes));
        }
        Ok(Self {
            size,
            edge,
            touched: BTreeSet::new(),
            full: Vec::new(),
        })
    }

    /// Adds a leaf.
    pub fn append(&mut self, leaf: Hash) {
        self.size += 1;
        let mut hash = leaf;
        for level in 0.. {
            if level == self.edge.len() {
                self.edge.push((0, Vec::new()));
            }
            let Some((index, bytes)) = self.edge.get_mut(level) else {
                return;
            };
            bytes.extend_from_slice(&hash);
            self.touched.insert(level);
            let Some(above) = tile_hash(bytes) else {
                return;
            };
            let id = TileId {
                level: u32::try_from(level).unwrap_or(u32::MAX),
                index: *index,
            };
            self.full.push((id, std::mem::take(bytes)));
            *index += 1;
            hash = above;
        }
    }

    /// How many leaves there are now.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Every tile that changed, in full.
    pub fn into_changed(self) -> Vec<(TileId, Vec<u8>)> {
        let mut changed = self.full;
        let edge = self.edge.into_iter().enumerate();
        changed.extend(
            edge.filter(|(level, (_, bytes))| self.touched.contains(level) && !bytes.is_empty())
                .map(|(level, (index, bytes))| {
                    let level = u32::try_from(level).unwrap_or(u32::MAX);
                    (TileId { level, index }, bytes)
                }),
        );
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::{consistency, inclusion, leaf_hash, verify_consistency, verify_inclusion};
    use proptest::prelude::*;

    fn leaf(n: u64) -> Hash {
        leaf_hash(&n.to_be_bytes())
    }

    /// Grows in steps, keeping what a store would keep.
    fn grown(steps: &[u64]) -> (u64, BTreeMap<TileId, Vec<u8>>) {
        let mut kept: BTreeMap<TileId, Vec<u8>> = BTreeMap::new();
        let mut size = 0;
        for step in steps {
            let edge = Growth::edge(size);
            let tiles = edge.iter().map(|id| (*id, kept[id].clone())).collect();
            let mut growth = Growth::from(size, &tiles).unwrap();
            (size..size + step).for_each(|n| growth.append(leaf(n)));
            size = growth.size();
            kept.extend(growth.into_changed());
        }
        (size, kept)
    }

    fn tree(size: u64) -> Tree {
        let mut tree = Tree::default();
        (0..size).for_each(|n| tree.append(leaf(n)));
        tree
    }

    #[test]
    fn the_tiles_of_seventy_thousand_leaves_are_those_of_the_standard() {
        let (size, kept) = grown(&[70_000]);
        let widths = |level| {
            let of = kept.iter().filter(move |(id, _)| id.level == level);
            of.map(|(id, bytes)| {
                assert_eq!(id.width(size), bytes.len() as u64 / 32);
                id.width(size)
            })
            .collect::<Vec<_>>()
        };
        let full = |count: usize| vec![256u64; count];
        assert_eq!(widths(0), [full(273), vec![112]].concat());
        assert_eq!(widths(1), [256, 17]);
        assert_eq!(widths(2), [1]);
    }

    #[test]
    fn a_proof_reads_two_tiles_a_level_at_most() {
        for (index, size) in [
            (0, 10_000_000),
            (9_999_999, 10_000_000),
            (4_567_890, 10_000_000),
        ] {
            let ranges = inclusion(index, size);
            assert!(Tiles::needed(&ranges).len() <= 6, "{index}");
            assert!(Tiles::needed(&consistency(index.max(1), size)).len() <= 6);
        }
    }

    #[test]
    fn a_missing_or_short_tile_is_said() {
        let (size, mut kept) = grown(&[600]);
        let last = TileId { level: 0, index: 2 };
        kept.get_mut(&last).unwrap().truncate(32 * 87);
        let tiles: Tiles = kept.clone().into_iter().collect();
        assert_eq!(tiles.hash(&(0..size)), Err(MissingTile(last)));
        assert_eq!(Growth::from(size, &tiles).unwrap_err(), MissingTile(last));
        kept.remove(&last);
        let tiles: Tiles = kept.into_iter().collect();
        assert_eq!(tiles.tree(size), Err(MissingTile(last)));
        assert_eq!(tiles.tree(512).unwrap(), tree(512));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever batches a ledger grew by, its tiles give the tree and proofs at every size.
        #[test]
        fn tiles_prove_what_the_tree_says(steps in prop::collection::vec(1u64..700, 1..5),
                                          one in any::<prop::sample::Index>(), two in any::<prop::sample::Index>()) {
            let (size, kept) = grown(&steps);
            let tiles: Tiles = kept.into_iter().collect();
            let (one, two) = (one.index(size as usize) as u64, two.index(size as usize) as u64);
            let (old, new) = (one.min(two) + 1, one.max(two) + 1);
            let (old_tree, new_tree) = (tree(old), tree(new));
            prop_assert_eq!(&tiles.tree(old).unwrap(), &old_tree);
            prop_assert_eq!(&tiles.tree(new).unwrap(), &new_tree);
            let hashes = |ranges: Vec<Range<u64>>| ranges.iter().map(|range| tiles.hash(range).unwrap())
                .collect::<Vec<_>>();
            let proof = hashes(consistency(old, new));
            prop_assert_eq!(
                verify_consistency((old, &old_tree.root()), (new, &new_tree.root()), &proof), Ok(()));
            let proof = hashes(inclusion(old - 1, new));
            prop_assert_eq!(verify_inclusion(&leaf(old - 1), old - 1, new, &proof, &new_tree.root()), Ok(()));
        }
    }
}
