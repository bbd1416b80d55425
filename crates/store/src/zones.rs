//! Zones and their signing keys. A zone is not inside itself, so this repository takes ids.

use caracal_model::{Kid, Timestamp, ZoneId};

use crate::error::StoreError;
use crate::row::Row;
use crate::{Store, Tx, params, statements};

macro_rules! columns {
    () => {
        "id, name, slug, dcr_enabled, owner_account_id, operator_coauthor_badge, \
         operator_governed, actor_tokens, created_by, created_via_operator, updated_by, updated_via_operator, \
         created_at, updated_at, archived_at"
    };
}

statements! { pub(crate) mod sql {
    GET = concat!("SELECT ", columns!(), " FROM zones WHERE id = $1 AND archived_at IS NULL");
    LOCK = pg: concat!("SELECT ", columns!(), " FROM zones WHERE id = $1 AND archived_at IS NULL FOR NO KEY UPDATE"),
        lite: concat!("SELECT ", columns!(), " FROM zones WHERE id = $1 AND archived_at IS NULL");
    SHARE = pg: "SELECT id FROM zones WHERE id = $1 AND archived_at IS NULL FOR SHARE",
        lite: "SELECT id FROM zones WHERE id = $1 AND archived_at IS NULL";
    PAGE = concat!("SELECT ", columns!(), " FROM zones \
        WHERE archived_at IS NULL AND (created_at, id) < ($1, $2) \
          AND LOWER(name) NOT LIKE 'caracal.sys/%' AND slug NOT LIKE 'caracal-sys-%' \
          AND (CAST($3 AS TEXT) IS NULL OR owner_account_id = $3) \
        ORDER BY created_at DESC, id DESC LIMIT $4");
    SLUGS = "SELECT slug FROM zones WHERE slug = $1 OR slug LIKE $2";
    INSERT = "INSERT INTO zones (id, name, slug, dcr_enabled, owner_account_id, \
        operator_coauthor_badge, operator_governed, created_by, created_via_operator, updated_by, \
        updated_via_operator, created_at, updated_at, archived_at, actor_tokens) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, NULL, FALSE, $10, $10, NULL, $11)";
    UPDATE = "UPDATE zones SET name = $2, slug = $3, dcr_enabled = $4, operator_coauthor_badge = $5, \
        operator_governed = $6, updated_by = $7, updated_via_operator = $8, updated_at = $9, \
        actor_tokens = $10 WHERE id = $1";
    ARCHIVE = "UPDATE zones SET archived_at = $2, updated_at = $2, updated_by = $3, \
        updated_via_operator = $4 WHERE id = $1 AND archived_at IS NULL";
    INSERT_KEY = "INSERT INTO zone_keys (id, zone_id, public_x, public_y, sealed_private, \
        created_at, signs_from) VALUES ($1, $2, $3, $4, $5, $6, $7)";
    ANY_KEY = "SELECT id FROM zone_keys WHERE zone_id = $1 LIMIT 1";
} }

/// Who made an object, who changed it, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// Who made it.
    pub created_by: Option<String>,
    /// Whether through the Operator.
    pub created_via_operator: bool,
    /// Who changed it last.
    pub updated_by: Option<String>,
    /// Whether through the Operator.
    pub updated_via_operator: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last; when it was made, if never.
    pub updated_at: Timestamp,
}

impl Provenance {
    pub(crate) fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            created_by: row.opt_string("created_by")?,
            created_via_operator: row.bool("created_via_operator")?,
            updated_by: row.opt_string("updated_by")?,
            updated_via_operator: row.bool("updated_via_operator")?,
            created_at: row.time("created_at")?,
            updated_at: row.time("updated_at")?,
        })
    }

    /// Of an object that is made now.
    pub fn created(author: &Author) -> Self {
        Self {
            created_by: Some(author.name.clone()),
            created_via_operator: author.via_operator,
            updated_by: None,
            updated_via_operator: false,
            created_at: author.at,
            updated_at: author.at,
        }
    }

    /// The same object, changed now.
    pub fn change(&mut self, author: &Author) {
        self.updated_by = Some(author.name.clone());
        self.updated_via_operator = author.via_operator;
        self.updated_at = author.at;
    }
}

/// Who changes something now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// As recorded: `admin:<token>` or a console account.
    pub name: String,
    /// Whether through the Operator.
    pub via_operator: bool,
    /// Now.
    pub at: Timestamp,
}

/// A row after which a page starts, and how long the page is.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'p> {
    /// Time of that row, in microseconds; `i64::MAX` for the first page.
    pub before: i64,
    /// Its id.
    pub before_id: &'p str,
    /// Most rows.
    pub limit: u32,
}

/// A zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Its id.
    pub id: ZoneId,
    /// Shown to people.
    pub name: String,
    /// Unique over all zones, archived ones included.
    pub slug: String,
    /// Whether applications may register themselves.
    pub dcr_enabled: bool,
    /// The console account that it belongs to.
    pub owner_account_id: Option<String>,
    /// Whether changes through the Operator are marked.
    pub operator_coauthor_badge: bool,
    /// Whether the Operator may act here.
    pub operator_governed: bool,
    /// Whether its applications may say with an `actor_token` who acts.
    pub actor_tokens: bool,
    /// Who and when.
    pub provenance: Provenance,
}

impl Zone {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: ZoneId::trusted(row.text("id")?),
            name: row.string("name")?,
            slug: row.string("slug")?,
            dcr_enabled: row.bool("dcr_enabled")?,
            owner_account_id: row.opt_string("owner_account_id")?,
            operator_coauthor_badge: row.bool("operator_coauthor_badge")?,
            operator_governed: row.bool("operator_governed")?,
            actor_tokens: row.bool("actor_tokens")?,
            provenance: Provenance::read(row)?,
        })
    }
}

/// A signing key on its way to the store.
#[derive(Clone, Debug)]
pub struct NewZoneKey<'k> {
    /// Its id, the `kid` of its mandates.
    pub kid: &'k Kid,
    /// Public point.
    pub x: &'k str,
    /// Public point.
    pub y: &'k str,
    /// Private key in its envelope.
    pub sealed_private: &'k [u8],
    /// From when on it signs.
    pub signs_from: Timestamp,
}

/// All zones.
#[derive(Debug)]
pub struct Zones<'s>(&'s Store);

impl Store {
    /// All zones.
    pub fn zones(&self) -> Zones<'_> {
        Zones(self)
    }
}

impl Zones<'_> {
    /// One zone, unless it is archived.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, id: &ZoneId) -> Result<Option<Zone>, StoreError> {
        self.0
            .query_opt(&sql::GET, &params![id])
            .await?
            .as_ref()
            .map(Zone::read)
            .transpose()
    }

    /// A page of the zones that are neither archived nor reserved, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(
        &self,
        slice: Slice<'_>,
        owner: Option<&str>,
    ) -> Result<Vec<Zone>, StoreError> {
        let params = params![slice.before, slice.before_id, owner, slice.limit];
        self.0
            .query(&sql::PAGE, &params)
            .await?
            .iter()
            .map(Zone::read)
            .collect()
    }
}

/// Changes of zones.
#[derive(Debug)]
pub struct ZoneWrites<'t>(&'t mut Tx);

impl Tx {
    /// All zones.
    pub fn zones(&mut self) -> ZoneWrites<'_> {
        ZoneWrites(self)
    }
}

impl ZoneWrites<'_> {
    /// One zone, held until the end of the transaction.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn lock(&mut self, id: &ZoneId) -> Result<Option<Zone>, StoreError> {
        self.0
            .query_opt(&sql::LOCK, &params![id])
            .await?
            .as_ref()
            .map(Zone::read)
            .transpose()
    }

    /// Whether the zone is there; it cannot be archived before the end of the transaction.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn is_open(&mut self, id: &ZoneId) -> Result<bool, StoreError> {
        Ok(self.0.query_opt(&sql::SHARE, &params![id]).await?.is_some())
    }

    /// The taken ones among a slug and those that start with it and a `-`.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn slugs_like(&mut self, slug: &str) -> Result<Vec<String>, StoreError> {
        let rows = self
            .0
            .query(&sql::SLUGS, &params![slug, format!("{slug}-%")])
            .await?;
        rows.iter().map(|row| row.string("slug")).collect()
    }

    /// Adds a zone.
    ///
    /// # Errors
    /// `Conflict` on `zones_slug` when the slug is taken.
    pub async fn insert(&mut self, zone: &Zone) -> Result<(), StoreError> {
        let made = &zone.provenance;
        let params = params![
            &zone.id,
            &zone.name,
            &zone.slug,
            zone.dcr_enabled,
            &zone.owner_account_id,
            zone.operator_coauthor_badge,
            zone.operator_governed,
            &made.created_by,
            made.created_via_operator,
            made.created_at,
            zone.actor_tokens,
        ];
        self.0.execute(&sql::INSERT, &params).await.map(drop)
    }

    /// Adds a signing key to a zone.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn insert_key(
        &mut self,
        zone: &ZoneId,
        key: &NewZoneKey<'_>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let params = params![
            key.kid,
            zone,
            key.x,
            key.y,
            key.sealed_private,
            now,
            key.signs_from
        ];
        self.0.execute(&sql::INSERT_KEY, &params).await.map(drop)
    }

    /// Whether the zone has a signing key.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn has_key(&mut self, zone: &ZoneId) -> Result<bool, StoreError> {
        let row = self.0.query_opt(&sql::ANY_KEY, &params![zone]).await?;
        Ok(row.is_some())
    }

    /// Writes what may change of a zone.
    ///
    /// # Errors
    /// `Conflict` on `zones_slug` when the slug is taken.
    pub async fn update(&mut self, zone: &Zone) -> Result<(), StoreError> {
        let made = &zone.provenance;
        let params = params![
            &zone.id,
            &zone.name,
            &zone.slug,
            zone.dcr_enabled,
            zone.operator_coauthor_badge,
            zone.operator_governed,
            &made.updated_by,
            made.updated_via_operator,
            made.updated_at,
            zone.actor_tokens,
        ];
        self.0.execute(&sql::UPDATE, &params).await.map(drop)
    }

    /// Archives a zone; answers whether it was there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn archive(&mut self, id: &ZoneId, author: &Author) -> Result<bool, StoreError> {
        let params = params![id, author.at, &author.name, author.via_operator];
        Ok(self.0.execute(&sql::ARCHIVE, &params).await? == 1)
    }
}
