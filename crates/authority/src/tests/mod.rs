//! Tests of the kernel as a whole.

mod approvals;
mod delegations;
mod exchange;
mod graphs;
mod holds;
mod identity;
mod properties;
mod questions;
mod rows;
mod standing;
mod world;
