//! The ledger, without any I/O: what an evidence event is, its one text, and the chain that makes a
//! change of the past visible.
//!
//! Producers make [`Event`]s and write their text once; from then on only that text counts. Audit
//! parses it for its index and links its bytes into the chain of the zone; whoever verifies needs
//! this crate, the rows and (for the authorship) the key.

pub mod chain;
pub mod event;

pub use chain::{Broken, Head, Link, StoredLink, Verifier, Why};
pub use event::{Event, LedgerError};
