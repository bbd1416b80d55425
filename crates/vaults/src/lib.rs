//! Secret backends outside of our own database (spec: sts §13, admin-api §14): HashiCorp Vault,
//! Infisical, Azure Key Vault, AWS Secrets Manager, Google Secret Manager, and any service that
//! speaks the small contract of `custom`.
//!
//! **Forces.** Each of them speaks its own dialect, and none needs more of us than three requests.
//! **Choice.** Those requests by hand, through the HTTP kit: its TLS, its bounds, no redirects. What
//! is kept is always a sealed envelope, so a backend never sees a secret. **Rejected.** The vendors'
//! libraries: six dependency trees, each with a TLS stack and a way of logging of its own.
//!
//! Addresses come from the operator's own environment, so none is refused for being private; https
//! is required unless the address is on this machine. Absence is an answer; whatever cannot be told
//! apart from an outage is an error, so that no secret is taken for deleted by mistake.

mod aws;
mod azure;
mod config;
mod custom;
mod gcp;
mod infisical;
mod lasting;
mod token;
mod vault;
mod wire;

pub use config::{Chosen, describe};

#[cfg(test)]
mod tests;
