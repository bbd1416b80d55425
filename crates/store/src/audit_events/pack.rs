//! How an event is kept: its exact text, in a sixth of its length.
//!
//! **Forces.** The text is what was signed and hashed, so it must come back to the byte. It is most
//! of what the ledger stores; and most of it is names of members, and ids that the columns beside
//! it hold already.
//!
//! **Choice.** What a column says is not said twice: each of its occurrences in the text becomes one
//! byte that no JSON text holds. The rest is compressed with Zstandard and a dictionary that knows
//! our events. The first byte names the form, so a later dictionary can stand beside this one;
//! without such a byte the rest is the text as it came (JSON starts otherwise).
//!
//! **Rejected.** Compression by Postgres: it looks at one row at a time and gains nothing on so
//! short a text. Blocks of many events: a read of one would unpack them all.
//!
//! **Consequence.** Whoever changes a column changes the text that is read, and the chain tells.
//! INVARIANT (dictionary): `dictionary.v1` never changes; rows that refer to it are for ever.

use std::cell::RefCell;
use std::sync::LazyLock;

use zstd::bulk::{Compressor, Decompressor};
use zstd::dict::{DecoderDictionary, EncoderDictionary};
use zstd::zstd_safe::{self, CParameter};

use crate::error::StoreError;

/// Trained on samples of every event type of the catalogue.
const DICTIONARY: &[u8] = include_bytes!("dictionary.v1");
const LEVEL: i32 = 3;
/// The form with this dictionary. Stands in for the four bytes that every frame begins with.
const V1: u8 = 1;
/// The form of a text that begins like a form; no event does.
const PLAIN: u8 = 2;
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Largest text that is unpacked; ingestion takes far shorter ones.
const MAX_TEXT: u64 = 64 * 1024 * 1024;
/// A value that is shorter gains nothing by a mark.
const WORTH_A_MARK: usize = 6;

/// What the columns beside the text say: id, zone, request, application, Session and Authority
/// record. The order is part of the form.
pub(crate) type Said<'a> = [Option<&'a str>; 6];

static ENCODER: LazyLock<EncoderDictionary<'static>> =
    LazyLock::new(|| EncoderDictionary::copy(DICTIONARY, LEVEL));
static DECODER: LazyLock<DecoderDictionary<'static>> =
    LazyLock::new(|| DecoderDictionary::copy(DICTIONARY));

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The text in its stored form.
pub(crate) fn pack(text: &str, said: &Said<'_>) -> Vec<u8> {
    packed(text, said).unwrap_or_else(|| plain(text))
}

fn plain(text: &str) -> Vec<u8> {
    let names_a_form = matches!(text.as_bytes().first(), Some(&(V1 | PLAIN)));
    let mut out = Vec::with_capacity(text.len() + 1);
    out.extend(names_a_form.then_some(PLAIN));
    out.extend_from_slice(text.as_bytes());
    out
}

fn packed(text: &str, said: &Said<'_>) -> Option<Vec<u8>> {
    // Without an early end, so that many bytes are looked at at once.
    let is_mark = |found, byte: &u8| found | (1..=6).contains(byte);
    if text.as_bytes().iter().fold(false, is_mark) {
        return None; // no JSON, and so no event; but whatever it is, it comes back
    }
    let short = marked(text, said);
    let mut frame = COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = compressor();
        }
        slot.as_mut()?.compress(&short).ok()
    })?;
    if frame.get(..4) != Some(&MAGIC) || frame.len() >= text.len() {
        return None;
    }
    frame.drain(..3);
    *frame.first_mut()? = V1;
    Some(frame)
}

fn compressor() -> Option<Compressor<'static>> {
    let mut compressor = Compressor::with_prepared_dictionary(&ENCODER).ok()?;
    // The chain has a better checksum, and the form names the dictionary.
    for flag in [
        CParameter::ChecksumFlag(false),
        CParameter::DictIdFlag(false),
        CParameter::ContentSizeFlag(true),
    ] {
        compressor.set_parameter(flag).ok()?;
    }
    Some(compressor)
}

/// Texts in JSON begin behind a quote; a value that stands elsewhere stays as it is.
fn marked(text: &str, said: &Said<'_>) -> Vec<u8> {
    let text = text.as_bytes();
    let mut out = Vec::with_capacity(text.len());
    let mut kept = 0;
    for quote in memchr::memchr_iter(b'"', text) {
        let behind = quote + 1;
        // A value may hold a quote of its own.
        if behind < kept {
            continue;
        }
        let Some(rest) = text.get(behind..) else {
            continue;
        };
        if let Some((mark, value)) = mark_of(rest, said) {
            out.extend_from_slice(text.get(kept..behind).unwrap_or_default());
            out.push(mark);
            kept = behind + value.len();
        }
    }
    out.extend_from_slice(text.get(kept..).unwrap_or_default());
    out
}

/// The first of the values that the text begins with.
fn mark_of<'a>(text: &[u8], said: &Said<'a>) -> Option<(u8, &'a str)> {
    let first = text.first();
    (1_u8..).zip(said).find_map(|(mark, value)| {
        let value = (*value)?;
        // Most begin otherwise, and a comparison is a call.
        let may_be = value.as_bytes().first() == first && value.len() >= WORTH_A_MARK;
        let found = may_be && text.starts_with(value.as_bytes());
        found.then_some((mark, value))
    })
}

/// The text that was stored in this form.
pub(crate) fn unpack(stored: &[u8], said: &Said<'_>) -> Result<String, StoreError> {
    let rest = match stored.split_first() {
        Some((&V1, rest)) => rest,
        Some((&PLAIN, rest)) => return utf8(rest.to_vec()),
        _ => return utf8(stored.to_vec()),
    };
    let mut frame = Vec::with_capacity(rest.len() + MAGIC.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(rest);
    let short = decompress(&frame).ok_or_else(damaged)?;
    let mut text = Vec::with_capacity(short.len() + 256);
    let mut rest = short.as_slice();
    while let Some(at) = rest.iter().position(|byte| (1..=6).contains(byte)) {
        let (before, marked) = rest.split_at(at);
        let (mark, after) = marked.split_first().ok_or_else(damaged)?;
        let value = said.get(usize::from(*mark) - 1).copied().flatten();
        text.extend_from_slice(before);
        text.extend_from_slice(value.ok_or_else(damaged)?.as_bytes());
        rest = after;
    }
    text.extend_from_slice(rest);
    utf8(text)
}

fn decompress(frame: &[u8]) -> Option<Vec<u8>> {
    let length = zstd_safe::get_frame_content_size(frame).ok().flatten()?;
    if length > MAX_TEXT {
        return None;
    }
    let capacity = usize::try_from(length).ok()?;
    DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Decompressor::with_prepared_dictionary(&DECODER).ok();
        }
        slot.as_mut()?.decompress(frame, capacity).ok()
    })
}

fn damaged() -> StoreError {
    StoreError::corrupt("the text of an event")
}

fn utf8(bytes: Vec<u8>) -> Result<String, StoreError> {
    String::from_utf8(bytes).map_err(|_| damaged())
}

/// An id in its stored form: the 16 bytes of a UUID that is written as we write them, else the text
/// behind one or two zero bytes, so that it has any length but 16.
pub(crate) fn pack_id(id: &str) -> Vec<u8> {
    if let Some(bytes) = uuid(id) {
        return bytes.to_vec();
    }
    let zeros = if id.len() == 15 { 2 } else { 1 };
    let mut out = vec![0; zeros];
    out.extend_from_slice(id.as_bytes());
    out
}

/// The id that was stored in this form.
pub(crate) fn unpack_id(stored: &[u8]) -> Result<String, StoreError> {
    if let Ok(bytes) = <[u8; 16]>::try_from(stored) {
        return Ok(hyphenated(&bytes));
    }
    let text: Vec<u8> = stored
        .iter()
        .copied()
        .skip_while(|byte| *byte == 0)
        .collect();
    String::from_utf8(text).map_err(|_| StoreError::corrupt("an id of the ledger"))
}

const HYPHENS: [usize; 4] = [8, 13, 18, 23];

fn uuid(id: &str) -> Option<[u8; 16]> {
    let bytes = id.as_bytes();
    if bytes.len() != 36 {
        return None;
    }
    let mut out = [0_u8; 16];
    let mut digits = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if HYPHENS.contains(&at) {
            if byte != b'-' {
                return None;
            }
            continue;
        }
        let value = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None, // upper case would come back as lower case
        };
        let place = out.get_mut(digits / 2)?;
        *place = (*place << 4) | value;
        digits += 1;
    }
    Some(out)
}

fn hyphenated(bytes: &[u8; 16]) -> String {
    let mut out = String::with_capacity(36);
    for byte in bytes {
        if HYPHENS.contains(&out.len()) {
            out.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0198f000-0000-7000-8000-000000000001";
    const SESSION: &str = "0198f000-0000-7000-8000-0000000000ff";

    fn text() -> String {
        format!(
            r#"{{"id":"{ID}","zone_id":"zone-one","event_type":"token_exchange","request_id":"short",
            "decision":"allow","evaluation_status":"complete","determining_policies_json":[],
            "metadata_json":{{"agent_session_id":"{SESSION}","agent_parent_id":"{SESSION}","x":"é"}},
            "occurred_at":"2026-05-21T12:00:00.123456Z"}}"#
        )
    }

    fn said() -> Said<'static> {
        [
            Some(ID),
            Some("zone-one"),
            Some("short"),
            None,
            Some(SESSION),
            None,
        ]
    }

    #[test]
    fn a_text_comes_back_to_the_byte_and_is_short() {
        let text = text();
        let stored = pack(&text, &said());
        assert_eq!(stored[0], V1);
        assert!(
            stored.len() * 3 < text.len(),
            "{} of {}",
            stored.len(),
            text.len()
        );
        assert_eq!(unpack(&stored, &said()).unwrap(), text);
    }

    #[test]
    fn whatever_it_is_it_comes_back() {
        let odd = [
            Some("a\u{1}bcdefgh"),
            Some("aaaaaa"),
            Some("aaaaaaaa"),
            Some(""),
            None,
            None,
        ];
        for text in [
            "",
            "{}",
            "\u{1}\u{2}",
            "aaaaaaaaaaaaaaaa",
            "{\"a\\u0001bcdefgh\":1}",
            "é",
        ] {
            for said in [said(), odd, [None; 6]] {
                assert_eq!(unpack(&pack(text, &said), &said).unwrap(), text);
            }
        }
        let long = text().repeat(2_000);
        assert_eq!(unpack(&pack(&long, &said()), &said()).unwrap(), long);
    }

    #[test]
    fn what_was_stored_before_forms_is_read_as_it_is() {
        assert_eq!(unpack(text().as_bytes(), &said()).unwrap(), text());
    }

    #[test]
    fn another_column_gives_another_text_and_a_damaged_one_none() {
        let stored = pack(&text(), &said());
        let mut other = said();
        other[0] = Some("0198f000-0000-7000-8000-000000000002");
        assert_ne!(unpack(&stored, &other).unwrap(), text());
        other[0] = None;
        assert!(unpack(&stored, &other).is_err());
        for end in 1..stored.len() {
            assert!(unpack(&stored[..end], &said()).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn the_dictionary_is_the_one_that_rows_refer_to() {
        let digest = caracal_crypto::digest::sha256_hex(DICTIONARY);
        assert_eq!(
            digest,
            "e9e43acb54dc60d7e05fbb07361005cfa2580b0b17f4983c437a5f6a030261ac"
        );
    }

    #[test]
    fn ids_come_back_and_uuids_are_sixteen_bytes_in_their_order() {
        let upper = ID.to_uppercase().replace('0', "A");
        for id in [
            ID,
            "",
            "x",
            "evt-1",
            "fifteen-letters",
            "sixteen-letters!",
            &upper,
            "é",
        ] {
            assert_eq!(unpack_id(&pack_id(id)).unwrap(), id);
            assert_eq!(pack_id(id).len() == 16, id == ID, "{id}");
        }
        assert_eq!(pack_id(ID).len(), 16);
        assert!(pack_id(ID) < pack_id(SESSION));
    }
}
