//! The HTTP kit that every service is built with: serving, the error envelope, request ids,
//! metrics, settings, the owner of tasks, and guarded egress.

pub mod bearer;
pub mod body;
pub mod breaker;
pub mod egress;
pub mod health;
pub mod logs;
pub mod metrics;
pub mod problem;
pub mod request_id;
pub mod server;
pub mod settings;
pub mod tasks;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trace;

pub use caracal_model::RequestId;
pub use problem::Problem;
pub use request_id::{Pattern, RequestIds};
pub use rustls::ServerConfig as TlsConfig;
pub use server::{Limits, Peer, Server};
pub use tasks::Tasks;
