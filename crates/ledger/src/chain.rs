//! The chain of a zone: each event is bound to everything before it.
//!
//! ```text
//! content_sha256 = SHA-256(exact text of the event)
//! chain_hash     = SHA-256(0x01 | previous chain_hash | seq as u64, big endian | content_sha256)
//! chain_hmac     = HMAC-SHA256(AUDIT_HMAC_KEY, chain_hash)
//! ```
//!
//! The first event has seq 1 and 32 zero bytes before it. Sequence numbers have no gaps.
//!
//! **Forces.** An edit, a loss, an insertion or a new order must show; verifying must work page by
//! page, from a stored position; and whoever can write the table must not be able to mend the chain
//! afterwards.
//!
//! **Choice.** The hash binds order and content; only the HMAC binds the author: without the key, a
//! tail that was rewritten consistently shows only against a head that was kept elsewhere
//! ([`Verifier::ends_at`]).

use caracal_crypto::HmacKey;
use caracal_crypto::digest::{hex_decode_array, hex_encode, sha256, sha256_of};

/// Sets chain hashes apart from every other hash that we make.
const LINK: u8 = 1;

/// How far a chain goes: its last link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    seq: u64,
    hash: [u8; 32],
}

impl Head {
    /// The chain without an event.
    pub const GENESIS: Self = Self {
        seq: 0,
        hash: [0; 32],
    };

    /// From a stored head; `None` when the hash is no SHA-256 in hex.
    pub fn stored(seq: u64, chain_hash: &str) -> Option<Self> {
        hex_decode_array(chain_hash).map(|hash| Self { seq, hash })
    }

    /// The sequence number of the last event; 0 when there is none.
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// The last chain hash, in hex.
    pub fn chain_hash(&self) -> String {
        hex_encode(&self.hash)
    }
}

/// What is stored beside an event. All hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its place, from 1.
    pub seq: u64,
    /// Digest of its text.
    pub content_sha256: String,
    /// Digest of everything up to here.
    pub chain_hash: String,
    /// Authorship; empty without a key.
    pub chain_hmac: String,
    head: Head,
}

impl Link {
    /// The head after this link.
    pub fn head(&self) -> &Head {
        &self.head
    }
}

/// Links an event's text to what is before it.
pub fn append(previous: Option<&Head>, wire: &str, key: Option<&HmacKey>) -> Link {
    append_digest(previous, &sha256(wire.as_bytes()), key)
}

/// As [`append`], for a text whose SHA-256 is known already.
pub fn append_digest(previous: Option<&Head>, content: &[u8; 32], key: Option<&HmacKey>) -> Link {
    let previous = previous.unwrap_or(&Head::GENESIS);
    let seq = previous.seq.saturating_add(1);
    let hash = sha256_of(&[
        &[LINK],
        &previous.hash[..],
        &seq.to_be_bytes()[..],
        &content[..],
    ]);
    Link {
        seq,
        content_sha256: hex_encode(content),
        chain_hash: hex_encode(&hash),
        chain_hmac: key.map(|key| key.sign_hex(&hash)).unwrap_or_default(),
        head: Head { seq, hash },
    }
}

/// A link as it was read back.
#[derive(Clone, Copy, Debug)]
pub struct StoredLink<'a> {
    /// Its place.
    pub seq: u64,
    /// The event's text.
    pub wire: &'a str,
    /// As stored.
    pub content_sha256: &'a str,
    /// As stored.
    pub chain_hash: &'a str,
    /// As stored.
    pub chain_hmac: &'a str,
}

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// Another sequence number follows than the next one.
    #[error("{found} was found in its place")]
    Gap {
        /// The sequence number that was found.
        found: u64,
    },
    /// The text is not the one that was linked.
    #[error("the event was changed")]
    Content,
    /// The link does not continue the one before it.
    #[error("the link does not continue the one before it")]
    Link,
    /// The link was not made with the key.
    #[error("the link was not made by the holder of the key")]
    Author,
    /// The chain ends before the head that was kept.
    #[error("the chain ends before it")]
    Truncated,
    /// The chain goes another way than the head that was kept.
    #[error("the chain does not lead to the head that was kept")]
    Head,
}

/// The first place where a chain does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chain is broken at {seq}: {why}")]
pub struct Broken {
    /// The first sequence number that cannot be trusted.
    pub seq: u64,
    /// What does not fit there.
    pub why: Why,
}

/// Verifies link by link, so that a caller can read page by page.
#[derive(Debug)]
pub struct Verifier<'k> {
    head: Head,
    key: Option<&'k HmacKey>,
}

impl<'k> Verifier<'k> {
    /// From the beginning, or from a head that was verified before. With a key, every link must
    /// carry its code.
    pub fn new(from: Option<&Head>, key: Option<&'k HmacKey>) -> Self {
        Self {
            head: from.cloned().unwrap_or_default(),
            key,
        }
    }

    /// How far it holds.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Checks the next link, in order of sequence numbers.
    ///
    /// # Errors
    /// [`Broken`]; the verifier stays at the last link that held.
    pub fn check(&mut self, stored: &StoredLink<'_>) -> Result<(), Broken> {
        let expected = append(Some(&self.head), stored.wire, None);
        let why = if stored.seq != expected.seq {
            Why::Gap { found: stored.seq }
        } else if stored.content_sha256 != expected.content_sha256 {
            Why::Content
        } else if stored.chain_hash != expected.chain_hash {
            Why::Link
        } else if !self.is_author(&expected.head, stored.chain_hmac) {
            Why::Author
        } else {
            self.head = expected.head;
            return Ok(());
        };
        Err(Broken {
            seq: expected.seq,
            why,
        })
    }

    fn is_author(&self, head: &Head, code: &str) -> bool {
        self.key.is_none_or(|key| key.verify_hex(&head.hash, code))
    }

    /// Whether what was checked ends exactly at a head that was kept elsewhere: shows a cut end and
    /// a tail that was rewritten.
    ///
    /// # Errors
    /// [`Broken`] at the first event that is missing, or at the kept head when the hashes differ.
    pub fn ends_at(&self, kept: &Head) -> Result<(), Broken> {
        if self.head.seq < kept.seq {
            return Err(Broken {
                seq: self.head.seq.saturating_add(1),
                why: Why::Truncated,
            });
        }
        if self.head == *kept {
            return Ok(());
        }
        Err(Broken {
            seq: kept.seq,
            why: Why::Head,
        })
    }
}

/// Verifies links that are at hand; answers with the head that they lead to.
///
/// # Errors
/// [`Broken`] at the first link that does not hold.
pub fn verify<'a>(
    links: impl IntoIterator<Item = StoredLink<'a>>,
    from: Option<&Head>,
    key: Option<&HmacKey>,
) -> Result<Head, Broken> {
    let mut verifier = Verifier::new(from, key);
    for link in links {
        verifier.check(&link)?;
    }
    Ok(verifier.head)
}

#[cfg(test)]
mod tests;
