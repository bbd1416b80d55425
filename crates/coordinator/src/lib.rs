//! The Coordinator (spec: coordinator): governed Sessions, the leases of services, Delegations and
//! the epoch of each zone's authority graph. It mints nothing: it decides what exists, and tells
//! everybody when that ends.

mod answer;
mod auth;
mod call;
mod caller;
mod catalogue;
mod config;
mod delegation;
mod facts;
mod failure;
mod fields;
mod http;
mod limit;
mod metrics;
mod query;
mod receipts;
mod room;
mod service;
mod session;
mod subject;
mod sweep;

pub use catalogue::CATALOGUE;
pub use config::Config;
pub use service::{Coordinator, Deps};

use axum::Router;
use caracal_net::Tasks;

/// The routes of this service.
pub fn router(coordinator: &Coordinator) -> Router {
    http::router(coordinator.clone())
}

/// Starts the sweepers under `tasks`, which stops them and waits for them.
pub fn tasks(coordinator: &Coordinator, tasks: &Tasks) {
    sweep::tasks(coordinator, tasks);
}
