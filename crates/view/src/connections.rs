//! Connections of subjects to OAuth providers, opened and in memory (spec: sts §6.3).
//!
//! Unlike ids of Sessions, subjects come from mandates that were verified, so their absence is
//! held too: whoever lives on the shared connection costs no read of the store for having no own.

use std::sync::Arc;

use caracal_model::{ProviderId, Secret, Timestamp, ZoneId};
use caracal_store::connections::{ACCESS_TOKEN_AAD, Connection, SHARED_SUBJECT};

use crate::views::Inner;
use crate::{ViewError, Views};

/// An active connection, ready for use.
#[derive(Debug)]
pub struct UserConnection {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub subject: String,
    /// The access token; absent when its envelope does not open here.
    pub token: Option<Secret<String>>,
    /// When the token ends; unknown is never.
    pub expires_at: Option<Timestamp>,
    /// Whether it can be refreshed.
    pub renewable: bool,
    /// Rises with every change of its tokens.
    pub version: i64,
}

impl Views {
    /// The connection that serves a subject: its own, else the shared one.
    ///
    /// # Errors
    /// When memory has no answer and the store cannot be reached.
    pub async fn connection(
        &self,
        zone: &ZoneId,
        provider: &ProviderId,
        subject: &str,
    ) -> Result<Option<Arc<UserConnection>>, ViewError> {
        let own = self.0.connection_of(zone, provider, subject).await?;
        if own.is_some() || subject == SHARED_SUBJECT {
            return Ok(own);
        }
        self.0.connection_of(zone, provider, SHARED_SUBJECT).await
    }
}

impl Inner {
    async fn connection_of(
        &self,
        zone: &ZoneId,
        provider: &ProviderId,
        subject: &str,
    ) -> Result<Option<Arc<UserConnection>>, ViewError> {
        let key = (zone.clone(), provider.clone(), subject.to_owned());
        let load = async || {
            let connections = self.store.zone(zone).connections();
            let row = connections.active(provider, subject).await?;
            Ok(Some(row.map(|row| Arc::new(self.opened(row)))))
        };
        let held = self.held_or(&self.connections, &key, load).await?;
        Ok(held.and_then(|held| (*held).clone()))
    }

    fn opened(&self, row: Connection) -> UserConnection {
        let token = self.keyring.as_ref().and_then(|keyring| {
            let plain = keyring
                .open(ACCESS_TOKEN_AAD, &row.access_token)
                .inspect_err(|error| {
                    tracing::error!(connection = %row.id, %error, "access token does not open");
                })
                .ok()?;
            String::from_utf8(plain.expose().clone()).ok()
        });
        UserConnection {
            id: row.id,
            subject: row.subject_id,
            token: token.map(Secret::new),
            expires_at: row.expires_at,
            renewable: row.refresh_token.is_some(),
            version: row.version,
        }
    }
}
