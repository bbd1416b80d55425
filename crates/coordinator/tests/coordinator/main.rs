//! The Coordinator over its wire, on SQLite and, when `CARACAL_TEST_POSTGRES` is set, on Postgres.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at once"
)]

mod contract;
mod delegations;
mod races;
mod recorded;
mod sessions;
mod support;
mod time;
