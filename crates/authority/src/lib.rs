//! The rules of authority: who may do what, for how long, and on whose behalf.
//!
//! **Forces.** This is the code that an auditor reads first and that a mistake makes worthless, so
//! nothing here may depend on the moment, the machine or the storage it runs on.
//!
//! **Choice.** Functions of facts and a time: no I/O, no clock, no async. Whoever holds the facts
//! that a decision was made from can make it again and get the same answer.

pub mod approval;
pub mod constraints;
pub mod control;
pub mod decide;
pub mod effective;
pub mod facts;
pub mod inherit;
pub mod injection;
pub mod lineage;
pub mod narrow;
pub mod operation;
pub mod subject;
pub mod ttl;

#[cfg(test)]
mod tests;

pub use approval::{ApprovalState, ApproverClass, Binding, Course, Privacy, Requirement};
pub use constraints::{ConstraintError, Constraints};
pub use control::ControlKey;
pub use decide::decide;
pub use effective::{EffectiveAuthority, effective_authority};
pub use facts::{
    EdgeFacts, EdgeStatus, Enforcement, Lifecycle, Operation, RecordFacts, RecordStatus,
    ResourceFacts, SessionFacts, SessionStatus, subject_type_from, subject_type_text,
};
pub use inherit::{InheritError, inheritable, mirror};
pub use injection::Injection;
pub use lineage::{Known, Lineage, LineageError};
pub use narrow::{NamedResource, NarrowError, Narrowed, Wish, narrow, select_parent};
pub use subject::{FederatedSubject, Federation, SubjectError};
