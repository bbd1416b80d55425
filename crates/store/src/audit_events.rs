//! The ledger's rows: events in the exact text that was signed and hashed, their chain, and the
//! columns that reads filter by. What a link is belongs to the crate `ledger`; here are only rows.
//!
//! Rows are never changed. A batch is appended in one transaction that moves the heads of its zones
//! from where the caller saw them: when somebody else was faster, nothing is kept and the caller
//! looks again. So the chain of a zone has one writer at a time without a lock of its own.
//!
//! **Cost.** What an event takes of the disk and of the processor decides what evidence costs, so
//! texts are packed (`pack`), ids of ours are their 16 bytes, hashes their 32, and a zone is a number
//! within these tables (`audit_zones`). None of it shows outside of this module.
//!
//! **Months.** Postgres keeps the rows in a partition for each month of ingestion
//! (`audit_retention`), and every month has its own unique indexes. INVARIANT (one id, one event):
//! across months it holds because ingestion looks every id up in all of them, and the heads let only
//! one of two ingesters through that looked at the same time.

mod pack;
pub(crate) mod read;

pub use read::{AuditEvents, AuditFilter, ChainPage};

use caracal_crypto::digest::{hex_decode, hex_encode};
use caracal_model::{Timestamp, ZoneId};

use crate::error::StoreError;
use crate::param::Param;
use crate::row::Row;
use crate::store::Store;
use crate::{params, statements};

macro_rules! columns {
    () => {
        "chain_seq, occurred_at, ingested_at, id, request_id, event_type, decision, \
         application_id, agent_session_id, authority_record_id, labels, content_sha256, \
         chain_hash, chain_hmac, event"
    };
}
pub(crate) use columns;

statements! { pub(crate) mod sql {
    /// A zone without a number fails: the number may not be NULL.
    INSERT = pg: concat!("INSERT INTO audit_events (zone_no, ", columns!(), ")
                 SELECT zone.zone_no, ", columns!(), "
                 FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[],
                     $6::bytea[], $7::text[], $8::text[], $9::bytea[], $10::bytea[], $11::bytea[],
                     $12::text[], $13::bytea[], $14::bytea[], $15::bytea[], $16::bytea[])
                     AS given (zone_id, ", columns!(), ")
                 LEFT JOIN audit_zones zone USING (zone_id)
                 ORDER BY given.id"),
             lite: concat!("INSERT INTO audit_events (zone_no, ", columns!(), ")
                 VALUES ((SELECT zone_no FROM audit_zones WHERE zone_id = $1), $2, $3, $4, $5, $6,
                         $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)");
    KNOWN = pg: "SELECT id, content_sha256 FROM audit_events WHERE id = ANY($1)",
            lite: "SELECT id, content_sha256 FROM audit_events
                   WHERE id IN (SELECT unhex(value) FROM json_each($1))";
    HEADS = pg: "SELECT zone_id, chain_seq, chain_hash, ingested_at FROM audit_heads
                 WHERE zone_id = ANY($1)",
            lite: "SELECT zone_id, chain_seq, chain_hash, ingested_at FROM audit_heads
                   WHERE zone_id IN (SELECT value FROM json_each($1))";
    ALL_HEADS = "SELECT zone_id, chain_seq, chain_hash, ingested_at FROM audit_heads
                 ORDER BY zone_id";
    ZONES = "SELECT zone_id FROM audit_zones UNION SELECT zone_id FROM audit_heads
             ORDER BY zone_id";
    SEED_ZONES = pg: "INSERT INTO audit_zones (zone_id) SELECT * FROM unnest($1::text[])
                      ON CONFLICT (zone_id) DO NOTHING",
                 lite: "INSERT INTO audit_zones (zone_id) VALUES ($1)
                        ON CONFLICT (zone_id) DO NOTHING";
    SEED = pg: "INSERT INTO audit_heads (zone_id, chain_seq, chain_hash, ingested_at)
                SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[])
                ON CONFLICT (zone_id) DO NOTHING",
           lite: "INSERT INTO audit_heads (zone_id, chain_seq, chain_hash, ingested_at)
                  VALUES ($1, $2, $3, $4)
                  ON CONFLICT (zone_id) DO NOTHING";
    /// Locks in the order of zones, so that two batches cannot wait for each other.
    MOVE = pg: "WITH locked AS MATERIALIZED (
                    SELECT zone_id FROM audit_heads WHERE zone_id = ANY($1::text[])
                    ORDER BY zone_id FOR UPDATE)
                UPDATE audit_heads head SET chain_seq = move.to_seq, chain_hash = move.to_hash,
                    ingested_at = move.at
                FROM locked, unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[],
                        $5::bytea[], $6::bigint[])
                    AS move (zone_id, from_seq, from_hash, to_seq, to_hash, at)
                WHERE locked.zone_id = move.zone_id AND head.zone_id = move.zone_id
                  AND head.chain_seq = move.from_seq AND head.chain_hash = move.from_hash",
           lite: "UPDATE audit_heads SET chain_seq = $4, chain_hash = $5, ingested_at = $6
                  WHERE zone_id = $1 AND chain_seq = $2 AND chain_hash = $3";
    ALERT = pg: "INSERT INTO audit_alerts (event_id, incoming_sha256, zone_id, stored_sha256, event,
                     detected_at)
                 SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],
                     $6::bigint[])
                 ON CONFLICT (event_id, incoming_sha256) DO NOTHING",
            lite: "INSERT INTO audit_alerts (event_id, incoming_sha256, zone_id, stored_sha256,
                       event, detected_at)
                   VALUES ($1, $2, $3, $4, $5, $6)
                   ON CONFLICT (event_id, incoming_sha256) DO NOTHING";
} }

/// Stands around every label in the column, so that a label is found whole.
const LABEL_EDGE: char = '\u{1f}';

/// A row of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// Its zone.
    pub zone: ZoneId,
    /// Its place in the chain of the zone, from 1.
    pub chain_seq: u64,
    /// Its id.
    pub id: String,
    /// From the catalogue.
    pub event_type: String,
    /// Correlates.
    pub request_id: String,
    /// `allow`, `deny` and others.
    pub decision: String,
    /// Metadata `application_id`.
    pub application_id: Option<String>,
    /// Metadata `agent_session_id`.
    pub agent_session_id: Option<String>,
    /// Metadata `session_id`.
    pub authority_record_id: Option<String>,
    /// Metadata `agent_labels`.
    pub labels: Vec<String>,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// When it was appended.
    pub ingested_at: Timestamp,
    /// The exact text.
    pub event: String,
    /// Hash of that text, hex.
    pub content_sha256: String,
    /// Hash of the chain up to here, hex.
    pub chain_hash: String,
    /// Authorship of that hash, hex; empty without a key.
    pub chain_hmac: String,
}

/// The stored form of the text of an event.
#[derive(Clone, Debug)]
pub struct Packed(Vec<u8>);

/// The place of an event in its chain: what it only gets when it is appended.
#[derive(Clone, Debug)]
pub struct Place {
    /// Number in the chain of its zone, from 1.
    pub chain_seq: u64,
    /// When it is ingested; never before the event at the place before.
    pub ingested_at: Timestamp,
    /// SHA-256 of its text, hex.
    pub content_sha256: String,
    /// Its link, hex.
    pub chain_hash: String,
    /// Its link under the key, hex; empty without one.
    pub chain_hmac: String,
}

/// An event on its way into the ledger, whose text is packed already.
#[derive(Clone, Debug)]
pub struct Placed<'e> {
    /// What of it does not depend on its place. What it says of that itself is passed over.
    pub event: &'e AuditEvent,
    /// Its place.
    pub place: Place,
    /// Its text.
    pub packed: Packed,
}

impl AuditEvent {
    fn read(row: &Row, zone: &ZoneId) -> Result<Self, StoreError> {
        let id = pack::unpack_id(row.bytes("id")?)?;
        let optional = |column| row.opt_bytes(column)?.map(pack::unpack_id).transpose();
        let request_id = pack::unpack_id(row.bytes("request_id")?)?;
        let application_id = optional("application_id")?;
        let agent_session_id = optional("agent_session_id")?;
        let authority_record_id = optional("authority_record_id")?;
        let said = [
            Some(&*id),
            Some(zone.as_str()),
            Some(&*request_id),
            application_id.as_deref(),
            agent_session_id.as_deref(),
            authority_record_id.as_deref(),
        ];
        let event = pack::unpack(row.bytes("event")?, &said)?;
        let labels = row.opt_text("labels")?.unwrap_or_default();
        Ok(Self {
            zone: zone.clone(),
            chain_seq: row.count("chain_seq")?,
            event_type: row.string("event_type")?,
            decision: row.string("decision")?,
            labels: labels
                .split(LABEL_EDGE)
                .filter(|label| !label.is_empty())
                .map(str::to_owned)
                .collect(),
            occurred_at: row.time("occurred_at")?,
            ingested_at: row.time("ingested_at")?,
            content_sha256: hex_encode(row.bytes("content_sha256")?),
            chain_hash: hex_encode(row.bytes("chain_hash")?),
            chain_hmac: hex_encode(row.bytes("chain_hmac")?),
            id,
            request_id,
            application_id,
            agent_session_id,
            authority_record_id,
            event,
        })
    }

    /// Where it stands in its chain.
    fn place(&self) -> Place {
        Place {
            chain_seq: self.chain_seq,
            ingested_at: self.ingested_at,
            content_sha256: self.content_sha256.clone(),
            chain_hash: self.chain_hash.clone(),
            chain_hmac: self.chain_hmac.clone(),
        }
    }

    /// The text as it is stored. May be made ahead, on any thread: it is most of the work of
    /// appending.
    pub fn pack(&self) -> Packed {
        Packed(pack::pack(&self.event, &self.said()))
    }

    fn params(&self, place: &Place, packed: Packed) -> Result<Vec<Param<'_>>, StoreError> {
        let optional = |id: &Option<String>| match id {
            Some(id) => Param::Blob(pack::pack_id(id)),
            None => Param::OptBytes(None),
        };
        Ok(vec![
            Param::from(&self.zone),
            seq(place.chain_seq),
            Param::from(self.occurred_at),
            Param::from(place.ingested_at),
            Param::Blob(pack::pack_id(&self.id)),
            Param::Blob(pack::pack_id(&self.request_id)),
            Param::from(&self.event_type),
            Param::from(&self.decision),
            optional(&self.application_id),
            optional(&self.agent_session_id),
            optional(&self.authority_record_id),
            match &*self.labels {
                [] => Param::OptText(None),
                labels => Param::Owned(edged(labels)),
            },
            hash(&place.content_sha256)?,
            hash(&place.chain_hash)?,
            hash(&place.chain_hmac)?,
            Param::Blob(packed.0),
        ])
    }

    fn said(&self) -> pack::Said<'_> {
        [
            Some(&*self.id),
            Some(self.zone.as_str()),
            Some(&*self.request_id),
            self.application_id.as_deref(),
            self.agent_session_id.as_deref(),
            self.authority_record_id.as_deref(),
        ]
    }
}

fn hash<'p>(hex: &str) -> Result<Param<'p>, StoreError> {
    hex_decode(hex)
        .map(Param::Blob)
        .map_err(|_| StoreError::Invalid {
            doing: sql::INSERT.name,
            what: "a hash that is not hex",
        })
}

fn seq<'p>(seq: u64) -> Param<'p> {
    Param::Int(i64::try_from(seq).unwrap_or(i64::MAX))
}

fn edged(labels: &[String]) -> String {
    labels.iter().fold(String::new(), |mut all, label| {
        all.push(LABEL_EDGE);
        all.extend(label.chars().filter(|&c| c != LABEL_EDGE));
        all.push(LABEL_EDGE);
        all
    })
}

/// How far the chain of a zone goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditHead {
    /// The zone.
    pub zone: ZoneId,
    /// Place of the last event.
    pub chain_seq: u64,
    /// Its chain hash, hex.
    pub chain_hash: String,
}

impl AuditHead {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            zone: ZoneId::trusted(row.text("zone_id")?),
            chain_seq: row.count("chain_seq")?,
            chain_hash: hex_encode(row.bytes("chain_hash")?),
        })
    }
}

/// From where to where a batch moves the head of a zone.
#[derive(Clone, Debug)]
pub struct HeadMove {
    /// As the caller saw it; seq 0 for a zone without events.
    pub from: AuditHead,
    /// After the batch.
    pub to: AuditHead,
    /// When the last of the batch is ingested; the next one is not earlier.
    pub at: Timestamp,
}

/// An event that came again with another text.
#[derive(Clone, Debug)]
pub struct AuditAlert {
    /// The id that both claim.
    pub event_id: String,
    /// Zone of the event that came.
    pub zone: ZoneId,
    /// Hash of what was kept.
    pub stored_sha256: String,
    /// Hash of what came.
    pub incoming_sha256: String,
    /// What came.
    pub event: String,
}

/// Whether a batch was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// All of it.
    Done,
    /// Nothing: a head was elsewhere, or an event had been appended meanwhile. Look again.
    Overtaken,
}

impl Store {
    /// Which of these ids are in the ledger: id and content hash.
    pub async fn known_audit_events(
        &self,
        ids: &[&str],
    ) -> Result<Vec<(String, String)>, StoreError> {
        let rows = self
            .query(
                &sql::KNOWN,
                &[Param::Blobs(
                    ids.iter().map(|id| pack::pack_id(id)).collect(),
                )],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let id = pack::unpack_id(row.bytes("id")?)?;
                Ok((id, hex_encode(row.bytes("content_sha256")?)))
            })
            .collect()
    }

    /// How far the chains of these zones go; a zone without events is left out.
    pub async fn audit_heads(&self, zones: &[&str]) -> Result<Vec<AuditHead>, StoreError> {
        let tips = self.audit_tips(zones).await?;
        Ok(tips.into_iter().map(|(head, _)| head).collect())
    }

    /// As [`Store::audit_heads`], each with the time of ingestion of its last event: the next one
    /// is not earlier.
    pub async fn audit_tips(
        &self,
        zones: &[&str],
    ) -> Result<Vec<(AuditHead, Timestamp)>, StoreError> {
        let rows = self
            .query(&sql::HEADS, &[Param::Texts(zones.to_vec())])
            .await?;
        rows.iter()
            .map(|row| Ok((AuditHead::read(row)?, row.time("ingested_at")?)))
            .collect()
    }

    /// How far every chain goes.
    pub async fn all_audit_heads(&self) -> Result<Vec<AuditHead>, StoreError> {
        let rows = self.query(&sql::ALL_HEADS, &[]).await?;
        rows.iter().map(AuditHead::read).collect()
    }

    /// Every zone that has events or ought to have them.
    pub async fn audit_zones(&self) -> Result<Vec<ZoneId>, StoreError> {
        let rows = self.query(&sql::ZONES, &[]).await?;
        rows.iter()
            .map(|row| Ok(ZoneId::trusted(row.text("zone_id")?)))
            .collect()
    }

    /// Appends a batch: all of it and its heads, or nothing. Three round trips to Postgres when no
    /// zone is new.
    pub async fn append_audit_events(
        &self,
        moves: &[HeadMove],
        events: &[AuditEvent],
        alerts: &[AuditAlert],
    ) -> Result<Appended, StoreError> {
        let placed = events.iter().map(|event| Placed {
            event,
            place: event.place(),
            packed: event.pack(),
        });
        self.append_placed_audit_events(moves, placed.collect(), alerts)
            .await
    }

    /// As [`Store::append_audit_events`], with the places and packed texts given beside the events.
    pub async fn append_placed_audit_events(
        &self,
        moves: &[HeadMove],
        events: Vec<Placed<'_>>,
        alerts: &[AuditAlert],
    ) -> Result<Appended, StoreError> {
        match self.append(moves, events, alerts).await {
            Err(StoreError::Conflict { .. }) => Ok(Appended::Overtaken),
            Err(error) => {
                // A month that we knew may have been dropped by another process.
                self.audit_months_made().lock().clear();
                Err(error)
            }
            done => done,
        }
    }

    async fn append(
        &self,
        moves: &[HeadMove],
        events: Vec<Placed<'_>>,
        alerts: &[AuditAlert],
    ) -> Result<Appended, StoreError> {
        let mut times: Vec<_> = events
            .iter()
            .map(|placed| placed.place.ingested_at)
            .collect();
        times.sort_unstable();
        times.dedup();
        // Before the transaction begins: on SQLite everybody waits for its statements.
        let rows = events
            .into_iter()
            .map(|placed| placed.event.params(&placed.place, placed.packed))
            .collect::<Result<Vec<_>, _>>()?;
        let steps = moves
            .iter()
            .map(HeadMove::params)
            .collect::<Result<Vec<_>, _>>()?;
        for at in times {
            self.ensure_audit_month(at).await?;
        }
        let mut tx = self.begin("appending to the ledger").await?;
        let new = seeds(moves)?;
        let zones: Vec<_> = new
            .iter()
            .map(|row| row.iter().take(1).cloned().collect())
            .collect();
        tx.execute_rows(&sql::SEED_ZONES, &zones).await?;
        tx.execute_rows(&sql::SEED, &new).await?;
        let moved = tx.execute_rows(&sql::MOVE, &steps).await?;
        if usize::try_from(moved) != Ok(moves.len()) {
            tx.rollback().await;
            return Ok(Appended::Overtaken);
        }
        let now = self.clock().now();
        let alerts: Vec<_> = alerts.iter().map(|alert| alert.params(now)).collect();
        tx.execute_rows(&sql::ALERT, &alerts).await?;
        tx.commit_with_rows(&sql::INSERT, &rows).await?;
        self.tell_audit_appended();
        Ok(Appended::Done)
    }
}

fn seeds(moves: &[HeadMove]) -> Result<Vec<Vec<Param<'_>>>, StoreError> {
    moves
        .iter()
        .map(|step| &step.from)
        .filter(|from| from.chain_seq == 0)
        .map(|from| {
            Ok(vec![
                Param::from(&from.zone),
                seq(0),
                hash(&from.chain_hash)?,
                Param::Int(0),
            ])
        })
        .collect()
}

impl HeadMove {
    fn params(&self) -> Result<Vec<Param<'_>>, StoreError> {
        Ok(vec![
            Param::from(&self.from.zone),
            seq(self.from.chain_seq),
            hash(&self.from.chain_hash)?,
            seq(self.to.chain_seq),
            hash(&self.to.chain_hash)?,
            Param::from(self.at),
        ])
    }
}

impl AuditAlert {
    fn params(&self, now: Timestamp) -> Vec<Param<'_>> {
        params![
            &self.event_id,
            &self.incoming_sha256,
            &self.zone,
            &self.stored_sha256,
            &self.event,
            now
        ]
        .to_vec()
    }
}

#[cfg(test)]
mod tests;
