//! Which logs there are: of every zone its events, and what administrators did in it; of the
//! deployment, what administrators did outside of its zones.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::ZoneId;

/// Ends the key of an admin log. No id of a zone holds its characters.
pub const ADMIN: &str = "/~admin";

/// What a log is of.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// Evidence.
    #[default]
    Events,
    /// What administrators did.
    Admin,
}

impl LogKind {
    /// Whether it is of evidence.
    pub fn is_events(&self) -> bool {
        *self == Self::Events
    }
}

/// A log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    kind: LogKind,
    zone: ZoneId,
    key: ZoneId,
}

impl LogId {
    /// The events of a zone.
    pub fn events(zone: ZoneId) -> Self {
        Self {
            kind: LogKind::Events,
            key: zone.clone(),
            zone,
        }
    }

    /// What administrators did in a zone; the empty zone is the deployment.
    pub fn admin(zone: ZoneId) -> Self {
        Self {
            kind: LogKind::Admin,
            key: ZoneId::trusted(format!("{zone}{ADMIN}")),
            zone,
        }
    }

    /// What it is of.
    pub fn kind(&self) -> LogKind {
        self.kind
    }

    /// Whose it is; empty for the deployment.
    pub fn zone(&self) -> &ZoneId {
        &self.zone
    }

    /// Under which trees, checkpoints and findings of it are stored: where the events of a zone have
    /// its id, an admin log has that and [`ADMIN`].
    pub fn key(&self) -> &ZoneId {
        &self.key
    }

    /// What one entry of it is called.
    pub fn entry(&self) -> &'static str {
        match self.kind {
            LogKind::Events => "event",
            LogKind::Admin => "record",
        }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.zone.as_str()) {
            (LogKind::Events, zone) => write!(f, "zone {zone}"),
            (LogKind::Admin, "") => f.write_str("admin audit of the deployment"),
            (LogKind::Admin, zone) => write!(f, "admin audit of zone {zone}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_zone_has_the_key_of_an_admin_log() {
        let keys = [
            LogId::events(ZoneId::trusted("z1")),
            LogId::admin(ZoneId::trusted("z1")),
            LogId::admin(ZoneId::trusted("")),
        ]
        .map(|log| log.key().clone());
        assert_eq!(
            keys.each_ref().map(ZoneId::as_str),
            ["z1", "z1/~admin", "/~admin"]
        );
        for key in &keys[1..] {
            assert!(ZoneId::parse(key.as_str()).is_err());
        }
    }
}
