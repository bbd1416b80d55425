//! The beginning of the ledger: months that are made ahead and dropped whole, and where each chain
//! begins since (spec: audit-and-streams §8).
//!
//! **Forces.** Deleting old events one by one costs as much as appending them did. What is left must
//! still verify, and verifying starts at a link that nobody can invent.
//!
//! **Choice.** Postgres keeps a partition for each month of ingestion and drops it in one statement.
//! SQLite keeps rows in the order of ingestion and deletes bounded batches from that end. Time of
//! ingestion never goes back along a chain, so either way a beginning goes. With it, in the same
//! transaction, a floor is written for each zone: the last link that went, with a code of the holder
//! of the key.
//!
//! **Consequence.** There is no partition for whatever does not fit, so nothing can be trapped in
//! it: appending makes the month that it needs.

use std::collections::BTreeMap;

use caracal_crypto::digest::{hex_decode, hex_encode};
use caracal_model::{Timestamp, ZoneId};

use crate::audit_events::AuditEvents;
use crate::error::StoreError;
use crate::param::Param;
use crate::row::Row;
use crate::store::{Engine, Store};
use crate::{params, statements};

statements! { pub(crate) mod sql {
    MONTH_ADD = pg: "SELECT audit_month_add($1) AS name",
                lite: "SELECT CAST($1 AS TEXT) AS name";
    MONTH_DROP = pg: "SELECT audit_month_drop($1) AS dropped",
                 lite: "SELECT CAST($1 AS TEXT) AS dropped";
    MONTHS = pg: "SELECT part.relname::text AS name FROM pg_inherits
                  JOIN pg_class part ON part.oid = inhrelid
                  WHERE inhparent = 'audit_events'::regclass ORDER BY name",
             lite: "SELECT strftime('audit_events_y%Ym%m', MIN(ingested_at) / 1000000, 'unixepoch')
                        AS name
                    FROM audit_events HAVING COUNT(*) > 0";
    /// The last link of each zone in `[$1, $2)`, by the index of its chain.
    ENDS = pg: "SELECT zone.zone_id, last.chain_seq, last.chain_hash FROM audit_zones zone
                CROSS JOIN LATERAL (
                    SELECT chain_seq, chain_hash FROM audit_events
                    WHERE zone_no = zone.zone_no AND ingested_at >= $1 AND ingested_at < $2
                    ORDER BY chain_seq DESC LIMIT 1) last",
           lite: "SELECT zone_id, chain_seq, chain_hash FROM audit_events JOIN audit_zones
                      USING (zone_no)
                  WHERE ingested_at >= $1 AND ingested_at < $2";
    OLDEST = pg: "SELECT CAST(0 AS BIGINT) AS place, zone_id, chain_seq, chain_hash, ingested_at
                  FROM audit_events JOIN audit_zones USING (zone_no)
                  ORDER BY ingested_at LIMIT $1",
             lite: "SELECT place, zone_id, chain_seq, chain_hash, ingested_at
                    FROM audit_events JOIN audit_zones USING (zone_no) ORDER BY place LIMIT $1";
    DELETE = pg: "DELETE FROM audit_events WHERE ingested_at < $1",
             lite: "DELETE FROM audit_events WHERE place <= $1";
    RAISE = pg: "INSERT INTO audit_floors (zone_id, chain_seq, chain_hash, code, dropped_at)
                 SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::text[],
                     $5::bigint[])
                 ON CONFLICT (zone_id) DO UPDATE SET chain_seq = excluded.chain_seq,
                     chain_hash = excluded.chain_hash, code = excluded.code,
                     dropped_at = excluded.dropped_at
                 WHERE audit_floors.chain_seq < excluded.chain_seq",
            lite: "INSERT INTO audit_floors (zone_id, chain_seq, chain_hash, code, dropped_at)
                   VALUES ($1, $2, $3, $4, $5)
                   ON CONFLICT (zone_id) DO UPDATE SET chain_seq = excluded.chain_seq,
                       chain_hash = excluded.chain_hash, code = excluded.code,
                       dropped_at = excluded.dropped_at
                   WHERE audit_floors.chain_seq < excluded.chain_seq";
    FLOOR = "SELECT zone_id, chain_seq, chain_hash, code, dropped_at FROM audit_floors
             WHERE zone_id = $1";
} }

/// Rows that SQLite deletes in one transaction; appending waits for no more than that.
const BATCH: i64 = 2_000;

/// Where the chain of a zone begins since retention dropped what was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFloor {
    /// The zone.
    pub zone: ZoneId,
    /// Place of the last event that is gone.
    pub chain_seq: u64,
    /// Its chain hash, hex.
    pub chain_hash: String,
    /// Who says so, hex; empty without a key.
    pub code: String,
    /// When it went.
    pub dropped_at: Timestamp,
}

impl AuditFloor {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            zone: ZoneId::trusted(row.text("zone_id")?),
            chain_seq: row.count("chain_seq")?,
            chain_hash: hex_encode(row.bytes("chain_hash")?),
            code: row.string("code")?,
            dropped_at: row.time("dropped_at")?,
        })
    }

    fn params(&self) -> Result<Vec<Param<'_>>, StoreError> {
        let hash = hex_decode(&self.chain_hash).map_err(|_| StoreError::Invalid {
            doing: sql::RAISE.name,
            what: "a hash that is not hex",
        })?;
        Ok(vec![
            Param::from(&self.zone),
            Param::Int(i64::try_from(self.chain_seq).unwrap_or(i64::MAX)),
            Param::Blob(hash),
            Param::from(&self.code),
            Param::from(self.dropped_at),
        ])
    }
}

/// A beginning of the ledger that may go.
#[derive(Clone, Debug)]
pub struct AuditPrefix {
    /// The floors that it would leave, without their codes.
    pub floors: Vec<AuditFloor>,
    /// How many events it has, where that is known without counting.
    pub events: Option<u64>,
    cut: Cut,
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    Month(Timestamp),
    Place(i64),
}

/// The first moment of the month (UTC) that holds this one.
pub fn month_of(at: Timestamp) -> Timestamp {
    let text = at.iso_micros();
    let month = text.get(..7).unwrap_or_default();
    Timestamp::parse_rfc3339(&format!("{month}-01T00:00:00Z")).unwrap_or(at)
}

/// The first moment of the month after the one that holds this moment.
pub fn month_after(at: Timestamp) -> Timestamp {
    // No month is longer than 31 days, and none shorter than 28.
    month_of(month_of(at).plus(std::time::Duration::from_secs(31 * 24 * 3600)))
}

/// `audit_events_y2026m11`, as a time.
fn month_named(name: &str) -> Option<Timestamp> {
    let (year, month) = name.strip_prefix("audit_events_y")?.split_once('m')?;
    Timestamp::parse_rfc3339(&format!("{year}-{month}-01T00:00:00Z")).ok()
}

impl Store {
    /// Makes sure that the month of `from` and the `ahead` after it have a place; answers with how
    /// many were made. SQLite needs none.
    pub async fn ensure_audit_months(
        &self,
        from: Timestamp,
        ahead: u32,
    ) -> Result<u64, StoreError> {
        let mut made = 0;
        let mut month = month_of(from);
        for _ in 0..=ahead {
            made += u64::from(self.ensure_audit_month(month).await?);
            month = month_after(month);
        }
        Ok(made)
    }

    /// Whether the month of this moment had to be made.
    pub(crate) async fn ensure_audit_month(&self, at: Timestamp) -> Result<bool, StoreError> {
        if matches!(self.engine(), Engine::Lite(_)) {
            return Ok(false);
        }
        let month = month_of(at);
        if self
            .audit_months_made()
            .lock()
            .contains(&month.unix_micros())
        {
            return Ok(false);
        }
        let mut tx = self.begin("making a month of the ledger").await?;
        let row = tx.query_opt(&sql::MONTH_ADD, &params![month]).await?;
        tx.commit().await?;
        self.audit_months_made().lock().insert(month.unix_micros());
        row.map_or(Ok(false), |row| Ok(row.opt_text("name")?.is_some()))
    }

    /// The months that have a place, oldest first.
    pub async fn audit_months(&self) -> Result<Vec<Timestamp>, StoreError> {
        let rows = self.query(&sql::MONTHS, &[]).await?;
        let mut months = Vec::with_capacity(rows.len());
        for row in rows {
            months.extend(month_named(row.text("name")?));
        }
        months.sort_unstable();
        Ok(months)
    }

    /// The oldest part of the ledger, when all of it was ingested before this month began.
    pub async fn audit_prefix(&self, before: Timestamp) -> Result<Option<AuditPrefix>, StoreError> {
        let before = month_of(before);
        match self.engine() {
            Engine::Pg(_) => self.oldest_month(before).await,
            Engine::Lite(_) => self.oldest_rows(before).await,
        }
    }

    async fn oldest_month(&self, before: Timestamp) -> Result<Option<AuditPrefix>, StoreError> {
        let Some(&month) = self.audit_months().await?.first() else {
            return Ok(None);
        };
        if month >= before {
            return Ok(None);
        }
        let range = params![month, month_after(month)];
        let rows = self.query(&sql::ENDS, &range).await?;
        let floors = rows
            .iter()
            .map(|row| self.end(row))
            .collect::<Result<_, _>>()?;
        Ok(Some(AuditPrefix {
            floors,
            events: None,
            cut: Cut::Month(month),
        }))
    }

    async fn oldest_rows(&self, before: Timestamp) -> Result<Option<AuditPrefix>, StoreError> {
        let rows = self.query(&sql::OLDEST, &params![BATCH]).await?;
        let mut floors: BTreeMap<ZoneId, AuditFloor> = BTreeMap::new();
        let mut events = 0;
        let mut place = None;
        for row in &rows {
            if row.time("ingested_at")? >= before {
                break;
            }
            let end = self.end(row)?;
            // In the order of ingestion, so the last one of a zone is its end.
            floors.insert(end.zone.clone(), end);
            place = Some(row.int("place")?);
            events += 1;
        }
        Ok(place.map(|place| AuditPrefix {
            floors: floors.into_values().collect(),
            events: Some(events),
            cut: Cut::Place(place),
        }))
    }

    fn end(&self, row: &Row) -> Result<AuditFloor, StoreError> {
        Ok(AuditFloor {
            zone: ZoneId::trusted(row.text("zone_id")?),
            chain_seq: row.count("chain_seq")?,
            chain_hash: hex_encode(row.bytes("chain_hash")?),
            code: String::new(),
            dropped_at: self.clock().now(),
        })
    }

    /// Drops it, and raises the floors with it.
    pub async fn drop_audit_prefix(&self, prefix: &AuditPrefix) -> Result<(), StoreError> {
        let floors = prefix
            .floors
            .iter()
            .map(AuditFloor::params)
            .collect::<Result<Vec<_>, _>>()?;
        let mut tx = self.begin("dropping the beginning of the ledger").await?;
        tx.execute_rows(&sql::RAISE, &floors).await?;
        match prefix.cut {
            Cut::Month(month) => {
                self.audit_months_made().lock().remove(&month.unix_micros());
                tx.query(&sql::MONTH_DROP, &params![month]).await?;
            }
            Cut::Place(place) => {
                tx.execute(&sql::DELETE, &params![place]).await?;
            }
        }
        tx.commit().await
    }
}

impl AuditEvents<'_> {
    /// Where the chain begins, when retention has dropped something of it.
    pub async fn floor(&self) -> Result<Option<AuditFloor>, StoreError> {
        let row = self
            .scope()
            .query_opt(&sql::FLOOR, &params![self.scope().id()])
            .await?;
        row.as_ref().map(AuditFloor::read).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_those_of_the_calendar() {
        let at = |text: &str| Timestamp::parse_rfc3339(text).unwrap();
        for (moment, first, next) in [
            (
                "2026-11-27T20:00:00.5Z",
                "2026-11-01T00:00:00Z",
                "2026-12-01T00:00:00Z",
            ),
            (
                "2026-12-31T23:59:59.999999Z",
                "2026-12-01T00:00:00Z",
                "2027-01-01T00:00:00Z",
            ),
            (
                "2028-02-01T00:00:00Z",
                "2028-02-01T00:00:00Z",
                "2028-03-01T00:00:00Z",
            ),
            (
                "2027-01-31T12:00:00Z",
                "2027-01-01T00:00:00Z",
                "2027-02-01T00:00:00Z",
            ),
        ] {
            assert_eq!(month_of(at(moment)), at(first));
            assert_eq!(month_after(at(moment)), at(next));
        }
        assert_eq!(
            month_named("audit_events_y2026m11"),
            Some(at("2026-11-01T00:00:00Z"))
        );
        assert_eq!(month_named("audit_events_default"), None);
    }
}
