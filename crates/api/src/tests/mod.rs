//! The service through its router, on each engine at hand.

mod admin_audit;
mod admission;
mod approvals;
mod audit;
mod connections;
mod identity;
mod inventory;
mod lists;
mod malformed;
mod outside;
mod policy;
mod proofs;
mod provisioning;
mod replay;
mod reseal;
mod secrets;
mod stack;
mod streams;
mod tokens;
mod workloads;

pub use stack::{Stack, on_each_engine};
