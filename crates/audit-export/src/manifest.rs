//! What stands beside every object: what it holds and how that is checked.
//!
//! It follows from the object's plan and bytes alone, so a repeated upload writes the same. The
//! chain of a zone is checked from one manifest to the next: with `previous_chain_hash` and the
//! column `content_sha256`, every link can be computed again and must end at `chain_hash` (crate
//! `ledger`), which is the next one's `previous_chain_hash`.

use std::collections::BTreeMap;

use caracal_ledger::{Broken, Head, StoredLink, Verifier};
use caracal_model::{Timestamp, ZoneId};
use caracal_store::audit_events::AuditEvent;
use caracal_store::audit_exports::{Export, ExportRange};
use serde::{Deserialize, Serialize};

use crate::table::OCSF_VERSION;

/// Names the form of the manifest.
const SCHEMA: &str = "caracal.audit-export/1";

/// Beside `….parquet`, as `….manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Names this form.
    pub schema: String,
    /// Key of the object.
    pub object: String,
    /// Start of the hour, ISO 8601.
    pub hour: String,
    /// Number of the object among those of the hour, from 1.
    pub part: u32,
    /// Whether nothing more of the hour follows.
    pub ends_hour: bool,
    /// The version of OCSF that the columns follow.
    pub ocsf_version: String,
    /// Size of the object.
    pub bytes: u64,
    /// Digest of the object, hex.
    pub sha256: String,
    /// Rows of the object.
    pub events: u64,
    /// The stretch of each zone's chain, in the order of the rows.
    pub zones: Vec<ZoneStretch>,
}

/// A stretch of the chain of a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneStretch {
    /// The zone.
    pub zone_id: ZoneId,
    /// Place of the first event.
    pub first_seq: u64,
    /// Place of the last event.
    pub last_seq: u64,
    /// Hash of the chain before the first, hex.
    pub previous_chain_hash: String,
    /// Hash of the chain at the last, hex.
    pub chain_hash: String,
    /// How many rows there are; fewer than places when some are no longer kept.
    pub events: u64,
    /// How many there are of each decision.
    pub decisions: BTreeMap<String, u64>,
    /// Whether the chain held from the previous hash to the last one when it was exported.
    pub chain: Chain,
}

/// What became of the check of a stretch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Chain {
    /// Every link continued the one before.
    Holds,
    /// The first one that did not. What follows was exported all the same.
    Broken {
        /// Its place.
        seq: u64,
        /// What did not fit.
        why: String,
    },
}

/// Counts and checks a stretch while it is written.
#[derive(Debug)]
pub(crate) struct Stretch {
    range: ExportRange,
    verifier: Option<Verifier<'static>>,
    broken: Option<Broken>,
    events: u64,
    decisions: BTreeMap<String, u64>,
}

impl Stretch {
    pub fn new(range: ExportRange) -> Self {
        let from = Head::stored(range.after.chain_seq, &range.after.chain_hash);
        Self {
            // A start that is no hash is a break at the first event.
            verifier: Some(Verifier::new(from.as_ref(), None)),
            range,
            broken: None,
            events: 0,
            decisions: BTreeMap::new(),
        }
    }

    /// Takes the next event.
    pub fn push(&mut self, event: &AuditEvent) {
        self.events += 1;
        *self.decisions.entry(event.decision.clone()).or_default() += 1;
        let link = StoredLink {
            seq: event.chain_seq,
            wire: &event.event,
            content_sha256: &event.content_sha256,
            chain_hash: &event.chain_hash,
            chain_hmac: &event.chain_hmac,
        };
        if let Some(verifier) = &mut self.verifier
            && let Err(broken) = verifier.check(&link)
        {
            self.broken = Some(broken);
            self.verifier = None;
        }
    }

    /// Ends it: the chain must have come to where it was planned to.
    pub fn finish(mut self) -> ZoneStretch {
        let to = Head::stored(self.range.to.chain_seq, &self.range.to.chain_hash);
        if let Some(verifier) = &self.verifier {
            let ends = verifier.ends_at(&to.unwrap_or_default());
            self.broken = ends.err();
        }
        ZoneStretch {
            first_seq: self.range.after.chain_seq.saturating_add(1),
            last_seq: self.range.to.chain_seq,
            previous_chain_hash: self.range.after.chain_hash,
            chain_hash: self.range.to.chain_hash,
            zone_id: self.range.to.zone,
            events: self.events,
            decisions: self.decisions,
            chain: self.broken.map_or(Chain::Holds, |broken| Chain::Broken {
                seq: broken.seq,
                why: broken.why.to_string(),
            }),
        }
    }
}

impl Manifest {
    pub(crate) fn of(plan: &Export, zones: Vec<ZoneStretch>) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            object: plan.object.clone(),
            hour: hour(plan.hour),
            part: plan.part,
            ends_hour: plan.ends_hour,
            ocsf_version: OCSF_VERSION.to_owned(),
            bytes: 0,
            sha256: String::new(),
            events: zones.iter().map(|zone| zone.events).sum(),
            zones,
        }
    }

    /// As it is stored.
    pub(crate) fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

fn hour(at: Timestamp) -> String {
    at.iso_seconds()
}
