//! The management service: zones and what is in them, policy, admin tokens, and reads of the ledger
//! (spec: admin-api).
//!
//! A mutation is one transaction: its state, its sealed secrets and the news of it commit together,
//! and the news is on its way before the answer is. It never signs mandates; it does make the
//! first signing key of a zone, so that the zone's key set is served from its first moment.

mod activation;
mod admin_audit;
mod admin_tokens;
mod admission;
mod application_secrets;
mod applications;
mod approvals;
mod audit;
mod authority_records;
mod bindings;
mod catalogue;
mod config;
mod custody;
mod failure;
mod fields;
mod manifest;
mod names;
mod notifications;
mod operations;
mod operator;
mod outbox;
mod page;
mod platform_settings;
mod policies;
mod policy_sets;
mod provider_config;
mod provider_connections;
mod provider_test;
mod providers;
mod query;
mod rego;
mod replay;
mod reseal;
mod resources;
mod router;
mod seed;
mod service;
mod simulate;
mod subject_issuers;
mod subjects;
#[cfg(test)]
mod tests;
mod traits;
mod wire;
mod workloads;
mod zones;

pub use audit::follow;
pub use catalogue::CATALOGUE;
pub use config::Config;
pub use custody::sweep as keep_secrets;
pub use notifications::Hooks;
pub use notifications::dispatch::run as notify;
pub use reseal::run as reseal;
pub use router::router;
pub use seed::{derived as derived_token, run as seed};
pub use service::{Api, Deps};
