//! The registry of token ids (spec: sts §14): an id that is issued twice means that randomness has
//! failed, and the second token must not leave.
//!
//! **Forces.** A claim for every mint would double what the bus has to remember of each call.
//!
//! **Choice.** Session and Control mandates are good for many uses, so their ids are claimed here, as
//! their records are kept. A gateway mandate is good for one: the Gateway claims its id when it is
//! used, so of two tokens with one id the second is worth nothing. A resource mandate comes of a
//! gateway mandate whose id was claimed.

use std::time::Duration;

use caracal_ledger::Event;
use caracal_model::{EventId, Mandate, Refusal, Refused, RequestId};
use serde_json::{Map, Value};

use crate::Sts;
use crate::exchange::record;

/// Claims the id of a mandate for as long as the mandate lives.
///
/// # Errors
/// 500 `internal_error` when it was issued before, which is on record; 503 when nobody can tell.
pub async fn register(sts: &Sts, request_id: &RequestId, mandate: &Mandate) -> Result<(), Refused> {
    let seconds = mandate.exp.saturating_sub(mandate.iat).max(1);
    let life = Duration::from_secs(seconds.unsigned_abs());
    let key = format!("audit:jti:{}", mandate.jti);
    match sts.bus.claim(&key, life).await {
        Ok(true) => Ok(()),
        Ok(false) => {
            tracing::error!(jti = %mandate.jti, "denied: a token id was issued before");
            record(sts, vec![collision(sts, request_id, mandate)]).await?;
            Err(Refusal::Internal.because("the token id was issued before"))
        }
        Err(error) => {
            tracing::warn!(%error, "denied: a token id cannot be registered");
            let why = "token ids cannot be registered, try again shortly";
            Err(Refusal::Unavailable.because(why).retry_after(1))
        }
    }
}

fn collision(sts: &Sts, request_id: &RequestId, mandate: &Mandate) -> Event {
    let mut metadata = Map::new();
    let mut put = |name: &str, value: Value| {
        metadata.insert(name.to_owned(), value);
    };
    put("application_id", mandate.client_id.as_str().into());
    put("app_id", mandate.client_id.as_str().into());
    put("jti", mandate.jti.as_str().into());
    put("reason", "the token id was issued before".into());
    Event::new(
        EventId::trusted(sts.ids.uuid()),
        mandate.zone_id.clone(),
        "jti_collision",
        request_id.as_str(),
        "deny",
        "anomaly",
        sts.clock.now(),
    )
    .metadata(metadata)
}
