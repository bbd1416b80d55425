//! What callers tell apart.

use std::path::PathBuf;
use std::sync::Arc;

use caracal_model::{Refusal, Refused};

/// An event was not recorded. Whatever it was evidence of must not happen.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EvidenceError {
    /// More is waiting to be written than the queue holds.
    #[error("the evidence queue is full")]
    Overloaded,
    /// The disk refused.
    #[error("the evidence log cannot be written: {detail}")]
    Unwritable {
        /// What the disk says.
        detail: Arc<str>,
    },
    /// The process is shutting down.
    #[error("the evidence log is closed")]
    Closed,
}

impl From<EvidenceError> for Refused {
    /// No evidence, no allow (spec README, decision 18). Details stay in the log.
    fn from(error: EvidenceError) -> Self {
        tracing::error!(%error, "refused for want of evidence");
        Refusal::Unavailable
            .because("evidence cannot be recorded")
            .retry_after(1)
    }
}

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it cannot be used.
    #[error("evidence directory `{path}` cannot be used: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process holds this log.
    #[error("evidence log `{path}` is in use by another process: give each its own directory")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// The file is not the log that it should be, or the disk refused.
    #[error("evidence log `{path}` cannot be opened: {source}")]
    Log {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}
