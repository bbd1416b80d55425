//! The rules: what authority is, how it narrows and who may use it. Pure: no I/O, no clock, no
//! async. Everything that a decision uses is handed in, so it can be replayed from its evidence.

pub mod constraints;
pub mod decide;
pub mod facts;
mod input;
pub mod lineage;
pub mod operation;
