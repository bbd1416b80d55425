//! The export, from events to objects.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test may stop at once, and says when it is skipped"
)]

mod directory;
mod s3;
mod stage;
