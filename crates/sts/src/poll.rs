//! A second way to learn of policy (`OPA_POLL_SECONDS`; spec: sts §10.1): the store is asked now and
//! again which policies are in force.
//!
//! The feed tells of every change within a second, and a feed that is behind makes memory step aside.
//! What neither can see is a change that was never announced: a database that was restored from a
//! backup, or edited by hand. Without this, such a policy would be in force only in replicas that
//! start later.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::Sts;

/// Asks until told to stop. While the store does not answer, what is held stays.
pub async fn follow(sts: Arc<Sts>, stop: CancellationToken) {
    let pause = interval(&sts);
    loop {
        let slept = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        if slept.is_none() || stop.run_until_cancelled(once(&sts)).await.is_none() {
            return;
        }
    }
}

/// Between two questions.
pub fn interval(sts: &Sts) -> Duration {
    Duration::from_secs(sts.config.policy_poll_seconds)
}

/// Asks once.
pub async fn once(sts: &Sts) {
    // From the question on: a slow answer can only make what is held look older.
    let asked_at = sts.clock.ticks();
    match sts.views.check_policies().await {
        Ok(missed) => {
            sts.metrics.policies_confirmed(asked_at, missed.len());
            for zone in missed {
                tracing::warn!(%zone, "policy changed without an announcement, it is loaded again");
            }
        }
        Err(error) => tracing::warn!(%error, "policies in force cannot be read, those held stay"),
    }
}
