//! Control keys (spec: sts §2.4 row 2, §8): exchanges for the Control API, which alone may leave
//! out the zone.

use caracal_authority::ControlKey;
use caracal_authority::control::CONTROL_PREFIX;
use caracal_model::{ApplicationId, Refused};

use crate::Sts;
use crate::authenticate::{Caller, in_zone, unavailable};
use crate::form::TokenRequest;

/// Whether a request has the form of a Control exchange: the Control audience alone, its scopes
/// alone, and nobody else's authority.
pub fn is_control(sts: &Sts, form: &TokenRequest) -> bool {
    let alone = form.subject.is_none()
        && form.actor.is_none()
        && form.session_id.is_none()
        && form.agent_session_id.is_none()
        && form.delegation_edge_id.is_none();
    let audience = form.resources.as_slice() == [sts.config.control_audience.as_str()];
    let mut scopes = form.scopes.iter();
    alone && audience && !form.scopes.is_empty() && scopes.all(|s| s.starts_with(CONTROL_PREFIX))
}

/// The caller of a request without a zone: a Control key, found by its id alone. Anybody else is
/// nobody, and reads the same answer as for a wrong secret.
///
/// # Errors
/// 503 when state cannot be read.
pub async fn without_zone(
    sts: &Sts,
    form: &TokenRequest,
    id: &ApplicationId,
) -> Result<Option<Caller>, Refused> {
    if !is_control(sts, form) {
        return Ok(None);
    }
    let home = sts.views.zone_of_application(id).await;
    let Some(home) = home.map_err(|error| unavailable(&error))? else {
        return Ok(None);
    };
    let caller = in_zone(sts, &home, id).await?;
    Ok(caller.filter(invokes))
}

fn invokes(caller: &Caller) -> bool {
    let mut traits = caller.application.traits.iter();
    traits.any(|named| named == "control:invoke")
}

/// The key of a caller whose request has the form of a Control exchange. A caller without one goes
/// on as anybody, and the control resource refuses it.
pub fn key(sts: &Sts, form: &TokenRequest, caller: &Caller) -> Option<ControlKey> {
    let wanted = is_control(sts, form);
    wanted
        .then(|| ControlKey::of(&caller.application.traits))
        .flatten()
}
