//! The store: one set of statements on SQLite and Postgres, transactions that carry their own
//! news, and one repository for each aggregate.
//!
//! The only user of `tokio-postgres` and `rusqlite`. Which engine is in use is decided when a
//! [`Store`] is opened and shows in no signature.

#[cfg(test)]
mod conformance;
mod error;
mod lite;
mod migrate;
mod param;
mod pg;
mod rider;
mod row;
#[cfg(test)]
mod row_security;
mod secure;
mod sql;
mod store;
mod tx;

pub mod admin_audit;
pub mod admin_tokens;
pub mod applications;
pub mod approvals;
pub mod audit_dead_letters;
pub mod audit_events;
pub mod audit_exports;
pub mod audit_retention;
pub mod audit_trees;
pub mod authority_records;
pub mod checkup;
pub mod connections;
pub mod custody;
pub mod db_roles;
pub mod delegations;
pub mod idempotency;
pub mod live;
pub mod notifications;
pub mod origin;
pub mod outbox;
pub mod platform_settings;
pub mod policies;
pub mod policy_sets;
pub mod providers;
pub mod reseal;
pub mod resources;
pub mod secrets;
pub mod service_state;
pub mod sessions;
pub mod subject_issuers;
pub mod subjects;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod workloads;
pub mod zone_snapshot;
pub mod zones;

pub use error::{DriverError, StoreError};
pub use param::Param;
pub use rider::{Intention, Rider};
pub use row::Row;
pub use secure::{Encrypt, Encrypted, PgTls, Stream};
pub use sql::Sql;
pub use store::{
    Durability, PoolOptions, PoolStats, Snapshot, Store, StoreConfig, StoreUrl, ZoneScope,
};
pub use tx::{Tx, ZoneTx};

/// Every statement of every module: one line a module, so that nothing escapes the test that
/// prepares them all on both engines.
#[rustfmt::skip] // one line a module
const REGISTRY: &[&[&Sql]] = &[
    store::sql::ALL,
    migrate::sql::ALL,
    checkup::sql::ALL,
    outbox::sql::ALL,
    authority_records::sql::ALL,
    service_state::sql::ALL,
    sessions::sql::ALL,
    sessions::end::sql::ALL,
    sessions::standing::sql::ALL,
    delegations::sql::ALL,
    idempotency::sql::ALL,
    live::sql::ALL,
    notifications::sql::ALL,
    admin_audit::sql::ALL,
    admin_tokens::sql::ALL,
    applications::sql::ALL,
    approvals::sql::ALL,
    platform_settings::sql::ALL,
    policies::sql::ALL,
    policy_sets::sql::ALL,
    providers::sql::ALL,
    connections::sql::ALL,
    reseal::sql::ALL,
    resources::sql::ALL,
    secrets::sql::ALL,
    custody::moving::sql::ALL,
    subject_issuers::sql::ALL,
    subjects::sql::ALL,
    zones::sql::ALL,
    zone_snapshot::sql::ALL,
    audit_events::sql::ALL,
    audit_exports::sql::ALL,
    audit_events::read::sql::ALL,
    audit_retention::sql::ALL,
    audit_dead_letters::sql::ALL,
    audit_trees::sql::ALL,
    workloads::sql::ALL,
];

/// Every registered statement.
pub fn statements() -> impl Iterator<Item = &'static Sql> {
    REGISTRY.iter().flat_map(|module| module.iter().copied())
}
