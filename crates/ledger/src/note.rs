//! Signed notes (C2SP signed-note): text with signature lines below it, as witnesses read them.
//!
//! ```text
//! text, ending in a newline
//!
//! — <name> <base64 of key id | signature>
//!
//! key id = SHA-256(name | 0x0A | 0x01 | public key)[..4]
//! vkey   = <name>+<key id in hex>+<base64 of 0x01 | public key>
//! ```
//!
//! Others may add lines (a witness's cosignature); lines of keys that we do not know are ignored.

use std::fmt;
use std::str::FromStr;

use caracal_crypto::digest::{
    base64_decode, base64_encode, hex_decode_array, hex_encode, sha256_of,
};
use caracal_crypto::{CryptoError, NoteKey, NoteVerifyKey};

/// Longest note that is read; ours have about 400 bytes, and witnesses add a few hundred each.
const MAX_NOTE: usize = 64 * 1024;
/// Ed25519.
const ALGORITHM: u8 = 1;
const ID: usize = 4;
const DASH: &str = "\u{2014} ";

/// A note is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not text with signature lines.
    #[error("not a signed note")]
    Malformed,
    /// No line is of the key.
    #[error("it is not signed with this key")]
    OtherKey,
    /// The line of the key does not fit the text.
    #[error("its signature is wrong")]
    Signature,
}

/// The text is no vkey, or its parts contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a verifier key: NAME+KEYID+BASE64 of an Ed25519 key")]
pub struct VkeyError;

/// Whether a key or a log may be called so.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c == '+' || c.is_whitespace() || c.is_control())
}

/// A public key and the name that it signs under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vkey {
    name: String,
    key: NoteVerifyKey,
}

impl Vkey {
    /// `None` when a key cannot be called so.
    pub fn new(name: impl Into<String>, key: NoteVerifyKey) -> Option<Self> {
        let name = name.into();
        is_name(&name).then_some(Self { name, key })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same key under the name of a log: this name, or one below it (`caracal/a1` for
    /// `caracal/a1/zone`). So one text stands for every zone of a deployment. `None` for the name
    /// of anybody else's log.
    pub fn of_log(&self, origin: &str) -> Option<Self> {
        let own = origin == self.name;
        let below = origin
            .strip_prefix(&self.name)
            .is_some_and(|rest| rest.starts_with('/'));
        if own || below {
            Self::new(origin, self.key)
        } else {
            None
        }
    }

    fn id(&self) -> [u8; ID] {
        let hash = sha256_of(&[
            self.name.as_bytes(),
            b"\n",
            &[ALGORITHM],
            &self.key.as_bytes()[..],
        ]);
        hash.first_chunk().copied().unwrap_or_default()
    }
}

impl fmt::Display for Vkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [&[ALGORITHM], &self.key.as_bytes()[..]].concat();
        let id = hex_encode(&self.id());
        write!(f, "{}+{id}+{}", self.name, base64_encode(&key))
    }
}

impl FromStr for Vkey {
    type Err = VkeyError;

    fn from_str(text: &str) -> Result<Self, VkeyError> {
        let mut parts = text.trim().splitn(3, '+');
        let mut part = || parts.next().ok_or(VkeyError);
        let (name, id, key) = (part()?, part()?, part()?);
        let id: [u8; ID] = hex_decode_array(id).ok_or(VkeyError)?;
        let key = base64_decode(key).map_err(|_| VkeyError)?;
        let key = key.strip_prefix(&[ALGORITHM]).ok_or(VkeyError)?;
        let key = NoteVerifyKey::from_bytes(key).ok_or(VkeyError)?;
        let vkey = Self::new(name, key).ok_or(VkeyError)?;
        (vkey.id() == id).then_some(vkey).ok_or(VkeyError)
    }
}

/// Signs a text under a name, with each of the keys: a line for each, in their order.
///
/// # Errors
/// [`CryptoError`] when the library cannot sign.
pub fn sign<'k>(
    text: &str,
    name: &str,
    keys: impl IntoIterator<Item = &'k NoteKey>,
) -> Result<String, CryptoError> {
    let mut note = format!("{text}\n");
    for key in keys {
        let vkey = Vkey::new(name, key.public()).ok_or(CryptoError::Primitive {
            doing: "naming the key of a note",
        })?;
        let signature = [&vkey.id()[..], &key.sign(text.as_bytes())?].concat();
        let line = base64_encode(&signature);
        note.push_str(&format!("{DASH}{name} {line}\n"));
    }
    Ok(note)
}

/// The text of a note, without any judgement on its signatures.
///
/// # Errors
/// [`NoteError::Malformed`].
pub fn text(note: &str) -> Result<&str, NoteError> {
    split(note).map(|(text, _)| text)
}

/// The text of a note that this key has signed.
///
/// # Errors
/// [`NoteError`].
pub fn verify<'n>(note: &'n str, vkey: &Vkey) -> Result<&'n str, NoteError> {
    let (text, lines) = split(note)?;
    let mut signed = false;
    for line in lines.lines() {
        let line = line.strip_prefix(DASH).ok_or(NoteError::Malformed)?;
        let (name, signature) = line.split_once(' ').ok_or(NoteError::Malformed)?;
        let signature = base64_decode(signature).map_err(|_| NoteError::Malformed)?;
        let (id, signature) = signature
            .split_first_chunk::<ID>()
            .ok_or(NoteError::Malformed)?;
        if name != vkey.name || *id != vkey.id() {
            continue;
        }
        // One wrong signature of a known key is reason enough, whatever stands beside it.
        if !vkey.key.verify(text.as_bytes(), signature) {
            return Err(NoteError::Signature);
        }
        signed = true;
    }
    if signed {
        Ok(text)
    } else {
        Err(NoteError::OtherKey)
    }
}

/// The text with its last newline, and the lines below it.
fn split(note: &str) -> Result<(&str, &str), NoteError> {
    let odd = |c: char| c < ' ' && c != '\n';
    if note.len() > MAX_NOTE || note.contains(odd) || !note.ends_with('\n') {
        return Err(NoteError::Malformed);
    }
    let end = note.rfind("\n\n").ok_or(NoteError::Malformed)?;
    let (text, rest) = note.split_at(end + 1);
    let lines = rest.strip_prefix('\n').ok_or(NoteError::Malformed)?;
    if text.len() <= 1 || lines.is_empty() {
        return Err(NoteError::Malformed);
    }
    Ok((text, lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::TestRng;
    use proptest::prelude::*;

    fn key() -> NoteKey {
        NoteKey::from_seed(&[7; 32]).unwrap()
    }

    fn vkey(name: &str) -> Vkey {
        Vkey::new(name, key().public()).unwrap()
    }

    /// A key, a note and its signature that other implementations test against.
    #[test]
    fn notes_and_keys_of_others_are_read() {
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let peter: Vkey = text.parse().unwrap();
        assert_eq!(
            (peter.name(), peter.to_string().as_str()),
            ("PeterNeumann", text)
        );
        let body = "If you think cryptography is the answer to your problem,\n\
                    then you don't know what your problem is.\n";
        let note = format!(
            "{body}\n\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
        );
        assert_eq!(verify(&note, &peter), Ok(body));
        assert_eq!(
            verify(&note, &vkey("PeterNeumann")),
            Err(NoteError::OtherKey)
        );
        let changed = note.replace("answer", "cause");
        assert_eq!(verify(&changed, &peter), Err(NoteError::Signature));
    }

    #[test]
    fn a_key_stands_for_the_logs_below_its_name() {
        let deployment = vkey("caracal/a1");
        assert_eq!(
            deployment.of_log("caracal/a1/z1"),
            Some(vkey("caracal/a1/z1"))
        );
        assert_eq!(deployment.of_log("caracal/a1"), Some(vkey("caracal/a1")));
        for other in [
            "caracal/a12",
            "caracal",
            "caracal/a12/z1",
            "x/caracal/a1",
            "",
        ] {
            assert_eq!(deployment.of_log(other), None, "{other}");
        }
    }

    #[test]
    fn texts_that_are_no_vkey_are_refused() {
        let good = vkey("log").to_string();
        assert_eq!(good.parse(), Ok(vkey("log")));
        for bad in [
            "",
            "log",
            "log+00000000",
            &good.replace("log", "lag"),
            &good.replace("log", ""),
            &good.replace("+A", "+B"),
            &good[..good.len() - 4],
        ] {
            assert_eq!(bad.parse::<Vkey>(), Err(VkeyError), "{bad}");
        }
    }

    #[test]
    fn lines_of_others_are_ignored_and_those_of_the_key_must_fit() {
        let other = NoteKey::generate(&TestRng::default()).unwrap();
        let note = sign("text\n", "log", [&key()]).unwrap();
        let line = |note: &str| note.split_once("\n\n").unwrap().1.to_owned();
        let witness = line(&sign("text\n", "witness", [&other]).unwrap());
        assert_eq!(
            verify(&format!("{note}{witness}"), &vkey("log")),
            Ok("text\n")
        );
        let forged = line(&sign("other\n", "log", [&key()]).unwrap());
        let both = format!("{note}{forged}");
        assert_eq!(verify(&both, &vkey("log")), Err(NoteError::Signature));
        assert_eq!(verify(&note, &vkey("lag")), Err(NoteError::OtherKey));
    }

    #[test]
    fn texts_that_are_no_note_are_refused() {
        let note = sign("text\n", "log", [&key()]).unwrap();
        for bad in [
            String::new(),
            "text\n".into(),
            "text\n\n".into(),
            "\n\n".into(),
            note.trim_end().to_owned(),
            note.replace("text", "te\txt"),
            note.replace('\u{2014}', "-"),
            note.replace("log ", "log"),
            format!("{note}junk\n"),
            format!("{}{note}", "x".repeat(MAX_NOTE)),
        ] {
            assert_eq!(
                verify(&bad, &vkey("log")),
                Err(NoteError::Malformed),
                "{bad:.60}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_note_with_any_character_changed_is_refused(at in any::<prop::sample::Index>(), to in "[A-Za-z0-9+/=\n ]") {
            let note = sign("caracal/a1/z1\n12\nroot\n", "log", [&key()]).unwrap();
            let places: Vec<usize> = note.char_indices().map(|(place, _)| place).collect();
            let place = places[at.index(places.len())];
            let old = note[place..].chars().next().unwrap();
            prop_assume!(old.to_string() != to);
            let changed = format!("{}{to}{}", &note[..place], &note[place + old.len_utf8()..]);
            prop_assert!(verify(&changed, &vkey("log")).is_err(), "{changed}");
        }

        #[test]
        fn no_text_makes_the_reader_panic(note in "\\PC{0,40}(\n\n)?(\u{2014} )?\\PC{0,40}\n?", key in "\\PC{0,60}") {
            let _ = verify(&note, &vkey("log"));
            let _ = key.parse::<Vkey>();
        }
    }
}
