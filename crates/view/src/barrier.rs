//! The barrier: which live replicas have applied a change?
//!
//! Every replica posts what it has applied, for a time that is longer than its lease: one that is
//! no longer listed has not confirmed its feed for longer than it may answer from memory, so it
//! reads through and sees the change in the store. One that is listed and has not applied the
//! change may still answer from memory, and is named.

use std::time::Duration;

use caracal_bus::{BusError, Position};
use caracal_model::{Ticks, Topic};
use serde::Serialize;

use crate::feed::{Positions, covers};
use crate::views::{Inner, ViewConfig};
use crate::{ViewError, Views};

/// Where replicas post; each at `caracal:view:applied:<replica>`.
const BOARD: &str = "caracal:view:applied";
/// How often a barrier looks again.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Whether a replica has applied what was waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicaStatus {
    /// Its name.
    pub replica: String,
    /// Whether it has.
    pub applied: bool,
}

/// How long a post stands.
fn stands(config: &ViewConfig) -> Duration {
    config
        .feed_max_lag
        .saturating_mul(4)
        .max(Duration::from_secs(2))
}

/// Whether it is time to post again although nothing changed.
pub(crate) fn report_due(config: &ViewConfig, posted: Option<Ticks>, now: Ticks) -> bool {
    posted.is_none_or(|posted| now.since(posted) >= stands(config) / 4)
}

pub(crate) async fn report(at: &Inner, applied: &Positions) -> Result<(), BusError> {
    let note: Vec<String> = applied
        .iter()
        .map(|(topic, position)| format!("{}={position}", topic.name()))
        .collect();
    at.bus
        .post(
            BOARD,
            &at.config.replica,
            &note.join(" "),
            stands(&at.config),
        )
        .await
}

fn read_note(note: &str) -> Positions {
    let part = |part: &str| {
        let (topic, position) = part.split_once('=')?;
        let position: Position = position.parse().ok()?;
        Some((Topic::from_name(topic)?, position))
    };
    note.split(' ').filter_map(part).collect()
}

impl Views {
    /// Waits until every live replica has applied everything up to these positions, at most
    /// `wait`; answers which have.
    ///
    /// # Errors
    /// When the bus cannot be asked: nothing is then known.
    pub async fn barrier(
        &self,
        upto: &Positions,
        wait: Duration,
    ) -> Result<Vec<ReplicaStatus>, ViewError> {
        let until = self.0.clock.ticks();
        loop {
            let posts = self.0.bus.posts(BOARD).await?;
            let status: Vec<ReplicaStatus> = posts
                .into_iter()
                .map(|(replica, note)| {
                    let applied = covers(&read_note(&note), upto);
                    ReplicaStatus { replica, applied }
                })
                .collect();
            let late = self.0.clock.ticks().since(until) >= wait;
            if late || status.iter().all(|replica| replica.applied) {
                return Ok(status);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
