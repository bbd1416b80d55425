//! Reading the ledger of one zone.

use caracal_crypto::digest::hex_encode;
use caracal_model::{Timestamp, ZoneId};

use super::{AuditEvent, AuditHead, LABEL_EDGE, columns, pack, seq};
use crate::error::StoreError;
use crate::param::Param;
use crate::row::Row;
use crate::store::ZoneScope;
use crate::{params, statements};

/// `zone_no` of `$1`.
macro_rules! in_zone {
    () => {
        "zone_no = (SELECT zone_no FROM audit_zones WHERE zone_id = $1)"
    };
}

/// A page, found along the index of the one id that is given: a filter that may be absent leads to
/// none. Both engines would rather walk the order of time than sort what an index finds: SQLite is
/// told which index (`INDEXED BY`), Postgres has what it finds set apart (`found`).
macro_rules! page {
    (pg) => {
        page!(; "audit_events"; ; "= ANY($13)")
    };
    (pg, $driven:literal) => {
        page!(
            "WITH found AS MATERIALIZED (SELECT * FROM audit_events WHERE ", $driven, ") ";
            "found"; ; "= ANY($13)"
        )
    };
    (lite) => {
        page!(; "audit_events"; ; "IN (SELECT value FROM json_each($13))")
    };
    (lite, $index:literal, $driven:literal) => {
        page!(
            ; "audit_events INDEXED BY ", $index; " AND ", $driven;
            "IN (SELECT value FROM json_each($13))"
        )
    };
    ($($found:literal),*; $($from:literal),*; $($driven:literal),*; $types:literal) => {
        concat!(
            $($found,)*
            "SELECT ",
            columns!(),
            " FROM ",
            $($from,)*
            " WHERE ",
            in_zone!(),
            $($driven,)*
            " AND occurred_at >= $2 AND occurred_at < $3
               AND (occurred_at, id) < ($4, $5)
               AND (CAST($6 AS TEXT) IS NULL OR decision = $6)
               AND (CAST($7 AS BYTEA) IS NULL OR request_id = $7)
               AND (CAST($8 AS BYTEA) IS NULL OR application_id = $8)
               AND (CAST($9 AS BYTEA) IS NULL OR agent_session_id = $9)
               AND (CAST($10 AS BYTEA) IS NULL OR authority_record_id = $10)
               AND (CAST($11 AS TEXT) IS NULL OR REPLACE(labels, $11, '') <> labels)
               AND (CAST($12 AS BIGINT) = 0 OR event_type ",
            $types,
            ")
             ORDER BY occurred_at DESC, id DESC LIMIT $14"
        )
    };
}

statements! { pub(crate) mod sql {
    PAGE = pg: page!(pg), lite: page!(lite);
    PAGE_OF_REQUEST = pg: page!(pg, "request_id = $7"),
                      lite: page!(lite, "audit_events_request", "request_id = $7");
    PAGE_OF_SESSION = pg: page!(pg, "agent_session_id = $9"),
                      lite: page!(lite, "audit_events_session", "agent_session_id = $9");
    PAGE_OF_RECORD = pg: page!(pg, "authority_record_id = $10"),
                     lite: page!(lite, "audit_events_record", "authority_record_id = $10");
    BY_REQUEST = concat!("SELECT ", columns!(), " FROM audit_events
        WHERE ", in_zone!(), " AND request_id = $2 ORDER BY occurred_at, id LIMIT $3");
    FIND = concat!("SELECT ", columns!(), " FROM audit_events
        WHERE id = $2 AND ", in_zone!());
    SEARCH = concat!("SELECT ", columns!(), ", (SELECT before.content_sha256
            FROM audit_events before
            WHERE before.zone_no = audit_events.zone_no
              AND before.chain_seq = audit_events.chain_seq - 1) AS previous_sha256
        FROM audit_events
        WHERE ", in_zone!(), " AND chain_seq > $2 AND occurred_at >= $3 AND occurred_at < $4
          AND (CAST($5 AS TEXT) IS NULL OR decision = $5)
          AND (CAST($6 AS BYTEA) IS NULL OR request_id = $6)
        ORDER BY chain_seq LIMIT $7");
    CHAIN = concat!("SELECT ", columns!(), " FROM audit_events
        WHERE ", in_zone!(), " AND chain_seq > $2 ORDER BY chain_seq LIMIT $3");
    OF_TYPES = pg: concat!("SELECT ", columns!(), " FROM audit_events
            WHERE ", in_zone!(), " AND chain_seq > $2 AND chain_seq <= $3 AND event_type = ANY($4)
            ORDER BY chain_seq LIMIT $5"),
        lite: concat!("SELECT ", columns!(), " FROM audit_events
            WHERE ", in_zone!(), " AND chain_seq > $2 AND chain_seq <= $3
              AND event_type IN (SELECT value FROM json_each($4))
            ORDER BY chain_seq LIMIT $5");
    OF_ID = concat!("SELECT ", columns!(), " FROM audit_events
        WHERE ", in_zone!(), " AND id = $2");
    /// Where a time of ingestion begins in a chain, along which it never goes back.
    INGESTED_FROM = concat!("SELECT chain_seq FROM audit_events
        WHERE ", in_zone!(), " AND chain_seq > $2 AND ingested_at >= $3
        ORDER BY chain_seq LIMIT 1");
    OCCURRED_FROM = concat!("SELECT MIN(chain_seq) AS chain_seq FROM audit_events
        WHERE ", in_zone!(), " AND occurred_at >= $2");
    DECISIONS = concat!("SELECT COUNT(CASE WHEN decision = 'allow' THEN 1 END) AS allowed,
                     COUNT(CASE WHEN decision = 'deny' THEN 1 END) AS denied
                 FROM audit_events WHERE ", in_zone!(), " AND occurred_at >= $2");
    ALERTS = "SELECT COUNT(*) AS alerts FROM audit_alerts WHERE zone_id = $1";
} }

/// Most events of one request that a read answers with.
const REQUEST_LIMIT: i64 = 1_000;

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

impl AuditFilter<'_> {
    fn since_or_ever<'p>(&self) -> Param<'p> {
        Param::from(self.since.unwrap_or(Timestamp::from_unix_micros(i64::MIN)))
    }

    fn until_or_ever<'p>(&self) -> Param<'p> {
        Param::from(self.until.unwrap_or(Timestamp::from_unix_micros(i64::MAX)))
    }
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

impl<'s> AuditEvents<'s> {
    pub(crate) fn scope(&self) -> ZoneScope<'s> {
        self.0
    }

    /// A page, newest first. `after` is time and id of the last event of the page before it, to the
    /// microsecond: events of one millisecond are not skipped.
    pub async fn page(
        &self,
        filter: &AuditFilter<'_>,
        after: Option<(Timestamp, &str)>,
        limit: u32,
    ) -> Result<Vec<AuditEvent>, StoreError> {
        let (after, after_id) = after.unwrap_or((Timestamp::from_unix_micros(i64::MAX), ""));
        // One upper bound: of two, SQLite takes the first for its walk along the index, and would come
        // down from the newest event to the cursor each time.
        let beyond = Timestamp::from_unix_micros(after.unix_micros().saturating_add(1));
        let until = filter.until.map_or(beyond, |until| until.min(beyond));
        // A label with the separator in it is no label that was ever stored.
        let label = filter
            .label
            .map(|label| format!("{LABEL_EDGE}{label}{LABEL_EDGE}"));
        let params = [
            Param::from(self.0.id()),
            filter.since_or_ever(),
            Param::from(until),
            Param::from(after),
            Param::Blob(if after_id.is_empty() {
                Vec::new()
            } else {
                pack::pack_id(after_id)
            }),
            Param::from(filter.decision),
            id(filter.request_id),
            id(filter.application_id),
            id(filter.session_id),
            id(filter.authority_record_id),
            Param::from(&label),
            Param::Int(i64::from(!filter.event_types.is_empty())),
            Param::Texts(filter.event_types.to_vec()),
            Param::from(limit),
        ];
        let statement = match filter {
            filter if filter.request_id.is_some() => &sql::PAGE_OF_REQUEST,
            filter if filter.session_id.is_some() => &sql::PAGE_OF_SESSION,
            filter if filter.authority_record_id.is_some() => &sql::PAGE_OF_RECORD,
            _ => &sql::PAGE,
        };
        self.read(statement, &params).await
    }

    /// The events of one request, oldest first.
    pub async fn by_request(&self, request_id: &str) -> Result<Vec<AuditEvent>, StoreError> {
        self.read(
            &sql::BY_REQUEST,
            &params![self.0.id(), pack::pack_id(request_id), REQUEST_LIMIT],
        )
        .await
    }

    /// One event.
    pub async fn find(&self, id: &str) -> Result<Option<AuditEvent>, StoreError> {
        let params = [Param::from(self.0.id()), Param::Blob(pack::pack_id(id))];
        Ok(self.read(&sql::FIND, &params).await?.into_iter().next())
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
            filter.since_or_ever(),
            filter.until_or_ever(),
            Param::from(filter.decision),
            id(filter.request_id),
            Param::from(limit),
        ];
        let rows = self.0.query(&sql::SEARCH, &params).await?;
        rows.iter()
            .map(|row| {
                let previous = row.opt_bytes("previous_sha256")?.map(hex_encode);
                Ok((AuditEvent::read(row, self.0.id())?, previous))
            })
            .collect()
    }

    /// The chain after a place, in its order.
    pub async fn chain(&self, after_seq: u64, limit: u32) -> Result<Vec<AuditEvent>, StoreError> {
        let params = [Param::from(self.0.id()), seq(after_seq), Param::from(limit)];
        self.read(&sql::CHAIN, &params).await
    }

    /// As [`AuditEvents::chain`], to be unpacked by the caller, on a thread of its choice.
    pub async fn chain_page(&self, after_seq: u64, limit: u32) -> Result<ChainPage, StoreError> {
        let params = [Param::from(self.0.id()), seq(after_seq), Param::from(limit)];
        Ok(ChainPage {
            zone: self.0.id().clone(),
            rows: self.0.query(&sql::CHAIN, &params).await?,
        })
    }

    /// Events of these types after a place of the chain and up to another, in its order.
    pub async fn of_types(
        &self,
        types: &[String],
        after_seq: u64,
        upto_seq: u64,
        limit: u32,
    ) -> Result<Vec<AuditEvent>, StoreError> {
        let params = [
            Param::from(self.0.id()),
            seq(after_seq),
            seq(upto_seq),
            Param::Texts(types.iter().map(String::as_str).collect()),
            Param::from(limit),
        ];
        self.read(&sql::OF_TYPES, &params).await
    }

    /// One event.
    pub async fn get(&self, id: &str) -> Result<Option<AuditEvent>, StoreError> {
        let params = params![self.0.id(), pack::pack_id(id)];
        Ok(self.read(&sql::OF_ID, &params).await?.into_iter().next())
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
            .map(|row| AuditEvent::read(row, self.0.id()))
            .collect()
    }
}

/// A stretch of a chain as it is stored.
#[derive(Debug)]
pub struct ChainPage {
    zone: ZoneId,
    rows: Vec<Row>,
}

impl ChainPage {
    /// Whether the chain ends before it.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Its events.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a row is none that we write.
    pub fn unpack(&self) -> Result<Vec<AuditEvent>, StoreError> {
        let rows = self.rows.iter();
        rows.map(|row| AuditEvent::read(row, &self.zone)).collect()
    }
}

/// An id to filter by, or none.
fn id(id: Option<&str>) -> Param<'_> {
    id.map_or(Param::OptBytes(None), |id| Param::Blob(pack::pack_id(id)))
}
