//! Delegations, the edges of the authority graph (spec: coordinator §7). How they end is in
//! [`crate::sessions::end`].
//!
//! **Forces.** An edge may be made while its source is being cut off, and two edges that would
//! close a circle may be made at the same time.
//!
//! **Choice.** Whoever makes an edge holds both of its Sessions: the source against change, the
//! target against everybody. Two edges of a circle share a Session in different roles, so one waits
//! for the other; many edges from one source do not wait for each other. The parent edge is held
//! too, so it cannot be revoked between the check and the commit.

use caracal_model::{
    ApplicationId, Change, DelegationId, Outgoing, ResourceId, Scopes, SessionId, Timestamp, Topic,
    ZoneId,
};
use serde_json::Value;

use crate::error::StoreError;
use crate::sessions::{SessionRow, end};
use crate::{Row, Store, Tx, ZoneScope, ZoneTx, params, statements};

macro_rules! columns {
    () => {
        "id, source_session_id, target_session_id, issuer_application_id, \
         receiver_application_id, parent_edge_id, mirrored, resource_id, scopes, constraints_json, \
         status, edge_version, expires_at, created_at, revoked_at"
    };
}

macro_rules! page {
    ($of:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM delegations WHERE zone_id = $1 AND ",
            $of,
            " AND (CAST($3 AS TEXT) IS NULL OR id < $3)
              AND (CAST($4 AS TEXT) IS NULL OR issuer_application_id = $4
                   OR receiver_application_id = $4)
            ORDER BY id DESC LIMIT $5"
        )
    };
}

statements! { pub(crate) mod sql {
    GET = concat!("SELECT ", columns!(), " FROM delegations WHERE zone_id = $1 AND id = $2");
    ACTIVE = page!("status = 'active' AND expires_at > CAST($2 AS BIGINT)");
    OF_TARGET = page!("target_session_id = $2");
    OF_SOURCE = page!("source_session_id = $2");
    INBOUND = concat!("SELECT ", columns!(),
        " FROM delegations WHERE zone_id = $1 AND target_session_id = $2 ORDER BY id");
    HOLD_INBOUND =
        pg: concat!("SELECT ", columns!(),
            " FROM delegations WHERE zone_id = $1 AND target_session_id = $2
              ORDER BY id FOR SHARE"),
        lite: concat!("SELECT ", columns!(),
            " FROM delegations WHERE zone_id = $1 AND target_session_id = $2 ORDER BY id");
    LEADS_TO = "WITH RECURSIVE walk (session_id, depth) AS (
            SELECT target_session_id, 1 FROM delegations
            WHERE zone_id = $1 AND source_session_id = $2 AND status = 'active' AND expires_at > $4
            UNION
            SELECT d.target_session_id, walk.depth + 1
            FROM walk JOIN delegations d ON d.source_session_id = walk.session_id
            WHERE d.zone_id = $1 AND d.status = 'active' AND d.expires_at > $4 AND walk.depth < 10)
        SELECT session_id FROM walk WHERE session_id = $3 LIMIT 1";
    TRAVERSE = "WITH RECURSIVE walk (id, source, target, depth) AS (
            SELECT id, source_session_id, target_session_id, 1 FROM delegations
            WHERE zone_id = $1 AND id = $2 AND status = 'active' AND expires_at > $3
            UNION
            SELECT d.id, d.source_session_id, d.target_session_id, walk.depth + 1
            FROM walk JOIN delegations d ON d.source_session_id = walk.target
            WHERE d.zone_id = $1 AND d.status = 'active' AND d.expires_at > $3 AND walk.depth < 10)
        SELECT w.id, w.source, w.target, s.subject_record_id, CAST(MIN(w.depth) AS BIGINT) AS depth
        FROM walk w JOIN sessions s ON s.id = w.target
        GROUP BY w.id, w.source, w.target, s.subject_record_id ORDER BY 5, 1";
    INSERT = "INSERT INTO delegations (id, zone_id, source_session_id, target_session_id,
            issuer_application_id, receiver_application_id, parent_edge_id, mirrored, resource_id,
            scopes, constraints_json, status, edge_version, expires_at, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'active', 0, $12, $13)";
    FIRST_EPOCH = "INSERT INTO delegation_epochs (zone_id, epoch) VALUES ($1, 1)
        ON CONFLICT DO NOTHING";
    LAPSED = "SELECT zone_id, id FROM delegations WHERE status = 'active' AND expires_at <= $1
        ORDER BY expires_at LIMIT $2";
    EXPIRE = pg: "UPDATE delegations SET status = 'expired', edge_version = edge_version + 1
            WHERE zone_id = $1 AND id = ANY($2) AND status = 'active' RETURNING id",
        lite: "UPDATE delegations SET status = 'expired', edge_version = edge_version + 1
            WHERE zone_id = $1 AND id IN (SELECT value FROM json_each($2)) AND status = 'active'
            RETURNING id";
    DELETE_ENDED = "DELETE FROM delegations WHERE id IN (
            SELECT e.id FROM delegations e
            WHERE (e.revoked_at < $1 OR (e.status = 'expired' AND e.expires_at < $1))
              AND NOT EXISTS (SELECT 1 FROM delegations c WHERE c.parent_edge_id = e.id
                                AND c.status = 'active')
            LIMIT $2)";
} }

/// The state of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeStatus {
    /// In force until it expires.
    Active,
    /// Taken back.
    Revoked,
    /// Over, as agreed.
    Expired,
}

impl EdgeStatus {
    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        match text {
            "active" => Ok(Self::Active),
            "revoked" => Ok(Self::Revoked),
            "expired" => Ok(Self::Expired),
            other => Err(StoreError::corrupt(format!("edge status {other}"))),
        }
    }
}

/// An edge as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeRow {
    /// Its id.
    pub id: DelegationId,
    /// The Session whose authority is passed on.
    pub source_session_id: SessionId,
    /// The Session that receives it.
    pub target_session_id: SessionId,
    /// The application that passes it on.
    pub issuer_application_id: ApplicationId,
    /// The application that receives it.
    pub receiver_application_id: ApplicationId,
    /// The edge that it narrows, if any.
    pub parent_edge_id: Option<DelegationId>,
    /// Whether it is the copy that a child inherits; such an edge uses no hop.
    pub mirrored: bool,
    /// The resource that it is bound to, row id.
    pub resource_id: Option<ResourceId>,
    /// Scopes.
    pub scopes: Scopes,
    /// Normalised constraints.
    pub constraints_json: Value,
    /// Its state.
    pub status: EdgeStatus,
    /// Rises with every change of state.
    pub edge_version: i64,
    /// When it is over.
    pub expires_at: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
}

impl EdgeRow {
    pub(crate) fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: DelegationId::trusted(row.text("id")?),
            source_session_id: SessionId::trusted(row.text("source_session_id")?),
            target_session_id: SessionId::trusted(row.text("target_session_id")?),
            issuer_application_id: ApplicationId::trusted(row.text("issuer_application_id")?),
            receiver_application_id: ApplicationId::trusted(row.text("receiver_application_id")?),
            parent_edge_id: row.opt_text("parent_edge_id")?.map(DelegationId::trusted),
            mirrored: row.bool("mirrored")?,
            resource_id: row.opt_text("resource_id")?.map(ResourceId::trusted),
            scopes: row.json("scopes")?,
            constraints_json: row.json("constraints_json")?,
            status: EdgeStatus::parse(row.text("status")?)?,
            edge_version: row.int("edge_version")?,
            expires_at: row.time("expires_at")?,
            created_at: row.time("created_at")?,
            revoked_at: row.opt_time("revoked_at")?,
        })
    }

    /// Whether it is in force.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.status == EdgeStatus::Active && self.expires_at > now
    }
}

/// One step of a walk along live edges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The edge.
    pub id: DelegationId,
    /// Where it comes from.
    pub source: SessionId,
    /// Where it leads.
    pub target: SessionId,
    /// The authority record of the Session where it leads.
    pub record: String,
    /// 1 for the edge where the walk began.
    pub depth: i64,
}

/// Which edges a list holds.
#[derive(Clone, Copy, Debug)]
pub enum EdgeList<'a> {
    /// Those in force.
    Active(Timestamp),
    /// All that lead to this Session.
    Inbound(&'a SessionId),
    /// All that come from this Session.
    Outbound(&'a SessionId),
}

/// Reads the edges of one zone.
#[derive(Clone, Copy, Debug)]
pub struct Delegations<'s> {
    zone: ZoneScope<'s>,
}

impl<'s> ZoneScope<'s> {
    /// The Delegations of this zone.
    pub const fn delegations(self) -> Delegations<'s> {
        Delegations { zone: self }
    }
}

impl Delegations<'_> {
    /// One edge.
    pub async fn get(&self, id: &DelegationId) -> Result<Option<EdgeRow>, StoreError> {
        let row = self
            .zone
            .query_opt(&sql::GET, &params![self.zone.id(), id])
            .await?;
        row.as_ref().map(EdgeRow::read).transpose()
    }

    /// The newest edges of a list older than `before`; only those of `visible_to`, when given.
    pub async fn page(
        &self,
        list: EdgeList<'_>,
        visible_to: Option<&ApplicationId>,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<EdgeRow>, StoreError> {
        let zone = self.zone.id();
        let rows = match list {
            EdgeList::Active(now) => {
                self.zone
                    .query(&sql::ACTIVE, &params![zone, now, before, visible_to, limit])
                    .await
            }
            EdgeList::Inbound(of) => {
                self.zone
                    .query(
                        &sql::OF_TARGET,
                        &params![zone, of, before, visible_to, limit],
                    )
                    .await
            }
            EdgeList::Outbound(of) => {
                self.zone
                    .query(
                        &sql::OF_SOURCE,
                        &params![zone, of, before, visible_to, limit],
                    )
                    .await
            }
        }?;
        rows.iter().map(EdgeRow::read).collect()
    }

    /// Every edge that leads to this Session, in any state.
    pub async fn inbound(&self, target: &SessionId) -> Result<Vec<EdgeRow>, StoreError> {
        let rows = self
            .zone
            .query(&sql::INBOUND, &params![self.zone.id(), target])
            .await?;
        rows.iter().map(EdgeRow::read).collect()
    }

    /// The live edges that can be reached from this one, itself included, at most ten deep.
    pub async fn traverse(
        &self,
        id: &DelegationId,
        now: Timestamp,
    ) -> Result<Vec<Hop>, StoreError> {
        let rows = self
            .zone
            .query(&sql::TRAVERSE, &params![self.zone.id(), id, now])
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Hop {
                    id: DelegationId::trusted(row.text("id")?),
                    source: SessionId::trusted(row.text("source")?),
                    target: SessionId::trusted(row.text("target")?),
                    record: row.string("subject_record_id")?,
                    depth: row.int("depth")?,
                })
            })
            .collect()
    }
}

impl Store {
    /// Edges of any zone that are past their time but still marked active, the oldest first.
    pub async fn lapsed_edges(
        &self,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<(ZoneId, DelegationId)>, StoreError> {
        let rows = self.query(&sql::LAPSED, &params![now, limit]).await?;
        rows.iter()
            .map(|row| {
                let zone = ZoneId::trusted(row.text("zone_id")?);
                Ok((zone, DelegationId::trusted(row.text("id")?)))
            })
            .collect()
    }
}

/// Changes the edges of one zone, within a transaction.
#[derive(Debug)]
pub struct DelegationsTx<'t> {
    at: ZoneTx<'t>,
    zone: &'t ZoneId,
}

impl<'t> ZoneTx<'t> {
    /// The Delegations of this zone.
    pub fn delegations(self) -> DelegationsTx<'t> {
        let zone = self.id();
        DelegationsTx { at: self, zone }
    }
}

impl Tx {
    /// Deletes edges that ended before `before` and that no live edge narrows; answers how many.
    pub async fn delete_ended_edges(
        &mut self,
        before: Timestamp,
        limit: u32,
    ) -> Result<u64, StoreError> {
        self.execute(&sql::DELETE_ENDED, &params![before, limit])
            .await
    }
}

/// The two Sessions of an edge, held until the transaction ends.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// Where the edge comes from.
    pub source: Option<SessionRow>,
    /// Where it leads.
    pub target: Option<SessionRow>,
}

impl DelegationsTx<'_> {
    /// Reads and holds the Sessions of an edge that is to be made, in the order of their ids.
    pub async fn hold_endpoints(
        &mut self,
        source: &SessionId,
        target: &SessionId,
    ) -> Result<Endpoints, StoreError> {
        if source < target {
            let source = SessionRow::hold(self.at.tx(), self.zone, source).await?;
            let target = SessionRow::hold_alone(self.at.tx(), self.zone, target).await?;
            return Ok(Endpoints { source, target });
        }
        let target = SessionRow::hold_alone(self.at.tx(), self.zone, target).await?;
        let source = SessionRow::hold(self.at.tx(), self.zone, source).await?;
        Ok(Endpoints { source, target })
    }

    /// Every edge that leads to this Session, in any state, held until the transaction ends.
    pub async fn hold_inbound(&mut self, target: &SessionId) -> Result<Vec<EdgeRow>, StoreError> {
        let params = params![self.zone, target];
        let rows = self.at.tx().query(&sql::HOLD_INBOUND, &params).await?;
        rows.iter().map(EdgeRow::read).collect()
    }

    /// Whether a path of at most ten live edges leads from one Session to another.
    pub async fn leads_to(
        &mut self,
        from: &SessionId,
        to: &SessionId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let params = params![self.zone, from, to, now];
        Ok(self
            .at
            .tx()
            .query_opt(&sql::LEADS_TO, &params)
            .await?
            .is_some())
    }

    /// Writes an edge and announces it with the zone's epoch, which starts at 1 with the first.
    pub async fn create(&mut self, edge: &EdgeRow) -> Result<(), StoreError> {
        let params = params![
            &edge.id,
            self.zone,
            &edge.source_session_id,
            &edge.target_session_id,
            &edge.issuer_application_id,
            &edge.receiver_application_id,
            edge.parent_edge_id.as_ref(),
            edge.mirrored,
            edge.resource_id.as_ref(),
            json(&edge.scopes)?,
            json(&edge.constraints_json)?,
            edge.expires_at,
            edge.created_at
        ];
        self.at.tx().execute(&sql::INSERT, &params).await?;
        let epoch = self.epoch().await?;
        self.at.tx().announce(Outgoing::new(
            Topic::DelegationsInvalidate,
            self.zone,
            [
                ("dedupe_key", Some(format!("edge_create:{}", edge.id))),
                ("event", Some("edge_create".to_owned())),
                ("edge_id", Some(edge.id.to_string())),
                (
                    "source_session_id",
                    Some(edge.source_session_id.to_string()),
                ),
                (
                    "target_session_id",
                    Some(edge.target_session_id.to_string()),
                ),
                ("epoch", Some(epoch.to_string())),
            ],
        ));
        let change = Change::Delegation(self.zone.clone(), edge.id.clone());
        self.at.tx().change(&change);
        Ok(())
    }

    async fn epoch(&mut self) -> Result<u64, StoreError> {
        let zone = params![self.zone];
        if let Some(row) = self.at.tx().query_opt(&end::sql::EPOCH, &zone).await? {
            return row.count("epoch");
        }
        self.at.tx().execute(&sql::FIRST_EPOCH, &zone).await?;
        let change = Change::Epoch(self.zone.clone(), 1);
        self.at.tx().change(&change);
        let row = self.at.tx().query_opt(&end::sql::EPOCH, &zone).await?;
        row.map_or(Ok(1), |row| row.count("epoch"))
    }

    /// Marks edges past their time as expired and announces that, with the current epoch: their
    /// mandates ended with them. Answers how many.
    pub async fn expire(&mut self, ids: &[DelegationId]) -> Result<usize, StoreError> {
        let ids = ids.iter().map(DelegationId::as_str).collect();
        let params = [self.zone.into(), crate::Param::Texts(ids)];
        let rows = self.at.tx().query(&sql::EXPIRE, &params).await?;
        let expired: Vec<&str> = rows
            .iter()
            .map(|row| row.text("id"))
            .collect::<Result<_, _>>()?;
        let Some(first) = expired.first() else {
            return Ok(0);
        };
        let epoch = self.epoch().await?;
        self.at.tx().announce(Outgoing::new(
            Topic::DelegationsInvalidate,
            self.zone,
            [
                // The epoch does not rise here, so the first edge tells two entries apart.
                (
                    "dedupe_key",
                    Some(format!("edge_expire:{}:{epoch}:{first}", self.zone)),
                ),
                ("event", Some("edge_expire".to_owned())),
                ("affected_edges", Some(expired.len().to_string())),
                ("edge_ids", Some(json(&expired)?)),
                ("epoch", Some(epoch.to_string())),
            ],
        ));
        for id in &expired {
            let change = Change::Delegation(self.zone.clone(), DelegationId::trusted(*id));
            self.at.tx().change(&change);
        }
        Ok(expired.len())
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::corrupt(error.to_string()))
}
