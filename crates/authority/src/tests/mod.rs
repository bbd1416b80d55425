//! Tests of the kernel as a whole.

mod approvals;
mod delegations;
mod exchange;
mod graphs;
mod identity;
mod properties;
mod rows;
mod world;
