//! Is this the ledger that was signed? Verification of one zone, event by event, against the chain
//! and against every checkpoint that is known, wherever it was kept.
//!
//! **Forces.** The chain names the very event that was changed, but who can write the rows can also
//! mend the chain behind it (the key of its codes stays inside the deployment). A checkpoint cannot
//! be mended, but says only that something before it is different. **Choice.** Both, in one pass:
//! the chain finds the place where it can, and a checkpoint that does not fit puts the place between
//! itself and the last one that did. So checkpoints that are made often also locate well.
//!
//! Events that retention has dropped are represented by their [`Floor`]: the head of the chain and
//! the full subtrees there. It proves nothing by itself; the first checkpoint above it does.

use std::collections::BTreeMap;

use caracal_crypto::HmacKey;
use caracal_crypto::digest::hex_decode_array;
use serde::{Deserialize, Serialize};

use crate::chain::{Broken, Head, StoredLink, Verifier, Why};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::merkle::{Hash, Tree, leaf_hash, verify_consistency};
use crate::note::Vkey;
use crate::receipt::{decode, encode};
use crate::trust::Opened;

/// What does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The chain.
    #[error("{0}")]
    Chain(Why),
    /// The chain holds, but the columns that reads go by say something else than the text.
    #[error("its columns do not say what its text says")]
    Columns,
    /// The events up to `size` are not those of which the checkpoint of this size was made; up to
    /// the event before this one they are.
    #[error("from here to event {size} something is not what was signed")]
    Signed {
        /// The size of the checkpoint.
        size: u64,
    },
    /// A checkpoint of more events than there are.
    #[error("the ledger ends before it, and a checkpoint of {size} events was signed")]
    Cut {
        /// The size of the checkpoint.
        size: u64,
    },
    /// The events of a checkpoint are no longer kept, and nothing proves that what is kept continues
    /// them.
    #[error("nothing proves that the ledger continues the checkpoint of {size} events")]
    Unproven {
        /// The size of the checkpoint.
        size: u64,
    },
    /// What stands for the events that are no longer kept fits no tree.
    #[error("what stands for the events before it is not usable")]
    Floor,
    /// What is kept of the tree is not the tree of the events.
    #[error("the stored tree is not that of the events")]
    Tree,
    /// A note that is no checkpoint of this log.
    #[error("the checkpoint that ends with it: {0}")]
    Checkpoint(CheckpointError),
}

/// The first place where a ledger does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {seq}: {flaw}")]
pub struct Unsound {
    /// The first event that cannot be trusted.
    pub seq: u64,
    /// What does not hold there.
    pub flaw: Flaw,
}

impl From<Broken> for Unsound {
    fn from(broken: Broken) -> Self {
        Self {
            seq: broken.seq,
            flaw: Flaw::Chain(broken.why),
        }
    }
}

/// What stands for the events up to `size` when they are no longer kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// How many events there were.
    pub size: u64,
    /// Chain hash of the last of them, hex.
    pub chain_hash: String,
    /// The full subtrees over them from left to right, base64.
    pub tree: Vec<String>,
}

impl Floor {
    /// Of a chain and a tree of the same size.
    pub fn new(head: &Head, tree: &Tree) -> Self {
        Self {
            size: head.seq(),
            chain_hash: head.chain_hash(),
            tree: encode(tree.peaks()),
        }
    }

    fn open(&self) -> Option<(Head, Tree)> {
        let head = Head::stored(self.size, &self.chain_hash)?;
        let tree = Tree::stored(self.size, decode(&self.tree)?)?;
        Some((head, tree))
    }
}

/// A checkpoint, and how it is proven when its events are no longer kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What was signed.
    pub checkpoint: Checkpoint,
    /// Consistency with the tree at the floor.
    pub proof: Option<Vec<Hash>>,
    /// The key that it is of, when that is only named by one that is trusted.
    pub named: Option<Vkey>,
}

impl From<Checkpoint> for Kept {
    fn from(checkpoint: Checkpoint) -> Self {
        Self {
            checkpoint,
            proof: None,
            named: None,
        }
    }
}

impl Kept {
    /// What was opened, with its proof.
    pub fn of(opened: Opened, proof: Option<Vec<Hash>>) -> Self {
        Self {
            checkpoint: opened.checkpoint,
            proof,
            named: opened.named,
        }
    }
}

/// What a ledger holds of a key that is not trusted, but named by one that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The key.
    pub key: Vkey,
    /// The size of its largest checkpoint.
    pub size: u64,
    /// With how many of its checkpoints the ledger agrees.
    pub checkpoints: u64,
}

/// A ledger that holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sound {
    /// How far it goes.
    pub head: Head,
    /// How many of its first events are no longer kept.
    pub floor: u64,
    /// The largest checkpoint that it agrees with.
    pub signed: Option<Checkpoint>,
    /// With how many checkpoints it agrees.
    pub checkpoints: u64,
    /// What else it agrees with, and which keys it would take to count that as signed.
    pub named: Vec<Named>,
}

/// Verifies one zone from its floor on.
#[derive(Debug)]
pub struct History<'k> {
    chain: Verifier<'k>,
    tree: Tree,
    floor: (u64, Hash),
    /// Checkpoints above what was read, by size.
    waiting: BTreeMap<u64, Vec<Kept>>,
    /// Heads above what was read, by place.
    heads: BTreeMap<u64, Head>,
    /// Checkpoints below the floor, from elsewhere: the ledger's own must prove them.
    below: Vec<Kept>,
    /// Roots below the floor that are proven.
    proven: BTreeMap<u64, Hash>,
    /// The last place up to which a checkpoint has fitted.
    good: u64,
    sound: Sound,
}

impl<'k> History<'k> {
    /// From the floor, or from the first event. With a key, every link must carry its code.
    ///
    /// # Errors
    /// [`Flaw::Floor`].
    pub fn new(floor: Option<&Floor>, key: Option<&'k HmacKey>) -> Result<Self, Unsound> {
        let (head, tree) = match floor {
            None => (Head::GENESIS, Tree::default()),
            Some(floor) => floor.open().ok_or(Unsound {
                seq: floor.size,
                flaw: Flaw::Floor,
            })?,
        };
        let mut history = Self::from(&head, tree, key);
        history.sound.floor = history.size();
        Ok(history)
    }

    /// From a head that was verified before, for the chain alone.
    pub fn after(head: &Head, key: Option<&'k HmacKey>) -> Self {
        Self::from(head, Tree::default(), key)
    }

    /// From a head and a tree of the same size that were verified before.
    pub fn from(head: &Head, tree: Tree, key: Option<&'k HmacKey>) -> Self {
        Self {
            chain: Verifier::new(Some(head), key),
            floor: (tree.size(), tree.root()),
            good: 0,
            tree,
            waiting: BTreeMap::new(),
            heads: BTreeMap::new(),
            below: Vec::new(),
            proven: BTreeMap::new(),
            sound: Sound::default(),
        }
    }

    /// How many events were read, those below the floor included.
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// How far the chain holds.
    pub fn head(&self) -> &Head {
        self.chain.head()
    }

    /// A checkpoint to agree with: all of them before the events that they cover.
    ///
    /// # Errors
    /// [`Unsound`] when the ledger can already be seen not to.
    pub fn expect(&mut self, kept: Kept) -> Result<(), Unsound> {
        let size = kept.checkpoint.size;
        let (floor, floor_root) = &self.floor;
        if size > self.tree.size() {
            self.waiting.entry(size).or_default().push(kept);
            return Ok(());
        }
        if size == self.tree.size() {
            return self.compare(kept);
        }
        if size >= *floor {
            // It came after events that it covers, so the tree at its size is no longer at hand.
            return Err(self.unsound(Flaw::Unproven { size }));
        }
        let Some(proof) = &kept.proof else {
            self.below.push(kept);
            return Ok(());
        };
        let root = kept.checkpoint.root;
        verify_consistency((size, &root), (*floor, floor_root), proof)
            .map_err(|_| self.unsound(Flaw::Unproven { size }))?;
        self.proven.insert(size, root);
        self.fits(kept);
        Ok(())
    }

    /// A head that was kept, to lead through: before the events that it covers.
    ///
    /// # Errors
    /// [`Unsound`] when the chain can already be seen not to.
    pub fn lead_through(&mut self, head: Head) -> Result<(), Unsound> {
        let broken = |seq, why| Unsound {
            seq,
            flaw: Flaw::Chain(why),
        };
        let size = self.tree.size();
        if head.seq() < size {
            let size = head.seq();
            return Err(self.unsound(Flaw::Unproven { size }));
        }
        if head.seq() == size {
            let same = head == *self.chain.head();
            return if same {
                Ok(())
            } else {
                Err(broken(size, Why::Head))
            };
        }
        match self.heads.insert(head.seq(), head.clone()) {
            Some(other) if other != head => Err(broken(head.seq(), Why::Head)),
            _ => Ok(()),
        }
    }

    /// The next event; answers with its leaf.
    ///
    /// # Errors
    /// [`Unsound`].
    pub fn check(&mut self, link: &StoredLink<'_>) -> Result<Hash, Unsound> {
        self.chain.check(link)?;
        let leaf = leaf_hash(link.wire.as_bytes());
        self.tree.append(leaf);
        if let Some(head) = self.heads.remove(&self.tree.size()) {
            self.lead_through(head)?;
        }
        for kept in self.waiting.remove(&self.tree.size()).unwrap_or_default() {
            self.compare(kept)?;
        }
        Ok(leaf)
    }

    fn compare(&mut self, kept: Kept) -> Result<(), Unsound> {
        let checkpoint = &kept.checkpoint;
        let size = checkpoint.size;
        if checkpoint.root != self.tree.root() {
            return Err(self.unsound(Flaw::Signed { size }));
        }
        let other = |head: &Head| head != self.chain.head();
        if size > 0 && checkpoint.head().as_ref().is_some_and(other) {
            return Err(Unsound {
                seq: size,
                flaw: Flaw::Chain(Why::Head),
            });
        }
        self.fits(kept);
        Ok(())
    }

    fn fits(&mut self, kept: Kept) {
        let Kept {
            checkpoint, named, ..
        } = kept;
        if let Some(key) = named {
            return self.fits_named(key, checkpoint.size);
        }
        self.good = self.good.max(checkpoint.size);
        self.sound.checkpoints += 1;
        let larger = |signed: &Checkpoint| checkpoint.size >= signed.size;
        if self.sound.signed.as_ref().is_none_or(larger) {
            self.sound.signed = Some(checkpoint);
        }
    }

    fn fits_named(&mut self, key: Vkey, size: u64) {
        match self.sound.named.iter_mut().find(|of| of.key == key) {
            Some(of) => {
                of.size = of.size.max(size);
                of.checkpoints += 1;
            }
            None => self.sound.named.push(Named {
                key,
                size,
                checkpoints: 1,
            }),
        }
    }

    fn unsound(&self, flaw: Flaw) -> Unsound {
        Unsound {
            seq: self.good + 1,
            flaw,
        }
    }

    /// Whether what was read ends exactly at a head that was kept elsewhere.
    ///
    /// # Errors
    /// [`Unsound`] at the first event that is missing, or at the head when the hashes differ.
    pub fn ends_at(&self, head: &Head) -> Result<(), Unsound> {
        Ok(self.chain.ends_at(head)?)
    }

    /// After the last event: is that really the end?
    ///
    /// # Errors
    /// [`Unsound`] when a checkpoint covers more than there was, or nothing shows that the ledger
    /// continues one.
    pub fn finish(mut self) -> Result<Sound, Unsound> {
        if !self.heads.is_empty() {
            return Err(Unsound {
                seq: self.tree.size() + 1,
                flaw: Flaw::Chain(Why::Truncated),
            });
        }
        if let Some((size, _)) = self.waiting.pop_first() {
            return Err(Unsound {
                seq: self.tree.size() + 1,
                flaw: Flaw::Cut { size },
            });
        }
        for kept in std::mem::take(&mut self.below) {
            let size = kept.checkpoint.size;
            match self.proven.get(&size) {
                Some(root) if *root == kept.checkpoint.root => self.fits(kept),
                _ => {
                    return Err(Unsound {
                        seq: 1,
                        flaw: Flaw::Unproven { size },
                    });
                }
            }
        }
        self.sound.head = self.chain.head().clone();
        Ok(self.sound)
    }
}

impl Sound {
    /// One line: how far it goes, and how much of that is signed. Its entries are events, or what
    /// they are called in `entries`.
    pub fn told(&self, entries: &str) -> String {
        let (size, floor) = (self.head.seq(), self.floor);
        let kept = match floor {
            0 => String::new(),
            floor => format!(", the first {floor} no longer kept"),
        };
        let signed = match &self.signed {
            None => "none of them signed".to_owned(),
            Some(signed) if signed.size == size => "all of them signed".to_owned(),
            Some(signed) => format!("the first {} of them signed", signed.size),
        };
        format!("{size} {entries}{kept}, {signed}")
    }
}

impl std::fmt::Display for Sound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.told("events"))
    }
}

/// What a checkpoint of this ledger says, for signing.
pub fn checkpoint_of(origin: String, head: &Head, tree: &Tree) -> Checkpoint {
    Checkpoint {
        origin,
        size: tree.size(),
        root: tree.root(),
        chain_hash: hex_decode_array(&head.chain_hash()),
        at: None,
        rotation: None,
    }
}

#[cfg(test)]
mod tests;
