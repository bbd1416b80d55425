//! What the next object holds.
//!
//! An hour ends, in each chain, before its first event that was ingested later. What commits late
//! with an earlier time lies behind that place and so belongs to a later object: nothing is missed,
//! and no object that was written changes (spec: audit-and-streams, better 8).

use std::collections::HashMap;
use std::time::Duration;

use caracal_model::{Timestamp, ZoneId};
use caracal_store::audit_events::AuditHead;
use caracal_store::audit_exports::{Export, ExportRange};
use caracal_store::{Store, StoreError};

/// An hour, in microseconds.
const HOUR: i64 = 3_600_000_000;
/// How long after its end an hour is exported: what was ingested in its last moments has committed
/// by then and so lies in its object.
const SETTLE: Duration = Duration::from_secs(60);
/// Most events of one object, which is held in memory while it is uploaded.
pub(crate) const MOST_EVENTS: u64 = 500_000;
/// The hash of the chain before its first event.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Start of the hour of a time.
pub(crate) fn hour_of(at: Timestamp) -> Timestamp {
    let micros = at.unix_micros();
    Timestamp::from_unix_micros(micros - micros.rem_euclid(HOUR))
}

fn hours_later(hour: Timestamp, hours: i64) -> Timestamp {
    Timestamp::from_unix_micros(
        hour.unix_micros()
            .saturating_add(hours.saturating_mul(HOUR)),
    )
}

/// The last hour that is complete.
pub(crate) fn last_complete(now: Timestamp) -> Timestamp {
    hours_later(hour_of(now.minus(SETTLE)), -1)
}

/// How many complete hours follow `done`.
pub(crate) fn hours_between(done: Timestamp, target: Timestamp) -> i64 {
    ((target.unix_micros() - done.unix_micros()) / HOUR).max(0)
}

/// Key of an object: `audit/2026/05/21/2026-05-21T12.parquet`; further ones of an hour are
/// numbered.
fn key(hour: Timestamp, part: u32) -> String {
    let iso = hour.iso_seconds();
    let (date, time) = iso.split_once('T').unwrap_or((&iso, ""));
    let clock = time.get(..2).unwrap_or("00");
    let path = date.replace('-', "/");
    match part {
        1 => format!("audit/{path}/{date}T{clock}.parquet"),
        more => format!("audit/{path}/{date}T{clock}-{more:04}.parquet"),
    }
}

/// Key of the manifest beside an object.
pub(crate) fn manifest_key(object: &str) -> String {
    let stem = object.strip_suffix(".parquet").unwrap_or(object);
    format!("{stem}.manifest.json")
}

/// Finds what is to be exported next.
pub(crate) struct Planner<'s> {
    pub store: &'s Store,
    /// Where to begin when nothing was exported yet.
    pub first: Option<Timestamp>,
    pub most_events: u64,
}

/// A plan that nobody has made yet.
struct Draft {
    export: Export,
    ranges: Vec<ExportRange>,
    starts: Vec<AuditHead>,
}

impl Planner<'_> {
    /// The object to write next, planned; `None` when everything up to `target` is exported.
    pub async fn next(
        &self,
        target: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Export>, StoreError> {
        loop {
            // INVARIANT (one plan): the last object is read before the positions, so whoever is
            // overtaken in between plans a name that is taken.
            let last = self.store.last_audit_export().await?;
            if let Some(last) = &last
                && last.exported_at.is_none()
            {
                return Ok(Some(last.clone()));
            }
            let Some(draft) = self.draft(last, target, now).await? else {
                return Ok(None);
            };
            let Draft {
                export,
                ranges,
                starts,
            } = draft;
            self.store
                .plan_audit_export(&export, &ranges, &starts)
                .await?;
        }
    }

    async fn draft(
        &self,
        last: Option<Export>,
        target: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Draft>, StoreError> {
        let (hour, part) = match &last {
            None => (self.first.map_or(target, hour_of).min(target), 1),
            Some(last) if last.ends_hour => (hours_later(last.hour, 1), 1),
            Some(last) => (last.hour, last.part.saturating_add(1)),
        };
        if hour > target {
            return Ok(None);
        }
        let heads = self.store.all_audit_heads().await?;
        let starts = match last {
            None => self.starts(&heads, hour).await?,
            Some(_) => Vec::new(),
        };
        let positions = match starts.as_slice() {
            [] => self.store.audit_export_positions().await?,
            starts => starts.to_vec(),
        };
        let (ranges, ends_hour) = self.ranges(heads, positions, hours_later(hour, 1)).await?;
        let export = Export {
            object: key(hour, part),
            hour,
            part,
            ends_hour,
            events: ranges.iter().map(ExportRange::events).sum(),
            planned_at: now,
            sha256: None,
            exported_at: None,
        };
        Ok(Some(Draft {
            export,
            ranges,
            starts,
        }))
    }

    /// Where the chains are when the first hour begins: what is older is not exported.
    async fn starts(
        &self,
        heads: &[AuditHead],
        hour: Timestamp,
    ) -> Result<Vec<AuditHead>, StoreError> {
        let mut starts = Vec::with_capacity(heads.len());
        for head in heads {
            let from = self
                .store
                .zone(&head.zone)
                .audit()
                .ingested_from(0, hour)
                .await?;
            let last = from.map_or(head.chain_seq, |seq| seq.saturating_sub(1));
            starts.push(self.place(head, last).await?);
        }
        Ok(starts)
    }

    /// The stretches up to `end`, and whether they are all of the hour.
    async fn ranges(
        &self,
        heads: Vec<AuditHead>,
        positions: Vec<AuditHead>,
        end: Timestamp,
    ) -> Result<(Vec<ExportRange>, bool), StoreError> {
        let mut positions: HashMap<ZoneId, AuditHead> = positions
            .into_iter()
            .map(|position| (position.zone.clone(), position))
            .collect();
        let mut room = self.most_events;
        let mut ranges = Vec::new();
        for head in heads {
            let after = positions
                .remove(&head.zone)
                .unwrap_or_else(|| genesis(&head.zone));
            if head.chain_seq <= after.chain_seq {
                continue;
            }
            let audit = self.store.zone(&head.zone).audit();
            let later = audit.ingested_from(after.chain_seq, end).await?;
            let last = later.map_or(head.chain_seq, |seq| seq.saturating_sub(1));
            if last <= after.chain_seq {
                continue;
            }
            if room == 0 {
                return Ok((ranges, false));
            }
            let to = last.min(after.chain_seq.saturating_add(room));
            let range = ExportRange {
                to: self.place(&head, to).await?,
                after,
            };
            room = room.saturating_sub(range.events());
            ranges.push(range);
            if to < last {
                return Ok((ranges, false));
            }
        }
        Ok((ranges, true))
    }

    /// The place `seq` of the chain of `head`, with its hash; without one where the event is no
    /// longer kept, which the manifest then tells.
    async fn place(&self, head: &AuditHead, seq: u64) -> Result<AuditHead, StoreError> {
        if seq == head.chain_seq {
            return Ok(head.clone());
        }
        let Some(before) = seq.checked_sub(1) else {
            return Ok(genesis(&head.zone));
        };
        let events = self.store.zone(&head.zone).audit().chain(before, 1).await?;
        let found = events.into_iter().find(|event| event.chain_seq == seq);
        Ok(AuditHead {
            zone: head.zone.clone(),
            chain_seq: seq,
            chain_hash: found.map_or_else(String::new, |event| event.chain_hash),
        })
    }
}

fn genesis(zone: &ZoneId) -> AuditHead {
    AuditHead {
        zone: zone.clone(),
        chain_seq: 0,
        chain_hash: GENESIS.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse_utc(text).unwrap()
    }

    #[test]
    fn an_hour_is_complete_a_minute_after_its_end() {
        for (now, hour) in [
            ("2026-05-21T12:00:59.999Z", "2026-05-21T10:00:00Z"),
            ("2026-05-21T12:01:00Z", "2026-05-21T11:00:00Z"),
            ("2026-05-21T12:59:59Z", "2026-05-21T11:00:00Z"),
            ("2026-01-01T00:30:00Z", "2025-12-31T23:00:00Z"),
        ] {
            assert_eq!(last_complete(at(now)), at(hour), "{now}");
        }
    }

    #[test]
    fn keys_are_those_of_the_published_layout() {
        let hour = at("2026-05-21T07:00:00Z");
        assert_eq!(key(hour, 1), "audit/2026/05/21/2026-05-21T07.parquet");
        assert_eq!(key(hour, 2), "audit/2026/05/21/2026-05-21T07-0002.parquet");
        assert_eq!(
            manifest_key(&key(hour, 1)),
            "audit/2026/05/21/2026-05-21T07.manifest.json"
        );
    }

    #[test]
    fn the_backlog_counts_complete_hours() {
        let done = at("2026-05-21T07:00:00Z");
        assert_eq!(hours_between(done, at("2026-05-21T10:00:00Z")), 3);
        assert_eq!(hours_between(done, done), 0);
        assert_eq!(hours_between(done, at("2026-05-21T06:00:00Z")), 0);
    }
}
