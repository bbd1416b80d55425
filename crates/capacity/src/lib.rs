//! What a deployment is short of: from the metrics of its services to the bottleneck, the first
//! action and what should come of it; and how large a deployment must be for a load.
//!
//! **Forces.** An operator under load has five minutes and twenty dashboards. The published procedure
//! is right (first saturated resource; replicas only while storage is healthy; storage before pools;
//! check again; write it down), but it leaves the reading to people. **Choice.** The procedure is a
//! table here: signals with their thresholds ([`signal`]), bottlenecks with their causes and advice
//! ([`bottleneck`]), and one order of causes, so that of several symptoms the one that explains the
//! others is named. Nothing here does I/O or asks for the time: what was seen comes in as an
//! [`Observation`], so every verdict can be made again from recorded metrics.

pub mod bottleneck;
mod compare;
pub mod diagnose;
pub mod distribution;
pub mod exposition;
pub mod names;
pub mod observe;
pub mod plan;
pub mod prometheus;
pub mod record;
pub mod report;
pub mod show;
pub mod signal;
pub mod watch;

pub use bottleneck::Bottleneck;
pub use observe::{Look, Observation, Postgres, Ready, Redis, Service, Target};
pub use report::{Report, Summary};
pub use signal::Thresholds;
