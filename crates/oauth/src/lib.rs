//! The client of foreign OAuth token endpoints: what a provider's configuration means, how we
//! authenticate there, what we ask and what we believe of the answer (spec: sts §6.2, §6.3).
//!
//! The STS fetches service tokens and refreshes connections with it; the API exchanges the code of
//! a connect flow and tests a configuration. Nothing is remembered here.

mod answer;
mod client;
mod request;

pub use answer::{TokenAnswer, TokenError, error_code};
pub use client::{AuthMethod, Client, ServiceGrant};
pub use request::Grant;
