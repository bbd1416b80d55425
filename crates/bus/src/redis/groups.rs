//! Groups on Redis: work that is shared out, acknowledged and trimmed.

use std::sync::Arc;
use std::time::Duration;

use redis::streams::{StreamAutoClaimReply, StreamReadReply};

use super::connection::failed;
use super::streams::{entry, position};
use super::{Redis, millis};
use crate::{BusError, Entry, Lag, Position, Progress, STALLED_READER_HOLDS};

impl Redis {
    pub async fn ensure_group(
        &self,
        topic: &str,
        group: &str,
        from_start: bool,
    ) -> Result<(), BusError> {
        let start = if from_start { "0" } else { "$" };
        let mut create = redis::cmd("XGROUP");
        create
            .arg("CREATE")
            .arg(self.key(topic))
            .arg(group)
            .arg(start)
            .arg("MKSTREAM");
        match self.ask::<()>("creating a group", &create).await {
            Err(BusError::Refused { detail, .. }) if detail.starts_with("BUSYGROUP") => Ok(()),
            answer => answer,
        }
    }

    pub async fn read_group(
        &self,
        topic: &str,
        group: &str,
        consumer: &str,
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<Entry>, BusError> {
        let doing = "reading for a group";
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP")
            .arg(group)
            .arg(consumer)
            .arg("COUNT")
            .arg(limit);
        if !wait.is_zero() {
            read.arg("BLOCK").arg(millis(wait));
        }
        read.arg("STREAMS").arg(self.key(topic)).arg(">");
        let mut connection = self.blocking.borrow(wait).await?;
        let answer = read
            .query_async::<Option<StreamReadReply>>(&mut connection)
            .await;
        let found = answer.map_err(|error| no_group(topic, group, failed(doing, error)))?;
        self.blocking.done(connection);
        self.entries(doing, found)
    }

    pub async fn claim_idle(
        &self,
        topic: &str,
        group: &str,
        consumer: &str,
        idle: Duration,
        limit: usize,
    ) -> Result<Vec<Entry>, BusError> {
        let doing = "claiming idle entries";
        let name: Arc<str> = topic.into();
        let mut found = Vec::new();
        let mut cursor = "0-0".to_owned();
        // One call looks at a part of what is pending; the cursor says where to go on.
        while found.len() < limit {
            let mut claim = redis::cmd("XAUTOCLAIM");
            claim.arg(self.key(topic)).arg(group).arg(consumer);
            claim
                .arg(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX))
                .arg(&cursor);
            claim.arg("COUNT").arg(limit - found.len());
            let answer = self.ask::<StreamAutoClaimReply>(doing, &claim).await;
            let reply = answer.map_err(|error| no_group(topic, group, error))?;
            for id in reply.claimed {
                found.push(entry(doing, &name, id)?);
            }
            cursor = reply.next_stream_id;
            if cursor == "0-0" {
                break;
            }
        }
        Ok(found)
    }

    pub async fn ack(
        &self,
        topic: &str,
        group: &str,
        positions: &[Position],
    ) -> Result<(), BusError> {
        let mut command = redis::cmd("XACK");
        command.arg(self.key(topic)).arg(group);
        for position in positions {
            command.arg(position.to_string());
        }
        self.ask::<u64>("acknowledging", &command).await?;
        Ok(())
    }

    pub async fn trim_acknowledged(&self, topic: &str, groups: &[&str]) -> Result<u64, BusError> {
        let mut script = self.scripts.trim.key(self.key(topic));
        self.run("trimming", script.arg(STALLED_READER_HOLDS).arg(groups))
            .await
    }

    pub async fn group_lag(&self, topic: &str, group: &str) -> Result<Lag, BusError> {
        let doing = "measuring a group";
        let mut script = self.scripts.lag.key(self.key(topic));
        let answer: Option<(u64, u64, String, String)> = self.run(doing, script.arg(group)).await?;
        let Some((undelivered, pending, waiting, next)) = answer else {
            return Err(BusError::NoGroup {
                topic: topic.to_owned(),
                group: group.to_owned(),
            });
        };
        Ok(Lag {
            undelivered,
            pending,
            oldest_pending: stated(doing, &waiting)?,
            oldest_undelivered: stated(doing, &next)?,
        })
    }

    pub async fn progress(&self, topic: &str, group: &str) -> Result<Progress, BusError> {
        let doing = "asking how far a group is";
        let mut script = self.scripts.progress.key(self.key(topic));
        script.key(self.key(super::HISTORY));
        let (history, floor): (String, String) = self.run(doing, script.arg(group)).await?;
        Ok(Progress {
            history,
            before: stated(doing, &floor)?,
        })
    }
}

/// A position that may be left out.
fn stated(doing: &'static str, id: &str) -> Result<Option<Position>, BusError> {
    (!id.is_empty()).then(|| position(doing, id)).transpose()
}

/// Tells a missing group from other refusals.
fn no_group(topic: &str, group: &str, error: BusError) -> BusError {
    match error {
        BusError::Refused { detail, .. } if detail.starts_with("NOGROUP") => BusError::NoGroup {
            topic: topic.to_owned(),
            group: group.to_owned(),
        },
        other => other,
    }
}
