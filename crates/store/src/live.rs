//! What the memory of a replica reads of Sessions, Delegations and revocations: lineages, epochs,
//! and which anchors are dead (spec: gateway §8, sts §9).
//!
//! Revocations are read for all zones at once: an anchor is a unique id, and whoever asks wants to
//! refuse it wherever it turns up.

use std::sync::Arc;

use caracal_model::{DelegationId, RecordId, SessionId, Timestamp, ZoneId};

use crate::delegations::EdgeRow;
use crate::error::StoreError;
use crate::row::Row;
use crate::store::{Store, ZoneScope};
use crate::{Param, params, statements};

/// Edges of a lineage that are read at most: one more than may stand in a path, so that a longer
/// or circular one is recognised.
pub const MAX_LINEAGE: u32 = 11;

statements! { pub(crate) mod sql {
    LINEAGE = "WITH RECURSIVE line (id, parent_edge_id, depth) AS (
            SELECT id, parent_edge_id, CAST(1 AS BIGINT) FROM delegations
            WHERE zone_id = $1 AND id = $2
            UNION ALL
            SELECT d.id, d.parent_edge_id, line.depth + 1
            FROM line JOIN delegations d ON d.id = line.parent_edge_id
            WHERE d.zone_id = $1 AND line.depth < $3)
        SELECT d.id, d.source_session_id, d.target_session_id, d.issuer_application_id,
            d.receiver_application_id, d.parent_edge_id, d.mirrored, d.resource_id, d.scopes,
            d.constraints_json, d.status, d.edge_version, d.expires_at, d.created_at, d.revoked_at
        FROM line JOIN delegations d ON d.id = line.id ORDER BY line.depth DESC";
    EPOCH = "SELECT epoch FROM delegation_epochs WHERE zone_id = $1";
    RECORDS_SINCE = "SELECT id, revoked_at AS at FROM authority_records
        WHERE revoked_at > $1 AND status = 'revoked'";
    SESSIONS_SINCE = "SELECT id, terminated_at AS at FROM sessions
        WHERE terminated_at IS NOT NULL AND terminated_at > $1";
    DELEGATIONS_SINCE = "SELECT id, revoked_at AS at FROM delegations
        WHERE revoked_at IS NOT NULL AND revoked_at > $1";
    SUBJECTS_SINCE = "SELECT zone_id, subject_id, not_before AS at FROM subject_cutoffs
        WHERE not_before > $1";
    DEAD = pg: "SELECT 'record' AS kind, id FROM authority_records
                WHERE id = ANY($1) AND status = 'revoked'
                UNION ALL
                SELECT 'session', id FROM sessions
                WHERE id = ANY($2) AND status IN ('terminated', 'expired')
                UNION ALL
                SELECT 'delegation', id FROM delegations
                WHERE id = ANY($3) AND status = 'revoked' LIMIT 1",
           lite: "SELECT 'record' AS kind, id FROM authority_records
                  WHERE id IN (SELECT value FROM json_each($1)) AND status = 'revoked'
                  UNION ALL
                  SELECT 'session', id FROM sessions
                  WHERE id IN (SELECT value FROM json_each($2))
                    AND status IN ('terminated', 'expired')
                  UNION ALL
                  SELECT 'delegation', id FROM delegations
                  WHERE id IN (SELECT value FROM json_each($3)) AND status = 'revoked' LIMIT 1";
    UNSENT = "SELECT id FROM outbox
        WHERE zone_id = $1 AND urgent AND dispatched_at IS NULL LIMIT 1";
} }

/// What a mandate hangs on; when it dies, so does the mandate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Anchor {
    /// An authority record.
    Record(RecordId),
    /// A governed Session.
    Session(SessionId),
    /// A Delegation.
    Delegation(DelegationId),
    /// A subject of a zone: what was issued to it up to some time is dead, not what comes later.
    Subject(ZoneId, Arc<str>),
}

/// An anchor that died, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadAnchor {
    /// Which.
    pub anchor: Anchor,
    /// When; for a subject, up to when what was issued to it is dead.
    pub at: Timestamp,
}

impl ZoneScope<'_> {
    /// The edges from the root of a lineage down to this leaf, whatever their state, at most
    /// [`MAX_LINEAGE`] of them; empty when there is no such edge.
    pub async fn lineage(&self, leaf: &DelegationId) -> Result<Vec<EdgeRow>, StoreError> {
        let params = params![self.id(), leaf, MAX_LINEAGE];
        let rows = self.query(&sql::LINEAGE, &params).await?;
        rows.iter().map(EdgeRow::read).collect()
    }

    /// The epoch of the zone's authority graph; `None` before its first edge.
    pub async fn epoch(&self) -> Result<Option<u64>, StoreError> {
        let row = self.query_opt(&sql::EPOCH, &params![self.id()]).await?;
        row.map(|row| row.count("epoch")).transpose()
    }

    /// Whether news of a revocation in this zone still waits in the outbox, or is dead there.
    pub async fn has_unsent_revocations(&self) -> Result<bool, StoreError> {
        Ok(self
            .query_opt(&sql::UNSENT, &params![self.id()])
            .await?
            .is_some())
    }
}

impl Store {
    /// Every anchor, of any zone, that died after `since`.
    pub async fn dead_since(&self, since: Timestamp) -> Result<Vec<DeadAnchor>, StoreError> {
        let since = params![since];
        let mut dead = Vec::new();
        for row in self.query(&sql::RECORDS_SINCE, &since).await? {
            dead.push(DeadAnchor::read(&row, |id| {
                Anchor::Record(RecordId::trusted(id))
            })?);
        }
        for row in self.query(&sql::SESSIONS_SINCE, &since).await? {
            dead.push(DeadAnchor::read(&row, |id| {
                Anchor::Session(SessionId::trusted(id))
            })?);
        }
        for row in self.query(&sql::DELEGATIONS_SINCE, &since).await? {
            dead.push(DeadAnchor::read(&row, |id| {
                Anchor::Delegation(DelegationId::trusted(id))
            })?);
        }
        for row in self.query(&sql::SUBJECTS_SINCE, &since).await? {
            let zone = ZoneId::trusted(row.text("zone_id")?);
            dead.push(DeadAnchor {
                anchor: Anchor::Subject(zone, row.text("subject_id")?.into()),
                at: row.time("at")?,
            });
        }
        Ok(dead)
    }

    /// The first of these anchors that is dead. One that is not stored is not: records of single
    /// mandates are evidence, not rows.
    pub async fn first_dead(
        &self,
        records: &[&RecordId],
        sessions: &[&SessionId],
        delegations: &[&DelegationId],
    ) -> Result<Option<Anchor>, StoreError> {
        let params = [
            Param::Texts(records.iter().map(|id| id.as_str()).collect()),
            Param::Texts(sessions.iter().map(|id| id.as_str()).collect()),
            Param::Texts(delegations.iter().map(|id| id.as_str()).collect()),
        ];
        let Some(row) = self.query_opt(&sql::DEAD, &params).await? else {
            return Ok(None);
        };
        let id = row.text("id")?;
        Ok(Some(match row.text("kind")? {
            "record" => Anchor::Record(RecordId::trusted(id)),
            "session" => Anchor::Session(SessionId::trusted(id)),
            _ => Anchor::Delegation(DelegationId::trusted(id)),
        }))
    }
}

impl DeadAnchor {
    fn read(row: &Row, anchor: impl Fn(&str) -> Anchor) -> Result<Self, StoreError> {
        Ok(Self {
            anchor: anchor(row.text("id")?),
            at: row.time("at")?,
        })
    }
}
