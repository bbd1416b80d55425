//! The bus within one process: what Redis does for many, with the same promises.
//!
//! Waits are measured by the runtime, expiry by the [`Clock`], so a test that owns time decides
//! when a claim ends and never waits for it.

mod keys;
mod streams;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use caracal_model::change::Fields;
use caracal_model::{Clock, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use self::keys::Keys;
use self::streams::Stream;
use crate::{
    BusError, EVIDENCE_TOPICS, Entry, Lag, Position, Progress, RETENTION, ServerFacts, Taken,
};

/// Bounds of the memory backend.
#[derive(Clone, Copy, Debug)]
pub struct MemoryOptions {
    /// Entries that a topic keeps; the oldest go first.
    pub retention: usize,
    /// Entries that an evidence topic may hold unacknowledged; more are refused.
    pub evidence: usize,
    /// Keys that may be claimed or counted at one time; more are refused.
    pub keys: usize,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self {
            retention: RETENTION,
            evidence: 1_000_000,
            keys: 8_000_000,
        }
    }
}

pub(crate) struct Memory {
    clock: Arc<dyn Clock>,
    options: MemoryOptions,
    streams: Mutex<HashMap<Arc<str>, Stream>>,
    appended: Notify,
    keys: Keys,
}

impl Memory {
    pub fn new(clock: Arc<dyn Clock>, options: MemoryOptions) -> Self {
        let keys = Keys::new(clock.clone(), options.keys);
        Self {
            clock,
            options,
            streams: Mutex::default(),
            appended: Notify::new(),
            keys,
        }
    }

    /// Runs `act` on the stream of that name, which exists from then on.
    fn with<T>(&self, topic: &str, act: impl FnOnce(&Arc<str>, &mut Stream) -> T) -> T {
        let mut streams = self.streams.lock();
        let known = streams.get_key_value(topic).map(|(name, _)| name.clone());
        let name = known.unwrap_or_else(|| topic.into());
        act(&name, streams.entry(name.clone()).or_default())
    }

    /// Asks `look` now and after every append, until it finds something or `wait` is over.
    async fn wait_for(
        &self,
        wait: Duration,
        mut look: impl FnMut() -> Result<Vec<Entry>, BusError>,
    ) -> Result<Vec<Entry>, BusError> {
        let searching = async {
            loop {
                let mut appended = pin!(self.appended.notified());
                // Registered before the look, so an append between the two still wakes us.
                appended.as_mut().enable();
                let found = look()?;
                if !found.is_empty() {
                    return Ok(found);
                }
                appended.await;
            }
        };
        timeout(wait, searching)
            .await
            .unwrap_or_else(|_| Ok(Vec::new()))
    }
}

/// The methods behind [`crate::Bus`]; they are async where Redis has to be.
#[expect(clippy::unused_async, reason = "one shape for both backends")]
impl Memory {
    pub async fn append(&self, topic: &str, entries: &[Fields]) -> Result<Vec<Position>, BusError> {
        let now = u64::try_from(self.clock.now().unix_millis()).unwrap_or(0);
        let is_evidence = topic.starts_with(EVIDENCE_TOPICS);
        let bounds = self.options;
        let positions = self.with(topic, |_, stream| {
            if is_evidence && stream.len() + entries.len() > bounds.evidence {
                return Err(BusError::Full {
                    what: topic.to_owned(),
                });
            }
            let positions = entries
                .iter()
                .map(|fields| stream.append(now, fields))
                .collect();
            if !is_evidence {
                stream.keep_newest(bounds.retention);
            }
            Ok(positions)
        })?;
        self.appended.notify_waiters();
        Ok(positions)
    }

    pub async fn last(&self, topic: &str) -> Result<Position, BusError> {
        Ok(self.with(topic, |_, stream| stream.last()))
    }

    /// There is one history only: it ends with the process, and so does everybody who reads it.
    pub async fn tail(
        &self,
        _incarnation: &str,
        from: &[(&str, Position)],
        wait: Duration,
        limit: usize,
    ) -> Result<Vec<Entry>, BusError> {
        let look = || {
            let mut found = Vec::new();
            for (topic, after) in from {
                found.extend(self.with(topic, |name, stream| {
                    if stream.has_gap_after(*after) {
                        return Err(BusError::Gap {
                            topic: (*topic).to_owned(),
                        });
                    }
                    Ok(stream.after(name, *after, limit))
                })?);
            }
            Ok(found)
        };
        self.wait_for(wait, look).await
    }

    pub async fn incarnation(&self) -> Result<String, BusError> {
        Ok("memory".to_owned())
    }

    pub async fn len(&self, topic: &str) -> Result<u64, BusError> {
        Ok(self.with(topic, |_, stream| streams::number(stream.len())))
    }

    pub async fn range(
        &self,
        topic: &str,
        from: Position,
        limit: usize,
    ) -> Result<Vec<Entry>, BusError> {
        Ok(self.with(topic, |name, stream| stream.from(name, from, limit)))
    }

    pub async fn remove(&self, topic: &str, positions: &[Position]) -> Result<u64, BusError> {
        Ok(self.with(topic, |_, stream| stream.remove(positions)))
    }

    pub async fn ensure_group(
        &self,
        topic: &str,
        group: &str,
        from_start: bool,
    ) -> Result<(), BusError> {
        self.with(topic, |_, stream| stream.ensure_group(group, from_start));
        Ok(())
    }

    pub async fn read_group(
        &self,
        topic: &str,
        group: &str,
        consumer: &str,
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<Entry>, BusError> {
        let now = || self.clock.ticks();
        let look = || {
            self.with(topic, |name, stream| {
                stream
                    .deliver(name, group, consumer, now(), limit)
                    .ok_or_else(|| missing(topic, group))
            })
        };
        self.wait_for(wait, look).await
    }

    pub async fn claim_idle(
        &self,
        topic: &str,
        group: &str,
        consumer: &str,
        idle: Duration,
        limit: usize,
    ) -> Result<Vec<Entry>, BusError> {
        let now = self.clock.ticks();
        self.with(topic, |name, stream| {
            stream
                .redeliver(name, group, consumer, now, idle, limit)
                .ok_or_else(|| missing(topic, group))
        })
    }

    pub async fn ack(
        &self,
        topic: &str,
        group: &str,
        positions: &[Position],
    ) -> Result<(), BusError> {
        self.with(topic, |_, stream| stream.ack(group, positions));
        Ok(())
    }

    pub async fn trim_acknowledged(&self, topic: &str, groups: &[&str]) -> Result<u64, BusError> {
        Ok(self.with(topic, |_, stream| stream.trim_acknowledged(groups)))
    }

    pub async fn group_lag(&self, topic: &str, group: &str) -> Result<Lag, BusError> {
        self.with(topic, |_, stream| {
            stream.lag(group).ok_or_else(|| missing(topic, group))
        })
    }

    pub async fn history(&self) -> Result<Option<String>, BusError> {
        Ok(None)
    }

    pub async fn progress(&self, topic: &str, group: &str) -> Result<Progress, BusError> {
        Ok(Progress {
            history: self.incarnation().await?,
            before: self.with(topic, |_, stream| stream.floor(group)),
        })
    }

    pub async fn claim(&self, key: &str, ttl: Duration) -> Result<bool, BusError> {
        self.keys.claim(key, ttl)
    }

    pub async fn claim_made(
        &self,
        key: &str,
        _: Timestamp,
        ttl: Duration,
    ) -> Result<bool, BusError> {
        self.keys.claim(key, ttl)
    }

    pub async fn open_claims(&self) -> Result<Duration, BusError> {
        Ok(Duration::ZERO)
    }

    pub async fn count(&self, key: &str, window: Duration) -> Result<u64, BusError> {
        self.keys.count(key, window)
    }

    pub async fn take(
        &self,
        key: &str,
        most: u64,
        limit: u64,
        window: Duration,
    ) -> Result<Taken, BusError> {
        self.keys.take(key, most, limit, window)
    }

    pub async fn lead(&self, name: &str, holder: &str, ttl: Duration) -> Result<bool, BusError> {
        Ok(self.keys.lead(name, holder, ttl))
    }

    pub async fn post(
        &self,
        board: &str,
        member: &str,
        note: &str,
        ttl: Duration,
    ) -> Result<(), BusError> {
        self.keys.post(board, member, note, ttl);
        Ok(())
    }

    pub async fn posts(&self, board: &str) -> Result<Vec<(String, String)>, BusError> {
        Ok(self.keys.posts(board))
    }

    pub async fn ping(&self) -> Result<(), BusError> {
        Ok(())
    }

    pub async fn server(&self) -> Result<Option<ServerFacts>, BusError> {
        Ok(None)
    }
}

fn missing(topic: &str, group: &str) -> BusError {
    BusError::NoGroup {
        topic: topic.to_owned(),
        group: group.to_owned(),
    }
}
