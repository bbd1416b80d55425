//! The Audit service: evidence in, one ledger that anyone can verify.
//!
//! [`Ingest`] appends; embedded, the evidence relay hands it batches directly, distributed,
//! [`Consumer`] reads them from the bus. What can never be appended becomes one of the
//! [`DeadLetters`]; [`Retention`] drops whole months from the beginning. [`Checkpoints`] verifies what
//! came and signs it; [`verify_ledger`] and [`verify_export`] find the first event that cannot be
//! trusted.

mod catalogue;
mod checkpoints;
mod config;
mod consumer;
mod dead_letters;
mod embedded;
mod entry;
mod export;
mod floor;
mod ingest;
mod metrics;
mod parallel;
mod recent;
mod retention;
mod retry;
mod service;
mod source;
mod verify;
mod verify_admin;

pub use catalogue::CATALOGUE;
pub use checkpoints::{CheckpointOptions, Checkpoints, Sealing};
pub use config::Config;
pub use consumer::{Consumer, ConsumerOptions, EXPORTER_GROUP, GROUP, Health};
pub use dead_letters::{DEAD_LETTER_GROUP, DEAD_LETTERS, DeadLetters, Letter, LettersError, MOST};
pub use export::{Auditor, export_chain, verify_export};
pub use ingest::{Ingest, IngestOutcome, Rejection};
pub use metrics::Metrics;
pub use retention::Retention;
pub use retry::Retry;
pub use service::{Deps, router};
pub use verify::{Finding, Trust, VerifyError, verify_ledger, verify_zone};
pub use verify_admin::verify_admin;
