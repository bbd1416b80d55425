//! Issuers whose ID tokens a zone trusts (spec: admin-api §7.8, sts §7).

use caracal_model::{Timestamp, ZoneId};

use crate::error::StoreError;
use crate::row::Row;
use crate::zones::{Author, Provenance, Slice};
use crate::{Tx, ZoneScope, params, statements};

macro_rules! columns {
    () => {
        "id, issuer, jwks_url, audience, created_by, created_via_operator, updated_by, \
         updated_via_operator, created_at, updated_at, archived_at"
    };
}

statements! { pub(crate) mod sql {
    GET = concat!("SELECT ", columns!(), " FROM subject_issuers \
        WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL");
    LOCK = pg: concat!("SELECT ", columns!(), " FROM subject_issuers \
            WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL FOR NO KEY UPDATE"),
        lite: concat!("SELECT ", columns!(), " FROM subject_issuers \
            WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL");
    PAGE = concat!("SELECT ", columns!(), " FROM subject_issuers \
        WHERE zone_id = $1 AND archived_at IS NULL AND (created_at, id) < ($2, $3) \
        ORDER BY created_at DESC, id DESC LIMIT $4");
    ACTIVE = "SELECT COUNT(*) AS active FROM subject_issuers \
        WHERE zone_id = $1 AND archived_at IS NULL";
    INSERT = "INSERT INTO subject_issuers (id, zone_id, issuer, jwks_url, audience, created_by, \
        created_via_operator, updated_by, updated_via_operator, created_at, updated_at, archived_at) \
        VALUES ($2, $1, $3, $4, $5, $6, $7, NULL, FALSE, $8, $8, NULL)";
    UPDATE = "UPDATE subject_issuers SET jwks_url = $3, audience = $4, updated_by = $5, \
        updated_via_operator = $6, updated_at = $7 WHERE zone_id = $1 AND id = $2";
    ARCHIVE = "UPDATE subject_issuers SET archived_at = $3, updated_at = $3, updated_by = $4, \
        updated_via_operator = $5 WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL";
} }

/// The index that keeps issuers apart.
pub const ISSUER_INDEX: &str = "subject_issuers_issuer";

/// A trusted issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectIssuer {
    /// Its id.
    pub id: String,
    /// `iss` of its ID tokens, compared exactly; unique among the active ones of its zone.
    pub issuer: String,
    /// Where its keys are published.
    pub jwks_url: String,
    /// What `aud` of its ID tokens must contain.
    pub audience: String,
    /// Who and when.
    pub provenance: Provenance,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
}

impl SubjectIssuer {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.string("id")?,
            issuer: row.string("issuer")?,
            jwks_url: row.string("jwks_url")?,
            audience: row.string("audience")?,
            provenance: Provenance::read(row)?,
            archived_at: row.opt_time("archived_at")?,
        })
    }
}

/// The trusted issuers of one zone.
#[derive(Debug)]
pub struct SubjectIssuers<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The trusted issuers of this zone.
    pub fn subject_issuers(self) -> SubjectIssuers<'s> {
        SubjectIssuers(self)
    }
}

impl SubjectIssuers<'_> {
    /// One issuer, unless it is archived.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, id: &str) -> Result<Option<SubjectIssuer>, StoreError> {
        let params = params![self.0.id(), id];
        let row = self.0.query_opt(&sql::GET, &params).await?;
        row.as_ref().map(SubjectIssuer::read).transpose()
    }

    /// A page of those that are not archived, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(&self, slice: Slice<'_>) -> Result<Vec<SubjectIssuer>, StoreError> {
        let params = params![self.0.id(), slice.before, slice.before_id, slice.limit];
        let rows = self.0.query(&sql::PAGE, &params).await?;
        rows.iter().map(SubjectIssuer::read).collect()
    }
}

/// Changes of the trusted issuers of one zone.
#[derive(Debug)]
pub struct SubjectIssuerWrites<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl Tx {
    /// The trusted issuers of this zone.
    pub fn subject_issuers<'t>(&'t mut self, zone: &'t ZoneId) -> SubjectIssuerWrites<'t> {
        SubjectIssuerWrites { tx: self, zone }
    }
}

impl SubjectIssuerWrites<'_> {
    /// One issuer, held until the end of the transaction.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn lock(&mut self, id: &str) -> Result<Option<SubjectIssuer>, StoreError> {
        let row = self
            .tx
            .query_opt(&sql::LOCK, &params![self.zone, id])
            .await?;
        row.as_ref().map(SubjectIssuer::read).transpose()
    }

    /// How many are not archived. Stays true until the end of the transaction only for who holds
    /// the zone.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn active(&mut self) -> Result<u64, StoreError> {
        let row = self.tx.query_opt(&sql::ACTIVE, &params![self.zone]).await?;
        row.map_or(Ok(0), |row| row.count("active"))
    }

    /// Adds an issuer.
    ///
    /// # Errors
    /// `Conflict` on [`ISSUER_INDEX`] when the issuer is trusted already.
    pub async fn insert(&mut self, issuer: &SubjectIssuer) -> Result<(), StoreError> {
        let made = &issuer.provenance;
        let params = params![
            self.zone,
            &issuer.id,
            &issuer.issuer,
            &issuer.jwks_url,
            &issuer.audience,
            &made.created_by,
            made.created_via_operator,
            made.created_at,
        ];
        self.tx.execute(&sql::INSERT, &params).await.map(drop)
    }

    /// Writes what may change of an issuer.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn update(&mut self, issuer: &SubjectIssuer) -> Result<(), StoreError> {
        let made = &issuer.provenance;
        let params = params![
            self.zone,
            &issuer.id,
            &issuer.jwks_url,
            &issuer.audience,
            &made.updated_by,
            made.updated_via_operator,
            made.updated_at,
        ];
        self.tx.execute(&sql::UPDATE, &params).await.map(drop)
    }

    /// Archives an issuer; answers whether it was there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn archive(&mut self, id: &str, author: &Author) -> Result<bool, StoreError> {
        let params = params![self.zone, id, author.at, &author.name, author.via_operator];
        Ok(self.tx.execute(&sql::ARCHIVE, &params).await? == 1)
    }
}
