//! What a committed mutation tells the rest of the system.
//!
//! An [`Outgoing`] entry is written to the outbox in the transaction of the mutation and appended
//! to its topic after the commit. [`Change`] is the part that every replica's memory follows; the
//! other topics are the published wire streams (spec: audit-and-streams §2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{ApprovalId, DelegationId, ProviderId, RecordId, SessionId, ZoneId};
use crate::time::Timestamp;

/// A stream. Names are wire names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Topic {
    /// Evidence events; signed with the audit key, not with `_sig`.
    #[serde(rename = "caracal.audit.events")]
    AuditEvents,
    /// Irreversible ends: authority records, Sessions, Delegations.
    #[serde(rename = "caracal.sessions.revoke")]
    SessionsRevoke,
    /// A zone's active policy changed.
    #[serde(rename = "caracal.policy.invalidate")]
    PolicyInvalidate,
    /// A zone's signing keys changed.
    #[serde(rename = "caracal.keys.invalidate")]
    KeysInvalidate,
    /// Sessions started, suspended, resumed, ended.
    #[serde(rename = "caracal.agents.lifecycle")]
    AgentsLifecycle,
    /// Delegations created, revoked, expired, with the zone's epoch.
    #[serde(rename = "caracal.delegations.invalidate")]
    DelegationsInvalidate,
    /// Ours alone: everything that replicas hold in memory follows this one.
    #[serde(rename = "caracal.view.changes")]
    ViewChanges,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 7] = [
        Self::AuditEvents,
        Self::SessionsRevoke,
        Self::PolicyInvalidate,
        Self::KeysInvalidate,
        Self::AgentsLifecycle,
        Self::DelegationsInvalidate,
        Self::ViewChanges,
    ];

    /// The stream's name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AuditEvents => "caracal.audit.events",
            Self::SessionsRevoke => "caracal.sessions.revoke",
            Self::PolicyInvalidate => "caracal.policy.invalidate",
            Self::KeysInvalidate => "caracal.keys.invalidate",
            Self::AgentsLifecycle => "caracal.agents.lifecycle",
            Self::DelegationsInvalidate => "caracal.delegations.invalidate",
            Self::ViewChanges => "caracal.view.changes",
        }
    }

    /// The topic of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }

    /// Revocations overtake everything else on their way out of the outbox.
    pub const fn is_urgent(self) -> bool {
        matches!(self, Self::SessionsRevoke | Self::ViewChanges)
    }
}

/// Fields of a stream entry. Absent values are left out, never sent as `null` or as empty text.
pub type Fields = BTreeMap<String, String>;

/// An entry on its way to a topic, without envelope (`outbox_id`, `_sig`), which the relay adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Where it goes.
    pub topic: Topic,
    /// The zone that it is about.
    pub zone: ZoneId,
    /// What is said, `zone_id` included.
    pub fields: Fields,
}

impl Outgoing {
    /// An entry about `zone` with these further fields; pairs with `None` are left out.
    pub fn new<'a>(
        topic: Topic,
        zone: &ZoneId,
        fields: impl IntoIterator<Item = (&'a str, Option<String>)>,
    ) -> Self {
        let mut all: Fields = fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect();
        all.insert("zone_id".to_owned(), zone.to_string());
        Self {
            topic,
            zone: zone.clone(),
            fields: all,
        }
    }
}

/// A change that the memory of every replica follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Applications, resources, providers, policy, keys or the zone itself changed: reload it.
    Zone(ZoneId),
    /// A Session was suspended, resumed, started or moved its lease: forget what is held of it.
    Session(ZoneId, SessionId),
    /// A Delegation was created or changed: forget what is held of it.
    Delegation(ZoneId, DelegationId),
    /// The zone's graph epoch rose to this.
    Epoch(ZoneId, u64),
    /// An authority record changed: forget what is held of it.
    Record(ZoneId, RecordId),
    /// An approval was decided or consumed: whoever waits for it looks again.
    Approval(ZoneId, ApprovalId),
    /// A subject's connection to a provider changed: forget what is held of it.
    Connection(ZoneId, ProviderId, String),
    /// Mandates of this subject that were issued up to this time are dead.
    Subject(ZoneId, String, Timestamp),
}

impl Change {
    /// As an entry of [`Topic::ViewChanges`].
    pub fn outgoing(&self) -> Outgoing {
        let mut not_before = None;
        let (zone, kind, id) = match self {
            Self::Zone(zone) => (zone, "zone", None),
            Self::Session(zone, id) => (zone, "session", Some(id.to_string())),
            Self::Delegation(zone, id) => (zone, "delegation", Some(id.to_string())),
            Self::Epoch(zone, epoch) => (zone, "epoch", Some(epoch.to_string())),
            Self::Record(zone, id) => (zone, "record", Some(id.to_string())),
            Self::Approval(zone, id) => (zone, "approval", Some(id.to_string())),
            Self::Connection(zone, id, _) => (zone, "connection", Some(id.to_string())),
            Self::Subject(zone, subject, at) => {
                not_before = Some(at.unix_micros().to_string());
                (zone, "subject", Some(subject.clone()))
            }
        };
        let subject = match self {
            Self::Connection(.., subject) => Some(subject.clone()),
            _ => None,
        };
        Outgoing::new(
            Topic::ViewChanges,
            zone,
            [
                ("kind", Some(kind.to_owned())),
                ("id", id),
                ("subject", subject),
                ("not_before", not_before),
            ],
        )
    }

    /// Reads an entry of [`Topic::ViewChanges`]; `None` when it says nothing that we know.
    pub fn parse(fields: &Fields) -> Option<Self> {
        let zone = ZoneId::parse(fields.get("zone_id")?).ok()?;
        let id = || fields.get("id").map(String::as_str);
        Some(match fields.get("kind")?.as_str() {
            "zone" => Self::Zone(zone),
            "session" => Self::Session(zone, SessionId::parse(id()?).ok()?),
            "delegation" => Self::Delegation(zone, DelegationId::parse(id()?).ok()?),
            "epoch" => Self::Epoch(zone, id()?.parse().ok()?),
            "record" => Self::Record(zone, RecordId::parse(id()?).ok()?),
            "approval" => Self::Approval(zone, ApprovalId::parse(id()?).ok()?),
            "connection" => {
                let subject = fields.get("subject")?.clone();
                Self::Connection(zone, ProviderId::parse(id()?).ok()?, subject)
            }
            "subject" => {
                let at = fields.get("not_before")?.parse().ok()?;
                Self::Subject(zone, id()?.to_owned(), Timestamp::from_unix_micros(at))
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_survive_the_wire() {
        let zone = ZoneId::trusted("z1");
        for change in [
            Change::Zone(zone.clone()),
            Change::Session(zone.clone(), SessionId::trusted("s1")),
            Change::Delegation(zone.clone(), DelegationId::trusted("e1")),
            Change::Epoch(zone.clone(), 7),
            Change::Record(zone.clone(), RecordId::trusted("r1")),
            Change::Approval(zone.clone(), ApprovalId::trusted("a1")),
            Change::Connection(zone.clone(), ProviderId::trusted("p1"), "user 1".to_owned()),
            Change::Subject(
                zone,
                "auth0|u 1".to_owned(),
                Timestamp::from_unix_micros(1_790_000_000_123_456),
            ),
        ] {
            assert_eq!(Change::parse(&change.outgoing().fields), Some(change));
        }
    }

    #[test]
    fn topics_have_names_both_ways() {
        for topic in Topic::ALL {
            assert_eq!(Topic::from_name(topic.name()), Some(topic));
        }
    }
}
