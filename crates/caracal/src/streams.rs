//! Settings of Redis and of what goes through it: streams, and the outbox that feeds them.

use std::time::Duration;

use caracal_bus::RedisOptions;
use caracal_view::RelayOptions;

const DAY: u64 = 24 * 3600;

caracal_net::settings! {
    /// How streams are talked to, and how news gets there.
    pub struct StreamSettings {
        /// Connections that calls are spread over; one carries two hundred thousand calls a second.
        pub connections: usize = var("REDIS_POOL_SIZE").or("1").within("1", "1000"),
        // Published are 5 s to connect, 3 s to write, 3 s to read and 4 s to get a connection, one after
        // the other: longer than STS_TIMEOUT, so that a call that waited for Redis was given up by the
        // Gateway before its STS refused it. Here one limit holds for all of a call.
        /// Longest attempt to connect.
        pub dial_timeout: Duration = var("REDIS_DIAL_TIMEOUT").or("2s").within("10ms", "1m"),
        /// Longest call, connecting included.
        pub read_timeout: Duration = var("REDIS_READ_TIMEOUT").or("2s").within("10ms", "1m"),
        /// Entries that each stream keeps, about; evidence is kept until it is in the ledger.
        pub retention: usize = var("OUTBOX_STREAM_MAXLEN").also("STREAMS_MAXLEN").or("100000")
            .within("1000", "100000000"),
        /// How often the outbox is looked at without being told of news.
        pub outbox_poll: Duration = var("OUTBOX_POLL_MS").millis().also("OUTBOX_INTERVAL_MS")
            .or("250").within("10", "60000"),
        // Published is 32 every 250 ms, which is 128 entries a second; here a full batch is followed by
        // the next at once, and one of 500 is a single transaction.
        /// Entries that are taken out of the outbox at a time.
        pub outbox_batch: u32 = var("OUTBOX_BATCH_SIZE").or("500").within("1", "10000"),
        // Published is 30 s, which is how long news waits when a process dies with its batch. A batch is
        // sent within REDIS_READ_TIMEOUT or not at all, and sending twice is harmless.
        /// For how long entries that one process has taken are left alone by the others.
        pub outbox_claim: Duration = var("OUTBOX_LOCK_SEC").or("1").seconds().within("1", "3600"),
        // Published are 100 for the API and 10 for the Coordinator, counting outages. Here both share one
        // outbox and only a refusal by a server that answers is counted, which repeating seldom mends.
        /// Refusals after which an outbox entry is dead; an outage is no refusal.
        pub outbox_attempts: u32 = var("OUTBOX_MAX_ATTEMPTS").or("20").within("1", "10000"),
        /// Days that delivered outbox entries are kept.
        pub outbox_days: u32 = var("OUTBOX_RETENTION_DAYS").or("7").within("1", "36500"),
    }
}

impl StreamSettings {
    /// As the bus takes them, with these roots of trust.
    pub fn redis(&self, roots: Vec<u8>) -> RedisOptions {
        RedisOptions {
            timeout: self.read_timeout,
            connect_timeout: self.dial_timeout,
            connections: self.connections,
            retention: self.retention,
            roots: Some(roots),
            ..RedisOptions::default()
        }
    }

    /// As the relay takes them.
    pub fn relay(&self) -> RelayOptions {
        RelayOptions {
            max_attempts: self.outbox_attempts,
            keep: Duration::from_secs(u64::from(self.outbox_days) * DAY),
            batch: self.outbox_batch,
            claim: self.outbox_claim,
            look_every: self.outbox_poll,
        }
    }
}
