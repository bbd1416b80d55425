//! Cryptography of Caracal, and the only user of aws-lc-rs.
//!
//! **Forces.** Keys must be parsed once and not once a signature; secrets must not be comparable
//! with `==`, nor printable; and an auditor must be able to read every primitive that we use in one
//! crate. So each module offers what a service needs (a token, an envelope, a stored verifier), and
//! no module offers a choice of algorithm.
//!
//! The real clock and the real randomness live here too ([`os`]): everything else takes traits.

pub mod client_key;
pub mod digest;
pub mod ed25519;
pub mod envelope;
mod error;
pub mod es256;
pub mod foreign;
pub mod mac;
pub mod os;
pub mod verifier;

pub use client_key::{Certificate, ClientKey};
pub use ed25519::{NoteKey, NoteVerifyKey};
pub use envelope::{Kek, Keyring};
pub use error::{CryptoError, TokenError};
pub use es256::{Jws, PublicJwk, SigningKey, VerifyKey};
pub use mac::{GatewaySignature, HmacKey, stream_signature, stream_signature_is_valid};
pub use os::{OsRng, SystemClock};
pub use verifier::SecretVerifier;
