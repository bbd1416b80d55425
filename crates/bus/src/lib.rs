//! Streams that everyone follows, claims that one wins, counters and leadership: one [`Bus`] with
//! two backends (spec: audit-and-streams §2).
//!
//! **Forces.** Replicas must learn of each other's changes within a second; a mandate must be good
//! for one call in the whole deployment; evidence must survive until it was acknowledged. One
//! process on a laptop must do the same without any other service.
//!
//! **Choice.** Redis Streams when distributed, sharded memory when embedded, behind one enum whose
//! callers cannot tell which it is. Both pass the same conformance suite. Invalidation is
//! *broadcast*: each replica tails from a position of its own; only evidence is *shared out*
//! through groups.
//!
//! **Rejected.** Consumer groups for invalidation: one replica of many learns, the others wait for
//! a poll (the reference's weakness 9). Pub/sub: whoever was away a moment has missed it, without
//! a way to know.
//!
//! **Consequence.** A follower that fell behind what is kept is told so ([`BusError::Gap`]) and
//! must take a snapshot. INVARIANT (no silent gap): a tail either returns every entry after its
//! position, in order, or fails.
//!
//! Redis 7 or later. Topic names stand on the wire as they are; a key prefix exists for tests and
//! for sharing one server between deployments.

mod error;
mod memory;
mod position;
mod redis;
mod server;

use std::sync::Arc;
use std::time::Duration;

use caracal_model::change::Fields;
use caracal_model::{Clock, Histogram, Secret, Timestamp};

pub use crate::error::BusError;
pub use crate::memory::MemoryOptions;
pub use crate::position::{Position, PositionError};
pub use crate::redis::RedisOptions;
pub use crate::server::ServerFacts;

/// Topics that start so hold evidence: they are trimmed by acknowledgement only, never by length
/// (spec README, decision 18).
pub const EVIDENCE_TOPICS: &str = "caracal.audit.";

/// How many entries a topic keeps for its tails (spec: audit-and-streams §2.1).
pub const RETENTION: usize = 100_000;

/// Most entries that a group without a reader of its own may hold back (spec: audit-and-streams,
/// better 3).
pub const STALLED_READER_HOLDS: usize = 1_000_000;

/// An entry that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its place there.
    pub position: Position,
    /// What it says.
    pub fields: Fields,
}

/// How far a group is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Entries that nobody in the group has been given yet.
    pub undelivered: u64,
    /// Entries that were given out and not acknowledged.
    pub pending: u64,
    /// The oldest entry given out and not acknowledged.
    pub oldest_pending: Option<Position>,
    /// The oldest entry not given out.
    pub oldest_undelivered: Option<Position>,
}

impl Lag {
    /// Everything that the group has not finished.
    pub const fn total(&self) -> u64 {
        self.undelivered.saturating_add(self.pending)
    }

    /// The oldest entry that the group has not finished.
    pub fn oldest(&self) -> Option<Position> {
        self.oldest_pending
            .into_iter()
            .chain(self.oldest_undelivered)
            .min()
    }
}

/// How far a group has got in the history that it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Names the history of the backend. It changes whenever entries that were acknowledged to
    /// whoever appended them may have been lost: the server was started again, failed over, or was
    /// emptied.
    pub history: String,
    /// The group is done with every entry of this history before this one; `None` while there is no
    /// such group.
    pub before: Option<Position>,
}

/// What was given out of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// To whoever asked, by this question.
    pub granted: u64,
    /// To all, in this window.
    pub total: u64,
    /// Until the window ends, from when the question was answered.
    pub left: Duration,
}

/// A connection to the bus; clones share it.
#[derive(Clone)]
pub struct Bus(Backend);

#[derive(Clone)]
enum Backend {
    Memory(Arc<memory::Memory>),
    Redis(Arc<redis::Redis>),
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Backend::Memory(_) => "Bus(memory)",
            Backend::Redis(_) => "Bus(redis)",
        })
    }
}

/// Both backends answer the same methods: this says which one.
macro_rules! backend {
    ($bus:ident.$method:ident($($argument:expr),*)) => {
        match &$bus.0 {
            Backend::Memory(memory) => memory.$method($($argument),*).await,
            Backend::Redis(redis) => redis.$method($($argument),*).await,
        }
    };
}

impl Bus {
    /// A bus within this process.
    pub fn memory(clock: Arc<dyn Clock>) -> Self {
        Self::memory_with(clock, MemoryOptions::default())
    }

    /// A bus within this process, with bounds of its own.
    pub fn memory_with(clock: Arc<dyn Clock>, options: MemoryOptions) -> Self {
        Self(Backend::Memory(Arc::new(memory::Memory::new(
            clock, options,
        ))))
    }

    /// A bus on Redis. Connects on first use and again whenever it has to, so an unreachable
    /// server is an error of the calls, not of this one.
    ///
    /// # Errors
    /// [`BusError::Address`] when the URL is not one.
    #[expect(
        clippy::unused_async,
        reason = "an eager connection must not change every caller"
    )]
    pub async fn redis(url: &Secret<String>, options: RedisOptions) -> Result<Self, BusError> {
        Ok(Self(Backend::Redis(Arc::new(redis::Redis::new(
            url, options,
        )?))))
    }

    /// Appends entries to a topic, in order and in one round trip; answers their positions. After
    /// an error some of them may have been appended: at least once, never silently not.
    ///
    /// # Errors
    /// [`BusError`]; an entry without fields is refused.
    pub async fn append(&self, topic: &str, entries: &[Fields]) -> Result<Vec<Position>, BusError> {
        if entries.iter().any(Fields::is_empty) {
            let detail = "an entry has at least one field".to_owned();
            return Err(BusError::Refused {
                doing: "appending",
                detail,
            });
        }
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        backend!(self.append(topic, entries))
    }

    /// The position of the newest entry that the topic ever had.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn last(&self, topic: &str) -> Result<Position, BusError> {
        backend!(self.last(topic))
    }

    /// Every entry after the given positions, at most `limit` of each topic: at once when there
    /// are any, else as soon as one arrives, else nothing after `wait`.
    ///
    /// An answer shorter than `limit` says that nothing else was there when it was asked for.
    ///
    /// # Errors
    /// [`BusError::Gap`] when entries after a position are gone; other [`BusError`]s.
    pub async fn tail(
        &self,
        from: &[(&str, Position)],
        wait: Duration,
        limit: usize,
    ) -> Result<Vec<Entry>, BusError> {
        backend!(self.tail("", from, wait, limit))
    }

    /// As [`Bus::tail`], for positions that belong to this [`Bus::incarnation`]: any other server
    /// than that answers with a gap.
    ///
    /// # Errors
    /// As [`Bus::tail`].
    pub async fn tail_within(
        &self,
        incarnation: &str,
        from: &[(&str, Position)],
        wait: Duration,
        limit: usize,
    ) -> Result<Vec<Entry>, BusError> {
        backend!(self.tail(incarnation, from, wait, limit))
    }

    /// Names the history that positions belong to: a server that was started again is another one,
    /// because it may have lost entries that it had acknowledged.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn incarnation(&self) -> Result<String, BusError> {
        backend!(self.incarnation())
    }

    /// How many entries the topic holds.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn len(&self, topic: &str) -> Result<u64, BusError> {
        backend!(self.len(topic))
    }

    /// At most `limit` entries from this position on, oldest first, whoever has read them. What was
    /// removed is left out without a word: for looking at dead letters, not for following a topic.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn range(
        &self,
        topic: &str,
        from: Position,
        limit: usize,
    ) -> Result<Vec<Entry>, BusError> {
        backend!(self.range(topic, from, limit))
    }

    /// Removes single entries, as the keeper of a dead-letter topic does.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn remove(&self, topic: &str, positions: &[Position]) -> Result<u64, BusError> {
        if positions.is_empty() {
            return Ok(0);
        }
        backend!(self.remove(topic, positions))
    }

    /// Makes sure that the group exists; a new one starts at the first entry, or after the last.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn ensure_group(
        &self,
        topic: &str,
        group: &str,
        from_start: bool,
    ) -> Result<(), BusError> {
        backend!(self.ensure_group(topic, group, from_start))
    }

    /// Entries that nobody in the group was given yet; waits for one at most `wait`.
    ///
    /// # Errors
    /// [`BusError::NoGroup`] when the group is gone; other [`BusError`]s.
    pub async fn read_group(
        &self,
        topic: &str,
        group: &str,
        consumer: &str,
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<Entry>, BusError> {
        backend!(self.read_group(topic, group, consumer, limit, wait))
    }

    /// Takes over entries that were given out at least `idle` ago and not acknowledged since.
    ///
    /// # Errors
    /// [`BusError::NoGroup`] when the group is gone; other [`BusError`]s.
    pub async fn claim_idle(
        &self,
        topic: &str,
        group: &str,
        consumer: &str,
        idle: Duration,
        limit: usize,
    ) -> Result<Vec<Entry>, BusError> {
        backend!(self.claim_idle(topic, group, consumer, idle, limit))
    }

    /// The group is done with these.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn ack(
        &self,
        topic: &str,
        group: &str,
        positions: &[Position],
    ) -> Result<(), BusError> {
        if positions.is_empty() {
            return Ok(());
        }
        backend!(self.ack(topic, group, positions))
    }

    /// Drops what every group is done with; answers how many entries went.
    ///
    /// `groups` hold entries from the moment they exist, whether or not they have read; while one
    /// of them does not exist, nothing is dropped. Any other group of the topic holds entries once
    /// it has a consumer, up to [`STALLED_READER_HOLDS`].
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn trim_acknowledged(&self, topic: &str, groups: &[&str]) -> Result<u64, BusError> {
        backend!(self.trim_acknowledged(topic, groups))
    }

    /// How far the group is behind.
    ///
    /// # Errors
    /// [`BusError::NoGroup`] when there is no such group; other [`BusError`]s.
    pub async fn group_lag(&self, topic: &str, group: &str) -> Result<Lag, BusError> {
        backend!(self.group_lag(topic, group))
    }

    /// How far the group is done with the topic, and in which history: whoever remembers the
    /// history from before an append, and finds the same one here, knows what became of its entries.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn progress(&self, topic: &str, group: &str) -> Result<Progress, BusError> {
        backend!(self.progress(topic, group))
    }

    /// The history of the backend, as in [`Progress`]; `None` when it ends with this process, so
    /// that nobody can have lost anything of it.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn history(&self) -> Result<Option<String>, BusError> {
        backend!(self.history())
    }

    /// Claims a key for `ttl`: true for exactly one caller in that time.
    ///
    /// # Errors
    /// [`BusError`]: it is then unknown whether the key is claimed. Deny.
    pub async fn claim(&self, key: &str, ttl: Duration) -> Result<bool, BusError> {
        backend!(self.claim(key, ttl))
    }

    /// As [`Bus::claim`], for what was made at `made`: false as well when it may have been claimed
    /// before in a history that the backend has lost since. A Redis that was started again, failed
    /// over or was emptied answers so for everything made until then, and for a second more.
    ///
    /// Memory knows of no time before this process: who needs that keeps a floor of its own.
    ///
    /// # Errors
    /// As [`Bus::claim`].
    pub async fn claim_made(
        &self,
        key: &str,
        made: Timestamp,
        ttl: Duration,
    ) -> Result<bool, BusError> {
        backend!(self.claim_made(key, made, ttl))
    }

    /// Begins to remember claims, unless that was done. Answers how long it takes until what is
    /// made then can be claimed with [`Bus::claim_made`].
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn open_claims(&self) -> Result<Duration, BusError> {
        backend!(self.open_claims())
    }

    /// Counts one more under `key`; the count starts again when `window` has passed since its
    /// first.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn count(&self, key: &str, window: Duration) -> Result<u64, BusError> {
        backend!(self.count(key, window))
    }

    /// Takes up to `most` of what is left of `limit` in the window of `key`, which is that of
    /// [`Bus::count`]: never more than `limit` are given out in one window, whoever takes them.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn take(
        &self,
        key: &str,
        most: u64,
        limit: u64,
        window: Duration,
    ) -> Result<Taken, BusError> {
        backend!(self.take(key, most, limit, window))
    }

    /// Takes or keeps the leadership of `name` for `ttl`: true while `holder` leads.
    ///
    /// # Errors
    /// [`BusError`]: whoever led must then stop leading at the end of its `ttl`.
    pub async fn lead(&self, name: &str, holder: &str, ttl: Duration) -> Result<bool, BusError> {
        backend!(self.lead(name, holder, ttl))
    }

    /// Says something as a member of `board`, to be read by all until `ttl` has passed.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn post(
        &self,
        board: &str,
        member: &str,
        note: &str,
        ttl: Duration,
    ) -> Result<(), BusError> {
        backend!(self.post(board, member, note, ttl))
    }

    /// What the members of `board` last said, by member.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn posts(&self, board: &str) -> Result<Vec<(String, String)>, BusError> {
        backend!(self.posts(board))
    }

    /// The server behind the bus; none when it is memory.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn server(&self) -> Result<Option<ServerFacts>, BusError> {
        backend!(self.server())
    }

    /// How long Redis took to answer, by what it was asked to do; all empty when the bus is memory.
    pub fn times(&self) -> [(&'static str, Histogram); 8] {
        match &self.0 {
            Backend::Memory(_) => redis::Times::default().all(),
            Backend::Redis(redis) => redis.times().all(),
        }
    }

    /// Whether the bus answers.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn ping(&self) -> Result<(), BusError> {
        backend!(self.ping())
    }
}
