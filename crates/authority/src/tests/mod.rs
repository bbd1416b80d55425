//! Tests of the kernel as a whole.

mod approvals;
mod delegations;
mod exchange;
mod graphs;
mod properties;
mod world;
