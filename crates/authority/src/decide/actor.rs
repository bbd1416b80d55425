//! Who acts (RFC 8693 sections 1.1 and 4.1). An actor adds nothing to what is granted: it must be in
//! force itself, and the mandate does not outlive it.

use caracal_model::limits::MAX_ACTORS;
use caracal_model::{Refusal, Refused, Timestamp, TokenUse};

use super::request::{Class, ExchangeRequest, Facts};

/// Checks the actor of a request, if it names one.
///
/// # Errors
/// 400 for a class that takes none, 401 when it is not a session mandate of this zone in time, 403
/// when its authority record is not in force or too many acted through it.
pub(super) fn check(
    request: &ExchangeRequest<'_>,
    facts: &Facts<'_>,
    now: Timestamp,
) -> Result<(), Refused> {
    let Some(actor) = request.actor else {
        return Ok(());
    };
    if !matches!(request.class, Class::Bootstrap | Class::Delegated) {
        let why = "actor_token goes with a mint by client secret only: leave it out";
        return Err(Refusal::BadRequest.because(why));
    }
    let ours = actor.token_use == TokenUse::Session && actor.zone_id == *request.zone;
    if !ours || actor.exp <= now.unix_seconds() {
        return Err(Refusal::TokenInvalid.because("invalid actor_token"));
    }
    let live = facts.known.live_record(&actor.sid, now);
    let own = live.is_some_and(|record| {
        *record.subject_id == *actor.sub && record.client_id == actor.client_id
    });
    if !own {
        return Err(
            Refusal::AccessDenied.because("the authority record of the actor is not active")
        );
    }
    if actor.actors().count() >= MAX_ACTORS {
        let why = format!("too many actors: at most {MAX_ACTORS} in one mandate");
        return Err(Refusal::AccessDenied.because(why));
    }
    Ok(())
}
