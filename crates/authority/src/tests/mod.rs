//! Tests of the kernel as a whole.

mod delegations;
mod exchange;
mod graphs;
mod properties;
mod world;
