//! Applications of a zone.

use caracal_model::{ApplicationId, Timestamp, ZoneId};

use crate::error::StoreError;
use crate::row::Row;
use crate::zones::{Author, Provenance, Slice};
use crate::{Tx, ZoneScope, params, statements};

macro_rules! columns {
    () => {
        "id, name, registration_method, secret_verifier, traits, expires_at, created_by, \
         created_via_operator, updated_by, updated_via_operator, created_at, updated_at, archived_at"
    };
}

statements! { pub(crate) mod sql {
    GET = concat!("SELECT ", columns!(), " FROM applications \
        WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL");
    LOCK = pg: concat!("SELECT ", columns!(), " FROM applications \
            WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL FOR NO KEY UPDATE"),
        lite: concat!("SELECT ", columns!(), " FROM applications \
            WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL");
    PAGE = concat!("SELECT ", columns!(), " FROM applications \
        WHERE zone_id = $1 AND (archived_at IS NOT NULL) = $2 AND (created_at, id) < ($3, $4) \
        ORDER BY created_at DESC, id DESC LIMIT $5");
    INSERT = "INSERT INTO applications (id, zone_id, name, name_key, registration_method, \
        secret_verifier, traits, expires_at, created_by, created_via_operator, updated_by, \
        updated_via_operator, created_at, updated_at, archived_at) \
        VALUES ($2, $1, $3, $4, $5, $6, $7, $8, $9, $10, NULL, FALSE, $11, $11, NULL)";
    UPDATE = "UPDATE applications SET name = $3, name_key = $4, secret_verifier = $5, traits = $6, \
        updated_by = $7, updated_via_operator = $8, updated_at = $9 \
        WHERE zone_id = $1 AND id = $2";
    ARCHIVE = "UPDATE applications SET archived_at = $3, updated_at = $3, updated_by = $4, \
        updated_via_operator = $5 WHERE zone_id = $1 AND id = $2 AND archived_at IS NULL";
    LIVE_DCR = "SELECT COUNT(*) AS live FROM applications WHERE zone_id = $1 \
        AND registration_method = 'dcr' AND archived_at IS NULL AND expires_at > $2";
} }

/// Whether the index that keeps names apart refused.
pub const NAME_INDEX: &str = "applications_name";

/// An application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// Its id, the `client_id` of its mandates.
    pub id: ApplicationId,
    /// Shown to people; managed ones are unique in their zone, ignoring case.
    pub name: String,
    /// `managed` or `dcr`.
    pub registration_method: String,
    /// What its secret is checked against.
    pub secret_verifier: Option<String>,
    /// Traits.
    pub traits: Vec<String>,
    /// When it stops; dynamic ones only.
    pub expires_at: Option<Timestamp>,
    /// Who and when.
    pub provenance: Provenance,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
}

impl Application {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: ApplicationId::trusted(row.text("id")?),
            name: row.string("name")?,
            registration_method: row.string("registration_method")?,
            secret_verifier: row.opt_string("secret_verifier")?,
            traits: row.json("traits")?,
            expires_at: row.opt_time("expires_at")?,
            provenance: Provenance::read(row)?,
            archived_at: row.opt_time("archived_at")?,
        })
    }

    /// Whether an operator made it, rather than it itself.
    pub fn is_managed(&self) -> bool {
        self.registration_method == "managed"
    }
}

/// The applications of one zone.
#[derive(Debug)]
pub struct Applications<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The applications of this zone.
    pub fn applications(self) -> Applications<'s> {
        Applications(self)
    }
}

impl Applications<'_> {
    /// One application, unless it is archived.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, id: &str) -> Result<Option<Application>, StoreError> {
        let row = self
            .0
            .query_opt(&sql::GET, &params![self.0.id(), id])
            .await?;
        row.as_ref().map(Application::read).transpose()
    }

    /// A page, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(
        &self,
        archived: bool,
        slice: Slice<'_>,
    ) -> Result<Vec<Application>, StoreError> {
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
            .map(Application::read)
            .collect()
    }

    /// How many dynamic applications are neither archived nor expired.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn live_dynamic(&self, now: Timestamp) -> Result<u64, StoreError> {
        let row = self
            .0
            .query_opt(&sql::LIVE_DCR, &params![self.0.id(), now])
            .await?;
        row.map_or(Ok(0), |row| row.count("live"))
    }
}

/// Changes of the applications of one zone.
#[derive(Debug)]
pub struct ApplicationWrites<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl Tx {
    /// The applications of this zone.
    pub fn applications<'t>(&'t mut self, zone: &'t ZoneId) -> ApplicationWrites<'t> {
        ApplicationWrites { tx: self, zone }
    }
}

impl ApplicationWrites<'_> {
    /// One application, held until the end of the transaction.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn lock(&mut self, id: &str) -> Result<Option<Application>, StoreError> {
        let row = self
            .tx
            .within(self.zone)
            .query_opt(&sql::LOCK, &params![self.zone, id])
            .await?;
        row.as_ref().map(Application::read).transpose()
    }

    /// How many dynamic applications are neither archived nor expired.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn live_dynamic(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        let row = self
            .tx
            .within(self.zone)
            .query_opt(&sql::LIVE_DCR, &params![self.zone, now])
            .await?;
        row.map_or(Ok(0), |row| row.count("live"))
    }

    /// Adds an application.
    ///
    /// # Errors
    /// `Conflict` on [`NAME_INDEX`] when the name is taken.
    pub async fn insert(&mut self, application: &Application) -> Result<(), StoreError> {
        let made = &application.provenance;
        let params = params![
            self.zone,
            &application.id,
            &application.name,
            application.name.to_lowercase(),
            &application.registration_method,
            &application.secret_verifier,
            json(&application.traits),
            application.expires_at,
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

    /// Writes what may change of an application.
    ///
    /// # Errors
    /// `Conflict` on [`NAME_INDEX`] when the name is taken.
    pub async fn update(&mut self, application: &Application) -> Result<(), StoreError> {
        let made = &application.provenance;
        let params = params![
            self.zone,
            &application.id,
            &application.name,
            application.name.to_lowercase(),
            &application.secret_verifier,
            json(&application.traits),
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

    /// Archives an application; answers whether it was there.
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

/// Text of a list.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> String {
    // Texts, numbers and structs of them always serialize.
    serde_json::to_string(value).unwrap_or_default()
}
