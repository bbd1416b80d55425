//! Sealed secrets of a zone, by reference. The reference is also what the envelope is bound to, so
//! an envelope that is moved does not open (spec: admin-api §14).

use caracal_crypto::digest::sha256_hex;
use caracal_model::{Timestamp, ZoneId};

use crate::error::StoreError;
use crate::row::Row;
use crate::{Tx, ZoneScope, params, statements};

statements! { pub(crate) mod sql {
    GET = "SELECT envelope, outside_sha256, backend FROM secret_store \
           WHERE zone_id = $1 AND ref = $2";
    PUT = "INSERT INTO secret_store (ref, zone_id, envelope, version, updated_at) \
           VALUES ($2, $1, $3, 1, $4) \
           ON CONFLICT (ref) DO UPDATE SET envelope = excluded.envelope, \
               version = secret_store.version + 1, updated_at = excluded.updated_at, \
               outside_sha256 = NULL \
           WHERE secret_store.zone_id = excluded.zone_id";
    DELETE = "DELETE FROM secret_store WHERE zone_id = $1 AND ref = $2 AND backend IS NULL";
    /// What a backend may hold is remembered until the backend has forgotten it.
    BURY = "UPDATE secret_store SET envelope = $3, outside_sha256 = NULL, version = version + 1 \
            WHERE zone_id = $1 AND ref = $2";
} }

/// Where an application's secret is kept.
pub fn application_secret_ref(zone: &ZoneId, application: &str) -> String {
    format!("zones/{zone}/applications/{application}/clientSecret")
}

/// Where a workload's secret is kept.
pub fn workload_secret_ref(zone: &ZoneId, workload: &str) -> String {
    format!("zones/{zone}/workloads/{workload}/secret")
}

/// Where the secret part of a provider's configuration is kept.
pub fn provider_secret_ref(zone: &ZoneId, provider: &str) -> String {
    format!("zones/{zone}/providers/{provider}/secretConfig")
}

/// Where the envelope of a secret is.
#[derive(Clone, PartialEq, Eq)]
pub enum Kept {
    /// In our own database.
    Here(Vec<u8>),
    /// In a backend outside of it.
    Outside(Outside),
}

/// What our own database knows of an envelope that is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// SHA-256 of the envelope, in hex: nothing else is taken for it.
    pub sha256: String,
    /// The backend that has it, as `CARACAL_SECRET_BACKEND` names it.
    pub backend: String,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here(_) => f.write_str("Here(..)"),
            Self::Outside(outside) => outside.fmt(f),
        }
    }
}

impl Kept {
    /// From the columns `envelope`, `outside_sha256` and `backend`, each of which may be absent.
    pub(crate) fn read(row: &Row) -> Result<Option<Self>, StoreError> {
        if let Some(sha256) = row.opt_string("outside_sha256")? {
            let backend = row.opt_string("backend")?.unwrap_or_default();
            return Ok(Some(Self::Outside(Outside { sha256, backend })));
        }
        let envelope = row.opt_bytes("envelope")?.unwrap_or_default();
        Ok((!envelope.is_empty()).then(|| Self::Here(envelope.to_vec())))
    }

    /// Tells this envelope from any other.
    pub fn sha256(&self) -> String {
        match self {
            Self::Here(envelope) => sha256_hex(envelope),
            Self::Outside(outside) => outside.sha256.clone(),
        }
    }
}

/// The envelopes of one zone.
#[derive(Debug)]
pub struct Secrets<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The sealed secrets of this zone.
    pub fn secrets(self) -> Secrets<'s> {
        Secrets(self)
    }
}

impl Secrets<'_> {
    /// Where the envelope behind a reference is.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn kept(&self, at: &str) -> Result<Option<Kept>, StoreError> {
        let row = self
            .0
            .query_opt(&sql::GET, &params![self.0.id(), at])
            .await?;
        row.as_ref().map_or(Ok(None), Kept::read)
    }

    /// The envelope behind a reference, if it is in our own database.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn envelope(&self, at: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.kept(at).await?.and_then(|kept| match kept {
            Kept::Here(envelope) => Some(envelope),
            Kept::Outside(_) => None,
        }))
    }
}

/// Changes of the envelopes of one zone.
#[derive(Debug)]
pub struct SecretWrites<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl Tx {
    /// The sealed secrets of this zone.
    pub fn secrets<'t>(&'t mut self, zone: &'t ZoneId) -> SecretWrites<'t> {
        SecretWrites { tx: self, zone }
    }
}

impl SecretWrites<'_> {
    /// Where the envelope behind a reference is, as this transaction sees it.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn kept(&mut self, at: &str) -> Result<Option<Kept>, StoreError> {
        let row = self
            .tx
            .query_opt(&sql::GET, &params![self.zone, at])
            .await?;
        row.as_ref().map_or(Ok(None), Kept::read)
    }

    /// Puts an envelope in the place of any other.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn put(
        &mut self,
        at: &str,
        envelope: &[u8],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let params = params![self.zone, at, envelope, now];
        self.tx
            .within(self.zone)
            .execute(&sql::PUT, &params)
            .await
            .map(drop)
    }

    /// Forgets an envelope, if there is one. What a backend may hold of it is deleted there next
    /// (see [`crate::custody`]).
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn delete(&mut self, at: &str) -> Result<(), StoreError> {
        self.tx
            .within(self.zone)
            .execute(&sql::DELETE, &params![self.zone, at])
            .await?;
        self.tx
            .within(self.zone)
            .execute(&sql::BURY, &params![self.zone, at, &b""[..]])
            .await
            .map(drop)
    }
}
