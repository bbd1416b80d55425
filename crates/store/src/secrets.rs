//! Sealed secrets of a zone, by reference. The reference is also what the envelope is bound to, so
//! an envelope that is moved does not open (spec: admin-api §14).

use caracal_model::{Timestamp, ZoneId};

use crate::error::StoreError;
use crate::{Tx, ZoneScope, params, statements};

statements! { pub(crate) mod sql {
    GET = "SELECT envelope FROM secret_store WHERE zone_id = $1 AND ref = $2";
    PUT = "INSERT INTO secret_store (ref, zone_id, envelope, version, updated_at) \
           VALUES ($2, $1, $3, 1, $4) \
           ON CONFLICT (ref) DO UPDATE SET envelope = excluded.envelope, \
               version = secret_store.version + 1, updated_at = excluded.updated_at \
           WHERE secret_store.zone_id = excluded.zone_id";
    DELETE = "DELETE FROM secret_store WHERE zone_id = $1 AND ref = $2";
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
    /// The envelope behind a reference.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn envelope(&self, at: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let row = self
            .0
            .query_opt(&sql::GET, &params![self.0.id(), at])
            .await?;
        row.map(|row| Ok(row.bytes("envelope")?.to_vec()))
            .transpose()
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
    /// The envelope behind a reference, as this transaction sees it.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn envelope(&mut self, at: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let row = self
            .tx
            .query_opt(&sql::GET, &params![self.zone, at])
            .await?;
        row.map(|row| Ok(row.bytes("envelope")?.to_vec()))
            .transpose()
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

    /// Forgets an envelope, if there is one.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn delete(&mut self, at: &str) -> Result<(), StoreError> {
        self.tx
            .within(self.zone)
            .execute(&sql::DELETE, &params![self.zone, at])
            .await
            .map(drop)
    }
}
