//! The Gateway: a reverse proxy that lets one call through for each mandate (spec: gateway).
//!
//! **Forces.** An upstream must never see a call that the STS did not decide, a credential must
//! never reach the caller or the wrong host, and a revocation must stop a call also while it runs.
//! All of that on the path of every call, so each check costs microseconds or nothing.
//!
//! **Choice.** The checks are one file in their order (`request`); what has been proven is in the
//! type of the mandate (`mandate`); what was done is on record before its answer is complete
//! (`evidence`, `relay`). Tokens and responses are never cached, nothing is retried once it may
//! have been sent, and no redirect is followed.

mod catalogue;
mod config;
mod credential;
mod denial;
mod evidence;
mod forward;
mod gateway;
mod headers;
mod mandate;
mod metrics;
mod operator;
mod progress;
mod relay;
mod request;
mod revocation;
mod strangers;
/// Public for its fuzz target.
pub mod target;
mod upload;

pub use catalogue::CATALOGUE;
pub use config::{Config, Settings};
pub use gateway::{Deps, router};
