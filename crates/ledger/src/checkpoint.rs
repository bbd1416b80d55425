//! Checkpoints (C2SP tlog-checkpoint): what was signed of a zone's ledger at one size.
//!
//! ```text
//! caracal/9f2c61d04b7a1e38/01980000-…     the log: one for each zone; /~admin behind it for what
//!                                         administrators did, /~deployment/~admin outside of zones
//! 1200                                    events
//! <base64>                                root of the tree of these events
//! chain <hex>                             chain hash of event 1200
//! time 2026-05-21T12:00:00.000Z           when it was signed
//! rotated <vkey> <vkey>                   only where one key takes over from another
//! ```
//!
//! The checkpoint that says `rotated` is signed by both keys, so whoever trusts the first is told the
//! second by it; from there on the first signs nothing ([`crate::trust`]).
//!
//! Whoever keeps one of these where the operators of the deployment cannot reach it holds all events
//! up to its size fast. INVARIANT (one history): the deployment signs no checkpoint of which an
//! earlier one is not a beginning.

use caracal_crypto::digest::{base64_decode, base64_encode, hex_decode_array, hex_encode};
use caracal_crypto::{CryptoError, NoteKey};
use caracal_model::log::ADMIN;
use caracal_model::{LogId, LogKind, Timestamp, ZoneId};

use crate::chain::Head;
use crate::merkle::Hash;
use crate::note::{self, NoteError, Vkey};

/// What the line of a change of keys begins with.
pub const ROTATED: &str = "rotated";

/// A checkpoint is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Its signature.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The key that was given is for other logs.
    #[error("it is of another log than the key")]
    OtherLog,
    /// Its text.
    #[error("it is signed, but no checkpoint")]
    Text,
    /// It is larger than the checkpoint with which its key was replaced.
    #[error("its key was replaced with the checkpoint of {at} events")]
    Replaced {
        /// The size of that checkpoint.
        at: u64,
    },
}

/// One key takes over from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// What signed until here.
    pub from: Vkey,
    /// What signs from here on.
    pub to: Vkey,
}

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Names the log.
    pub origin: String,
    /// How many events.
    pub size: u64,
    /// Root of the tree of these events.
    pub root: Hash,
    /// Chain hash of the last of them; absent in checkpoints that others wrote.
    pub chain_hash: Option<Hash>,
    /// When it was signed; absent in checkpoints that others wrote.
    pub at: Option<Timestamp>,
    /// The change of keys that it tells of.
    pub rotation: Option<Rotation>,
}

/// In the name of a log, in the place of a zone.
const DEPLOYMENT: &str = "~deployment";

/// The name of a log.
pub fn origin(deployment: &str, log: &LogId) -> String {
    let zone = match log.zone().as_str() {
        "" => DEPLOYMENT,
        zone => zone,
    };
    match log.kind() {
        LogKind::Events => format!("{deployment}/{zone}"),
        LogKind::Admin => format!("{deployment}/{zone}{ADMIN}"),
    }
}

impl Checkpoint {
    /// The log, as its name says.
    pub fn log(&self) -> Option<LogId> {
        let admin = self.origin.strip_suffix(ADMIN);
        let (_, zone) = admin.unwrap_or(&self.origin).rsplit_once('/')?;
        match admin {
            Some(_) if zone == DEPLOYMENT => Some(LogId::admin(ZoneId::trusted(""))),
            Some(_) => ZoneId::parse(zone).ok().map(LogId::admin),
            None => ZoneId::parse(zone).ok().map(LogId::events),
        }
    }

    /// Where the chain is at this size, when it says so.
    pub fn head(&self) -> Option<Head> {
        let hash = hex_encode(&self.chain_hash?);
        Head::stored(self.size, &hash)
    }

    /// Signs it under the name of its log, with each of the keys; the note.
    ///
    /// # Errors
    /// [`CryptoError`] when the library cannot sign, or the log cannot be called so.
    pub fn sign<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k NoteKey>,
    ) -> Result<String, CryptoError> {
        note::sign(&self.text(), &self.origin, keys)
    }

    fn text(&self) -> String {
        let root = base64_encode(&self.root);
        let mut text = format!("{}\n{}\n{root}\n", self.origin, self.size);
        if let Some(hash) = &self.chain_hash {
            text.push_str(&format!("chain {}\n", hex_encode(hash)));
        }
        if let Some(at) = self.at {
            text.push_str(&format!("time {}\n", at.iso_millis()));
        }
        if let Some(Rotation { from, to }) = &self.rotation {
            text.push_str(&format!("{ROTATED} {from} {to}\n"));
        }
        text
    }

    /// Opens a note that one of the keys has signed. Each is that of the log, or of the whole
    /// deployment ([`Vkey::of_log`]).
    ///
    /// # Errors
    /// [`CheckpointError`], also when one of them has signed and another's signature is wrong.
    pub fn open(note: &str, keys: &[Vkey]) -> Result<Self, CheckpointError> {
        let claimed = Self::unverified(note)?;
        let mut opened = Err(CheckpointError::OtherLog);
        for key in keys.iter().filter_map(|key| key.of_log(&claimed.origin)) {
            match note::verify(note, &key) {
                Ok(_) => opened = Ok(()),
                Err(NoteError::OtherKey) => {
                    opened = opened.or(Err(NoteError::OtherKey.into()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        opened.map(|()| claimed)
    }

    /// Which of the keys have signed a note.
    pub fn signers<'k>(note: &str, keys: &'k [Vkey]) -> Vec<&'k Vkey> {
        let by = |key: &&Vkey| Self::open(note, std::slice::from_ref(*key)).is_ok();
        keys.iter().filter(by).collect()
    }

    /// What a note says, whoever signed it: for telling people, not for deciding.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn unverified(note: &str) -> Result<Self, CheckpointError> {
        Self::parse(note::text(note)?).ok_or(CheckpointError::Text)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let origin = lines.next().filter(|origin| !origin.is_empty())?;
        let size = lines.next()?;
        let parsed: u64 = size.parse().ok()?;
        let root = base64_decode(lines.next()?).ok()?;
        let mut checkpoint = Self {
            origin: origin.to_owned(),
            // One size has one text.
            size: (parsed.to_string() == size).then_some(parsed)?,
            root: root.try_into().ok()?,
            chain_hash: None,
            at: None,
            rotation: None,
        };
        for line in lines {
            match line.split_once(' ') {
                Some(("chain", hash)) if checkpoint.chain_hash.is_none() => {
                    checkpoint.chain_hash = Some(hex_decode_array(hash)?);
                }
                Some(("time", at)) if checkpoint.at.is_none() => {
                    checkpoint.at = Some(Timestamp::parse_rfc3339(at).ok()?);
                }
                Some((ROTATED, keys)) if checkpoint.rotation.is_none() => {
                    let (from, to) = keys.split_once(' ')?;
                    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
                    checkpoint.rotation = Some(Rotation { from, to });
                }
                _ if line.is_empty() => return None,
                _ => {}
            }
        }
        Some(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> NoteKey {
        NoteKey::from_seed(&[7; 32]).unwrap()
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            origin: origin("caracal/a1", &LogId::events(ZoneId::trusted("z1"))),
            size: 1200,
            root: [1; 32],
            chain_hash: Some([2; 32]),
            at: Some(Timestamp::parse_rfc3339("2026-05-21T12:00:00.123Z").unwrap()),
            rotation: None,
        }
    }

    fn open(note: &str, vkey: Vkey) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open(note, &[vkey])
    }

    #[test]
    fn a_checkpoint_has_this_text_and_is_read_back() {
        let note = checkpoint().sign([&key()]).unwrap();
        insta::assert_snapshot!(note, @r"
        caracal/a1/z1
        1200
        AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
        chain 0202020202020202020202020202020202020202020202020202020202020202
        time 2026-05-21T12:00:00.123Z

        — caracal/a1/z1 MkzVcUd2tk0v4YCTSRlOJvTLu0+els9LH1pCTOXZBSs0b1CTuwii+OAmA04L3JEbafyfZn/n7aix4bpUkkOtGWa4vww=
        ");
        for name in ["caracal/a1", "caracal/a1/z1"] {
            let vkey = Vkey::new(name, key().public()).unwrap();
            assert_eq!(open(&note, vkey), Ok(checkpoint()), "{name}");
        }
        let [z1, none] = ["z1", ""].map(ZoneId::trusted);
        for (log, name) in [
            (LogId::events(z1.clone()), "caracal/a1/z1"),
            (LogId::admin(z1), "caracal/a1/z1/~admin"),
            (LogId::admin(none), "caracal/a1/~deployment/~admin"),
        ] {
            let origin = origin("caracal/a1", &log);
            assert_eq!(origin, name);
            let named = Checkpoint {
                origin,
                ..checkpoint()
            };
            assert_eq!(named.log(), Some(log));
        }
        assert_eq!(checkpoint().head().unwrap().seq(), 1200);
    }

    #[test]
    fn a_change_of_keys_is_signed_by_both_and_read_back() {
        let next = NoteKey::from_seed(&[8; 32]).unwrap();
        let vkeys = [&key(), &next].map(|key| Vkey::new("caracal/a1", key.public()).unwrap());
        let [from, to] = vkeys.clone();
        let changing = Checkpoint {
            rotation: Some(Rotation { from, to }),
            ..checkpoint()
        };
        let note = changing.sign([&key(), &next]).unwrap();
        for vkey in &vkeys {
            assert_eq!(open(&note, vkey.clone()), Ok(changing.clone()));
        }
        assert_eq!(Checkpoint::open(&note, &vkeys), Ok(changing.clone()));
        assert_eq!(Checkpoint::signers(&note, &vkeys).len(), 2);
        // A wrong signature of a known key counts, whatever stands beside it.
        let other = changing.sign([&next]).unwrap();
        let forged = checkpoint().sign([&key()]).unwrap();
        let (_, forged) = forged.split_once("\n\n").unwrap();
        let mixed = format!("{other}{forged}");
        assert_eq!(open(&mixed, vkeys[1].clone()), Ok(changing));
        let wrong = Err(CheckpointError::Note(NoteError::Signature));
        assert_eq!(Checkpoint::open(&mixed, &vkeys), wrong);
    }

    #[test]
    fn what_others_wrote_is_read_without_what_only_we_write() {
        let text =
            "example.com/log\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\nmore of theirs\n";
        let note = note::sign(text, "example.com/log", [&key()]).unwrap();
        let vkey = Vkey::new("example.com/log", key().public()).unwrap();
        let read = open(&note, vkey).unwrap();
        assert_eq!((read.size, read.chain_hash, read.at), (0, None, None));
    }

    #[test]
    fn another_log_or_another_key_is_refused() {
        let note = checkpoint().sign([&key()]).unwrap();
        let of_zone = Vkey::new("caracal/a1/z2", key().public()).unwrap();
        assert_eq!(open(&note, of_zone), Err(CheckpointError::OtherLog));
        let other = NoteKey::from_seed(&[8; 32]).unwrap();
        let other = Vkey::new("caracal/a1", other.public()).unwrap();
        let refused = open(&note, other);
        assert_eq!(refused, Err(CheckpointError::Note(NoteError::OtherKey)));
    }

    #[test]
    fn signed_text_that_is_no_checkpoint_is_refused() {
        let root = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let vkey = Vkey::new("log", key().public()).unwrap();
        for bad in [
            "log\n".to_owned(),
            "log\n1\n".to_owned(),
            format!("log\n01\n{root}\n"),
            format!("log\n+1\n{root}\n"),
            format!("log\n-1\n{root}\n"),
            format!("log\n1\n{}\n", &root[..40]),
            format!("log\n1\n{root}\nchain 00\n"),
            format!("log\n1\n{root}\ntime noon\n"),
            format!("log\n1\n{root}\n\nmore\n"),
            format!("log\n1\n{root}\nrotated {vkey}\n"),
            format!("log\n1\n{root}\nrotated {vkey} log+00000000+AA\n"),
        ] {
            let note = note::sign(&bad, "log", [&key()]).unwrap();
            let opened = open(&note, vkey.clone());
            assert_eq!(opened, Err(CheckpointError::Text), "{bad}");
        }
    }
}
