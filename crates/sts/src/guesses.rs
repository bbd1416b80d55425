//! Failed authentications on record (spec: sts §20.12).
//!
//! **Forces.** Who guesses at the secret of an application must be seen; but guesses are free, and
//! one event each would let anybody fill the ledger. **Choice.** The first failure of an
//! application is recorded before it is answered; those that follow within a minute are counted,
//! and one event tells their number.

use std::sync::Arc;
use std::time::Duration;

use caracal_evidence::Flood;
use caracal_model::{ApplicationId, Refused, RequestId, ZoneId};
use tokio_util::sync::CancellationToken;

use crate::Sts;
use crate::authenticate::invalid;
use crate::events::refused_early;
use crate::exchange::record;

/// Status of the events.
const STATUS: &str = "client_auth_failed";
/// How long a count runs.
const WINDOW: Duration = Duration::from_secs(60);
/// How often closed counts are looked for.
const SETTLE_EVERY: Duration = Duration::from_secs(10);

/// Counts by application, which exists: there are no more of these than of those.
pub type Guesses = Flood<(ZoneId, ApplicationId)>;

/// None yet.
pub fn guesses() -> Guesses {
    Flood::new(1, WINDOW)
}

/// Records a failure, or counts it.
///
/// # Errors
/// 503 when the evidence cannot be written.
pub async fn on_record(
    sts: &Sts,
    tried: (ZoneId, ApplicationId),
    request_id: &RequestId,
    refused: &Refused,
) -> Result<(), Refused> {
    let Some(before) = sts.guesses.admit(&tried, sts.clock.ticks()) else {
        return Ok(());
    };
    let (zone, application) = tried;
    let mut event = refused_early(sts, zone, &application, request_id, refused, STATUS);
    if before > 0 {
        event.metadata_json.put("suppressed", &before);
    }
    record(sts, vec![event]).await
}

/// Records how many failures were only counted, whenever a count is over. Owned by the tasks of the
/// process; what is still counted when it stops is recorded then.
pub async fn settle(sts: Arc<Sts>, stop: CancellationToken) {
    while stop
        .run_until_cancelled(tokio::time::sleep(SETTLE_EVERY))
        .await
        .is_some()
    {
        settle_now(&sts, false).await;
    }
    settle_now(&sts, true).await;
}

/// One event for each count that is over, or for all.
pub async fn settle_now(sts: &Sts, all: bool) {
    for ((zone, application), count) in sts.guesses.overdue(sts.clock.ticks(), all) {
        let Some(request_id) = RequestId::visible_ascii(&sts.ids.uuid()) else {
            continue;
        };
        let mut event = refused_early(sts, zone, &application, &request_id, &invalid(), STATUS);
        event.metadata_json.put("aggregated", &true);
        event.metadata_json.put("suppressed", &count);
        if let Err(error) = sts.evidence.record_after_the_fact(&[event]).await {
            tracing::error!(%error, "a number of failed authentications was not recorded");
        }
    }
}
