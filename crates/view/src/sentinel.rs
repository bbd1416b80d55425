//! The sentinel: may responses that are under way go on?
//!
//! **Forces.** A request is judged when it comes, but its response may run for hours. While the
//! feed is whole, a revocation reaches it as a mark. While the feed is lost, nothing would: a
//! stream that was admitted before could outlive its revocation for as long as the outage lasts.
//!
//! **Choice.** When half of what the lease allows has passed without news, the sentinel reads the
//! latest deaths from the store and marks them, once for all streams of the replica. When the store
//! is silent as well for `FEED_MAX_LAG`, the replica is blind, and says so to whoever watches.
//!
//! **Rejected.** A question a stream: thousands of them, every second of an outage.
//!
//! **Consequence.** A stream is cut within `FEED_MAX_LAG` of its revocation, or of the moment in
//! which nobody could tell any more.

use std::sync::atomic::Ordering;
use std::time::Duration;

use caracal_model::Ticks;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::Views;

/// How much further back than what is known is read: clocks of replicas differ, and a transaction
/// commits later than the time that it writes.
const OVERLAP: Duration = Duration::from_secs(300);
/// Looks in the time that the lease lasts.
const LOOKS: u32 = 8;

/// Owned by whoever relays responses.
#[derive(Debug)]
pub struct Sentinel {
    views: Views,
    /// When the revocations were known to be complete.
    known_at: Ticks,
}

impl Views {
    /// Watches over responses under way. It has to run for [`Views::is_blind`] to tell.
    pub fn sentinel(&self) -> Sentinel {
        Sentinel {
            known_at: self.0.clock.ticks(),
            views: self.clone(),
        }
    }

    /// Whether for longer than `FEED_MAX_LAG` neither feed nor store has told of revocations. Told
    /// as marks are: by [`Views::revocation_watch`].
    pub fn is_blind(&self) -> bool {
        self.0.blind.load(Ordering::SeqCst)
    }
}

impl Sentinel {
    /// Looks until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let every = self.views.0.config.feed_max_lag / LOOKS;
        while stop
            .run_until_cancelled(tokio::time::sleep(every))
            .await
            .is_some()
        {
            let _ = stop.run_until_cancelled(self.look()).await;
        }
    }

    async fn look(&mut self) {
        let at = &self.views.0;
        let max_lag = at.config.feed_max_lag;
        match at.lease.lag().filter(|_| at.lease.holds()) {
            // INVARIANT (lease): from the question on, as memory is trusted.
            Some(lag) if lag <= max_lag / 2 => {
                let confirmed = at.clock.ticks().micros().saturating_sub(micros(lag));
                self.known_at = self.known_at.max(Ticks::from_micros(confirmed));
            }
            _ => self.ask_the_store(max_lag / 2).await,
        }
        let at = &self.views.0;
        let blind = at.clock.ticks().since(self.known_at) > max_lag;
        if at.blind.swap(blind, Ordering::SeqCst) != blind {
            if blind {
                tracing::error!("neither feed nor store tell of revocations: streams are cut");
            } else {
                tracing::info!("revocations are known again");
            }
        }
        if blind {
            at.revocations.wake();
        }
    }

    async fn ask_the_store(&mut self, within: Duration) {
        let at = &self.views.0;
        let asked_at = at.clock.ticks();
        let since = at
            .clock
            .now()
            .minus(asked_at.since(self.known_at))
            .minus(OVERLAP);
        match timeout(within, at.store.dead_since(since)).await {
            Ok(Ok(dead)) => {
                at.revocations
                    .mark(dead.into_iter().map(|dead| (dead.anchor, dead.at)));
                self.known_at = asked_at;
            }
            Ok(Err(error)) => tracing::debug!(%error, "the feed is lost, and so is the store"),
            Err(_) => tracing::debug!("the feed is lost, and the store is slow"),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
