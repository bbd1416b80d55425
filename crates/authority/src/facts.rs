//! What a decision is made from. Text that many facts share is an `Arc<str>`: a fact is cloned by
//! counting, never by copying.

use std::sync::Arc;

use caracal_model::{
    ApplicationId, DelegationId, ProviderId, RecordId, ResourceId, Scopes, SessionId, SubjectType,
    Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::constraints::Constraints;

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident = $text:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$word_doc])* #[serde(rename = $text)] $word,)+
        }

        impl $name {
            /// The words of the wire.
            pub const WORDS: &'static [&'static str] = &[$($text),+];

            /// The word of the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$word => $text,)+ }
            }

            /// The value of that word; `None` for any other text.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$word),)+ _ => None }
            }
        }
    )+};
}
pub(crate) use words;

words! {
    /// How a Session lives.
    Lifecycle {
        /// Until its time is up.
        Task = "task",
        /// As long as its holder renews the lease.
        Service = "service",
    }
    /// The state of a Session.
    SessionStatus {
        /// At work.
        Active = "active",
        /// Stopped for now: it may do nothing.
        Suspended = "suspended",
        /// Ended by somebody.
        Terminated = "terminated",
        /// Ended by time.
        Expired = "expired",
    }
    /// The state of a Delegation.
    EdgeStatus {
        /// In force until it expires.
        Active = "active",
        /// Taken back.
        Revoked = "revoked",
        /// Over.
        Expired = "expired",
    }
    /// The state of an authority record.
    RecordStatus {
        /// In force until it expires.
        Active = "active",
        /// Taken back.
        Revoked = "revoked",
        /// Over.
        Expired = "expired",
    }
    /// Whether the declared operations bind the calls that pass the Gateway.
    Enforcement {
        /// Only a declared operation, with its scope.
        Enforced = "enforced",
        /// Any method and path: the transport carries no operation of its own.
        TransportUniform = "transport_uniform",
    }
}

/// The word of the wire for a subject type.
pub const fn subject_type_text(subject_type: SubjectType) -> &'static str {
    match subject_type {
        SubjectType::Application => "application",
        SubjectType::User => "user",
    }
}

/// The subject type of that word; `None` for any other text.
pub fn subject_type_from(text: &str) -> Option<SubjectType> {
    match text {
        "application" => Some(SubjectType::Application),
        "user" => Some(SubjectType::User),
        _ => None,
    }
}

/// A governed Session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// Its id.
    pub id: SessionId,
    /// The application that it belongs to.
    pub application_id: ApplicationId,
    /// The Session that started it.
    pub parent_id: Option<SessionId>,
    /// The authority record that it is anchored to.
    pub subject_record_id: RecordId,
    /// Of which type that record is.
    pub subject_type: SubjectType,
    /// Task or service.
    pub lifecycle: Lifecycle,
    /// Labels, as sent.
    pub labels: Vec<Arc<str>>,
    /// Its state.
    pub status: SessionStatus,
    /// 0 for a root.
    pub depth: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ends at the latest; tasks only.
    pub ends_at: Option<Timestamp>,
    /// When the lease lapses; services only.
    pub heartbeat_deadline_at: Option<Timestamp>,
}

impl SessionFacts {
    /// Whether it may act at `now` (spec: sts §9, *live*). A task without an end and a service
    /// without a lease are not live: they were never written, so something is wrong. The record of
    /// a user is a fact of its own: see [`RecordFacts::is_live`].
    pub fn is_live(&self, now: Timestamp) -> bool {
        let until = match self.lifecycle {
            Lifecycle::Task => self.ends_at,
            Lifecycle::Service => self.heartbeat_deadline_at,
        };
        self.status == SessionStatus::Active && until.is_some_and(|until| until > now)
    }
}

/// A Delegation: an edge from the Session that passes authority on to the one that receives it.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeFacts {
    /// Its id.
    pub id: DelegationId,
    /// The Session whose authority is passed on.
    pub source_session_id: SessionId,
    /// The Session that receives it.
    pub target_session_id: SessionId,
    /// The application that passes it on.
    pub issuer_application_id: ApplicationId,
    /// The application that receives it.
    pub receiver_application_id: ApplicationId,
    /// The edge that it narrows, if any.
    pub parent_edge_id: Option<DelegationId>,
    /// Whether it is the copy that a child Session inherits; such an edge uses no hop.
    pub mirrored: bool,
    /// The resource that it is bound to, row id.
    pub resource_id: Option<ResourceId>,
    /// Scopes.
    pub scopes: Scopes,
    /// Constraints.
    pub constraints: Constraints,
    /// The same as stored, for policy.
    pub constraints_json: Value,
    /// Its state.
    pub status: EdgeStatus,
    /// When it is over.
    pub expires_at: Timestamp,
}

impl EdgeFacts {
    /// Whether it is in force at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.status == EdgeStatus::Active && self.expires_at > now
    }

    /// How many Delegations may follow from here on, this one included: 1 when nothing is said.
    pub fn max_hops(&self) -> u32 {
        self.constraints.max_hops.unwrap_or(1)
    }
}

/// An authority record: whom a bearer speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFacts {
    /// `sid` of its mandates.
    pub id: RecordId,
    /// An application or a user.
    pub record_type: SubjectType,
    /// `sub` of its mandates.
    pub subject_id: Arc<str>,
    /// The application that obtained it.
    pub client_id: ApplicationId,
    /// Its state.
    pub status: RecordStatus,
    /// When it ends by itself.
    pub expires_at: Timestamp,
}

impl RecordFacts {
    /// Whether it is in force at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.status == RecordStatus::Active && self.expires_at > now
    }
}

/// One operation of a resource and the scope that it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Upper-case method.
    pub method: Arc<str>,
    /// Path, compared exactly.
    pub path: Arc<str>,
    /// The scope that the presented mandate must carry.
    pub scope: Arc<str>,
}

/// A resource, as far as authority is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceFacts {
    /// Row id.
    pub id: ResourceId,
    /// URI, compared exactly.
    pub identifier: Arc<str>,
    /// Declared scopes, without the implicit lifecycle scope.
    pub scopes: Scopes,
    /// Where the Gateway sends its calls.
    pub upstream_url: Option<Arc<str>>,
    /// Declared operations.
    pub operations: Vec<Operation>,
    /// Whether they bind.
    pub enforcement: Enforcement,
    /// Who authenticates calls to it.
    pub provider: ProviderId,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(lifecycle: Lifecycle) -> SessionFacts {
        SessionFacts {
            id: SessionId::trusted("s1"),
            application_id: ApplicationId::trusted("app"),
            parent_id: None,
            subject_record_id: RecordId::trusted("r1"),
            subject_type: SubjectType::Application,
            lifecycle,
            labels: Vec::new(),
            status: SessionStatus::Active,
            depth: 0,
            started_at: Timestamp::from_unix_seconds(0),
            ends_at: Some(Timestamp::from_unix_seconds(100)),
            heartbeat_deadline_at: Some(Timestamp::from_unix_seconds(10)),
        }
    }

    #[test]
    fn a_task_lives_until_its_end_and_a_service_until_its_lease_lapses() {
        let at = Timestamp::from_unix_seconds;
        let task = session(Lifecycle::Task);
        assert!(task.is_live(at(99)));
        assert!(!task.is_live(at(100)));
        let service = session(Lifecycle::Service);
        assert!(service.is_live(at(9)));
        assert!(!service.is_live(at(10)));
    }

    #[test]
    fn a_session_that_is_not_active_or_has_no_end_is_not_live() {
        let at = Timestamp::from_unix_seconds(1);
        for status in [
            SessionStatus::Suspended,
            SessionStatus::Terminated,
            SessionStatus::Expired,
        ] {
            assert!(
                !SessionFacts {
                    status,
                    ..session(Lifecycle::Task)
                }
                .is_live(at)
            );
        }
        assert!(
            !SessionFacts {
                ends_at: None,
                ..session(Lifecycle::Task)
            }
            .is_live(at)
        );
        let leaseless = SessionFacts {
            heartbeat_deadline_at: None,
            ..session(Lifecycle::Service)
        };
        assert!(!leaseless.is_live(at));
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        assert_eq!(
            SessionStatus::parse("suspended"),
            Some(SessionStatus::Suspended)
        );
        assert_eq!(
            Enforcement::parse(Enforcement::TransportUniform.as_str()),
            Some(Enforcement::TransportUniform)
        );
        assert_eq!(EdgeStatus::parse("Active"), None);
        assert_eq!(
            subject_type_from(subject_type_text(SubjectType::User)),
            Some(SubjectType::User)
        );
    }
}
