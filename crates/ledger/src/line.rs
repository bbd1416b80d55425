//! A log as lines of JSON, in a file or in the answers of the API: what is needed to verify it with
//! nothing but a public key.
//!
//! ```text
//! {"zone_id":…,"key":vkey,"change":note}               for people; a change of keys as it was signed
//! {"zone_id":…,"floor":{"size":…,"chain_hash":…,"tree":[…]},"code":…}   only after retention
//! {"zone_id":…,"checkpoint":note,"proof":[…]}          every checkpoint that was signed
//! {"zone_id":…,"seq":1,"event":text,…}                 the entries
//! ```
//!
//! A line of an admin log has `"log":"admin"` as well, and that of the deployment no zone.
//! Checkpoints stand before the entries that they cover, so one pass over a log of any length is
//! enough. A proof shows that the floor continues a checkpoint from below it.

use caracal_model::{LogId, LogKind, ZoneId};
use serde::{Deserialize, Serialize};

use crate::history::Floor;

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// An entry with its link.
    Entry(Entry),
    /// A checkpoint.
    Checkpoint(Signed),
    /// What stands for entries that are no longer kept.
    Floor(Begin),
    /// A key.
    Key(Key),
}

macro_rules! of_a_log {
    ($($name:ident),+) => {$(
        impl $name {
            /// The log; `None` when a log of events has no zone.
            pub fn log(&self) -> Option<LogId> {
                let zone = self.zone_id.clone();
                match self.log {
                    LogKind::Events => zone.map(LogId::events),
                    LogKind::Admin => Some(LogId::admin(zone.unwrap_or_else(none))),
                }
            }
        }
    )+};
}

of_a_log!(Entry, Signed, Begin, Key);

fn none() -> ZoneId {
    ZoneId::trusted("")
}

/// How a line names its log.
pub fn named(log: &LogId) -> (Option<ZoneId>, LogKind) {
    let zone = Some(log.zone()).filter(|zone| !zone.as_str().is_empty());
    (zone.cloned(), log.kind())
}

/// An event, or a record of the admin audit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_id: Option<ZoneId>,
    /// What its log is of.
    #[serde(default, skip_serializing_if = "LogKind::is_events")]
    pub log: LogKind,
    /// Its place in the chain, from 1.
    pub seq: u64,
    /// Its exact text.
    pub event: String,
    /// Digest of the text, hex.
    pub content_sha256: String,
    /// Digest of everything up to here, hex.
    pub chain_hash: String,
    /// Authorship, hex.
    pub chain_hmac: String,
}

/// A checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Signed {
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_id: Option<ZoneId>,
    /// What its log is of.
    #[serde(default, skip_serializing_if = "LogKind::is_events")]
    pub log: LogKind,
    /// The signed note.
    pub checkpoint: String,
    /// Consistency with the floor, when it is below it: hashes, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Vec<String>>,
}

/// Where a log begins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Begin {
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_id: Option<ZoneId>,
    /// What its log is of.
    #[serde(default, skip_serializing_if = "LogKind::is_events")]
    pub log: LogKind,
    /// What stands for what was before.
    pub floor: Floor,
    /// Shows that the deployment dropped it, hex.
    pub code: String,
}

/// A key. By itself it is for people, and believed by nobody.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Key {
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_id: Option<ZoneId>,
    /// What its log is of.
    #[serde(default, skip_serializing_if = "LogKind::is_events")]
    pub log: LogKind,
    /// The key.
    pub key: String,
    /// The checkpoint with which the log changed to this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
}
