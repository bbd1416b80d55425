//! Actor tokens (RFC 8693 section 2.1). The published product refuses them; here a zone may take
//! them, and then a session mandate of that zone says who acts.
//!
//! **Forces.** Clients that were written against the refusal must see it unchanged, before anything
//! is authenticated; whoever asks for the zone's setting learns no more than that.

use caracal_model::{Mandate, Refusal, Refused, TokenUse, ZoneId};
use caracal_view::{ViewError, ZoneView};

use crate::Sts;
use crate::authenticate::unavailable;
use crate::form::{ACCESS_TOKEN_TYPE, TokenRequest};
use crate::gateway::verified_as;

/// The answer of a zone that takes none, and of every place where none may be.
pub fn unsupported() -> Refused {
    Refusal::BadRequest.because("actor_token is not supported: leave it out")
}

/// Whether the zone of a request takes the actor token that it carries, if any.
///
/// # Errors
/// 400 when it does not, or the token is not said to be a mandate; 503 when state cannot be read.
pub async fn admitted(sts: &Sts, form: &TokenRequest) -> Result<(), Refused> {
    let Some(actor) = &form.actor else {
        return Ok(());
    };
    let zone = ZoneId::parse(&form.zone_id).map_err(|_| unsupported())?;
    let zone = match sts.views.zone(&zone).await {
        Ok(zone) => zone,
        Err(ViewError::UnknownZone) => return Err(unsupported()),
        Err(error) => return Err(unavailable(&error)),
    };
    if !zone.actor_tokens || zone.archived {
        return Err(unsupported());
    }
    if actor.kind.as_deref() != Some(ACCESS_TOKEN_TYPE) {
        let why = format!("actor_token_type must be {ACCESS_TOKEN_TYPE}");
        return Err(Refusal::BadRequest.because(why));
    }
    Ok(())
}

/// The actor's mandate, once its signature and times are checked and nothing that it hangs on is
/// revoked. What else holds for an actor is the kernel's to say.
///
/// # Errors
/// 401 `invalid_token`; 503 when state cannot be read.
pub async fn verified(
    sts: &Sts,
    form: &TokenRequest,
    zone: &ZoneView,
) -> Result<Option<Mandate>, Refused> {
    let Some(actor) = &form.actor else {
        return Ok(None);
    };
    let invalid = || Refusal::TokenInvalid.because("invalid actor_token");
    let mandate = verified_as(sts, actor.token.expose(), zone, TokenUse::Session);
    let mandate = mandate.ok_or_else(invalid)?;
    let revoked = sts.views.mandate_revoked(&mandate).await;
    match revoked.map_err(|error| unavailable(&error))? {
        None => Ok(Some(mandate)),
        Some(_) => Err(invalid()),
    }
}
