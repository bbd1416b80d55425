use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RsaKeyPair, RsaSignatureEncoding,
};
use serde_json::json;

use super::*;
use crate::digest::b64url_encode;

fn token(header: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let (header, payload) = (header.to_string(), json!({"sub": "u1"}).to_string());
    let signed = format!(
        "{}.{}",
        b64url_encode(header.as_bytes()),
        b64url_encode(payload.as_bytes())
    );
    let signature = sign(signed.as_bytes());
    format!("{signed}.{}", b64url_encode(&signature))
}

fn set(keys: &[Value]) -> KeySet {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

fn checked(token: &str, keys: &KeySet) -> Result<(), TokenError> {
    ForeignJws::parse(token)?.verify(keys)
}

fn ec(with: &'static EcdsaSigningAlgorithm, crv: &str, width: usize) -> (EcdsaKeyPair, Value) {
    let pair = EcdsaKeyPair::generate(with).unwrap();
    let point = &pair.public_key().as_ref()[1..];
    let (x, y) = point.split_at(width);
    let jwk =
        json!({"kty": "EC", "crv": crv, "kid": "k", "x": b64url_encode(x), "y": b64url_encode(y)});
    (pair, jwk)
}

fn rsa() -> (RsaKeyPair, Value) {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    // RSAPublicKey of 2048 bits: a sequence of two integers, the first with a leading zero.
    let der = pair.public_key().as_ref();
    let (n, e) = (&der[9..265], &der[267..]);
    assert_eq!((e, der.len()), (&[1, 0, 1][..], 270));
    let jwk = json!({"kty": "RSA", "kid": "k", "use": "sig", "n": b64url_encode(n), "e": b64url_encode(e)});
    (pair, jwk)
}

fn rsa_signs(pair: &RsaKeyPair, with: &'static RsaSignatureEncoding) -> impl Fn(&[u8]) -> Vec<u8> {
    move |bytes| {
        let mut out = vec![0; pair.public_modulus_len()];
        pair.sign(with, &SystemRandom::new(), bytes, &mut out)
            .unwrap();
        out
    }
}

fn ec_signs(pair: &EcdsaKeyPair) -> impl Fn(&[u8]) -> Vec<u8> {
    |bytes| {
        pair.sign(&SystemRandom::new(), bytes)
            .unwrap()
            .as_ref()
            .to_vec()
    }
}

#[test]
fn the_algorithms_of_the_specification_verify_and_no_key_takes_another() {
    let (p256, k256) = ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32);
    let (p384, k384) = ec(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384", 48);
    let (p521, k521) = ec(&ECDSA_P521_SHA512_FIXED_SIGNING, "P-521", 66);
    let (pair, krsa) = rsa();
    let header = |alg: &str| json!({"alg": alg, "kid": "k", "typ": "JWT"});
    let tokens = [
        ("ES256", token(&header("ES256"), ec_signs(&p256)), &k256),
        ("ES384", token(&header("ES384"), ec_signs(&p384)), &k384),
        ("ES512", token(&header("ES512"), ec_signs(&p521)), &k521),
        (
            "RS256",
            token(&header("RS256"), rsa_signs(&pair, &RSA_PKCS1_SHA256)),
            &krsa,
        ),
        (
            "RS384",
            token(&header("RS384"), rsa_signs(&pair, &RSA_PKCS1_SHA384)),
            &krsa,
        ),
        (
            "RS512",
            token(&header("RS512"), rsa_signs(&pair, &RSA_PKCS1_SHA512)),
            &krsa,
        ),
    ];
    for (alg, token, own) in &tokens {
        for key in [&k256, &k384, &k521, &krsa] {
            let answer = checked(token, &set(std::slice::from_ref(key)));
            assert_eq!(answer.is_ok(), key == *own, "{alg} with {key}");
        }
        // Keys of every kind under one id: the right one is found.
        let all = set(&[k256.clone(), k384.clone(), k521.clone(), krsa.clone()]);
        assert_eq!(checked(token, &all), Ok(()), "{alg}");
    }
    // A key that names its algorithm takes no other of its type.
    let mut only = krsa.clone();
    only["alg"] = "RS512".into();
    let only = set(&[only]);
    for (alg, token, own) in &tokens {
        if **own == krsa {
            assert_eq!(checked(token, &only).is_ok(), *alg == "RS512", "{alg}");
        }
    }
}

#[test]
fn a_header_that_asks_for_anything_else_is_refused() {
    let (pair, key) = ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32);
    let keys = set(&[key]);
    let refused = |header: Value| checked(&token(&header, ec_signs(&pair)), &keys).unwrap_err();
    for alg in ["none", "None", "HS256", "PS256", "EdDSA", "es256", ""] {
        let why = refused(json!({"alg": alg, "kid": "k"}));
        assert_eq!(why, TokenError::Algorithm, "{alg}");
    }
    assert_eq!(refused(json!({"alg": "ES256"})), TokenError::NoKid);
    assert_eq!(
        refused(json!({"alg": "ES256", "kid": ""})),
        TokenError::NoKid
    );
    assert_eq!(
        refused(json!({"alg": "ES256", "kid": "k2"})),
        TokenError::WrongKey
    );
    let extended = json!({"alg": "ES256", "kid": "k", "crit": ["b64"], "b64": false});
    assert_eq!(refused(extended), TokenError::Algorithm);
    let access = json!({"alg": "ES256", "kid": "k", "typ": "at+jwt"});
    assert_eq!(
        refused(access),
        TokenError::Algorithm,
        "an access token is no ID token"
    );
    let own = json!({"alg": "ES256", "kid": "k"});
    let genuine = token(&own, ec_signs(&pair));
    assert_eq!(checked(&genuine, &keys), Ok(()));
    let (signed, signature) = genuine.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let other = b64url_encode(br#"{"sub":"u2"}"#);
    let forged = format!("{header}.{other}.{signature}");
    assert_eq!(checked(&forged, &keys), Err(TokenError::Signature));
    for odd in [
        "",
        "a",
        "a.b",
        "..",
        "a.b.c.d",
        &format!("{signed}."),
        &format!(" {genuine}"),
    ] {
        assert!(checked(odd, &keys).is_err(), "{odd}");
    }
    let long = format!("{}.{signature}", "a".repeat(MAX_TOKEN));
    assert_eq!(checked(&long, &keys), Err(TokenError::TooLong));
}

#[test]
fn keys_that_cannot_be_used_are_left_out() {
    let (_, good) = ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32);
    let with = |name: &str, value: Value| {
        let mut key = good.clone();
        key[name] = value;
        key
    };
    let unusable = [
        json!({"kty": "oct", "kid": "k", "k": "AAAA"}),
        json!({"kty": "RSA", "kid": "k", "n": b64url_encode(&[0xff; 128]), "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "k", "n": b64url_encode(&[0xff; 2048]), "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "k", "n": b64url_encode(&[0xff; 256]), "e": ""}),
        json!("not a key"),
        with("kid", Value::Null),
        with("kid", "".into()),
        with("use", "enc".into()),
        with("alg", "ES384".into()),
        with("alg", "none".into()),
        with("crv", "P-384".into()),
        with("crv", "secp256k1".into()),
        with("x", b64url_encode(&[1; 32]).into()),
        with("x", b64url_encode(&[1; 31]).into()),
    ];
    for key in unusable {
        let keys = set(&[key.clone(), good.clone()]);
        assert_eq!(keys.len(), 1, "{key}");
        assert!(keys.names("k"));
    }
    for odd in ["", "[]", "{}", r#"{"keys":{}}"#] {
        assert!(KeySet::parse(odd.as_bytes()).is_err(), "{odd}");
    }
    assert!(set(&[]).is_empty());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parsers_panic(token in "\\PC{0,200}", json in "\\PC{0,200}") {
        let _ = ForeignJws::parse(&token);
        let _ = KeySet::parse(json.as_bytes());
    }
}
