//! Does the ledger still say what was said? Verification of a zone in the store and of an export,
//! naming the first event that cannot be trusted.
//!
//! An export needs neither the store nor us: one line an event, with the exact text, and every hash
//! can be recomputed with standard tools.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{BufRead, Read, Write};

use caracal_crypto::HmacKey;
use caracal_ledger::chain::{StoredLink, Verifier, append};
use caracal_ledger::{Broken, Event, Head, Why};
use caracal_model::{Timestamp, ZoneId};
use caracal_store::audit_events::{AuditEvent, AuditEvents};
use caracal_store::audit_retention::AuditFloor;
use caracal_store::{Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::entry;
use crate::floor;
use crate::ingest::head_of;

/// Events that are read at a time.
const PAGE: u32 = 1_000;
/// Longest line of an export; an event is far shorter.
const MAX_LINE: u64 = 16 * 1024 * 1024;

/// What does not hold, and where it starts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("zone {zone}, event {seq}: {flaw}")]
pub struct Finding {
    /// The zone.
    pub zone: ZoneId,
    /// The first place of its chain that cannot be trusted.
    pub seq: u64,
    /// What does not hold there.
    pub flaw: Flaw,
}

/// What does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The chain.
    #[error("{0}")]
    Chain(Why),
    /// The chain holds, but the columns that reads go by say something else than the text.
    #[error("its columns do not say what its text says")]
    Columns,
}

/// Why a verification did not end well.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The ledger was tampered with.
    #[error("{0}")]
    Found(#[from] Finding),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The export could not be read or written.
    #[error("the export: {0}")]
    Io(#[from] std::io::Error),
    /// A line of the export is none that we write.
    #[error("line {line} of the export: {why}")]
    Line {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// Verifies the chain of a zone from its first event, or from where retention left it, to its
/// recorded head; answers with that head. With a key, also who made it.
///
/// # Errors
/// [`VerifyError::Found`] names the first event that cannot be trusted.
pub async fn verify_zone(
    store: &Store,
    zone: &ZoneId,
    key: Option<&HmacKey>,
) -> Result<Head, VerifyError> {
    verify_zone_from(store, zone, &Head::GENESIS, key).await
}

/// As [`verify_zone`], from a head that was verified before.
///
/// # Errors
/// [`VerifyError::Found`] names the first event that cannot be trusted.
pub async fn verify_zone_from(
    store: &Store,
    zone: &ZoneId,
    from: &Head,
    key: Option<&HmacKey>,
) -> Result<Head, VerifyError> {
    let audit = store.zone(zone).audit();
    let start = begin(&audit, from, key).await?;
    let mut chain = Chain::from(zone.clone(), &start, key);
    loop {
        let page = audit.chain(chain.seq(), PAGE).await?;
        if let Err(finding) = chain.check_rows(&page) {
            // Retention may have dropped what came next between two pages.
            let floor = begin(&audit, chain.verifier.head(), key).await?;
            if floor.seq() <= chain.seq() {
                return Err(finding.into());
            }
            chain = Chain::from(zone.clone(), &floor, key);
            continue;
        }
        if !page.is_empty() {
            // A long chain must not keep a worker of the runtime to itself.
            tokio::task::yield_now().await;
            continue;
        }
        let head = audit
            .head()
            .await?
            .map_or(Ok(Head::default()), |head| head_of(&head))?;
        // Events and head move together, so what was appended since the page is there now.
        let late = audit.chain(chain.seq(), PAGE).await?;
        if head.seq() > chain.seq() && !late.is_empty() {
            continue;
        }
        return chain.ends_at(&head);
    }
}

/// Where to begin: at `from`, or at the floor when retention has gone further.
async fn begin(
    audit: &AuditEvents<'_>,
    from: &Head,
    key: Option<&HmacKey>,
) -> Result<Head, VerifyError> {
    match audit.floor().await? {
        Some(floor) if floor.chain_seq > from.seq() => Ok(floor::head(&floor, key)?),
        _ => Ok(from.clone()),
    }
}

struct Chain<'k> {
    zone: ZoneId,
    verifier: Verifier<'k>,
}

impl<'k> Chain<'k> {
    fn new(zone: ZoneId, key: Option<&'k HmacKey>) -> Self {
        Self::from(zone, &Head::GENESIS, key)
    }

    fn from(zone: ZoneId, head: &Head, key: Option<&'k HmacKey>) -> Self {
        Self {
            zone,
            verifier: Verifier::new(Some(head), key),
        }
    }

    fn seq(&self) -> u64 {
        self.verifier.head().seq()
    }

    fn check(&mut self, link: &StoredLink<'_>) -> Result<(), Finding> {
        self.verifier
            .check(link)
            .map_err(|broken| found(&self.zone, broken))
    }

    fn check_rows(&mut self, rows: &[AuditEvent]) -> Result<(), Finding> {
        for row in rows {
            let before = self.verifier.head().clone();
            self.check(&StoredLink {
                seq: row.chain_seq,
                wire: &row.event,
                content_sha256: &row.content_sha256,
                chain_hash: &row.chain_hash,
                chain_hmac: &row.chain_hmac,
            })?;
            if !says_what_it_says(row, &before) {
                let flaw = Flaw::Columns;
                return Err(Finding {
                    zone: self.zone.clone(),
                    seq: row.chain_seq,
                    flaw,
                });
            }
        }
        Ok(())
    }

    fn ends_at(&self, head: &Head) -> Result<Head, VerifyError> {
        self.verifier
            .ends_at(head)
            .map_err(|broken| found(&self.zone, broken))?;
        Ok(head.clone())
    }
}

fn found(zone: &ZoneId, broken: Broken) -> Finding {
    Finding {
        zone: zone.clone(),
        seq: broken.seq,
        flaw: Flaw::Chain(broken.why),
    }
}

/// Whether the columns are those that the text gives.
fn says_what_it_says(stored: &AuditEvent, before: &Head) -> bool {
    let Ok(event) = Event::parse(&stored.event) else {
        return false;
    };
    let mut link = append(Some(before), &stored.event, None);
    link.chain_hmac.clone_from(&stored.chain_hmac);
    entry::row(&event, stored.event.clone(), link, stored.ingested_at) == *stored
}

/// What an export says of a zone whose beginning retention has dropped, before its first event.
#[derive(Serialize, Deserialize)]
struct Floor {
    zone_id: ZoneId,
    floor_seq: u64,
    floor_chain_hash: String,
    floor_code: String,
}

/// A line of an export.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Event(Link),
    Floor(Floor),
}

/// An event in an export.
#[derive(Serialize, Deserialize)]
struct Link {
    zone_id: ZoneId,
    seq: u64,
    event: String,
    content_sha256: String,
    chain_hash: String,
    chain_hmac: String,
}

/// Writes the chain of a zone, one JSON line an event; answers with how many.
///
/// # Errors
/// When the store or `out` fails.
pub async fn export_chain(
    store: &Store,
    zone: &ZoneId,
    out: &mut (dyn Write + Send),
) -> Result<u64, VerifyError> {
    let audit = store.zone(zone).audit();
    let mut last = 0;
    let mut written = 0;
    if let Some(floor) = audit.floor().await? {
        last = floor.chain_seq;
        let line = Floor {
            zone_id: floor.zone,
            floor_seq: floor.chain_seq,
            floor_chain_hash: floor.chain_hash,
            floor_code: floor.code,
        };
        write_line(out, &line)?;
    }
    loop {
        let page = audit.chain(last, PAGE).await?;
        let Some(end) = page.last() else {
            out.flush()?;
            return Ok(written);
        };
        last = end.chain_seq;
        for row in page {
            let line = Link {
                zone_id: row.zone,
                seq: row.chain_seq,
                event: row.event,
                content_sha256: row.content_sha256,
                chain_hash: row.chain_hash,
                chain_hmac: row.chain_hmac,
            };
            write_line(out, &line)?;
            written += 1;
        }
    }
}

fn write_line(out: &mut (dyn Write + Send), line: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Verifies an export of one or more zones, each from its first event, or from where it says that
/// retention left it; answers with how far each goes. An end that was cut off shows only against heads that were kept elsewhere: `kept`.
///
/// # Errors
/// [`VerifyError::Found`] names the first event that cannot be trusted.
pub fn verify_export(
    mut export: impl BufRead,
    key: Option<&HmacKey>,
    kept: &[(ZoneId, Head)],
) -> Result<Vec<(ZoneId, Head)>, VerifyError> {
    let mut chains: HashMap<ZoneId, Chain<'_>> = HashMap::new();
    let mut at = 0;
    while let Some(line) = next_line(&mut export, &mut at)? {
        let line = match line {
            Line::Event(link) => link,
            Line::Floor(line) => {
                let head = beginning(&line, key)?;
                // Only the first line of a zone says where it begins.
                let zone = line.zone_id;
                if let Entry::Vacant(new) = chains.entry(zone.clone()) {
                    new.insert(Chain::from(zone, &head, key));
                }
                continue;
            }
        };
        let chain = chains
            .entry(line.zone_id.clone())
            .or_insert_with(|| Chain::new(line.zone_id.clone(), key));
        chain.check(&StoredLink {
            seq: line.seq,
            wire: &line.event,
            content_sha256: &line.content_sha256,
            chain_hash: &line.chain_hash,
            chain_hmac: &line.chain_hmac,
        })?;
        let of_zone = Event::parse(&line.event).is_ok_and(|event| event.zone_id == line.zone_id);
        if !of_zone {
            return Err(Finding {
                zone: line.zone_id,
                seq: line.seq,
                flaw: Flaw::Columns,
            }
            .into());
        }
    }
    for (zone, head) in kept {
        let chain = chains
            .entry(zone.clone())
            .or_insert_with(|| Chain::new(zone.clone(), key));
        chain.ends_at(head)?;
    }
    let mut heads: Vec<_> = chains
        .into_values()
        .map(|chain| (chain.zone, chain.verifier.head().clone()))
        .collect();
    heads.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(heads)
}

fn beginning(line: &Floor, key: Option<&HmacKey>) -> Result<Head, Finding> {
    let floor = AuditFloor {
        zone: line.zone_id.clone(),
        chain_seq: line.floor_seq,
        chain_hash: line.floor_chain_hash.clone(),
        code: line.floor_code.clone(),
        dropped_at: Timestamp::from_unix_micros(0),
    };
    floor::head(&floor, key)
}

fn next_line(export: &mut impl BufRead, at: &mut u64) -> Result<Option<Line>, VerifyError> {
    let mut bytes = Vec::new();
    let length = export
        .by_ref()
        .take(MAX_LINE)
        .read_until(b'\n', &mut bytes)?;
    if length == 0 {
        return Ok(None);
    }
    *at += 1;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| VerifyError::Line {
            line: *at,
            why: format!("no line of an export, at column {}", error.column()),
        })
}
