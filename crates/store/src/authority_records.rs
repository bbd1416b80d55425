//! Authority records that can be listed or revoked: the anchors of sessions and users. Records of
//! gateway and resource mandates are evidence, not rows (spec README, decision 10).

use caracal_model::{RecordId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::applications::json;
use crate::error::StoreError;
use crate::row::Row;
use crate::store::{Store, ZoneScope};
use crate::tx::ZoneTx;
use crate::zones::Slice;
use crate::{params, statements};

macro_rules! columns {
    () => {
        "id, record_type, subject_id, client_id, parent_id, status, expires_at, created_at, \
         revoked_at, revoked_reason, claims_json"
    };
}

statements! { pub(crate) mod sql {
    INSERT = pg: "INSERT INTO authority_records (id, zone_id, record_type, subject_id, client_id,
                      parent_id, status, expires_at, created_at, claims_json)
                  SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],
                                       $6::text[], $7::text[], $8::bigint[], $9::bigint[],
                                       $10::text[])",
             lite: "INSERT INTO authority_records (id, zone_id, record_type, subject_id, client_id,
                        parent_id, status, expires_at, created_at, claims_json)
                    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    GET = concat!("SELECT ", columns!(), " FROM authority_records WHERE zone_id = $1 AND id = $2");
    PAGE = concat!("SELECT ", columns!(), " FROM authority_records
        WHERE zone_id = $1 AND (created_at, id) < ($2, $3)
          AND (CAST($4 AS TEXT) IS NULL OR id = $4)
          AND (CAST($5 AS TEXT) IS NULL OR subject_id = $5)
          AND (CAST($6 AS TEXT) IS NULL OR record_type = $6)
          AND (CAST($7 AS TEXT) IS NULL OR $7 =
               CASE WHEN status = 'active' AND expires_at <= $8 THEN 'expired' ELSE status END)
        ORDER BY created_at DESC, id DESC LIMIT $9");
    REVOKE = "WITH RECURSIVE line (id) AS (
                  SELECT id FROM authority_records WHERE zone_id = $1 AND id = $2
                  UNION
                  SELECT child.id FROM authority_records child JOIN line ON child.parent_id = line.id
                  WHERE child.zone_id = $1)
              UPDATE authority_records SET status = 'revoked', revoked_at = $3, revoked_reason = $4
              WHERE zone_id = $1 AND status = 'active' AND id IN (SELECT id FROM line)
              RETURNING id";
    PRUNE = "DELETE FROM authority_records WHERE id IN (
                 SELECT id FROM authority_records WHERE expires_at < $1
                 ORDER BY expires_at LIMIT $2)";
} }

/// An authority record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityRecord {
    /// `sid` of its mandates.
    pub id: RecordId,
    /// `application` or `user`.
    pub record_type: String,
    /// `sub` of its mandates.
    pub subject_id: String,
    /// The application that obtained it.
    pub client_id: String,
    /// The record that it was derived from.
    pub parent_id: Option<RecordId>,
    /// `active`, `revoked` or `expired`.
    pub status: String,
    /// When it ends by itself.
    pub expires_at: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// Why it was revoked.
    pub revoked_reason: Option<String>,
    /// Who vouches for a federated user: `iss` of the ID token.
    pub issuer: Option<String>,
}

/// Which records to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordFilter<'f> {
    /// Only this one.
    pub id: Option<&'f str>,
    /// In this state now.
    pub status: Option<&'f str>,
    /// Of this subject.
    pub subject_id: Option<&'f str>,
    /// `application` or `user`.
    pub kind: Option<&'f str>,
}

/// What a record keeps of the token that it was made from.
#[derive(Serialize, Deserialize)]
pub(crate) struct Provenance {
    pub iss: String,
}

impl AuthorityRecord {
    /// Its state now: what nobody revoked ends by itself.
    pub fn status_at(&self, now: Timestamp) -> &str {
        if self.status == "active" && self.expires_at <= now {
            "expired"
        } else {
            &self.status
        }
    }

    fn provenance(&self) -> Option<String> {
        let iss = self.issuer.clone()?;
        Some(json(&Provenance { iss }))
    }

    fn read(row: &Row) -> Result<Self, StoreError> {
        let claims: Option<Provenance> = row.opt_json("claims_json")?;
        Ok(Self {
            id: RecordId::trusted(row.text("id")?),
            record_type: row.string("record_type")?,
            subject_id: row.string("subject_id")?,
            client_id: row.string("client_id")?,
            parent_id: row.opt_text("parent_id")?.map(RecordId::trusted),
            status: row.string("status")?,
            expires_at: row.time("expires_at")?,
            created_at: row.time("created_at")?,
            revoked_at: row.opt_time("revoked_at")?,
            revoked_reason: row.opt_string("revoked_reason")?,
            issuer: claims.map(|claims| claims.iss),
        })
    }
}

impl ZoneScope<'_> {
    /// A page of the records of this zone, newest first.
    pub async fn authority_records(
        &self,
        filter: &RecordFilter<'_>,
        slice: Slice<'_>,
        now: Timestamp,
    ) -> Result<Vec<AuthorityRecord>, StoreError> {
        let params = params![
            self.id(),
            slice.before,
            slice.before_id,
            filter.id,
            filter.subject_id,
            filter.kind,
            filter.status,
            now,
            slice.limit
        ];
        let rows = self.query(&sql::PAGE, &params).await?;
        rows.iter().map(AuthorityRecord::read).collect()
    }

    /// One authority record of this zone.
    pub async fn authority_record(
        &self,
        id: &RecordId,
    ) -> Result<Option<AuthorityRecord>, StoreError> {
        let row = self.query_opt(&sql::GET, &params![self.id(), id]).await?;
        row.as_ref().map(AuthorityRecord::read).transpose()
    }
}

impl ZoneTx<'_> {
    /// Adds records, all at once.
    pub async fn add_authority_records(
        &mut self,
        records: &[AuthorityRecord],
    ) -> Result<(), StoreError> {
        let zone = self.id();
        let claims: Vec<_> = records.iter().map(AuthorityRecord::provenance).collect();
        let rows: Vec<_> = records
            .iter()
            .zip(&claims)
            .map(|(record, claims)| {
                params![
                    &record.id,
                    zone,
                    &record.record_type,
                    &record.subject_id,
                    &record.client_id,
                    record.parent_id.as_ref(),
                    &record.status,
                    record.expires_at,
                    record.created_at,
                    claims,
                ]
                .to_vec()
            })
            .collect();
        self.tx().execute_rows(&sql::INSERT, &rows).await.map(drop)
    }

    /// Revokes a record and all that was derived from it; answers with those that were active.
    pub async fn revoke_authority_record(
        &mut self,
        id: &RecordId,
        reason: &str,
        now: Timestamp,
    ) -> Result<Vec<RecordId>, StoreError> {
        let zone = self.id();
        let rows = self
            .tx()
            .query(&sql::REVOKE, &params![zone, id, now, reason])
            .await?;
        rows.iter()
            .map(|row| Ok(RecordId::trusted(row.text("id")?)))
            .collect()
    }
}

impl Store {
    /// Removes at most `limit` records, of any zone, that ended before `before`.
    pub async fn prune_authority_records(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<u64, StoreError> {
        let mut tx = self.begin("pruning authority records").await?;
        let removed = tx.execute(&sql::PRUNE, &params![before, limit]).await?;
        tx.commit().await?;
        Ok(removed)
    }
}
