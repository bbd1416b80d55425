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
        let max_lag = self.views.0.config.feed_max_lag;
        if self.lag_of_the_feed().is_none_or(|lag| lag > max_lag / 2) {
            self.ask_the_store(max_lag / 2).await;
            // A store that is silent takes all of that time, in which the feed may have caught up:
            // a feed that was late for a moment must not make an outage of the store ours.
            self.lag_of_the_feed();
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

    /// How long ago the feed was confirmed, if memory may be trusted: what it told is known then.
    fn lag_of_the_feed(&mut self) -> Option<Duration> {
        let at = &self.views.0;
        let lag = at.lease.lag().filter(|_| at.lease.holds())?;
        // INVARIANT (lease): from the question on, as memory is trusted.
        let confirmed = at.clock.ticks().micros().saturating_sub(micros(lag));
        self.known_at = self.known_at.max(Ticks::from_micros(confirmed));
        Some(lag)
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
                at.versions.raise_all();
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use caracal_bus::Bus;
    use caracal_model::{Clock, Ids, Secret, TestClock, TestRng};
    use caracal_store::{Durability, PoolOptions, Store, StoreConfig, StoreUrl};

    use super::*;
    use crate::ViewConfig;

    const MAX_LAG: Duration = Duration::from_millis(400);

    /// A view whose store takes connections and says nothing.
    async fn on_a_silent_store(clock: Arc<TestClock>) -> (Views, tokio::net::TcpListener) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = StoreConfig {
            url: StoreUrl::Pg {
                url: Secret::new(format!("postgres://nobody@{address}/none")),
                tls: None,
                pool: PoolOptions {
                    max: 1,
                    connect_timeout: Duration::from_secs(60),
                    statement_timeout: Duration::from_secs(60),
                    ..PoolOptions::default()
                },
            },
            durability: Durability::Process,
        };
        let ids = Arc::new(Ids::new(clock.clone(), Arc::new(TestRng::default())));
        let store = Store::open(config, clock.clone(), ids).await.unwrap();
        let config = ViewConfig {
            feed_max_lag: MAX_LAG,
            ..ViewConfig::default()
        };
        let bus = Bus::memory(clock.clone());
        let (views, _follower) = Views::new(store, bus, clock, None, config);
        (views, listener)
    }

    #[tokio::test]
    async fn a_feed_that_was_late_for_a_moment_is_believed_though_the_store_is_silent() {
        let clock = Arc::new(TestClock::default());
        let (views, _listener) = on_a_silent_store(clock.clone()).await;
        views.0.lease.confirm(clock.ticks());
        let mut sentinel = views.sentinel();

        // Late enough to ask the store; the feed is heard of again while it is asked.
        clock.advance(Duration::from_millis(250));
        let feed = async {
            clock.advance(Duration::from_millis(250));
            views.0.lease.confirm(clock.ticks());
        };
        tokio::join!(sentinel.look(), feed);
        assert!(!views.is_blind(), "the feed has told");

        clock.advance(Duration::from_millis(300));
        sentinel.look().await;
        assert!(!views.is_blind(), "within what memory may be behind");
        clock.advance(Duration::from_millis(150));
        sentinel.look().await;
        assert!(views.is_blind(), "neither has told");
        views.0.lease.confirm(clock.ticks());
        sentinel.look().await;
        assert!(!views.is_blind());
    }
}
