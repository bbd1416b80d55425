//! The vocabulary of Caracal: ids, times, scopes, claims, refusals and the traits through which
//! time and randomness arrive. No I/O and no async: everything here can be replayed in a test.

pub mod change;
pub mod claims;
pub mod histogram;
pub mod id;
pub mod limits;
pub mod log;
pub mod policy;
pub mod refusal;
pub mod scope;
pub mod secret;
pub mod time;

pub use change::{Change, Outgoing, Topic};
pub use claims::{Actor, ChainHop, Mandate, SubjectType, TokenUse};
pub use histogram::Histogram;
pub use id::{
    ApplicationId, ApprovalId, DelegationId, EventId, IdError, Ids, Jti, Kid, ProviderId, RecordId,
    RequestId, ResourceId, SessionId, WorkloadId, ZoneId,
};
pub use log::{LogId, LogKind};
pub use refusal::{PendingApproval, Refusal, Refused};
pub use scope::Scopes;
pub use secret::Secret;
pub use time::{Clock, Rng, TestClock, TestRng, Ticks, Timestamp};
