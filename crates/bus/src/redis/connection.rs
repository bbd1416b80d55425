//! Connections: one that all share, and a few that wait.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{AsyncConnectionConfig, ErrorKind, RedisError};

use super::RedisOptions;
use crate::BusError;

/// Idle waiting connections that are kept for the next wait.
const KEPT: usize = 8;

/// The connections that all calls share, in turn; one unless told otherwise. Each reconnects when it
/// was cut: a few attempts with growing,
/// jittered pauses, after which the callers that wait are told and the next one starts over.
///
/// A connection that is not cut can be past use as well: bytes that are no answer leave the reader
/// somewhere in the middle of one, and a peer that vanished without a word is noticed by the
/// operating system only after many minutes. Then [`Shared::distrust`] leaves it to those that still
/// wait on it, and dials anew for everybody else.
pub(super) struct Shared {
    client: redis::Client,
    config: ConnectionManagerConfig,
    first: RwLock<Lent>,
    others: Vec<RwLock<Lent>>,
    turn: AtomicUsize,
}

/// A shared connection, as one call has it.
#[derive(Clone)]
pub(super) struct Lent {
    pub connection: ConnectionManager,
    at: usize,
    generation: u64,
}

impl Shared {
    pub fn new(client: redis::Client, options: &RedisOptions) -> Result<Self, BusError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(options.connect_timeout))
            .set_response_timeout(Some(options.timeout))
            .set_number_of_retries(3)
            .set_min_delay(Duration::from_millis(50))
            .set_max_delay(Duration::from_millis(500));
        let lent = |at| -> Result<_, BusError> {
            Ok(RwLock::new(Lent {
                connection: dial(&client, &config)?,
                at,
                generation: 0,
            }))
        };
        let first = lent(0)?;
        let others = (1..options.connections).map(lent);
        let others = others.collect::<Result<_, BusError>>()?;
        Ok(Self {
            client,
            config,
            first,
            others,
            turn: AtomicUsize::new(0),
        })
    }

    pub fn lend(&self) -> Lent {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.slot(turn % (self.others.len() + 1)).read().clone()
    }

    /// The first is at 0.
    fn slot(&self, at: usize) -> &RwLock<Lent> {
        let other = at.checked_sub(1).and_then(|at| self.others.get(at));
        other.unwrap_or(&self.first)
    }

    /// Of many calls that failed on one connection, the first replaces it.
    pub fn distrust(&self, lent: &Lent) {
        let mut current = self.slot(lent.at).write();
        if current.generation != lent.generation {
            return;
        }
        // Nothing is dialled yet and the settings are those that worked before, so this does not fail;
        // if it did, the old connection would be distrusted again by its next answer.
        if let Ok(connection) = dial(&self.client, &self.config) {
            *current = Lent {
                connection,
                at: lent.at,
                generation: lent.generation + 1,
            };
        }
    }
}

/// Does not connect yet: the first call does.
fn dial(
    client: &redis::Client,
    config: &ConnectionManagerConfig,
) -> Result<ConnectionManager, BusError> {
    ConnectionManager::new_lazy_with_config(client.clone(), config.clone())
        .map_err(|error| failed("connecting", error))
}

/// Whether later answers on the same connection are worth nothing.
pub(super) fn breaks(error: &RedisError) -> bool {
    error.is_timeout()
        || matches!(
            error.kind(),
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType
        )
}

/// Connections for calls that block on the server, one a call at a time.
pub(super) struct Dedicated {
    client: redis::Client,
    timeout: Duration,
    connect_timeout: Duration,
    idle: Mutex<Vec<MultiplexedConnection>>,
}

impl Dedicated {
    pub fn new(client: redis::Client, options: &RedisOptions) -> Self {
        Self {
            client,
            timeout: options.timeout,
            connect_timeout: options.connect_timeout,
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
            .set_connection_timeout(Some(self.connect_timeout))
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

/// Codes of a server that can do nothing for anybody now, or nothing of ours: starting, failed over,
/// out of memory, unable to persist or replicate, or not letting us in. What was sent is not at
/// fault, so it must be kept and sent again, and never be given up as poison.
const OUTAGES: [&str; 12] = [
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "READONLY",
    "BUSY",
    "TRYAGAIN",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "NOAUTH",
    "NOPERM",
    "WRONGPASS",
];

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
    if OUTAGES.contains(&code.as_str()) {
        return BusError::Unreachable {
            doing,
            source: error.into(),
        };
    }
    let detail = format!("{code} {}", error.detail().unwrap_or_default());
    BusError::Refused { doing, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(answer: &str) -> BusError {
        let answer = redis::parse_redis_value(answer.as_bytes()).unwrap();
        failed("appending", answer.extract_error().unwrap_err())
    }

    #[tokio::test]
    async fn calls_take_turns_and_only_a_bad_connection_is_replaced() {
        let client = redis::Client::open("redis://127.0.0.1:9").unwrap();
        let options = RedisOptions {
            connections: 3,
            ..RedisOptions::default()
        };
        let shared = Shared::new(client, &options).unwrap();
        let turns: Vec<_> = (0..4).map(|_| shared.lend()).collect();
        let places: Vec<_> = turns.iter().map(|lent| lent.at).collect();
        assert_eq!(places, [0, 1, 2, 0]);
        shared.distrust(&turns[1]);
        shared.distrust(&turns[1]);
        let mut after: Vec<_> = (0..3).map(|_| shared.lend()).collect();
        after.sort_by_key(|lent| lent.at);
        let generations: Vec<_> = after.iter().map(|lent| lent.generation).collect();
        assert_eq!(generations, [0, 1, 0]);
    }

    #[test]
    fn a_server_that_takes_nothing_is_an_outage_and_no_fault_of_what_was_sent() {
        for answer in [
            "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
            "-MISCONF Redis is configured to save RDB snapshots, but cannot.\r\n",
            "-NOREPLICAS Not enough good replicas to write.\r\n",
            "-READONLY You can't write against a read only replica.\r\n",
            "-LOADING Redis is loading the dataset in memory\r\n",
            "-NOAUTH Authentication required.\r\n",
        ] {
            let error = told(answer);
            assert!(error.is_outage(), "{answer:?} is {error:?}");
        }
        for answer in [
            "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
            "-ERR wrong number of arguments\r\n",
        ] {
            let error = told(answer);
            assert!(!error.is_outage(), "{answer:?} is {error:?}");
        }
    }
}
