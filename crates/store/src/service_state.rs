//! Small facts of the deployment that must outlive a process.

use crate::error::StoreError;
use crate::store::Store;
use crate::{params, statements};

statements! { pub(crate) mod sql {
    GET = "SELECT value FROM service_state WHERE name = $1";
    PUT = "INSERT INTO service_state (name, value, updated_at) VALUES ($1, $2, $3)
           ON CONFLICT (name) DO UPDATE
           SET value = excluded.value, updated_at = excluded.updated_at";
} }

impl Store {
    /// A fact, when it was ever put.
    pub async fn service_state(&self, name: &str) -> Result<Option<String>, StoreError> {
        let row = self.query_opt(&sql::GET, &params![name]).await?;
        row.map(|row| row.string("value")).transpose()
    }

    /// Puts a fact; durable when this answers.
    pub async fn put_service_state(&self, name: &str, value: &str) -> Result<(), StoreError> {
        let now = self.clock().now();
        let mut tx = self.begin("putting service state").await?;
        tx.execute(&sql::PUT, &params![name, value, now]).await?;
        tx.commit().await
    }
}
