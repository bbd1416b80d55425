//! The Merkle tree over the events of a zone (RFC 6962 §2.1; algorithms of RFC 9162 §2.1.3, §2.1.4).
//!
//! ```text
//! leaf      = SHA-256(0x00 | exact text of the event)
//! node      = SHA-256(0x01 | left | right)
//! no leaves = SHA-256()
//! ```
//!
//! The event with seq `n` is leaf `n - 1`.
//!
//! **Forces.** A chain proves an event only together with everything that follows it. An auditor
//! wants to check one event, or that last year's ledger is a beginning of this year's, without
//! reading either. **Choice.** The tree of Certificate Transparency, unchanged: the proofs have
//! logarithmic size and others have tools for them. A leaf is the very text that the chain hashes,
//! so tree and chain commit to the same bytes; the chain hash is no part of it, so a receipt needs
//! nothing but the event.
//!
//! Ranges of leaves are half open and start where a subtree of the tree does.

use std::ops::Range;

use caracal_crypto::digest::{sha256, sha256_of};

/// A hash of the tree.
pub type Hash = [u8; 32];

const LEAF: u8 = 0;
const NODE: u8 = 1;

/// The hash of one event's exact text.
pub fn leaf_hash(wire: &[u8]) -> Hash {
    sha256_of(&[&[LEAF], wire])
}

/// The hash over two subtrees.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256_of(&[&[NODE], &left[..], &right[..]])
}

/// The hash over neighbours, the first of them the largest: how every subtree that is not full is
/// made of full ones.
fn join(peaks: &[Hash]) -> Hash {
    let joined = peaks
        .iter()
        .rev()
        .copied()
        .reduce(|right, left| node_hash(&left, &right));
    joined.unwrap_or_else(|| sha256(b""))
}

/// A tree as far as appending and its root need it: one hash for each bit of its size that is set
/// (a compact range).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// Full subtrees from left to right, each smaller than the one before.
    peaks: Vec<Hash>,
}

impl Tree {
    /// A tree that was kept; `None` when it has another number of hashes than its size calls for.
    pub fn stored(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (usize::try_from(size.count_ones()) == Ok(peaks.len())).then_some(Self { size, peaks })
    }

    /// How many leaves it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its full subtrees from left to right.
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Adds a leaf on the right.
    pub fn append(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.peaks.pop() else { break };
            hash = node_hash(&left, &hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The hash that commits to every leaf and its place.
    pub fn root(&self) -> Hash {
        join(&self.peaks)
    }
}

/// A full subtree: the leaves `index << height .. (index + 1) << height`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// Levels above the leaves.
    pub height: u32,
    /// Place among the subtrees of its height, from 0.
    pub index: u64,
}

/// The full subtrees that a range is made of, from left to right.
pub fn nodes(range: &Range<u64>) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let height = (range.end - start).ilog2().min(start.trailing_zeros());
        nodes.push(Node {
            height,
            index: start >> height,
        });
        start += 1 << height;
    }
    nodes
}

/// The hash over a range, of the full subtrees that [`nodes`] gives.
pub fn range_hash(hashes: &[Hash]) -> Hash {
    join(hashes)
}

/// The largest power of two below `n`, which is at least 2.
fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// The ranges whose hashes prove that a leaf is in a tree, from the leaf up. Empty when the tree
/// has no such leaf, and when it has only that one.
pub fn inclusion(index: u64, size: u64) -> Vec<Range<u64>> {
    let mut siblings = Vec::new();
    let (mut start, mut end) = (0, size);
    while index < size && end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            siblings.push(middle..end);
            end = middle;
        } else {
            siblings.push(start..middle);
            start = middle;
        }
    }
    siblings.reverse();
    siblings
}

/// The ranges whose hashes prove that a tree of `old` leaves is a beginning of one of `new`. Empty
/// unless `0 < old < new`.
pub fn consistency(old: u64, new: u64) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    if old == 0 || old >= new {
        return parts;
    }
    let (mut start, mut end) = (0, new);
    // While the old tree fills the subtree from its start, whoever verifies knows its hash.
    let mut known = true;
    while end != old {
        let middle = start + split(end - start);
        if old <= middle {
            parts.push(middle..end);
            end = middle;
        } else {
            parts.push(start..middle);
            start = middle;
            known = false;
        }
    }
    if !known {
        parts.push(start..end);
    }
    parts.reverse();
    parts
}

/// A proof does not prove what it is given for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// It has too few or too many hashes, or the sizes are impossible.
    #[error("the proof has the wrong length for these sizes")]
    Shape,
    /// It leads to another root.
    #[error("the proof leads to another root")]
    Root,
}

/// Verifies that a leaf is at this place of the tree with this root (RFC 9162 §2.1.3.2).
///
/// # Errors
/// [`ProofError`].
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofError> {
    let mut last = size.checked_sub(1).ok_or(ProofError::Shape)?;
    let mut at = index;
    if at > last {
        return Err(ProofError::Shape);
    }
    let mut hash = *leaf;
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::Shape);
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(sibling, &hash);
            (at, last) = climb(at, last);
        } else {
            hash = node_hash(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    finish(last, hash == *root)
}

/// Verifies that the tree with `old_root` is a beginning of the one with `new_root` (RFC 9162
/// §2.1.4.2). The tree without leaves is a beginning of every tree.
///
/// # Errors
/// [`ProofError`].
pub fn verify_consistency(
    (old, old_root): (u64, &Hash),
    (new, new_root): (u64, &Hash),
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::Shape);
    }
    if old == new || old == 0 {
        let same = if old == new {
            old_root == new_root
        } else {
            *old_root == join(&[])
        };
        return match proof {
            [] if same => Ok(()),
            [] => Err(ProofError::Root),
            _ => Err(ProofError::Shape),
        };
    }
    let (first, rest) = if old.is_power_of_two() {
        (old_root, proof)
    } else {
        proof.split_first().ok_or(ProofError::Shape)?
    };
    if rest.is_empty() {
        return Err(ProofError::Shape);
    }
    let skipped = (old - 1).trailing_ones();
    let (mut at, mut last) = ((old - 1) >> skipped, (new - 1) >> skipped);
    let (mut old_hash, mut new_hash) = (*first, *first);
    for part in rest {
        if last == 0 {
            return Err(ProofError::Shape);
        }
        if at & 1 == 1 || at == last {
            old_hash = node_hash(part, &old_hash);
            new_hash = node_hash(part, &new_hash);
            (at, last) = climb(at, last);
        } else {
            new_hash = node_hash(&new_hash, part);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    finish(last, old_hash == *old_root && new_hash == *new_root)
}

/// Past the levels on which the path has no sibling.
fn climb(at: u64, last: u64) -> (u64, u64) {
    let levels = if at == 0 { 0 } else { at.trailing_zeros() };
    (at >> levels, last >> levels)
}

fn finish(last: u64, fits: bool) -> Result<(), ProofError> {
    match (last, fits) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(ProofError::Shape),
    }
}

#[cfg(test)]
mod tests;
