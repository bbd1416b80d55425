//! The outbox: news that was committed with its change and is not yet on its topic.
//!
//! **Order.** Urgent entries (revocations) first, then by id: ids of one process sort as they were
//! made. **Delivery** is at least once: an entry counts as sent when that has been recorded. In
//! Postgres a claim is a short lease, so replicas do not send the same entries; SQLite has one
//! process and one relay, and a claim is a plain read. **Dead** is an entry that has failed so
//! often that only a person should send it again.

use std::collections::BTreeMap;
use std::time::Duration;

use caracal_model::change::Fields;
use caracal_model::{Ids, Outgoing, Timestamp, Topic, ZoneId};

use crate::error::StoreError;
use crate::origin;
use crate::param::Param;
use crate::row::Row;
use crate::store::{Engine, Store};
use crate::{params, statements};

statements! { pub(crate) mod sql {
    /// Due at once, whatever the clock says: one that is stepped back between a commit and the
    /// relay must not hold a revocation up for as long as the step was.
    INSERT = pg: "INSERT INTO outbox
                      (id, topic, zone_id, urgent, fields_json, created_at, attempts, available_at)
                  SELECT id, topic, zone_id, urgent, fields_json, created_at, 0, 0
                  FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::text[],
                              $6::bigint[])
                       AS entry (id, topic, zone_id, urgent, fields_json, created_at)",
             lite: "INSERT INTO outbox
                        (id, topic, zone_id, urgent, fields_json, created_at, attempts,
                         available_at)
                    VALUES ($1, $2, $3, $4, $5, $6, 0, 0)";
    /// Postgres leases until `$3`; SQLite only names it, for the same list of parameters. What is due
    /// later than `$4` was leased or put off by a clock that was ahead then: nobody waits for that
    /// long, unless it is dead (`$5`).
    CLAIM = pg: "UPDATE outbox SET available_at = $3
                 WHERE id IN (
                     SELECT id FROM outbox
                     WHERE dispatched_at IS NULL
                       AND (available_at <= $1 OR (available_at > $4 AND available_at < $5))
                     ORDER BY urgent DESC, id
                     LIMIT $2
                     FOR UPDATE SKIP LOCKED)
                 RETURNING id, topic, zone_id, urgent, fields_json, created_at, attempts,
                     available_at, last_error, dispatched_at",
            lite: "SELECT id, topic, zone_id, urgent, fields_json, created_at, attempts,
                       available_at, last_error, dispatched_at
                   FROM outbox
                   WHERE dispatched_at IS NULL AND $3 = $3
                     AND (available_at <= $1 OR (available_at > $4 AND available_at < $5))
                   ORDER BY urgent DESC, id
                   LIMIT $2";
    DISPATCHED = pg: "UPDATE outbox SET dispatched_at = $2, last_error = NULL WHERE id = ANY($1)",
                 lite: "UPDATE outbox SET dispatched_at = $2, last_error = NULL
                        WHERE id IN (SELECT value FROM json_each($1))";
    FAILED = pg: "UPDATE outbox SET attempts = attempts + 1, last_error = $2,
                      available_at = CASE WHEN attempts + 1 >= $4 THEN CAST($5 AS BIGINT)
                                      ELSE CAST($3 AS BIGINT) END
                  WHERE id = ANY($1) AND dispatched_at IS NULL",
             lite: "UPDATE outbox SET attempts = attempts + 1, last_error = $2,
                        available_at = CASE WHEN attempts + 1 >= $4 THEN CAST($5 AS BIGINT)
                                      ELSE CAST($3 AS BIGINT) END
                    WHERE id IN (SELECT value FROM json_each($1)) AND dispatched_at IS NULL";
    REQUEUE = "UPDATE outbox SET attempts = 0, available_at = $2
               WHERE id = $1 AND zone_id = $4 AND dispatched_at IS NULL AND available_at = $3";
    /// `$2` is when those are due that are wanted: never, or any other time.
    WAITING = "SELECT id, topic, zone_id, urgent, fields_json, created_at, attempts, available_at,
                   last_error, dispatched_at
               FROM outbox
               WHERE zone_id = $1 AND dispatched_at IS NULL AND id > $4
                 AND (available_at = $2) = $3
               ORDER BY id LIMIT $5";
    REVIVE = "UPDATE outbox SET dispatched_at = NULL, available_at = 0
              WHERE topic = $1 AND dispatched_at > $2 AND created_at < $3";
    PRUNE = "DELETE FROM outbox WHERE id IN (
                 SELECT id FROM outbox WHERE dispatched_at < $1 ORDER BY dispatched_at LIMIT $2)";
    COUNTS = "SELECT COUNT(CASE WHEN available_at < $1 THEN 1 END) AS pending,
                  COUNT(CASE WHEN available_at = $1 THEN 1 END) AS dead,
                  MIN(CASE WHEN available_at < $1 THEN created_at END) AS oldest_pending,
                  MIN(CASE WHEN available_at = $1 THEN created_at END) AS oldest_dead
              FROM outbox WHERE dispatched_at IS NULL";
    /// Counted up to a bound: who looks at metrics must not make the store read millions of rows.
    PUBLISHED = "SELECT COUNT(*) AS published FROM
                     (SELECT 1 AS one FROM outbox WHERE dispatched_at IS NOT NULL LIMIT 1000000)
                         AS sent";
    LATEST = "SELECT id, topic, zone_id, urgent, fields_json, created_at, attempts, available_at,
                  last_error, dispatched_at
              FROM outbox WHERE zone_id = $1 AND topic = $2 ORDER BY id DESC LIMIT 1";
} }

/// Beside the fields of an entry, the request that it is of. It stays here: it is not published.
const REQUEST: &str = "~request_id";
/// Further ahead than anything is put off.
const FURTHEST: Duration = Duration::from_secs(300);
/// When a dead entry is due.
const NEVER: i64 = i64::MAX;

/// The rows of these entries, in their order.
pub(crate) fn rows<'o>(outgoing: &'o [Outgoing], ids: &Ids, now: Timestamp) -> Vec<Vec<Param<'o>>> {
    let request = origin::request();
    outgoing
        .iter()
        .map(|entry| {
            let mut fields: BTreeMap<&str, &str> = entry
                .fields
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            fields.extend(request.as_deref().map(|request| (REQUEST, request)));
            vec![
                Param::Owned(ids.uuid()),
                Param::Text(entry.topic.name()),
                Param::Text(entry.zone.as_str()),
                Param::Bool(entry.topic.is_urgent()),
                // A map of text to text always serializes.
                Param::Owned(serde_json::to_string(&fields).unwrap_or_default()),
                Param::from(now),
            ]
        })
        .collect()
}

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// To be sent, now or later.
    Pending,
    /// Sent.
    Dispatched,
    /// Failed too often.
    Dead,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id: `outbox_id` on the wire, by which consumers tell repetitions.
    pub id: String,
    /// Name of its topic; a newer release may have written one that this one does not know.
    pub topic: String,
    /// The zone that it is about.
    pub zone: ZoneId,
    /// Whether it overtakes.
    pub urgent: bool,
    /// What it says.
    pub fields: Fields,
    /// The request that it is of, if any.
    pub request_id: Option<String>,
    /// When it was committed, roughly.
    pub created_at: Timestamp,
    /// How often it has failed.
    pub attempts: u64,
    /// Why it failed last.
    pub last_error: Option<String>,
    /// When it was sent.
    pub dispatched_at: Option<Timestamp>,
    /// Where it stands.
    pub standing: Standing,
}

impl Entry {
    fn read(row: &Row) -> Result<Self, StoreError> {
        let dispatched_at = row.opt_time("dispatched_at")?;
        let standing = match dispatched_at {
            Some(_) => Standing::Dispatched,
            None if row.int("available_at")? == NEVER => Standing::Dead,
            None => Standing::Pending,
        };
        let mut fields: Fields = row.json("fields_json")?;
        Ok(Self {
            id: row.string("id")?,
            topic: row.string("topic")?,
            zone: ZoneId::trusted(row.text("zone_id")?),
            urgent: row.bool("urgent")?,
            request_id: fields.remove(REQUEST),
            fields,
            created_at: row.time("created_at")?,
            attempts: row.count("attempts")?,
            last_error: row.opt_string("last_error")?,
            dispatched_at,
            standing,
        })
    }
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxCounts {
    /// Entries to be sent.
    pub pending: u64,
    /// Entries that failed too often.
    pub dead: u64,
    /// Age of the oldest entry to be sent.
    pub oldest_pending: Option<Duration>,
    /// Age of the oldest dead entry.
    pub oldest_dead: Option<Duration>,
}

/// What the relay does with the outbox.
#[derive(Clone, Copy, Debug)]
pub struct Outbox<'s> {
    store: &'s Store,
}

impl Store {
    /// The outbox of every zone: for the relay, which serves them all.
    pub fn outbox(&self) -> Outbox<'_> {
        Outbox { store: self }
    }
}

impl Outbox<'_> {
    /// At most `limit` entries that are due, urgent ones first. In Postgres nobody else gets them
    /// for the length of `lease`.
    pub async fn claim(&self, limit: u32, lease: Duration) -> Result<Vec<Entry>, StoreError> {
        let now = self.store.clock().now();
        let params = params![now, limit, now.plus(lease), now.plus(FURTHEST), NEVER];
        let rows = match self.store.engine() {
            Engine::Lite(_) => self.store.query(&sql::CLAIM, &params).await?,
            Engine::Pg(_) => {
                let mut tx = self.store.begin("claiming outbox entries").await?;
                let rows = tx.query(&sql::CLAIM, &params).await?;
                tx.commit().await?;
                rows
            }
        };
        let mut entries = rows
            .iter()
            .map(Entry::read)
            .collect::<Result<Vec<_>, _>>()?;
        // RETURNING promises no order.
        entries.sort_by(|a, b| b.urgent.cmp(&a.urgent).then_with(|| a.id.cmp(&b.id)));
        Ok(entries)
    }

    /// Records that these are on their topics.
    pub async fn dispatched(&self, ids: &[&str]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let now = self.store.clock().now();
        self.write(
            "recording sent outbox entries",
            &sql::DISPATCHED,
            &[Param::Texts(ids.to_vec()), Param::from(now)],
        )
        .await
        .map(drop)
    }

    /// Records that sending these failed: they are due again after `retry_in`, or never once they
    /// have failed `max_attempts` times.
    pub async fn failed(
        &self,
        ids: &[&str],
        why: &str,
        retry_in: Duration,
        max_attempts: u32,
    ) -> Result<(), StoreError> {
        let retry_at = self.store.clock().now().plus(retry_in);
        let why = why.replace('\0', "");
        self.write(
            "recording failed outbox entries",
            &sql::FAILED,
            &[
                Param::Texts(ids.to_vec()),
                Param::Text(&why),
                Param::from(retry_at),
                Param::from(max_attempts),
                Param::Int(NEVER),
            ],
        )
        .await
        .map(drop)
    }

    /// Entries of this zone that are dead or pending, as `standing` says, by id from after this one.
    pub async fn waiting(
        &self,
        zone: &ZoneId,
        standing: Standing,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Entry>, StoreError> {
        let dead = standing == Standing::Dead;
        let params = params![zone, NEVER, dead, after.unwrap_or_default(), limit];
        let rows = self.store.query(&sql::WAITING, &params).await?;
        rows.iter().map(Entry::read).collect()
    }

    /// Makes a dead entry of this zone due again; `false` when there is none of this id.
    pub async fn requeue(&self, zone: &ZoneId, id: &str) -> Result<bool, StoreError> {
        let now = self.store.clock().now();
        let params = params![id, now, NEVER, zone];
        let changed = self
            .write("requeueing an outbox entry", &sql::REQUEUE, &params)
            .await?;
        if changed > 0 {
            self.store.outbox_wake().notify_one();
        }
        Ok(changed > 0)
    }

    /// Has everything of these topics sent again that was committed before `until` and sent after
    /// `since`; answers with how many.
    pub async fn revive(
        &self,
        topics: &[Topic],
        since: Timestamp,
        until: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut tx = self.store.begin("sending outbox entries again").await?;
        let mut revived = 0;
        for topic in topics {
            let params = params![topic.name(), since, until];
            revived += tx.execute(&sql::REVIVE, &params).await?;
        }
        tx.commit().await?;
        if revived > 0 {
            self.store.outbox_wake().notify_one();
        }
        Ok(revived)
    }

    /// Removes at most `limit` entries that were sent before `before`; answers with how many.
    pub async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        self.write("pruning the outbox", &sql::PRUNE, &params![before, limit])
            .await
    }

    /// How much waits, and for how long.
    pub async fn counts(&self) -> Result<OutboxCounts, StoreError> {
        let now = self.store.clock().now();
        let Some(row) = self.store.query_opt(&sql::COUNTS, &params![NEVER]).await? else {
            return Ok(OutboxCounts::default());
        };
        let age = |column| Ok::<_, StoreError>(row.opt_time(column)?.map(|at| now.since(at)));
        Ok(OutboxCounts {
            pending: row.count("pending")?,
            dead: row.count("dead")?,
            oldest_pending: age("oldest_pending")?,
            oldest_dead: age("oldest_dead")?,
        })
    }

    /// How many entries were sent and are still kept; a million stands for more.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn published(&self) -> Result<u64, StoreError> {
        let row = self.store.query_opt(&sql::PUBLISHED, &[]).await?;
        row.map_or(Ok(0), |row| row.count("published"))
    }

    /// The newest entry of a zone for a topic, while it has not been pruned.
    pub async fn latest(&self, zone: &ZoneId, topic: Topic) -> Result<Option<Entry>, StoreError> {
        let row = self
            .store
            .query_opt(&sql::LATEST, &params![zone, topic.name()])
            .await?;
        row.as_ref().map(Entry::read).transpose()
    }

    async fn write(
        &self,
        doing: &'static str,
        sql: &crate::Sql,
        params: &[Param<'_>],
    ) -> Result<u64, StoreError> {
        let mut tx = self.store.begin(doing).await?;
        let changed = tx.execute(sql, params).await?;
        tx.commit().await?;
        Ok(changed)
    }
}
