//! Connections of subjects to OAuth providers (spec: admin-api §7.6, sts §6.3). Tokens come and go
//! as envelopes; who may open them holds the keyring.
//!
//! INVARIANT (version): a refresh writes only over the version that it read. Two refreshes of one
//! connection cannot both be stored, and one that was overtaken by a revocation or a new connect
//! flow is not stored at all.

use caracal_model::{Change, ProviderId, Timestamp, ZoneId};

use crate::error::StoreError;
use crate::row::Row;
use crate::zones::Slice;
use crate::{Tx, ZoneScope, params, statements};

/// The subject whose connection serves everyone who has none of their own [WIRE].
pub const SHARED_SUBJECT: &str = "caracal:shared";

/// What an access token's envelope is bound to.
pub const ACCESS_TOKEN_AAD: &str = "caracal/providerConnections/accessToken";
/// What a refresh token's envelope is bound to.
pub const REFRESH_TOKEN_AAD: &str = "caracal/providerConnections/refreshToken";

macro_rules! columns {
    () => {
        "id, provider_id, subject_id, status, access_token, refresh_token, expires_at, \
         refreshed_at, refresh_token_version, created_at, updated_at"
    };
}

statements! { pub(crate) mod sql {
    ACTIVE = concat!("SELECT ", columns!(), " FROM provider_connections \
        WHERE zone_id = $1 AND provider_id = $2 AND subject_id = $3 AND status = 'active'");
    LAST = concat!("SELECT ", columns!(), " FROM provider_connections \
        WHERE zone_id = $1 AND provider_id = $2 AND subject_id = $3 \
        ORDER BY created_at DESC, id DESC LIMIT 1");
    PAGE = concat!("SELECT ", columns!(), " FROM provider_connections \
        WHERE zone_id = $1 AND (created_at, id) < ($2, $3) \
          AND (CAST($4 AS TEXT) IS NULL OR provider_id = $4) \
          AND (CAST($5 AS TEXT) IS NULL OR subject_id = $5) \
          AND (CAST($6 AS TEXT) IS NULL OR status = $6) \
        ORDER BY created_at DESC, id DESC LIMIT $7");
    PUT = concat!("INSERT INTO provider_connections (id, zone_id, provider_id, subject_id, status, \
            access_token, refresh_token, expires_at, refreshed_at, refresh_token_version, \
            created_at, updated_at) \
        VALUES ($2, $1, $3, $4, 'active', $5, $6, $7, NULL, 1, $8, $8) \
        ON CONFLICT (zone_id, provider_id, subject_id) WHERE status = 'active' \
        DO UPDATE SET access_token = excluded.access_token, \
            refresh_token = excluded.refresh_token, expires_at = excluded.expires_at, \
            refresh_token_version = provider_connections.refresh_token_version + 1, \
            updated_at = excluded.updated_at \
        RETURNING ", columns!());
    REFRESH = "UPDATE provider_connections SET access_token = $4, refresh_token = $5, \
            expires_at = $6, refreshed_at = $7, updated_at = $7, \
            refresh_token_version = refresh_token_version + 1 \
        WHERE zone_id = $1 AND id = $2 AND refresh_token_version = $3 AND status = 'active'";
    EXPIRE = "UPDATE provider_connections SET status = 'expired', updated_at = $4 \
        WHERE zone_id = $1 AND id = $2 AND refresh_token_version = $3 AND status = 'active'";
    REVOKE = concat!("UPDATE provider_connections SET status = 'revoked', updated_at = $4, \
            refresh_token_version = refresh_token_version + 1 \
        WHERE zone_id = $1 AND provider_id = $2 AND subject_id = $3 AND status = 'active' \
        RETURNING ", columns!());
    REVOKE_SUBJECT = "UPDATE provider_connections SET status = 'revoked', updated_at = $3, \
            refresh_token_version = refresh_token_version + 1 \
        WHERE zone_id = $1 AND subject_id = $2 AND status = 'active' \
        RETURNING provider_id, subject_id";
    REVOKE_PROVIDER = "UPDATE provider_connections SET status = 'revoked', updated_at = $3, \
            refresh_token_version = refresh_token_version + 1 \
        WHERE zone_id = $1 AND provider_id = $2 AND status = 'active' \
        RETURNING provider_id, subject_id";
} }

/// A connection, its tokens sealed.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    /// Its id.
    pub id: String,
    /// Where the account is.
    pub provider_id: ProviderId,
    /// Whose it is; [`SHARED_SUBJECT`] is everyone's.
    pub subject_id: String,
    /// `active`, `revoked` or `expired`.
    pub status: String,
    /// Envelope bound to [`ACCESS_TOKEN_AAD`].
    pub access_token: Vec<u8>,
    /// Envelope bound to [`REFRESH_TOKEN_AAD`].
    pub refresh_token: Option<Vec<u8>>,
    /// When the access token ends; unknown is never.
    pub expires_at: Option<Timestamp>,
    /// When it was refreshed last.
    pub refreshed_at: Option<Timestamp>,
    /// Rises with every change of its tokens.
    pub version: i64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Connection {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.string("id")?,
            provider_id: ProviderId::trusted(row.text("provider_id")?),
            subject_id: row.string("subject_id")?,
            status: row.string("status")?,
            access_token: row.bytes("access_token")?.to_vec(),
            refresh_token: row.opt_bytes("refresh_token")?.map(<[u8]>::to_vec),
            expires_at: row.opt_time("expires_at")?,
            refreshed_at: row.opt_time("refreshed_at")?,
            version: row.int("refresh_token_version")?,
            created_at: row.time("created_at")?,
            updated_at: row.time("updated_at")?,
        })
    }
}

/// Tokens to be stored, sealed.
#[derive(Clone, Copy)]
pub struct SealedTokens<'a> {
    /// Bound to [`ACCESS_TOKEN_AAD`].
    pub access: &'a [u8],
    /// Bound to [`REFRESH_TOKEN_AAD`].
    pub refresh: Option<&'a [u8]>,
    /// When the access token ends.
    pub expires_at: Option<Timestamp>,
}

impl std::fmt::Debug for SealedTokens<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealedTokens(..)")
    }
}

/// What a page is restricted to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    /// One provider.
    pub provider: Option<&'a str>,
    /// One subject.
    pub subject: Option<&'a str>,
    /// One status.
    pub status: Option<&'a str>,
}

/// The connections of one zone.
#[derive(Debug)]
pub struct Connections<'s>(ZoneScope<'s>);

impl<'s> ZoneScope<'s> {
    /// The connections of this zone.
    pub fn connections(self) -> Connections<'s> {
        Connections(self)
    }
}

impl Connections<'_> {
    /// The active connection of a subject.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn active(
        &self,
        provider: &ProviderId,
        subject: &str,
    ) -> Result<Option<Connection>, StoreError> {
        let params = params![self.0.id(), provider, subject];
        let row = self.0.query_opt(&sql::ACTIVE, &params).await?;
        row.as_ref().map(Connection::read).transpose()
    }

    /// The newest connection of a subject, whatever its status.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn last(
        &self,
        provider: &ProviderId,
        subject: &str,
    ) -> Result<Option<Connection>, StoreError> {
        let params = params![self.0.id(), provider, subject];
        let row = self.0.query_opt(&sql::LAST, &params).await?;
        row.as_ref().map(Connection::read).transpose()
    }

    /// A page, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn page(
        &self,
        filter: Filter<'_>,
        slice: Slice<'_>,
    ) -> Result<Vec<Connection>, StoreError> {
        let params = params![
            self.0.id(),
            slice.before,
            slice.before_id,
            filter.provider,
            filter.subject,
            filter.status,
            slice.limit
        ];
        let rows = self.0.query(&sql::PAGE, &params).await?;
        rows.iter().map(Connection::read).collect()
    }
}

/// Changes of the connections of one zone. Each tells the memory of every replica.
#[derive(Debug)]
pub struct ConnectionWrites<'t> {
    tx: &'t mut Tx,
    zone: &'t ZoneId,
}

impl Tx {
    /// The connections of this zone.
    pub fn connections<'t>(&'t mut self, zone: &'t ZoneId) -> ConnectionWrites<'t> {
        ConnectionWrites { tx: self, zone }
    }
}

impl ConnectionWrites<'_> {
    /// Connects a subject; an active connection gets these tokens in the place of its own.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn put(
        &mut self,
        id: &str,
        provider: &ProviderId,
        subject: &str,
        tokens: SealedTokens<'_>,
        now: Timestamp,
    ) -> Result<Connection, StoreError> {
        let params = params![
            self.zone,
            id,
            provider,
            subject,
            tokens.access,
            tokens.refresh,
            tokens.expires_at,
            now
        ];
        let row = self.tx.query_opt(&sql::PUT, &params).await?;
        let row = row.ok_or(StoreError::Absent {
            kind: "connection",
            id: id.to_owned(),
        })?;
        self.told(provider, subject);
        Connection::read(&row)
    }

    /// INVARIANT (version): answers whether the connection was still as it was read.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn refresh(
        &mut self,
        read: &Connection,
        tokens: SealedTokens<'_>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let params = params![
            self.zone,
            &read.id,
            read.version,
            tokens.access,
            tokens.refresh,
            tokens.expires_at,
            now
        ];
        let stored = self.tx.execute(&sql::REFRESH, &params).await? == 1;
        self.told(&read.provider_id, &read.subject_id);
        Ok(stored)
    }

    /// Marks a connection that ended and cannot be renewed.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn expire(&mut self, read: &Connection, now: Timestamp) -> Result<bool, StoreError> {
        let params = params![self.zone, &read.id, read.version, now];
        let marked = self.tx.execute(&sql::EXPIRE, &params).await? == 1;
        self.told(&read.provider_id, &read.subject_id);
        Ok(marked)
    }

    /// Revokes the active connection of a subject.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revoke(
        &mut self,
        provider: &ProviderId,
        subject: &str,
        now: Timestamp,
    ) -> Result<Option<Connection>, StoreError> {
        let params = params![self.zone, provider, subject, now];
        let row = self.tx.query_opt(&sql::REVOKE, &params).await?;
        self.told(provider, subject);
        row.as_ref().map(Connection::read).transpose()
    }

    /// Revokes every connection of a subject; answers how many there were.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revoke_subject(
        &mut self,
        subject: &str,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        let params = params![self.zone, subject, now];
        let rows = self.tx.query(&sql::REVOKE_SUBJECT, &params).await?;
        self.told_of(&rows)
    }

    /// Revokes every connection to a provider, whose own end this is.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revoke_provider(
        &mut self,
        provider: &str,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        let params = params![self.zone, provider, now];
        let rows = self.tx.query(&sql::REVOKE_PROVIDER, &params).await?;
        self.told_of(&rows)
    }

    fn told_of(&mut self, rows: &[Row]) -> Result<usize, StoreError> {
        for row in rows {
            let provider = ProviderId::trusted(row.text("provider_id")?);
            self.told(&provider, row.text("subject_id")?);
        }
        Ok(rows.len())
    }

    fn told(&mut self, provider: &ProviderId, subject: &str) {
        let (zone, provider) = (self.zone.clone(), provider.clone());
        let change = Change::Connection(zone, provider, subject.to_owned());
        self.tx.change(&change);
    }
}

#[cfg(test)]
mod tests;
