use super::*;
use crate::digest::{b64url_decode, hex_decode};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::json;

/// Keys that stand in the open: they prove nothing to anybody.
fn file(name: &str) -> String {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    std::fs::read_to_string(directory.join(name)).unwrap()
}

fn key(name: &str) -> ClientKey {
    ClientKey::from_pem(&file(name)).unwrap()
}

#[test]
fn every_form_of_key_signs_as_its_algorithm_says() {
    let table: [(&str, &str, &'static dyn VerificationAlgorithm); 5] = [
        ("rsa.pkcs1.pem", "RS256", &RSA_PKCS1_2048_8192_SHA256),
        ("rsa.pkcs8.pem", "RS256", &RSA_PKCS1_2048_8192_SHA256),
        ("p256.pkcs8.pem", "ES256", &ECDSA_P256_SHA256_FIXED),
        ("p384.sec1.pem", "ES384", &ECDSA_P384_SHA384_FIXED),
        ("p521.pkcs8.pem", "ES512", &ECDSA_P521_SHA512_FIXED),
    ];
    for (name, algorithm, verification) in table {
        let key = key(name);
        assert_eq!(key.algorithm(), algorithm, "{name}");
        let token = key.sign(Some("k1"), None, &json!({"iss": "me"})).unwrap();
        let (signed, signature) = token.expose().rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let header: Value = serde_json::from_slice(&b64url_decode(header).unwrap()).unwrap();
        assert_eq!(header, json!({"alg": algorithm, "typ": "JWT", "kid": "k1"}));
        assert_eq!(b64url_decode(claims).unwrap(), br#"{"iss":"me"}"#);
        UnparsedPublicKey::new(verification, key.public())
            .verify(signed.as_bytes(), &b64url_decode(signature).unwrap())
            .unwrap_or_else(|_| panic!("{name}"));
        assert_eq!(format!("{key:?}"), format!("ClientKey({algorithm})"));
    }
}

#[test]
fn a_certificate_names_its_own_key_only() {
    let certificate = Certificate::from_pem(&file("rsa.cert.pem")).unwrap();
    let thumbprint = |hex: &str| b64url_encode(&hex_decode(&hex.replace(':', "")).unwrap());
    let sha1 = "DF:F4:1D:0B:0D:2B:01:06:DA:FD:5E:09:55:CA:9E:68:F9:13:DC:11";
    let sha256 = "F8:75:B6:4D:0E:F8:4D:B0:8B:19:18:A0:3E:66:7A:F5:\
                  E9:90:BD:B0:74:8C:AE:4E:EB:5D:D4:49:9D:20:59:6B";
    assert_eq!(certificate.x5t(), thumbprint(&sha1.to_lowercase()));
    assert_eq!(certificate.x5t_s256(), thumbprint(&sha256.to_lowercase()));
    assert!(certificate.is_of(&key("rsa.pkcs8.pem")));
    assert!(!certificate.is_of(&key("p256.pkcs8.pem")));
    let elliptic = Certificate::from_pem(&file("p256.cert.pem")).unwrap();
    assert!(elliptic.is_of(&key("p256.pkcs8.pem")));

    let token = key("rsa.pkcs8.pem")
        .sign(None, Some(&certificate), &json!({}))
        .unwrap();
    let (header, _) = token.expose().split_once('.').unwrap();
    let header: Value = serde_json::from_slice(&b64url_decode(header).unwrap()).unwrap();
    assert_eq!(header["x5t"], json!(certificate.x5t()));
    assert_eq!(header["x5t#S256"], json!(certificate.x5t_s256()));
}

#[test]
fn what_is_no_key_is_refused() {
    let mangled = file("rsa.pkcs8.pem").replacen('M', "A", 3);
    let mislabelled = file("p256.pkcs8.pem").replace("PRIVATE KEY", "RSA PRIVATE KEY");
    let empty = "-----BEGIN PRIVATE KEY----------END PRIVATE KEY-----";
    for text in [
        "",
        "x",
        empty,
        &file("rsa.cert.pem"),
        &mangled,
        &mislabelled,
    ] {
        assert_eq!(
            ClientKey::from_pem(text).unwrap_err(),
            CryptoError::ClientKey
        );
    }
    for text in ["", "x", &file("p256.pkcs8.pem")] {
        assert_eq!(
            Certificate::from_pem(text).unwrap_err(),
            CryptoError::Certificate
        );
    }
}
