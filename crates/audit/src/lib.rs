//! The Audit service: evidence in, one ledger that anyone can verify.
//!
//! [`Ingest`] appends; embedded, the evidence relay hands it batches directly, distributed,
//! [`Consumer`] reads them from the bus. [`verify_zone`] and [`verify_export`] find the first event
//! that cannot be trusted.

mod config;
mod consumer;
mod embedded;
mod entry;
mod ingest;
mod metrics;
mod service;
mod sweep;
mod verify;

pub use config::Config;
pub use consumer::{Consumer, ConsumerOptions, DEAD_LETTER_GROUP, DEAD_LETTERS, GROUP, Health};
pub use ingest::{Ingest, IngestOutcome, Rejection};
pub use metrics::Metrics;
pub use service::{Deps, router};
pub use sweep::Sweep;
pub use verify::{
    Finding, Flaw, VerifyError, export_chain, verify_export, verify_zone, verify_zone_from,
};
