//! Everything about a zone that the hot path holds in memory, read as one state of the store.

use std::collections::HashMap;

use caracal_model::{ApplicationId, Kid, ProviderId, ResourceId, Timestamp, ZoneId};
use serde::Deserialize;
use serde_json::Value;

use crate::error::StoreError;
use crate::row::Row;
use crate::secrets::Kept;
use crate::store::{Snapshot, Store, ZoneScope};
use crate::{params, statements};

statements! { pub(crate) mod sql {
    ZONE = "SELECT dcr_enabled, actor_tokens, archived_at FROM zones WHERE id = $1";
    KEYS = "SELECT id, public_x, public_y, sealed_private, created_at, signs_from
            FROM zone_keys WHERE zone_id = $1 ORDER BY signs_from, id";
    APPLICATIONS = "SELECT id, name, registration_method, secret_verifier, traits, expires_at
                    FROM applications WHERE zone_id = $1 AND archived_at IS NULL";
    RESOURCES = "SELECT id, identifier, name, upstream_url, credential_provider_id, scopes,
                     operations, operation_enforcement
                 FROM resources WHERE zone_id = $1 AND archived_at IS NULL";
    /// The place of a provider's secret is `secrets::provider_secret_ref`.
    PROVIDERS = "SELECT p.id AS id, p.identifier AS identifier, p.kind AS kind,
                     p.config_json AS config_json, s.envelope AS envelope,
                     s.outside_sha256 AS outside_sha256, s.backend AS backend
                 FROM providers p
                 LEFT JOIN secret_store s ON s.zone_id = p.zone_id
                     AND s.ref = 'zones/' || p.zone_id || '/providers/' || p.id || '/secretConfig'
                 WHERE p.zone_id = $1 AND p.archived_at IS NULL";
    ISSUERS = "SELECT id, issuer, jwks_url, audience FROM subject_issuers
               WHERE zone_id = $1 AND archived_at IS NULL";
    BINDING = "SELECT b.policy_set_id AS policy_set_id, b.version_id AS version_id,
                   v.manifest_json AS manifest_json, v.manifest_sha256 AS manifest_sha256
               FROM policy_bindings b
               JOIN policy_set_versions v ON v.id = b.version_id AND v.zone_id = b.zone_id
               WHERE b.zone_id = $1";
    DOCUMENTS = pg: "SELECT id, content FROM policy_versions WHERE zone_id = $1 AND id = ANY($2)",
                lite: "SELECT id, content FROM policy_versions
                       WHERE zone_id = $1 AND id IN (SELECT value FROM json_each($2))";
    ZONE_OF_APPLICATION = "SELECT zone_id FROM applications WHERE id = $1 AND archived_at IS NULL";
    BOUND_ZONES = "SELECT z.id AS id FROM zones z JOIN policy_bindings b ON b.zone_id = z.id
                   WHERE z.archived_at IS NULL ORDER BY z.id";
    IN_FORCE = "SELECT zone_id, version_id FROM policy_bindings";
} }

/// One state of one zone.
#[derive(Debug)]
pub struct ZoneSnapshot {
    /// The zone itself.
    pub zone: ZoneRow,
    /// Its keys, oldest first, whether or not they sign yet.
    pub keys: Vec<KeyRow>,
    /// Its applications that are not archived.
    pub applications: Vec<AppRow>,
    /// Its resources that are not archived.
    pub resources: Vec<ResourceRow>,
    /// Its providers that are not archived.
    pub providers: Vec<ProviderRow>,
    /// The issuers whose ID tokens it trusts.
    pub issuers: Vec<IssuerRow>,
    /// Its active policy.
    pub policy: Option<PolicyBinding>,
}

/// The zone itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneRow {
    /// Its id.
    pub id: ZoneId,
    /// Whether it is archived.
    pub archived: bool,
    /// Whether applications may register themselves.
    pub dcr_enabled: bool,
    /// Whether its applications may say with an `actor_token` who acts.
    pub actor_tokens: bool,
}

/// A signing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// `kid`.
    pub kid: Kid,
    /// Public coordinate.
    pub x: String,
    /// Public coordinate.
    pub y: String,
    /// The private key in its envelope.
    pub sealed_private: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it starts to sign.
    pub signs_from: Timestamp,
}

/// An application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppRow {
    /// Its id.
    pub id: ApplicationId,
    /// Its name.
    pub name: String,
    /// `managed` or `dcr`.
    pub registration_method: String,
    /// What its secret is checked against.
    pub secret_verifier: Option<String>,
    /// Its traits.
    pub traits: Vec<String>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

/// A resource.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourceRow {
    /// Its id.
    pub id: ResourceId,
    /// Its URI.
    pub identifier: String,
    /// Its name.
    pub name: String,
    /// Where the Gateway sends its calls.
    pub upstream_url: Option<String>,
    /// Who authenticates those calls.
    pub provider_id: ProviderId,
    /// Its scopes.
    pub scopes: Vec<String>,
    /// Its operations, a JSON array.
    pub operations: Value,
    /// `enforced` or `transport_uniform`.
    pub enforcement: String,
}

/// A provider.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderRow {
    /// Its id.
    pub id: ProviderId,
    /// Its URI.
    pub identifier: String,
    /// Its kind.
    pub kind: String,
    /// Its configuration without secrets.
    pub config_json: Value,
    /// Where the envelope of the secret part is.
    pub secret: Option<Kept>,
}

/// An issuer whose ID tokens a zone trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerRow {
    /// Its id.
    pub id: String,
    /// `iss`, compared exactly.
    pub issuer: String,
    /// Where its keys are published.
    pub jwks_url: String,
    /// What `aud` must contain.
    pub audience: String,
}

/// The active policy of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyBinding {
    /// The set.
    pub set_id: String,
    /// Its active version.
    pub version_id: String,
    /// Hash of the manifest, as recorded.
    pub manifest_sha256: String,
    /// Policy versions, in order.
    pub manifest: Vec<String>,
    /// Version and text, in the order of the manifest; a version that is missing is missing here.
    pub documents: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct ManifestEntry {
    policy_version_id: String,
}

impl ZoneScope<'_> {
    /// One state of this zone; `None` when it does not exist.
    pub async fn snapshot(&self) -> Result<Option<ZoneSnapshot>, StoreError> {
        let zone = self.id();
        let mut at = self.reading("reading a zone").await?;
        let Some(row) = at.query_opt(&sql::ZONE, &params![zone]).await? else {
            return Ok(None);
        };
        let zone_row = ZoneRow {
            id: zone.clone(),
            archived: row.opt_time("archived_at")?.is_some(),
            dcr_enabled: row.bool("dcr_enabled")?,
            actor_tokens: row.bool("actor_tokens")?,
        };
        Ok(Some(ZoneSnapshot {
            zone: zone_row,
            keys: read_all(&mut at, &sql::KEYS, zone, KeyRow::read).await?,
            applications: read_all(&mut at, &sql::APPLICATIONS, zone, AppRow::read).await?,
            resources: read_all(&mut at, &sql::RESOURCES, zone, ResourceRow::read).await?,
            providers: read_all(&mut at, &sql::PROVIDERS, zone, ProviderRow::read).await?,
            issuers: read_all(&mut at, &sql::ISSUERS, zone, IssuerRow::read).await?,
            policy: policy(&mut at, zone).await?,
        }))
    }
}

impl Store {
    /// The zone of an application that is not archived.
    pub async fn zone_of_application(
        &self,
        application: &ApplicationId,
    ) -> Result<Option<ZoneId>, StoreError> {
        let row = self
            .query_opt(&sql::ZONE_OF_APPLICATION, &params![application])
            .await?;
        row.map(|row| Ok(ZoneId::trusted(row.text("zone_id")?)))
            .transpose()
    }

    /// Zones with an active policy: worth loading before the first request asks.
    pub async fn bound_zones(&self) -> Result<Vec<ZoneId>, StoreError> {
        let rows = self.query(&sql::BOUND_ZONES, &[]).await?;
        rows.iter()
            .map(|row| Ok(ZoneId::trusted(row.text("id")?)))
            .collect()
    }

    /// The policy-set version that is in force in each zone that has one.
    pub async fn policies_in_force(&self) -> Result<HashMap<ZoneId, String>, StoreError> {
        let rows = self.query(&sql::IN_FORCE, &[]).await?;
        let bound = |row: &Row| {
            let version = row.opt_string("version_id")?;
            let zone = ZoneId::trusted(row.text("zone_id")?);
            Ok(version.map(|version| (zone, version)))
        };
        let bound: Result<Vec<_>, StoreError> = rows.iter().map(bound).collect();
        Ok(bound?.into_iter().flatten().collect())
    }
}

async fn read_all<T>(
    at: &mut Snapshot,
    sql: &crate::Sql,
    zone: &ZoneId,
    read: fn(&Row) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    at.query(sql, &params![zone])
        .await?
        .iter()
        .map(read)
        .collect()
}

async fn policy(at: &mut Snapshot, zone: &ZoneId) -> Result<Option<PolicyBinding>, StoreError> {
    let Some(row) = at.query_opt(&sql::BINDING, &params![zone]).await? else {
        return Ok(None);
    };
    let manifest: Vec<String> = row
        .json::<Vec<ManifestEntry>>("manifest_json")?
        .into_iter()
        .map(|entry| entry.policy_version_id)
        .collect();
    let wanted = crate::Param::Texts(manifest.iter().map(String::as_str).collect());
    let found = at.query(&sql::DOCUMENTS, &[zone.into(), wanted]).await?;
    let mut documents = found
        .iter()
        .map(|row| Ok((row.string("id")?, row.string("content")?)))
        .collect::<Result<Vec<_>, StoreError>>()?;
    documents.sort_by_key(|(id, _)| manifest.iter().position(|version| version == id));
    Ok(Some(PolicyBinding {
        set_id: row.string("policy_set_id")?,
        version_id: row.string("version_id")?,
        manifest_sha256: row.string("manifest_sha256")?,
        manifest,
        documents,
    }))
}

impl KeyRow {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            kid: Kid::trusted(row.text("id")?),
            x: row.string("public_x")?,
            y: row.string("public_y")?,
            sealed_private: row.bytes("sealed_private")?.to_vec(),
            created_at: row.time("created_at")?,
            signs_from: row.time("signs_from")?,
        })
    }
}

impl AppRow {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: ApplicationId::trusted(row.text("id")?),
            name: row.string("name")?,
            registration_method: row.string("registration_method")?,
            secret_verifier: row.opt_string("secret_verifier")?,
            traits: row.json("traits")?,
            expires_at: row.opt_time("expires_at")?,
        })
    }
}

impl ResourceRow {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: ResourceId::trusted(row.text("id")?),
            identifier: row.string("identifier")?,
            name: row.string("name")?,
            upstream_url: row.opt_string("upstream_url")?,
            provider_id: ProviderId::trusted(row.text("credential_provider_id")?),
            scopes: row.json("scopes")?,
            operations: row.json("operations")?,
            enforcement: row.string("operation_enforcement")?,
        })
    }
}

impl IssuerRow {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.string("id")?,
            issuer: row.string("issuer")?,
            jwks_url: row.string("jwks_url")?,
            audience: row.string("audience")?,
        })
    }
}

impl ProviderRow {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: ProviderId::trusted(row.text("id")?),
            identifier: row.string("identifier")?,
            kind: row.string("kind")?,
            config_json: row.json("config_json")?,
            secret: Kept::read(row)?,
        })
    }
}
