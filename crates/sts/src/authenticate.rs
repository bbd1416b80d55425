//! Who is calling (spec: sts §2.4, §14).
//!
//! Every failure reads the same, `invalid client credentials`, so that nobody learns which
//! application ids exist. An outage is ours: it is never a wrong secret and never counts.

use std::net::IpAddr;
use std::sync::Arc;

use caracal_crypto::verifier::SecretVerifier;
use caracal_model::{ApplicationId, Refusal, Refused, Secret, Timestamp, ZoneId};
use caracal_view::{Application, ViewError, ZoneView};

use crate::form::TokenRequest;
use crate::secrets::Verdict;
use crate::{Sts, control};

/// An application whose credential was proven.
pub struct Caller {
    /// Its zone.
    pub zone: Arc<ZoneView>,
    /// Itself.
    pub application: Arc<Application>,
}

/// Why authentication failed, for evidence: only a known application leaves an event.
pub struct AuthFailure {
    /// What the caller is told.
    pub refused: Refused,
    /// The application whose credential was tried, when it exists.
    pub tried: Option<(ZoneId, ApplicationId)>,
}

impl From<Refused> for AuthFailure {
    fn from(refused: Refused) -> Self {
        Self {
            refused,
            tried: None,
        }
    }
}

/// The one answer to every credential that is not right.
pub fn invalid() -> Refused {
    Refusal::ClientCredentials.because("invalid client credentials")
}

/// A store that does not answer.
pub fn unavailable(error: &ViewError) -> Refused {
    tracing::warn!(%error, "denied: state cannot be read");
    Refusal::Unavailable
        .because("authorization state is unavailable, try again shortly")
        .retry_after(1)
}

/// Proves the client secret.
///
/// # Errors
/// 401, 403 `zone_invalid`, 429 while the source is locked out, 503 when state cannot be read.
pub async fn authenticate(
    sts: &Sts,
    request: &TokenRequest,
    source: IpAddr,
) -> Result<Caller, AuthFailure> {
    let now = sts.clock.ticks();
    let locked = sts.lockout.locked_for(&request.application_id, source, now);
    let attempt = find(sts, request).await?;
    let (Attempt::Known(caller) | Attempt::OtherZone(caller)) = &attempt else {
        return Err(failed(sts, request, source, locked, None));
    };
    // On record at home, whatever zone was named: guesses must not go unseen by a detour. No secret
    // at all is a guess as well.
    let tried = Some((caller.zone.id.clone(), caller.application.id.clone()));
    let right = match &request.client_secret {
        Some(secret) => {
            let verifier = caller.application.verifier.as_ref();
            settles(sts, verifier, secret, locked.is_some()).await
        }
        None => false,
    };
    match (right, attempt) {
        (true, Attempt::Known(caller)) => {
            upgrade(sts, &caller, request.client_secret.as_ref()).await;
            Ok(caller)
        }
        (true, Attempt::OtherZone(caller)) => {
            let refused = zone_invalid(request, &caller.zone.id);
            Err(AuthFailure { refused, tried })
        }
        _ => Err(failed(sts, request, source, locked, tried)),
    }
}

/// Keys the verifier of a right secret anew while the key-encryption key is being replaced. Nobody
/// is refused when it cannot be done: the next use tries again.
async fn upgrade(sts: &Sts, caller: &Caller, secret: Option<&Secret<String>>) {
    let Some((old, secret)) = caller.application.verifier.as_ref().zip(secret) else {
        return;
    };
    let Some(new) = sts.secrets.upgraded(old, secret.expose()) else {
        return;
    };
    let (zone, id) = (&caller.zone.id, &caller.application.id);
    let upgrading = async {
        let mut tx = sts.store.begin("upgrading a client secret").await?;
        let (old, new) = (old.to_string(), new.to_string());
        tx.upgrade_client_secret(zone, id, &old, &new).await?;
        tx.commit().await
    };
    match Box::pin(upgrading).await {
        Ok(()) => sts.announce.announce().await,
        Err(error) => {
            tracing::warn!(%error, %zone, application = %id, "secret still under the previous key");
        }
    }
}

enum Attempt {
    Known(Caller),
    OtherZone(Caller),
    Unknown,
}

async fn find(sts: &Sts, request: &TokenRequest) -> Result<Attempt, Refused> {
    let Ok(id) = ApplicationId::parse(&request.application_id) else {
        return Ok(Attempt::Unknown);
    };
    if request.zone_id.is_empty() {
        let caller = control::without_zone(sts, request, &id).await?;
        return Ok(caller.map_or(Attempt::Unknown, Attempt::Known));
    }
    let Ok(zone_id) = ZoneId::parse(&request.zone_id) else {
        return Ok(Attempt::Unknown);
    };
    if let Some(caller) = in_zone(sts, &zone_id, &id).await? {
        return Ok(Attempt::Known(caller));
    }
    let home = sts
        .views
        .zone_of_application(&id)
        .await
        .map_err(|e| unavailable(&e))?;
    match home {
        Some(home) if home != zone_id => {
            let caller = in_zone(sts, &home, &id).await?;
            Ok(caller.map_or(Attempt::Unknown, Attempt::OtherZone))
        }
        _ => Ok(Attempt::Unknown),
    }
}

/// The application, when it is live in this zone.
///
/// # Errors
/// 503 when state cannot be read.
pub async fn in_zone(
    sts: &Sts,
    zone: &ZoneId,
    id: &ApplicationId,
) -> Result<Option<Caller>, Refused> {
    let zone = match sts.views.zone(zone).await {
        Ok(zone) => zone,
        Err(ViewError::UnknownZone) => return Ok(None),
        Err(error) => return Err(unavailable(&error)),
    };
    let application = live_application(&zone, id, sts.clock.now());
    Ok(application.map(|application| Caller { zone, application }))
}

/// The application, when it exists and has not expired.
pub fn live_application(
    zone: &ZoneView,
    id: &ApplicationId,
    now: Timestamp,
) -> Option<Arc<Application>> {
    let application = zone.applications.get(id)?;
    let live = application.expires_at.is_none_or(|at| at > now);
    (live && !zone.archived).then(|| Arc::clone(application))
}

/// Whether the secret is right. A source that is locked out gets only the cheap comparison.
async fn settles(
    sts: &Sts,
    verifier: Option<&SecretVerifier>,
    secret: &Secret<String>,
    locked: bool,
) -> bool {
    let Some(verifier) = verifier else {
        return false;
    };
    if locked {
        return sts.secrets.verify_cheaply(verifier, secret.expose()) == Verdict::Right;
    }
    sts.secrets.verify(verifier, secret).await
}

fn zone_invalid(request: &TokenRequest, home: &ZoneId) -> Refused {
    Refusal::ZoneInvalid.because(format!(
        "the application belongs to zone {home}, not to zone {}",
        request.zone_id
    ))
}

fn failed(
    sts: &Sts,
    request: &TokenRequest,
    source: IpAddr,
    locked: Option<u32>,
    tried: Option<(ZoneId, ApplicationId)>,
) -> AuthFailure {
    let now = sts.clock.ticks();
    if locked.is_none() {
        sts.lockout.failed(&request.application_id, source, now);
    }
    let refused = match sts.lockout.locked_for(&request.application_id, source, now) {
        Some(seconds) => Refusal::RateLimited
            .because("too many failed authentications from this address")
            .retry_after(seconds),
        None => invalid(),
    };
    AuthFailure { refused, tried }
}
