//! Governed Sessions (spec: coordinator §6).
//!
//! **Forces.** Two requests may race for the last free place, a parent may end while a child is
//! being started, and a lease may lapse while its holder renews it. A lock for the whole zone would
//! settle all of that and queue everything behind everything.
//!
//! **Choice.** Every step is a conditional UPDATE of the rows that it is about, and whoever updates
//! nothing looks again to learn why. Rows are locked from parents to children, then edges, then the
//! counters (application before zone), the counters as late as possible.
//!
//! **Consequence.** What depends on a parent is read after its row was locked, in a later statement:
//! Postgres takes a new snapshot per statement, so what was committed before the lock is seen.

pub mod end;
mod row;
pub mod standing;
#[cfg(test)]
mod tests;

pub use self::row::{
    Counts, Due, Lifecycle, NewSession, Quotas, SessionFilter, SessionRow, SessionStatus, Start,
    subject_type_text,
};

use caracal_model::{
    ApplicationId, Change, Outgoing, SessionId, SubjectType, Timestamp, Topic, ZoneId,
};

use crate::error::StoreError;
use crate::{Param, Store, Tx, ZoneScope, ZoneTx, params, statements};

macro_rules! columns {
    () => {
        "id, application_id, parent_id, subject_record_id, subject_type, lifecycle, labels, \
         metadata_json, status, depth, live_children, ttl_seconds, started_at, ends_at, \
         last_active_at, last_heartbeat_at, heartbeat_deadline_at, lease_generation, \
         terminated_at, termination_reason, updated_at"
    };
}

macro_rules! page {
    ($of:literal, $label:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM sessions s WHERE zone_id = $1 AND ",
            $of,
            " AND (CAST($3 AS TEXT) IS NULL OR id < $3)
              AND (CAST($4 AS TEXT) IS NULL OR status = $4)
              AND (CAST($5 AS TEXT) IS NULL OR lifecycle = $5)
              AND (CAST($6 AS TEXT) IS NULL OR application_id = $6)
              AND (CAST($7 AS TEXT) IS NULL OR EXISTS (SELECT 1 FROM ",
            $label,
            "))
              AND (CAST($8 AS TEXT) IS NULL OR application_id = $8
                   OR EXISTS (SELECT 1 FROM sessions p
                              WHERE p.id = s.parent_id AND p.application_id = $8))
            ORDER BY id DESC LIMIT $9"
        )
    };
}

statements! { pub(crate) mod sql {
    GET = concat!("SELECT ", columns!(), " FROM sessions WHERE zone_id = $1 AND id = $2");
    PAGE = pg: page!("CAST($2 AS TEXT) IS NULL",
                     "json_array_elements_text(CAST(s.labels AS json)) l WHERE l = $7"),
           lite: page!("CAST($2 AS TEXT) IS NULL", "json_each(s.labels) l WHERE l.value = $7");
    CHILDREN = pg: page!("parent_id = $2",
                         "json_array_elements_text(CAST(s.labels AS json)) l WHERE l = $7"),
               lite: page!("parent_id = $2", "json_each(s.labels) l WHERE l.value = $7");
    COUNTS = "SELECT holder, live FROM session_counts WHERE zone_id = $1 AND holder IN ('zone', $2)";
    ENSURE_COUNTS = "INSERT INTO session_counts (zone_id, holder, live)
        VALUES ($1, 'zone', 0), ($1, $2, 0) ON CONFLICT DO NOTHING";
    /// Divides by zero unless there is a place in both.
    TAKE_PLACES =
        pg: "WITH held AS (SELECT holder FROM session_counts
                           WHERE zone_id = $1 AND holder IN ('zone', $2)
                           ORDER BY holder = 'zone', holder FOR UPDATE)
             , taken AS (UPDATE session_counts c SET live = c.live + 1 FROM held
                 WHERE c.zone_id = $1 AND c.holder = held.holder
                   AND c.live < CASE c.holder WHEN 'zone' THEN CAST($3 AS BIGINT)
                                              ELSE CAST($4 AS BIGINT) END
                 RETURNING c.holder)
             SELECT 1 / (COUNT(*) / 2) FROM taken",
        lite: "UPDATE session_counts SET live = live + 1
               WHERE zone_id = $1 AND holder IN ('zone', $2)
                 AND live < CASE holder WHEN 'zone' THEN $3 ELSE $4 END";
    ADMIT_CHILD = "UPDATE sessions SET live_children = live_children + 1
        WHERE zone_id = $1 AND id = $2 AND status = 'active' AND live_children < $3 AND depth < $4
          AND CASE lifecycle WHEN 'task' THEN ends_at ELSE heartbeat_deadline_at END > $5";
    INSERT = "INSERT INTO sessions (id, zone_id, application_id, parent_id, subject_record_id,
            subject_type, lifecycle, labels, metadata_json, status, depth, live_children,
            ttl_seconds, started_at, ends_at, last_active_at, last_heartbeat_at,
            heartbeat_deadline_at, lease_generation, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'active', $10, 0, $11, $12, $13, $12, $14, $15,
            $16, $12)";
    HOLD =
        pg: concat!("SELECT ", columns!(), " FROM sessions WHERE zone_id = $1 AND id = $2 FOR SHARE"),
        lite: concat!("SELECT ", columns!(), " FROM sessions WHERE zone_id = $1 AND id = $2");
    HOLD_ALONE =
        pg: concat!("SELECT ", columns!(),
            " FROM sessions WHERE zone_id = $1 AND id = $2 FOR NO KEY UPDATE"),
        lite: concat!("SELECT ", columns!(), " FROM sessions WHERE zone_id = $1 AND id = $2");
    HOLD_RECORD =
        pg: "SELECT id FROM authority_records WHERE zone_id = $1 AND id = $2
               AND status = 'active' AND expires_at > $3 FOR SHARE",
        lite: "SELECT id FROM authority_records WHERE zone_id = $1 AND id = $2
               AND status = 'active' AND expires_at > $3";
    RENEW = "UPDATE sessions SET last_heartbeat_at = $4, last_active_at = $4, updated_at = $4,
            heartbeat_deadline_at = $5
        WHERE zone_id = $1 AND id = $2 AND lifecycle = 'service' AND lease_generation = $3
          AND (status = 'suspended' OR (status = 'active' AND heartbeat_deadline_at > $4))
        RETURNING status";
    TAKE_LEASE = "UPDATE sessions SET lease_generation = lease_generation + 1,
            heartbeat_deadline_at = $4, last_active_at = $3, updated_at = $3
        WHERE zone_id = $1 AND id = $2 AND lifecycle = 'service' AND status = 'active'
          AND heartbeat_deadline_at > $3
        RETURNING lease_generation";
    OVERDUE_TASKS = "SELECT zone_id, id, parent_id FROM sessions
        WHERE status IN ('active', 'suspended') AND ends_at <= $1
          AND (CAST($2 AS TEXT) IS NULL OR zone_id = $2)
        ORDER BY ends_at LIMIT $3";
    LAPSED_SERVICES = "SELECT zone_id, id, parent_id FROM sessions
        WHERE status = 'active' AND heartbeat_deadline_at <= $1
        ORDER BY heartbeat_deadline_at LIMIT $2";
    DELETE_ENDED = "DELETE FROM sessions WHERE id IN (
            SELECT s.id FROM sessions s WHERE s.terminated_at < $1
              AND NOT EXISTS (SELECT 1 FROM sessions c WHERE c.parent_id = s.id)
              AND NOT EXISTS (SELECT 1 FROM delegations d WHERE d.source_session_id = s.id)
              AND NOT EXISTS (SELECT 1 FROM delegations d WHERE d.target_session_id = s.id)
            ORDER BY s.terminated_at LIMIT $2)";
} }

/// Reads the Sessions of one zone.
#[derive(Clone, Copy, Debug)]
pub struct Sessions<'s> {
    zone: ZoneScope<'s>,
}

impl<'s> ZoneScope<'s> {
    /// The Sessions of this zone.
    pub const fn sessions(self) -> Sessions<'s> {
        Sessions { zone: self }
    }
}

impl Store {
    /// Tasks of any zone (or of this one) past their time, the most overdue first.
    pub async fn overdue_tasks(
        &self,
        zone: Option<&ZoneId>,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Due>, StoreError> {
        let rows = self
            .query(&sql::OVERDUE_TASKS, &params![now, zone, limit])
            .await?;
        rows.iter().map(Due::read).collect()
    }

    /// Active services of any zone whose lease has lapsed, the most overdue first.
    pub async fn lapsed_services(
        &self,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Due>, StoreError> {
        let rows = self
            .query(&sql::LAPSED_SERVICES, &params![now, limit])
            .await?;
        rows.iter().map(Due::read).collect()
    }
}

impl Sessions<'_> {
    /// One Session.
    pub async fn get(&self, id: &SessionId) -> Result<Option<SessionRow>, StoreError> {
        let row = self
            .zone
            .query_opt(&sql::GET, &params![self.zone.id(), id])
            .await?;
        row.as_ref().map(SessionRow::read).transpose()
    }

    /// The newest Sessions older than `before`, of the zone or of one parent.
    pub async fn page(
        &self,
        parent: Option<&SessionId>,
        filter: &SessionFilter<'_>,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<SessionRow>, StoreError> {
        let statement = if parent.is_some() {
            &sql::CHILDREN
        } else {
            &sql::PAGE
        };
        let params = params![
            self.zone.id(),
            parent,
            before,
            filter.status,
            filter.lifecycle,
            filter.application,
            filter.label,
            filter.visible_to,
            limit
        ];
        let rows = self.zone.query(statement, &params).await?;
        rows.iter().map(SessionRow::read).collect()
    }

    /// How many live Sessions the zone and this application have.
    pub async fn counts(&self, application: &ApplicationId) -> Result<Counts, StoreError> {
        let rows = self
            .zone
            .query(&sql::COUNTS, &params![self.zone.id(), application])
            .await?;
        let mut counts = Counts::default();
        for row in &rows {
            let live = Some(row.int("live")?);
            if row.text("holder")? == "zone" {
                counts.zone = live;
            } else {
                counts.application = live;
            }
        }
        Ok(counts)
    }
}

/// Changes the Sessions of one zone, within a transaction.
#[derive(Debug)]
pub struct SessionsTx<'t> {
    at: ZoneTx<'t>,
    zone: &'t ZoneId,
}

impl<'t> ZoneTx<'t> {
    /// The Sessions of this zone.
    pub fn sessions(self) -> SessionsTx<'t> {
        let zone = self.id();
        SessionsTx { at: self, zone }
    }
}

impl Tx {
    /// Deletes childless Sessions that ended before `before`; answers how many.
    pub async fn delete_ended_sessions(
        &mut self,
        before: Timestamp,
        limit: u32,
    ) -> Result<u64, StoreError> {
        self.execute(&sql::DELETE_ENDED, &params![before, limit])
            .await
    }
}

impl SessionsTx<'_> {
    /// One Session, as this transaction sees it.
    pub async fn get(&mut self, id: &SessionId) -> Result<Option<SessionRow>, StoreError> {
        let row = self
            .at
            .tx()
            .query_opt(&sql::GET, &params![self.zone, id])
            .await?;
        row.as_ref().map(SessionRow::read).transpose()
    }

    /// Takes a place under the parent and keeps the parent from ending before this commits.
    pub async fn admit_child(
        &mut self,
        parent: &SessionId,
        quotas: &Quotas,
        now: Timestamp,
    ) -> Result<Start, StoreError> {
        let params = params![self.zone, parent, quotas.children, quotas.depth, now];
        let admitted = self.at.tx().execute(&sql::ADMIT_CHILD, &params).await?;
        Ok(if admitted == 1 {
            Start::Done
        } else {
            Start::Raced
        })
    }

    /// Writes the row, takes a place in both quotas and announces the start. The caller has
    /// admitted a child to its parent before. Places are taken with the commit, which says
    /// [`StoreError::Overtaken`] when there is none.
    pub async fn start(
        &mut self,
        new: &NewSession,
        quotas: &Quotas,
        seen: Counts,
    ) -> Result<Start, StoreError> {
        if new.subject_type == SubjectType::User {
            // A record that is being revoked with its last Session must not gain another one.
            let params = params![self.zone, &new.subject_record_id, new.started_at];
            if self
                .at
                .tx()
                .query_opt(&sql::HOLD_RECORD, &params)
                .await?
                .is_none()
            {
                return Ok(Start::Raced);
            }
        }
        self.insert(new).await?;
        let (zone, application) = (self.zone.to_string(), new.application_id.to_string());
        if seen.zone.is_none() || seen.application.is_none() {
            let params = params![zone.clone(), application.clone()].into();
            self.at.tx().contend(&sql::ENSURE_COUNTS, params, None);
        }
        let params = params![zone, application, quotas.zone, quotas.application].into();
        self.at.tx().contend(&sql::TAKE_PLACES, params, Some(2));
        self.at.tx().announce(lifecycle_event(
            self.zone,
            &new.id,
            new.parent_id.as_ref(),
            "spawn",
            [("application_id", Some(new.application_id.to_string()))],
            None,
        ));
        self.at
            .tx()
            .change(&Change::Session(self.zone.clone(), new.id.clone()));
        Ok(Start::Done)
    }

    async fn insert(&mut self, new: &NewSession) -> Result<(), StoreError> {
        let labels = serde_json::to_string(&new.labels)
            .map_err(|error| StoreError::corrupt(format!("labels: {error}")))?;
        let is_service = new.lifecycle == Lifecycle::Service;
        let parent = new.parent_id.as_ref();
        let params = params![
            new.id.to_string(),
            self.zone.to_string(),
            new.application_id.to_string(),
            parent.map_or(Param::OptText(None), |id| Param::Owned(id.to_string())),
            new.subject_record_id.to_string(),
            subject_type_text(new.subject_type),
            new.lifecycle.as_str(),
            labels,
            new.metadata_json.clone(),
            new.depth,
            new.ttl_seconds,
            new.started_at,
            new.ends_at,
            is_service.then_some(new.started_at),
            new.heartbeat_deadline_at,
            i64::from(is_service)
        ];
        if parent.is_none() {
            // Nothing of this transaction refers to a root, so that it needs no visit of its own.
            self.at.tx().contend(&sql::INSERT, params.into(), None);
        } else {
            self.at.tx().execute(&sql::INSERT, &params).await?;
        }
        Ok(())
    }

    /// Renews the lease of this generation; `None` when it is fenced, lapsed, over or no service.
    pub async fn renew(
        &mut self,
        id: &SessionId,
        generation: i64,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<SessionStatus>, StoreError> {
        let params = params![self.zone, id, generation, now, until];
        let Some(row) = self.at.tx().query_opt(&sql::RENEW, &params).await? else {
            return Ok(None);
        };
        self.at
            .tx()
            .change(&Change::Session(self.zone.clone(), id.clone()));
        SessionStatus::parse(row.text("status")?).map(Some)
    }

    /// Hands the lease to a new holder; answers the new generation, or `None` as in
    /// [`Self::renew`].
    pub async fn take_lease(
        &mut self,
        id: &SessionId,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<i64>, StoreError> {
        let params = params![self.zone, id, now, until];
        let Some(row) = self.at.tx().query_opt(&sql::TAKE_LEASE, &params).await? else {
            return Ok(None);
        };
        self.at
            .tx()
            .change(&Change::Session(self.zone.clone(), id.clone()));
        row.int("lease_generation").map(Some)
    }
}

/// An entry of `caracal.agents.lifecycle` (spec: coordinator §11). `at` distinguishes what may
/// happen to one Session more than once.
fn lifecycle_event<'a>(
    zone: &ZoneId,
    id: &SessionId,
    parent: Option<&SessionId>,
    event: &'a str,
    more: impl IntoIterator<Item = (&'a str, Option<String>)>,
    at: Option<Timestamp>,
) -> Outgoing {
    let dedupe = match at {
        Some(at) => format!("{event}:{id}:{}", at.iso_millis()),
        None => format!("{event}:{id}"),
    };
    let fields = [
        ("dedupe_key", Some(dedupe)),
        ("event", Some(event.to_owned())),
        ("agent_session_id", Some(id.to_string())),
        ("parent_id", parent.map(ToString::to_string)),
    ];
    Outgoing::new(Topic::AgentsLifecycle, zone, fields.into_iter().chain(more))
}
