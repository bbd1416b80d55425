//! Numbers that operators set for the whole deployment, below what its environment allows.

use caracal_model::Timestamp;

use crate::error::StoreError;
use crate::{Store, Tx, params, statements};

/// Mints a minute for one (zone, resource, application).
pub const MINT_RATE: &str = "mint_rate_per_minute";

/// Days that evidence is kept.
pub const AUDIT_RETENTION: &str = "audit_retention_days";

statements! { pub(crate) mod sql {
    GET = "SELECT value, updated_by, updated_at FROM platform_settings WHERE name = $1";
    PUT = "INSERT INTO platform_settings (name, value, updated_by, updated_at)
           VALUES ($1, $2, $3, $4)
           ON CONFLICT (name) DO UPDATE SET value = excluded.value,
               updated_by = excluded.updated_by, updated_at = excluded.updated_at";
} }

/// A number, and who set it when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformSetting {
    /// The number.
    pub value: u32,
    /// As recorded: `admin:<token>` or a console account.
    pub updated_by: String,
    /// When.
    pub updated_at: Timestamp,
}

impl Store {
    /// A setting, when it was ever set.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn platform_setting(
        &self,
        name: &str,
    ) -> Result<Option<PlatformSetting>, StoreError> {
        let row = self.query_opt(&sql::GET, &params![name]).await?;
        row.map(|row| {
            let value = row.count("value")?;
            let too_large = |_| StoreError::corrupt(format!("platform setting {name}"));
            Ok(PlatformSetting {
                value: u32::try_from(value).map_err(too_large)?,
                updated_by: row.string("updated_by")?,
                updated_at: row.time("updated_at")?,
            })
        })
        .transpose()
    }
}

impl Tx {
    /// Sets a number.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn put_platform_setting(
        &mut self,
        name: &str,
        setting: &PlatformSetting,
    ) -> Result<(), StoreError> {
        let params = params![name, setting.value, &setting.updated_by, setting.updated_at];
        self.execute(&sql::PUT, &params).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::on_each_engine! {
        async fn a_setting_is_what_was_set_last(store: Store) {
            assert_eq!(store.platform_setting(MINT_RATE).await.unwrap(), None);
            for value in [7, u32::MAX] {
                let setting = PlatformSetting {
                    value,
                    updated_by: format!("admin:{value}"),
                    updated_at: Timestamp::from_unix_seconds(i64::from(value)),
                };
                let mut tx = store.begin("test").await.unwrap();
                tx.put_platform_setting(MINT_RATE, &setting).await.unwrap();
                tx.commit().await.unwrap();
                assert_eq!(store.platform_setting(MINT_RATE).await.unwrap(), Some(setting));
            }
        }
    }
}
