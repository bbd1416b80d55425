//! No text makes the mandate parser panic, and no text that we did not sign verifies.
#![no_main]

use std::sync::OnceLock;

use caracal_crypto::es256::{Jws, SigningKey, VerifyKey};
use caracal_model::{Kid, Mandate};
use libfuzzer_sys::fuzz_target;

static KEY: OnceLock<VerifyKey> = OnceLock::new();

fuzz_target!(|text: &str| {
    let key = KEY.get_or_init(|| {
        let signing = SigningKey::generate(Kid::trusted("fuzz")).expect("a key");
        VerifyKey::from_jwk(signing.public()).expect("its public half")
    });
    if let Ok(jws) = Jws::parse(text) {
        let _ = serde_json::from_slice::<Mandate>(jws.payload());
        assert!(jws.verify(key).is_err());
    }
});
