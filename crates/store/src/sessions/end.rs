//! Ending Sessions: the one place where authority is taken away (spec: coordinator §6.5, §7.3,
//! §17.5, §17.6). Whoever ends a Session - its owner, an operator, time, a revoked Delegation, a
//! dead user - comes through [`SessionsTx::end`], so that descendants, edges, counters, records,
//! epoch and announcements cannot be forgotten.
//!
//! **Order.** Surviving parents are locked first, then the roots, then each level of children in a
//! statement of its own: a child that was being started while its parent was locked has committed
//! by then and is found, or finds its parent ended. Edges follow, then records, then counters.

use std::collections::{BTreeMap, BTreeSet};

use caracal_model::{
    ApplicationId, Change, DelegationId, Outgoing, RecordId, SessionId, SubjectType, Timestamp,
    Topic,
};

use super::row::subject_type;
use super::{SessionStatus, SessionsTx, lifecycle_event};
use crate::error::StoreError;
use crate::{Param, Row, params, statements};

/// How far a revocation follows Delegations (spec: coordinator §7.3).
pub const MAX_FOLLOWED: usize = 10;

/// Reason of the descendants of a Session that ended.
pub const PARENT_TERMINATED: &str = "parent_terminated";

macro_rules! ended {
    () => {
        " RETURNING id, parent_id, application_id, subject_record_id, subject_type, live_children"
    };
}

statements! { pub(crate) mod sql {
    LOCK_PARENTS =
        pg: "SELECT id FROM sessions WHERE zone_id = $1 AND id = ANY($2)
             ORDER BY depth, id FOR NO KEY UPDATE",
        lite: "SELECT id FROM sessions WHERE id IN (SELECT value FROM json_each($2))
               AND zone_id = $1 LIMIT 0";
    END_ROOT = concat!("UPDATE sessions SET status = $3, terminated_at = $4, updated_at = $4,
            termination_reason = $5
        WHERE zone_id = $1 AND id = $2 AND status IN ('active', 'suspended')
          AND (CAST($6 AS BIGINT) IS NULL OR lease_generation = $6)
          AND (NOT $7 OR ends_at <= $4)", ended!());
    END_CHILDREN =
        pg: concat!("UPDATE sessions SET status = 'terminated', terminated_at = $3,
                updated_at = $3, termination_reason = 'parent_terminated'
            WHERE zone_id = $1 AND parent_id = ANY($2) AND status IN ('active', 'suspended')",
            ended!()),
        lite: concat!("UPDATE sessions SET status = 'terminated', terminated_at = $3,
                updated_at = $3, termination_reason = 'parent_terminated'
            WHERE +zone_id = $1 AND parent_id IN (SELECT value FROM json_each($2))
              AND status IN ('active', 'suspended')",
            ended!());
    FORWARD =
        pg: "SELECT d.target_session_id, t.parent_id FROM delegations d
             JOIN sessions t ON t.id = d.target_session_id
             WHERE d.zone_id = $1 AND d.status = 'active' AND d.source_session_id = ANY($2)
             ORDER BY t.depth, t.id",
        lite: "SELECT d.target_session_id, t.parent_id FROM delegations d
             JOIN sessions t ON t.id = d.target_session_id
             WHERE +d.zone_id = $1 AND d.status = 'active'
               AND d.source_session_id IN (SELECT value FROM json_each($2))
             ORDER BY t.depth, t.id";
    REVOKE_EDGES =
        pg: "UPDATE delegations SET status = 'revoked', revoked_at = $3,
                 edge_version = edge_version + 1
             WHERE zone_id = $1 AND status = 'active'
               AND (source_session_id = ANY($2) OR target_session_id = ANY($2) OR id = $4)
             RETURNING id, source_session_id, target_session_id",
        lite: "UPDATE delegations SET status = 'revoked', revoked_at = $3,
                 edge_version = edge_version + 1
             WHERE +zone_id = $1 AND +status = 'active'
               AND (source_session_id IN (SELECT value FROM json_each($2))
                    OR target_session_id IN (SELECT value FROM json_each($2)) OR id = $4)
             RETURNING id, source_session_id, target_session_id";
    LOCK_RECORD =
        pg: "SELECT id FROM authority_records WHERE zone_id = $1 AND id = $2 FOR UPDATE",
        lite: "SELECT id FROM authority_records WHERE zone_id = $1 AND id = $2 LIMIT 0";
    REVOKE_RECORD = "UPDATE authority_records SET status = 'revoked', revoked_at = $3,
            revoked_reason = $4
        WHERE zone_id = $1 AND id = $2 AND record_type = 'user' AND status = 'active'
          AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.subject_record_id = $2
                            AND s.zone_id = $1 AND s.status IN ('active', 'suspended'))
        RETURNING id";
    SETTLE_PARENT = "UPDATE sessions SET live_children =
            (SELECT COUNT(*) FROM sessions c WHERE c.parent_id = sessions.id
               AND c.status IN ('active', 'suspended'))
        WHERE zone_id = $1 AND id = $2";
    RELEASE_ONE = "UPDATE session_counts SET live = live - $3 WHERE zone_id = $1 AND holder = $2";
    RELEASE =
        pg: "WITH held AS (SELECT holder FROM session_counts
                           WHERE zone_id = $1 AND holder IN ('zone', $2)
                           ORDER BY holder = 'zone', holder FOR UPDATE)
             UPDATE session_counts c SET live = c.live -
                 CASE c.holder WHEN 'zone' THEN CAST($4 AS BIGINT) ELSE CAST($3 AS BIGINT) END
             FROM held WHERE c.zone_id = $1 AND c.holder = held.holder",
        lite: "UPDATE session_counts SET live = live -
                 CASE holder WHEN 'zone' THEN $4 ELSE $3 END
               WHERE zone_id = $1 AND holder IN ('zone', $2)";
    EPOCH = "SELECT epoch FROM delegation_epochs WHERE zone_id = $1";
    RAISE_EPOCH = "INSERT INTO delegation_epochs (zone_id, epoch) VALUES ($1, 1)
        ON CONFLICT (zone_id) DO UPDATE SET epoch = delegation_epochs.epoch + 1
        RETURNING epoch";
} }

/// A Session to be ended.
#[derive(Clone, Debug)]
pub struct Root {
    /// Its id.
    pub id: SessionId,
    /// The Session that started it; it never changes, so it may have been read earlier.
    pub parent: Option<SessionId>,
}

/// What is to be ended, and why.
#[derive(Clone, Debug)]
pub struct Cut<'a> {
    /// Where to start. With `along`, one root: the target of that edge.
    pub roots: &'a [Root],
    /// Reason of the roots.
    pub reason: &'a str,
    /// Only if the lease still has this generation.
    pub generation: Option<i64>,
    /// The roots expire instead of being terminated, and only if their time has come.
    pub by_time: bool,
    /// Whether this is a cut-off, which raises the epoch if any edge goes with it, or an ordinary
    /// end (README decision 2).
    pub cut_off: bool,
    /// A Delegation that is revoked: everything that it leads to ends as well.
    pub along: Option<&'a DelegationId>,
    /// Now.
    pub now: Timestamp,
}

impl<'a> Cut<'a> {
    /// An ordinary end of these Sessions.
    pub const fn of(roots: &'a [Root], reason: &'a str, now: Timestamp) -> Self {
        Self {
            roots,
            reason,
            generation: None,
            by_time: false,
            cut_off: false,
            along: None,
            now,
        }
    }
}

/// A Session that ended.
#[derive(Clone, Debug)]
pub struct EndedSession {
    /// Its id.
    pub id: SessionId,
    /// The Session that started it.
    pub parent: Option<SessionId>,
    /// Whose it was.
    pub application: ApplicationId,
    /// The record that it was anchored to.
    pub record: RecordId,
    /// Of which type that record is.
    pub subject_type: SubjectType,
    /// Why it ended.
    pub reason: String,
    has_children: bool,
}

/// An edge that was revoked.
#[derive(Clone, Debug)]
pub struct RevokedEdge {
    /// Its id.
    pub id: DelegationId,
    source: SessionId,
    target: SessionId,
}

/// Everything that ended in one transaction.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// Sessions, roots first.
    pub sessions: Vec<EndedSession>,
    /// Edges.
    pub edges: Vec<RevokedEdge>,
    /// Distinct records that the Sessions at the ends of the followed edges were anchored to.
    pub records: BTreeSet<RecordId>,
    /// User records that were revoked with their last Session.
    pub revoked_records: BTreeSet<RecordId>,
}

impl EndedSession {
    fn read(row: &Row, reason: &str) -> Result<Self, StoreError> {
        Ok(Self {
            id: SessionId::trusted(row.text("id")?),
            parent: row.opt_text("parent_id")?.map(SessionId::trusted),
            application: ApplicationId::trusted(row.text("application_id")?),
            record: RecordId::trusted(row.text("subject_record_id")?),
            subject_type: subject_type(row.text("subject_type")?)?,
            reason: reason.to_owned(),
            has_children: row.int("live_children")? > 0,
        })
    }
}

impl SessionsTx<'_> {
    /// Ends the roots and everything that hangs on them, and announces all of it. Nothing ended
    /// and nothing revoked means that the condition of the cut did not hold.
    pub async fn end(&mut self, cut: &Cut<'_>) -> Result<Ended, StoreError> {
        let mut ended = Ended::default();
        let mut roots = cut.roots.to_vec();
        for _ in 0..MAX_FOLLOWED {
            let tips = self.end_roots(cut, &roots, &mut ended).await?;
            if cut.along.is_none() || roots.is_empty() {
                break;
            }
            roots = self.forward(&roots, &ended).await?;
            ended.records.extend(tips);
        }
        if ended.sessions.is_empty() && cut.along.is_none() {
            return Ok(ended);
        }
        self.revoke_edges(cut, &mut ended).await?;
        self.revoke_records(cut, &mut ended).await?;
        self.give_back(&ended).await?;
        self.announce_sessions(&ended);
        Ok(ended)
    }

    /// Answers the records of the roots that ended.
    async fn end_roots(
        &mut self,
        cut: &Cut<'_>,
        roots: &[Root],
        ended: &mut Ended,
    ) -> Result<Vec<RecordId>, StoreError> {
        let parents: Vec<&str> = roots
            .iter()
            .filter_map(|root| root.parent.as_ref())
            .map(SessionId::as_str)
            .collect();
        if !parents.is_empty() {
            self.at
                .tx()
                .query(
                    &sql::LOCK_PARENTS,
                    &[self.zone.into(), Param::Texts(parents)],
                )
                .await?;
        }
        let status = if cut.by_time {
            SessionStatus::Expired
        } else {
            SessionStatus::Terminated
        }
        .as_str();
        let mut level = Vec::new();
        for root in roots {
            let params = params![
                self.zone,
                &root.id,
                status,
                cut.now,
                cut.reason,
                cut.generation,
                cut.by_time
            ];
            if let Some(row) = self.at.tx().query_opt(&sql::END_ROOT, &params).await? {
                level.push(EndedSession::read(&row, cut.reason)?);
            }
        }
        let tips = level.iter().map(|one| one.record.clone()).collect();
        self.end_below(level, cut.now, ended).await?;
        Ok(tips)
    }

    async fn end_below(
        &mut self,
        mut level: Vec<EndedSession>,
        now: Timestamp,
        ended: &mut Ended,
    ) -> Result<(), StoreError> {
        while !level.is_empty() {
            let parents: Vec<&str> = level
                .iter()
                .filter(|one| one.has_children)
                .map(|one| one.id.as_str())
                .collect();
            let mut rows = Vec::new();
            if !parents.is_empty() {
                let params = [self.zone.into(), Param::Texts(parents), now.into()];
                rows = self.at.tx().query(&sql::END_CHILDREN, &params).await?;
            }
            let next: Result<Vec<_>, _> = rows
                .iter()
                .map(|row| EndedSession::read(row, PARENT_TERMINATED))
                .collect();
            ended.sessions.append(&mut level);
            level = next?;
        }
        Ok(())
    }

    /// The Sessions that the edges from these lead to, except those that have just ended.
    async fn forward(&mut self, from: &[Root], ended: &Ended) -> Result<Vec<Root>, StoreError> {
        let sources = from.iter().map(|root| root.id.as_str()).collect();
        let rows = self
            .at
            .tx()
            .query(&sql::FORWARD, &[self.zone.into(), Param::Texts(sources)])
            .await?;
        let over: BTreeSet<&str> = ended.sessions.iter().map(|one| one.id.as_str()).collect();
        let mut seen = BTreeSet::new();
        let mut next = Vec::new();
        for row in &rows {
            let id = row.text("target_session_id")?;
            if seen.insert(id) && !over.contains(id) {
                next.push(Root {
                    id: SessionId::trusted(id),
                    parent: row.opt_text("parent_id")?.map(SessionId::trusted),
                });
            }
        }
        Ok(next)
    }

    async fn revoke_edges(&mut self, cut: &Cut<'_>, ended: &mut Ended) -> Result<(), StoreError> {
        let sessions = ended.sessions.iter().map(|one| one.id.as_str()).collect();
        let params = [
            self.zone.into(),
            Param::Texts(sessions),
            cut.now.into(),
            cut.along.into(),
        ];
        let rows = self.at.tx().query(&sql::REVOKE_EDGES, &params).await?;
        for row in &rows {
            ended.edges.push(RevokedEdge {
                id: DelegationId::trusted(row.text("id")?),
                source: SessionId::trusted(row.text("source_session_id")?),
                target: SessionId::trusted(row.text("target_session_id")?),
            });
        }
        if ended.edges.is_empty() {
            return Ok(());
        }
        let epoch = if cut.cut_off {
            &sql::RAISE_EPOCH
        } else {
            &sql::EPOCH
        };
        let row = self.at.tx().query_opt(epoch, &params![self.zone]).await?;
        let epoch = row.map_or(Ok(1), |row| row.count("epoch"))?;
        self.announce_edges(cut, ended, epoch);
        if cut.cut_off {
            self.at
                .tx()
                .change(&Change::Epoch(self.zone.clone(), epoch));
        }
        Ok(())
    }

    async fn revoke_records(&mut self, cut: &Cut<'_>, ended: &mut Ended) -> Result<(), StoreError> {
        let records: BTreeSet<RecordId> = ended
            .sessions
            .iter()
            .filter(|one| one.subject_type == SubjectType::User)
            .map(|one| one.record.clone())
            .collect();
        for record in records {
            self.at
                .tx()
                .query(&sql::LOCK_RECORD, &params![self.zone, &record])
                .await?;
            let params = params![self.zone, &record, cut.now, cut.reason];
            if self
                .at
                .tx()
                .query_opt(&sql::REVOKE_RECORD, &params)
                .await?
                .is_some()
            {
                self.at
                    .tx()
                    .change(&Change::Record(self.zone.clone(), record.clone()));
                ended.revoked_records.insert(record);
            }
        }
        Ok(())
    }

    /// Gives the places of the ended Sessions back to parents that live on, then to the quotas.
    async fn give_back(&mut self, ended: &Ended) -> Result<(), StoreError> {
        let over: BTreeSet<&SessionId> = ended.sessions.iter().map(|one| &one.id).collect();
        let parents: BTreeSet<&SessionId> = ended
            .sessions
            .iter()
            .filter_map(|one| one.parent.as_ref())
            .filter(|parent| !over.contains(parent))
            .collect();
        for parent in parents {
            self.at
                .tx()
                .execute(&sql::SETTLE_PARENT, &params![self.zone, parent])
                .await?;
        }
        let mut places: BTreeMap<&ApplicationId, i64> = BTreeMap::new();
        for one in &ended.sessions {
            *places.entry(&one.application).or_default() += 1;
        }
        let all: i64 = places.values().sum();
        let Some((last, count)) = places.pop_last() else {
            return Ok(());
        };
        for (application, count) in places {
            let params = params![self.zone.to_string(), application.to_string(), count].into();
            self.at.tx().contend(&sql::RELEASE_ONE, params, None);
        }
        let params = params![self.zone.to_string(), last.to_string(), count, all].into();
        self.at.tx().contend(&sql::RELEASE, params, None);
        Ok(())
    }

    fn announce_sessions(&mut self, ended: &Ended) {
        for one in &ended.sessions {
            let reason = || Some(one.reason.clone());
            // The record is named only when it ended too: a shared one must stay usable, and
            // consumers remember an anchor for a day (INVARIANT no-shared-anchor).
            let record = ended
                .revoked_records
                .contains(&one.record)
                .then(|| one.record.to_string());
            self.at.tx().announce(Outgoing::new(
                Topic::SessionsRevoke,
                self.zone,
                [
                    ("dedupe_key", Some(format!("agent_terminate:{}", one.id))),
                    ("agent_session_id", Some(one.id.to_string())),
                    ("session_id", record),
                    ("reason", reason()),
                ],
            ));
            let more = [("reason", reason())];
            let parent = one.parent.as_ref();
            self.at.tx().announce(lifecycle_event(
                self.zone,
                &one.id,
                parent,
                "terminate",
                more,
                None,
            ));
            self.at
                .tx()
                .change(&Change::Session(self.zone.clone(), one.id.clone()));
        }
    }

    fn announce_edges(&mut self, cut: &Cut<'_>, ended: &Ended, epoch: u64) {
        let over: BTreeMap<&SessionId, &EndedSession> =
            ended.sessions.iter().map(|one| (&one.id, one)).collect();
        for edge in &ended.edges {
            // Never a live peer: only a Session that ended with this edge (§17.5).
            let with = over.get(&edge.target).or_else(|| over.get(&edge.source));
            let reason = with
                .map_or(cut.reason, |one| one.reason.as_str())
                .to_owned();
            let direct = cut.along == Some(&edge.id);
            self.at.tx().announce(Outgoing::new(
                Topic::SessionsRevoke,
                self.zone,
                [
                    ("dedupe_key", Some(format!("delegation:{}", edge.id))),
                    ("delegation_edge_id", Some(edge.id.to_string())),
                    ("agent_session_id", with.map(|one| one.id.to_string())),
                    ("reason", Some(reason.clone())),
                ],
            ));
            self.at.tx().announce(Outgoing::new(
                Topic::DelegationsInvalidate,
                self.zone,
                [
                    ("dedupe_key", Some(format!("edge_revoke:{}", edge.id))),
                    ("event", Some("edge_revoke".to_owned())),
                    ("edge_id", Some(edge.id.to_string())),
                    ("epoch", Some(epoch.to_string())),
                    (
                        "affected_edges",
                        direct.then(|| ended.edges.len().to_string()),
                    ),
                    ("reason", (!direct).then_some(reason)),
                ],
            ));
            self.at
                .tx()
                .change(&Change::Delegation(self.zone.clone(), edge.id.clone()));
        }
    }
}
