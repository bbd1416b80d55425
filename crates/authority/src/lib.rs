//! The rules of authority: who may do what, for how long, and on whose behalf.
//!
//! **Forces.** This is the code that an auditor reads first and that a mistake makes worthless, so
//! nothing here may depend on the moment, the machine or the storage it runs on.
//!
//! **Choice.** Functions of facts and a time: no I/O, no clock, no async. Whoever holds the facts
//! that a decision was made from can make it again and get the same answer.

pub mod constraints;
pub mod decide;
pub mod facts;
mod input;
pub mod lineage;
pub mod operation;

pub use constraints::{ConstraintError, Constraints};
pub use facts::{
    EdgeFacts, EdgeStatus, Enforcement, Lifecycle, Operation, RecordFacts, RecordStatus,
    ResourceFacts, SessionFacts, SessionStatus, subject_type_from, subject_type_text,
};
