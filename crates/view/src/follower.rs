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
use crate::feed::{FOLLOWED, Positions};
use crate::{ViewError, Views};

/// Entries of one topic that are read at once.
const BATCH: usize = 1_000;
/// How often expired marks are dropped.
const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// Owned by whoever runs it: it ends when it is told to stop, and its loads end with it.
pub struct Follower {
    views: Views,
    backoff: Backoff,
    incarnation: Option<String>,
    /// The feed was cut off since: who answers now may not be who answered before.
    in_doubt: bool,
    reloads: JoinSet<()>,
    pruned_at: Ticks,
    posted: (Positions, Option<Ticks>),
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("in_doubt", &self.in_doubt)
            .finish_non_exhaustive()
    }
}

impl Follower {
    pub(crate) fn new(views: Views) -> Self {
        let pruned_at = views.0.clock.ticks();
        Self {
            views,
            backoff: Backoff::new(Duration::from_millis(20), Duration::from_secs(1)),
            incarnation: None,
            in_doubt: true,
            reloads: JoinSet::new(),
            pruned_at,
            posted: (Positions::new(), None),
        }
    }

    /// Follows the feed until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let views = self.views.clone();
        self.reloads.spawn(async move {
            if let Err(error) = views.warm().await {
                tracing::warn!(%error, "zones not loaded beforehand");
            }
        });
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
        self.settle_doubt().await?;
        let Some(next) = self.views.0.feed.next() else {
            return self.views.0.resnapshot().await;
        };
        match self.read(&next).await {
            Ok(()) => self.keep_house().await,
            Err(BusError::Gap { topic }) => {
                tracing::warn!(topic, "the feed has a gap, everything is read anew");
                self.views.0.lease.void();
                self.views.0.feed.lose();
                self.views.0.resnapshot().await?;
            }
            Err(error) => {
                self.in_doubt = true;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// After a cut, the server may have come back without its newest entries: positions alone do
    /// not show that.
    async fn settle_doubt(&mut self) -> Result<(), ViewError> {
        if !self.in_doubt {
            return Ok(());
        }
        let now = self.views.0.bus.incarnation().await?;
        if self
            .incarnation
            .as_ref()
            .is_some_and(|before| *before != now)
        {
            tracing::warn!("the bus was started again, everything is read anew");
            self.views.0.lease.void();
            self.views.0.feed.lose();
        }
        self.incarnation = Some(now);
        self.in_doubt = false;
        Ok(())
    }

    async fn read(&mut self, next: &Positions) -> Result<(), BusError> {
        let at = &self.views.0;
        let from: Vec<(&str, Position)> = FOLLOWED
            .iter()
            .map(|topic| (topic.name(), next.get(topic).copied().unwrap_or_default()))
            .collect();
        let wait = at.config.feed_max_lag / 4;
        // INVARIANT (lease): the time of the question.
        let asked_at = at.clock.ticks();
        let entries = at.bus.tail(&from, wait, BATCH).await?;
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
        while self.reloads.try_join_next().is_some() {}
        for zone in zones {
            let views = self.views.clone();
            self.reloads.spawn(async move {
                if let Err(error) = views.zone(&zone).await {
                    tracing::warn!(%zone, %error, "zone not loaded after a change");
                }
            });
        }
    }

    async fn keep_house(&mut self) {
        let at = &self.views.0;
        let now = at.clock.ticks();
        if now.since(self.pruned_at) >= PRUNE_EVERY {
            self.pruned_at = now;
            at.revocations.prune(at.clock.now());
        }
        let applied = at.feed.applied_now();
        let due = barrier::report_due(&at.config, self.posted.1, now);
        if due || applied != self.posted.0 {
            match barrier::report(at, &applied).await {
                Ok(()) => self.posted = (applied, Some(now)),
                Err(error) => tracing::debug!(%error, "applied position not reported"),
            }
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
