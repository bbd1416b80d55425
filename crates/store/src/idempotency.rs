//! Idempotency receipts (spec: coordinator §10): what a keyed request was answered with.
//!
//! A receipt is written last in the transaction of what it stands for. Its primary key makes
//! concurrent requests with one key wait for the first: the others fail on it, roll everything
//! back and then read the receipt.

use caracal_model::{ApplicationId, Timestamp, ZoneId};

use crate::error::StoreError;
use crate::{Row, Store, Tx, ZoneScope, ZoneTx, params, statements};

statements! { pub(crate) mod sql {
    FIND = pg: "SELECT fingerprint, result_id, status, body_json FROM idempotency_receipts
            WHERE operation = $1 AND zone_id = $2 AND application_id = $3 AND key_hash = ANY($4)
              AND expires_at > $5 ORDER BY created_at LIMIT 1",
        lite: "SELECT fingerprint, result_id, status, body_json FROM idempotency_receipts
            WHERE operation = $1 AND zone_id = $2 AND application_id = $3
              AND key_hash IN (SELECT value FROM json_each($4))
              AND expires_at > $5 ORDER BY created_at LIMIT 1";
    LIVE = "SELECT COUNT(*) AS live FROM (SELECT 1 AS one FROM idempotency_receipts
            WHERE operation = $1 AND zone_id = $2 AND application_id = $3 AND expires_at > $4
            LIMIT $5) receipts";
    WRITE = "INSERT INTO idempotency_receipts (operation, zone_id, application_id, key_hash,
            fingerprint, result_id, status, body_json, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        ON CONFLICT (operation, zone_id, application_id, key_hash) DO UPDATE SET
            fingerprint = excluded.fingerprint, result_id = excluded.result_id,
            status = excluded.status, body_json = excluded.body_json,
            created_at = excluded.created_at, expires_at = excluded.expires_at
        WHERE idempotency_receipts.expires_at <= excluded.created_at";
    DELETE_EXPIRED = pg: "DELETE FROM idempotency_receipts WHERE ctid IN (
            SELECT ctid FROM idempotency_receipts WHERE expires_at <= $1 LIMIT $2)",
        lite: "DELETE FROM idempotency_receipts WHERE rowid IN (
            SELECT rowid FROM idempotency_receipts WHERE expires_at <= $1 LIMIT $2)";
    STATS = "SELECT COUNT(*) AS receipts, MIN(created_at) AS oldest FROM idempotency_receipts";
} }

/// Where a key counts.
#[derive(Clone, Copy, Debug)]
pub struct ReceiptScope<'a> {
    /// `session.start.v2`, `delegation.create.v2`.
    pub operation: &'static str,
    /// The application that the key belongs to.
    pub application: &'a ApplicationId,
}

/// What a keyed request was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Digest of the principal and the inputs.
    pub fingerprint: String,
    /// What came of it.
    pub result_id: String,
    /// HTTP status.
    pub status: i64,
    /// Body, JSON text.
    pub body_json: String,
}

impl Receipt {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            fingerprint: row.string("fingerprint")?,
            result_id: row.string("result_id")?,
            status: row.int("status")?,
            body_json: row.string("body_json")?,
        })
    }
}

/// Reads the receipts of one zone.
#[derive(Clone, Copy, Debug)]
pub struct Receipts<'s> {
    zone: ZoneScope<'s>,
}

impl<'s> ZoneScope<'s> {
    /// The idempotency receipts of this zone.
    pub const fn receipts(self) -> Receipts<'s> {
        Receipts { zone: self }
    }
}

impl Receipts<'_> {
    /// The receipt under one of these key hashes (of the current key and the one before).
    pub async fn find(
        &self,
        scope: &ReceiptScope<'_>,
        key_hashes: &[String],
        now: Timestamp,
    ) -> Result<Option<Receipt>, StoreError> {
        let hashes = crate::Param::Texts(key_hashes.iter().map(String::as_str).collect());
        let [operation, zone, application, now] =
            params![scope.operation, self.zone.id(), scope.application, now];
        let params = [operation, zone, application, hashes, now];
        let row = self.zone.query_opt(&sql::FIND, &params).await?;
        row.as_ref().map(Receipt::read).transpose()
    }

    /// How many receipts of the scope are in force, counted up to `most`.
    pub async fn live(
        &self,
        scope: &ReceiptScope<'_>,
        now: Timestamp,
        most: u32,
    ) -> Result<u64, StoreError> {
        let params = params![
            scope.operation,
            self.zone.id(),
            scope.application,
            now,
            most
        ];
        let row = self.zone.query_opt(&sql::LIVE, &params).await?;
        row.map_or(Ok(0), |row| row.count("live"))
    }
}

impl Store {
    /// How many receipts there are, and when the oldest was written.
    pub async fn receipt_stats(&self) -> Result<(u64, Option<Timestamp>), StoreError> {
        match self.query_opt(&sql::STATS, &[]).await? {
            Some(row) => Ok((row.count("receipts")?, row.opt_time("oldest")?)),
            None => Ok((0, None)),
        }
    }
}

/// Writes the receipts of one zone, within a transaction.
#[derive(Debug)]
pub struct ReceiptsTx<'t> {
    at: ZoneTx<'t>,
    zone: &'t ZoneId,
}

impl<'t> ZoneTx<'t> {
    /// The idempotency receipts of this zone.
    pub fn receipts(self) -> ReceiptsTx<'t> {
        let zone = self.id();
        ReceiptsTx { at: self, zone }
    }
}

impl ReceiptsTx<'_> {
    /// Writes a receipt that holds until `expires_at`. `false` when somebody else wrote one under
    /// this key: roll back and read it.
    pub async fn write(
        &mut self,
        scope: &ReceiptScope<'_>,
        key_hash: &str,
        receipt: &Receipt,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let params = params![
            scope.operation,
            self.zone,
            scope.application,
            key_hash,
            &receipt.fingerprint,
            &receipt.result_id,
            receipt.status,
            &receipt.body_json,
            now,
            expires_at
        ];
        Ok(self.at.tx().execute(&sql::WRITE, &params).await? == 1)
    }
}

impl Tx {
    /// Deletes receipts that are no longer in force; answers how many.
    pub async fn delete_expired_receipts(
        &mut self,
        now: Timestamp,
        limit: u32,
    ) -> Result<u64, StoreError> {
        self.execute(&sql::DELETE_EXPIRED, &params![now, limit])
            .await
    }
}
