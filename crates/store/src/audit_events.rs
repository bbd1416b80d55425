//! The ledger's rows: events in the exact text that was signed and hashed, their chain, and the
//! columns that reads filter by. What a link is belongs to the crate `ledger`; here are only rows.
//!
//! Rows are never changed. A batch is appended in one transaction that moves the heads of its zones
//! from where the caller saw them: when somebody else was faster, nothing is kept and the caller
//! looks again. So the chain of a zone has one writer at a time without a lock of its own.

use caracal_model::{Timestamp, ZoneId};

use crate::error::StoreError;
use crate::param::Param;
use crate::row::Row;
use crate::store::{Store, ZoneScope};
use crate::{params, statements};

macro_rules! columns {
    () => {
        "zone_id, chain_seq, id, event_type, request_id, decision, evaluation_status, \
         application_id, agent_session_id, authority_record_id, labels, occurred_at, ingested_at, \
         event, content_sha256, chain_hash, chain_hmac"
    };
}

macro_rules! page {
    ($types:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM audit_events
             WHERE zone_id = $1 AND occurred_at >= $2 AND occurred_at < $3
               AND (occurred_at, id) < ($4, $5)
               AND (CAST($6 AS TEXT) IS NULL OR decision = $6)
               AND (CAST($7 AS TEXT) IS NULL OR request_id = $7)
               AND (CAST($8 AS TEXT) IS NULL OR application_id = $8)
               AND (CAST($9 AS TEXT) IS NULL OR agent_session_id = $9)
               AND (CAST($10 AS TEXT) IS NULL OR authority_record_id = $10)
               AND (CAST($11 AS TEXT) IS NULL OR REPLACE(labels, $11, '') <> labels)
               AND (CAST($12 AS BIGINT) = 0 OR event_type ",
            $types,
            ")
             ORDER BY occurred_at DESC, id DESC LIMIT $14"
        )
    };
}

statements! { pub(crate) mod sql {
    INSERT = pg: concat!("INSERT INTO audit_events (", columns!(), ")
                 SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[],
                     $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[],
                     $12::bigint[], $13::bigint[], $14::text[], $15::text[], $16::text[],
                     $17::text[])"),
             lite: concat!("INSERT INTO audit_events (", columns!(), ")
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
                         $17)");
    KNOWN = pg: "SELECT id, content_sha256 FROM audit_events WHERE id = ANY($1)",
            lite: "SELECT id, content_sha256 FROM audit_events
                   WHERE id IN (SELECT value FROM json_each($1))";
    HEADS = pg: "SELECT zone_id, chain_seq, chain_hash FROM audit_heads WHERE zone_id = ANY($1)",
            lite: "SELECT zone_id, chain_seq, chain_hash FROM audit_heads
                   WHERE zone_id IN (SELECT value FROM json_each($1))";
    ALL_HEADS = "SELECT zone_id, chain_seq, chain_hash FROM audit_heads ORDER BY zone_id";
    /// Every zone with events or a head, found by skipping through the primary key.
    ZONES = "WITH RECURSIVE seen (zone_id) AS (
                 SELECT (SELECT MIN(zone_id) FROM audit_events)
                 UNION ALL
                 SELECT (SELECT MIN(later.zone_id) FROM audit_events later
                         WHERE later.zone_id > seen.zone_id)
                 FROM seen WHERE seen.zone_id IS NOT NULL)
             SELECT zone_id FROM seen WHERE zone_id IS NOT NULL
             UNION
             SELECT zone_id FROM audit_heads
             ORDER BY zone_id";
    SEED = pg: "INSERT INTO audit_heads (zone_id, chain_seq, chain_hash)
                SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])
                ON CONFLICT (zone_id) DO NOTHING",
           lite: "INSERT INTO audit_heads (zone_id, chain_seq, chain_hash) VALUES ($1, $2, $3)
                  ON CONFLICT (zone_id) DO NOTHING";
    /// Locks in the order of zones, so that two batches cannot wait for each other.
    MOVE = pg: "WITH locked AS MATERIALIZED (
                    SELECT zone_id FROM audit_heads WHERE zone_id = ANY($1::text[])
                    ORDER BY zone_id FOR UPDATE)
                UPDATE audit_heads head SET chain_seq = move.to_seq, chain_hash = move.to_hash
                FROM locked, unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::text[])
                    AS move (zone_id, from_seq, from_hash, to_seq, to_hash)
                WHERE locked.zone_id = move.zone_id AND head.zone_id = move.zone_id
                  AND head.chain_seq = move.from_seq AND head.chain_hash = move.from_hash",
           lite: "UPDATE audit_heads SET chain_seq = $4, chain_hash = $5
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
    ALERTS = "SELECT COUNT(*) AS alerts FROM audit_alerts WHERE zone_id = $1";
    PAGE = pg: page!("= ANY($13)"), lite: page!("IN (SELECT value FROM json_each($13))");
    BY_REQUEST = concat!("SELECT ", columns!(), " FROM audit_events
        WHERE zone_id = $1 AND request_id = $2 ORDER BY occurred_at, id LIMIT $3");
    SEARCH = concat!("SELECT ", columns!(), ", (SELECT before.content_sha256 FROM audit_events before
            WHERE before.zone_id = audit_events.zone_id
              AND before.chain_seq = audit_events.chain_seq - 1) AS previous_sha256
        FROM audit_events
        WHERE zone_id = $1 AND chain_seq > $2 AND occurred_at >= $3 AND occurred_at < $4
          AND (CAST($5 AS TEXT) IS NULL OR decision = $5)
          AND (CAST($6 AS TEXT) IS NULL OR request_id = $6)
        ORDER BY chain_seq LIMIT $7");
    CHAIN = concat!("SELECT ", columns!(), " FROM audit_events
        WHERE zone_id = $1 AND chain_seq > $2 ORDER BY chain_seq LIMIT $3");
    /// Where an ingest time begins in a chain, whose times may step back: its first event of it.
    INGESTED_FROM = "SELECT chain_seq FROM audit_events
        WHERE zone_id = $1 AND chain_seq > $2 AND ingested_at >= $3
        ORDER BY chain_seq LIMIT 1";
    OCCURRED_FROM = "SELECT MIN(chain_seq) AS chain_seq FROM audit_events
        WHERE zone_id = $1 AND occurred_at >= $2";
    DECISIONS = "SELECT COUNT(CASE WHEN decision = 'allow' THEN 1 END) AS allowed,
                     COUNT(CASE WHEN decision = 'deny' THEN 1 END) AS denied
                 FROM audit_events WHERE zone_id = $1 AND occurred_at >= $2";
} }

/// Most events of one request that a read answers with.
const REQUEST_LIMIT: i64 = 1_000;
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
    /// `complete`, or why not.
    pub evaluation_status: String,
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

impl AuditEvent {
    fn read(row: &Row) -> Result<Self, StoreError> {
        let labels = row.opt_text("labels")?.unwrap_or_default();
        Ok(Self {
            zone: ZoneId::trusted(row.text("zone_id")?),
            chain_seq: row.count("chain_seq")?,
            id: row.string("id")?,
            event_type: row.string("event_type")?,
            request_id: row.string("request_id")?,
            decision: row.string("decision")?,
            evaluation_status: row.string("evaluation_status")?,
            application_id: row.opt_string("application_id")?,
            agent_session_id: row.opt_string("agent_session_id")?,
            authority_record_id: row.opt_string("authority_record_id")?,
            labels: labels
                .split(LABEL_EDGE)
                .filter(|label| !label.is_empty())
                .map(str::to_owned)
                .collect(),
            occurred_at: row.time("occurred_at")?,
            ingested_at: row.time("ingested_at")?,
            event: row.string("event")?,
            content_sha256: row.string("content_sha256")?,
            chain_hash: row.string("chain_hash")?,
            chain_hmac: row.string("chain_hmac")?,
        })
    }

    fn params(&self) -> Vec<Param<'_>> {
        vec![
            Param::from(&self.zone),
            seq(self.chain_seq),
            Param::from(&self.id),
            Param::from(&self.event_type),
            Param::from(&self.request_id),
            Param::from(&self.decision),
            Param::from(&self.evaluation_status),
            Param::from(&self.application_id),
            Param::from(&self.agent_session_id),
            Param::from(&self.authority_record_id),
            Param::Owned(edged(&self.labels)),
            Param::from(self.occurred_at),
            Param::from(self.ingested_at),
            Param::from(&self.event),
            Param::from(&self.content_sha256),
            Param::from(&self.chain_hash),
            Param::from(&self.chain_hmac),
        ]
    }
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
    pub(crate) fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            zone: ZoneId::trusted(row.text("zone_id")?),
            chain_seq: row.count("chain_seq")?,
            chain_hash: row.string("chain_hash")?,
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
            .query(&sql::KNOWN, &[Param::Texts(ids.to_vec())])
            .await?;
        rows.iter()
            .map(|row| Ok((row.string("id")?, row.string("content_sha256")?)))
            .collect()
    }

    /// How far the chains of these zones go; a zone without events is left out.
    pub async fn audit_heads(&self, zones: &[&str]) -> Result<Vec<AuditHead>, StoreError> {
        let rows = self
            .query(&sql::HEADS, &[Param::Texts(zones.to_vec())])
            .await?;
        rows.iter().map(AuditHead::read).collect()
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
        match self.append(moves, events, alerts).await {
            Err(StoreError::Conflict { .. }) => Ok(Appended::Overtaken),
            answer => answer,
        }
    }

    async fn append(
        &self,
        moves: &[HeadMove],
        events: &[AuditEvent],
        alerts: &[AuditAlert],
    ) -> Result<Appended, StoreError> {
        let mut tx = self.begin("appending to the ledger").await?;
        let new = seeds(moves);
        tx.execute_rows(&sql::SEED, &new).await?;
        let steps: Vec<_> = moves.iter().map(HeadMove::params).collect();
        let moved = tx.execute_rows(&sql::MOVE, &steps).await?;
        if usize::try_from(moved) != Ok(moves.len()) {
            tx.rollback().await;
            return Ok(Appended::Overtaken);
        }
        let now = self.clock().now();
        let alerts: Vec<_> = alerts.iter().map(|alert| alert.params(now)).collect();
        tx.execute_rows(&sql::ALERT, &alerts).await?;
        let rows: Vec<_> = events.iter().map(AuditEvent::params).collect();
        tx.commit_with_rows(&sql::INSERT, &rows).await?;
        self.tell_audit_appended();
        Ok(Appended::Done)
    }
}

fn seeds(moves: &[HeadMove]) -> Vec<Vec<Param<'_>>> {
    moves
        .iter()
        .map(|step| &step.from)
        .filter(|from| from.chain_seq == 0)
        .map(|from| params![&from.zone, 0, &from.chain_hash].to_vec())
        .collect()
}

impl HeadMove {
    fn params(&self) -> Vec<Param<'_>> {
        vec![
            Param::from(&self.from.zone),
            seq(self.from.chain_seq),
            Param::from(&self.from.chain_hash),
            seq(self.to.chain_seq),
            Param::from(&self.to.chain_hash),
        ]
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

/// What a page holds; an absent member does not filter.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuditFilter<'f> {
    /// `occurred_at` not before.
    pub since: Option<Timestamp>,
    /// `occurred_at` before.
    pub until: Option<Timestamp>,
    /// Exactly this decision.
    pub decision: Option<&'f str>,
    /// One of these types; none means any.
    pub event_types: &'f [&'f str],
    /// Exactly this request.
    pub request_id: Option<&'f str>,
    /// Metadata `application_id`.
    pub application_id: Option<&'f str>,
    /// Metadata `agent_session_id`.
    pub session_id: Option<&'f str>,
    /// Metadata `session_id`.
    pub authority_record_id: Option<&'f str>,
    /// A member of metadata `agent_labels`.
    pub label: Option<&'f str>,
}

/// The ledger of one zone, for reading.
#[derive(Clone, Copy, Debug)]
pub struct AuditEvents<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The ledger of this zone.
    pub fn audit(self) -> AuditEvents<'s> {
        AuditEvents(self)
    }
}

impl AuditEvents<'_> {
    /// A page, newest first. `after` is time and id of the last event of the page before it, to the
    /// microsecond: events of one millisecond are not skipped.
    pub async fn page(
        &self,
        filter: &AuditFilter<'_>,
        after: Option<(Timestamp, &str)>,
        limit: u32,
    ) -> Result<Vec<AuditEvent>, StoreError> {
        let (after, after_id) = after.unwrap_or((Timestamp::from_unix_micros(i64::MAX), ""));
        // A label with the separator in it is no label that was ever stored.
        let label = filter
            .label
            .map(|label| format!("{LABEL_EDGE}{label}{LABEL_EDGE}"));
        let params = [
            Param::from(self.0.id()),
            Param::from(
                filter
                    .since
                    .unwrap_or(Timestamp::from_unix_micros(i64::MIN)),
            ),
            Param::from(
                filter
                    .until
                    .unwrap_or(Timestamp::from_unix_micros(i64::MAX)),
            ),
            Param::from(after),
            Param::from(after_id),
            Param::from(filter.decision),
            Param::from(filter.request_id),
            Param::from(filter.application_id),
            Param::from(filter.session_id),
            Param::from(filter.authority_record_id),
            Param::from(&label),
            Param::Int(i64::from(!filter.event_types.is_empty())),
            Param::Texts(filter.event_types.to_vec()),
            Param::from(limit),
        ];
        self.read(&sql::PAGE, &params).await
    }

    /// The events of one request, oldest first.
    pub async fn by_request(&self, request_id: &str) -> Result<Vec<AuditEvent>, StoreError> {
        self.read(
            &sql::BY_REQUEST,
            &params![self.0.id(), request_id, REQUEST_LIMIT],
        )
        .await
    }

    /// Events after a place of the chain, in its order, within `[since, until)`, each with the
    /// content hash of the event before it in the chain.
    pub async fn search(
        &self,
        after_seq: u64,
        filter: &AuditFilter<'_>,
        limit: u32,
    ) -> Result<Vec<(AuditEvent, Option<String>)>, StoreError> {
        let params = [
            Param::from(self.0.id()),
            seq(after_seq),
            Param::from(
                filter
                    .since
                    .unwrap_or(Timestamp::from_unix_micros(i64::MIN)),
            ),
            Param::from(
                filter
                    .until
                    .unwrap_or(Timestamp::from_unix_micros(i64::MAX)),
            ),
            Param::from(filter.decision),
            Param::from(filter.request_id),
            Param::from(limit),
        ];
        let rows = self.0.query(&sql::SEARCH, &params).await?;
        rows.iter()
            .map(|row| Ok((AuditEvent::read(row)?, row.opt_string("previous_sha256")?)))
            .collect()
    }

    /// The chain after a place, in its order.
    pub async fn chain(&self, after_seq: u64, limit: u32) -> Result<Vec<AuditEvent>, StoreError> {
        let params = [Param::from(self.0.id()), seq(after_seq), Param::from(limit)];
        self.read(&sql::CHAIN, &params).await
    }

    /// The place of the first event after `after_seq` that was ingested at `from` or later.
    pub async fn ingested_from(
        &self,
        after_seq: u64,
        from: Timestamp,
    ) -> Result<Option<u64>, StoreError> {
        let params = [Param::from(self.0.id()), seq(after_seq), Param::from(from)];
        let row = self.0.query_opt(&sql::INGESTED_FROM, &params).await?;
        row.map(|row| row.count("chain_seq")).transpose()
    }

    /// The place of the first event in the chain that occurred at `from` or later.
    pub async fn occurred_from(&self, from: Timestamp) -> Result<Option<u64>, StoreError> {
        let params = params![self.0.id(), from];
        let row = self.0.query_opt(&sql::OCCURRED_FROM, &params).await?;
        let seq = row.map(|row| row.opt_int("chain_seq")).transpose()?;
        Ok(seq.flatten().and_then(|seq| seq.try_into().ok()))
    }

    /// How far the chain goes.
    pub async fn head(&self) -> Result<Option<AuditHead>, StoreError> {
        let zones = [self.0.id().as_str()];
        Ok(self.0.store().audit_heads(&zones).await?.into_iter().next())
    }

    /// How many allows and denies since then.
    pub async fn decisions_since(&self, since: Timestamp) -> Result<(u64, u64), StoreError> {
        let row = self
            .0
            .query_opt(&sql::DECISIONS, &params![self.0.id(), since])
            .await?;
        row.map_or(Ok((0, 0)), |row| {
            Ok((row.count("allowed")?, row.count("denied")?))
        })
    }

    /// How many events came again with another text.
    pub async fn alerts(&self) -> Result<u64, StoreError> {
        let row = self
            .0
            .query_opt(&sql::ALERTS, &params![self.0.id()])
            .await?;
        row.map_or(Ok(0), |row| row.count("alerts"))
    }

    async fn read(
        &self,
        sql: &crate::Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<AuditEvent>, StoreError> {
        self.0
            .query(sql, params)
            .await?
            .iter()
            .map(AuditEvent::read)
            .collect()
    }
}
