//! Client secrets: how they are made, checked against, kept and shown again (spec: admin-api §7.2).

use std::sync::Arc;

use axum::extract::State;
use caracal_crypto::verifier::{SecretVerifier, generate_secret};
use caracal_ledger::Event;
use caracal_model::{EventId, Secret};
use caracal_store::applications::Application;
use caracal_store::secrets::application_secret_ref;
use serde_json::{Map, json};

use crate::applications::{may_touch, no_application};
use crate::failure::Failure;
use crate::service::Api;
use crate::wire::{self, Answer, At, Caller};

const PREFIX: &str = "cs_";
/// Shared with the STS, which checks what is made here.
pub const PEPPER: &str = "caracal/client-secrets";

/// A new client secret.
pub fn generate(api: &Api) -> Secret<String> {
    generate_secret(api.rng.as_ref(), PREFIX)
}

/// What is stored of a secret that [`generate`] made.
pub fn verifier_of_generated(api: &Api, secret: &Secret<String>) -> String {
    let pepper = api.keyring.derive(PEPPER);
    SecretVerifier::for_generated(&pepper, secret.expose()).to_string()
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
    let envelope = api.store.zone(&at.zone).secrets().envelope(&place).await?;
    let envelope = envelope.ok_or_else(|| {
        Failure::absent(
            "client_secret_not_stored",
            "the secret is not in custody; rotate it",
        )
    })?;
    let secret = api.keyring.open(&place, &envelope).map_err(|error| {
        tracing::error!(%error, "client secret in custody does not open");
        Failure::new(
            http::StatusCode::BAD_GATEWAY,
            "secret_backend_unavailable",
            "the secret in custody does not open; check SECRET_STORE_KEK, or rotate the secret",
        )
    })?;
    record(&api, &caller, &at, &application).await?;
    let secret = String::from_utf8_lossy(secret.expose());
    wire::ok(json!({ "client_secret": secret }))
}

async fn record(
    api: &Api,
    caller: &Caller,
    at: &At,
    application: &Application,
) -> Result<(), Failure> {
    let event = Event::new(
        EventId::trusted(api.ids.uuid()),
        at.zone.clone(),
        "credential_revealed",
        caller.request_id.as_str(),
        "allow",
        "complete",
        api.clock.now(),
    )
    .metadata(Map::from_iter([
        ("credential".to_owned(), json!("application_client_secret")),
        ("application_id".to_owned(), json!(application.id)),
        ("application_name".to_owned(), json!(application.name)),
        ("actor".to_owned(), json!(caller.actor.name())),
    ]));
    api.evidence.record(vec![event]).await.map_err(|error| {
        tracing::error!(%error, "reveal of a client secret not recorded");
        Failure::unavailable(
            "audit_unavailable",
            "the reveal cannot be recorded; nothing was shown",
        )
    })
}
