//! The console's word that a request is for an account: `v1.<account>.<expiry>.<mac>`, keyed with
//! the bootstrap token (spec: admin-api §4.3).

use caracal_crypto::digest::b64url_decode;
#[cfg(test)]
use caracal_crypto::digest::b64url_encode;
use caracal_crypto::mac::HmacKey;
use caracal_model::{Secret, Timestamp};
use http::HeaderMap;

const HEADER: &str = "x-caracal-account";
const LONGEST_ACCOUNT: usize = 256;

fn message(account: &str, expires: i64) -> String {
    format!("caracal:account:v1:{account}:{expires}")
}

fn key(secret: &Secret<String>) -> HmacKey {
    HmacKey::from_bytes(Secret::new(secret.expose().clone().into_bytes()))
}

#[cfg(test)]
/// Vouches for an account until `expires` (Unix seconds).
pub fn assertion(secret: &Secret<String>, account: &str, expires: i64) -> String {
    let mac = key(secret).sign_b64url(message(account, expires).as_bytes());
    format!("v1.{}.{expires}.{mac}", b64url_encode(account.as_bytes()))
}

/// The account that the header vouches for, if it does so now.
pub fn verify(secret: &Secret<String>, headers: &HeaderMap, now: Timestamp) -> Option<String> {
    let mut values = headers.get_all(HEADER).iter();
    let text = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let mut parts = text.split('.');
    let (version, account, expires, mac) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let account = String::from_utf8(b64url_decode(account).ok()?).ok()?;
    let expires: i64 = expires.parse().ok()?;
    let mac = b64url_decode(mac).ok()?;
    let genuine = version == "v1"
        && parts.next().is_none()
        && (1..=LONGEST_ACCOUNT).contains(&account.len())
        && key(secret).verify(message(&account, expires).as_bytes(), &mac);
    (genuine && expires > now.unix_seconds()).then_some(account)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTOR: &str = "v1.YWNjdC0x.2000000000.nF0tESGTjhTiGSCx6ug_5Pqe10cMqBkX-DF2QCsFTm0";

    fn account_of(text: &str, now: i64) -> Option<String> {
        let secret = Secret::new("admin-token-for-docs".to_owned());
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, text.parse().unwrap());
        verify(&secret, &headers, Timestamp::from_unix_seconds(now))
    }

    #[test]
    fn the_vector_of_the_specification_holds() {
        let secret = Secret::new("admin-token-for-docs".to_owned());
        assert_eq!(assertion(&secret, "acct-1", 2_000_000_000), VECTOR);
        assert_eq!(account_of(VECTOR, 1_999_999_999).as_deref(), Some("acct-1"));
    }

    #[test]
    fn an_expired_or_altered_assertion_vouches_for_nobody() {
        assert_eq!(account_of(VECTOR, 2_000_000_000), None);
        for text in [
            VECTOR.replace("2000000000", "2000000001"),
            VECTOR.replace("v1.", "v2."),
            VECTOR.replace("YWNjdC0x", "YWNjdC0y"),
            format!("{VECTOR}.x"),
            "v1..2000000000.".to_owned(),
        ] {
            assert_eq!(account_of(&text, 1), None, "{text}");
        }
    }
}
