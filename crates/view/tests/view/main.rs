//! The view on real stores and both buses: what may be believed, and when.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at once"
)]

mod freshness;
mod relay;
mod support;
mod zones;
