//! The store: one set of statements on SQLite and Postgres, transactions that carry their own
//! news, and one repository for each aggregate.
//!
//! The only user of `tokio-postgres` and `rusqlite`. Which engine is in use is decided when a
//! [`Store`] is opened and shows in no signature.

mod error;
mod lite;
mod migrate;
mod param;
mod pg;
mod row;
mod sql;
mod store;
mod tx;

pub mod outbox;

pub use error::{DriverError, StoreError};
pub use param::Param;
pub use row::Row;
pub use sql::Sql;
pub use store::{Durability, PoolStats, Snapshot, Store, StoreConfig, StoreUrl, ZoneScope};
pub use tx::{Tx, ZoneTx};

/// Every statement of every module: one line a module, so that nothing escapes the test that
/// prepares them all on both engines.
const REGISTRY: &[&[&Sql]] = &[store::sql::ALL, migrate::sql::ALL, outbox::sql::ALL];

/// Every registered statement.
pub fn statements() -> impl Iterator<Item = &'static Sql> {
    REGISTRY.iter().flat_map(|module| module.iter().copied())
}
