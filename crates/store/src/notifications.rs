//! Notification sinks and what is on its way to them (spec: admin-api §10, audit-and-streams §13).
//!
//! INVARIANT (none skipped, none twice): deliveries are added in the transaction that moves the
//! cursor of their sink from where the caller saw it, over events that were committed before the
//! head was read. Events of a zone are committed in the order of their chain, so everything up to a
//! head that was seen is there to be seen.

use caracal_model::{Timestamp, ZoneId};

use crate::error::StoreError;
use crate::param::Param;
use crate::row::Row;
use crate::zones::Slice;
use crate::{ZoneScope, params, statements};

mod queue;
mod write;

pub use queue::Notifications;
pub use write::SinkWrites;

/// What secrets of sinks are bound to.
pub const SINK_SECRET_AAD: &str = "caracal/notificationSinks/secret";

macro_rules! sink {
    () => {
        "id, zone_id, name, url, event_types, active, in_order, secret, cursor_seq, \
         consecutive_failures, last_success_at, last_failure_at, last_error, created_at, updated_at"
    };
}

macro_rules! delivery {
    () => {
        "id, zone_id, sink_id, chain_seq, event_id, event_type, body, attempts, available_at, \
         delivered_at, abandoned_at, response_status, last_error, created_at"
    };
}

macro_rules! of_delivery {
    () => {
        "d.id, d.zone_id, d.sink_id, d.chain_seq, d.event_id, d.event_type, d.body, d.attempts, \
         d.available_at, d.delivered_at, d.abandoned_at, d.response_status, d.last_error, \
         d.created_at"
    };
}

statements! { pub(crate) mod sql {
    GET = concat!("SELECT ", sink!(), " FROM notification_sinks WHERE zone_id = $1 AND id = $2");
    PAGE = concat!("SELECT ", sink!(), " FROM notification_sinks
        WHERE zone_id = $1 AND (created_at, id) < ($2, $3)
        ORDER BY created_at DESC, id DESC LIMIT $4");
    COUNT = "SELECT COUNT(*) AS sinks FROM notification_sinks WHERE zone_id = $1";
    INSERT = concat!("INSERT INTO notification_sinks (", sink!(), ")
        VALUES ($2, $1, $3, $4, $5, $6, $7, $8, $9, 0, NULL, NULL, NULL, $10, $10)");
    UPDATE = "UPDATE notification_sinks SET name = $3, url = $4, event_types = $5, active = $6,
            in_order = $7, consecutive_failures = $8, last_error = $9, updated_at = $10
        WHERE zone_id = $1 AND id = $2";
    ROTATE = "UPDATE notification_sinks SET secret = $3, updated_at = $4
        WHERE zone_id = $1 AND id = $2";
    DELETE_DELIVERIES = "DELETE FROM notification_deliveries WHERE zone_id = $1 AND sink_id = $2";
    DELETE = "DELETE FROM notification_sinks WHERE zone_id = $1 AND id = $2";
    /// Sinks that are to be told of what happens, those of archived zones left out.
    ACTIVE = concat!("SELECT ", sink!(), " FROM notification_sinks
        WHERE active AND id > $1 AND EXISTS (SELECT 1 FROM zones
            WHERE zones.id = notification_sinks.zone_id AND zones.archived_at IS NULL)
        ORDER BY id LIMIT $2");
    MOVE = "UPDATE notification_sinks SET cursor_seq = $4
        WHERE zone_id = $1 AND id = $2 AND cursor_seq = $3";
    ADD = pg: concat!("INSERT INTO notification_deliveries (", delivery!(), ")
              SELECT id, zone_id, sink_id, seq, event_id, event_type, body, 0, made, NULL, NULL,
                  NULL, NULL, made
              FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[],
                  $6::text[], $7::text[], $8::bigint[])
                  AS entry (id, zone_id, sink_id, seq, event_id, event_type, body, made)
              ON CONFLICT (sink_id, event_id) DO NOTHING"),
          lite: concat!("INSERT INTO notification_deliveries (", delivery!(), ")
              VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, NULL, NULL, NULL, NULL, $8)
              ON CONFLICT (sink_id, event_id) DO NOTHING");
    /// The first open delivery of each sink, or every one where order does not matter.
    DUE = concat!("SELECT ", of_delivery!(), " FROM notification_deliveries d
        JOIN notification_sinks s ON s.id = d.sink_id AND s.active
        JOIN zones z ON z.id = s.zone_id AND z.archived_at IS NULL
        WHERE d.delivered_at IS NULL AND d.abandoned_at IS NULL AND d.available_at <= $1
          AND (NOT s.in_order OR NOT EXISTS (
              SELECT 1 FROM notification_deliveries e
              WHERE e.sink_id = d.sink_id AND e.delivered_at IS NULL AND e.abandoned_at IS NULL
                AND (e.chain_seq, e.id) < (d.chain_seq, d.id)))
        ORDER BY d.available_at, d.chain_seq, d.id LIMIT $2");
    TAKE = "UPDATE notification_deliveries SET attempts = attempts + 1, available_at = $3
        WHERE id = $1 AND attempts = $2 AND available_at <= $4
          AND delivered_at IS NULL AND abandoned_at IS NULL";
    SETTLE = "UPDATE notification_deliveries SET delivered_at = $3, abandoned_at = $4,
            available_at = $5, response_status = $6, last_error = $7
        WHERE id = $1 AND attempts = $2 AND delivered_at IS NULL AND abandoned_at IS NULL";
    SUCCEEDED = "UPDATE notification_sinks SET consecutive_failures = 0, last_success_at = $2,
            last_error = NULL WHERE id = $1";
    FAILED = "UPDATE notification_sinks SET consecutive_failures = consecutive_failures + 1,
            last_failure_at = $2, last_error = $3 WHERE id = $1";
    DELIVERIES = concat!("SELECT ", delivery!(), " FROM notification_deliveries
        WHERE zone_id = $1 AND sink_id = $2 AND (created_at, id) < ($3, $4)
          AND (CAST($5 AS TEXT) IS NULL
            OR ($5 = 'delivered' AND delivered_at IS NOT NULL)
            OR ($5 = 'abandoned' AND abandoned_at IS NOT NULL)
            OR ($5 = 'pending' AND delivered_at IS NULL AND abandoned_at IS NULL))
        ORDER BY created_at DESC, id DESC LIMIT $6");
    DELIVERY = concat!("SELECT ", delivery!(), " FROM notification_deliveries
        WHERE zone_id = $1 AND sink_id = $2 AND id = $3");
    OF_EVENT = concat!("SELECT ", delivery!(), " FROM notification_deliveries
        WHERE zone_id = $1 AND sink_id = $2 AND event_id = $3");
    AGAIN = "UPDATE notification_deliveries SET attempts = 0, available_at = $4,
            delivered_at = NULL, abandoned_at = NULL, last_error = NULL, response_status = NULL
        WHERE zone_id = $1 AND sink_id = $2 AND id = $3";
    PRUNE = "DELETE FROM notification_deliveries WHERE id IN (
            SELECT id FROM notification_deliveries
            WHERE delivered_at <= $1 OR abandoned_at <= $1 LIMIT $2)";
    OPEN = "SELECT COUNT(*) AS open FROM notification_deliveries
        WHERE delivered_at IS NULL AND abandoned_at IS NULL";
} }

/// A webhook that is told of events of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sink {
    /// Its id.
    pub id: String,
    /// Its zone.
    pub zone: ZoneId,
    /// For people.
    pub name: String,
    /// Where it listens.
    pub url: String,
    /// What it is told of.
    pub event_types: Vec<String>,
    /// Whether it is told.
    pub active: bool,
    /// Whether a delivery that fails holds up those after it.
    pub in_order: bool,
    /// Signs what it is told; sealed.
    pub secret: Vec<u8>,
    /// Place in the ledger up to which events were looked at.
    pub cursor_seq: u64,
    /// Failures since the last success.
    pub consecutive_failures: u64,
    /// When it last took something.
    pub last_success_at: Option<Timestamp>,
    /// When it last did not.
    pub last_failure_at: Option<Timestamp>,
    /// Why not.
    pub last_error: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
}

impl Sink {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.string("id")?,
            zone: ZoneId::trusted(row.text("zone_id")?),
            name: row.string("name")?,
            url: row.string("url")?,
            event_types: row.json("event_types")?,
            active: row.bool("active")?,
            in_order: row.bool("in_order")?,
            secret: row.bytes("secret")?.to_vec(),
            cursor_seq: row.count("cursor_seq")?,
            consecutive_failures: row.count("consecutive_failures")?,
            last_success_at: row.opt_time("last_success_at")?,
            last_failure_at: row.opt_time("last_failure_at")?,
            last_error: row.opt_string("last_error")?,
            created_at: row.time("created_at")?,
            updated_at: row.time("updated_at")?,
        })
    }

    fn types(&self) -> String {
        // Text always serializes.
        serde_json::to_string(&self.event_types).unwrap_or_default()
    }
}

/// One event on its way to one sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its id.
    pub id: String,
    /// The zone.
    pub zone: ZoneId,
    /// The sink.
    pub sink_id: String,
    /// Place of the event in the ledger.
    pub chain_seq: u64,
    /// The event.
    pub event_id: String,
    /// Its type.
    pub event_type: String,
    /// What is sent.
    pub body: String,
    /// How often it was tried, this time included.
    pub attempts: u32,
    /// When it is tried next.
    pub available_at: Timestamp,
    /// When the sink took it.
    pub delivered_at: Option<Timestamp>,
    /// When it was given up.
    pub abandoned_at: Option<Timestamp>,
    /// The last answer of the sink.
    pub response_status: Option<i64>,
    /// What was wrong last.
    pub last_error: Option<String>,
    /// When the event was seen.
    pub created_at: Timestamp,
}

impl Delivery {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.string("id")?,
            zone: ZoneId::trusted(row.text("zone_id")?),
            sink_id: row.string("sink_id")?,
            chain_seq: row.count("chain_seq")?,
            event_id: row.string("event_id")?,
            event_type: row.string("event_type")?,
            body: row.string("body")?,
            attempts: u32::try_from(row.int("attempts")?).unwrap_or(u32::MAX),
            available_at: row.time("available_at")?,
            delivered_at: row.opt_time("delivered_at")?,
            abandoned_at: row.opt_time("abandoned_at")?,
            response_status: row.opt_int("response_status")?,
            last_error: row.opt_string("last_error")?,
            created_at: row.time("created_at")?,
        })
    }

    fn params(&self) -> Vec<Param<'_>> {
        params![
            &self.id,
            &self.zone,
            &self.sink_id,
            place(self.chain_seq),
            &self.event_id,
            &self.event_type,
            &self.body,
            self.created_at,
        ]
        .to_vec()
    }
}

fn place(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The sink took it.
    Delivered,
    /// It did not; tried again then.
    Later(Timestamp),
    /// It did not, once too often.
    Abandoned,
}

/// The sinks of one zone.
#[derive(Clone, Copy, Debug)]
pub struct Sinks<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The notification sinks of this zone.
    pub fn sinks(self) -> Sinks<'s> {
        Sinks(self)
    }
}

impl Sinks<'_> {
    /// One sink.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, id: &str) -> Result<Option<Sink>, StoreError> {
        let row = self
            .0
            .query_opt(&sql::GET, &params![self.0.id(), id])
            .await?;
        row.as_ref().map(Sink::read).transpose()
    }

    /// A page, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(&self, slice: Slice<'_>) -> Result<Vec<Sink>, StoreError> {
        let params = params![self.0.id(), slice.before, slice.before_id, slice.limit];
        let rows = self.0.query(&sql::PAGE, &params).await?;
        rows.iter().map(Sink::read).collect()
    }

    /// A page of deliveries to a sink, newest first; `status` is `pending`, `delivered` or
    /// `abandoned`.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn deliveries(
        &self,
        sink: &str,
        status: Option<&str>,
        slice: Slice<'_>,
    ) -> Result<Vec<Delivery>, StoreError> {
        let params = params![
            self.0.id(),
            sink,
            slice.before,
            slice.before_id,
            status,
            slice.limit
        ];
        let rows = self.0.query(&sql::DELIVERIES, &params).await?;
        rows.iter().map(Delivery::read).collect()
    }
}
