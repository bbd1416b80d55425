//! Credential providers of a zone. What of their configuration is secret is in [`crate::secrets`].

use caracal_model::{ProviderId, Timestamp, ZoneId};
use serde_json::{Map, Value};

use crate::applications::json;
use crate::error::StoreError;
use crate::row::Row;
use crate::zones::{Author, Provenance, Slice};
use crate::{Tx, ZoneScope, params, statements};

macro_rules! columns {
    () => {
        "id, name, identifier, kind, config_json, secret_config_keys, connectivity_failed_at, \
         created_by, created_via_operator, updated_by, updated_via_operator, created_at, \
         updated_at, archived_at"
    };
}

statements! { pub(crate) mod sql {
    GET = concat!("SELECT ", columns!(), " FROM providers \
        WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL");
    LOCK = pg: concat!("SELECT ", columns!(), " FROM providers \
            WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL FOR NO KEY UPDATE"),
        lite: concat!("SELECT ", columns!(), " FROM providers \
            WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL");
    SHARE = pg: "SELECT id FROM providers WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL FOR SHARE",
        lite: "SELECT id FROM providers WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL";
    PAGE = concat!("SELECT ", columns!(), " FROM providers \
        WHERE zone_id = $1 AND (archived_at IS NOT NULL) = $2 AND (created_at, id) < ($3, $4) \
        ORDER BY created_at DESC, id DESC LIMIT $5");
    INSERT = "INSERT INTO providers (id, zone_id, name, identifier, kind, config_json, \
        secret_config_keys, connectivity_failed_at, created_by, created_via_operator, updated_by, \
        updated_via_operator, created_at, updated_at, archived_at) \
        VALUES ($2, $1, $3, $4, $5, $6, $7, $8, $9, $10, NULL, FALSE, $11, $11, NULL)";
    INSERT_NONE = "INSERT INTO providers (id, zone_id, name, identifier, kind, config_json, \
        secret_config_keys, connectivity_failed_at, created_by, created_via_operator, updated_by, \
        updated_via_operator, created_at, updated_at, archived_at) \
        VALUES ($2, $1, 'none', 'provider://none', 'none', '{}', '[]', NULL, $3, $4, NULL, FALSE, \
                $5, $5, NULL) \
        ON CONFLICT (id) DO UPDATE SET archived_at = NULL";
    UPDATE = "UPDATE providers SET name = $3, identifier = $4, kind = $5, config_json = $6, \
        secret_config_keys = $7, connectivity_failed_at = $8, updated_by = $9, \
        updated_via_operator = $10, updated_at = $11 WHERE zone_id = $1 AND id = $2";
    ARCHIVE = "UPDATE providers SET archived_at = $3, updated_at = $3, updated_by = $4, \
        updated_via_operator = $5 WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL";
} }

/// The index that keeps identifiers apart.
pub const IDENTIFIER_INDEX: &str = "providers_identifier";

/// A provider.
#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    /// Its id.
    pub id: ProviderId,
    /// Shown to people.
    pub name: String,
    /// `provider://…`, unique among the active ones of its zone.
    pub identifier: String,
    /// How it authenticates its calls.
    pub kind: String,
    /// The public part of its configuration.
    pub config: Map<String, Value>,
    /// Names of the stored secrets, sorted.
    pub secret_config_keys: Vec<String>,
    /// When its last test failed.
    pub connectivity_failed_at: Option<Timestamp>,
    /// Who and when.
    pub provenance: Provenance,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
}

impl Provider {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: ProviderId::trusted(row.text("id")?),
            name: row.string("name")?,
            identifier: row.string("identifier")?,
            kind: row.string("kind")?,
            config: row.json("config_json")?,
            secret_config_keys: row.json("secret_config_keys")?,
            connectivity_failed_at: row.opt_time("connectivity_failed_at")?,
            provenance: Provenance::read(row)?,
            archived_at: row.opt_time("archived_at")?,
        })
    }
}

/// The providers of one zone.
#[derive(Debug)]
pub struct Providers<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The providers of this zone.
    pub fn providers(self) -> Providers<'s> {
        Providers(self)
    }
}

impl Providers<'_> {
    /// One provider, unless it is archived.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, id: &str) -> Result<Option<Provider>, StoreError> {
        let row = self
            .0
            .query_opt(&sql::GET, &params![self.0.id(), id])
            .await?;
        row.as_ref().map(Provider::read).transpose()
    }

    /// A page, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(
        &self,
        archived: bool,
        slice: Slice<'_>,
    ) -> Result<Vec<Provider>, StoreError> {
        let params = params![
            self.0.id(),
            archived,
            slice.before,
            slice.before_id,
            slice.limit
        ];
        self.0
            .query(&sql::PAGE, &params)
            .await?
            .iter()
            .map(Provider::read)
            .collect()
    }
}

/// Changes of the providers of one zone.
#[derive(Debug)]
pub struct ProviderWrites<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl Tx {
    /// The providers of this zone.
    pub fn providers<'t>(&'t mut self, zone: &'t ZoneId) -> ProviderWrites<'t> {
        ProviderWrites { tx: self, zone }
    }
}

impl ProviderWrites<'_> {
    /// One provider, held until the end of the transaction.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn lock(&mut self, id: &str) -> Result<Option<Provider>, StoreError> {
        let row = self
            .tx
            .within(self.zone)
            .query_opt(&sql::LOCK, &params![self.zone, id])
            .await?;
        row.as_ref().map(Provider::read).transpose()
    }

    /// Whether the provider is there; it cannot be archived before the end of the transaction.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn is_active(&mut self, id: &str) -> Result<bool, StoreError> {
        Ok(self
            .tx
            .within(self.zone)
            .query_opt(&sql::SHARE, &params![self.zone, id])
            .await?
            .is_some())
    }

    /// Adds a provider.
    ///
    /// # Errors
    /// `Conflict` on [`IDENTIFIER_INDEX`] when the identifier is taken.
    pub async fn insert(&mut self, provider: &Provider) -> Result<(), StoreError> {
        let made = &provider.provenance;
        let params = params![
            self.zone,
            &provider.id,
            &provider.name,
            &provider.identifier,
            &provider.kind,
            json(&provider.config),
            json(&provider.secret_config_keys),
            provider.connectivity_failed_at,
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

    /// The provider of the control resource, which authenticates nothing; made when needed.
    ///
    /// # Errors
    /// `Conflict` on [`IDENTIFIER_INDEX`] when somebody made `provider://none` already.
    pub async fn none(&mut self, author: &Author) -> Result<ProviderId, StoreError> {
        let id = ProviderId::trusted(format!("provider-none-{}", self.zone));
        let params = params![self.zone, &id, &author.name, author.via_operator, author.at];
        self.tx
            .within(self.zone)
            .execute(&sql::INSERT_NONE, &params)
            .await?;
        Ok(id)
    }

    /// Writes what may change of a provider.
    ///
    /// # Errors
    /// `Conflict` on [`IDENTIFIER_INDEX`] when the identifier is taken.
    pub async fn update(&mut self, provider: &Provider) -> Result<(), StoreError> {
        let made = &provider.provenance;
        let params = params![
            self.zone,
            &provider.id,
            &provider.name,
            &provider.identifier,
            &provider.kind,
            json(&provider.config),
            json(&provider.secret_config_keys),
            provider.connectivity_failed_at,
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

    /// Archives a provider; answers whether it was there.
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
