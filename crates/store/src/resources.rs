//! Resources of a zone.

use caracal_model::{ProviderId, ResourceId, Timestamp, ZoneId};
use serde_json::Value;

use crate::applications::json;
use crate::error::StoreError;
use crate::row::Row;
use crate::zones::{Author, Provenance, Slice};
use crate::{Tx, ZoneScope, params, statements};

macro_rules! columns {
    () => {
        "id, name, identifier, upstream_url, credential_provider_id, scopes, operations, \
         operation_enforcement, created_by, created_via_operator, updated_by, \
         updated_via_operator, created_at, updated_at, archived_at"
    };
}

statements! { pub(crate) mod sql {
    GET = concat!("SELECT ", columns!(), " FROM resources \
        WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL");
    LOCK = pg: concat!("SELECT ", columns!(), " FROM resources \
            WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL FOR NO KEY UPDATE"),
        lite: concat!("SELECT ", columns!(), " FROM resources \
            WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL");
    PAGE = concat!("SELECT ", columns!(), " FROM resources \
        WHERE zone_id = $1 AND (archived_at IS NOT NULL) = $2 AND (created_at, id) < ($3, $4) \
          AND (CAST($6 AS TEXT) IS NULL OR identifier <> $6) \
        ORDER BY created_at DESC, id DESC LIMIT $5");
    COUNT = "SELECT COUNT(*) AS active FROM resources WHERE zone_id = $1 AND archived_at IS NULL";
    LIKE = "SELECT identifier FROM resources WHERE zone_id = $1 AND archived_at IS NULL \
        AND (identifier = $2 OR identifier LIKE $3)";
    INSERT = "INSERT INTO resources (id, zone_id, name, identifier, upstream_url, \
        credential_provider_id, scopes, operations, operation_enforcement, created_by, \
        created_via_operator, updated_by, updated_via_operator, created_at, updated_at, archived_at) \
        VALUES ($2, $1, $3, $4, $5, $6, $7, $8, $9, $10, $11, NULL, FALSE, $12, $12, NULL)";
    UPDATE = "UPDATE resources SET name = $3, identifier = $4, upstream_url = $5, \
        credential_provider_id = $6, scopes = $7, operations = $8, operation_enforcement = $9, \
        updated_by = $10, updated_via_operator = $11, updated_at = $12 \
        WHERE zone_id = $1 AND id = $2";
    ARCHIVE = "UPDATE resources SET archived_at = $3, updated_at = $3, updated_by = $4, \
        updated_via_operator = $5 WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL";
} }

/// The index that keeps identifiers apart.
pub const IDENTIFIER_INDEX: &str = "resources_identifier";

/// A resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Its id.
    pub id: ResourceId,
    /// Shown to people.
    pub name: String,
    /// A URI, unique among the active ones of its zone.
    pub identifier: String,
    /// Where the Gateway sends its calls.
    pub upstream_url: Option<String>,
    /// Who authenticates those calls.
    pub credential_provider_id: ProviderId,
    /// Its scopes.
    pub scopes: Vec<String>,
    /// Its operations, as the service wrote them.
    pub operations: Value,
    /// `enforced` or `transport_uniform`.
    pub operation_enforcement: String,
    /// Who and when.
    pub provenance: Provenance,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
}

impl Resource {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: ResourceId::trusted(row.text("id")?),
            name: row.string("name")?,
            identifier: row.string("identifier")?,
            upstream_url: row.opt_string("upstream_url")?,
            credential_provider_id: ProviderId::trusted(row.text("credential_provider_id")?),
            scopes: row.json("scopes")?,
            operations: row.json("operations")?,
            operation_enforcement: row.string("operation_enforcement")?,
            provenance: Provenance::read(row)?,
            archived_at: row.opt_time("archived_at")?,
        })
    }
}

/// The resources of one zone.
#[derive(Debug)]
pub struct Resources<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The resources of this zone.
    pub fn resources(self) -> Resources<'s> {
        Resources(self)
    }
}

impl Resources<'_> {
    /// One resource, unless it is archived.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, id: &str) -> Result<Option<Resource>, StoreError> {
        let row = self
            .0
            .query_opt(&sql::GET, &params![self.0.id(), id])
            .await?;
        row.as_ref().map(Resource::read).transpose()
    }

    /// A page, newest first, without the resource of the `hidden` identifier.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(
        &self,
        archived: bool,
        slice: Slice<'_>,
        hidden: Option<&str>,
    ) -> Result<Vec<Resource>, StoreError> {
        let zone = self.0.id();
        let params = params![
            zone,
            archived,
            slice.before,
            slice.before_id,
            slice.limit,
            hidden
        ];
        self.0
            .query(&sql::PAGE, &params)
            .await?
            .iter()
            .map(Resource::read)
            .collect()
    }
}

/// Changes of the resources of one zone.
#[derive(Debug)]
pub struct ResourceWrites<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl Tx {
    /// The resources of this zone.
    pub fn resources<'t>(&'t mut self, zone: &'t ZoneId) -> ResourceWrites<'t> {
        ResourceWrites { tx: self, zone }
    }
}

impl ResourceWrites<'_> {
    /// One resource, held until the end of the transaction.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn lock(&mut self, id: &str) -> Result<Option<Resource>, StoreError> {
        let row = self
            .tx
            .within(self.zone)
            .query_opt(&sql::LOCK, &params![self.zone, id])
            .await?;
        row.as_ref().map(Resource::read).transpose()
    }

    /// How many are active.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn active(&mut self) -> Result<u64, StoreError> {
        let row = self
            .tx
            .within(self.zone)
            .query_opt(&sql::COUNT, &params![self.zone])
            .await?;
        row.map_or(Ok(0), |row| row.count("active"))
    }

    /// The taken ones among an identifier and those that start with it and a `-`.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn identifiers_like(&mut self, identifier: &str) -> Result<Vec<String>, StoreError> {
        let params = params![self.zone, identifier, format!("{identifier}-%")];
        let rows = self.tx.within(self.zone).query(&sql::LIKE, &params).await?;
        rows.iter().map(|row| row.string("identifier")).collect()
    }

    /// Adds a resource.
    ///
    /// # Errors
    /// `Conflict` on [`IDENTIFIER_INDEX`] when the identifier is taken.
    pub async fn insert(&mut self, resource: &Resource) -> Result<(), StoreError> {
        let made = &resource.provenance;
        let params = params![
            self.zone,
            &resource.id,
            &resource.name,
            &resource.identifier,
            &resource.upstream_url,
            &resource.credential_provider_id,
            json(&resource.scopes),
            json(&resource.operations),
            &resource.operation_enforcement,
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

    /// Writes what may change of a resource.
    ///
    /// # Errors
    /// `Conflict` on [`IDENTIFIER_INDEX`] when the identifier is taken.
    pub async fn update(&mut self, resource: &Resource) -> Result<(), StoreError> {
        let made = &resource.provenance;
        let params = params![
            self.zone,
            &resource.id,
            &resource.name,
            &resource.identifier,
            &resource.upstream_url,
            &resource.credential_provider_id,
            json(&resource.scopes),
            json(&resource.operations),
            &resource.operation_enforcement,
            &made.updated_by,
            made.updated_via_operator,
            made.updated_at,
        ];
        self.tx
            .within(self.zone)
            .execute(&sql::UPDATE, &params)
            .await
            .map(drop)
    }

    /// Archives a resource; answers whether it was there.
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
