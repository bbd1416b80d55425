//! Of which keys checkpoints are believed, when a deployment has had more than one.
//!
//! **Forces.** Whoever verifies was given a key once, perhaps years ago. Keys are replaced, and a
//! file or an answer must not be able to say by itself which key is to be believed. **Choice.** A
//! checkpoint that tells of a change of keys is signed by the old one and by the new one. So who
//! knows one of them is told the other by it. What is only *named* so is verified as everything
//! else, but does not count as signed: whoever verifies decides whether to take the key for his own.
//! INVARIANT (replaced): what a key signs after its change proves nothing; a key that is stolen
//! later cannot continue the log.

use std::slice;

use crate::checkpoint::{Checkpoint, CheckpointError, Rotation};
use crate::note::{NoteError, Vkey};

/// Most changes that are held because the keys that signed them are not known yet.
const MOST_PENDING: usize = 64;

/// The keys that are known.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    trusted: Vec<Vkey>,
    named: Vec<Vkey>,
    changes: Vec<Change>,
    pending: Vec<String>,
}

/// A change of keys that was proven.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    origin: String,
    size: u64,
    from: Vkey,
}

/// A checkpoint and what it is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What it says.
    pub checkpoint: Checkpoint,
    /// The key that it is of, when that is only named by one that is trusted.
    pub named: Option<Vkey>,
}

impl From<Vec<Vkey>> for Keys {
    fn from(trusted: Vec<Vkey>) -> Self {
        Self {
            trusted,
            ..Self::default()
        }
    }
}

impl Keys {
    /// Those that are trusted. Without any, every checkpoint is believed.
    pub fn trusted(&self) -> &[Vkey] {
        &self.trusted
    }

    /// Opens a checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError`] when it is of none of the keys, or of one that had been replaced.
    pub fn open(&self, note: &str) -> Result<Opened, CheckpointError> {
        if self.trusted.is_empty() {
            let checkpoint = Checkpoint::unverified(note)?;
            return Ok(Opened {
                checkpoint,
                named: None,
            });
        }
        let opened = match Checkpoint::open(note, &self.trusted) {
            Ok(checkpoint) => Opened {
                checkpoint,
                named: None,
            },
            Err(
                unknown @ (CheckpointError::OtherLog | CheckpointError::Note(NoteError::OtherKey)),
            ) => self.open_named(note, unknown)?,
            Err(error) => return Err(error),
        };
        self.not_replaced(note, &opened.checkpoint)?;
        Ok(opened)
    }

    fn open_named(&self, note: &str, unknown: CheckpointError) -> Result<Opened, CheckpointError> {
        let checkpoint = Checkpoint::open(note, &self.named).map_err(|error| match error {
            CheckpointError::Note(NoteError::Signature) => error,
            _ => unknown,
        })?;
        let named = Checkpoint::signers(note, &self.named);
        Ok(Opened {
            checkpoint,
            named: named.first().map(|key| (*key).clone()),
        })
    }

    /// INVARIANT (replaced).
    fn not_replaced(&self, note: &str, opened: &Checkpoint) -> Result<(), CheckpointError> {
        let mut later = self
            .changes
            .iter()
            .filter(|change| change.origin == opened.origin && change.size < opened.size)
            .peekable();
        if later.peek().is_none() {
            return Ok(());
        }
        let ended = later.collect::<Vec<_>>();
        let known = [&self.trusted[..], &self.named[..]].concat();
        let mut at = 0;
        for signer in Checkpoint::signers(note, &known) {
            let signer = signer.of_log(&opened.origin);
            let end = ended
                .iter()
                .find(|change| Some(&change.from) == signer.as_ref());
            match end {
                Some(change) => at = change.size,
                None => return Ok(()),
            }
        }
        Err(CheckpointError::Replaced { at })
    }

    /// Takes the note of a change of keys: with one of them known, the other is. Notes come in any
    /// order; what nobody known has signed changes nothing.
    pub fn learn(&mut self, note: &str) {
        if self.trusted.is_empty() || self.pending.len() >= MOST_PENDING {
            return;
        }
        self.pending.push(note.to_owned());
        // Each that is learned may be what another was waiting for.
        loop {
            let learned = self.pending.iter().enumerate().find_map(|(place, note)| {
                let opened = self.open(note).ok()?;
                Some((place, opened.checkpoint))
            });
            let Some((place, checkpoint)) = learned else {
                return;
            };
            let note = self.pending.swap_remove(place);
            self.take(&note, checkpoint);
        }
    }

    fn take(&mut self, note: &str, checkpoint: Checkpoint) {
        let Checkpoint {
            origin,
            size,
            rotation,
            ..
        } = checkpoint;
        let Some(Rotation { from, to }) = rotation else {
            return;
        };
        let by = |key: &Vkey| Checkpoint::open(note, slice::from_ref(key)).is_ok();
        let (Some(old), true, true) = (from.of_log(&origin), by(&from), by(&to)) else {
            return;
        };
        for key in [&from, &to] {
            self.name(key, &origin);
        }
        let change = Change {
            origin,
            size,
            from: old,
        };
        if !self.changes.contains(&change) {
            self.changes.push(change);
        }
    }

    /// A key that a log names is one of that log, unless a trusted key stands for all of its name.
    fn name(&mut self, key: &Vkey, origin: &str) {
        let Some(of_log) = key.of_log(origin) else {
            return;
        };
        let same = |known: &Vkey| known.of_log(origin).as_ref() == Some(&of_log);
        if self.trusted.iter().chain(&self.named).any(same) {
            return;
        }
        let wide = |trusted: &Vkey| trusted.of_log(key.name()).is_some();
        let named = match self.trusted.iter().any(wide) {
            true => key.clone(),
            false => of_log,
        };
        self.named.push(named);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_crypto::NoteKey;

    const LOG: &str = "caracal/a1/z1";

    fn key(seed: u8) -> NoteKey {
        NoteKey::from_seed(&[seed; 32]).unwrap()
    }

    fn vkey(name: &str, seed: u8) -> Vkey {
        Vkey::new(name, key(seed).public()).unwrap()
    }

    fn all(seed: u8) -> Vkey {
        vkey("caracal/a1", seed)
    }

    fn checkpoint(size: u64) -> Checkpoint {
        Checkpoint {
            origin: LOG.to_owned(),
            size,
            root: [1; 32],
            chain_hash: None,
            at: None,
            rotation: None,
        }
    }

    fn note(size: u64, seed: u8) -> String {
        checkpoint(size).sign([&key(seed)]).unwrap()
    }

    fn change(size: u64, from: u8, to: u8) -> String {
        let rotation = Some(Rotation {
            from: all(from),
            to: all(to),
        });
        let changing = Checkpoint {
            rotation,
            ..checkpoint(size)
        };
        changing.sign([&key(from), &key(to)]).unwrap()
    }

    fn named(keys: &Keys, note: &str) -> Option<Vkey> {
        keys.open(note).unwrap().named
    }

    #[test]
    fn who_trusts_one_key_is_told_those_before_and_after_it() {
        let unknown = CheckpointError::Note(NoteError::OtherKey);
        for trusted in [1, 2, 3] {
            let mut keys = Keys::from(vec![all(trusted)]);
            if trusted != 3 {
                assert_eq!(keys.open(&note(25, 3)), Err(unknown));
            }
            // Whichever comes first.
            keys.learn(&change(20, 2, 3));
            keys.learn(&change(10, 1, 2));
            for (size, of) in [(5, 1), (15, 2), (25, 3)] {
                let expected = (of != trusted).then(|| all(of));
                assert_eq!(named(&keys, &note(size, of)), expected, "{trusted} {of}");
            }
        }
    }

    #[test]
    fn a_key_that_was_replaced_signs_nothing_after_that() {
        let mut keys = Keys::from(vec![all(1), all(2)]);
        assert!(keys.open(&note(11, 1)).is_ok());
        keys.learn(&change(10, 1, 2));
        assert_eq!(named(&keys, &change(10, 1, 2)), None);
        let late = keys.open(&note(11, 1));
        assert_eq!(late, Err(CheckpointError::Replaced { at: 10 }));
        assert!(keys.open(&note(11, 2)).is_ok());
        assert!(keys.open(&note(10, 1)).is_ok());
        let both = checkpoint(12).sign([&key(1), &key(2)]).unwrap();
        assert!(keys.open(&both).is_ok());
    }

    #[test]
    fn nobody_names_a_key_alone() {
        let rotation = |from, to| Rotation { from, to };
        let signed = |rotation, by: &[u8]| {
            let keys: Vec<_> = by.iter().map(|seed| key(*seed)).collect();
            let changing = Checkpoint {
                rotation: Some(rotation),
                ..checkpoint(10)
            };
            changing.sign(&keys).unwrap()
        };
        for (what, note_of_change) in [
            ("not by the old", signed(rotation(all(1), all(2)), &[2])),
            ("not by the new", signed(rotation(all(1), all(2)), &[1])),
            ("by strangers", signed(rotation(all(3), all(2)), &[3, 2])),
            (
                "of another log",
                signed(rotation(all(1), vkey("caracal/b1", 2)), &[1, 2]),
            ),
        ] {
            let mut keys = Keys::from(vec![all(1)]);
            keys.learn(&note_of_change);
            assert!(keys.open(&note(11, 2)).is_err(), "{what}");
        }
    }

    #[test]
    fn a_key_of_one_log_names_one_for_that_log_only() {
        let mut keys = Keys::from(vec![vkey(LOG, 1)]);
        keys.learn(&change(10, 1, 2));
        assert_eq!(named(&keys, &note(11, 2)), Some(vkey(LOG, 2)));
        let elsewhere = Checkpoint {
            origin: "caracal/a1/z2".to_owned(),
            ..checkpoint(11)
        };
        assert!(keys.open(&elsewhere.sign([&key(2)]).unwrap()).is_err());
    }

    #[test]
    fn without_keys_everything_is_believed_and_nothing_learned() {
        let mut keys = Keys::default();
        keys.learn(&change(10, 1, 2));
        assert_eq!(named(&keys, &note(11, 1)), None);
    }
}
