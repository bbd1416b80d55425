//! The loop that keeps a view true.
//!
//! It tails the feed from its own position: nobody shares the entries with it, so no replica learns
//! later than another. An answer that leaves nothing unread confirms the lease; an empty one does
//! so too, which is why the wait is a fraction of what the lease allows. When entries may be missing
//! (a gap, or a server that came back as another incarnation) everything is dropped and read again.

use std::collections::BTreeMap;
use std::time::Duration;

use caracal_bus::{BusError, Entry, Position};
use caracal_model::{Ticks, Topic, ZoneId};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::barrier;
use crate::feed::{FOLLOWED, Place, Positions};
use crate::{ViewError, Views};

/// Entries of one topic that are read at once.
const BATCH: usize = 1_000;
/// How often expired marks are dropped.
const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// Owned by whoever runs it: it ends when it is told to stop, and what it began ends with it.
pub struct Follower {
    views: Views,
    backoff: Backoff,
    /// Loads and reports that are under way.
    beside: JoinSet<()>,
    pruned_at: Ticks,
    posted: (Positions, Option<Ticks>),
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("views", &self.views)
            .finish_non_exhaustive()
    }
}

impl Follower {
    pub(crate) fn new(views: Views) -> Self {
        let pruned_at = views.0.clock.ticks();
        Self {
            views,
            backoff: Backoff::new(Duration::from_millis(20), Duration::from_secs(1)),
            beside: JoinSet::new(),
            pruned_at,
            posted: (Positions::new(), None),
        }
    }

    /// Follows the feed until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let views = self.views.clone();
        if views.0.config.warm {
            self.beside.spawn(async move {
                if let Err(error) = views.warm().await {
                    tracing::warn!(%error, "zones not loaded beforehand");
                }
            });
        }
        if let Some(cells) = self.views.0.cells.clone() {
            self.beside.spawn(cells.run(stop.clone()));
        }
        while !stop.is_cancelled() {
            let step = stop.run_until_cancelled(self.step()).await;
            if let Some(Err(error)) = step {
                let pause = self.backoff.next();
                tracing::warn!(%error, lag = ?self.views.lag(), "feed interrupted");
                let _ = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
            } else {
                self.backoff.reset();
            }
        }
    }

    /// One answer of the feed.
    pub(crate) async fn step(&mut self) -> Result<(), ViewError> {
        let Some(next) = self.views.0.feed.next() else {
            return self.views.0.resnapshot().await;
        };
        match self.read(&next).await {
            Ok(()) => {
                self.keep_house();
                Ok(())
            }
            Err(BusError::Gap { topic }) => {
                tracing::warn!(topic, "the feed has a gap, everything is read anew");
                self.views.0.lease.void();
                self.views.0.feed.lose();
                self.views.0.resnapshot().await
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn read(&mut self, next: &Place) -> Result<(), BusError> {
        let at = &self.views.0;
        let from: Vec<(&str, Position)> = FOLLOWED
            .iter()
            .map(|topic| {
                (
                    topic.name(),
                    next.positions.get(topic).copied().unwrap_or_default(),
                )
            })
            .collect();
        let wait = at.config.feed_max_lag / 4;
        // INVARIANT (lease): the time of the question.
        let asked_at = at.clock.ticks();
        let entries = at
            .bus
            .tail_within(&next.incarnation, &from, wait, BATCH)
            .await?;
        let changed: Vec<ZoneId> = entries.iter().filter_map(|entry| at.apply(entry)).collect();
        at.feed.advance(&newest(&entries));
        if is_everything(&entries) {
            at.lease.confirm(asked_at);
        }
        self.reload(changed);
        Ok(())
    }

    /// Loads changed zones before the next request has to wait for it.
    fn reload(&mut self, mut zones: Vec<ZoneId>) {
        zones.sort();
        zones.dedup();
        for zone in zones {
            let views = self.views.clone();
            self.beside.spawn(async move {
                match views.zone(&zone).await {
                    // The change may have been its end.
                    Ok(_) | Err(ViewError::UnknownZone) => {}
                    Err(error) => tracing::warn!(%zone, %error, "zone not loaded after a change"),
                }
            });
        }
    }

    fn keep_house(&mut self) {
        while self.beside.try_join_next().is_some() {}
        let at = &self.views.0;
        let now = at.clock.ticks();
        if now.since(self.pruned_at) >= PRUNE_EVERY {
            self.pruned_at = now;
            at.revocations.prune(at.clock.now());
        }
        let applied = at.feed.applied_now();
        if barrier::report_due(&at.config, self.posted.1, now) || applied != self.posted.0 {
            let views = self.views.clone();
            self.posted = (applied.clone(), Some(now));
            // Beside the loop: a slow answer must not keep us from the next news.
            self.beside.spawn(async move {
                if let Err(error) = barrier::report(&views.0, &applied).await {
                    tracing::debug!(%error, "applied position not reported");
                }
            });
        }
    }
}

/// The last position of each topic.
fn newest(entries: &[Entry]) -> Positions {
    let known = |entry: &Entry| Some((Topic::from_name(&entry.topic)?, entry.position));
    entries.iter().filter_map(known).collect()
}

/// Whether nothing was left unread in any topic.
fn is_everything(entries: &[Entry]) -> bool {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in entries {
        *counts.entry(&entry.topic).or_default() += 1;
    }
    counts.values().all(|count| *count < BATCH)
}
