//! How far the ledger is exported, by place in the chain of each zone.
//!
//! **Forces.** A scan by time misses what commits after the scan; an object that was written must
//! never be written otherwise; a crash may come between writing an object and recording that.
//! **Choice.** A chain has no gap at any commit, so a position in it says exactly what is still to
//! come. An object is planned first: its name, its stretches of chains and the new positions commit
//! together. INVARIANT (one plan): there is at most one object that is planned and not exported,
//! because the name of the next one follows from the last one and is unique.

use std::collections::BTreeMap;
use std::num::TryFromIntError;

use caracal_model::{Timestamp, ZoneId};

use crate::audit_events::AuditHead;
use crate::error::StoreError;
use crate::param::Param;
use crate::row::Row;
use crate::store::Store;
use crate::{params, statements};

statements! { pub(crate) mod sql {
    LAST = "SELECT object, hour, part, ends_hour, events, planned_at, sha256, exported_at
            FROM audit_exports ORDER BY hour DESC, part DESC LIMIT 1";
    RANGES = "SELECT zone_id, after_seq, after_hash, to_seq, to_hash FROM audit_export_ranges
              WHERE object = $1 ORDER BY zone_id";
    POSITIONS = "SELECT zone_id, chain_seq, chain_hash FROM audit_export_positions";
    /// The stretches that are kept are those of the object that is not there yet.
    EXPORTED = "SELECT position.zone_id AS zone_id,
                    COALESCE(pending.after_seq, position.chain_seq) AS chain_seq
                FROM audit_export_positions position
                LEFT JOIN audit_export_ranges pending ON pending.zone_id = position.zone_id";
    PLAN = "INSERT INTO audit_exports (object, hour, part, ends_hour, events, planned_at,
                exported_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7)";
    RANGE = pg: "INSERT INTO audit_export_ranges (object, zone_id, after_seq, after_hash, to_seq,
                     to_hash)
                 SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[],
                     $5::bigint[], $6::text[])",
            lite: "INSERT INTO audit_export_ranges (object, zone_id, after_seq, after_hash, to_seq,
                       to_hash)
                   VALUES ($1, $2, $3, $4, $5, $6)";
    POSITION = pg: "INSERT INTO audit_export_positions (zone_id, chain_seq, chain_hash)
                    SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])
                    ON CONFLICT (zone_id) DO UPDATE
                    SET chain_seq = excluded.chain_seq, chain_hash = excluded.chain_hash",
               lite: "INSERT INTO audit_export_positions (zone_id, chain_seq, chain_hash)
                      VALUES ($1, $2, $3)
                      ON CONFLICT (zone_id) DO UPDATE
                      SET chain_seq = excluded.chain_seq, chain_hash = excluded.chain_hash";
    DONE = "UPDATE audit_exports SET sha256 = $2, exported_at = $3
            WHERE object = $1 AND exported_at IS NULL";
    FORGET_RANGES = "DELETE FROM audit_export_ranges WHERE object = $1";
} }

/// A stretch of the chain of a zone: the events after `after`, up to `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRange {
    /// The end of what was exported before.
    pub after: AuditHead,
    /// Its last event.
    pub to: AuditHead,
}

impl ExportRange {
    /// How many events it holds.
    pub fn events(&self) -> u64 {
        self.to.chain_seq.saturating_sub(self.after.chain_seq)
    }
}

/// An object, planned or exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its key.
    pub object: String,
    /// Start of the hour that it is of.
    pub hour: Timestamp,
    /// Its number among those of the hour, from 1.
    pub part: u32,
    /// Whether nothing more of the hour follows.
    pub ends_hour: bool,
    /// How many events it holds; without any, there is no object.
    pub events: u64,
    /// When it was planned.
    pub planned_at: Timestamp,
    /// Digest of its bytes, once it is there.
    pub sha256: Option<String>,
    /// When it was there.
    pub exported_at: Option<Timestamp>,
}

impl Export {
    fn read(row: &Row) -> Result<Self, StoreError> {
        let part = row.count("part")?;
        Ok(Self {
            object: row.string("object")?,
            hour: row.time("hour")?,
            part: part
                .try_into()
                .map_err(|_: TryFromIntError| StoreError::Corrupt {
                    what: format!("part {part} of an export"),
                })?,
            ends_hour: row.bool("ends_hour")?,
            events: row.count("events")?,
            planned_at: row.time("planned_at")?,
            sha256: row.opt_string("sha256")?,
            exported_at: row.opt_time("exported_at")?,
        })
    }
}

impl Store {
    /// The newest object, exported or still to be.
    pub async fn last_audit_export(&self) -> Result<Option<Export>, StoreError> {
        let row = self.query_opt(&sql::LAST, &[]).await?;
        row.as_ref().map(Export::read).transpose()
    }

    /// What a planned object holds, by zone.
    pub async fn audit_export_ranges(&self, object: &str) -> Result<Vec<ExportRange>, StoreError> {
        let rows = self.query(&sql::RANGES, &params![object]).await?;
        rows.iter()
            .map(|row| {
                let zone = ZoneId::trusted(row.text("zone_id")?);
                Ok(ExportRange {
                    after: AuditHead {
                        zone: zone.clone(),
                        chain_seq: row.count("after_seq")?,
                        chain_hash: row.string("after_hash")?,
                    },
                    to: AuditHead {
                        zone,
                        chain_seq: row.count("to_seq")?,
                        chain_hash: row.string("to_hash")?,
                    },
                })
            })
            .collect()
    }

    /// How far each zone is planned; a zone of which nothing is, is left out.
    pub async fn audit_export_positions(&self) -> Result<Vec<AuditHead>, StoreError> {
        let rows = self.query(&sql::POSITIONS, &[]).await?;
        rows.iter()
            .map(|row| {
                Ok(AuditHead {
                    zone: ZoneId::trusted(row.text("zone_id")?),
                    chain_seq: row.count("chain_seq")?,
                    chain_hash: row.string("chain_hash")?,
                })
            })
            .collect()
    }

    /// How far each zone is exported; what is planned and not there yet does not count. What is older
    /// than the first export counts, because it will not be exported.
    pub async fn audit_exported(&self) -> Result<BTreeMap<ZoneId, u64>, StoreError> {
        let rows = self.query(&sql::EXPORTED, &[]).await?;
        rows.iter()
            .map(|row| {
                let zone = ZoneId::trusted(row.text("zone_id")?);
                Ok((zone, row.count("chain_seq")?))
            })
            .collect()
    }

    /// Plans an object: it is to hold these stretches, and the next one starts behind them. `starts`
    /// are positions of zones that are set without being exported. An object without events counts
    /// as exported at once. Answers `false` when somebody else has planned it.
    pub async fn plan_audit_export(
        &self,
        export: &Export,
        ranges: &[ExportRange],
        starts: &[AuditHead],
    ) -> Result<bool, StoreError> {
        match self.plan(export, ranges, starts).await {
            Err(StoreError::Conflict { .. }) => Ok(false),
            done => done.map(|()| true),
        }
    }

    async fn plan(
        &self,
        export: &Export,
        ranges: &[ExportRange],
        starts: &[AuditHead],
    ) -> Result<(), StoreError> {
        let mut tx = self.begin("planning an export").await?;
        let exported_at = ranges.is_empty().then(|| export.planned_at.unix_micros());
        let params = [
            Param::from(&export.object),
            Param::from(export.hour),
            Param::from(export.part),
            Param::Bool(export.ends_hour),
            count(export.events),
            Param::from(export.planned_at),
            Param::OptInt(exported_at),
        ];
        tx.execute(&sql::PLAN, &params).await?;
        let rows: Vec<_> = ranges
            .iter()
            .map(|range| {
                vec![
                    Param::from(&export.object),
                    Param::from(&range.to.zone),
                    count(range.after.chain_seq),
                    Param::from(&range.after.chain_hash),
                    count(range.to.chain_seq),
                    Param::from(&range.to.chain_hash),
                ]
            })
            .collect();
        tx.execute_rows(&sql::RANGE, &rows).await?;
        // A zone may have both: then the stretch says where it ends.
        let ends = ranges.iter().map(|range| &range.to);
        let positions: BTreeMap<&ZoneId, &AuditHead> = starts
            .iter()
            .chain(ends)
            .map(|head| (&head.zone, head))
            .collect();
        let positions: Vec<_> = positions
            .into_values()
            .map(|head| {
                vec![
                    Param::from(&head.zone),
                    count(head.chain_seq),
                    Param::from(&head.chain_hash),
                ]
            })
            .collect();
        tx.execute_rows(&sql::POSITION, &positions).await?;
        tx.commit().await
    }

    /// Records that a planned object is there, with bytes of this digest.
    pub async fn audit_export_done(&self, object: &str, sha256: &str) -> Result<(), StoreError> {
        let now = self.clock().now();
        let mut tx = self.begin("recording an export").await?;
        tx.execute(&sql::DONE, &params![object, sha256, now])
            .await?;
        tx.execute(&sql::FORGET_RANGES, &params![object]).await?;
        tx.commit().await
    }
}

fn count<'p>(count: u64) -> Param<'p> {
    Param::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::on_each_engine;

    fn head(zone: &str, seq: u64) -> AuditHead {
        AuditHead {
            zone: ZoneId::trusted(zone),
            chain_seq: seq,
            chain_hash: format!("{seq:064x}"),
        }
    }

    fn export(part: u32, events: u64) -> Export {
        Export {
            object: format!("hour-{part}"),
            hour: Timestamp::from_unix_seconds(3_600),
            part,
            ends_hour: true,
            events,
            planned_at: Timestamp::from_unix_seconds(7_300),
            sha256: None,
            exported_at: None,
        }
    }

    on_each_engine! {
        async fn an_object_is_planned_once_and_its_positions_move_with_it(store: Store) {
            let range = ExportRange { after: head("z", 2), to: head("z", 5) };
            let plan = export(1, range.events());
            let ranges = std::slice::from_ref(&range);
            let starts = [head("y", 7), head("z", 2)];
            assert!(store.plan_audit_export(&plan, ranges, &starts).await.unwrap());
            let other = ExportRange { after: head("z", 2), to: head("z", 9) };
            assert!(!store.plan_audit_export(&plan, &[other], &[]).await.unwrap());

            assert_eq!(store.last_audit_export().await.unwrap().unwrap(), plan);
            assert_eq!(store.audit_export_ranges("hour-1").await.unwrap(), [range]);
            let mut positions = store.audit_export_positions().await.unwrap();
            positions.sort_by(|a, b| a.zone.cmp(&b.zone));
            assert_eq!(positions, [head("y", 7), head("z", 5)]);

            let exported = |y, z| BTreeMap::from([(ZoneId::trusted("y"), y), (ZoneId::trusted("z"), z)]);
            assert_eq!(store.audit_exported().await.unwrap(), exported(7, 2));
            store.audit_export_done("hour-1", "ab").await.unwrap();
            assert_eq!(store.audit_exported().await.unwrap(), exported(7, 5));
            let done = store.last_audit_export().await.unwrap().unwrap();
            assert_eq!(done.sha256.as_deref(), Some("ab"));
            assert!(done.exported_at.is_some());
            assert!(store.audit_export_ranges("hour-1").await.unwrap().is_empty());
        }

        async fn an_hour_without_events_is_exported_when_it_is_planned(store: Store) {
            assert!(store.plan_audit_export(&export(1, 0), &[], &[]).await.unwrap());
            let last = store.last_audit_export().await.unwrap().unwrap();
            assert_eq!(last.exported_at, Some(last.planned_at));
        }
    }
}
