//! What is asked, and what is known: the inputs of [`decide`](super::decide), borrowed from
//! whoever holds them in memory.

use std::sync::Arc;

use caracal_model::{
    Actor, ApplicationId, DelegationId, Mandate, RecordId, Refusal, RequestId, SessionId, ZoneId,
};

use crate::control::ControlKey;
use crate::facts::{EdgeFacts, ResourceFacts};
use crate::lineage::Known;

/// The kind of exchange (spec: sts §2.3).
#[derive(Clone, Copy, Debug)]
pub enum Class<'a> {
    /// The application for itself, with or without a Session: a lifecycle token.
    Bootstrap,
    /// A Session under a Delegation: a one-shot mandate for the Gateway.
    Delegated,
    /// The Gateway for one call, with the mandate that it was handed and has verified.
    Gateway {
        /// The mandate, its signature and times checked.
        presented: &'a Mandate,
        /// Method of the call.
        method: &'a str,
        /// Decoded path of the call.
        path: &'a str,
    },
    /// An application for the Control API, by its traits: no policy is asked.
    Control {
        /// What its traits say.
        key: &'a ControlKey,
    },
    /// An application with a session mandate. Policy sees it, and nothing comes of it: such calls
    /// belong to the Gateway.
    SubjectToken {
        /// The mandate, its signature and times checked.
        presented: &'a Mandate,
    },
}

impl<'a> Class<'a> {
    /// The mandate that was presented as subject token.
    pub fn presented(&self) -> Option<&'a Mandate> {
        match *self {
            Self::Bootstrap | Self::Delegated | Self::Control { .. } => None,
            Self::Gateway { presented, .. } | Self::SubjectToken { presented } => Some(presented),
        }
    }

    /// Whether minting in this class counts against the mint limit. A governed call is charged
    /// once, when its mandate is minted, not again when the Gateway exchanges it.
    pub fn is_charged(&self) -> bool {
        match self {
            Self::Bootstrap
            | Self::Delegated
            | Self::Control { .. }
            | Self::SubjectToken { .. } => true,
            Self::Gateway { .. } => false,
        }
    }
}

/// A token exchange whose caller is authenticated.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeRequest<'a> {
    /// Which kind.
    pub class: Class<'a>,
    /// The zone.
    pub zone: &'a ZoneId,
    /// Its id.
    pub request_id: &'a RequestId,
    /// The calling application.
    pub application: &'a ApplicationId,
    /// `managed` or `dcr`.
    pub registration_method: &'a str,
    /// Scopes as sent; the mandate repeats the text.
    pub scope: &'a str,
    /// Lifetime in seconds; 0 when none was sent.
    pub ttl_seconds: i64,
    /// Authority record.
    pub session_id: Option<&'a RecordId>,
    /// Governed Session.
    pub agent_session_id: Option<&'a SessionId>,
    /// Delegation.
    pub delegation_edge_id: Option<&'a DelegationId>,
    /// The session mandate of whoever acts, its signature and times checked and nothing that it
    /// hangs on revoked.
    pub actor: Option<&'a Mandate>,
}

impl<'a> ExchangeRequest<'a> {
    /// The authority records of whoever acts, the latest first.
    pub fn actor_records(&self) -> impl Iterator<Item = &'a RecordId> + use<'a> {
        let before = |actor: &'a Mandate| actor.actors().map(|before| &before.sid);
        let each = move |actor: &'a Mandate| std::iter::once(&actor.sid).chain(before(actor));
        self.actor.into_iter().flat_map(each)
    }

    /// Who acts with what is granted: whom the caller names, with everybody who acted through it;
    /// or those whom the presented mandate names.
    pub fn act(&self) -> Option<Box<Actor>> {
        match self.actor {
            Some(actor) => Some(Box::new(Actor {
                sub: actor.sub.clone(),
                client_id: actor.client_id.clone(),
                sid: actor.sid.clone(),
                act: actor.act.clone(),
            })),
            None => self.class.presented()?.act.clone(),
        }
    }
}

/// Why the credential of a provider is not at hand (spec: sts §2.6, row 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CredentialFault {
    /// There is no such provider.
    ProviderUnavailable,
    /// The subject has not connected its account.
    NotProvisioned,
    /// The connection could not be refreshed.
    RefreshFailed,
    /// The connection has ended and cannot be refreshed.
    Expired,
}

impl CredentialFault {
    /// The status in evidence.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProviderUnavailable => "provider_unavailable",
            Self::NotProvisioned => "credential_not_provisioned",
            Self::RefreshFailed | Self::Expired => "credential_refresh_failed",
        }
    }

    /// What has to be done about it.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::ProviderUnavailable => "the credential of the provider is not available",
            Self::NotProvisioned => "the subject has not connected its account at the provider",
            Self::RefreshFailed => "the connection to the provider could not be refreshed",
            Self::Expired => "the connection to the provider has ended: connect it again",
        }
    }

    /// What the caller is told.
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::ProviderUnavailable => Refusal::ProviderUnavailable,
            Self::NotProvisioned => Refusal::CredentialNotProvisioned,
            Self::RefreshFailed => Refusal::CredentialRefreshFailed,
            Self::Expired => Refusal::CredentialExpired,
        }
    }
}

/// One requested resource and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct RequestedResource<'a> {
    /// As requested: identifier or row id.
    pub requested: &'a str,
    /// What the zone has by that name.
    pub found: Option<&'a ResourceFacts>,
    /// Over the mint limit: seconds until it resets. Charge only what
    /// [`Standing::is_chargeable`](super::Standing::is_chargeable).
    pub rate_limited: Option<u32>,
    /// Why its provider cannot authenticate the call; Gateway exchanges only.
    pub credential_fault: Option<CredentialFault>,
}

/// Everything that a decision is made from, besides request, policy and time.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The requested resources, sorted.
    pub resources: &'a [RequestedResource<'a>],
    /// Sessions and records.
    pub known: Known<'a>,
    /// Delegations from root to the presented one; empty without one.
    pub lineage: &'a [Arc<EdgeFacts>],
    /// The zone's graph epoch; 0 when it has none yet.
    pub epoch: u64,
    /// The audience of the Control API.
    pub control_audience: &'a str,
    /// `MAX_GRANT_TTL_SECONDS`.
    pub max_grant_ttl_seconds: i64,
}
