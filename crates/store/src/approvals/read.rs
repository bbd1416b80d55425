//! Holds as they are read: those of a zone, and those of any zone by their id.

use caracal_model::{ApprovalId, RecordId, Timestamp};

use super::{Approval, Filter, Listed, Slot, sql};
use crate::error::StoreError;
use crate::row::Row;
use crate::store::{Store, ZoneScope};
use crate::tx::Tx;
use crate::zones::Slice;
use crate::{Param, params};

/// Reads the holds of one zone.
#[derive(Clone, Copy, Debug)]
pub struct Approvals<'s> {
    zone: ZoneScope<'s>,
}

impl<'s> ZoneScope<'s> {
    /// The holds of this zone.
    pub const fn approvals(self) -> Approvals<'s> {
        Approvals { zone: self }
    }
}

impl Approvals<'_> {
    /// One hold.
    pub async fn get(&self, id: &ApprovalId) -> Result<Option<Approval>, StoreError> {
        let row = self
            .zone
            .query_opt(&sql::GET, &params![self.zone.id(), id])
            .await?;
        row.as_ref().map(Approval::read).transpose()
    }

    /// The live hold of a slot, expired or not.
    pub async fn live(&self, slot: Slot<'_>) -> Result<Option<Approval>, StoreError> {
        let params = params![self.zone.id(), slot.principal, slot.record(), slot.binding];
        let row = self.zone.query_opt(&sql::LIVE, &params).await?;
        row.as_ref().map(Approval::read).transpose()
    }

    /// A page, newest first.
    pub async fn page(
        &self,
        slice: Slice<'_>,
        filter: Filter<'_>,
        now: Timestamp,
    ) -> Result<Vec<Listed>, StoreError> {
        self.list(slice, filter, None, now).await
    }

    /// One hold as a list shows it.
    pub async fn listed(&self, id: &str, now: Timestamp) -> Result<Option<Listed>, StoreError> {
        let whole = Slice {
            before: i64::MAX,
            before_id: "",
            limit: 1,
        };
        let found = self.list(whole, Filter::default(), Some(id), now).await?;
        Ok(found.into_iter().next())
    }

    async fn list(
        &self,
        slice: Slice<'_>,
        filter: Filter<'_>,
        id: Option<&str>,
        now: Timestamp,
    ) -> Result<Vec<Listed>, StoreError> {
        let params = params![
            self.zone.id(),
            slice.before,
            slice.before_id,
            filter.state,
            now,
            filter.tier,
            filter.principal,
            filter.since,
            filter.until,
            id,
            slice.limit
        ];
        let rows = self.zone.query(&sql::PAGE, &params).await?;
        rows.iter().map(Listed::read).collect()
    }

    /// How many there are in each state now.
    pub async fn counts(&self, now: Timestamp) -> Result<Vec<(String, u64)>, StoreError> {
        let rows = self
            .zone
            .query(&sql::COUNTS, &params![self.zone.id(), now])
            .await?;
        rows.iter()
            .map(|row| Ok((row.string("state")?, row.count("rows")?)))
            .collect()
    }

    /// Whether this policy-set version is the active one.
    pub async fn is_current_policy(&self, version: &str) -> Result<bool, StoreError> {
        let params = params![self.zone.id(), version];
        Ok(self
            .zone
            .query_opt(&sql::IS_CURRENT, &params)
            .await?
            .is_some())
    }

    /// The line of each of these records up to its root: pairs of a record and an ancestor of it,
    /// itself included.
    pub async fn ancestry(
        &self,
        records: &[&RecordId],
    ) -> Result<Vec<(RecordId, RecordId)>, StoreError> {
        let ids = records.iter().map(|id| id.as_str()).collect();
        let params = [Param::from(self.zone.id()), Param::Texts(ids)];
        let rows = self.zone.query(&sql::ANCESTRY, &params).await?;
        let pair = |row: &Row| {
            let (start, id) = (row.text("start")?, row.text("id")?);
            Ok((RecordId::trusted(start), RecordId::trusted(id)))
        };
        rows.iter().map(pair).collect()
    }
}

impl Store {
    /// A hold of any zone: whoever knows its id may know how it stands.
    pub async fn find_approval(&self, id: &ApprovalId) -> Result<Option<Approval>, StoreError> {
        let row = self.query_opt(&sql::ANYWHERE, &params![id]).await?;
        row.as_ref().map(Approval::read).transpose()
    }

    /// These holds, of any zone, as far as they exist.
    pub async fn find_approvals(&self, ids: &[ApprovalId]) -> Result<Vec<Approval>, StoreError> {
        let ids = Param::Texts(ids.iter().map(ApprovalId::as_str).collect());
        let rows = self.query(&sql::MANY, &[ids]).await?;
        rows.iter().map(Approval::read).collect()
    }

    /// Removes at most `limit` holds, of any zone, that ended before `before`.
    pub async fn purge_approvals(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let mut tx = self.begin("purging approvals").await?;
        let removed = tx.execute(&sql::PURGE, &params![before, limit]).await?;
        tx.commit().await?;
        Ok(removed)
    }

    /// Evidence that was committed before `before` and is not known to be recorded: id and text.
    pub async fn approval_evidence(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let rows = self
            .query(&sql::LEFT_BEHIND, &params![before, limit])
            .await?;
        rows.iter()
            .map(|row| Ok((row.string("event_id")?, row.string("event")?)))
            .collect()
    }

    /// Forgets evidence that is recorded now.
    pub async fn approval_evidence_recorded(&self, event_ids: &[&str]) -> Result<(), StoreError> {
        let mut tx: Tx = self.begin("forgetting recorded evidence").await?;
        tx.execute(&sql::WITNESSED, &[Param::Texts(event_ids.to_vec())])
            .await?;
        tx.commit().await
    }
}
