//! Secrets that we generate for others: how they are made, what is stored to check them, how they
//! are kept sealed, and how one is shown again, on record (spec: admin-api §7.2, §7.3, §14).

use caracal_crypto::verifier::{SecretVerifier, generate_secret};
use caracal_ledger::Event;
use caracal_model::{EventId, Secret, ZoneId};
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::service::Api;
use crate::wire::Caller;

/// Shared with the STS, which checks what is made here.
pub const PEPPER: &str = "caracal/client-secrets";

/// A new secret of this kind: `cs_` of an application, `ws_` of a workload.
pub fn generate(api: &Api, prefix: &str) -> Secret<String> {
    generate_secret(api.rng.as_ref(), prefix)
}

/// What is stored of a secret that [`generate`] made.
pub fn verifier_of_generated(api: &Api, secret: &Secret<String>) -> String {
    let pepper = api.keyring.derive(PEPPER);
    SecretVerifier::for_generated(&pepper, secret.expose()).to_string()
}

/// The secret that is kept at this place.
///
/// # Errors
/// 404 with the code `not_stored` when nothing is, 502 when it does not open.
pub async fn open(
    api: &Api,
    zone: &ZoneId,
    place: &str,
    not_stored: &'static str,
) -> Result<Secret<String>, Failure> {
    let envelope = api.store.zone(zone).secrets().envelope(place).await?;
    let envelope = envelope
        .ok_or_else(|| Failure::absent(not_stored, "the secret is not in custody; rotate it"))?;
    let plain = api.keyring.open(place, &envelope).map_err(|error| {
        tracing::error!(%error, "secret in custody does not open");
        Failure::new(
            http::StatusCode::BAD_GATEWAY,
            "secret_backend_unavailable",
            "the secret in custody does not open; check SECRET_STORE_KEK, or rotate the secret",
        )
    })?;
    Ok(Secret::new(
        String::from_utf8_lossy(plain.expose()).into_owned(),
    ))
}

/// Puts on record that a secret is shown, before it is.
///
/// # Errors
/// 503 `audit_unavailable`: then it must not be shown.
pub async fn record_reveal(
    api: &Api,
    caller: &Caller,
    zone: &ZoneId,
    credential: &str,
    of: [(&str, Value); 2],
) -> Result<(), Failure> {
    let mut metadata: Map<String, Value> = of
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    metadata.insert("credential".to_owned(), json!(credential));
    metadata.insert("actor".to_owned(), json!(caller.actor.name()));
    let event = Event::new(
        EventId::trusted(api.ids.uuid()),
        zone.clone(),
        "credential_revealed",
        caller.request_id.as_str(),
        "allow",
        "complete",
        api.clock.now(),
    )
    .metadata(metadata);
    api.evidence.record(vec![event]).await.map_err(|error| {
        tracing::error!(%error, "reveal of a secret not recorded");
        Failure::unavailable(
            "audit_unavailable",
            "the reveal cannot be recorded; nothing was shown",
        )
    })
}
