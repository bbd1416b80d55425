//! Policy sets of a zone, their versions, and which version is in force.

use caracal_model::{Timestamp, ZoneId};

use crate::error::StoreError;
use crate::row::Row;
use crate::zones::{Author, Provenance, Slice};
use crate::{Tx, ZoneScope, params, statements};

macro_rules! columns {
    () => {
        "s.id, s.name, s.description, s.created_by, s.created_via_operator, s.updated_by, \
         s.updated_via_operator, s.created_at, s.updated_at, b.version_id AS active_version_id \
         FROM policy_sets s \
         LEFT JOIN policy_bindings b ON b.zone_id = s.zone_id AND b.policy_set_id = s.id"
    };
}

macro_rules! version_columns {
    () => {
        "id, policy_set_id, version, manifest_json, manifest_sha256, schema_version, created_by, \
         created_via_operator, created_at"
    };
}

statements! { pub(crate) mod sql {
    GET = concat!("SELECT ", columns!(), " WHERE s.zone_id = $1 AND s.id = $2 \
        AND s.archived_at IS NULL");
    LOCK = pg: "SELECT id FROM policy_sets WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL \
            FOR NO KEY UPDATE",
        lite: "SELECT id FROM policy_sets WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL";
    PAGE = concat!("SELECT ", columns!(), " WHERE s.zone_id = $1 AND s.archived_at IS NULL \
        AND (s.created_at, s.id) < ($2, $3) ORDER BY s.created_at DESC, s.id DESC LIMIT $4");
    VERSION = concat!("SELECT ", version_columns!(), " FROM policy_set_versions \
        WHERE zone_id = $1 AND policy_set_id = $2 AND id = $3");
    VERSION_OF_ZONE = concat!("SELECT ", version_columns!(), " FROM policy_set_versions \
        WHERE zone_id = $1 AND id = $2");
    VERSIONS = concat!("SELECT ", version_columns!(), " FROM policy_set_versions \
        WHERE zone_id = $1 AND policy_set_id = $2 AND (created_at, id) < ($3, $4) \
        ORDER BY created_at DESC, id DESC LIMIT $5");
    LAST_VERSION = "SELECT COALESCE(MAX(version), 0) AS version FROM policy_set_versions \
        WHERE policy_set_id = $1";
    INSERT = "INSERT INTO policy_sets (id, zone_id, name, description, created_by, \
        created_via_operator, updated_by, updated_via_operator, created_at, updated_at, archived_at) \
        VALUES ($2, $1, $3, $4, $5, $6, NULL, FALSE, $7, $7, NULL)";
    INSERT_VERSION = "INSERT INTO policy_set_versions (id, zone_id, policy_set_id, version, \
        manifest_json, manifest_sha256, schema_version, created_by, created_via_operator, created_at) \
        VALUES ($2, $1, $3, $4, $5, $6, $7, $8, $9, $10)";
    TOUCH = "UPDATE policy_sets SET updated_by = $3, updated_via_operator = $4, updated_at = $5 \
        WHERE zone_id = $1 AND id = $2";
    BIND = "INSERT INTO policy_bindings (zone_id, policy_set_id, version_id, activated_at) \
        VALUES ($1, $2, $3, $4) \
        ON CONFLICT (zone_id) DO UPDATE SET policy_set_id = excluded.policy_set_id, \
            version_id = excluded.version_id, activated_at = excluded.activated_at";
    UNBIND = "DELETE FROM policy_bindings WHERE zone_id = $1 AND policy_set_id = $2";
    ARCHIVE = "UPDATE policy_sets SET archived_at = $3, updated_at = $3, updated_by = $4, \
        updated_via_operator = $5 WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL";
    NEWS = "SELECT zone_id, topic, fields_json, attempts, last_error, dispatched_at, \
        available_at FROM outbox WHERE id = $1";
} }

/// The index that keeps names apart.
pub const NAME_INDEX: &str = "policy_sets_name";

/// A policy set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySet {
    /// Its id.
    pub id: String,
    /// Unique among the active ones of its zone.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Its version in force, if it is the zone's set.
    pub active_version_id: Option<String>,
    /// Who and when.
    pub provenance: Provenance,
}

impl PolicySet {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.string("id")?,
            name: row.string("name")?,
            description: row.opt_string("description")?,
            active_version_id: row.opt_string("active_version_id")?,
            provenance: Provenance::read(row)?,
        })
    }
}

/// A version of a policy set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySetVersion {
    /// Its id.
    pub id: String,
    /// The set.
    pub policy_set_id: String,
    /// From 1.
    pub version: i64,
    /// `[{"policy_version_id":…},…]`, compact: the text that was hashed.
    pub manifest_json: String,
    /// Of that text, hex.
    pub manifest_sha256: String,
    /// Schema of the decision input, the same for all its policies.
    pub schema_version: String,
    /// Who wrote it.
    pub created_by: Option<String>,
    /// Whether through the Operator.
    pub created_via_operator: bool,
    /// When.
    pub created_at: Timestamp,
}

impl PolicySetVersion {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.string("id")?,
            policy_set_id: row.string("policy_set_id")?,
            version: row.int("version")?,
            manifest_json: row.string("manifest_json")?,
            manifest_sha256: row.string("manifest_sha256")?,
            schema_version: row.string("schema_version")?,
            created_by: row.opt_string("created_by")?,
            created_via_operator: row.bool("created_via_operator")?,
            created_at: row.time("created_at")?,
        })
    }
}

/// An announcement of an activation, on its way or gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The zone that it is about.
    pub zone: String,
    /// Its topic.
    pub topic: String,
    /// The version that it announces.
    pub version_id: Option<String>,
    /// How often it was tried.
    pub attempts: i64,
    /// Why it failed last.
    pub last_error: Option<String>,
    /// When it reached its topic.
    pub dispatched_at: Option<Timestamp>,
    /// Whether it failed too often to be tried again.
    pub is_dead: bool,
}

/// The policy sets of one zone.
#[derive(Debug)]
pub struct PolicySets<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The policy sets of this zone.
    pub fn policy_sets(self) -> PolicySets<'s> {
        PolicySets(self)
    }
}

impl PolicySets<'_> {
    /// One set, unless it is archived.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, id: &str) -> Result<Option<PolicySet>, StoreError> {
        let row = self
            .0
            .query_opt(&sql::GET, &params![self.0.id(), id])
            .await?;
        row.as_ref().map(PolicySet::read).transpose()
    }

    /// A page, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(&self, slice: Slice<'_>) -> Result<Vec<PolicySet>, StoreError> {
        let params = params![self.0.id(), slice.before, slice.before_id, slice.limit];
        self.0
            .query(&sql::PAGE, &params)
            .await?
            .iter()
            .map(PolicySet::read)
            .collect()
    }

    /// One version of a set.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn version(
        &self,
        set: &str,
        version: &str,
    ) -> Result<Option<PolicySetVersion>, StoreError> {
        let row = self
            .0
            .query_opt(&sql::VERSION, &params![self.0.id(), set, version])
            .await?;
        row.as_ref().map(PolicySetVersion::read).transpose()
    }

    /// A version of whatever set of the zone, as evidence names it.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn version_of_zone(
        &self,
        version: &str,
    ) -> Result<Option<PolicySetVersion>, StoreError> {
        let row = self
            .0
            .query_opt(&sql::VERSION_OF_ZONE, &params![self.0.id(), version])
            .await?;
        row.as_ref().map(PolicySetVersion::read).transpose()
    }

    /// A page of the versions of a set, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn versions(
        &self,
        set: &str,
        slice: Slice<'_>,
    ) -> Result<Vec<PolicySetVersion>, StoreError> {
        let params = params![self.0.id(), set, slice.before, slice.before_id, slice.limit];
        self.0
            .query(&sql::VERSIONS, &params)
            .await?
            .iter()
            .map(PolicySetVersion::read)
            .collect()
    }

    /// An outbox row by its id, of whatever zone: the caller compares.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn news(&self, outbox_id: &str) -> Result<Option<News>, StoreError> {
        let Some(row) = self.0.query_opt(&sql::NEWS, &params![outbox_id]).await? else {
            return Ok(None);
        };
        let fields: caracal_model::change::Fields = row.json("fields_json")?;
        Ok(Some(News {
            zone: row.string("zone_id")?,
            topic: row.string("topic")?,
            version_id: fields.get("policy_set_version_id").cloned(),
            attempts: row.int("attempts")?,
            last_error: row.opt_string("last_error")?,
            dispatched_at: row.opt_time("dispatched_at")?,
            is_dead: row.int("available_at")? == i64::MAX,
        }))
    }
}

/// Changes of the policy sets of one zone.
#[derive(Debug)]
pub struct PolicySetWrites<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl Tx {
    /// The policy sets of this zone.
    pub fn policy_sets<'t>(&'t mut self, zone: &'t ZoneId) -> PolicySetWrites<'t> {
        PolicySetWrites { tx: self, zone }
    }
}

impl PolicySetWrites<'_> {
    /// Holds a set until the end of the transaction; answers whether it is there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn lock(&mut self, id: &str) -> Result<bool, StoreError> {
        Ok(self
            .tx
            .within(self.zone)
            .query_opt(&sql::LOCK, &params![self.zone, id])
            .await?
            .is_some())
    }

    /// One version of a set.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn version(
        &mut self,
        set: &str,
        version: &str,
    ) -> Result<Option<PolicySetVersion>, StoreError> {
        let row = self
            .tx
            .within(self.zone)
            .query_opt(&sql::VERSION, &params![self.zone, set, version])
            .await?;
        row.as_ref().map(PolicySetVersion::read).transpose()
    }

    /// The number of the newest version of a set; 0 without one.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn last_version(&mut self, set: &str) -> Result<i64, StoreError> {
        let row = self
            .tx
            .within(self.zone)
            .query_opt(&sql::LAST_VERSION, &params![set])
            .await?;
        row.map_or(Ok(0), |row| row.int("version"))
    }

    /// Adds a set.
    ///
    /// # Errors
    /// `Conflict` on [`NAME_INDEX`] when the name is taken.
    pub async fn insert(&mut self, set: &PolicySet) -> Result<(), StoreError> {
        let made = &set.provenance;
        let params = params![
            self.zone,
            &set.id,
            &set.name,
            &set.description,
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
    pub async fn insert_version(&mut self, version: &PolicySetVersion) -> Result<(), StoreError> {
        let params = params![
            self.zone,
            &version.id,
            &version.policy_set_id,
            version.version,
            &version.manifest_json,
            &version.manifest_sha256,
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

    /// Notes who changed a set.
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

    /// Puts a version in force, in the place of whatever was.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn bind(
        &mut self,
        set: &str,
        version: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.tx
            .within(self.zone)
            .execute(&sql::BIND, &params![self.zone, set, version, now])
            .await
            .map(drop)
    }

    /// Takes a set out of force; answers whether it was in force.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn unbind(&mut self, set: &str) -> Result<bool, StoreError> {
        Ok(self
            .tx
            .within(self.zone)
            .execute(&sql::UNBIND, &params![self.zone, set])
            .await?
            == 1)
    }

    /// Archives a set; answers whether it was there.
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
