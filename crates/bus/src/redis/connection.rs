//! Connections: one that all share, and a few that wait.

use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{AsyncConnectionConfig, ErrorKind, RedisError};

use crate::BusError;

/// Idle waiting connections that are kept for the next wait.
const KEPT: usize = 8;

/// The connection that all calls share. It reconnects when it was cut: a few attempts with growing,
/// jittered pauses, after which the callers that wait are told and the next one starts over.
pub(super) fn shared(
    client: redis::Client,
    timeout: Duration,
) -> Result<ConnectionManager, BusError> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout))
        .set_number_of_retries(3)
        .set_min_delay(Duration::from_millis(50))
        .set_max_delay(Duration::from_millis(500));
    ConnectionManager::new_lazy_with_config(client, config)
        .map_err(|error| failed("connecting", error))
}

/// Connections for calls that block on the server, one a call at a time.
pub(super) struct Dedicated {
    client: redis::Client,
    timeout: Duration,
    idle: Mutex<Vec<MultiplexedConnection>>,
}

impl Dedicated {
    pub fn new(client: redis::Client, timeout: Duration) -> Self {
        Self {
            client,
            timeout,
            idle: Mutex::default(),
        }
    }

    /// A connection whose answers may take `wait` longer than usual. Give it back with
    /// [`Dedicated::done`] after a success; after an error, or when the caller gives up while the
    /// server still blocks, dropping it closes it.
    pub async fn borrow(&self, wait: Duration) -> Result<MultiplexedConnection, BusError> {
        let kept = self.idle.lock().pop();
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        connection.set_response_timeout(self.timeout.saturating_add(wait));
        Ok(connection)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, BusError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        self.client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| failed("connecting", error))
    }

    pub fn done(&self, connection: MultiplexedConnection) {
        let mut idle = self.idle.lock();
        if idle.len() < KEPT {
            idle.push(connection);
        }
    }
}

/// An answer that says no is a refusal; everything else leaves open what happened.
pub(super) fn failed(doing: &'static str, error: RedisError) -> BusError {
    let said_no = matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension);
    if !said_no {
        return BusError::Unreachable {
            doing,
            source: error.into(),
        };
    }
    let code = error.code().unwrap_or("ERR").to_owned();
    if matches!(
        code.as_str(),
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "READONLY" | "BUSY"
    ) {
        return BusError::Unreachable {
            doing,
            source: error.into(),
        };
    }
    let detail = format!("{code} {}", error.detail().unwrap_or_default());
    BusError::Refused { doing, detail }
}
