//! Verifies the whole ledger, again and again, so that tampering is noticed without anybody asking.
//!
//! One replica sweeps: whoever leads. Each sweep continues where the last one ended, and once a day
//! everything is verified from the first event, since what was verified can be changed afterwards.
//! A finding is counted once, however often it is found again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use caracal_bus::Bus;
use caracal_ledger::{Head, Why};
use caracal_model::{Ticks, ZoneId};
use tokio_util::sync::CancellationToken;

use crate::ingest::Ingest;
use crate::verify::{Finding, Flaw, VerifyError, verify_zone_from};

/// Between two sweeps.
const EVERY: Duration = Duration::from_secs(3_600);
/// Between two sweeps from the first event.
const FULL_EVERY: Duration = Duration::from_secs(24 * 3_600);
const LEADER: &str = "caracal:audit:sweep";

/// Sweeps the ledger.
pub struct Sweep {
    ingest: Arc<Ingest>,
    bus: Bus,
    holder: String,
    verified: HashMap<ZoneId, Head>,
    found: HashMap<ZoneId, Finding>,
    full_at: Option<Ticks>,
}

impl std::fmt::Debug for Sweep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sweep")
            .field("holder", &self.holder)
            .finish_non_exhaustive()
    }
}

impl Sweep {
    /// `holder` names this process among those that might sweep.
    pub fn new(ingest: Arc<Ingest>, bus: Bus, holder: impl Into<String>) -> Self {
        Self {
            ingest,
            bus,
            holder: holder.into(),
            verified: HashMap::new(),
            found: HashMap::new(),
            full_at: None,
        }
    }

    /// Sweeps every hour until `stop`, while this process leads.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.turn() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    async fn turn(&mut self) {
        // A leader keeps its place from one sweep to the next; when it is gone, another follows.
        match self.bus.lead(LEADER, &self.holder, EVERY * 2).await {
            Ok(true) => self.sweep().await,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "it is not known who verifies the ledger"),
        }
    }

    /// Verifies what came since the last sweep, or everything once a day.
    pub async fn sweep(&mut self) {
        let now = self.ingest.clock().ticks();
        let full = self.full_at.is_none_or(|at| now.since(at) >= FULL_EVERY);
        if full {
            self.verified.clear();
        }
        let zones = match self.ingest.store().audit_zones().await {
            Ok(zones) => zones,
            Err(error) => {
                tracing::warn!(%error, "the ledger could not be verified");
                return;
            }
        };
        for zone in zones {
            self.zone(zone).await;
        }
        let metrics = self.ingest.metrics();
        let seconds = self.ingest.clock().now().unix_seconds();
        metrics.last_sweep.set(seconds);
        if full {
            self.full_at = Some(now);
            metrics.last_full.set(seconds);
        }
    }

    async fn zone(&mut self, zone: ZoneId) {
        let from = self.verified.get(&zone).cloned().unwrap_or_default();
        let verified = verify_zone_from(self.ingest.store(), &zone, &from, self.ingest.key()).await;
        match verified {
            Ok(head) => {
                let checked = head.seq().saturating_sub(from.seq());
                self.ingest.metrics().tamper_checked.inc_by(checked);
                self.verified.insert(zone, head);
            }
            Err(VerifyError::Found(finding)) => self.report(finding),
            Err(error) => tracing::warn!(%error, %zone, "the ledger could not be verified"),
        }
    }

    fn report(&mut self, finding: Finding) {
        tracing::error!(zone_id = %finding.zone, seq = finding.seq, flaw = %finding.flaw,
            "the ledger was tampered with");
        let metrics = self.ingest.metrics();
        let zone = finding.zone.clone();
        let flaw = finding.flaw.clone();
        if self.found.insert(zone, finding.clone()) == Some(finding) {
            return;
        }
        match flaw {
            Flaw::Columns | Flaw::Chain(Why::Content) => metrics.tamper_mismatch.inc(),
            Flaw::Chain(Why::Author) => metrics.tamper_hmac_failures.inc(),
            Flaw::Chain(_) => metrics.tamper_chain_breaks.inc(),
        };
    }
}
