//! Receipts: proof that one event is in the ledger, and that one checkpoint is a beginning of
//! another. Each is one JSON object that verifies with the public key and nothing else.

use caracal_crypto::digest::{base64_decode, base64_encode};
use caracal_model::{LogId, LogKind};
use serde::{Deserialize, Serialize};

use crate::admin::AdminRecord;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::event::Event;
use crate::merkle::{Hash, ProofError, leaf_hash, verify_consistency, verify_inclusion};
use crate::note::Vkey;

/// A receipt proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// The checkpoint is not one of this key.
    #[error("the checkpoint: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// The event, at this place, is not in the tree that was signed; or one tree is not a beginning
    /// of the other.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The event is of another zone than the checkpoint.
    #[error("the event is of another zone than the checkpoint")]
    Zone,
    /// The two checkpoints are of different logs.
    #[error("the checkpoints are of different logs")]
    Logs,
    /// A hash of the proof is none.
    #[error("a hash of the proof is no SHA-256 in base64")]
    Encoding,
}

/// Hashes as they are written.
pub fn encode(proof: &[Hash]) -> Vec<String> {
    proof.iter().map(|hash| base64_encode(hash)).collect()
}

/// Hashes as they were written; `None` when one is no hash.
pub fn decode<S: AsRef<str>>(proof: &[S]) -> Option<Vec<Hash>> {
    proof
        .iter()
        .map(|text| base64_decode(text.as_ref()).ok()?.try_into().ok())
        .collect()
}

/// Whether a text is an entry of this log: an event of the zone, or a record of its administrators.
pub fn is_of(log: &LogId, text: &str) -> bool {
    match log.kind() {
        LogKind::Events => Event::parse(text).is_ok_and(|event| event.zone_id == *log.zone()),
        LogKind::Admin => AdminRecord::parse(text).is_some_and(|record| {
            let zone = record.zone_id.as_ref();
            zone.map_or("", |zone| zone.as_str()) == log.zone().as_str()
        }),
    }
}

/// Proof that an event is in the ledger, or a record in the admin audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The exact text of the event, or of the record.
    pub event: String,
    /// Its place in the tree: its `chain_seq` less one.
    pub leaf_index: u64,
    /// Hashes from the leaf up, base64.
    pub inclusion_proof: Vec<String>,
    /// The signed note.
    pub checkpoint: String,
}

impl Receipt {
    /// Whether the holder of one of the keys has signed a ledger that holds exactly this event at
    /// this place; the checkpoint that says so.
    ///
    /// # Errors
    /// [`ReceiptError`].
    pub fn verify(&self, keys: &[Vkey]) -> Result<Checkpoint, ReceiptError> {
        let checkpoint = Checkpoint::open(&self.checkpoint, keys)?;
        let proof = decode(&self.inclusion_proof).ok_or(ReceiptError::Encoding)?;
        let leaf = leaf_hash(self.event.as_bytes());
        let (size, root) = (checkpoint.size, &checkpoint.root);
        verify_inclusion(&leaf, self.leaf_index, size, &proof, root)?;
        let log = checkpoint.log();
        if !log.is_some_and(|log| is_of(&log, &self.event)) {
            return Err(ReceiptError::Zone);
        }
        Ok(checkpoint)
    }
}

/// Proof that one checkpoint is a beginning of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consistency {
    /// The smaller one, a signed note.
    pub from: String,
    /// The larger one, a signed note.
    pub to: String,
    /// Hashes, base64.
    pub consistency_proof: Vec<String>,
}

impl Consistency {
    /// Whether the later ledger begins with the earlier one; both checkpoints, each of one of the
    /// keys.
    ///
    /// # Errors
    /// [`ReceiptError`].
    pub fn verify(&self, keys: &[Vkey]) -> Result<(Checkpoint, Checkpoint), ReceiptError> {
        let from = Checkpoint::open(&self.from, keys)?;
        let to = Checkpoint::open(&self.to, keys)?;
        if from.origin != to.origin {
            return Err(ReceiptError::Logs);
        }
        let proof = decode(&self.consistency_proof).ok_or(ReceiptError::Encoding)?;
        verify_consistency((from.size, &from.root), (to.size, &to.root), &proof)?;
        Ok((from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::{Tree, node_hash};
    use caracal_crypto::NoteKey;
    use caracal_model::{EventId, Timestamp, ZoneId};

    fn wire(n: u32) -> String {
        let at = Timestamp::from_unix_seconds(1_790_000_000);
        let id = EventId::trusted(format!("e{n}"));
        let zone = ZoneId::trusted("z1");
        Event::new(id, zone, "token_exchange", "r", "allow", "complete", at).to_wire()
    }

    fn key() -> NoteKey {
        NoteKey::from_seed(&[7; 32]).unwrap()
    }

    fn vkeys() -> [Vkey; 1] {
        [Vkey::new("caracal/a1", key().public()).unwrap()]
    }

    fn note(zone: &str, events: u32) -> String {
        let mut tree = Tree::default();
        (0..events).for_each(|n| tree.append(leaf_hash(wire(n).as_bytes())));
        let checkpoint = Checkpoint {
            origin: format!("caracal/a1/{zone}"),
            size: tree.size(),
            root: tree.root(),
            chain_hash: None,
            at: None,
            rotation: None,
        };
        checkpoint.sign([&key()]).unwrap()
    }

    /// Event 1 of three.
    fn receipt() -> Receipt {
        let leaf = |n| leaf_hash(wire(n).as_bytes());
        Receipt {
            event: wire(1),
            leaf_index: 1,
            inclusion_proof: encode(&[leaf(0), leaf(2)]),
            checkpoint: note("z1", 3),
        }
    }

    #[test]
    fn a_receipt_verifies_with_the_public_key_alone() {
        let text = serde_json::to_string(&receipt()).unwrap();
        let read: Receipt = serde_json::from_str(&text).unwrap();
        assert_eq!(read.verify(&vkeys()).unwrap().size, 3);
    }

    #[test]
    fn whatever_is_changed_in_a_receipt_shows() {
        let with = |change: fn(&mut Receipt)| {
            let mut receipt = receipt();
            change(&mut receipt);
            receipt.verify(&vkeys()).unwrap_err()
        };
        let edit = |receipt: &mut Receipt| receipt.event = receipt.event.replace("allow", "deny");
        assert_eq!(with(edit), ReceiptError::Proof(ProofError::Root));
        assert_eq!(
            with(|receipt| receipt.leaf_index = 0),
            ReceiptError::Proof(ProofError::Root)
        );
        let shorter = |receipt: &mut Receipt| drop(receipt.inclusion_proof.pop());
        assert_eq!(with(shorter), ReceiptError::Proof(ProofError::Shape));
        let garbage = |receipt: &mut Receipt| receipt.inclusion_proof[0].push('x');
        assert_eq!(with(garbage), ReceiptError::Encoding);
        let other_size = |receipt: &mut Receipt| {
            receipt.checkpoint = receipt.checkpoint.replace("\n3\n", "\n4\n")
        };
        assert!(matches!(with(other_size), ReceiptError::Checkpoint(_)));
        let elsewhere = |receipt: &mut Receipt| receipt.checkpoint = note("z2", 3);
        assert_eq!(with(elsewhere), ReceiptError::Zone);
    }

    #[test]
    fn consistency_is_between_two_checkpoints_of_one_log() {
        let leaf = |n| leaf_hash(wire(n).as_bytes());
        let proof = encode(&[leaf(2), leaf(3), node_hash(&leaf(0), &leaf(1))]);
        let good = Consistency {
            from: note("z1", 3),
            to: note("z1", 4),
            consistency_proof: proof,
        };
        let (from, to) = good.verify(&vkeys()).unwrap();
        assert_eq!((from.size, to.size), (3, 4));
        let swapped = Consistency {
            from: good.to.clone(),
            to: good.from.clone(),
            ..good.clone()
        };
        assert_eq!(
            swapped.verify(&vkeys()),
            Err(ReceiptError::Proof(ProofError::Shape))
        );
        let other = Consistency {
            to: note("z2", 4),
            ..good
        };
        assert_eq!(other.verify(&vkeys()), Err(ReceiptError::Logs));
    }
}
