//! The claims of a mandate (spec: sts §3). Empty optional claims are omitted on the wire: a
//! present but empty `scope` makes a published verifier fail.

use serde::{Deserialize, Serialize};

use crate::id::{ApplicationId, DelegationId, Jti, RecordId, SessionId, ZoneId, uuid7_millis};

/// What a mandate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenUse {
    /// Lifecycle or federated session token, for the Coordinator.
    Session,
    /// One-shot ingress mandate, for the Gateway.
    Gateway,
    /// Final mandate, for a resource server.
    Resource,
}

/// Who the subject is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubjectType {
    /// The application itself.
    Application,
    /// A federated user.
    User,
}

/// One hop of the delegation chain: an edge as its issuer, or the final receiver without an edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHop {
    /// The application of this hop.
    pub application_id: ApplicationId,
    /// Its Session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_session_id: Option<SessionId>,
    /// The Delegation that it issued; absent for the receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegation_edge_id: Option<DelegationId>,
}

/// Who acts with a mandate on behalf of its subject (RFC 8693 section 4.1), and who acted before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Subject of the actor's session mandate.
    pub sub: String,
    /// The application that obtained that mandate.
    pub client_id: ApplicationId,
    /// Its authority record: when this dies, so does every mandate that names it.
    pub sid: RecordId,
    /// Who acted through the actor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<Box<Actor>>,
}

impl Actor {
    /// This actor, then those before it.
    pub fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |actor| actor.act.as_deref())
    }
}

/// All claims of a mandate, in the order in which we sign them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mandate {
    /// Issuer URL, verbatim.
    pub iss: String,
    /// Subject: the application id, or the user's `sub`.
    pub sub: String,
    /// Always an array on the wire.
    pub aud: Vec<String>,
    /// Expiry, Unix seconds.
    pub exp: i64,
    /// Issue time, Unix seconds.
    pub iat: i64,
    /// UUIDv7.
    pub jti: Jti,
    /// The zone whose key signed it.
    pub zone_id: ZoneId,
    /// The application that presented its credential.
    pub client_id: ApplicationId,
    /// Granted scopes exactly as requested, separated by spaces; empty is omitted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// Authority record.
    pub sid: RecordId,
    /// Root authority record.
    pub root_sid: RecordId,
    /// What it may be used for.
    #[serde(rename = "use")]
    pub token_use: TokenUse,
    /// Who the subject is.
    pub sub_type: SubjectType,
    /// Granted resource identifiers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target: Vec<String>,
    /// The Session that presents it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_session_id: Option<SessionId>,
    /// The Delegation under which it was minted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegation_edge_id: Option<DelegationId>,
    /// Source Session of that Delegation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_session_id: Option<SessionId>,
    /// Target Session of that Delegation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_session_id: Option<SessionId>,
    /// Delegations from root to leaf.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegation_path: Vec<DelegationId>,
    /// One hop a Delegation, then the receiver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegation_chain: Vec<ChainHop>,
    /// Length of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop_count: Option<u32>,
    /// The zone's graph epoch at mint; omitted when 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegation_graph_epoch: Option<u64>,
    /// Who acts; only where the zone takes actor tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<Box<Actor>>,
}

impl Mandate {
    /// When it was issued, Unix milliseconds: as its `jti` says, else the second of `iat`.
    pub fn issued_ms(&self) -> i64 {
        let by_id = uuid7_millis(self.jti.as_str()).and_then(|ms| i64::try_from(ms).ok());
        by_id.unwrap_or_else(|| self.iat.saturating_mul(1000))
    }

    /// The actor and those before it, the latest first.
    pub fn actors(&self) -> impl Iterator<Item = &Actor> {
        self.act.iter().flat_map(|actor| actor.chain())
    }
}
