//! The page's three tables, a test for each row: from the text of `/metrics` to the bottleneck.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

mod escalation;
mod procedure;
mod scene;
mod signals;
mod sizing;
mod symptoms;
