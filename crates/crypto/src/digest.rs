//! SHA-256 and the two text forms of bytes on our wire: lowercase hex, and base64url without
//! padding (spec README, conventions).

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// The text is not in the encoding that it should be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text is not validly encoded")]
pub struct EncodingError;

/// SHA-256.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    to_array(digest::digest(&digest::SHA256, data).as_ref())
}

/// SHA-256 of the parts, one after another.
pub fn sha256_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    to_array(context.finish().as_ref())
}

/// SHA-256 in lowercase hex.
pub fn sha256_hex(data: &[u8]) -> String {
    hex_encode(&sha256(data))
}

/// Lowercase hex.
pub fn hex_encode(data: &[u8]) -> String {
    hex::encode(data)
}

/// From hex of either case.
///
/// # Errors
/// [`EncodingError`] when the text is not hex.
pub fn hex_decode(text: &str) -> Result<Vec<u8>, EncodingError> {
    hex::decode(text).map_err(|_| EncodingError)
}

/// Exactly `N` bytes from hex of either case, without an allocation.
pub fn hex_decode_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0u8; N];
    hex::decode_to_slice(text, &mut out).ok()?;
    Some(out)
}

/// Standard base64, padded.
pub fn base64_encode(data: &[u8]) -> String {
    STANDARD.encode(data)
}

/// From standard base64, padded. Left-over bits are refused, so that one value has one text.
///
/// # Errors
/// [`EncodingError`] when the text is anything else.
pub fn base64_decode(text: &str) -> Result<Vec<u8>, EncodingError> {
    STANDARD.decode(text).map_err(|_| EncodingError)
}

/// Base64url without padding.
pub fn b64url_encode(data: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(data)
}

/// From base64url. Padding and left-over bits are refused, so that one value has one text.
///
/// # Errors
/// [`EncodingError`] when the text is anything else.
pub fn b64url_decode(text: &str) -> Result<Vec<u8>, EncodingError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| EncodingError)
}

/// The digest as an array. The library's digests and tags of SHA-256 have 32 bytes; should that
/// ever fail to hold, the result is all zero, which equals no digest of anything.
pub(crate) fn to_array(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap_or([0; 32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_parts_and_of_the_whole_agree() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_hex(b"abc"), abc);
        assert_eq!(hex_encode(&sha256_of(&[b"a", b"", b"bc"])), abc);
    }

    #[test]
    fn one_value_has_one_base64url_text() {
        assert_eq!(b64url_encode(&[0xfb, 0xff]), "-_8");
        assert_eq!(b64url_decode("-_8"), Ok(vec![0xfb, 0xff]));
        for bad in ["-_8=", "-_9", "+/8", "a", " -_8"] {
            assert_eq!(b64url_decode(bad), Err(EncodingError), "{bad}");
        }
    }

    #[test]
    fn hex_of_the_wrong_length_is_no_array() {
        assert_eq!(hex_decode_array::<2>("00fF"), Some([0, 255]));
        for bad in ["", "00", "00ff00", "zz00", "00f"] {
            assert_eq!(hex_decode_array::<2>(bad), None, "{bad}");
        }
    }
}
