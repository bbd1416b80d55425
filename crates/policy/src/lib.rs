//! Policy: which documents a zone may have, and what they allow.
//!
//! **Forces.** Documents are Rego, because that is what their authors know; deciding in Rego costs
//! more than everything else in an exchange together, and grows with the number of grants.
//!
//! **Choice.** A document holds data and nothing else, so nearly every document is constant: it is
//! evaluated once, when it is loaded, and a native contract answers from typed maps. Of a document
//! that reads `input`, the roots that depend on it are evaluated for each question, as bytecode where
//! that is safe. The contract as Rego text is what the native one is compared with, by a property
//! test.
//!
//! **Consequence.** The contract exists twice, and a change of its meaning is a change of both, of
//! [`CONTRACT_VERSION`] and of the hash that a test pins.

mod answer;
mod ast;
mod bundle;
mod bytecode;
mod document;
mod dynamic;
mod engine;
mod explain;
mod limits;
mod meter;
mod native;
mod plain;
mod recorded;
#[doc(hidden)]
pub mod reference;
mod rego;
mod scan;
mod simulate;
mod templates;
mod zone_policy;

#[cfg(test)]
mod tests;

pub use answer::to_json as result_json;
pub use bundle::{
    CONTRACT_VERSION, DenyAll, PolicyError, compile, compile_checked, contract_sha256, inputs_read,
    manifest_sha256, validate_whole,
};
pub use document::{InvalidPolicy, Preview, validate};
pub use explain::{Check, Explanation, explain};
pub use meter::{Meter, compile_measured, meter};
pub use recorded::{evidence, not_recorded, recorded};
pub use rego::CONTRACT_REGO;
pub use simulate::{SimulationError, question, simulate};
pub use templates::{Template, templates};
