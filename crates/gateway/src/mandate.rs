//! An ingress mandate on its way from a bearer text to leave for one call. Each step consumes the
//! one before, so that none can be skipped: [`Unverified`] -> [`Verified`] -> [`Admitted`].

use std::sync::Arc;
use std::time::Duration;

use caracal_bus::Bus;
use caracal_crypto::es256::Jws;
use caracal_model::id::{is_id, uuid7_millis};
use caracal_model::limits::{LEEWAY, PREFLIGHT_SECONDS};
use caracal_model::{Mandate, Refusal, Timestamp, TokenUse};
use caracal_view::{Views, ZoneKeys};
use serde_json::Value;

use crate::denial::{Cause, Denied};

/// Parsed, nothing proven. Its claims may pick a zone and a key, no more.
pub struct Unverified<'t> {
    jws: Jws<'t>,
    expires: i64,
    claims: Result<Mandate, Denied>,
}

/// Signed by a live key of its zone, meant for this Gateway, and in time.
#[derive(Debug)]
pub struct Verified(Mandate);

/// Not revoked, and its `jti` claimed: good for one call. Forwarding takes nothing less.
#[derive(Clone, Debug)]
pub struct Admitted(Arc<Mandate>);

impl<'t> Unverified<'t> {
    /// Takes a bearer apart (spec: gateway §3.1, step 4).
    pub fn parse(bearer: &'t str) -> Result<Self, Denied> {
        let Ok(jws) = Jws::parse(bearer) else {
            return Err(unreadable(bearer));
        };
        let claims = serde_json::from_slice::<Mandate>(jws.payload());
        let (expires, claims) = match claims {
            Ok(claims) => (claims.exp, Ok(claims)),
            Err(_) => odd(jws.payload())?,
        };
        if expires == 0 {
            return Err(malformed());
        }
        Ok(Self {
            jws,
            expires,
            claims,
        })
    }

    /// Enough life left (step 5).
    pub fn preflight(&self, now: Timestamp) -> Result<(), Denied> {
        if self.expires.saturating_sub(now.unix_seconds()) < PREFLIGHT_SECONDS {
            let why = "credential expiring within pre-flight window";
            return Err(Denied::new(
                Cause::Expiring,
                Refusal::MandateExpiring.because(why),
            ));
        }
        Ok(())
    }

    /// The claims that say whose keys to use (steps 8 and 9).
    pub fn claims(&self) -> Result<&Mandate, Denied> {
        self.claims.as_ref().map_err(Clone::clone)
    }

    /// Checks signature, issuer, audience, use and that it is not of the future (step 11; better
    /// item 1), as the STS would.
    pub fn verify(
        self,
        keys: &ZoneKeys,
        issuer: Option<&str>,
        now: Timestamp,
    ) -> Result<Verified, Denied> {
        let mandate = self.claims?;
        let key = keys.verify.get(self.jws.kid()).ok_or_else(bad_signature)?;
        self.jws.verify(key).map_err(|_| bad_signature())?;
        let issued_here = issuer.is_none_or(|issuer| mandate.iss == issuer);
        let meant_for_us = mandate.aud.contains(&mandate.iss);
        let was_issued = Timestamp::from_unix_seconds(mandate.iat) <= now.plus(LEEWAY);
        if mandate.token_use != TokenUse::Gateway || !issued_here || !meant_for_us || !was_issued {
            return Err(not_for_us().of(&mandate));
        }
        Ok(Verified(mandate))
    }
}

/// The answer to a bearer that is no token of ours: what a signature check would have said, when
/// everything before it is in order.
fn unreadable(bearer: &str) -> Denied {
    let payload = bearer
        .split('.')
        .nth(1)
        .filter(|_| bearer.split('.').count() == 3);
    let payload = payload.and_then(|part| caracal_crypto::digest::b64url_decode(part).ok());
    match payload.as_deref().map(odd) {
        Some(Ok((expires, _))) if expires != 0 => bad_signature(),
        _ => malformed(),
    }
}

/// Claims that are not a mandate of ours: their expiry, and what is wrong with them.
fn odd(payload: &[u8]) -> Result<(i64, Result<Mandate, Denied>), Denied> {
    let claims: Value = serde_json::from_slice(payload).map_err(|_| malformed())?;
    let expires = claims
        .get("exp")
        .and_then(Value::as_i64)
        .ok_or_else(malformed)?;
    let id = |name: &str| claims.get(name).and_then(Value::as_str).is_some_and(is_id);
    let routing = |why| Denied::new(Cause::BadRouting, Refusal::TokenInvalid.because(why));
    let defect = match (id("zone_id"), id("client_id")) {
        (false, _) => routing("missing token zone"),
        (_, false) => routing("missing token client"),
        _ => not_for_us(),
    };
    Ok((expires, Err(defect)))
}

fn malformed() -> Denied {
    Denied::new(
        Cause::BadBearer,
        Refusal::TokenInvalid.because("malformed bearer token"),
    )
}

fn not_for_us() -> Denied {
    Denied::new(
        Cause::BadBearer,
        Refusal::TokenInvalid.because("invalid subject_token"),
    )
}

/// Step 11.
pub fn bad_signature() -> Denied {
    Denied::new(
        Cause::Signature,
        Refusal::TokenInvalid.because("bearer signature invalid"),
    )
}

/// Step 1: neither memory nor the store says who is revoked.
pub fn stale() -> Denied {
    let why = "revocation state unavailable";
    Denied::new(
        Cause::RevocationStale,
        Refusal::RevocationsStale.because(why),
    )
}

/// What can be claimed once, and what happens when it cannot be known.
#[derive(Clone, Copy, Debug)]
pub struct Once<'a> {
    /// Where claims are made.
    pub bus: &'a Bus,
    /// Mandates made at this time or before are spent.
    pub floor_ms: Option<u64>,
    /// Whether an outage of the bus lets mandates pass (dev).
    pub fail_open: bool,
}

impl Verified {
    /// Not revoked (memory) before the claim (a round trip): a revoked mandate costs none (README,
    /// decision 8; steps 13 and 12).
    pub async fn admit(
        self,
        views: &Views,
        once: Once<'_>,
        now: Timestamp,
    ) -> Result<Admitted, Denied> {
        match views.mandate_revoked(&self.0).await {
            Ok(None) => {}
            Ok(Some(_)) => return Err(revoked().of(&self.0)),
            Err(error) => {
                tracing::warn!(%error, "revocation state unavailable");
                return Err(stale());
            }
        }
        once.claim(&self.0, now).await?;
        Ok(Admitted(Arc::new(self.0)))
    }
}

impl Once<'_> {
    /// Burns the `jti`, whatever happens after (spec: gateway §7).
    async fn claim(self, mandate: &Mandate, now: Timestamp) -> Result<(), Denied> {
        let replayed = || {
            let why = "token replay detected";
            Denied::new(Cause::JtiReplay, Refusal::TokenReplayed.because(why)).of(mandate)
        };
        // A `jti` without a time may be of before the restart: who cannot tell, refuses.
        let too_old = |floor| uuid7_millis(mandate.jti.as_str()).is_none_or(|made| made <= floor);
        if self.floor_ms.is_some_and(too_old) {
            return Err(replayed());
        }
        let life = Timestamp::from_unix_seconds(mandate.exp).since(now);
        let life = life.max(Duration::from_millis(1));
        let key = format!("seen:jti:{}", mandate.jti);
        match self.bus.claim_made(&key, made_at(mandate), life).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(replayed()),
            Err(error) if self.fail_open => {
                tracing::warn!(%error, "a mandate passes unclaimed: JTI_FAIL_OPEN");
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "replay state unavailable");
                let why = "replay state unavailable";
                Err(Denied::new(
                    Cause::Unavailable,
                    Refusal::Unavailable.because(why),
                ))
            }
        }
    }
}

/// When the mandate was made, or earlier. The `jti` says it to the millisecond, but runs ahead of a
/// clock that was stepped back; `iat` says it to the second.
fn made_at(mandate: &Mandate) -> Timestamp {
    let issued = Timestamp::from_unix_seconds(mandate.iat);
    uuid7_millis(mandate.jti.as_str()).map_or(issued, |millis| {
        let made = Timestamp::from_unix_seconds(0).plus(Duration::from_millis(millis));
        made.min(issued.plus(Duration::from_millis(999)))
    })
}

/// Step 13.
pub fn revoked() -> Denied {
    Denied::new(Cause::Revoked, Refusal::Revoked.because("session revoked"))
}

impl Admitted {
    /// The claims.
    pub fn claims(&self) -> &Arc<Mandate> {
        &self.0
    }

    /// Life left, in whole seconds.
    pub fn seconds_left(&self, now: Timestamp) -> i64 {
        self.0.exp.saturating_sub(now.unix_seconds()).max(0)
    }
}
