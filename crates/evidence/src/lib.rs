//! The producer's side of evidence: no decision leaves the process before what it was is written
//! down (architecture section 5; spec README, decision 18).
//!
//! **Forces.** Evidence stands on the path of every call, so a write may cost microseconds, not a
//! round trip. It must survive a kill of the process, and an outage of the bus or of Audit must
//! neither lose it nor fill memory with it.
//!
//! **Choice.** Each producer has a log of its own: a small SQLite file whose one writer thread
//! commits whatever has gathered and then answers everyone who waited. A [`Relay`] hands what was
//! committed to a [`Sink`], in order, and only what has arrived is deleted: what was sent on a stream
//! stays until Audit has it in the ledger, because a stream may lose what it has acknowledged. In
//! normal operation the relay is fed from memory and never reads the file.
//!
//! **Rejected.** Buffer in memory and spill on trouble (the reference): a kill loses the buffer,
//! and what was spilled waits for the next start. A log format of our own: one more format to
//! recover and to fuzz.
//!
//! **Consequence.** Delivery is at least once, and Audit deduplicates by event id. When the log
//! cannot take an event, the caller is told and must refuse: no evidence, no allow.

mod backlog;
mod disk;
mod error;
mod flood;
mod folder;
mod keeper;
pub mod lifecycle;
mod log;
mod relay;
mod sink;
mod spool;
mod waiting;
mod writer;

pub use error::{EvidenceError, OpenError};
pub use flood::Flood;
pub use log::{Durability, EvidenceLog, Stats};
pub use relay::{Drain, Relay};
pub use sink::{BusSink, Delivered, LEDGER_GROUP, Pending, Sink, SinkError};
pub use waiting::{Waiting, waiting};

#[cfg(test)]
mod tests;
