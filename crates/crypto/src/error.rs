//! What callers tell apart. No message holds key material, plaintext or a token.

/// A key, an envelope or a stored verifier cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The text is not hexadecimal.
    #[error("the key is not hexadecimal")]
    NotHex,
    /// The key has the wrong length.
    #[error("the key has {got} bytes, needs {needs}")]
    KeyLength {
        /// What it has.
        got: usize,
        /// What it needs, in words.
        needs: &'static str,
    },
    /// The key follows a pattern that nobody gets from a random generator.
    #[error("the key is constant, sequential or alternating: generate a random one")]
    WeakKey,
    /// Not a P-256 key in the expected encoding.
    #[error("key `{kid}` is not a usable P-256 key")]
    KeyRejected {
        /// The key's id.
        kid: String,
    },
    /// The bytes are not a CSS1 envelope.
    #[error("not a sealed envelope")]
    NotAnEnvelope,
    /// Sealed under a key that this process does not hold.
    #[error("sealed under key `{kek_id}`, which is neither the current nor the previous one")]
    UnknownKek {
        /// Identifier of the key that is missing, in hex.
        kek_id: String,
    },
    /// Changed, or sealed for another place.
    #[error("the envelope was altered or belongs to another place")]
    Unsealable,
    /// Not a private key in PEM that can sign assertions.
    #[error("not an RSA key of 2048 bits or more, nor a P-256, P-384 or P-521 key, in PEM")]
    ClientKey,
    /// Not a certificate in PEM.
    #[error("not a certificate in PEM")]
    Certificate,
    /// The stored verifier has neither of the known forms.
    #[error("the stored secret verifier has an unknown form")]
    UnknownVerifier,
    /// The claims do not become JSON.
    #[error("the claims cannot be serialized")]
    Claims,
    /// The token would be longer than any service accepts.
    #[error("the token would have {got} bytes, more than every service accepts")]
    TokenTooLong {
        /// How long it would be.
        got: usize,
    },
    /// The library refused an operation that cannot fail on valid input.
    #[error("the cryptographic library failed while {doing}")]
    Primitive {
        /// What it was asked to do.
        doing: &'static str,
    },
}

/// A token is not acceptable. Which of these it was is for the log, not for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than [`caracal_model::limits::MAX_BEARER_BYTES`].
    #[error("the token is too long")]
    TooLong,
    /// Not three base64url parts with a JSON header.
    #[error("the token is not a compact JWS")]
    Malformed,
    /// Not ES256, or a header that asks for what we do not do.
    #[error("the token's header is not that of an ES256 JWT")]
    Algorithm,
    /// No key is named.
    #[error("the token names no key")]
    NoKid,
    /// Signed with a key of another id than the one it was checked with.
    #[error("the token names another key")]
    WrongKey,
    /// The signature does not fit.
    #[error("the token's signature is wrong")]
    Signature,
}
