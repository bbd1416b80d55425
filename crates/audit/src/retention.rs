//! The age that evidence reaches (spec: audit-and-streams §8): months are made ahead, and dropped
//! whole once they are older than `AUDIT_RETENTION_DAYS`, or than what an operator set below that.
//!
//! One replica does it. It drops nothing that no checkpoint covers, or that is in no tree where
//! nothing is signed: what is gone can then still be proven to have been there. Where the ledger is
//! exported, it drops nothing that is not there yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use caracal_bus::Bus;
use caracal_model::{Ticks, ZoneId};
use caracal_store::StoreError;
use caracal_store::audit_retention::AuditPrefix;
use caracal_store::platform_settings::AUDIT_RETENTION;
use tokio_util::sync::CancellationToken;

use crate::floor;
use crate::ingest::Ingest;

/// Between two passes.
const EVERY: Duration = Duration::from_secs(6 * 3_600);
/// Before a pass is tried again that kept what is too old, or failed.
const AGAIN: Duration = Duration::from_secs(30);
/// Between two looks at who leads.
const LOOK: Duration = Duration::from_secs(10);
/// How long a leader that is silent stays one: longer than a pass takes, in which it says nothing.
const LEASE: Duration = Duration::from_secs(180);
const LEADER: &str = "caracal:audit:retention";
/// Months that have a place before they begin.
const AHEAD: u32 = 3;

/// Makes months and drops them.
pub struct Retention {
    ingest: Arc<Ingest>,
    bus: Bus,
    holder: String,
    days: u32,
    after_export: bool,
    leads: bool,
    /// When the last pass began, and how long after it the next one does.
    passed: Option<(Ticks, Duration)>,
}

impl std::fmt::Debug for Retention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retention")
            .field("holder", &self.holder)
            .field("days", &self.days)
            .finish_non_exhaustive()
    }
}

impl Retention {
    /// `holder` names this process among those that might lead; `days` is the most that is kept.
    pub fn new(ingest: Arc<Ingest>, bus: Bus, holder: impl Into<String>, days: u32) -> Self {
        Self {
            ingest,
            bus,
            holder: holder.into(),
            days,
            after_export: false,
            leads: false,
            passed: None,
        }
    }

    /// Whether the ledger is exported, which then comes first.
    #[must_use]
    pub fn after_export(mut self, exports: bool) -> Self {
        self.after_export = exports;
        self
    }

    /// Passes every six hours until `stop`, while this process leads; sooner where a checkpoint or the
    /// export was behind.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.turn(&stop).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn turn(&mut self, stop: &CancellationToken) {
        let leads = match self.bus.lead(LEADER, &self.holder, LEASE).await {
            Ok(leads) => leads,
            Err(error) => {
                tracing::warn!(%error, "it is not known who keeps the ledger's age");
                false
            }
        };
        let metrics = self.ingest.metrics();
        metrics.is_retention_leader.set(i64::from(leads));
        if std::mem::replace(&mut self.leads, leads) != leads {
            metrics.retention_lease_transitions.inc();
        }
        let now = self.ingest.clock().ticks();
        let passed = self.passed.is_some_and(|(at, pause)| now.since(at) < pause);
        if !leads || passed {
            return;
        }
        let done = self.pass(stop).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the ledger's age was not kept");
            false
        });
        self.passed = Some((now, if done { EVERY } else { AGAIN }));
    }

    /// Makes the months to come, and drops what is too old. Whether nothing of that had to be kept,
    /// because no checkpoint covers it or it is not exported.
    ///
    /// # Errors
    /// When the store does not answer; what was dropped until then stays dropped.
    pub async fn pass(&self, stop: &CancellationToken) -> Result<bool, StoreError> {
        let store = self.ingest.store();
        let metrics = self.ingest.metrics();
        let now = self.ingest.clock().now();
        let made = store.ensure_audit_months(now, AHEAD).await?;
        metrics.retention_created.inc_by(made);
        let before = now.minus(Duration::from_secs(
            u64::from(self.days().await?) * 24 * 3_600,
        ));
        while !stop.is_cancelled() {
            let Some(prefix) = store.audit_prefix(before).await? else {
                return Ok(true);
            };
            if !self.is_covered(&prefix).await? {
                metrics.retention_held.inc();
                return Ok(false);
            }
            let prefix = self.signed(prefix);
            store.drop_audit_prefix(&prefix).await?;
            metrics.retention_dropped.inc();
            let zones = prefix.floors.len();
            tracing::info!(zones, events = ?prefix.events, "a beginning of the ledger was dropped");
            tokio::task::yield_now().await;
        }
        Ok(false)
    }

    /// The days that count: those of the environment, or fewer when an operator said so.
    async fn days(&self) -> Result<u32, StoreError> {
        let store = self.ingest.store();
        let set = store.platform_setting(AUDIT_RETENTION).await?;
        Ok(set.map_or(self.days, |set| set.value.clamp(1, self.days)))
    }

    async fn is_covered(&self, prefix: &AuditPrefix) -> Result<bool, StoreError> {
        let store = self.ingest.store();
        let covered = store.audit_checkpointed().await?;
        if !reaches(
            prefix,
            &covered,
            "old evidence is kept until a checkpoint covers it",
        ) {
            return Ok(false);
        }
        if !self.after_export {
            return Ok(true);
        }
        let exported = store.audit_exported().await?;
        Ok(reaches(
            prefix,
            &exported,
            "old evidence is kept until it is exported",
        ))
    }

    fn signed(&self, mut prefix: AuditPrefix) -> AuditPrefix {
        for one in &mut prefix.floors {
            one.code = floor::code(&one.zone, one.chain_seq, &one.chain_hash, self.ingest.key());
        }
        prefix
    }
}

/// Whether these places are at or behind the end of the prefix in each of its zones.
fn reaches(prefix: &AuditPrefix, places: &BTreeMap<ZoneId, u64>, kept: &str) -> bool {
    prefix.floors.iter().all(|floor| {
        let until = places.get(&floor.zone).copied().unwrap_or(0);
        if until < floor.chain_seq {
            tracing::warn!(zone_id = %floor.zone, until, seq = floor.chain_seq, "{kept}");
        }
        until >= floor.chain_seq
    })
}
