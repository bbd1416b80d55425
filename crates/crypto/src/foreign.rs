//! Tokens that others sign: the ID tokens of issuers that a zone trusts (spec: sts §7; RFC 7515,
//! RFC 7517, RFC 7518).
//!
//! **Forces.** Issuers sign with what they like, so there must be a table of algorithms; every
//! table invites a token that chooses the wrong row. Their key sets hold keys that we cannot use.
//!
//! **Choice.** Six asymmetric algorithms, no others. The type of the key decides which of them may
//! be used with it, and a key that names its algorithm takes only that one; the token's header may
//! only agree. Keys that we cannot use are left out, the rest of the set goes on.
//!
//! **Rejected.** jsonwebtoken 11: it has no ES512, which the specification asks for, and it would be
//! a second JOSE parser beside ours.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED,
    EcdsaVerificationAlgorithm, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
};
use serde::Deserialize;
use serde_json::Value;

use crate::digest::b64url_decode;
use crate::error::TokenError;

/// Longest foreign token, in bytes.
const MAX_TOKEN: usize = 32 * 1024;
/// Most keys that are taken from one set.
const MAX_KEYS: usize = 128;
/// Shortest and longest modulus of an RSA key, in bytes.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;
/// Longest public exponent, in bytes: real ones have three.
const MAX_EXPONENT: usize = 8;

/// An algorithm that a foreign token may be signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
}

impl Algorithm {
    /// The algorithm of that JOSE name; `None` for any other, `none` included.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            _ => return None,
        })
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        match self {
            Self::Rs256 => Some(&RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Some(&RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Some(&RSA_PKCS1_2048_8192_SHA512),
            Self::Es256 | Self::Es384 | Self::Es512 => None,
        }
    }
}

enum Material {
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    Ec(Algorithm, ParsedPublicKey),
}

/// A public key of an issuer.
pub struct ForeignKey {
    kid: String,
    /// The only algorithm that it may be used with, when it names one.
    only: Option<Algorithm>,
    material: Material,
}

impl fmt::Debug for ForeignKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ForeignKey({})", self.kid)
    }
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    key_use: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Big-endian bytes without leading zeros.
fn number(text: Option<&str>) -> Option<Vec<u8>> {
    let bytes = b64url_decode(text?).ok()?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).map(<[u8]>::to_vec)
}

/// Exactly `width` bytes of a coordinate (RFC 7518 §6.2.1.2).
fn coordinate(text: Option<&str>, width: usize) -> Option<Vec<u8>> {
    let bytes = b64url_decode(text?).ok()?;
    (bytes.len() == width).then_some(bytes)
}

impl ForeignKey {
    /// The key, if it is one to verify with that we can use.
    fn read(jwk: Jwk) -> Option<Self> {
        let kid = jwk.kid.filter(|kid| !kid.is_empty())?;
        if jwk.key_use.is_some_and(|key_use| key_use != "sig") {
            return None;
        }
        let only = match &jwk.alg {
            Some(name) => Some(Algorithm::parse(name)?),
            None => None,
        };
        let material = match jwk.kty.as_str() {
            "RSA" => {
                let (n, e) = (number(jwk.n.as_deref())?, number(jwk.e.as_deref())?);
                let fits = MODULUS.contains(&n.len()) && (1..=MAX_EXPONENT).contains(&e.len());
                fits.then_some(Material::Rsa(RsaPublicKeyComponents { n, e }))?
            }
            "EC" => {
                let (algorithm, verifies, width) = curve(jwk.crv.as_deref()?)?;
                let x = coordinate(jwk.x.as_deref(), width)?;
                let y = coordinate(jwk.y.as_deref(), width)?;
                let point = [&[4], x.as_slice(), y.as_slice()].concat();
                Material::Ec(algorithm, ParsedPublicKey::new(verifies, point).ok()?)
            }
            _ => return None,
        };
        let key = Self {
            kid,
            only,
            material,
        };
        key.only.is_none_or(|only| key.takes(only)).then_some(key)
    }

    /// Whether this key may be used with this algorithm.
    fn takes(&self, algorithm: Algorithm) -> bool {
        let by_type = match &self.material {
            Material::Rsa(_) => algorithm.rsa().is_some(),
            Material::Ec(own, _) => *own == algorithm,
        };
        by_type && self.only.is_none_or(|only| only == algorithm)
    }

    fn verify(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        match (&self.material, algorithm.rsa()) {
            (Material::Rsa(key), Some(rsa)) => key.verify(rsa, signed, signature).is_ok(),
            (Material::Ec(own, key), None) if *own == algorithm => {
                key.verify_sig(signed, signature).is_ok()
            }
            _ => false,
        }
    }
}

fn curve(name: &str) -> Option<(Algorithm, &'static EcdsaVerificationAlgorithm, usize)> {
    Some(match name {
        "P-256" => (Algorithm::Es256, &ECDSA_P256_SHA256_FIXED, 32),
        "P-384" => (Algorithm::Es384, &ECDSA_P384_SHA384_FIXED, 48),
        "P-521" => (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED, 66),
        _ => return None,
    })
}

/// The usable keys of an issuer.
#[derive(Debug, Default)]
pub struct KeySet(Vec<ForeignKey>);

impl KeySet {
    /// Reads a JWKS. Keys that cannot be used are left out.
    ///
    /// # Errors
    /// [`TokenError::Malformed`] when it is no JWKS at all.
    pub fn parse(json: &[u8]) -> Result<Self, TokenError> {
        #[derive(Deserialize)]
        struct Jwks {
            keys: Vec<Value>,
        }
        let jwks: Jwks = serde_json::from_slice(json).map_err(|_| TokenError::Malformed)?;
        let keys = jwks.keys.into_iter().take(MAX_KEYS);
        let usable = keys.filter_map(|key| ForeignKey::read(serde_json::from_value(key).ok()?));
        Ok(Self(usable.collect()))
    }

    /// Whether a key of this id is among them.
    pub fn names(&self, kid: &str) -> bool {
        self.0.iter().any(|key| key.kid == kid)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A foreign token, taken apart. Nothing is proven until [`ForeignJws::verify`] has answered:
/// before that the payload may pick an issuer, no more.
pub struct ForeignJws<'a> {
    signed: &'a str,
    algorithm: Algorithm,
    kid: String,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl fmt::Debug for ForeignJws<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A credential: its parts are not printed.
        f.write_str("ForeignJws(..)")
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<serde::de::IgnoredAny>,
}

impl<'a> ForeignJws<'a> {
    /// Takes a token apart, strictly.
    ///
    /// # Errors
    /// [`TokenError`] says which rule it breaks.
    pub fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let part = |text: &str| b64url_decode(text).map_err(|_| TokenError::Malformed);
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let header = part(header)?;
        // Derived readers also take an array of the values, which is no JOSE header.
        if header.trim_ascii_start().first() != Some(&b'{') {
            return Err(TokenError::Malformed);
        }
        let header: Header = serde_json::from_slice(&header).map_err(|_| TokenError::Malformed)?;
        let typ_fits = header.typ.is_none_or(|typ| typ.eq_ignore_ascii_case("JWT"));
        if !typ_fits || header.crit.is_some() {
            return Err(TokenError::Algorithm);
        }
        Ok(Self {
            signed,
            algorithm: Algorithm::parse(&header.alg).ok_or(TokenError::Algorithm)?,
            kid: header
                .kid
                .filter(|kid| !kid.is_empty())
                .ok_or(TokenError::NoKid)?,
            payload: part(payload)?,
            signature: part(signature)?,
        })
    }

    /// The id of the key that is said to have signed it.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The decoded payload.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Whether a key of this set signed exactly this header and payload.
    ///
    /// # Errors
    /// [`TokenError::WrongKey`] when no key of that id takes the algorithm,
    /// [`TokenError::Signature`] otherwise.
    pub fn verify(&self, keys: &KeySet) -> Result<(), TokenError> {
        let key = keys
            .0
            .iter()
            .find(|key| key.kid == self.kid && key.takes(self.algorithm));
        let key = key.ok_or(TokenError::WrongKey)?;
        if key.verify(self.algorithm, self.signed.as_bytes(), &self.signature) {
            Ok(())
        } else {
            Err(TokenError::Signature)
        }
    }
}

#[cfg(test)]
mod tests;
