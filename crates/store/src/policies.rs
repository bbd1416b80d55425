//! Policies of a zone and their versions, which never change once written.

use caracal_model::{Timestamp, ZoneId};

use crate::error::StoreError;
use crate::row::Row;
use crate::zones::{Author, Provenance, Slice};
use crate::{Param, Tx, ZoneScope, params, statements};

macro_rules! columns {
    () => {
        "id, name, description, created_by, created_via_operator, updated_by, \
         updated_via_operator, created_at, updated_at"
    };
}

macro_rules! version_columns {
    () => {
        "id, policy_id, version, content, content_sha256, schema_version, created_by, \
         created_via_operator, created_at"
    };
}

statements! { pub(crate) mod sql {
    GET = concat!("SELECT ", columns!(), " FROM policies \
        WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL");
    LOCK = pg: concat!("SELECT ", columns!(), " FROM policies \
            WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL FOR NO KEY UPDATE"),
        lite: concat!("SELECT ", columns!(), " FROM policies \
            WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL");
    PAGE = concat!("SELECT ", columns!(), " FROM policies \
        WHERE zone_id = $1 AND archived_at IS NULL AND (created_at, id) < ($2, $3) \
        ORDER BY created_at DESC, id DESC LIMIT $4");
    VERSIONS = concat!("SELECT ", version_columns!(), " FROM policy_versions \
        WHERE zone_id = $1 AND policy_id = $2 AND version < $3 ORDER BY version DESC LIMIT $4");
    VERSIONS_OF = pg: concat!("SELECT ", version_columns!(), " FROM policy_versions \
            WHERE zone_id = $1 AND id = ANY($2)"),
        lite: concat!("SELECT ", version_columns!(), " FROM policy_versions \
            WHERE zone_id = $1 AND id IN (SELECT value FROM json_each($2))");
    LAST_VERSION = "SELECT COALESCE(MAX(version), 0) AS version FROM policy_versions \
        WHERE policy_id = $1";
    INSERT = "INSERT INTO policies (id, zone_id, name, description, created_by, \
        created_via_operator, updated_by, updated_via_operator, created_at, updated_at, archived_at) \
        VALUES ($2, $1, $3, $4, $5, $6, NULL, FALSE, $7, $7, NULL)";
    INSERT_VERSION = "INSERT INTO policy_versions (id, zone_id, policy_id, version, content, \
        content_sha256, schema_version, created_by, created_via_operator, created_at) \
        VALUES ($2, $1, $3, $4, $5, $6, $7, $8, $9, $10)";
    TOUCH = "UPDATE policies SET updated_by = $3, updated_via_operator = $4, updated_at = $5 \
        WHERE zone_id = $1 AND id = $2";
    ARCHIVE = "UPDATE policies SET archived_at = $3, updated_at = $3, updated_by = $4, \
        updated_via_operator = $5 WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL";
} }

/// The index that keeps names apart.
pub const NAME_INDEX: &str = "policies_name";

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its id.
    pub id: String,
    /// Unique among the active ones of its zone.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Who and when.
    pub provenance: Provenance,
}

impl Policy {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.string("id")?,
            name: row.string("name")?,
            description: row.opt_string("description")?,
            provenance: Provenance::read(row)?,
        })
    }
}

/// A version of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyVersion {
    /// Its id.
    pub id: String,
    /// The policy.
    pub policy_id: String,
    /// From 1.
    pub version: i64,
    /// The document, exactly as received.
    pub content: String,
    /// Of those bytes, hex.
    pub content_sha256: String,
    /// Schema of the decision input.
    pub schema_version: String,
    /// Who wrote it.
    pub created_by: Option<String>,
    /// Whether through the Operator.
    pub created_via_operator: bool,
    /// When.
    pub created_at: Timestamp,
}

impl PolicyVersion {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.string("id")?,
            policy_id: row.string("policy_id")?,
            version: row.int("version")?,
            content: row.string("content")?,
            content_sha256: row.string("content_sha256")?,
            schema_version: row.string("schema_version")?,
            created_by: row.opt_string("created_by")?,
            created_via_operator: row.bool("created_via_operator")?,
            created_at: row.time("created_at")?,
        })
    }
}

/// The policies of one zone.
#[derive(Debug)]
pub struct Policies<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The policies of this zone.
    pub fn policies(self) -> Policies<'s> {
        Policies(self)
    }
}

impl Policies<'_> {
    /// One policy, unless it is archived.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, id: &str) -> Result<Option<Policy>, StoreError> {
        let row = self
            .0
            .query_opt(&sql::GET, &params![self.0.id(), id])
            .await?;
        row.as_ref().map(Policy::read).transpose()
    }

    /// A page, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(&self, slice: Slice<'_>) -> Result<Vec<Policy>, StoreError> {
        let params = params![self.0.id(), slice.before, slice.before_id, slice.limit];
        self.0
            .query(&sql::PAGE, &params)
            .await?
            .iter()
            .map(Policy::read)
            .collect()
    }

    /// The newest versions of a policy below this number, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn versions(
        &self,
        policy: &str,
        below: i64,
        limit: u32,
    ) -> Result<Vec<PolicyVersion>, StoreError> {
        let params = params![self.0.id(), policy, below, limit];
        let rows = self.0.query(&sql::VERSIONS, &params).await?;
        rows.iter().map(PolicyVersion::read).collect()
    }

    /// The versions with these ids that are in this zone, in no order.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn versions_of(&self, ids: &[String]) -> Result<Vec<PolicyVersion>, StoreError> {
        let params = [Param::from(self.0.id()), texts(ids)];
        let rows = self.0.query(&sql::VERSIONS_OF, &params).await?;
        rows.iter().map(PolicyVersion::read).collect()
    }
}

fn texts(ids: &[String]) -> Param<'_> {
    Param::Texts(ids.iter().map(String::as_str).collect())
}

/// Changes of the policies of one zone.
#[derive(Debug)]
pub struct PolicyWrites<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl Tx {
    /// The policies of this zone.
    pub fn policies<'t>(&'t mut self, zone: &'t ZoneId) -> PolicyWrites<'t> {
        PolicyWrites { tx: self, zone }
    }
}

impl PolicyWrites<'_> {
    /// One policy, held until the end of the transaction, so that its versions are numbered one
    /// after another.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn lock(&mut self, id: &str) -> Result<Option<Policy>, StoreError> {
        let row = self
            .tx
            .within(self.zone)
            .query_opt(&sql::LOCK, &params![self.zone, id])
            .await?;
        row.as_ref().map(Policy::read).transpose()
    }

    /// The number of the newest version of a policy; 0 without one.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn last_version(&mut self, policy: &str) -> Result<i64, StoreError> {
        let row = self
            .tx
            .within(self.zone)
            .query_opt(&sql::LAST_VERSION, &params![policy])
            .await?;
        row.map_or(Ok(0), |row| row.int("version"))
    }

    /// The versions with these ids that are in this zone, in no order.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn versions_of(&mut self, ids: &[String]) -> Result<Vec<PolicyVersion>, StoreError> {
        let params = [Param::from(self.zone), texts(ids)];
        let rows = self
            .tx
            .within(self.zone)
            .query(&sql::VERSIONS_OF, &params)
            .await?;
        rows.iter().map(PolicyVersion::read).collect()
    }

    /// Adds a policy.
    ///
    /// # Errors
    /// `Conflict` on [`NAME_INDEX`] when the name is taken.
    pub async fn insert(&mut self, policy: &Policy) -> Result<(), StoreError> {
        let made = &policy.provenance;
        let params = params![
            self.zone,
            &policy.id,
            &policy.name,
            &policy.description,
            &made.created_by,
            made.created_via_operator,
            made.created_at,
        ];
        self.tx
            .within(self.zone)
            .execute(&sql::INSERT, &params)
            .await
            .map(drop)
    }

    /// Adds a version.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn insert_version(&mut self, version: &PolicyVersion) -> Result<(), StoreError> {
        let params = params![
            self.zone,
            &version.id,
            &version.policy_id,
            version.version,
            &version.content,
            &version.content_sha256,
            &version.schema_version,
            &version.created_by,
            version.created_via_operator,
            version.created_at,
        ];
        self.tx
            .within(self.zone)
            .execute(&sql::INSERT_VERSION, &params)
            .await
            .map(drop)
    }

    /// Notes who changed a policy.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn touch(&mut self, id: &str, author: &Author) -> Result<(), StoreError> {
        let params = params![self.zone, id, &author.name, author.via_operator, author.at];
        self.tx
            .within(self.zone)
            .execute(&sql::TOUCH, &params)
            .await
            .map(drop)
    }

    /// Archives a policy; answers whether it was there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn archive(&mut self, id: &str, author: &Author) -> Result<bool, StoreError> {
        let params = params![self.zone, id, author.at, &author.name, author.via_operator];
        Ok(self
            .tx
            .within(self.zone)
            .execute(&sql::ARCHIVE, &params)
            .await?
            == 1)
    }
}
