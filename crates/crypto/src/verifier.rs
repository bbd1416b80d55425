//! How a client secret is stored (spec: sts §13; spec README, decision 22).
//!
//! **Forces.** A slow hash protects a secret that somebody could guess. Ours are 256 random bits:
//! nobody can, and 67 ms and 64 MiB for each check only lets callers exhaust us. But secrets that
//! people chose, or that came with an import, must stay behind Argon2id.
//!
//! **Choice.** Two stored forms, told apart by their prefix: `hs256$` is HMAC-SHA256 of the secret
//! under a pepper that is not in the database (a copy of the table cannot even be checked against);
//! `argon2id$` is the reference's form.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use caracal_model::secret::constant_time_eq;
use caracal_model::{Rng, Secret};

use crate::digest::{b64url_decode, b64url_encode};
use crate::error::CryptoError;
use crate::mac::HmacKey;

const KEYED: &str = "hs256$";
const ARGON2ID: &str = "argon2id$";
/// Memory in KiB, passes, lanes: those of the reference, so that imported hashes verify.
const COST: (u32, u32, u32) = (65_536, 3, 2);
const SALT_LEN: usize = 16;
const HASH_LEN: usize = 32;

/// What is stored of a client secret.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretVerifier {
    /// Of a secret that we generated.
    Keyed([u8; HASH_LEN]),
    /// Of a secret that somebody chose, or that was imported.
    Argon2id {
        /// 16 bytes from us; imports may have other lengths.
        salt: Vec<u8>,
        /// The derived bytes.
        hash: [u8; HASH_LEN],
    },
}

impl SecretVerifier {
    /// Of a secret made by [`generate_secret`].
    pub fn for_generated(pepper: &HmacKey, secret: &str) -> Self {
        Self::Keyed(pepper.sign(secret.as_bytes()))
    }

    /// Of a secret that somebody chose. Takes tens of milliseconds and 64 MiB: not on the runtime.
    ///
    /// # Errors
    /// [`CryptoError::Primitive`] when the secret cannot be hashed.
    pub fn argon2id(rng: &dyn Rng, secret: &str) -> Result<Self, CryptoError> {
        let mut salt = vec![0u8; SALT_LEN];
        rng.fill(&mut salt);
        let hash = stretch(secret, &salt).ok_or(CryptoError::Primitive {
            doing: "hashing a chosen secret",
        })?;
        Ok(Self::Argon2id { salt, hash })
    }

    /// From its stored text.
    ///
    /// # Errors
    /// [`CryptoError::UnknownVerifier`] when the text has neither form.
    pub fn parse(text: &str) -> Result<Self, CryptoError> {
        let parsed = if let Some(code) = text.strip_prefix(KEYED) {
            b64url_decode(code)
                .ok()
                .and_then(|code| code.try_into().ok())
                .map(Self::Keyed)
        } else if let Some(rest) = text.strip_prefix(ARGON2ID) {
            parse_argon2id(rest)
        } else {
            None
        };
        parsed.ok_or(CryptoError::UnknownVerifier)
    }

    /// Whether [`SecretVerifier::verify`] takes tens of milliseconds and 64 MiB, so that the caller
    /// must bound how many run at once, off the runtime.
    pub fn is_slow(&self) -> bool {
        matches!(self, Self::Argon2id { .. })
    }

    /// Whether this is the secret. The duration does not depend on where it differs.
    pub fn verify(&self, pepper: &HmacKey, secret: &str) -> bool {
        match self {
            Self::Keyed(code) => pepper.verify(secret.as_bytes(), code),
            Self::Argon2id { salt, hash } => {
                stretch(secret, salt).is_some_and(|derived| constant_time_eq(&derived, hash))
            }
        }
    }
}

impl fmt::Display for SecretVerifier {
    /// The stored text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keyed(code) => write!(f, "{KEYED}{}", b64url_encode(code)),
            Self::Argon2id { salt, hash } => {
                let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
                write!(f, "{ARGON2ID}{salt}${hash}")
            }
        }
    }
}

impl fmt::Debug for SecretVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_slow() {
            "SecretVerifier(argon2id)"
        } else {
            "SecretVerifier(hs256)"
        })
    }
}

fn parse_argon2id(text: &str) -> Option<SecretVerifier> {
    let (salt, hash) = text.split_once('$')?;
    let salt = STANDARD_NO_PAD.decode(salt).ok()?;
    let hash = STANDARD_NO_PAD.decode(hash).ok()?.try_into().ok()?;
    // RFC 9106 §3.1 asks for 8 bytes at least; the upper bound is ours.
    (8..=64)
        .contains(&salt.len())
        .then_some(SecretVerifier::Argon2id { salt, hash })
}

fn stretch(secret: &str, salt: &[u8]) -> Option<[u8; HASH_LEN]> {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, Some(HASH_LEN)).ok()?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let mut out = [0u8; HASH_LEN];
    argon2
        .hash_password_into(secret.as_bytes(), salt, &mut out)
        .ok()?;
    Some(out)
}

/// A new secret: the prefix (`cs_`, `ws_`, `cat_`) and 32 random bytes in base64url.
pub fn generate_secret(rng: &dyn Rng, prefix: &str) -> Secret<String> {
    let mut bytes = zeroize::Zeroizing::new([0u8; 32]);
    rng.fill(&mut bytes[..]);
    Secret::new(format!("{prefix}{}", b64url_encode(&bytes[..])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::TestRng;

    fn pepper(byte: u8) -> HmacKey {
        HmacKey::from_bytes(Secret::new(vec![byte; 32]))
    }

    #[test]
    fn the_argon2id_form_is_that_of_the_specification() {
        let stored = "argon2id$AAECAwQFBgcICQoLDA0ODw$uH5/Nrj7C0VGYxLjj0XODcSA1OcWXAQ3EnCORE1W/Cg";
        let verifier = SecretVerifier::parse(stored).unwrap();
        assert!(verifier.is_slow());
        assert!(verifier.verify(&pepper(1), "piper-secret"));
        assert!(!verifier.verify(&pepper(1), "piper-secreT"));
        assert_eq!(verifier.to_string(), stored);
    }

    #[test]
    fn a_chosen_secret_verifies_after_storage() {
        let made = SecretVerifier::argon2id(&TestRng::default(), "chosen").unwrap();
        let read = SecretVerifier::parse(&made.to_string()).unwrap();
        assert!(read == made && read.verify(&pepper(1), "chosen"));
    }

    #[test]
    fn a_generated_secret_verifies_under_its_pepper_only() {
        let secret = generate_secret(&TestRng::default(), "cs_");
        assert!(secret.expose().starts_with("cs_"));
        assert_eq!(secret.expose().len(), 3 + 43);
        let made = SecretVerifier::for_generated(&pepper(1), secret.expose());
        let read = SecretVerifier::parse(&made.to_string()).unwrap();
        assert!(!read.is_slow());
        assert!(read.verify(&pepper(1), secret.expose()));
        assert!(!read.verify(&pepper(2), secret.expose()));
        assert!(!read.verify(&pepper(1), "cs_something-else"));
    }

    #[test]
    fn unknown_forms_are_refused() {
        for bad in [
            "",
            "hs256$",
            "hs256$AAAA",
            "argon2id$AAECAwQFBgcICQoLDA0ODw",
            "argon2id$AAEC$uH5/Nrj7C0VGYxLjj0XODcSA1OcWXAQ3EnCORE1W/Cg",
            "argon2id$AAECAwQFBgcICQoLDA0ODw==$uH5/Nrj7C0VGYxLjj0XODcSA1OcWXAQ3EnCORE1W/Cg",
            "$argon2id$v=19$m=65536,t=3,p=2$AAECAwQFBgcICQoLDA0ODw$AAAA",
            "plain-secret",
        ] {
            assert_eq!(
                SecretVerifier::parse(bad),
                Err(CryptoError::UnknownVerifier),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_verifier_does_not_show_itself() {
        let made = SecretVerifier::for_generated(&pepper(1), "cs_x");
        assert_eq!(format!("{made:?}"), "SecretVerifier(hs256)");
    }
}
