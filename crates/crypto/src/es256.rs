//! ES256: the keys of a zone and the compact JWS that they sign (spec: sts §3, §4; RFC 7515,
//! RFC 7518 §3.4).
//!
//! **Forces.** Signing and verifying are the two largest costs of a governed call, and building a
//! key from its encoding costs as much again. A token is attacker-controlled text that is read
//! before anything about it is known.
//!
//! **Choice.** A key is parsed once and holds its header ready to use. [`Jws`] accepts one shape
//! only: three parts, strict base64url, `alg` ES256, 64 bytes of signature. There is no table of
//! algorithms, so none can be confused with another. Who holds both halves of a key remembers what
//! it has signed ([`SigningKey::verifier`]): embedded, every mandate comes back within milliseconds,
//! and a hash tells that it is the same to the byte.

mod signed;

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    ParsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use caracal_model::limits::MAX_BEARER_BYTES;
use caracal_model::{Kid, Secret};
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};

use self::signed::Signed;
use crate::digest::{b64url_decode, b64url_encode};
use crate::error::{CryptoError, TokenError};

/// A coordinate of P-256, and half a signature.
const COORDINATE: usize = 32;

/// A public key as published in a JWKS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicJwk {
    /// The key's id.
    pub kid: Kid,
    /// Base64url of 32 bytes.
    pub x: String,
    /// Base64url of 32 bytes.
    pub y: String,
}

impl PublicJwk {
    /// From an uncompressed point: 0x04, x, y (SEC 1 §2.3.3).
    fn from_point(kid: Kid, point: &[u8]) -> Option<Self> {
        let (x, y) = point.strip_prefix(&[4])?.split_at_checked(COORDINATE)?;
        (y.len() == COORDINATE).then(|| Self {
            kid,
            x: b64url_encode(x),
            y: b64url_encode(y),
        })
    }

    fn point(&self) -> Option<Vec<u8>> {
        let (x, y) = (b64url_decode(&self.x).ok()?, b64url_decode(&self.y).ok()?);
        let fits = x.len() == COORDINATE && y.len() == COORDINATE;
        fits.then(|| [&[4], x.as_slice(), y.as_slice()].concat())
    }
}

impl Serialize for PublicJwk {
    /// As a member of `keys` in the JWKS answer (spec: sts §4).
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        let mut jwk = output.serialize_struct("PublicJwk", 7)?;
        jwk.serialize_field("kty", "EC")?;
        jwk.serialize_field("crv", "P-256")?;
        jwk.serialize_field("use", "sig")?;
        jwk.serialize_field("kid", &self.kid)?;
        jwk.serialize_field("alg", "ES256")?;
        jwk.serialize_field("x", &self.x)?;
        jwk.serialize_field("y", &self.y)?;
        jwk.end()
    }
}

/// A zone's private key, ready to sign.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    encoded: Secret<Vec<u8>>,
    public: PublicJwk,
    /// The encoded header and the dot after it, the same for every token of this key.
    prefix: String,
    signed: Arc<Signed>,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.kid)
    }
}

impl SigningKey {
    /// A new key.
    ///
    /// # Errors
    /// [`CryptoError::Primitive`] when the library cannot generate one.
    pub fn generate(kid: Kid) -> Result<Self, CryptoError> {
        let failed = CryptoError::Primitive {
            doing: "generating a P-256 key",
        };
        let pair =
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| failed.clone())?;
        let document = pair.to_pkcs8v1().map_err(|_| failed)?;
        let encoded = Secret::new(document.as_ref().to_vec());
        Self::assemble(kid, pair, encoded)
    }

    /// A key as it was stored, opened from its envelope.
    ///
    /// # Errors
    /// [`CryptoError::KeyRejected`] when the bytes are no P-256 key in PKCS#8.
    pub fn from_pkcs8(kid: Kid, der: &[u8]) -> Result<Self, CryptoError> {
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map_err(|_| {
                CryptoError::KeyRejected {
                    kid: kid.to_string(),
                }
            })?;
        Self::assemble(kid, pair, Secret::new(der.to_vec()))
    }

    fn assemble(
        kid: Kid,
        pair: EcdsaKeyPair,
        encoded: Secret<Vec<u8>>,
    ) -> Result<Self, CryptoError> {
        let header = SignedHeader {
            alg: "ES256",
            kid: &kid,
            typ: "JWT",
        };
        let header = serde_json::to_vec(&header).map_err(|_| CryptoError::Claims)?;
        let mut prefix = b64url_encode(&header);
        prefix.push('.');
        let public =
            PublicJwk::from_point(kid.clone(), pair.public_key().as_ref()).ok_or_else(|| {
                CryptoError::KeyRejected {
                    kid: kid.to_string(),
                }
            })?;
        Ok(Self {
            pair,
            encoded,
            public,
            prefix,
            signed: Arc::default(),
        })
    }

    /// The key in PKCS#8, to be sealed.
    pub fn pkcs8(&self) -> Secret<Vec<u8>> {
        Secret::new(self.encoded.expose().clone())
    }

    /// The key's id.
    pub fn kid(&self) -> &Kid {
        &self.public.kid
    }

    /// The public half.
    pub fn public(&self) -> &PublicJwk {
        &self.public
    }

    /// The public half, ready to verify. It knows the latest tokens of this key without computing.
    ///
    /// # Errors
    /// As [`VerifyKey::from_jwk`].
    pub fn verifier(&self) -> Result<VerifyKey, CryptoError> {
        let mut key = VerifyKey::from_jwk(&self.public)?;
        key.signed = Some(Arc::clone(&self.signed));
        Ok(key)
    }

    /// A compact JWS of these claims, header `{"alg":"ES256","kid":…,"typ":"JWT"}`.
    ///
    /// # Errors
    /// [`CryptoError::TokenTooLong`] when no service would accept it (spec README, decision 11),
    /// [`CryptoError::Claims`] when the claims do not become JSON.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, CryptoError> {
        let claims = serde_json::to_vec(claims).map_err(|_| CryptoError::Claims)?;
        let mut token = String::with_capacity(self.prefix.len() + claims.len() * 4 / 3 + 96);
        token.push_str(&self.prefix);
        URL_SAFE_NO_PAD.encode_string(&claims, &mut token);
        let signature = self
            .pair
            .sign(&SystemRandom::new(), token.as_bytes())
            .map_err(|_| CryptoError::Primitive {
                doing: "signing a token",
            })?;
        let end = token.len();
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        if token.len() > MAX_BEARER_BYTES {
            return Err(CryptoError::TokenTooLong { got: token.len() });
        }
        let (text, _) = token.split_at(end);
        self.signed.remember(text, signature.as_ref());
        Ok(token)
    }
}

/// A public key, ready to verify.
#[derive(Clone)]
pub struct VerifyKey {
    kid: Kid,
    key: ParsedPublicKey,
    /// What the private half has signed in this process, when it is here.
    signed: Option<Arc<Signed>>,
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyKey({})", self.kid)
    }
}

impl VerifyKey {
    /// From a published key.
    ///
    /// # Errors
    /// [`CryptoError::KeyRejected`] when the coordinates are no point of P-256.
    pub fn from_jwk(jwk: &PublicJwk) -> Result<Self, CryptoError> {
        let rejected = || CryptoError::KeyRejected {
            kid: jwk.kid.to_string(),
        };
        let point = jwk.point().ok_or_else(rejected)?;
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).map_err(|_| rejected())?;
        Ok(Self {
            kid: jwk.kid.clone(),
            key,
            signed: None,
        })
    }

    /// The key's id.
    pub fn kid(&self) -> &Kid {
        &self.kid
    }
}

#[derive(Serialize)]
struct SignedHeader<'a> {
    alg: &'a str,
    kid: &'a Kid,
    typ: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<serde::de::IgnoredAny>,
}

impl Header {
    fn parse(json: &[u8]) -> Result<Self, TokenError> {
        // Derived readers also take an array of the values, which is no JOSE header.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(TokenError::Malformed);
        }
        serde_json::from_slice(json).map_err(|_| TokenError::Malformed)
    }

    /// The key's id, when the header asks for nothing but what we do.
    fn into_kid(self) -> Result<String, TokenError> {
        let typ_fits = self.typ.is_none_or(|typ| typ.eq_ignore_ascii_case("JWT"));
        // RFC 7515 §4.1.11: an extension marked critical that we do not know means refusal, and we
        // know none.
        if self.alg != "ES256" || !typ_fits || self.crit.is_some() {
            return Err(TokenError::Algorithm);
        }
        self.kid
            .filter(|kid| !kid.is_empty())
            .ok_or(TokenError::NoKid)
    }
}

/// A compact JWS, taken apart. Nothing is proven until [`Jws::verify`] has answered: before that
/// the payload may pick a key, no more.
pub struct Jws<'a> {
    signed: &'a str,
    kid: String,
    payload: Vec<u8>,
    signature: [u8; 2 * COORDINATE],
}

impl fmt::Debug for Jws<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A bearer token is a credential: its parts are not printed.
        f.write_str("Jws(..)")
    }
}

impl<'a> Jws<'a> {
    /// Takes a token apart, strictly.
    ///
    /// # Errors
    /// [`TokenError`] says which rule it breaks.
    pub fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_BEARER_BYTES {
            return Err(TokenError::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        // A third dot would be in the payload, where it is no base64url.
        let kid = Header::parse(&part(header)?)?.into_kid()?;
        let signature = part(signature)?
            .try_into()
            .map_err(|_| TokenError::Malformed)?;
        Ok(Self {
            signed,
            kid,
            payload: part(payload)?,
            signature,
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

    /// Whether this key signed exactly this header and payload.
    ///
    /// # Errors
    /// [`TokenError::WrongKey`] for a key of another id, [`TokenError::Signature`] otherwise.
    pub fn verify(&self, key: &VerifyKey) -> Result<(), TokenError> {
        if key.kid.as_str() != self.kid {
            return Err(TokenError::WrongKey);
        }
        let ours = key.signed.as_ref();
        if ours.is_some_and(|ours| ours.knows(self.signed, &self.signature)) {
            return Ok(());
        }
        key.key
            .verify_sig(self.signed.as_bytes(), &self.signature)
            .map_err(|_| TokenError::Signature)
    }
}

fn part(text: &str) -> Result<Vec<u8>, TokenError> {
    b64url_decode(text).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::LazyLock;

    static KEY: LazyLock<SigningKey> =
        LazyLock::new(|| SigningKey::generate(Kid::trusted("key-1")).unwrap());
    static VERIFY: LazyLock<VerifyKey> =
        LazyLock::new(|| VerifyKey::from_jwk(KEY.public()).unwrap());

    fn forge(header: &str) -> String {
        let signature = b64url_encode(&[1u8; 64]);
        format!(
            "{}.{}.{signature}",
            b64url_encode(header.as_bytes()),
            b64url_encode(b"{}")
        )
    }

    #[test]
    fn a_token_carries_its_claims_and_verifies() {
        let token = KEY.sign(&json!({"sub": "app-1"})).unwrap();
        let jws = Jws::parse(&token).unwrap();
        assert_eq!(jws.kid(), "key-1");
        assert_eq!(jws.payload(), br#"{"sub":"app-1"}"#);
        assert_eq!(jws.verify(&VERIFY), Ok(()));
        let header = b64url_decode(token.split('.').next().unwrap()).unwrap();
        assert_eq!(header, br#"{"alg":"ES256","kid":"key-1","typ":"JWT"}"#);
    }

    #[test]
    fn a_key_survives_storage() {
        let again = SigningKey::from_pkcs8(Kid::trusted("key-1"), KEY.pkcs8().expose()).unwrap();
        assert_eq!(again.public(), KEY.public());
        let token = again.sign(&json!({})).unwrap();
        assert_eq!(Jws::parse(&token).unwrap().verify(&VERIFY), Ok(()));
        assert!(SigningKey::from_pkcs8(Kid::trusted("k"), b"not a key").is_err());
    }

    #[test]
    fn what_was_signed_here_is_known_to_the_byte_and_nothing_else_is() {
        let verify = KEY.verifier().unwrap();
        let token = KEY.sign(&json!({"sub": "memory"})).unwrap();
        let knows = |token: &str| {
            let jws = Jws::parse(token).unwrap();
            KEY.signed.knows(jws.signed, &jws.signature)
        };
        assert!(knows(&token));
        assert_eq!(Jws::parse(&token).unwrap().verify(&verify), Ok(()));
        let (text, signature) = token.rsplit_once('.').unwrap();
        let other = KEY.sign(&json!({"sub": "other"})).unwrap();
        let (_, others) = other.rsplit_once('.').unwrap();
        for forged in [format!("{text}.{others}"), format!("{text}A.{signature}")] {
            assert!(!Jws::parse(&forged).is_ok_and(|jws| jws.verify(&verify).is_ok()));
        }
        // Forgotten, it is verified like any other.
        for n in 0..2_000 {
            KEY.signed.remember(&n.to_string(), &[0; 64]);
        }
        assert!(!knows(&token));
        assert_eq!(Jws::parse(&token).unwrap().verify(&verify), Ok(()));
    }

    #[test]
    fn another_key_does_not_verify_even_under_the_same_id() {
        let token = KEY.sign(&json!({})).unwrap();
        let jws = Jws::parse(&token).unwrap();
        for (kid, expected) in [
            ("key-1", TokenError::Signature),
            ("key-2", TokenError::WrongKey),
        ] {
            let other = SigningKey::generate(Kid::trusted(kid)).unwrap();
            let other = VerifyKey::from_jwk(other.public()).unwrap();
            assert_eq!(jws.verify(&other), Err(expected));
        }
    }

    #[test]
    fn a_signature_made_elsewhere_verifies() {
        // RFC 7515, appendix A.3: key, signing input and signature of its ES256 example.
        let jwk = PublicJwk {
            kid: Kid::trusted("rfc"),
            x: "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU".into(),
            y: "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0".into(),
        };
        let jws = Jws {
            signed: concat!(
                "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6",
                "Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ",
            ),
            kid: "rfc".into(),
            payload: Vec::new(),
            signature: b64url_decode(concat!(
                "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSA",
                "pmWQxfKTUJqPP3-Kg6NU1Q",
            ))
            .unwrap()
            .try_into()
            .unwrap(),
        };
        assert_eq!(jws.verify(&VerifyKey::from_jwk(&jwk).unwrap()), Ok(()));
    }

    #[test]
    fn a_published_key_has_the_members_of_the_wire() {
        let text = serde_json::to_string(KEY.public()).unwrap();
        let PublicJwk { x, y, .. } = KEY.public();
        assert_eq!(
            text,
            format!(
                r#"{{"kty":"EC","crv":"P-256","use":"sig","kid":"key-1","alg":"ES256","x":"{x}","y":"{y}"}}"#
            )
        );
        assert_eq!((x.len(), y.len()), (43, 43));
    }

    #[test]
    fn points_off_the_curve_are_refused() {
        let jwk = KEY.public();
        for bad in [
            PublicJwk {
                y: jwk.x.clone(),
                ..jwk.clone()
            },
            PublicJwk {
                x: String::new(),
                ..jwk.clone()
            },
            PublicJwk {
                x: b64url_encode(&[0; 33]),
                ..jwk.clone()
            },
            PublicJwk {
                x: b64url_encode(&[0; 32]),
                y: b64url_encode(&[0; 32]),
                ..jwk.clone()
            },
        ] {
            assert!(VerifyKey::from_jwk(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    #[rustfmt::skip] // a table
    fn headers_that_ask_for_anything_else_are_refused() {
        for (header, expected) in [
            (r#"{"alg":"none","kid":"k"}"#, TokenError::Algorithm),
            (r#"{"alg":"HS256","kid":"k"}"#, TokenError::Algorithm),
            (r#"{"alg":"es256","kid":"k"}"#, TokenError::Algorithm),
            (r#"{"alg":"ES256","kid":"k","crit":["b64"],"b64":false}"#, TokenError::Algorithm),
            (r#"{"alg":"ES256","kid":"k","typ":"dpop+jwt"}"#, TokenError::Algorithm),
            (r#"{"alg":"ES256","typ":"JWT"}"#, TokenError::NoKid),
            (r#"{"alg":"ES256","kid":""}"#, TokenError::NoKid),
            (r#"{"alg":"ES256","alg":"ES256","kid":"k"}"#, TokenError::Malformed),
            (r#"{"alg":"ES256","kid":7}"#, TokenError::Malformed),
            (r#"["ES256","k",null,null]"#, TokenError::Malformed),
            ("", TokenError::Malformed),
        ] {
            assert_eq!(Jws::parse(&forge(header)).unwrap_err(), expected, "{header}");
        }
    }

    #[test]
    fn text_that_is_no_compact_jws_is_refused() {
        let token = KEY.sign(&json!({})).unwrap();
        let (head, signature) = token.rsplit_once('.').unwrap();
        for bad in [
            String::new(),
            "..".into(),
            "a.b".into(),
            format!("{token}."),
            format!(".{token}"),
            format!("{token}="),
            format!("{token}\n"),
            format!("{head}.x.{signature}"),
            format!("{head}.{}", &signature[..85]),
            format!("{head}.{}", b64url_encode(&[0; 63])),
        ] {
            assert_eq!(
                Jws::parse(&bad).unwrap_err(),
                TokenError::Malformed,
                "{bad}"
            );
        }
        assert_eq!(
            Jws::parse(&"a".repeat(8193)).unwrap_err(),
            TokenError::TooLong
        );
    }

    #[test]
    fn a_token_that_nobody_would_accept_is_not_minted() {
        let error = KEY.sign(&json!({"target": "x".repeat(8000)})).unwrap_err();
        assert!(matches!(error, CryptoError::TokenTooLong { got } if got > 8192));
    }

    proptest! {
        #[test]
        fn a_token_with_any_character_changed_is_refused(at in any::<prop::sample::Index>(),
                                                         to in "[A-Za-z0-9_.=+/ -]") {
            let token = KEY.sign(&json!({"sub": "app-1", "exp": 1_790_000_000})).unwrap();
            let at = at.index(token.len());
            prop_assume!(token[at..=at] != to);
            let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
            let accepted = Jws::parse(&changed).and_then(|jws| jws.verify(&VERIFY));
            prop_assert!(accepted.is_err(), "{changed}");
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[A-Za-z0-9_.=-]{0,64}|\\PC{0,64}") {
            let _ = Jws::parse(&text);
            let _ = Jws::parse(&forge(&text));
        }
    }
}
