//! The ledger, without any I/O: what an evidence event is, its one text, the chain that makes a
//! change of the past visible, and the tree, checkpoints and receipts that prove it to others.
//!
//! Producers make [`Event`]s and write their text once; from then on only that text counts. Audit
//! parses it for its index and links its bytes into the chain of the zone; whoever verifies needs
//! this crate, the rows and (for the authorship) the key.

pub mod admin;
pub mod chain;
pub mod checkpoint;
pub mod event;
pub mod history;
pub mod line;
pub mod merkle;
pub mod note;
pub mod receipt;
pub mod tile;
pub mod trust;

pub use admin::AdminRecord;
pub use chain::{Broken, Head, Link, StoredLink, Verifier, Why};
pub use checkpoint::{Checkpoint, CheckpointError, Rotation};
pub use event::{Event, LedgerError, Metadata, Outline};
pub use history::{Flaw, Floor, History, Kept, Named, Sound, Unsound};
pub use line::Line;
pub use note::Vkey;
pub use receipt::{Consistency, Receipt, ReceiptError};
pub use trust::{Keys, Opened};
