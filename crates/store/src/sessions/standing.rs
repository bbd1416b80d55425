//! Suspending and resuming a Session together with what hangs below it (spec: coordinator §6.5).
//! Both are reversible, so nothing is revoked: no entry on the revocation stream, no new epoch.

use caracal_model::{Change, SessionId, Timestamp};

use super::{SessionsTx, lifecycle_event};
use crate::error::StoreError;
use crate::sql::Sql;
use crate::{Row, params, statements};

macro_rules! children {
    ($do:literal, $found:literal) => {
        concat!(
            $do,
            " AND parent_id ",
            $found,
            " RETURNING id, parent_id, live_children"
        )
    };
}

statements! { pub(crate) mod sql {
    SUSPEND = "UPDATE sessions SET status = 'suspended', updated_at = $3
        WHERE zone_id = $1 AND id = $2 AND status = 'active'
          AND (NOT $4 OR (lifecycle = 'service' AND heartbeat_deadline_at <= $3))
        RETURNING id, parent_id, live_children";
    SUSPEND_CHILDREN =
        pg: children!("UPDATE sessions SET status = 'suspended', updated_at = $3
                       WHERE zone_id = $1 AND status = 'active'", "= ANY($2)"),
        lite: children!("UPDATE sessions SET status = 'suspended', updated_at = $3
                         WHERE +zone_id = $1 AND status = 'active'",
                        "IN (SELECT value FROM json_each($2))");
    RESUME = "UPDATE sessions SET status = 'active', updated_at = $3, heartbeat_deadline_at =
            CASE lifecycle WHEN 'service' THEN $4 ELSE heartbeat_deadline_at END
        WHERE zone_id = $1 AND id = $2 AND status = 'suspended'
        RETURNING id, parent_id, live_children";
    RESUME_CHILDREN =
        pg: children!("UPDATE sessions SET status = 'active', updated_at = $3,
                         heartbeat_deadline_at =
                           CASE lifecycle WHEN 'service' THEN $4 ELSE heartbeat_deadline_at END
                       WHERE zone_id = $1 AND status = 'suspended'", "= ANY($2)"),
        lite: children!("UPDATE sessions SET status = 'active', updated_at = $3,
                           heartbeat_deadline_at =
                             CASE lifecycle WHEN 'service' THEN $4 ELSE heartbeat_deadline_at END
                         WHERE +zone_id = $1 AND status = 'suspended'",
                        "IN (SELECT value FROM json_each($2))");
} }

/// One Session that changed, and whether to look below it.
struct Touched {
    id: SessionId,
    parent: Option<SessionId>,
    has_children: bool,
}

impl Touched {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: SessionId::trusted(row.text("id")?),
            parent: row.opt_text("parent_id")?.map(SessionId::trusted),
            has_children: row.int("live_children")? > 0,
        })
    }
}

impl SessionsTx<'_> {
    /// Suspends an active Session and its contiguous active descendants; answers how many. With
    /// `only_lapsed`, nothing happens unless its lease has lapsed: its holder may just have
    /// renewed it.
    pub async fn suspend(
        &mut self,
        id: &SessionId,
        reason: &str,
        only_lapsed: bool,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        let params = params![self.zone, id, now, only_lapsed];
        let root = self.at.tx().query(&sql::SUSPEND, &params).await?;
        let touched = self
            .descend(root, &sql::SUSPEND_CHILDREN, now, None)
            .await?;
        self.tell(&touched, "suspend", Some(reason), now);
        Ok(touched.len())
    }

    /// Resumes a suspended Session and its contiguous suspended descendants; answers how many.
    /// Services get a lease until `lease`.
    pub async fn resume(
        &mut self,
        id: &SessionId,
        now: Timestamp,
        lease: Timestamp,
    ) -> Result<usize, StoreError> {
        let root = self
            .at
            .tx()
            .query(&sql::RESUME, &params![self.zone, id, now, lease])
            .await?;
        let touched = self
            .descend(root, &sql::RESUME_CHILDREN, now, Some(lease))
            .await?;
        self.tell(&touched, "resume", None, now);
        Ok(touched.len())
    }

    async fn descend(
        &mut self,
        root: Vec<Row>,
        children: &'static Sql,
        now: Timestamp,
        lease: Option<Timestamp>,
    ) -> Result<Vec<Touched>, StoreError> {
        let mut all = Vec::new();
        let mut level = root
            .iter()
            .map(Touched::read)
            .collect::<Result<Vec<_>, _>>()?;
        while !level.is_empty() {
            let parents: Vec<&str> = level
                .iter()
                .filter(|t| t.has_children)
                .map(|t| t.id.as_str())
                .collect();
            let mut rows = Vec::new();
            if !parents.is_empty() {
                let mut params = vec![self.zone.into(), crate::Param::Texts(parents), now.into()];
                params.extend(lease.map(crate::Param::from));
                rows = self.at.tx().query(children, &params).await?;
            }
            let next = rows
                .iter()
                .map(Touched::read)
                .collect::<Result<Vec<_>, _>>()?;
            all.append(&mut level);
            level = next;
        }
        Ok(all)
    }

    fn tell(&mut self, touched: &[Touched], event: &str, reason: Option<&str>, now: Timestamp) {
        for one in touched {
            let more = [("reason", reason.map(str::to_owned))];
            let parent = one.parent.as_ref();
            self.at.tx().announce(lifecycle_event(
                self.zone,
                &one.id,
                parent,
                event,
                more,
                Some(now),
            ));
            self.at
                .tx()
                .change(&Change::Session(self.zone.clone(), one.id.clone()));
        }
    }
}
