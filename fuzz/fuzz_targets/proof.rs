//! No text makes the readers of notes, keys, receipts and proofs panic, and none that we did not sign
//! verifies.
#![no_main]

use std::sync::OnceLock;

use caracal_crypto::NoteKey;
use caracal_ledger::{Checkpoint, Consistency, Keys, Receipt, Vkey};
use libfuzzer_sys::fuzz_target;

static KEYS: OnceLock<[Vkey; 1]> = OnceLock::new();

fuzz_target!(|text: &str| {
    let keys = KEYS.get_or_init(|| {
        let signing = NoteKey::from_seed(&[7; 32]).expect("a key");
        [Vkey::new("caracal/fuzz", signing.public()).expect("a name")]
    });
    assert!(Checkpoint::open(text, keys).is_err());
    let mut known = Keys::from(keys.to_vec());
    known.learn(text);
    assert!(known.open(text).is_err());
    let _ = Checkpoint::unverified(text);
    if let Ok(read) = text.parse::<Vkey>() {
        assert_eq!(read.to_string().parse(), Ok(read));
    }
    if let Ok(receipt) = serde_json::from_str::<Receipt>(text) {
        assert!(receipt.verify(keys).is_err());
    }
    if let Ok(proof) = serde_json::from_str::<Consistency>(text) {
        assert!(proof.verify(keys).is_err());
    }
});
