//! What a request is refused with. Published clients branch on the status and on `error` alone;
//! people read `error_description`, which says what to fix (spec: coordinator §2, §6, §7, §10).

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use caracal_net::Problem;
use caracal_store::StoreError;
use caracal_view::ViewError;
use http::StatusCode;
use serde_json::Value;

/// Every refusal of this service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    MissingToken,
    InvalidToken,
    IdentityRevoked,
    AuthorityRecordRequired,
    InvalidSubjectProof,
    MissingScope,
    ZoneMismatch,
    OperatorTokenRequired,
    CoordinatorAdminRequired,
    ApplicationOwnershipRequired,
    ParentOwnershipRequired,
    IssuerOwnershipRequired,
    SubjectProofApplicationMismatch,
    BroadDelegationPermissionRequired,
    DelegationScopesExceedResource,
    ParentDelegationNotActive,
    DelegationExceedsParentAuthority,
    InvalidParams,
    InvalidQuery,
    InvalidCursor,
    InvalidBody,
    SubjectSessionIdRequired,
    LeaseGenerationRequired,
    DelegationExpiryRequired,
    SelfDelegationDenied,
    DelegationResourceScopeMismatch,
    DelegationExpired,
    IdempotencyKeyInvalid,
    IdempotencyKeyMultiple,
    NotFound,
    SessionNotFound,
    ApplicationNotFound,
    ParentNotFound,
    AgentServiceNotFound,
    ResourceNotFound,
    DelegationNotFound,
    DelegationEndpointNotFound,
    DeadOutboxNotFound,
    DcrApplicationCannotHostService,
    DcrApplicationCannotBeChild,
    DcrApplicationAlreadyBound,
    DcrApplicationCannotStartChild,
    TaskSessionCannotStartService,
    InheritParentEdgeNotActive,
    InheritParentEdgeAmbiguous,
    SessionNotService,
    SessionSuspended,
    SessionNotLive,
    SessionSubjectInactive,
    SessionLeaseExpired,
    SessionLeaseFenced,
    SessionNotActive,
    SessionNotSuspended,
    DelegationApplicationMismatch,
    ParentDelegationAmbiguous,
    DelegationCycleDenied,
    IdempotencyKeyConflict,
    IdempotencyResultInactive,
    RateLimited,
    SessionZoneLimit,
    SessionLimit,
    SessionChildrenLimit,
    SessionDepthLimit,
    IdempotencyReceiptLimit,
    Unavailable,
    AuditUnavailable,
    Internal,
}

impl Code {
    /// Status, wire code and what to do about it.
    #[rustfmt::skip] // a table reads best as a table
    pub const fn row(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::MissingToken => (401, "missing_token", "send `Authorization: Bearer` with a lifecycle token"),
            Self::InvalidToken => (401, "invalid_token", "the token is not a valid lifecycle token of this zone; exchange a new one"),
            Self::IdentityRevoked => (401, "identity_revoked", "the application or its authority record is no longer active; exchange a new token"),
            Self::AuthorityRecordRequired => (401, "authority_record_required", "the token names no authority record; exchange a new one"),
            Self::InvalidSubjectProof => (401, "invalid_subject_proof", "subject_token must be the federated session token of subject_session_id"),
            Self::MissingScope => (403, "missing_scope", "the token lacks the lifecycle scope; exchange one for it"),
            Self::ZoneMismatch => (403, "zone_mismatch", "the token belongs to another zone than the path"),
            Self::OperatorTokenRequired => (403, "operator_token_required", "this route takes the operator token only"),
            Self::CoordinatorAdminRequired => (403, "coordinator_admin_required", "this route takes the operator token or the scope coordinator.admin"),
            Self::ApplicationOwnershipRequired => (403, "application_ownership_required", "the application is not the one of the token"),
            Self::ParentOwnershipRequired => (403, "parent_ownership_required", "the parent session belongs to another application"),
            Self::IssuerOwnershipRequired => (403, "issuer_ownership_required", "the issuing application is not the one of the token"),
            Self::SubjectProofApplicationMismatch => (403, "subject_proof_application_mismatch", "the authority record was obtained by another application"),
            Self::BroadDelegationPermissionRequired => (403, "broad_delegation_permission_required", "name a resource_id or constraints.resources"),
            Self::DelegationScopesExceedResource => (403, "delegation_scopes_exceed_resource", "the scopes are not all scopes of the named resources"),
            Self::ParentDelegationNotActive => (403, "parent_delegation_not_active", "the delegation to narrow is not active, or not one of the source session"),
            Self::DelegationExceedsParentAuthority => (403, "delegation_exceeds_parent_authority", "a delegation must not be wider than the one that it narrows"),
            Self::InvalidParams => (400, "invalid_params", "ids in the path are 1 to 128 letters, digits, `_`, `.`, `-` or `:`"),
            Self::InvalidQuery => (400, "invalid_query", "the query is not valid"),
            Self::InvalidCursor => (400, "invalid_cursor", "cursor must be the next_cursor of this list"),
            Self::InvalidBody => (400, "invalid_body", "the body is not valid"),
            Self::SubjectSessionIdRequired => (400, "subject_session_id_required", "name a subject_session_id, or use a token that has an authority record"),
            Self::LeaseGenerationRequired => (400, "lease_generation_required", "send the lease_generation of the service"),
            Self::DelegationExpiryRequired => (400, "delegation_expiry_required", "send ttl_seconds or expires_at"),
            Self::SelfDelegationDenied => (400, "self_delegation_denied", "source and target must be different sessions"),
            Self::DelegationResourceScopeMismatch => (400, "delegation_resource_scope_mismatch", "resource_id must be one of constraints.resources"),
            Self::DelegationExpired => (400, "delegation_expired", "the expiry is in the past"),
            Self::IdempotencyKeyInvalid => (400, "idempotency_key_invalid", "Idempotency-Key must be 1 to 255 bytes without control characters or surrounding white space"),
            Self::IdempotencyKeyMultiple => (400, "idempotency_key_multiple", "send Idempotency-Key once"),
            Self::NotFound => (404, "not_found", "no such route"),
            Self::SessionNotFound => (404, "session_not_found", "no such live session or authority record in this zone"),
            Self::ApplicationNotFound => (404, "application_not_found", "no such application in this zone, or it is archived or expired"),
            Self::ParentNotFound => (404, "parent_not_found", "the parent session is not active"),
            Self::AgentServiceNotFound => (404, "agent_service_not_found", "no such registered service"),
            Self::ResourceNotFound => (404, "resource_not_found", "no such resource in this zone"),
            Self::DelegationNotFound => (404, "delegation_not_found", "no such active delegation"),
            Self::DelegationEndpointNotFound => (404, "delegation_endpoint_not_found", "source or target is not an active session of this zone"),
            Self::DeadOutboxNotFound => (404, "dead_outbox_not_found", "no such dead outbox entry in this zone"),
            Self::DcrApplicationCannotHostService => (409, "dcr_application_cannot_host_service", "dynamically registered applications run tasks only"),
            Self::DcrApplicationCannotBeChild => (409, "dcr_application_cannot_be_child", "dynamically registered applications start root sessions only"),
            Self::DcrApplicationAlreadyBound => (409, "dcr_application_already_bound", "a dynamically registered application has one live session at most"),
            Self::DcrApplicationCannotStartChild => (409, "dcr_application_cannot_start_child", "sessions of dynamically registered applications have no children"),
            Self::TaskSessionCannotStartService => (409, "task_session_cannot_start_service", "a service needs a service as its parent, or none"),
            Self::InheritParentEdgeNotActive => (409, "inherit_parent_edge_not_active", "no active delegation of the parent to inherit; use parent_authority none"),
            Self::InheritParentEdgeAmbiguous => (409, "inherit_parent_edge_ambiguous", "name one delegation of the parent with inherit_parent_edge_id"),
            Self::SessionNotService => (409, "session_not_service", "only services have a lease"),
            Self::SessionSuspended => (409, "session_suspended", "the session is suspended; an operator must resume it"),
            Self::SessionNotLive => (409, "session_not_live", "the session has ended"),
            Self::SessionSubjectInactive => (409, "session_subject_inactive", "the user's authority has ended, and the session with it"),
            Self::SessionLeaseExpired => (409, "session_lease_expired", "the lease has lapsed; the session is suspended until an operator resumes it"),
            Self::SessionLeaseFenced => (409, "session_lease_fenced", "another holder has taken the lease"),
            Self::SessionNotActive => (409, "session_not_found_or_not_active", "only an active session can be suspended"),
            Self::SessionNotSuspended => (409, "session_not_found_or_not_suspended", "only a suspended session can be resumed"),
            Self::DelegationApplicationMismatch => (409, "delegation_application_mismatch", "the sessions belong to other applications than issuer and receiver"),
            Self::ParentDelegationAmbiguous => (409, "parent_delegation_ambiguous", "name the delegation to narrow with parent_edge_id"),
            Self::DelegationCycleDenied => (409, "delegation_cycle_denied", "the target already delegates to the source"),
            Self::IdempotencyKeyConflict => (409, "idempotency_key_conflict", "the key was used for a different request; use a new one"),
            Self::IdempotencyResultInactive => (409, "idempotency_result_inactive", "what the key created has ended; use a new one"),
            Self::RateLimited => (429, "rate_limited", "too many requests; wait as long as Retry-After says"),
            Self::SessionZoneLimit => (429, "session_zone_limit_exceeded", "the zone has as many live sessions as it may; end some"),
            Self::SessionLimit => (429, "session_limit_exceeded", "the application has as many live sessions as it may; end some"),
            Self::SessionChildrenLimit => (429, "session_children_limit_exceeded", "the parent has as many live children as it may; end some"),
            Self::SessionDepthLimit => (429, "session_depth_limit_exceeded", "the parent is as deep as a session may be"),
            Self::IdempotencyReceiptLimit => (429, "idempotency_receipt_limit_exceeded", "too many idempotency keys are in force; wait until some have expired"),
            Self::Unavailable => (503, "sts_unavailable", "a dependency cannot be reached; try again"),
            Self::AuditUnavailable => (500, "audit_unavailable", "the change cannot be recorded, so it was not made; try again"),
            Self::Internal => (500, "internal_error", "the request could not be completed; report it with its request id"),
        }
    }

    /// As a refusal.
    pub fn refuse(self) -> Failure {
        let (status, error, description) = self.row();
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let problem = Problem::new(status, error).because(description);
        Failure(match self {
            Self::Unavailable | Self::RateLimited => problem.retry_after(1),
            // Places are freed at the latest by the next sweep.
            Self::SessionZoneLimit
            | Self::SessionLimit
            | Self::SessionChildrenLimit
            | Self::SessionDepthLimit => problem.retry_after(5),
            Self::IdempotencyReceiptLimit => problem.retry_after(60),
            _ => problem,
        })
    }
}

/// A refusal on its way to the wire.
#[derive(Clone, Debug)]
pub struct Failure(Problem);

impl Failure {
    /// The same, with another description.
    #[must_use]
    pub fn because(self, description: impl Into<Cow<'static, str>>) -> Self {
        Self(self.0.because(description))
    }

    /// The same, with one more member in the body.
    #[must_use]
    pub fn with(self, member: &'static str, value: Value) -> Self {
        Self(self.0.with(member, value))
    }

    /// The same, to be tried again after `seconds`.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self(self.0.retry_after(seconds))
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// Wire code.
    pub fn error(&self) -> &str {
        self.0.error()
    }

    /// What to fix.
    pub fn description(&self) -> &str {
        self.0.description()
    }

    /// A body that no route would take: the code of published clients is `internal_error`, the
    /// status tells what is wrong (spec: coordinator §2).
    pub fn framing(status: StatusCode, description: &'static str) -> Self {
        Self(Problem::new(status, "internal_error").because(description))
    }

    /// A constraint that does not hold: `invalid_<key>`.
    pub fn constraint(error: String) -> Self {
        let description = match error.strip_prefix("invalid_") {
            Some("delegation_constraint") => {
                "constraints must be an object of known keys only".to_owned()
            }
            Some(key) => format!("{key} is not valid"),
            None => "the constraints are not valid".to_owned(),
        };
        Self(Problem::new(StatusCode::BAD_REQUEST, error).because(description))
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        code.refuse()
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Unreachable { .. } | StoreError::Busy { .. } => {
                tracing::warn!(%error, "store not available");
                Code::Unavailable.refuse()
            }
            _ if error.is_unrecorded() => {
                tracing::error!(%error, "a change was not made: it cannot be recorded");
                let code = Code::AuditUnavailable;
                code.refuse().with("message", code.row().2.into())
            }
            StoreError::Invalid { what, .. } => Code::InvalidBody
                .refuse()
                .because(format!("{what} cannot be stored")),
            _ => {
                tracing::error!(%error, "unexpected answer of the store");
                Code::Internal.refuse()
            }
        }
    }
}

impl From<ViewError> for Failure {
    fn from(error: ViewError) -> Self {
        match error {
            // Nobody can have a valid token of a zone that does not exist.
            ViewError::UnknownZone => Code::InvalidToken.refuse(),
            error => {
                tracing::warn!(%error, "view not available");
                Code::Unavailable.refuse()
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}
