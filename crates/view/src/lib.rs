//! What the hot path reads: zones, Sessions, Delegations and revocations in memory, as fresh as a
//! stated bound, and the way in which changes get there.
//!
//! **Forces.** A governed call should not wait for the store; a revocation must be seen by every
//! replica at once, or within a bound that an operator can name; and a replica that is cut off must
//! know it.
//!
//! **Choice.** Each mutation writes its change in its own transaction; the [`Relay`] puts it on the
//! bus; each replica's [`Follower`] applies it to its [`Views`]. Memory answers while the feed was
//! confirmed within `FEED_MAX_LAG`. Past that, answers are read through from the store; when the
//! store is gone as well, there is none, and callers deny.
//!
//! **Rejected.** Caches with a lifetime (nobody can state the bound), polling (the bound is the
//! period), asking the store for each call (it costs more than the decision).
//!
//! **Consequence.** Three invariants carry the safety of this crate, and are named where they are
//! relied on:
//!
//! - INVARIANT (lease): the lease counts from when the feed was asked (`lease`);
//! - INVARIANT (position first, snapshot second): no revocation falls between the two (`feed`,
//!   `revocations`);
//! - INVARIANT (load): nothing that was read before a change is used after it was applied (`live`,
//!   `zones`).

mod absent;
mod announce;
mod backoff;
mod barrier;
mod connections;
mod error;
mod facts;
mod feed;
mod follower;
mod lease;
mod live;
mod reads;
mod relay;
mod revocations;
mod secrets;
mod sentinel;
mod versions;
mod views;
mod zone;
mod zones;

pub use announce::{Announce, Distributed, Local};
pub use barrier::ReplicaStatus;
pub use caracal_store::live::Anchor;
pub use connections::UserConnection;
pub use error::ViewError;
pub use feed::{FOLLOWED, Positions};
pub use follower::Follower;
pub use relay::{Relay, RelayOptions, RelayStats, Witness};
pub use revocations::{Anchors, IssuedTo, MandateAnchors};
pub use secrets::{Document, ProviderSecret, SecretAtHand, SecretLost};
pub use sentinel::Sentinel;
pub use versions::Seen;
pub use views::{ViewConfig, ViewStats, Views};
pub use zone::{
    Application, IssuerRow, KEPT_AFTER, KeyTimes, NO_ACTIVE_POLICY_SET, Provider, Resource,
    Resources, ZONE_KEY_AAD, ZoneKeys, ZoneView,
};
