//! What an operator wants to know of the server behind the bus: a Redis that evicts, or forgets when
//! it is started again, loses claims and evidence.

use caracal_model::Timestamp;

/// A Redis, as it describes itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its version, such as `7.2.4`.
    pub version: String,
    /// What it does when memory is full; anything but `noeviction` throws keys away.
    pub maxmemory_policy: String,
    /// Most memory in bytes; 0 is no limit.
    pub maxmemory: u64,
    /// Memory in use, in bytes.
    pub used_memory: u64,
    /// Whether each write is appended to a file.
    pub appends_to_file: bool,
    /// Whether its last writes to disk succeeded.
    pub persists: bool,
    /// Its clock when it answered; the Unix epoch when it does not tell it.
    pub now: Timestamp,
}

impl ServerFacts {
    /// Reads what `INFO` answers; what it does not say is empty.
    pub(crate) fn read(info: &str, now: Timestamp) -> Self {
        let said = |name: &str| {
            let mut lines = info.lines();
            lines
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map_or("", str::trim)
        };
        let number = |name| said(name).parse().unwrap_or(0);
        let writes = ["rdb_last_bgsave_status", "aof_last_write_status"];
        Self {
            version: said("redis_version").to_owned(),
            maxmemory_policy: said("maxmemory_policy").to_owned(),
            maxmemory: number("maxmemory"),
            used_memory: number("used_memory"),
            appends_to_file: said("aof_enabled") == "1",
            persists: writes.iter().all(|name| matches!(said(name), "" | "ok")),
            now,
        }
    }

    /// The first number of its version; 0 when it is not told.
    pub fn major(&self) -> u32 {
        let first = self.version.split('.').next().unwrap_or_default();
        first.parse().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_read_from_what_it_says() {
        let info = "# Server\r\nredis_version:7.2.4\r\nused_memory:1000\r\nused_memory_human:1K\r\n\
                    maxmemory:2000\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:1\r\n\
                    rdb_last_bgsave_status:ok\r\naof_last_write_status:err\r\n";
        let now = Timestamp::from_unix_seconds(7);
        let facts = ServerFacts::read(info, now);
        let expected = ServerFacts {
            version: "7.2.4".to_owned(),
            maxmemory_policy: "allkeys-lru".to_owned(),
            maxmemory: 2000,
            used_memory: 1000,
            appends_to_file: true,
            persists: false,
            now,
        };
        assert_eq!(facts, expected);
        assert_eq!(facts.major(), 7);
        assert_eq!(ServerFacts::read("", now).major(), 0);
    }
}
