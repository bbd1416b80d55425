//! Topics on Redis: append and broadcast tails.

use std::sync::Arc;
use std::time::Duration;

use caracal_model::change::Fields;
use redis::streams::{StreamId, StreamRangeReply, StreamReadReply};

use super::connection::failed;
use super::{Redis, millis};
use crate::{BusError, EVIDENCE_TOPICS, Entry, Position};

/// Commands of one pipeline; longer batches are sent in several.
const PIPELINE: usize = 1_000;

impl Redis {
    pub async fn append(&self, topic: &str, entries: &[Fields]) -> Result<Vec<Position>, BusError> {
        let key = self.key(topic);
        let is_evidence = topic.starts_with(EVIDENCE_TOPICS);
        let mut positions = Vec::with_capacity(entries.len());
        for batch in entries.chunks(PIPELINE) {
            let mut pipeline = redis::pipe();
            for fields in batch {
                let add = pipeline.cmd("XADD").arg(&key);
                if !is_evidence {
                    add.arg("MAXLEN").arg("~").arg(self.options.retention);
                }
                add.arg("*");
                for (name, value) in fields {
                    add.arg(name).arg(value);
                }
            }
            let mut lent = self.shared.lend();
            let asking = pipeline.query_async::<Vec<String>>(&mut lent.connection);
            let answer = self.in_time("appending", asking).await;
            for id in self.judged("appending", &lent, answer)? {
                positions.push(position("appending", &id)?);
            }
        }
        Ok(positions)
    }

    pub async fn last(&self, topic: &str) -> Result<Position, BusError> {
        let script = self.scripts.last.key(self.key(topic));
        let id: String = self.run("asking for the last position", &script).await?;
        position("asking for the last position", &id)
    }

    pub async fn tail(
        &self,
        incarnation: &str,
        from: &[(&str, Position)],
        wait: Duration,
        limit: usize,
    ) -> Result<Vec<Entry>, BusError> {
        let doing = "tailing";
        let mut connection = self.blocking.borrow(wait).await?;
        let mut check = self.scripts.tail.arg(limit);
        check.arg(incarnation);
        for (topic, after) in from {
            check.key(self.key(topic)).arg(after.to_string());
        }
        let asking = check.invoke_async::<(String, Option<StreamReadReply>)>(&mut connection);
        let (gap, found) = self
            .in_time(doing, asking)
            .await
            .map_err(|error| failed(doing, error))?;
        if !gap.is_empty() {
            self.blocking.done(connection);
            return Err(BusError::Gap {
                topic: self.topic(&gap).to_owned(),
            });
        }
        let found = match found {
            None if !wait.is_zero() => {
                let read = self.blocking_read(from, wait, limit);
                let answer = read
                    .query_async::<Option<StreamReadReply>>(&mut connection)
                    .await;
                answer.map_err(|error| failed(doing, error))?
            }
            found => found,
        };
        self.blocking.done(connection);
        self.entries(doing, found)
    }

    fn blocking_read(&self, from: &[(&str, Position)], wait: Duration, limit: usize) -> redis::Cmd {
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT")
            .arg(limit)
            .arg("BLOCK")
            .arg(millis(wait))
            .arg("STREAMS");
        for (topic, _) in from {
            read.arg(self.key(topic));
        }
        for (_, after) in from {
            read.arg(after.to_string());
        }
        read
    }

    pub async fn len(&self, topic: &str) -> Result<u64, BusError> {
        let mut command = redis::cmd("XLEN");
        command.arg(self.key(topic));
        self.ask("measuring a topic", &command).await
    }

    pub async fn range(
        &self,
        topic: &str,
        from: Position,
        limit: usize,
    ) -> Result<Vec<Entry>, BusError> {
        let doing = "reading a range";
        let mut command = redis::cmd("XRANGE");
        command.arg(self.key(topic)).arg(from.to_string()).arg("+");
        command.arg("COUNT").arg(limit);
        let found: StreamRangeReply = self.ask(doing, &command).await?;
        let name: Arc<str> = topic.into();
        let entries = found.ids.into_iter().map(|id| entry(doing, &name, id));
        entries.collect()
    }

    pub async fn remove(&self, topic: &str, positions: &[Position]) -> Result<u64, BusError> {
        let mut command = redis::cmd("XDEL");
        command.arg(self.key(topic));
        for position in positions {
            command.arg(position.to_string());
        }
        self.ask("removing entries", &command).await
    }

    /// The name of a topic without the prefix of its key.
    fn topic<'k>(&self, key: &'k str) -> &'k str {
        key.strip_prefix(self.options.prefix.as_str())
            .unwrap_or(key)
    }

    pub(super) fn entries(
        &self,
        doing: &'static str,
        reply: Option<StreamReadReply>,
    ) -> Result<Vec<Entry>, BusError> {
        let mut found = Vec::new();
        for stream in reply.map(|reply| reply.keys).unwrap_or_default() {
            let topic: Arc<str> = self.topic(&stream.key).into();
            for id in stream.ids {
                found.push(entry(doing, &topic, id)?);
            }
        }
        Ok(found)
    }
}

/// Bytes that are not UTF-8 are replaced: nothing of ours contains any, and a signature over
/// replaced text does not verify.
pub(super) fn entry(
    doing: &'static str,
    topic: &Arc<str>,
    id: StreamId,
) -> Result<Entry, BusError> {
    let text = |value: redis::Value| match value {
        redis::Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        other => redis::from_redis_value(other).unwrap_or_default(),
    };
    let fields = id
        .map
        .into_iter()
        .map(|(name, value)| (name, text(value)))
        .collect();
    Ok(Entry {
        topic: topic.clone(),
        position: position(doing, &id.id)?,
        fields,
    })
}

pub(super) fn position(doing: &'static str, id: &str) -> Result<Position, BusError> {
    id.parse().map_err(|_| BusError::Refused {
        doing,
        detail: "a stream id has no meaning".into(),
    })
}
