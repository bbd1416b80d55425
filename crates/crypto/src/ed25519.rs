//! Ed25519 (RFC 8032): what signs the checkpoints of the ledger.
//!
//! **Forces.** Checkpoints are read by people and witnesses outside, for years; the tools that exist
//! read Ed25519 (C2SP signed-note). The key must not be one that signs mandates: who may mint must
//! not thereby be able to rewrite what was recorded. **Choice.** A key of its own, of this one
//! algorithm, stored as its 32-byte seed in an envelope.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use caracal_model::{Rng, Secret};
use zeroize::Zeroizing;

use crate::error::CryptoError;

/// A seed, and a public key.
const KEY_LEN: usize = 32;

/// A private key, ready to sign.
pub struct NoteKey {
    pair: Ed25519KeyPair,
    seed: Secret<Vec<u8>>,
    public: NoteVerifyKey,
}

impl fmt::Debug for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoteKey(..)")
    }
}

impl NoteKey {
    /// A new key.
    ///
    /// # Errors
    /// [`CryptoError::Primitive`] when the library refuses the seed.
    pub fn generate(rng: &dyn Rng) -> Result<Self, CryptoError> {
        let mut seed = Zeroizing::new([0u8; KEY_LEN]);
        rng.fill(&mut seed[..]);
        Self::from_seed(&seed[..])
    }

    /// A key as it was stored, opened from its envelope.
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`] when it has not 32 bytes, [`CryptoError::Primitive`] when the
    /// library refuses it.
    pub fn from_seed(seed: &[u8]) -> Result<Self, CryptoError> {
        if seed.len() != KEY_LEN {
            return Err(CryptoError::KeyLength {
                got: seed.len(),
                needs: "exactly 32",
            });
        }
        let failed = CryptoError::Primitive {
            doing: "preparing an Ed25519 key",
        };
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| failed.clone())?;
        let public = NoteVerifyKey::from_bytes(pair.public_key().as_ref()).ok_or(failed)?;
        Ok(Self {
            pair,
            seed: Secret::new(seed.to_vec()),
            public,
        })
    }

    /// The seed, to be sealed.
    pub fn seed(&self) -> Secret<Vec<u8>> {
        Secret::new(self.seed.expose().clone())
    }

    /// The public half.
    pub fn public(&self) -> NoteVerifyKey {
        self.public
    }

    /// 64 bytes.
    ///
    /// # Errors
    /// [`CryptoError::Primitive`] when the library cannot sign.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let signature = self.pair.try_sign(message);
        let signature = signature.map_err(|_| CryptoError::Primitive {
            doing: "signing with an Ed25519 key",
        })?;
        Ok(signature.as_ref().to_vec())
    }
}

/// A public key. It is public: it may be printed and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoteVerifyKey([u8; KEY_LEN]);

impl NoteVerifyKey {
    /// From its 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Whether this key's holder signed exactly this message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{hex_decode, hex_encode};
    use caracal_model::TestRng;

    /// RFC 8032 §7.1, test 2.
    #[test]
    fn the_vector_of_the_standard_is_reproduced() {
        let seed =
            hex_decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").unwrap();
        let key = NoteKey::from_seed(&seed).unwrap();
        assert_eq!(
            hex_encode(key.public().as_bytes()),
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        );
        let signature = key.sign(&[0x72]).unwrap();
        assert_eq!(
            hex_encode(&signature),
            concat!(
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da",
                "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
            )
        );
        assert!(key.public().verify(&[0x72], &signature));
    }

    #[test]
    fn only_the_very_message_and_key_verify() {
        let rng = TestRng::default();
        let (key, other) = (
            NoteKey::generate(&rng).unwrap(),
            NoteKey::generate(&rng).unwrap(),
        );
        let signature = key.sign(b"size 7").unwrap();
        assert!(key.public().verify(b"size 7", &signature));
        assert!(!key.public().verify(b"size 8", &signature));
        assert!(!other.public().verify(b"size 7", &signature));
        for at in 0..signature.len() {
            let mut changed = signature.clone();
            changed[at] ^= 1;
            assert!(!key.public().verify(b"size 7", &changed), "byte {at}");
        }
        assert!(!key.public().verify(b"size 7", &signature[..63]));
    }

    #[test]
    fn a_stored_seed_gives_the_same_key_and_is_not_printed() {
        let key = NoteKey::generate(&TestRng::default()).unwrap();
        let again = NoteKey::from_seed(key.seed().expose()).unwrap();
        assert_eq!(key.public(), again.public());
        assert_eq!(format!("{key:?}"), "NoteKey(..)");
        assert!(NoteKey::from_seed(&[1; 31]).is_err());
    }
}
