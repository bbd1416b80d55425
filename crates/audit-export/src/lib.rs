//! The ledger as Parquet, hour by hour, in a bucket or a directory (spec: audit-and-streams §9).
//!
//! The only crate that knows object stores and Parquet. [`Exporter`] writes every complete hour
//! once, beside it a manifest that says what it holds and how to check it; [`Table`] writes any
//! events in the same columns.

mod bucket;
mod config;
mod exporter;
mod manifest;
mod metrics;
mod plan;
mod s3;
mod table;

pub use bucket::Bucket;
pub use config::{Config, LockMode};
pub use exporter::{Deps, Exporter};
pub use manifest::{Chain, Manifest, ZoneStretch};
pub use metrics::Metrics;
pub use table::{Table, TableError};

use caracal_net::egress::presentable;
use caracal_store::StoreError;

/// Why something is not exported yet.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The ledger did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bucket did not take or give an object.
    #[error("the bucket: {}", told(.0))]
    Bucket(#[from] object_store::Error),
    /// The scratch file or the directory.
    #[error("{doing}: {source}")]
    File {
        /// What was done.
        doing: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The file could not be written as Parquet.
    #[error(transparent)]
    Table(#[from] TableError),
    /// An object of that name is there, and holds something else.
    #[error(
        "{object} is there with other contents; it is not replaced: move it away, or find out who wrote it"
    )]
    Taken {
        /// Its key.
        object: String,
    },
    /// The TLS configuration cannot be used.
    #[error(transparent)]
    Tls(#[from] caracal_net::egress::TlsError),
    /// Work on another thread did not come back.
    #[error("the export was interrupted")]
    Interrupted,
}

/// Most that is told of what a server said.
const TOLD: usize = 200;

/// The library adds what the server answered, word for word; and a server may repeat what it was shown.
fn told(error: &object_store::Error) -> String {
    let text = error.to_string();
    let theirs = "status code: ";
    match text.split_once(theirs) {
        Some((ours, said)) => format!("{ours}{theirs}{}", presentable(said, TOLD)),
        None => text,
    }
}
