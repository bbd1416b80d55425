//! The admin audit: who changed what through a service, recorded before it is told
//! (spec: audit-and-streams §12, better 7; admin-api §20.2).
//!
//! **Forces.** A change without a record must not exist, not even after a crash. Records form a
//! chain for each zone, and a chain has one order; changes must not queue for it. Strangers must not
//! be able to write into it.
//!
//! **Choice.** Three steps. An *intent*, the record as far as it is known, rides in the transaction
//! of the change itself ([`caracal_store::Rider`]): no round trip of its own, and when it cannot be
//! written the change is not made. Once the answer is known the record is *completed* with its
//! status and the id of what was made, and handed to the one [`Chainer`] of the process, which
//! *appends* whatever has gathered to the chains in one transaction, on condition that their heads
//! are where it saw them. What changed nothing in the store (a policy that was only checked, say) is
//! appended before the answer. Refusals of known callers are appended after it, as well as can be;
//! refusals of strangers are counted, and each minute has one record of them.
//!
//! **Consequence.** A process that dies between commit and answer leaves an intent: a minute later
//! another process appends it, with `"answer":"unknown"`. Who reads the trail waits until the
//! records of its zone have arrived ([`Trail::settle`]).
//!
//! **Rejected.** Appending within the transaction of the change: every change of a zone would wait
//! for the one before it. A lock per zone, as the published service has: the same, and it deadlocks
//! with locks of the change.

mod attend;
mod chainer;
mod draft;
mod metrics;
mod tally;
mod target;
#[cfg(test)]
mod tests;

pub use attend::{Attendant, Made, attend};
pub use chainer::{Chainer, Trail};
pub use draft::{Actor, Deed, Draft};
pub use metrics::Metrics;
pub use target::Rules;
