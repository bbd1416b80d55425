//! The ledger in a file, and its verification without the store or us: one JSON line an event, with
//! its exact text, so that every hash can be recomputed with standard tools.
//!
//! ```text
//! {"zone_id":…,"key":vkey,"change":note}               for people; a change of keys as it was signed
//! {"zone_id":…,"floor":{"size":…,"chain_hash":…,"tree":[…]},"code":…}   only after retention
//! {"zone_id":…,"checkpoint":note,"proof":[…]}          every checkpoint that was signed
//! {"zone_id":…,"seq":1,"event":text,…}                 the events
//! ```
//!
//! Checkpoints stand before the events that they cover, so one pass over a file of any length is
//! enough. A proof shows that the floor continues a checkpoint from below it.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};

use caracal_crypto::HmacKey;
use caracal_ledger::chain::StoredLink;
use caracal_ledger::receipt::{decode, encode};
use caracal_ledger::{Checkpoint, Event, Flaw, Floor, History, Kept, Keys, Sound, Unsound};
use caracal_model::ZoneId;
use caracal_store::Store;
use caracal_store::audit_events::AuditEvent;
use caracal_store::audit_trees::AuditCheckpoint;
use caracal_tlog::ZoneLog;
use serde::{Deserialize, Serialize};

use crate::floor;
use crate::verify::{Finding, PAGE, Trust, VerifyError, open_of};

/// Longest line of an export; an event is far shorter.
const MAX_LINE: u64 = 16 * 1024 * 1024;

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Event(EventLine),
    Checkpoint(CheckpointLine),
    Floor {
        zone_id: ZoneId,
        floor: Floor,
        code: String,
    },
    Key {
        zone_id: ZoneId,
        key: String,
        /// The checkpoint with which the log changed to this key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        change: Option<String>,
    },
}

#[derive(Serialize, Deserialize)]
struct EventLine {
    zone_id: ZoneId,
    seq: u64,
    event: String,
    content_sha256: String,
    chain_hash: String,
    chain_hmac: String,
}

#[derive(Serialize, Deserialize)]
struct CheckpointLine {
    zone_id: ZoneId,
    checkpoint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proof: Option<Vec<String>>,
}

/// Writes the ledger of a zone; answers with how many events that were.
///
/// # Errors
/// When the store or `out` fails.
pub async fn export_chain(
    store: &Store,
    zone: &ZoneId,
    out: &mut (dyn Write + Send),
) -> Result<u64, VerifyError> {
    let begin = floor::of(store, zone, None).await?;
    let floor = begin.as_ref().map_or(0, |(floor, _)| floor.size);
    if let Some((floor, code)) = begin {
        let zone_id = zone.clone();
        line(
            out,
            &Line::Floor {
                zone_id,
                floor,
                code,
            },
        )?;
    }
    // Before the events: those of a checkpoint that is read here are there already.
    export_proofs(store, zone, floor, out).await?;
    let audit = store.zone(zone).audit();
    let mut last = floor;
    let mut written = 0;
    loop {
        let page = audit.chain(last, PAGE).await?;
        let Some(end) = page.last() else {
            out.flush()?;
            return Ok(written);
        };
        last = end.chain_seq;
        for row in page {
            line(out, &Line::Event(event_line(row)))?;
            written += 1;
        }
    }
}

async fn export_proofs(
    store: &Store,
    zone: &ZoneId,
    floor: u64,
    out: &mut (dyn Write + Send),
) -> Result<(), VerifyError> {
    let log = ZoneLog::of(store, zone);
    let changes = log.rotations().await?;
    for key in caracal_tlog::vkeys(store).await? {
        let to = |change: &&AuditCheckpoint| {
            let read = Checkpoint::unverified(&change.note).ok();
            read.and_then(|read| read.rotation)
                .map(|rotation| rotation.to)
                .as_ref()
                == Some(&key)
        };
        let change = changes.iter().find(to).map(|change| change.note.clone());
        let (zone_id, key) = (zone.clone(), key.to_string());
        line(
            out,
            &Line::Key {
                zone_id,
                key,
                change,
            },
        )?;
    }
    for stored in log.checkpoints().await? {
        let proof = match stored.size < floor {
            true => Some(encode(&log.consistency(stored.size, floor).await?)),
            false => None,
        };
        let checkpoint = CheckpointLine {
            zone_id: zone.clone(),
            checkpoint: stored.note,
            proof,
        };
        line(out, &Line::Checkpoint(checkpoint))?;
    }
    Ok(())
}

fn event_line(row: AuditEvent) -> EventLine {
    EventLine {
        zone_id: row.zone,
        seq: row.chain_seq,
        event: row.event,
        content_sha256: row.content_sha256,
        chain_hash: row.chain_hash,
        chain_hmac: row.chain_hmac,
    }
}

fn line(out: &mut (dyn Write + Send), line: &Line) -> Result<(), std::io::Error> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Verifies an export of one or more zones, each from its first event or its floor; answers with
/// how far each goes. An end that was cut off shows only against what was kept elsewhere.
///
/// # Errors
/// [`VerifyError::Found`] names the first event that cannot be trusted.
pub fn verify_export(
    mut export: impl BufRead,
    key: Option<&HmacKey>,
    trust: &Trust,
) -> Result<Vec<(ZoneId, Sound)>, VerifyError> {
    let mut zones = Zones {
        key,
        trust,
        keys: trust.keys.clone(),
        histories: BTreeMap::new(),
    };
    let mut at = 0;
    while let Some(line) = next_line(&mut export, &mut at)? {
        zones.take(line, at)?;
    }
    zones.finish()
}

struct Zones<'k> {
    key: Option<&'k HmacKey>,
    trust: &'k Trust,
    keys: Keys,
    histories: BTreeMap<ZoneId, History<'k>>,
}

impl<'k> Zones<'k> {
    fn take(&mut self, line: Line, at: u64) -> Result<(), VerifyError> {
        match line {
            Line::Event(event) => Ok(self.event(&event)?),
            Line::Checkpoint(line) => self.checkpoint(&line, at),
            Line::Floor { zone_id, floor, .. } if self.histories.contains_key(&zone_id) => {
                let why = format!(
                    "a floor of {} events, not before everything else",
                    floor.size
                );
                Err(VerifyError::Line { line: at, why })
            }
            Line::Floor {
                zone_id,
                floor,
                code,
            } => {
                floor::check(&zone_id, &floor, &code, self.key)?;
                self.begin(&zone_id, Some(&floor))?;
                Ok(())
            }
            Line::Key { change, .. } => {
                if let Some(change) = change {
                    self.keys.learn(&change);
                }
                Ok(())
            }
        }
    }

    fn begin(&mut self, zone: &ZoneId, floor: Option<&Floor>) -> Result<&mut History<'k>, Finding> {
        let found = |unsound| Finding::at(zone, unsound);
        if !self.histories.contains_key(zone) {
            let mut history = History::new(floor, self.key).map_err(found)?;
            self.trust.tell(zone, &mut history)?;
            self.histories.insert(zone.clone(), history);
        }
        let unsound = Unsound {
            seq: 0,
            flaw: Flaw::Floor,
        };
        self.histories.get_mut(zone).ok_or_else(|| found(unsound))
    }

    fn event(&mut self, line: &EventLine) -> Result<(), Finding> {
        let zone = &line.zone_id;
        let found = |unsound| Finding::at(zone, unsound);
        let history = self.begin(zone, None)?;
        let link = StoredLink {
            seq: line.seq,
            wire: &line.event,
            content_sha256: &line.content_sha256,
            chain_hash: &line.chain_hash,
            chain_hmac: &line.chain_hmac,
        };
        history.check(&link).map_err(found)?;
        let of_zone = Event::parse(&line.event).is_ok_and(|event| event.zone_id == *zone);
        if of_zone {
            return Ok(());
        }
        Err(found(Unsound {
            seq: line.seq,
            flaw: Flaw::Columns,
        }))
    }

    fn checkpoint(&mut self, line: &CheckpointLine, at: u64) -> Result<(), VerifyError> {
        let zone = &line.zone_id;
        let seq = self.begin(zone, None)?.size().max(1);
        let opened = open_of(&mut self.keys, zone, &line.checkpoint).map_err(|error| Finding {
            zone: zone.clone(),
            seq,
            flaw: Flaw::Checkpoint(error),
        })?;
        let proof = line.proof.as_ref().map(|proof| decode(proof));
        let proof = proof.map(|proof| {
            let why = "a hash of the proof is no SHA-256 in base64".to_owned();
            proof.ok_or(VerifyError::Line { line: at, why })
        });
        let proof = proof.transpose()?;
        let history = self.begin(zone, None)?;
        let expected = history.expect(Kept::of(opened, proof));
        expected.map_err(|unsound| Finding::at(zone, unsound))?;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<(ZoneId, Sound)>, VerifyError> {
        // A zone that is not in the file any more must not pass for that.
        let trust = self.trust;
        let heads = trust.heads.iter().map(|(zone, _)| zone.clone());
        let checkpoints = trust.checkpoints.iter().filter_map(|kept| kept.zone());
        for zone in heads.chain(checkpoints) {
            self.begin(&zone, None)?;
        }
        let finish = |(zone, history): (ZoneId, History<'_>)| {
            let sound = history.finish();
            let sound = sound.map_err(|unsound| Finding::at(&zone, unsound))?;
            Ok((zone, sound))
        };
        self.histories.into_iter().map(finish).collect()
    }
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
    // Nearly all lines are events, and those are read without trying anything else first.
    let event = serde_json::from_slice(&bytes).map(Line::Event);
    let line = event.or_else(|_| serde_json::from_slice(&bytes));
    line.map(Some).map_err(|_| VerifyError::Line {
        line: *at,
        why: "no line of an export".to_owned(),
    })
}
