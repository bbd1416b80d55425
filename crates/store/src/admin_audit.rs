//! The rows of the admin audit: records in the exact text that was hashed, their chains, and what
//! waits to join them (spec: audit-and-streams §12). What a record says belongs to the crate
//! `ledger`; here are only rows.
//!
//! An *intent* is a record that was written in the transaction of the change that it tells of
//! ([`crate::rider`]). Appending to the chains takes it away again. As with the ledger, heads move
//! only from where the caller saw them.

use caracal_model::{Timestamp, ZoneId};

use crate::audit_events::Appended;
use crate::error::StoreError;
use crate::param::Param;
use crate::row::Row;
use crate::zones::Slice;
use crate::{Store, params, statements};

macro_rules! columns {
    () => {
        "zone_id, chain_seq, id, actor_id, method, entity_type, entity_id, occurred_at, record, \
         content_sha256, chain_hash, chain_hmac"
    };
}

statements! { pub(crate) mod sql {
    /// Tried again with the same id, so that a commit whose answer got lost is no obstacle.
    INTEND = pg: "INSERT INTO admin_audit_intents (id, zone_id, record, mac, created_at, refused)
                  SELECT *, FALSE FROM unnest($1::text[], $2::text[], $3::text[], $4::text[],
                      $5::bigint[])
                  ON CONFLICT (id) DO NOTHING",
             lite: "INSERT INTO admin_audit_intents (id, zone_id, record, mac, created_at, refused)
                    VALUES ($1, $2, $3, $4, $5, FALSE) ON CONFLICT (id) DO NOTHING";
    WAITING = "SELECT COUNT(*) AS waiting FROM admin_audit_intents
               WHERE zone_id = $1 AND NOT refused";
    COUNT = "SELECT COUNT(CASE WHEN NOT refused THEN 1 END) AS waiting,
                 COUNT(CASE WHEN refused THEN 1 END) AS refused
             FROM admin_audit_intents";
    LEFT = "SELECT id, zone_id, record, mac FROM admin_audit_intents
            WHERE created_at <= $1 AND NOT refused ORDER BY created_at, id LIMIT $2";
    REFUSE = pg: "UPDATE admin_audit_intents SET refused = TRUE WHERE id = ANY($1)",
             lite: "UPDATE admin_audit_intents SET refused = TRUE
                    WHERE id IN (SELECT value FROM json_each($1))";
    SETTLE = pg: "DELETE FROM admin_audit_intents WHERE id = ANY($1)",
             lite: "DELETE FROM admin_audit_intents
                    WHERE id IN (SELECT value FROM json_each($1))";
    KNOWN = pg: "SELECT id FROM admin_audit_events WHERE id = ANY($1)",
            lite: "SELECT id FROM admin_audit_events
                   WHERE id IN (SELECT value FROM json_each($1))";
    HEADS = pg: "SELECT zone_id, chain_seq, chain_hash FROM admin_audit_heads
                 WHERE zone_id = ANY($1)",
            lite: "SELECT zone_id, chain_seq, chain_hash FROM admin_audit_heads
                   WHERE zone_id IN (SELECT value FROM json_each($1))";
    CHAINS = "SELECT zone_id FROM admin_audit_heads
              UNION SELECT DISTINCT zone_id FROM admin_audit_events ORDER BY zone_id";
    SEED = pg: "INSERT INTO admin_audit_heads (zone_id, chain_seq, chain_hash)
                SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])
                ON CONFLICT (zone_id) DO NOTHING",
           lite: "INSERT INTO admin_audit_heads (zone_id, chain_seq, chain_hash)
                  VALUES ($1, $2, $3) ON CONFLICT (zone_id) DO NOTHING";
    /// Locks in the order of zones, so that two batches cannot wait for each other.
    MOVE = pg: "WITH locked AS MATERIALIZED (
                    SELECT zone_id FROM admin_audit_heads WHERE zone_id = ANY($1::text[])
                    ORDER BY zone_id FOR UPDATE)
                UPDATE admin_audit_heads head
                SET chain_seq = move.to_seq, chain_hash = move.to_hash
                FROM locked, unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::text[])
                    AS move (zone_id, from_seq, from_hash, to_seq, to_hash)
                WHERE locked.zone_id = move.zone_id AND head.zone_id = move.zone_id
                  AND head.chain_seq = move.from_seq AND head.chain_hash = move.from_hash",
           lite: "UPDATE admin_audit_heads SET chain_seq = $4, chain_hash = $5
                  WHERE zone_id = $1 AND chain_seq = $2 AND chain_hash = $3";
    INSERT = pg: concat!("INSERT INTO admin_audit_events (", columns!(), ")
                 SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[],
                     $6::text[], $7::text[], $8::bigint[], $9::text[], $10::text[], $11::text[],
                     $12::text[])"),
             lite: concat!("INSERT INTO admin_audit_events (", columns!(), ")
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)");
    PAGE = concat!("SELECT ", columns!(), " FROM admin_audit_events
        WHERE zone_id = $1 AND occurred_at >= $2 AND occurred_at < $3
          AND (occurred_at, id) < ($4, $5)
          AND (CAST($6 AS TEXT) IS NULL OR actor_id = $6)
          AND (CAST($7 AS TEXT) IS NULL OR entity_type = $7)
          AND (CAST($8 AS TEXT) IS NULL OR entity_id = $8)
          AND (CAST($9 AS TEXT) IS NULL OR method = $9)
        ORDER BY occurred_at DESC, id DESC LIMIT $10");
    FIND = concat!("SELECT ", columns!(), " FROM admin_audit_events
        WHERE zone_id = $1 AND id = $2");
    CHAIN = concat!("SELECT ", columns!(), " FROM admin_audit_events
        WHERE zone_id = $1 AND chain_seq > $2 ORDER BY chain_seq LIMIT $3");
} }

/// The index that keeps records apart.
pub const ID_INDEX: &str = "admin_audit_events_id";

/// The zone of what has none.
pub fn deployment() -> ZoneId {
    ZoneId::trusted("")
}

/// A record on its way to its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Id of the record.
    pub id: String,
    /// Its zone, as far as it is known yet.
    pub zone: ZoneId,
    /// Its text.
    pub record: String,
    /// Shows that a service of ours wrote it; empty without a key.
    pub mac: String,
}

impl Intent {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.string("id")?,
            zone: ZoneId::trusted(row.text("zone_id")?),
            record: row.string("record")?,
            mac: row.string("mac")?,
        })
    }

    /// What [`sql::INTEND`] takes.
    pub(crate) fn params(&self, now: Timestamp) -> Vec<Param<'static>> {
        vec![
            Param::Owned(self.id.clone()),
            Param::Owned(self.zone.to_string()),
            Param::Owned(self.record.clone()),
            Param::Owned(self.mac.clone()),
            Param::from(now),
        ]
    }
}

/// A record in its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminEvent {
    /// Its zone; [`deployment`] for none.
    pub zone: ZoneId,
    /// Its place in the chain, from 1.
    pub chain_seq: u64,
    /// Its id.
    pub id: String,
    /// Who.
    pub actor_id: Option<String>,
    /// HTTP method.
    pub method: String,
    /// Collection.
    pub entity_type: Option<String>,
    /// Which of it.
    pub entity_id: Option<String>,
    /// When, to the millisecond.
    pub occurred_at: Timestamp,
    /// The exact text.
    pub record: String,
    /// Hash of that text, hex.
    pub content_sha256: String,
    /// Hash of the chain up to here, hex.
    pub chain_hash: String,
    /// Authorship of that hash, hex; empty without a key.
    pub chain_hmac: String,
}

impl AdminEvent {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            zone: ZoneId::trusted(row.text("zone_id")?),
            chain_seq: row.count("chain_seq")?,
            id: row.string("id")?,
            actor_id: row.opt_string("actor_id")?,
            method: row.string("method")?,
            entity_type: row.opt_string("entity_type")?,
            entity_id: row.opt_string("entity_id")?,
            occurred_at: row.time("occurred_at")?,
            record: row.string("record")?,
            content_sha256: row.string("content_sha256")?,
            chain_hash: row.string("chain_hash")?,
            chain_hmac: row.string("chain_hmac")?,
        })
    }

    fn params(&self) -> Vec<Param<'_>> {
        vec![
            Param::from(&self.zone),
            Param::Int(i64::try_from(self.chain_seq).unwrap_or(i64::MAX)),
            Param::from(&self.id),
            Param::from(&self.actor_id),
            Param::from(&self.method),
            Param::from(&self.entity_type),
            Param::from(&self.entity_id),
            Param::from(self.occurred_at),
            Param::from(&self.record),
            Param::from(&self.content_sha256),
            Param::from(&self.chain_hash),
            Param::from(&self.chain_hmac),
        ]
    }
}

/// How far the chain of a zone goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminHead {
    /// The zone; [`deployment`] for none.
    pub zone: ZoneId,
    /// Place of the last record.
    pub chain_seq: u64,
    /// Its chain hash, hex.
    pub chain_hash: String,
}

impl AdminHead {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            zone: ZoneId::trusted(row.text("zone_id")?),
            chain_seq: row.count("chain_seq")?,
            chain_hash: row.string("chain_hash")?,
        })
    }

    fn place(&self) -> Param<'static> {
        Param::Int(i64::try_from(self.chain_seq).unwrap_or(i64::MAX))
    }
}

/// From where to where a batch moves the head of a zone.
#[derive(Clone, Debug)]
pub struct AdminMove {
    /// As the caller saw it; seq 0 for a zone without records.
    pub from: AdminHead,
    /// After the batch.
    pub to: AdminHead,
}

impl AdminMove {
    /// The head of a zone that has none yet.
    fn seed(&self) -> Option<Vec<Param<'_>>> {
        let from = &self.from;
        (from.chain_seq == 0).then(|| params![&from.zone, 0, &from.chain_hash].to_vec())
    }

    fn params(&self) -> Vec<Param<'_>> {
        vec![
            Param::from(&self.from.zone),
            self.from.place(),
            Param::from(&self.from.chain_hash),
            self.to.place(),
            Param::from(&self.to.chain_hash),
        ]
    }
}

/// What a page holds; an absent member does not filter.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdminFilter<'f> {
    /// `occurred_at` not before.
    pub since: Option<Timestamp>,
    /// `occurred_at` before.
    pub until: Option<Timestamp>,
    /// Exactly this actor.
    pub actor_id: Option<&'f str>,
    /// Exactly this collection.
    pub entity_type: Option<&'f str>,
    /// Exactly this member of a collection.
    pub entity_id: Option<&'f str>,
    /// Exactly this method.
    pub method: Option<&'f str>,
}

/// Intents: those that wait, and those that nobody of ours wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntentCounts {
    /// Not in a chain yet.
    pub waiting: u64,
    /// Never to be.
    pub refused: u64,
}

/// The admin audit.
#[derive(Clone, Copy, Debug)]
pub struct AdminAudit<'s>(&'s Store);

impl Store {
    /// The admin audit.
    pub fn admin_audit(&self) -> AdminAudit<'_> {
        AdminAudit(self)
    }
}

impl AdminAudit<'_> {
    /// Appends these records and takes their intents away, if the heads are where the moves start.
    ///
    /// # Errors
    /// `Conflict` on [`ID_INDEX`] when one of the records is in its chain already.
    pub async fn append(
        &self,
        moves: &[AdminMove],
        events: &[AdminEvent],
    ) -> Result<Appended, StoreError> {
        let mut tx = self.0.begin("appending to the admin audit").await?;
        let new: Vec<_> = moves.iter().filter_map(AdminMove::seed).collect();
        tx.execute_rows(&sql::SEED, &new).await?;
        let steps: Vec<_> = moves.iter().map(AdminMove::params).collect();
        let moved = tx.execute_rows(&sql::MOVE, &steps).await?;
        if usize::try_from(moved) != Ok(moves.len()) {
            tx.rollback().await;
            return Ok(Appended::Overtaken);
        }
        let ids = events.iter().map(|event| event.id.as_str()).collect();
        tx.execute(&sql::SETTLE, &[Param::Texts(ids)]).await?;
        let rows: Vec<_> = events.iter().map(AdminEvent::params).collect();
        tx.commit_with_rows(&sql::INSERT, &rows).await?;
        Ok(Appended::Done)
    }

    /// Which of these records are in a chain.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn known(&self, ids: &[&str]) -> Result<Vec<String>, StoreError> {
        let rows = self
            .0
            .query(&sql::KNOWN, &[Param::Texts(ids.to_vec())])
            .await?;
        rows.iter().map(|row| row.string("id")).collect()
    }

    /// Intents from `until` or before, oldest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn left(&self, until: Timestamp, limit: u32) -> Result<Vec<Intent>, StoreError> {
        let rows = self.0.query(&sql::LEFT, &params![until, limit]).await?;
        rows.iter().map(Intent::read).collect()
    }

    /// Takes intents away whose records are in their chains.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn settle(&self, ids: &[&str]) -> Result<(), StoreError> {
        self.each(&sql::SETTLE, ids).await
    }

    /// Sets intents aside that nobody of ours wrote.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn refuse(&self, ids: &[&str]) -> Result<(), StoreError> {
        self.each(&sql::REFUSE, ids).await
    }

    async fn each(&self, sql: &crate::Sql, ids: &[&str]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut tx = self.0.begin("settling the admin audit").await?;
        tx.execute(sql, &[Param::Texts(ids.to_vec())]).await?;
        tx.commit().await
    }

    /// How many records of this zone are on their way to its chain.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn waiting(&self, zone: &ZoneId) -> Result<u64, StoreError> {
        let row = self.0.query_opt(&sql::WAITING, &params![zone]).await?;
        row.map_or(Ok(0), |row| row.count("waiting"))
    }

    /// How many records are on their way, and how many never arrive.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn counts(&self) -> Result<IntentCounts, StoreError> {
        let row = self.0.query_opt(&sql::COUNT, &[]).await?;
        row.map_or(Ok(IntentCounts::default()), |row| {
            Ok(IntentCounts {
                waiting: row.count("waiting")?,
                refused: row.count("refused")?,
            })
        })
    }

    /// How far the chains of these zones go; a zone without records is left out.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn heads(&self, zones: &[&str]) -> Result<Vec<AdminHead>, StoreError> {
        let rows = self
            .0
            .query(&sql::HEADS, &[Param::Texts(zones.to_vec())])
            .await?;
        rows.iter().map(AdminHead::read).collect()
    }

    /// Every zone with a chain, [`deployment`] first when it has one.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn zones(&self) -> Result<Vec<ZoneId>, StoreError> {
        let rows = self.0.query(&sql::CHAINS, &[]).await?;
        rows.iter()
            .map(|row| row.text("zone_id").map(ZoneId::trusted))
            .collect()
    }

    /// The chain of a zone after a place, in its order.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn chain(
        &self,
        zone: &ZoneId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<AdminEvent>, StoreError> {
        let after = i64::try_from(after_seq).unwrap_or(i64::MAX);
        let rows = self
            .0
            .zone(zone)
            .query(&sql::CHAIN, &params![zone, after, limit])
            .await?;
        rows.iter().map(AdminEvent::read).collect()
    }

    /// The record of this id in the chain of a zone.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn find(&self, zone: &ZoneId, id: &str) -> Result<Option<AdminEvent>, StoreError> {
        let params = params![zone, id];
        let row = self.0.zone(zone).query_opt(&sql::FIND, &params).await?;
        row.as_ref().map(AdminEvent::read).transpose()
    }

    /// A page of the records of a zone, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(
        &self,
        zone: &ZoneId,
        filter: &AdminFilter<'_>,
        slice: Slice<'_>,
    ) -> Result<Vec<AdminEvent>, StoreError> {
        let from = filter
            .since
            .unwrap_or(Timestamp::from_unix_micros(i64::MIN));
        let until = filter
            .until
            .unwrap_or(Timestamp::from_unix_micros(i64::MAX));
        let params = params![
            zone,
            from,
            until,
            slice.before,
            slice.before_id,
            filter.actor_id,
            filter.entity_type,
            filter.entity_id,
            filter.method,
            slice.limit,
        ];
        let rows = self.0.zone(zone).query(&sql::PAGE, &params).await?;
        rows.iter().map(AdminEvent::read).collect()
    }
}
