//! What a bus may have lost is sent to it again.
//!
//! **Forces.** Resource servers learn of revocations from the streams, and keep what they have learned
//! beside them. A Redis that comes back without its data, or without the last second of it, has
//! forgotten both: to them, everything that was revoked is alive.
//!
//! **Choice.** The bus names its history, which changes with every restart, failover or emptying. One
//! relay of all notices first, has the revocations of the last day sent again, once more a little later
//! for what was on its way to be recorded, and then leaves a note on the bus which history has them.
//! Consumers mark what is marked already, and epochs only rise.

use std::time::Duration;

use caracal_bus::Bus;
use caracal_model::limits::REVOCATION_MEMORY;
use caracal_model::{Ticks, Timestamp, Topic};

use super::Inner;
use crate::ViewError;

/// What readers outside of a deployment must not miss.
const LASTING: [Topic; 2] = [Topic::SessionsRevoke, Topic::DelegationsInvalidate];
/// How often the history is asked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Entries that were sent before a loss are recorded as sent by then.
const AGAIN_AFTER: Duration = Duration::from_secs(3);
/// For how long one relay makes up for a loss before another may try.
const CLAIM: Duration = Duration::from_secs(30);
/// Where it is noted which history has them, and for how long.
const BOARD: &str = "caracal:outbox:complete";
const NOTED_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Default)]
pub(super) struct Losses {
    looked_at: Option<Ticks>,
    /// The history that is known to have them.
    known: Option<String>,
    /// A history that they were sent to once, by us.
    half_done: Option<Half>,
}

struct Half {
    history: String,
    at: Ticks,
    /// What was committed later was sent to this history in the first place.
    until: Timestamp,
}

impl Inner {
    /// Looks, now and then, whether the bus may have lost something.
    pub(super) async fn make_up_for_losses(&self) -> Result<(), ViewError> {
        let mut losses = self.losses.lock().await;
        let now = self.clock.ticks();
        let lately = |at: Ticks| now.since(at) < LOOK_EVERY;
        if losses.looked_at.is_some_and(lately) {
            return Ok(());
        }
        losses.looked_at = Some(now);
        match &self.mirror {
            None => self.look_back(&mut losses, &self.bus).await,
            Some(mirror) => {
                // An embedded deployment does without it while it is away.
                if let Err(error) = self.look_back(&mut losses, mirror.bus()).await {
                    tracing::debug!(%error, "what the mirror has is not known");
                }
                Ok(())
            }
        }
    }

    async fn look_back(&self, losses: &mut Losses, bus: &Bus) -> Result<(), ViewError> {
        let now = self.clock.ticks();
        let history = bus.history().await?;
        let Some(history) = history.filter(|one| losses.known.as_ref() != Some(one)) else {
            return Ok(());
        };
        if losses.known.take().is_some() {
            self.sending.lock().await.forget_sent();
        }
        let notes = bus.posts(BOARD).await?;
        if notes.iter().any(|(_, note)| *note == history) {
            losses.known = Some(history);
            losses.half_done = None;
            return Ok(());
        }
        match losses
            .half_done
            .take()
            .filter(|half| half.history == history)
        {
            Some(half) if now.since(half.at) >= AGAIN_AFTER => {
                self.revive(half.until).await?;
                bus.post(BOARD, "relay", &history, NOTED_FOR).await?;
                losses.known = Some(history);
            }
            Some(half) => losses.half_done = Some(half),
            None if bus.claim(&format!("{BOARD}:{history}"), CLAIM).await? => {
                let until = self.clock.now();
                self.revive(until).await?;
                let at = now;
                losses.half_done = Some(Half { history, at, until });
            }
            None => {}
        }
        Ok(())
    }

    async fn revive(&self, until: Timestamp) -> Result<(), ViewError> {
        let since = until.minus(REVOCATION_MEMORY);
        let revived = self.store.outbox().revive(&LASTING, since, until).await?;
        if revived > 0 {
            tracing::warn!(
                revived,
                "the bus may have lost revocations: they are sent again"
            );
        }
        Ok(())
    }
}
