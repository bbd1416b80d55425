//! Everything that is stored sealed, whatever it is, for a sweep that seals it again after the
//! key-encryption key was replaced (spec: sts §13).
//!
//! An envelope starts with the id of its key, so those of another key are found without opening
//! any. INVARIANT (compare and swap): an envelope takes the place of the very one that was read;
//! whoever wrote meanwhile has sealed under the current key already.

use caracal_model::{ApplicationId, Change, ZoneId};

use crate::connections::{ACCESS_TOKEN_AAD, REFRESH_TOKEN_AAD};
use crate::error::StoreError;
use crate::notifications::SINK_SECRET_AAD;
use crate::row::Row;
use crate::{Sql, Store, Tx, params, statements};

statements! { pub(crate) mod sql {
    /// Of an envelope outside, its first bytes are here: they name its key.
    SECRETS = "SELECT zone_id, ref AS id, envelope AS sealed, outside_sha256 FROM secret_store \
        WHERE length(envelope) > 0 AND substr(envelope, 1, 12) <> $1 AND ref > $2 \
        ORDER BY ref LIMIT $3";
    SWAP_SECRET = "UPDATE secret_store SET envelope = $4, version = version + 1 \
        WHERE zone_id = $1 AND ref = $2 AND envelope = $3 AND outside_sha256 IS NULL";
    /// The new envelope is moved out as any other that is here.
    SWAP_OUTSIDE = "UPDATE secret_store SET envelope = $4, outside_sha256 = NULL, \
            version = version + 1 \
        WHERE zone_id = $1 AND ref = $2 AND outside_sha256 = $3";
    KEYS = "SELECT zone_id, id, sealed_private AS sealed FROM zone_keys \
        WHERE substr(sealed_private, 1, 12) <> $1 AND id > $2 ORDER BY id LIMIT $3";
    SWAP_KEY = "UPDATE zone_keys SET sealed_private = $4 \
        WHERE zone_id = $1 AND id = $2 AND sealed_private = $3";
    ACCESS = "SELECT zone_id, id, access_token AS sealed FROM provider_connections \
        WHERE substr(access_token, 1, 12) <> $1 AND id > $2 ORDER BY id LIMIT $3";
    SWAP_ACCESS = "UPDATE provider_connections SET access_token = $4 \
        WHERE zone_id = $1 AND id = $2 AND access_token = $3";
    REFRESH = "SELECT zone_id, id, refresh_token AS sealed FROM provider_connections \
        WHERE refresh_token IS NOT NULL AND substr(refresh_token, 1, 12) <> $1 AND id > $2 \
        ORDER BY id LIMIT $3";
    SWAP_REFRESH = "UPDATE provider_connections SET refresh_token = $4 \
        WHERE zone_id = $1 AND id = $2 AND refresh_token = $3";
    CHECKPOINT_KEYS = "SELECT 'platform' AS zone_id, id, sealed_private AS sealed FROM audit_keys \
        WHERE length(sealed_private) > 0 AND substr(sealed_private, 1, 12) <> $1 AND id > $2 \
        ORDER BY id LIMIT $3";
    SWAP_CHECKPOINT_KEY = "UPDATE audit_keys SET sealed_private = $4 \
        WHERE CAST($1 AS TEXT) IS NOT NULL AND id = $2 AND sealed_private = $3";
    SINKS = "SELECT zone_id, id, secret AS sealed FROM notification_sinks \
        WHERE substr(secret, 1, 12) <> $1 AND id > $2 ORDER BY id LIMIT $3";
    SWAP_SINK = "UPDATE notification_sinks SET secret = $4 \
        WHERE zone_id = $1 AND id = $2 AND secret = $3";
    UPGRADE = "UPDATE applications SET secret_verifier = $4 \
        WHERE zone_id = $1 AND id = $2 AND secret_verifier = $3";
    UPGRADE_ADMIN = "UPDATE admin_tokens SET verifier = $2 \
        WHERE verifier = $1 AND revoked_at IS NULL";
} }

/// Where sealed values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Secrets of applications, providers and workloads.
    Secrets,
    /// Signing keys of zones.
    ZoneKeys,
    /// Access tokens of connections.
    AccessTokens,
    /// Refresh tokens of connections.
    RefreshTokens,
    /// Keys that sign checkpoints; they belong to no zone.
    CheckpointKeys,
    /// Secrets of notification sinks.
    Sinks,
}

impl Place {
    /// Every place.
    pub const ALL: [Self; 6] = [
        Self::Secrets,
        Self::ZoneKeys,
        Self::AccessTokens,
        Self::RefreshTokens,
        Self::CheckpointKeys,
        Self::Sinks,
    ];

    const fn list(self) -> &'static Sql {
        match self {
            Self::Secrets => &sql::SECRETS,
            Self::ZoneKeys => &sql::KEYS,
            Self::AccessTokens => &sql::ACCESS,
            Self::RefreshTokens => &sql::REFRESH,
            Self::CheckpointKeys => &sql::CHECKPOINT_KEYS,
            Self::Sinks => &sql::SINKS,
        }
    }

    const fn swap(self) -> &'static Sql {
        match self {
            Self::Secrets => &sql::SWAP_SECRET,
            Self::ZoneKeys => &sql::SWAP_KEY,
            Self::AccessTokens => &sql::SWAP_ACCESS,
            Self::RefreshTokens => &sql::SWAP_REFRESH,
            Self::CheckpointKeys => &sql::SWAP_CHECKPOINT_KEY,
            Self::Sinks => &sql::SWAP_SINK,
        }
    }
}

/// What signing keys are bound to.
pub const ZONE_KEY_AAD: &str = "caracal/secrets/zoneSigningKey";

/// What the keys of checkpoints are bound to.
pub const CHECKPOINT_KEY_AAD: &str = "caracal/secrets/checkpointKey";

/// An envelope under another key than the current one.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Where it is kept.
    pub place: Place,
    /// Its zone.
    pub zone: ZoneId,
    /// Its reference, or the id of its row.
    pub id: String,
    /// The envelope; of one that is outside, only what names its key.
    pub envelope: Vec<u8>,
    /// SHA-256 of the envelope, when a backend outside keeps it.
    pub outside: Option<String>,
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealed({:?} {})", self.place, self.id)
    }
}

impl Sealed {
    /// What the envelope is bound to.
    pub fn aad(&self) -> &str {
        match self.place {
            Place::Secrets => &self.id,
            Place::ZoneKeys => ZONE_KEY_AAD,
            Place::AccessTokens => ACCESS_TOKEN_AAD,
            Place::RefreshTokens => REFRESH_TOKEN_AAD,
            Place::CheckpointKeys => CHECKPOINT_KEY_AAD,
            Place::Sinks => SINK_SECRET_AAD,
        }
    }

    /// The application, when this is its client secret.
    pub fn client_secret_of(&self) -> Option<ApplicationId> {
        let prefix = format!("zones/{}/applications/", self.zone);
        let rest = self.id.strip_prefix(&prefix)?;
        let id = rest.strip_suffix("/clientSecret")?;
        (self.place == Place::Secrets).then(|| ApplicationId::trusted(id))
    }
}

impl Store {
    /// Envelopes in this place that do not start with `current`, after the one with this id.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn sealed_otherwise(
        &self,
        place: Place,
        current: &[u8],
        after: &str,
        limit: u32,
    ) -> Result<Vec<Sealed>, StoreError> {
        let params = params![current, after, limit];
        let read = |row: &Row| {
            Ok(Sealed {
                place,
                zone: ZoneId::trusted(row.text("zone_id")?),
                id: row.string("id")?,
                envelope: row.bytes("sealed")?.to_vec(),
                outside: match place {
                    Place::Secrets => row.opt_string("outside_sha256")?,
                    _ => None,
                },
            })
        };
        let rows = self.query(place.list(), &params).await?;
        rows.iter().map(read).collect()
    }
}

impl Tx {
    /// INVARIANT (compare and swap): answers whether the envelope was still the one that was read.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn reseal(&mut self, read: &Sealed, envelope: &[u8]) -> Result<bool, StoreError> {
        let Some(sha256) = &read.outside else {
            let params = params![&read.zone, &read.id, &read.envelope, envelope];
            return Ok(self.execute(read.place.swap(), &params).await? == 1);
        };
        let params = params![&read.zone, &read.id, sha256, envelope];
        let swapped = self.execute(&sql::SWAP_OUTSIDE, &params).await? == 1;
        if swapped {
            // Replicas that hold it have to know it by its new name before it is moved out.
            self.change(&Change::Zone(read.zone.clone()));
        }
        Ok(swapped)
    }

    /// Puts the verifier of the same secret in the place of one under another pepper.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn upgrade_client_secret(
        &mut self,
        zone: &ZoneId,
        application: &ApplicationId,
        old: &str,
        new: &str,
    ) -> Result<bool, StoreError> {
        let params = params![zone, application, old, new];
        let upgraded = self.execute(&sql::UPGRADE, &params).await? == 1;
        if upgraded {
            self.change(&Change::Zone(zone.clone()));
        }
        Ok(upgraded)
    }

    /// As [`Tx::upgrade_client_secret`], of an admin token.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn upgrade_admin_token(&mut self, old: &str, new: &str) -> Result<bool, StoreError> {
        let params = params![old, new];
        Ok(self.execute(&sql::UPGRADE_ADMIN, &params).await? == 1)
    }
}
