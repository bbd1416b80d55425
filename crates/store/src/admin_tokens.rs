//! Admin tokens. They belong to the platform rather than to a zone, though one may be bound to one.

use caracal_model::{Timestamp, ZoneId};

use crate::error::StoreError;
use crate::row::Row;
use crate::zones::Slice;
use crate::{Store, Tx, params, statements};

macro_rules! columns {
    () => {
        "id, name, scope, capability, zone_id, created_by, created_at, last_used_at, revoked_at"
    };
}

statements! { pub(crate) mod sql {
    FIND = concat!("SELECT ", columns!(), " FROM admin_tokens \
        WHERE verifier = $1 AND revoked_at IS NULL");
    PAGE = concat!("SELECT ", columns!(), " FROM admin_tokens WHERE (created_at, id) < ($1, $2) \
        ORDER BY created_at DESC, id DESC LIMIT $3");
    INSERT = "INSERT INTO admin_tokens (id, name, verifier, scope, capability, zone_id, created_by, \
        created_at, last_used_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, NULL, NULL)";
    REVOKE = "UPDATE admin_tokens SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL";
    REVOKE_OTHERS = "UPDATE admin_tokens SET revoked_at = $3 \
        WHERE created_by = $1 AND id <> $2 AND revoked_at IS NULL";
    REVOKE_ZONE = "UPDATE admin_tokens SET revoked_at = $2 \
        WHERE zone_id = $1 AND revoked_at IS NULL";
    USED = "UPDATE admin_tokens SET last_used_at = $2 \
        WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2)";
} }

/// The index that keeps live tokens apart.
pub const VERIFIER_INDEX: &str = "admin_tokens_verifier";

/// An admin token, without the means to check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminToken {
    /// Its id.
    pub id: String,
    /// For people.
    pub name: String,
    /// `global` or `zone`.
    pub scope: String,
    /// `read`, `write` or `approve`.
    pub capability: String,
    /// The zone of a zone token.
    pub zone_id: Option<ZoneId>,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When it was used last, about.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl AdminToken {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.string("id")?,
            name: row.string("name")?,
            scope: row.string("scope")?,
            capability: row.string("capability")?,
            zone_id: row.opt_text("zone_id")?.map(ZoneId::trusted),
            created_by: row.string("created_by")?,
            created_at: row.time("created_at")?,
            last_used_at: row.opt_time("last_used_at")?,
            revoked_at: row.opt_time("revoked_at")?,
        })
    }
}

/// All admin tokens.
#[derive(Debug)]
pub struct AdminTokens<'s>(&'s Store);

impl Store {
    /// All admin tokens.
    pub fn admin_tokens(&self) -> AdminTokens<'_> {
        AdminTokens(self)
    }
}

impl AdminTokens<'_> {
    /// The live token with this verifier.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn find(&self, verifier: &str) -> Result<Option<AdminToken>, StoreError> {
        let row = self.0.query_opt(&sql::FIND, &params![verifier]).await?;
        row.as_ref().map(AdminToken::read).transpose()
    }

    /// A page, revoked ones included, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(&self, slice: Slice<'_>) -> Result<Vec<AdminToken>, StoreError> {
        let params = params![slice.before, slice.before_id, slice.limit];
        self.0
            .query(&sql::PAGE, &params)
            .await?
            .iter()
            .map(AdminToken::read)
            .collect()
    }
}

/// Changes of admin tokens.
#[derive(Debug)]
pub struct AdminTokenWrites<'t>(&'t mut Tx);

impl Tx {
    /// All admin tokens.
    pub fn admin_tokens(&mut self) -> AdminTokenWrites<'_> {
        AdminTokenWrites(self)
    }
}

impl AdminTokenWrites<'_> {
    /// The live token with this verifier.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn find(&mut self, verifier: &str) -> Result<Option<AdminToken>, StoreError> {
        let row = self.0.query_opt(&sql::FIND, &params![verifier]).await?;
        row.as_ref().map(AdminToken::read).transpose()
    }

    /// Adds a token.
    ///
    /// # Errors
    /// `Conflict` on [`VERIFIER_INDEX`] when a live token is the same.
    pub async fn insert(&mut self, token: &AdminToken, verifier: &str) -> Result<(), StoreError> {
        let params = params![
            &token.id,
            &token.name,
            verifier,
            &token.scope,
            &token.capability,
            token.zone_id.as_ref(),
            &token.created_by,
            token.created_at,
        ];
        self.0.execute(&sql::INSERT, &params).await.map(drop)
    }

    /// Revokes a token; answers whether it was live.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revoke(&mut self, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        Ok(self.0.execute(&sql::REVOKE, &params![id, now]).await? == 1)
    }

    /// Revokes every live token with the same maker, but for one that is kept.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revoke_others(
        &mut self,
        created_by: &str,
        keep: Option<&str>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.0
            .execute(
                &sql::REVOKE_OTHERS,
                &params![created_by, keep.unwrap_or_default(), now],
            )
            .await
    }

    /// Revokes every live token of a zone.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revoke_zone(&mut self, zone: &ZoneId, now: Timestamp) -> Result<u64, StoreError> {
        self.0.execute(&sql::REVOKE_ZONE, &params![zone, now]).await
    }

    /// Notes that a token was used.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn used(&mut self, id: &str, at: Timestamp) -> Result<(), StoreError> {
        self.0.execute(&sql::USED, &params![id, at]).await.map(drop)
    }
}
