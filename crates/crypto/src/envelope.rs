//! Sealed secrets at rest: the CSS1 envelope (spec: sts §13, admin-api §14).
//!
//! ```text
//! "CSS1" | kek id 8 | nonce 12 | sealed data key 48 | nonce 12 | sealed value n+16
//! ```
//!
//! **Forces.** The key-encryption key (KEK) must be replaceable without a moment in which stored
//! secrets cannot be read; an envelope copied from one row to another must not open there; and a
//! KEK typed by hand must not protect anything.
//!
//! **Choice.** Each value has a data key of its own, sealed under the KEK, so random nonces never
//! meet under one key. The KEK's id routes to the current or the previous one. The associated data
//! (AAD) names the place that the value belongs to. Patterns are refused as KEK.

use std::fmt;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use caracal_model::{Rng, Secret};
use zeroize::Zeroizing;

use crate::digest::{hex_decode, hex_encode, sha256};
use crate::error::CryptoError;
use crate::mac::HmacKey;

const MAGIC: &[u8] = b"CSS1";
const DATA_KEY_AAD: &[u8] = b"caracal.css1.dek";
const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
const ID_LEN: usize = 8;

/// A key-encryption key.
pub struct Kek {
    id: [u8; ID_LEN],
    bytes: Zeroizing<[u8; KEY_LEN]>,
    cipher: LessSafeKey,
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kek({})", self.id())
    }
}

impl Kek {
    /// A key as settings carry it: exactly 32 bytes in hex, random.
    ///
    /// # Errors
    /// [`CryptoError::NotHex`], [`CryptoError::KeyLength`], [`CryptoError::WeakKey`].
    pub fn from_hex(text: &str) -> Result<Self, CryptoError> {
        let decoded = Zeroizing::new(hex_decode(text).map_err(|_| CryptoError::NotHex)?);
        let got = decoded.len();
        let bytes: [u8; KEY_LEN] =
            decoded
                .as_slice()
                .try_into()
                .map_err(|_| CryptoError::KeyLength {
                    got,
                    needs: "exactly 32",
                })?;
        let bytes = Zeroizing::new(bytes);
        if is_pattern(&bytes[..]) {
            return Err(CryptoError::WeakKey);
        }
        let digest = sha256(&bytes[..]);
        let id = digest.first_chunk().copied().unwrap_or_default();
        let cipher = cipher(&bytes[..])?;
        Ok(Self { id, bytes, cipher })
    }

    /// The key's id, in hex. It identifies the key and reveals nothing of it.
    pub fn id(&self) -> String {
        hex_encode(&self.id)
    }
}

/// A constant step from byte to byte (all equal, counting up or down), or two bytes in turn.
fn is_pattern(bytes: &[u8]) -> bool {
    let steps = || {
        bytes.windows(2).map(|pair| match pair {
            [one, two] => two.wrapping_sub(*one),
            _ => 0,
        })
    };
    let first = steps().next();
    let constant_step = steps().all(|step| Some(step) == first);
    let alternating = bytes
        .iter()
        .zip(bytes.iter().skip(2))
        .all(|(one, two)| one == two);
    constant_step || alternating
}

/// The KEK in use, and the one before it, which only opens.
#[derive(Debug)]
pub struct Keyring {
    current: Kek,
    previous: Option<Kek>,
}

impl Keyring {
    /// Seals with `current`, opens with either.
    pub fn new(current: Kek, previous: Option<Kek>) -> Self {
        Self { current, previous }
    }

    /// Seals a value for the place that `aad` names.
    ///
    /// # Errors
    /// [`CryptoError::Primitive`] when the library refuses.
    pub fn seal(&self, rng: &dyn Rng, aad: &str, plain: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut data_key = Zeroizing::new([0u8; KEY_LEN]);
        rng.fill(&mut data_key[..]);
        let length = MAGIC.len() + ID_LEN + 2 * (NONCE_LEN + TAG_LEN) + KEY_LEN + plain.len();
        let mut envelope = Vec::with_capacity(length);
        envelope.extend_from_slice(MAGIC);
        envelope.extend_from_slice(&self.current.id);
        append_sealed(
            &mut envelope,
            rng,
            &self.current.cipher,
            DATA_KEY_AAD,
            &data_key[..],
        )?;
        append_sealed(
            &mut envelope,
            rng,
            &cipher(&data_key[..])?,
            aad.as_bytes(),
            plain,
        )?;
        Ok(envelope)
    }

    /// Opens an envelope that was sealed for the place that `aad` names.
    ///
    /// # Errors
    /// [`CryptoError::NotAnEnvelope`], [`CryptoError::UnknownKek`], [`CryptoError::Unsealable`].
    pub fn open(&self, aad: &str, envelope: &[u8]) -> Result<Secret<Vec<u8>>, CryptoError> {
        let parts = Parts::of(envelope).ok_or(CryptoError::NotAnEnvelope)?;
        let kek = self.kek(parts.kek_id)?;
        let data_key = open_sealed(&kek.cipher, DATA_KEY_AAD, parts.key_nonce, parts.sealed_key)?;
        let cipher = cipher(data_key.expose())?;
        open_sealed(
            &cipher,
            aad.as_bytes(),
            parts.value_nonce,
            parts.sealed_value,
        )
    }

    /// Whether an envelope was sealed under the current key; the others wait for a re-seal.
    pub fn is_current(&self, envelope: &[u8]) -> bool {
        Parts::of(envelope).is_some_and(|parts| parts.kek_id == &self.current.id)
    }

    /// Whether one of the keys is the one that `prefix` names, the start of an envelope.
    pub fn knows(&self, prefix: &[u8]) -> bool {
        let rest = prefix.strip_prefix(MAGIC);
        let id = rest.and_then(|rest| rest.first_chunk());
        id.is_some_and(|id| self.kek(id).is_ok())
    }

    /// How every envelope under the current key starts.
    pub fn prefix(&self) -> Vec<u8> {
        [MAGIC, &self.current.id].concat()
    }

    /// A key for another purpose, named by the label: HMAC-SHA256 of the label under the current
    /// KEK.
    pub fn derive(&self, label: &str) -> HmacKey {
        derive(&self.current, label)
    }

    /// As [`Keyring::derive`], of the previous KEK: what was derived before a rotation.
    pub fn derive_previous(&self, label: &str) -> Option<HmacKey> {
        self.previous.as_ref().map(|kek| derive(kek, label))
    }

    fn kek(&self, id: &[u8; ID_LEN]) -> Result<&Kek, CryptoError> {
        [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|kek| kek.id == *id)
            .ok_or_else(|| CryptoError::UnknownKek {
                kek_id: hex_encode(id),
            })
    }
}

fn derive(kek: &Kek, label: &str) -> HmacKey {
    let key = HmacKey::from_bytes(Secret::new(kek.bytes.to_vec()));
    HmacKey::from_bytes(Secret::new(key.sign(label.as_bytes()).to_vec()))
}

/// An envelope, cut at its fixed places.
struct Parts<'a> {
    kek_id: &'a [u8; ID_LEN],
    key_nonce: &'a [u8; NONCE_LEN],
    sealed_key: &'a [u8; KEY_LEN + TAG_LEN],
    value_nonce: &'a [u8; NONCE_LEN],
    sealed_value: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(envelope: &'a [u8]) -> Option<Self> {
        let rest = envelope.strip_prefix(MAGIC)?;
        let (kek_id, rest) = rest.split_first_chunk()?;
        let (key_nonce, rest) = rest.split_first_chunk()?;
        let (sealed_key, rest) = rest.split_first_chunk()?;
        let (value_nonce, sealed_value) = rest.split_first_chunk()?;
        (sealed_value.len() >= TAG_LEN).then_some(Self {
            kek_id,
            key_nonce,
            sealed_key,
            value_nonce,
            sealed_value,
        })
    }
}

fn cipher(key: &[u8]) -> Result<LessSafeKey, CryptoError> {
    UnboundKey::new(&CHACHA20_POLY1305, key)
        .map(LessSafeKey::new)
        .map_err(|_| CryptoError::Primitive {
            doing: "preparing a cipher",
        })
}

fn append_sealed(
    envelope: &mut Vec<u8>,
    rng: &dyn Rng,
    cipher: &LessSafeKey,
    aad: &[u8],
    plain: &[u8],
) -> Result<(), CryptoError> {
    let mut nonce = [0u8; NONCE_LEN];
    rng.fill(&mut nonce);
    // Encrypted in place, so that no copy of the plaintext is left behind.
    let mut sealed = Zeroizing::new(plain.to_vec());
    let tag = cipher
        .seal_in_place_separate_tag(Nonce::from(&nonce), Aad::from(aad), &mut sealed)
        .map_err(|_| CryptoError::Primitive {
            doing: "sealing a secret",
        })?;
    envelope.extend_from_slice(&nonce);
    envelope.extend_from_slice(&sealed);
    envelope.extend_from_slice(tag.as_ref());
    Ok(())
}

fn open_sealed(
    cipher: &LessSafeKey,
    aad: &[u8],
    nonce: &[u8; NONCE_LEN],
    sealed: &[u8],
) -> Result<Secret<Vec<u8>>, CryptoError> {
    let mut opened = Zeroizing::new(sealed.to_vec());
    let plain = cipher
        .open_in_place(Nonce::from(nonce), Aad::from(aad), &mut opened)
        .map_err(|_| CryptoError::Unsealable)?;
    Ok(Secret::new(plain.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::TestRng;
    use proptest::prelude::*;

    const KEK: &str = "8f3d9a712c45e6b0d18f2a4c6e9b3d57a1c4f8020e6a9c3d5b7f1a2c4e6d8b90";
    const OTHER: &str = "0f3d9a712c45e6b0d18f2a4c6e9b3d57a1c4f8020e6a9c3d5b7f1a2c4e6d8b90";

    fn kek(hex: &str) -> Kek {
        Kek::from_hex(hex).unwrap()
    }

    fn ring() -> Keyring {
        Keyring::new(kek(KEK), None)
    }

    #[test]
    fn the_golden_envelope_opens() {
        let envelope = hex_decode(concat!(
            "435353318547798a706fba7297f14e4710dbb70cafae5284625e843ff8421f7c39a916393521998fb02c",
            "28cb8ed66bd59c3ee433fdb69dbe116f295b047f469dda4e0b18458de702ee430005bce2eb80fa7179eb",
            "c2f1703b332eb089df95e40689a592b90f696c8a10b80922d812515ec4db3ff067ccb578a016521c9e81",
            "5538",
        ))
        .unwrap();
        assert_eq!(kek(KEK).id(), "8547798a706fba72");
        let opened = ring().open("caracal/test/golden", &envelope).unwrap();
        assert_eq!(opened.expose(), b"cross-language golden secret");
        assert!(ring().is_current(&envelope));
    }

    #[test]
    fn keys_with_a_pattern_are_refused() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        let wrapping: Vec<u8> = (0..32u8).map(|n| n.wrapping_add(240)).collect();
        for weak in [
            vec![0xab; 32],
            ascending,
            descending,
            wrapping,
            [1, 2].repeat(16),
        ] {
            assert_eq!(
                Kek::from_hex(&hex_encode(&weak)).unwrap_err(),
                CryptoError::WeakKey
            );
        }
        assert_eq!(Kek::from_hex("xy").unwrap_err(), CryptoError::NotHex);
        for length in [31, 33] {
            let error = Kek::from_hex(&hex_encode(&vec![7; length])).unwrap_err();
            assert!(matches!(error, CryptoError::KeyLength { got, .. } if got == length));
        }
    }

    #[test]
    fn the_previous_key_opens_but_does_not_seal() {
        let rng = TestRng::default();
        let old = ring().seal(&rng, "a", b"secret").unwrap();
        let rotated = Keyring::new(kek(OTHER), Some(kek(KEK)));
        assert_eq!(rotated.open("a", &old).unwrap().expose(), b"secret");
        assert!(!rotated.is_current(&old));
        let new = rotated.seal(&rng, "a", b"secret").unwrap();
        assert!(rotated.is_current(&new) && new.starts_with(&rotated.prefix()));
        let knows = |ring: &Keyring, envelope: &[u8]| ring.knows(&envelope[..12]);
        assert!(knows(&rotated, &old) && knows(&rotated, &new));
        assert!(knows(&ring(), &old) && !knows(&ring(), &new) && !ring().knows(b"CSS1"));
        let unknown = ring().open("a", &new).unwrap_err();
        assert_eq!(
            unknown,
            CryptoError::UnknownKek {
                kek_id: kek(OTHER).id()
            }
        );
    }

    #[test]
    fn an_envelope_does_not_open_in_another_place() {
        let sealed = ring()
            .seal(&TestRng::default(), "zones/z1/a", b"s")
            .unwrap();
        assert_eq!(
            ring().open("zones/z2/a", &sealed).unwrap_err(),
            CryptoError::Unsealable
        );
    }

    #[test]
    fn derived_keys_differ_by_label_and_by_key() {
        let keys = [
            ring().derive("a"),
            ring().derive("b"),
            Keyring::new(kek(OTHER), None).derive("a"),
        ];
        let codes: std::collections::HashSet<_> = keys.iter().map(|key| key.sign(b"m")).collect();
        assert_eq!(codes.len(), 3);
        let rotated = Keyring::new(kek(OTHER), Some(kek(KEK)));
        let previous = rotated.derive_previous("a").unwrap();
        assert_eq!(previous.sign(b"m"), ring().derive("a").sign(b"m"));
    }

    #[test]
    fn two_envelopes_of_one_value_differ() {
        let rng = TestRng::default();
        let one = ring().seal(&rng, "a", b"s").unwrap();
        assert_ne!(one, ring().seal(&rng, "a", b"s").unwrap());
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_and_nothing_else_does(
            plain in prop::collection::vec(any::<u8>(), 0..64), aad in "[a-z/]{0,16}",
            at in any::<prop::sample::Index>(), flip in 1u8..=255, cut in any::<prop::sample::Index>(),
        ) {
            let sealed = ring().seal(&TestRng::default(), &aad, &plain).unwrap();
            let opened = ring().open(&aad, &sealed).unwrap();
            prop_assert_eq!(opened.expose(), &plain);

            let mut changed = sealed.clone();
            changed[at.index(sealed.len())] ^= flip;
            prop_assert!(ring().open(&aad, &changed).is_err());
            prop_assert!(ring().open(&aad, &sealed[..cut.index(sealed.len())]).is_err());
            let elsewhere = aad + "x";
            prop_assert!(ring().open(&elsewhere, &sealed).is_err());
        }

        #[test]
        fn no_bytes_make_open_panic(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
            prop_assert!(ring().open("a", &bytes).is_err());
            let _ = ring().open("a", &[MAGIC, &bytes].concat());
        }
    }
}
