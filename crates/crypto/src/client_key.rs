//! Keys of ours at foreign token endpoints: what signs a client assertion or a grant assertion
//! (spec: sts §6.2; RFC 7523).
//!
//! **Forces.** The key comes from a tenant as PEM, in any of the three forms that tools write. A
//! key that cannot be used must be refused when it is configured, not when it is needed.
//! **Choice.** The key picks the algorithm: RSA signs RS256, a curve its own ES256, ES384 or ES512.

use std::fmt;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _,
    RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use caracal_model::Secret;
use serde::Serialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::digest::{b64url_encode, sha256};
use crate::error::CryptoError;

/// A private key that signs assertions.
pub struct ClientKey {
    pair: Pair,
    algorithm: &'static str,
}

enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientKey({})", self.algorithm)
    }
}

const CURVES: [(&EcdsaSigningAlgorithm, &str); 3] = [
    (&ECDSA_P256_SHA256_FIXED_SIGNING, "ES256"),
    (&ECDSA_P384_SHA384_FIXED_SIGNING, "ES384"),
    (&ECDSA_P521_SHA512_FIXED_SIGNING, "ES512"),
];

impl ClientKey {
    /// From PEM: PKCS#8, PKCS#1 (RSA) or SEC1 (EC).
    ///
    /// # Errors
    /// [`CryptoError::ClientKey`].
    pub fn from_pem(text: &str) -> Result<Self, CryptoError> {
        let labels = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];
        let found = labels
            .into_iter()
            .find_map(|label| Some((label, pem(text, label)?)));
        let (label, der) = found.ok_or(CryptoError::ClientKey)?;
        let rsa = match label {
            "PRIVATE KEY" => RsaKeyPair::from_pkcs8(&der).ok(),
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(&der).ok(),
            _ => None,
        };
        if let Some(pair) = rsa {
            return Ok(Self {
                pair: Pair::Rsa(pair),
                algorithm: "RS256",
            });
        }
        CURVES
            .into_iter()
            .filter(|_| label != "RSA PRIVATE KEY")
            .find_map(|(curve, algorithm)| {
                let pair = EcdsaKeyPair::from_private_key_der(curve, &der).ok()?;
                Some(Self {
                    pair: Pair::Ec(pair),
                    algorithm,
                })
            })
            .ok_or(CryptoError::ClientKey)
    }

    /// `RS256`, `ES256`, `ES384` or `ES512`.
    pub const fn algorithm(&self) -> &'static str {
        self.algorithm
    }

    /// A compact JWT with these claims. `kid` and the certificate go into the header, if any.
    ///
    /// # Errors
    /// [`CryptoError::Claims`], [`CryptoError::Primitive`].
    pub fn sign(
        &self,
        kid: Option<&str>,
        certificate: Option<&Certificate>,
        claims: &impl Serialize,
    ) -> Result<Secret<String>, CryptoError> {
        let mut header = Map::new();
        header.insert("alg".into(), json!(self.algorithm));
        header.insert("typ".into(), json!("JWT"));
        if let Some(kid) = kid {
            header.insert("kid".into(), json!(kid));
        }
        if let Some(certificate) = certificate {
            header.insert("x5t".into(), json!(certificate.x5t()));
            header.insert("x5t#S256".into(), json!(certificate.x5t_s256()));
        }
        let claims = serde_json::to_vec(claims).map_err(|_| CryptoError::Claims)?;
        let header = Value::Object(header).to_string();
        let mut token = b64url_encode(header.as_bytes());
        token.push('.');
        token.push_str(&b64url_encode(&claims));
        let signature = self.raw(token.as_bytes())?;
        token.push('.');
        token.push_str(&b64url_encode(&signature));
        Ok(Secret::new(token))
    }

    fn raw(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let doing = "signing an assertion";
        let failed = |_| CryptoError::Primitive { doing };
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ec(pair) => {
                let signature = pair.sign(&random, message).map_err(failed)?;
                Ok(signature.as_ref().to_vec())
            }
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(failed)?;
                Ok(signature)
            }
        }
    }

    fn public(&self) -> &[u8] {
        match &self.pair {
            Pair::Rsa(pair) => pair.public_key().as_ref(),
            Pair::Ec(pair) => pair.public_key().as_ref(),
        }
    }
}

/// A certificate that names a [`ClientKey`] to those who know it by thumbprint.
#[derive(Clone, Debug)]
pub struct Certificate(Vec<u8>);

impl Certificate {
    /// From PEM; the first of a chain.
    ///
    /// # Errors
    /// [`CryptoError::Certificate`].
    pub fn from_pem(text: &str) -> Result<Self, CryptoError> {
        let der = pem(text, "CERTIFICATE").ok_or(CryptoError::Certificate)?;
        // A DER sequence with a two-byte length: every certificate is one.
        let is_sequence = matches!(der.as_slice(), [0x30, 0x82, ..]);
        is_sequence
            .then(|| Self(der.to_vec()))
            .ok_or(CryptoError::Certificate)
    }

    /// Whether it was issued for this key: it carries its public key.
    pub fn is_of(&self, key: &ClientKey) -> bool {
        let public = key.public();
        self.0.windows(public.len()).any(|part| part == public)
    }

    /// Base64url of the SHA-1 of the DER (RFC 7515 §4.1.7).
    pub fn x5t(&self) -> String {
        b64url_encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &self.0).as_ref())
    }

    /// Base64url of the SHA-256 of the DER.
    pub fn x5t_s256(&self) -> String {
        b64url_encode(&sha256(&self.0))
    }
}

/// The bytes of the first block with this label.
fn pem(text: &str, label: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (begin, end) = (
        format!("-----BEGIN {label}-----"),
        format!("-----END {label}-----"),
    );
    let (_, rest) = text.split_once(&begin)?;
    let (body, _) = rest.split_once(&end)?;
    let packed: Zeroizing<String> = Zeroizing::new(body.split_whitespace().collect());
    STANDARD.decode(packed.as_bytes()).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests;
