//! Secrets that we generate for others: how they are made, what is stored to check them, how they
//! are kept sealed, and how one is shown again, on record (spec: admin-api §7.2, §7.3, §14).

use std::sync::Arc;
use std::time::Duration;

use caracal_crypto::verifier::{SecretVerifier, generate_secret};
use caracal_ledger::Event;
use caracal_model::{EventId, Secret, Timestamp, ZoneId};
use caracal_store::Tx;
use caracal_store::custody::{CustodyError, Moved, Staged};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::service::Api;
use crate::wire::Caller;

/// How often it is looked whether there is something to be moved, even if nobody has said so.
const SWEEP: Duration = Duration::from_secs(30);
/// After a sweep that failed.
const AGAIN: Duration = Duration::from_secs(15);
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
    let envelope = api.custody.read(zone, place).await?;
    let envelope = envelope
        .ok_or_else(|| Failure::absent(not_stored, "the secret is not in custody; rotate it"))?;
    let plain = api.keyring.open(place, &envelope).map_err(|error| {
        tracing::error!(%error, "secret in custody does not open");
        unavailable(
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
    api.evidence.record(&[event]).await.map_err(|error| {
        tracing::error!(%error, "reveal of a secret not recorded");
        Failure::unavailable(
            "audit_unavailable",
            "the reveal cannot be recorded; nothing was shown",
        )
    })
}

/// 502: where secrets are kept is not to be used.
pub fn unavailable(description: &'static str) -> Failure {
    Failure::new(
        http::StatusCode::BAD_GATEWAY,
        "secret_backend_unavailable",
        description,
    )
}

impl From<CustodyError> for Failure {
    fn from(error: CustodyError) -> Self {
        match error {
            CustodyError::Store(error) => error.into(),
            CustodyError::Busy { .. } => Self::conflict(
                "secret_change_in_progress",
                "another change of this secret is under way; try again",
            )
            .retry_after(1),
            CustodyError::Backend(error) => {
                tracing::error!(%error, "the secret backend does not do what it was asked");
                unavailable("the secret backend does not answer as it should; nothing was changed")
            }
            CustodyError::Astray { .. } => {
                tracing::error!(%error, "a secret is not where it was put");
                unavailable(
                    "the secret backend does not hold what was put there; rotate the secret",
                )
            }
            CustodyError::Elsewhere { .. } => {
                tracing::error!(%error, "a secret is kept elsewhere");
                unavailable("the secret is kept in another backend; check CARACAL_SECRET_BACKEND")
            }
        }
    }
}

/// A change of one secret, around the transaction that commits it with what hangs on it: the backend
/// outside, if there is one, takes the envelope before ([`Change::begin`]) and is done with it after
/// ([`Change::end`]).
pub struct Change<'a> {
    api: &'a Api,
    zone: &'a ZoneId,
    place: String,
    /// None is to be forgotten.
    sealed: Option<Vec<u8>>,
    staged: Option<Staged>,
}

impl<'a> Change<'a> {
    /// Before the transaction: what can fail outside fails here.
    ///
    /// # Errors
    /// 502 `secret_backend_unavailable`, 409 `secret_change_in_progress`.
    pub async fn begin(
        api: &'a Api,
        zone: &'a ZoneId,
        place: String,
        sealed: Option<Vec<u8>>,
    ) -> Result<Self, Failure> {
        let staged = match &sealed {
            Some(envelope) => Some(api.custody.stage(zone, &place, envelope).await?),
            None => None,
        };
        Ok(Self {
            api,
            zone,
            place,
            sealed,
            staged,
        })
    }

    /// Within the transaction.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn write(&self, tx: &mut Tx, now: Timestamp) -> Result<(), Failure> {
        let mut secrets = tx.secrets(self.zone);
        match &self.sealed {
            Some(envelope) => secrets.put(&self.place, envelope, now).await?,
            None => secrets.delete(&self.place).await?,
        }
        Ok(())
    }

    /// After a transaction that has committed nothing.
    pub async fn undo(self) {
        if let Some(staged) = self.staged {
            self.api.custody.give_up(staged).await;
        }
    }

    /// After it, whatever came of it.
    ///
    /// # Errors
    /// Those of the transaction.
    pub async fn end<T>(self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        let custody = &self.api.custody;
        match (self.staged, &outcome) {
            (Some(staged), Ok(_)) => custody.settle(staged).await,
            (Some(staged), Err(_)) => custody.give_up(staged).await,
            (None, _) => custody.is_due(),
        }
        outcome
    }
}

/// As [`Change::end`], of a change that may not be one of a secret.
///
/// # Errors
/// Those of the transaction.
pub async fn end<T>(change: Option<Change<'_>>, outcome: Result<T, Failure>) -> Result<T, Failure> {
    match change {
        Some(change) => change.end(outcome).await,
        None => outcome,
    }
}

/// Moves to the backend outside what is not there yet, or back from one that is left, and has it
/// forget what was forgotten here.
/// Ends at once when secrets are kept in our own database.
pub async fn sweep(api: Arc<Api>, stop: CancellationToken) {
    if !api.custody.is_outside() {
        return;
    }
    while !stop.is_cancelled() {
        let swept = stop
            .run_until_cancelled(Box::pin(api.custody.sweep()))
            .await;
        let failed = match swept {
            None => return,
            Some(Ok(moved)) => {
                if moved != Moved::default() {
                    tracing::info!(?moved, "secrets moved");
                }
                false
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "secrets wait to be moved");
                true
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(if failed { AGAIN } else { SWEEP }) => {}
            () = api.custody.due(), if !failed => {}
        }
    }
}
