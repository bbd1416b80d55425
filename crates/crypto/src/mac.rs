//! Message authentication: streams, evidence and the Gateway's exchanges (spec:
//! audit-and-streams §1, gateway §9.2). All HMAC-SHA256, all hex, all compared in constant time.

use std::fmt;

use aws_lc_rs::hmac;
use caracal_model::Secret;
use caracal_model::change::Fields;

use crate::digest::{b64url_encode, hex_decode, hex_decode_array, hex_encode, to_array};
use crate::error::CryptoError;

/// Shortest key that an environment variable may carry, in bytes.
const MIN_KEY_BYTES: usize = 32;
/// The field of a stream entry that carries its signature.
pub const SIGNATURE_FIELD: &str = "_sig";

/// A key for HMAC-SHA256, prepared once.
#[derive(Clone)]
pub struct HmacKey(hmac::Key);

impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HmacKey(..)")
    }
}

impl HmacKey {
    /// A key as settings carry it: hex, at least 32 bytes.
    ///
    /// # Errors
    /// [`CryptoError::NotHex`], [`CryptoError::KeyLength`].
    pub fn from_hex(text: &str) -> Result<Self, CryptoError> {
        let bytes = Secret::new(hex_decode(text).map_err(|_| CryptoError::NotHex)?);
        let got = bytes.expose().len();
        if got < MIN_KEY_BYTES {
            return Err(CryptoError::KeyLength {
                got,
                needs: "at least 32",
            });
        }
        Ok(Self::from_bytes(bytes))
    }

    /// A key of any length, for secrets that are not ours to choose (an operator's token).
    pub fn from_bytes(bytes: Secret<Vec<u8>>) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes.expose()))
    }

    /// The code of this message.
    pub fn sign(&self, message: &[u8]) -> [u8; 32] {
        to_array(hmac::sign(&self.0, message).as_ref())
    }

    /// As [`HmacKey::sign`], in lowercase hex (published verifiers compare the text).
    pub fn sign_hex(&self, message: &[u8]) -> String {
        hex_encode(&self.sign(message))
    }

    /// As [`HmacKey::sign`], in base64url.
    pub fn sign_b64url(&self, message: &[u8]) -> String {
        b64url_encode(&self.sign(message))
    }

    /// Whether `code` is the code of this message, in constant time.
    pub fn verify(&self, message: &[u8], code: &[u8]) -> bool {
        hmac::verify(&self.0, message, code).is_ok()
    }

    /// As [`HmacKey::verify`], of a code in hex of either case.
    pub fn verify_hex(&self, message: &[u8], code: &str) -> bool {
        hex_decode_array::<32>(code).is_some_and(|code| self.verify(message, &code))
    }
}

/// The bytes under a stream signature: the name of the stream, then each field but the signature,
/// in byte order of the names (which is the order of [`Fields`]).
fn stream_message(topic: &str, fields: &Fields) -> Vec<u8> {
    let length = fields
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum::<usize>();
    let mut message = Vec::with_capacity(topic.len() + 1 + length);
    message.extend_from_slice(topic.as_bytes());
    message.push(b'\n');
    for (name, value) in fields.iter().filter(|(name, _)| *name != SIGNATURE_FIELD) {
        message.extend_from_slice(name.as_bytes());
        message.push(b'=');
        message.extend_from_slice(value.as_bytes());
        message.push(b'\n');
    }
    message
}

/// Whether the canonical text can be read in one way only: without this, a field could be hidden
/// in the value of its neighbour and the signature would still fit.
fn is_unambiguous(fields: &Fields) -> bool {
    fields
        .iter()
        .all(|(name, value)| !name.contains(['\n', '=']) && !value.contains('\n'))
}

/// `_sig` of a stream entry (spec: audit-and-streams §1.1). Line feeds must have been taken out
/// before: see [`sign_entry`].
pub fn stream_signature(key: &HmacKey, topic: &str, fields: &Fields) -> String {
    key.sign_hex(&stream_message(topic, fields))
}

/// Makes an entry publishable: line feeds in values become spaces, then `_sig` is added.
pub fn sign_entry(key: &HmacKey, topic: &str, fields: &mut Fields) {
    for value in fields.values_mut().filter(|value| value.contains('\n')) {
        *value = value.replace('\n', " ");
    }
    let signature = stream_signature(key, topic, fields);
    fields.insert(SIGNATURE_FIELD.to_owned(), signature);
}

/// Whether an entry carries the signature of this key. Entries whose canonical text is ambiguous
/// are refused, whatever their signature.
pub fn stream_signature_is_valid(key: &HmacKey, topic: &str, fields: &Fields) -> bool {
    let Some(signature) = fields.get(SIGNATURE_FIELD) else {
        return false;
    };
    is_unambiguous(fields) && key.verify_hex(&stream_message(topic, fields), signature)
}

/// What the Gateway and the API sign when they call the STS (spec: gateway §9.2).
#[derive(Clone, Copy, Debug)]
pub struct GatewaySignature<'a> {
    /// Unix seconds.
    pub timestamp: i64,
    /// Good for one request.
    pub nonce: &'a str,
    /// In either case; upper case is signed.
    pub method: &'a str,
    /// The escaped path, without the query.
    pub path: &'a str,
    /// SHA-256 of the raw body: whoever announces it can be known before the body is read.
    pub body_sha256: [u8; 32],
}

impl GatewaySignature<'_> {
    fn message(&self) -> String {
        let (timestamp, nonce, path) = (self.timestamp, self.nonce, self.path);
        let method = self.method.to_ascii_uppercase();
        let body = hex_encode(&self.body_sha256);
        format!("{timestamp}\n{nonce}\n{method}\n{path}\n{body}")
    }

    /// The signature, in lowercase hex.
    pub fn sign(&self, key: &HmacKey) -> String {
        key.sign_hex(self.message().as_bytes())
    }

    /// Whether `signature` (hex) is the signature of this request.
    pub fn verify(&self, key: &HmacKey, signature: &str) -> bool {
        key.verify_hex(self.message().as_bytes(), signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::sha256;
    use proptest::prelude::*;

    const K: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const ASCENDING: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn key(hex: &str) -> HmacKey {
        HmacKey::from_hex(hex).unwrap()
    }

    fn raw(text: &str) -> HmacKey {
        HmacKey::from_bytes(Secret::new(text.as_bytes().to_vec()))
    }

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    #[test]
    #[rustfmt::skip] // a table
    fn stream_signatures_are_those_of_the_specification() {
        for (hex, topic, pairs, expected) in [
            (K, "audit:events", &[("action", "transfer"), ("amount", "100")][..],
                "c06ccc579e026c31a97a04f203981b236a3c88041712e9b46242e8762da23d75"),
            (K, "audit:events", &[("action", "transfer")],
                "93c82e377fc1ff7f1430549aa20cd20971150173b5996308ab84cb48d6f2683d"),
            (K, "audit:events", &[("action", "transfer"), ("_sig", "deadbeef")],
                "93c82e377fc1ff7f1430549aa20cd20971150173b5996308ab84cb48d6f2683d"),
            (K, "audit:events", &[("active", "true"), ("count", "0"), ("name", "")],
                "dd36b85d880107b52155410569f95436acd8b5a656bba83e37c4b0196fb32ae1"),
            (K, "caracal.sessions.revoke", &[("zone_id", "zone-1"),
                ("session_id", "authority-record-1"), ("reason", "grant_revoked")],
                "e40a3bbe8282621aa8be0215f35a2639ba6b076192d1722d6271a1e47399b373"),
            (K, "caracal.sessions.revoke", &[("agent_session_id", "s-1"),
                ("dedupe_key", "agent_terminate:s-1"),
                ("outbox_id", "0198f000-0000-7000-8000-000000000001"),
                ("reason", "ttl"), ("session_id", "ar-1"), ("zone_id", "zone-1")],
                "ea1cbad788a2f7a02d461ea6ec7566e28886343ea04463ab5089bd4013fc1865"),
            (K, "caracal.delegations.invalidate", &[("zone_id", "zone-1"), ("epoch", "8")],
                "27f6adb372451473d4921663bbcb88fc4c6d12188858e12a15f426fc3bc3a975"),
            (ASCENDING, "caracal.sessions.revoke", &[("zone_id", "zone-1"), ("session_id", "ar-1"),
                ("agent_session_id", "sess-1"), ("delegation_edge_id", "edge-1"),
                ("reason", "delegation_revoked"), ("outbox_id", "ob-1"),
                ("dedupe_key", "delegation:edge-1:subject:ar-1")],
                "2027cc1b538ce820f6be5bdf4fd860da4a8e870bb58a2561c285ad3ff9fc0a50"),
            (ASCENDING, "caracal.delegations.invalidate", &[("zone_id", "zone-1"),
                ("event", "edge_revoke"), ("edge_id", "edge-1"), ("affected_edges", "2"),
                ("epoch", "8"), ("outbox_id", "ob-2"), ("dedupe_key", "edge_revoke:edge-1")],
                "ae14bf7fab84b6bdb3655a7ce8b71ebda35bf142b865934e458c20cf83b4d1ec"),
            (ASCENDING, "caracal.policy.invalidate", &[("outbox_id", "o1"),
                ("policy_set_id", "ps1"), ("policy_set_version_id", "v1"), ("zone_id", "z1")],
                "fbbe35603656db8362cdea125f22f41ac30339f3692ff5d16bf9239f78cdbadb"),
        ] {
            let mut entry = fields(pairs);
            assert_eq!(stream_signature(&key(hex), topic, &entry), expected, "{topic} {pairs:?}");
            entry.insert("_sig".into(), expected.to_uppercase());
            assert!(stream_signature_is_valid(&key(hex), topic, &entry));
            assert!(!stream_signature_is_valid(&key(hex), "another.stream", &entry));
        }
    }

    #[test]
    fn the_signature_of_an_audit_event_is_that_of_the_specification() {
        let data = concat!(
            r#"{"id":"evt-1","zone_id":"zone-1","event_type":"token_exchange","#,
            r#""request_id":"req-1","decision":"allow","evaluation_status":"complete","#,
            r#""determining_policies_json":[],"diagnostics_json":[],"#,
            r#""occurred_at":"2026-05-21T12:00:00Z"}"#,
        );
        let expected = "ccf8484f078f6ba655def1c06cbbd4b71fbe8ff965d0fb47fb34219b9e1efc17";
        assert_eq!(key(K).sign_hex(data.as_bytes()), expected);
        assert!(key(K).verify_hex(data.as_bytes(), expected));
    }

    #[test]
    fn gateway_signatures_are_those_of_the_specification() {
        let body = concat!(
            "application_id=app-1&gateway_request_id=req-0001&grant_type=urn%3Aietf%3Aparams%3A",
            "oauth%3Agrant-type%3Atoken-exchange&request_method=POST&request_path=%2Fv1%2Fitems",
            "&resource=resource%3A%2F%2Fpipernet&subject_token=aaa.bbb.ccc&subject_token_type=",
            "urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token&zone_id=zone-1",
        );
        let grant = r#"{"grant_id":"grant_123","scope":"read write"}"#;
        let status = "/internal/policy/status/zone-1";
        let nonce = "11".repeat(32);
        #[rustfmt::skip] // a table
        let vectors = [
            (raw("gateway-signing-key-with-entropy"), 1_700_000_000, "req-123", "post",
                "/oauth/token", grant,
                "4d299b9ededc03aae1467f1d85502ee7c9399d05c9a46123a31d4a768d2e0925"),
            (key(K), 1_700_000_000, "nonce-2", "GET", status, "",
                "88cb42ea68c8feb04ba78c793a9ba58711497f007cce220703e38fc668834bf4"),
            (key(ASCENDING), 1_790_000_000, nonce.as_str(), "POST", "/oauth/2/token", body,
                "84a4ee55221c812cd758a59fac986d15c40a6eedb83c4d3949f76bdb863c1b32"),
            (key(ASCENDING), 1_700_000_000, "req-1", "GET", "/internal/policy/status/z1", "",
                "0babaee3849843cb4d582e5e45bac33e90f31dbddceff6ba3da07e37d669b3ff"),
        ];
        for (key, timestamp, nonce, method, path, body, expected) in vectors {
            let body_sha256 = sha256(body.as_bytes());
            let request = GatewaySignature {
                timestamp,
                nonce,
                method,
                path,
                body_sha256,
            };
            assert_eq!(request.sign(&key), expected);
            assert!(request.verify(&key, expected));
            let later = GatewaySignature {
                timestamp: timestamp + 1,
                ..request
            };
            assert!(!later.verify(&key, expected));
            assert!(!request.verify(&key, "not hex"));
        }
    }

    #[test]
    fn tokens_derived_from_the_operators_token_are_those_of_the_specification() {
        let admin = raw("admin-token-for-docs");
        for (label, expected) in [
            (
                "caracal:console:read-only:v1",
                "L3ZWQsFdzw1nuM49v1D0kypKoUsN3nyQaB2z33Luc64",
            ),
            (
                "caracal:console:write:v1",
                "Nf9-tnSI40hRYvyrjxvy2Di6ocUCAN_tkkLwFs1GoSY",
            ),
            (
                "caracal:console:approve:v1",
                "owOdKu4tc-zI53WFlx9fWnskg1BV2RQf7UWpQd5fM18",
            ),
            (
                "caracal:account:v1:acct-1:2000000000",
                "nF0tESGTjhTiGSCx6ug_5Pqe10cMqBkX-DF2QCsFTm0",
            ),
        ] {
            assert_eq!(admin.sign_b64url(label.as_bytes()), expected);
        }
    }

    #[test]
    fn a_sink_signature_is_that_of_the_specification() {
        let secret = raw(&format!("nsk_{}", "0".repeat(48)));
        let expected = "9c80a4548230cba728bc09ec7d3fb622b8d66af1a5d0cb5316369e855cdbbd4b";
        let body = r#"{"id":"e1","type":"step_up_issued"}"#;
        assert_eq!(
            secret.sign_hex(format!("1700000000.{body}").as_bytes()),
            expected
        );
    }

    #[test]
    fn short_and_malformed_keys_are_refused() {
        assert_eq!(HmacKey::from_hex("zz").unwrap_err(), CryptoError::NotHex);
        let short = HmacKey::from_hex(&"ab".repeat(31)).unwrap_err();
        assert!(matches!(short, CryptoError::KeyLength { got: 31, .. }));
    }

    #[test]
    fn a_field_hidden_in_the_value_of_another_is_refused() {
        let key = key(K);
        let mut entry = fields(&[("a", "1"), ("b", "2")]);
        sign_entry(&key, "s", &mut entry);
        let hidden = fields(&[("a", "1\nb=2"), ("_sig", &entry["_sig"])]);
        assert_eq!(stream_signature(&key, "s", &hidden), entry["_sig"]);
        assert!(!stream_signature_is_valid(&key, "s", &hidden));
        let renamed = fields(&[("a=1\nb", "2"), ("_sig", &entry["_sig"])]);
        assert!(!stream_signature_is_valid(&key, "s", &renamed));
    }

    #[test]
    fn an_entry_with_line_feeds_is_made_publishable() {
        let mut entry = fields(&[("reason", "first\nsecond")]);
        sign_entry(&key(K), "s", &mut entry);
        assert_eq!(entry["reason"], "first second");
        assert!(stream_signature_is_valid(&key(K), "s", &entry));
    }

    proptest! {
        #[test]
        fn a_changed_entry_is_refused(
            pairs in prop::collection::btree_map("[a-z_]{1,8}", "[ -~]{0,12}", 1..6),
            name in "[a-z]{1,8}", value in "[ -~]{1,12}",
        ) {
            let key = key(K);
            let mut entry: Fields = pairs;
            entry.remove("_sig");
            sign_entry(&key, "s", &mut entry);
            prop_assert!(stream_signature_is_valid(&key, "s", &entry));
            let before = entry.insert(name, value.clone());
            prop_assume!(before.as_ref() != Some(&value));
            prop_assert!(!stream_signature_is_valid(&key, "s", &entry));
        }
    }
}
