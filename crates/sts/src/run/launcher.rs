//! Who launches (spec: sts §12, §14).

use std::sync::Arc;

use caracal_crypto::digest::sha256_hex;
use caracal_crypto::verifier::SecretVerifier;
use caracal_model::{Refusal, Refused, RequestId, Secret, WorkloadId};
use caracal_store::StoreError;
use caracal_store::workloads::Workload;
use caracal_view::{ViewError, ZoneView};

use super::Endpoint;
use super::form::RunRequest;
use super::record::Attempt;
use crate::Sts;
use crate::authenticate::unavailable;
use crate::rate::over_rate_of;

/// A workload whose secret was proven.
pub struct Launcher {
    /// Itself, as it is now.
    pub workload: Workload,
    /// Its zone.
    pub zone: Arc<ZoneView>,
}

/// The one answer to every credential that is not right.
fn invalid() -> Refused {
    Refusal::ClientCredentials.because("invalid workload credentials")
}

impl Launcher {
    /// Whether both are still as they were read.
    ///
    /// # Errors
    /// 503 when state cannot be read.
    pub async fn stands(&self, sts: &Sts) -> Result<bool, Refused> {
        #[cfg(test)]
        sts.interlude.pass().await;
        let found = find(sts, self.workload.id.as_str()).await?;
        if found.as_ref() != Some(&self.workload) {
            return Ok(false);
        }
        match sts.views.zone(&self.workload.zone).await {
            Ok(zone) => Ok(Arc::ptr_eq(&zone, &self.zone)),
            Err(ViewError::UnknownZone) => Ok(false),
            Err(error) => Err(unavailable(&error)),
        }
    }
}

/// The launcher whose secret was proven, as it is now. A secret that is another by now proves nothing.
///
/// # Errors
/// 401 when it is gone, which is on record; 503 when state cannot be read.
pub async fn again(attempt: Attempt<'_>) -> Result<Launcher, Refused> {
    let (sts, before) = (attempt.sts, attempt.workload);
    let found = find(sts, before.id.as_str()).await?;
    let same = found.filter(|now| now.secret_verifier == before.secret_verifier);
    let zone = match sts.views.zone(&before.zone).await {
        Ok(zone) => Some(zone),
        Err(ViewError::UnknownZone) => None,
        Err(error) => return Err(unavailable(&error)),
    };
    match (same, zone.filter(|zone| !zone.archived)) {
        (Some(workload), Some(zone)) => Ok(Launcher { workload, zone }),
        _ => Err(attempt
            .refuse_launch("workload_auth_failed", invalid())
            .await),
    }
}

/// Counts the request, then proves the secret.
///
/// # Errors
/// 401, 429 over the rate, 503 when state cannot be read.
pub async fn launcher(
    sts: &Sts,
    endpoint: Endpoint,
    request: &RunRequest,
    request_id: &RequestId,
) -> Result<Launcher, Refused> {
    let found = find(sts, &request.workload_id).await?;
    charge(sts, endpoint, request, found.as_ref()).await?;
    let verifier = found.as_ref().and_then(verifier);
    let right = proven(sts, verifier.as_ref(), &request.secret).await?;
    let Some(workload) = found else {
        return Err(invalid());
    };
    if !right {
        let attempt = Attempt {
            sts,
            workload: &workload,
            launch_id: request.launch_id.as_deref(),
            request_id,
        };
        return Err(attempt
            .refuse_launch("workload_auth_failed", invalid())
            .await);
    }
    match sts.views.zone(&workload.zone).await {
        Ok(zone) if !zone.archived => Ok(Launcher { workload, zone }),
        Ok(_) | Err(ViewError::UnknownZone) => Err(invalid()),
        Err(error) => Err(unavailable(&error)),
    }
}

/// Whether this is the secret. What is refused takes as long, whoever it says it is: an id that does
/// not exist, a generated secret and an imported one cannot be told apart by it.
async fn proven(
    sts: &Sts,
    verifier: Option<&SecretVerifier>,
    secret: &Secret<String>,
) -> Result<bool, Refused> {
    // What does not exist is compared too, with nothing that any secret matches.
    let compared = verifier.unwrap_or(&SecretVerifier::Keyed([0; 32]));
    if sts.secrets.verify(compared, secret).await && verifier.is_some() {
        return Ok(true);
    }
    let slow = sts.store.has_slow_workload_secret().await;
    let slow = slow.map_err(|error: StoreError| unavailable(&error.into()))?;
    if slow && !compared.is_slow() {
        sts.secrets.compare_in_vain(secret).await;
    }
    Ok(false)
}

async fn find(sts: &Sts, id: &str) -> Result<Option<Workload>, Refused> {
    let Ok(id) = WorkloadId::parse(id) else {
        return Ok(None);
    };
    let found = sts.store.find_workload(&id).await;
    found.map_err(|error: StoreError| unavailable(&error.into()))
}

/// One request of this workload. Ids that do not exist share a bounded number of counts: strangers
/// must not fill what counts and claims are kept in.
async fn charge(
    sts: &Sts,
    endpoint: Endpoint,
    request: &RunRequest,
    found: Option<&Workload>,
) -> Result<(), Refused> {
    let who = match found {
        Some(workload) => workload.id.to_string(),
        None => {
            let digest = sha256_hex(request.workload_id.as_bytes());
            format!("~{}", digest.get(..3).unwrap_or_default())
        }
    };
    match over_rate_of(sts, &endpoint.rate_key(&who)).await? {
        None => Ok(()),
        Some(seconds) => Err(Refusal::RateLimited
            .because("too many requests of this workload; wait as long as Retry-After says")
            .retry_after(seconds)),
    }
}

fn verifier(workload: &Workload) -> Option<SecretVerifier> {
    let text = workload.secret_verifier.as_deref()?;
    SecretVerifier::parse(text)
        .inspect_err(|error| {
            let (zone, id) = (&workload.zone, &workload.id);
            tracing::error!(%zone, workload = %id, %error, "secret verifier not usable");
        })
        .ok()
}
