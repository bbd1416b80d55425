//! The bus on Redis Streams.
//!
//! **Forces.** One multiplexed connection carries two hundred thousand appends a second, but a
//! blocking read on it would hold up every other caller. A server that is away must not hang a
//! request, and must not be hammered when it returns.
//!
//! **Choice.** Everything that answers at once shares one connection (or as many as told to) that
//! reconnects by itself with backoff; whatever blocks borrows a connection of its own. Every call has
//! a time limit.
//! What must be atomic (compare and renew, gap check and read, trim) is a script on the server.
//!
//! **Consequence.** A cut connection is an error of the calls that were on it; nothing is retried
//! behind the caller's back, because only the caller knows whether twice is harmless.

mod connection;
mod groups;
mod scripts;
mod streams;
mod times;

use std::time::Duration;

use caracal_model::{Secret, Timestamp};
use redis::FromRedisValue;

use self::connection::{Dedicated, Lent, Shared, breaks};
use self::scripts::Scripts;
pub(crate) use self::times::Times;
use crate::{BusError, RETENTION, ServerFacts, Taken};

/// How to talk to Redis.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// Stands before every key and topic; empty for the names of the wire.
    pub prefix: String,
    /// Longest time for one answer, connecting included (`REDIS_READ_TIMEOUT`).
    pub timeout: Duration,
    /// Longest time for one attempt to connect (`REDIS_DIAL_TIMEOUT`).
    pub connect_timeout: Duration,
    /// Connections that calls are spread over, at least one (`REDIS_POOL_SIZE`). More than one keeps
    /// small answers from waiting behind large ones.
    pub connections: usize,
    /// Entries that a topic keeps, about; evidence topics keep all (spec: audit-and-streams §2.1).
    pub retention: usize,
    /// PEM of the roots that a server of `rediss://` must be vouched for by; those of the operating
    /// system when there are none.
    pub roots: Option<Vec<u8>>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            connections: 1,
            retention: RETENTION,
            roots: None,
        }
    }
}

/// Since when no claim can have been lost.
const CLAIMS_SINCE: &str = "caracal:claims:since";

/// Tells a server that was emptied from the one that it was before.
const HISTORY: &str = "caracal:history";

/// How far the clocks of those who make what is claimed may be ahead of the server's.
const CLOCKS_AGREE: Duration = Duration::from_secs(1);

pub(crate) struct Redis {
    shared: Shared,
    blocking: Dedicated,
    scripts: Scripts,
    times: Times,
    options: RedisOptions,
}

fn client(url: &str, options: &RedisOptions) -> redis::RedisResult<redis::Client> {
    match &options.roots {
        Some(roots) if url.starts_with("rediss:") => redis::Client::build_with_tls(
            url,
            redis::TlsCertificates {
                client_tls: None,
                root_cert: Some(roots.clone()),
            },
        ),
        _ => redis::Client::open(url),
    }
}

impl Redis {
    pub fn new(url: &Secret<String>, options: RedisOptions) -> Result<Self, BusError> {
        let client = client(url.expose(), &options).map_err(|error| BusError::Address {
            detail: error.category().to_owned(),
        })?;
        let shared = Shared::new(client.clone(), &options)?;
        let blocking = Dedicated::new(client, &options);
        Ok(Self {
            shared,
            blocking,
            scripts: Scripts::new(),
            times: Times::default(),
            options,
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.options.prefix)
    }

    /// Sends one command on the shared connection.
    async fn ask<T: FromRedisValue>(
        &self,
        doing: &'static str,
        command: &redis::Cmd,
    ) -> Result<T, BusError> {
        let mut lent = self.shared.lend();
        let asked = command.query_async(&mut lent.connection);
        let answer = self.in_time(doing, asked).await;
        self.judged(doing, &lent, answer)
    }

    /// Runs a script on the shared connection.
    async fn run<T: FromRedisValue>(
        &self,
        doing: &'static str,
        script: &redis::ScriptInvocation<'_>,
    ) -> Result<T, BusError> {
        let mut lent = self.shared.lend();
        let asked = script.invoke_async(&mut lent.connection);
        let answer = self.in_time(doing, asked).await;
        self.judged(doing, &lent, answer)
    }

    /// The driver limits each answer; this also limits the time it spends on connecting again.
    async fn in_time<T>(
        &self,
        doing: &'static str,
        asking: impl Future<Output = redis::RedisResult<T>>,
    ) -> redis::RedisResult<T> {
        let begun = now();
        let answer = tokio::time::timeout(self.options.timeout, asking).await;
        self.times.of(doing).took(begun.elapsed());
        match answer {
            Ok(answer) => answer,
            Err(late) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, late).into()),
        }
    }

    /// How long answers took.
    pub const fn times(&self) -> &Times {
        &self.times
    }

    fn judged<T>(
        &self,
        doing: &'static str,
        lent: &Lent,
        answer: redis::RedisResult<T>,
    ) -> Result<T, BusError> {
        answer.map_err(|error| {
            if breaks(&error) {
                self.shared.distrust(lent);
            }
            connection::failed(doing, error)
        })
    }

    pub async fn claim(&self, key: &str, ttl: Duration) -> Result<bool, BusError> {
        let mut set = redis::cmd("SET");
        set.arg(self.key(key))
            .arg(1)
            .arg("NX")
            .arg("PX")
            .arg(millis(ttl));
        let answer: Option<String> = self.ask("claiming a key", &set).await?;
        Ok(answer.is_some())
    }

    pub async fn claim_made(
        &self,
        key: &str,
        made: Timestamp,
        ttl: Duration,
    ) -> Result<bool, BusError> {
        let made = made.minus(CLOCKS_AGREE).unix_millis();
        let mut script = self.scripts.claim_made.key(self.key(key));
        script.key(self.key(CLAIMS_SINCE));
        let won: u8 = self
            .run("claiming a key", script.arg(millis(ttl)).arg(made))
            .await?;
        Ok(won == 1)
    }

    pub async fn open_claims(&self) -> Result<Duration, BusError> {
        let script = self.scripts.open_claims.key(self.key(CLAIMS_SINCE));
        let age: i64 = self.run("opening claims", &script).await?;
        let agree = i64::try_from(CLOCKS_AGREE.as_millis()).unwrap_or(i64::MAX);
        let left = agree.saturating_add(1).saturating_sub(age);
        Ok(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
    }

    pub async fn history(&self) -> Result<Option<String>, BusError> {
        let script = self.scripts.history.key(self.key(HISTORY));
        self.run("asking for the history", &script).await.map(Some)
    }

    pub async fn count(&self, key: &str, window: Duration) -> Result<u64, BusError> {
        let mut script = self.scripts.count.key(self.key(key));
        self.run("counting", script.arg(millis(window))).await
    }

    pub async fn take(
        &self,
        key: &str,
        most: u64,
        limit: u64,
        window: Duration,
    ) -> Result<Taken, BusError> {
        let mut script = self.scripts.take.key(self.key(key));
        script.arg(millis(window)).arg(most).arg(limit);
        let (granted, total, left) = self.run("counting", &script).await?;
        Ok(Taken {
            granted,
            total,
            left: Duration::from_millis(left),
        })
    }

    pub async fn lead(&self, name: &str, holder: &str, ttl: Duration) -> Result<bool, BusError> {
        let mut script = self.scripts.lead.key(self.key(name));
        self.run("leading", script.arg(holder).arg(millis(ttl)))
            .await
    }

    pub async fn post(
        &self,
        board: &str,
        member: &str,
        note: &str,
        ttl: Duration,
    ) -> Result<(), BusError> {
        let mut script = self.scripts.post.key(self.key(board));
        script.key(self.key(&format!("{board}:{member}")));
        self.run("posting", script.arg(member).arg(note).arg(millis(ttl)))
            .await
    }

    pub async fn posts(&self, board: &str) -> Result<Vec<(String, String)>, BusError> {
        let script = self.scripts.posts.key(self.key(board));
        let mut posts: Vec<(String, String)> = self.run("reading posts", &script).await?;
        posts.sort();
        Ok(posts)
    }

    pub async fn ping(&self) -> Result<(), BusError> {
        self.ask("pinging", &redis::cmd("PING")).await
    }

    pub async fn server(&self) -> Result<Option<ServerFacts>, BusError> {
        let doing = "asking what answers";
        let info: String = self.ask(doing, &redis::cmd("INFO")).await?;
        let (seconds, micros): (i64, i64) = self.ask(doing, &redis::cmd("TIME")).await?;
        let now = seconds.saturating_mul(1_000_000).saturating_add(micros);
        let now = Timestamp::from_unix_micros(now);
        Ok(Some(ServerFacts::read(&info, now)))
    }

    pub async fn incarnation(&self) -> Result<String, BusError> {
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let text: String = self.ask("asking who answers", &info).await?;
        let run_id = text.lines().find_map(|line| line.strip_prefix("run_id:"));
        Ok(run_id.unwrap_or_default().trim().to_owned())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures a wait, and decides nothing by it"
)]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// At least one: Redis takes zero for an error, or for ever.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, i64::MAX.unsigned_abs())
}
