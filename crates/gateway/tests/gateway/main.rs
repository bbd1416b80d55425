//! The Gateway over real sockets: what a caller, an upstream and an auditor see.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at once"
)]

mod client;
mod denials;
mod evidence;
mod fidelity;
mod operator;
mod stack;
mod streaming;
