//! After a commit: tell the others.
//!
//! A service calls [`Announce::announce`] once its change is committed and before it answers. What
//! that means is the difference between the deployments, and the only place that knows it.

use std::time::Duration;

use async_trait::async_trait;
use caracal_model::ZoneId;

use crate::barrier::ReplicaStatus;
use crate::feed::{FOLLOWED, Positions};
use crate::{Relay, ViewError, Views};

/// How long a call waits until the local view has caught up.
const LOCAL_WAIT: Duration = Duration::from_secs(1);

/// Tells the others of what was committed.
#[async_trait]
pub trait Announce: Send + Sync {
    /// Sends what was committed before this was called. Never fails: what could not be sent is in
    /// the outbox, and the relay sends it.
    async fn announce(&self);

    /// As [`Announce::announce`], then waits at most `wait` until every live replica has applied
    /// what was committed in this zone; answers which have. Nobody listed means that it could not
    /// be proved.
    async fn prove(&self, zone: &ZoneId, wait: Duration) -> Vec<ReplicaStatus>;
}

/// One process: the change is in memory before the call answers.
#[derive(Clone, Debug)]
pub struct Local {
    relay: Relay,
    views: Views,
}

impl Local {
    /// From now on these views answer from memory only while the relay gets everything out.
    pub fn new(relay: Relay, views: Views) -> Self {
        views.only_while(relay.health());
        Self { relay, views }
    }

    async fn apply(&self, wait: Duration) -> Result<bool, ViewError> {
        self.relay.drain().await?;
        let upto = last_positions(&self.views).await?;
        Ok(self.views.applied_all(&upto, wait).await)
    }
}

#[async_trait]
impl Announce for Local {
    async fn announce(&self) {
        match self.apply(LOCAL_WAIT).await {
            Ok(true) => {}
            // The lease may outlive our patience: from here on answers come from the store.
            Ok(false) => {
                self.views.distrust();
                tracing::warn!("the local view did not catch up in time");
            }
            Err(error) => {
                self.views.distrust();
                tracing::warn!(%error, "not announced yet");
            }
        }
    }

    async fn prove(&self, _: &ZoneId, wait: Duration) -> Vec<ReplicaStatus> {
        match self.apply(wait).await {
            Ok(applied) => {
                let replica = self.views.0.config.replica.clone();
                vec![ReplicaStatus { replica, applied }]
            }
            Err(error) => {
                tracing::warn!(%error, "not announced yet");
                Vec::new()
            }
        }
    }
}

/// Many processes: the change is on the bus, usually, before the call answers.
#[derive(Clone, Debug)]
pub struct Distributed {
    relay: Relay,
    views: Views,
}

impl Distributed {
    /// `views` asks the other replicas; its follower need not run for that.
    pub fn new(relay: Relay, views: Views) -> Self {
        Self { relay, views }
    }

    async fn prove(&self, zone: &ZoneId, wait: Duration) -> Result<Vec<ReplicaStatus>, ViewError> {
        let began = self.views.0.clock.ticks();
        if !self.relay.flush(zone, wait).await? {
            return Ok(Vec::new());
        }
        let upto = last_positions(&self.views).await?;
        let left = wait.saturating_sub(self.views.0.clock.ticks().since(began));
        self.views.barrier(&upto, left).await
    }
}

#[async_trait]
impl Announce for Distributed {
    async fn announce(&self) {
        if let Err(error) = self.relay.drain().await {
            tracing::warn!(%error, "not announced yet");
        }
    }

    async fn prove(&self, zone: &ZoneId, wait: Duration) -> Vec<ReplicaStatus> {
        Self::prove(self, zone, wait).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "not proved");
            Vec::new()
        })
    }
}

/// Where the followed topics end now: everything that was sent so far is before.
async fn last_positions(views: &Views) -> Result<Positions, ViewError> {
    let mut upto = Positions::new();
    for topic in FOLLOWED {
        upto.insert(topic, views.0.bus.last(topic.name()).await?);
    }
    Ok(upto)
}
