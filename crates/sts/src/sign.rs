//! From a grant to a signed mandate (spec: sts §3).

use caracal_authority::decide::Grant;
use caracal_crypto::CryptoError;
use caracal_model::{Jti, Mandate, RecordId, Refusal, Refused, Secret};
use caracal_view::ZoneView;

use crate::Sts;

/// The claims of a grant, with a record and a `jti` of their own.
pub fn mandate(sts: &Sts, grant: &Grant) -> Mandate {
    let jti = Jti::trusted(sts.ids.uuid());
    grant.mandate(&sts.config.issuer, jti, RecordId::trusted(sts.ids.uuid()))
}

/// Signs with the zone's current key.
///
/// # Errors
/// 503 when the zone has no key that can sign; 400 when the token would be longer than any of our
/// services accepts.
pub fn sign(sts: &Sts, zone: &ZoneView, mandate: &Mandate) -> Result<Secret<String>, Refused> {
    let Some(key) = &zone.keys.signing else {
        tracing::error!(zone = %zone.id, "denied: the zone has no usable signing key");
        return Err(Refusal::Unavailable.because("the zone's signing key is unavailable"));
    };
    let since = sts.clock.ticks();
    let signed = key.sign(mandate);
    let took = sts.clock.ticks().since(since);
    sts.metrics.stages.sign.took(took);
    signed.map(Secret::new).map_err(|error| match error {
        CryptoError::TokenTooLong { .. } => Refusal::BadRequest
            .because("the mandate would be longer than 8 KiB: ask for fewer resources or scopes"),
        error => {
            tracing::error!(zone = %zone.id, %error, "a mandate could not be signed");
            Refusal::Internal.because("the mandate could not be signed")
        }
    })
}
