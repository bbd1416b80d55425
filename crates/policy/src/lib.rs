//! Policy: which documents a zone may have, and what they allow.
//!
//! **Forces.** Documents are Rego, because that is what their authors know; deciding in Rego costs
//! more than everything else in an exchange together, and grows with the number of grants.
//!
//! **Choice.** A document holds data and nothing else, so nearly every document is constant: it is
//! evaluated once, when it is loaded, and a native contract answers from typed maps. A document
//! that reads `input` is evaluated for each question, with the same contract as Rego text. The two
//! contracts are compared by a property test.
//!
//! **Consequence.** The contract exists twice, and a change of its meaning is a change of both and
//! of [`CONTRACT_VERSION`].

mod answer;
mod bundle;
mod document;
mod engine;
mod native;
mod rego;
mod scan;
mod simulate;
mod templates;
mod zone_policy;

#[cfg(test)]
mod tests;

pub use answer::to_json as result_json;
pub use bundle::{
    CONTRACT_VERSION, DenyAll, PolicyError, compile, compile_checked, contract_sha256,
    manifest_sha256,
};
pub use document::{InvalidPolicy, Preview, validate};
pub use rego::CONTRACT_REGO;
pub use simulate::{SimulationError, question, simulate};
pub use templates::{Template, templates};
