//! What a decision is made from. Everything that [`crate`] uses to decide is one of these values,
//! so a decision can be replayed later from its evidence.

use std::sync::Arc;

use caracal_model::{
    ApplicationId, DelegationId, ProviderId, RecordId, ResourceId, Scopes, SessionId, SubjectType,
    Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::constraints::Constraints;

/// Text that is none of the words of an enumeration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a {1}")]
pub struct UnknownWord(pub String, pub &'static str);

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$case_doc:meta])* $case:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$case_doc])* $case,)+ }

        impl $name {
            /// The word on the wire and in the store.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$case => $word,)+ }
            }

            /// Reads the word.
            ///
            /// # Errors
            /// [`UnknownWord`] for any other text.
            pub fn parse(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok(Self::$case),)+
                    other => Err(UnknownWord(other.to_owned(), stringify!($name))),
                }
            }
        }
    };
}

words! {
    /// How a Session lives.
    Lifecycle {
        /// Until its TTL has passed.
        Task = "task",
        /// As long as its lease is renewed.
        Service = "service",
    }
}

words! {
    /// Where a Session is in its life (spec: coordinator §6.6). The last two are final.
    SessionStatus {
        /// It may act.
        Active = "active",
        /// It may not act until it is resumed.
        Suspended = "suspended",
        /// It was ended.
        Terminated = "terminated",
        /// Its TTL passed.
        Expired = "expired",
    }
}

words! {
    /// Where a Delegation is in its life.
    EdgeStatus {
        /// It carries authority until it expires.
        Active = "active",
        /// It was revoked.
        Revoked = "revoked",
        /// It expired and was swept.
        Expired = "expired",
    }
}

words! {
    /// Where an authority record is in its life.
    RecordStatus {
        /// It stands until it expires.
        Active = "active",
        /// It was revoked.
        Revoked = "revoked",
        /// It expired and was swept.
        Expired = "expired",
    }
}

words! {
    /// Whether declared operations bound what passes the Gateway.
    Enforcement {
        /// Only a declared operation passes.
        Enforced = "enforced",
        /// Anything passes.
        TransportUniform = "transport_uniform",
    }
}

/// A governed Session, as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// Itself.
    pub id: SessionId,
    /// The application that it belongs to.
    pub application_id: ApplicationId,
    /// The Session that started it.
    pub parent_id: Option<SessionId>,
    /// The authority record that it is anchored to.
    pub subject_record_id: RecordId,
    /// Who that record is about.
    pub subject_type: SubjectType,
    /// How it lives.
    pub lifecycle: Lifecycle,
    /// What policy knows it by.
    pub labels: Vec<String>,
    /// Where it is in its life.
    pub status: SessionStatus,
    /// How many ancestors it has.
    pub depth: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// When a task ends; `None` for a service.
    pub ends_at: Option<Timestamp>,
    /// When the lease of a service lapses; `None` for a task.
    pub heartbeat_deadline_at: Option<Timestamp>,
}

impl SessionFacts {
    /// Whether the Session may act now (spec: sts §9, *live*). The liveness of a user's authority
    /// record is a fact of its own, see [`RecordFacts::is_live`].
    pub fn is_live(&self, now: Timestamp) -> bool {
        let until = match self.lifecycle {
            Lifecycle::Task => self.ends_at,
            Lifecycle::Service => self.heartbeat_deadline_at,
        };
        self.status == SessionStatus::Active && until.is_some_and(|until| until > now)
    }
}

/// A Delegation, as the kernel sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeFacts {
    /// Itself.
    pub id: DelegationId,
    /// The Session that gave.
    pub source_session_id: SessionId,
    /// The Session that received.
    pub target_session_id: SessionId,
    /// The application that gave.
    pub issuer_application_id: ApplicationId,
    /// The application that received.
    pub receiver_application_id: ApplicationId,
    /// The Delegation that this one narrows; `None` at the root.
    pub parent_edge_id: Option<DelegationId>,
    /// Whether it is an inherited copy of its parent; such a one uses no hop.
    pub mirrored: bool,
    /// The one resource that it is bound to.
    pub resource_id: Option<ResourceId>,
    /// What it carries.
    pub scopes: Scopes,
    /// What bounds it further.
    pub constraints: Constraints,
    /// The same, as stored and as policy sees it.
    pub constraints_json: Value,
    /// Where it is in its life.
    pub status: EdgeStatus,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl EdgeFacts {
    /// Whether the Delegation itself carries authority now; its lineage is another question.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.status == EdgeStatus::Active && self.expires_at > now
    }
}

/// An authority record, as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFacts {
    /// Itself.
    pub id: RecordId,
    /// Who it is about.
    pub record_type: SubjectType,
    /// The application id, or the user's `sub`.
    pub subject_id: String,
    /// The application that obtained it.
    pub client_id: ApplicationId,
    /// Where it is in its life.
    pub status: RecordStatus,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl RecordFacts {
    /// Whether the record stands now.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.status == RecordStatus::Active && self.expires_at > now
    }
}

/// One declared operation of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Upper-case method.
    pub method: String,
    /// Exact decoded path.
    pub path: String,
    /// The scope that the mandate must carry.
    pub scope: String,
}

/// A resource, as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceFacts {
    /// Row id.
    pub id: ResourceId,
    /// URI, compared exactly.
    pub identifier: Arc<str>,
    /// Declared scopes, without the implicit lifecycle scope.
    pub scopes: Scopes,
    /// Where the Gateway sends calls.
    pub upstream_url: Option<Arc<str>>,
    /// Declared operations.
    pub operations: Vec<Operation>,
    /// Whether they bound what passes.
    pub enforcement: Enforcement,
    /// Whose credential is injected.
    pub provider: ProviderId,
}
