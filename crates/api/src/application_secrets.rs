//! Client secrets of applications: generated or chosen, and shown again (spec: admin-api §7.2).

use std::sync::Arc;

use axum::extract::State;
use caracal_crypto::verifier::SecretVerifier;
use caracal_model::Secret;
use caracal_store::applications::Application;
use caracal_store::secrets::application_secret_ref;
use serde_json::json;

use crate::applications::{may_touch, no_application};
use crate::custody;
use crate::failure::Failure;
use crate::service::Api;
use crate::wire::{self, Answer, At, Caller};

pub use crate::custody::{PEPPER, verifier_of_generated};

/// A new client secret.
pub fn generate(api: &Api) -> Secret<String> {
    custody::generate(api, "cs_")
}

/// A secret that somebody chose, and what is stored of it. Slow on purpose, so off the runtime and
/// never more than a few at once.
///
/// # Errors
/// When it cannot be hashed.
pub async fn stretch(
    api: &Api,
    secret: Secret<String>,
) -> Result<(Secret<String>, String), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "client secret not hashed");
        Failure::internal()
    };
    let permit = Arc::clone(&api.slow_hashes).acquire_owned().await;
    let permit = permit.map_err(|error| failed(&error))?;
    let rng = Arc::clone(&api.rng);
    let hashed = tokio::task::spawn_blocking(move || {
        let verifier = SecretVerifier::argon2id(rng.as_ref(), secret.expose());
        drop(permit);
        verifier.map(|verifier| (secret, verifier.to_string()))
    });
    let hashed = hashed.await.map_err(|error| failed(&error))?;
    hashed.map_err(|error| failed(&error))
}

/// `GET /v1/zones/{zone}/applications/{id}/client-secret`: on record before it is answered.
pub async fn reveal(State(api): State<Arc<Api>>, caller: Caller, at: At) -> Answer {
    caller.actor.may_reveal(api.config.console_may_reveal)?;
    let found = api.store.zone(&at.zone).applications().get(&at.id).await?;
    let application = found
        .filter(Application::is_managed)
        .ok_or_else(|| no_application(&at.id))?;
    may_touch(&caller.actor, &application)?;
    let place = application_secret_ref(&at.zone, &at.id);
    let secret = custody::open(&api, &at.zone, &place, "client_secret_not_stored").await?;
    let of = [
        ("application_id", json!(application.id)),
        ("application_name", json!(application.name)),
    ];
    custody::record_reveal(&api, &caller, &at.zone, "application_client_secret", of).await?;
    wire::ok(json!({ "client_secret": secret.expose() }))
}
