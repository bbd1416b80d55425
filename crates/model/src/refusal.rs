//! One enum says no, for the STS and the Gateway: status, wire code and metric label stand in one
//! row, so that clients, dashboards and evidence cannot disagree.

use std::borrow::Cow;
use std::fmt;

use crate::id::ApprovalId;
use crate::time::Timestamp;

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The request itself is wrong; the description says what to fix.
    BadRequest,
    /// `POST` only.
    MethodNotAllowed,
    /// The media type is not the one that the endpoint takes.
    UnsupportedMediaType,
    /// The body, or the declared length, is over the limit.
    PayloadTooLarge,
    /// Unknown application or wrong secret: the two are not to be told apart.
    ClientCredentials,
    /// The secret is right, the zone is not.
    ZoneInvalid,
    /// The Gateway's signature on an exchange is missing, wrong, old or repeated.
    GatewaySignature,
    /// A token is malformed, wrongly signed, of another zone or of another use.
    TokenInvalid,
    /// The token may not be used for this by this caller.
    TokenForbidden,
    /// Too little life left: mint a new mandate.
    MandateExpiring,
    /// A mandate is good for one call. Mint a new one for each.
    TokenReplayed,
    /// Its authority, Session or Delegation was revoked. Start again from a live one.
    Revoked,
    /// Policy, a Delegation or a Session does not allow it.
    AccessDenied,
    /// The Gateway operation floor does not allow method and path.
    OperationNotPermitted,
    /// A human must approve first.
    InteractionRequired,
    /// The approval does not exist, is over, or was given for something else.
    ApprovalInvalid,
    /// The approval was decided by somebody else, or is for another binding.
    ApprovalConflict,
    /// The approval was used already.
    ApprovalConsumed,
    /// No such thing.
    NotFound,
    /// Over a rate limit; `Retry-After` says when to try again.
    RateLimited,
    /// Policy could not be evaluated.
    PolicyEvalFailed,
    /// This replica cannot prove that its revocations are current. Try again shortly.
    RevocationsStale,
    /// A dependency is out: store, keys, replay state or evidence. Try again shortly.
    Unavailable,
    /// The STS did not answer in time.
    StsTimeout,
    /// The STS could not be reached, or its answer was not understood.
    StsUnreachable,
    /// The upstream may not be reached, or did not answer.
    Upstream,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// The provider's credential could not be obtained.
    ProviderCredential,
    /// The provider of the resource cannot authenticate the call.
    ProviderUnavailable,
    /// The subject has not connected its account at the provider.
    CredentialNotProvisioned,
    /// The subject's connection could not be refreshed.
    CredentialRefreshFailed,
    /// The subject's connection has ended and cannot be renewed: connect it again.
    CredentialExpired,
    /// The outbound request cannot be built.
    UpstreamRequest,
    /// Our fault.
    Internal,
}

/// What a refusal means on the wire and in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// HTTP status.
    pub status: u16,
    /// Wire code (`error`).
    pub error: &'static str,
    /// Metric label.
    pub reason: &'static str,
}

const fn row(status: u16, error: &'static str, reason: &'static str) -> Row {
    Row {
        status,
        error,
        reason,
    }
}

impl Refusal {
    /// Status, code and label (spec: sts §1, gateway §3.1).
    #[rustfmt::skip] // a table reads best as a table
    pub const fn row(self) -> Row {
        match self {
            Self::BadRequest            => row(400, "invalid_token", "bad_request"),
            Self::MethodNotAllowed      => row(405, "invalid_token", "method_not_allowed"),
            Self::UnsupportedMediaType  => row(415, "invalid_token", "media_type"),
            Self::PayloadTooLarge       => row(413, "payload_too_large", "payload_too_large"),
            Self::ClientCredentials     => row(401, "access_denied", "client_auth_failed"),
            Self::ZoneInvalid           => row(403, "zone_invalid", "zone_invalid"),
            Self::GatewaySignature      => row(401, "access_denied", "gateway_signature"),
            Self::TokenInvalid          => row(401, "invalid_token", "invalid_token"),
            Self::TokenForbidden        => row(403, "invalid_token", "token_forbidden"),
            Self::MandateExpiring       => row(401, "credential_expired_not_renewable", "expiring"),
            Self::TokenReplayed         => row(401, "invalid_token", "jti_replay"),
            Self::Revoked               => row(401, "invalid_token", "revoked"),
            Self::AccessDenied          => row(403, "access_denied", "denied"),
            Self::OperationNotPermitted => row(403, "operation_not_permitted", "operation_not_permitted"),
            Self::InteractionRequired   => row(401, "interaction_required", "interaction_required"),
            Self::ApprovalInvalid       => row(401, "access_denied", "approval_invalid"),
            Self::ApprovalConflict      => row(409, "access_denied", "approval_conflict"),
            Self::ApprovalConsumed      => row(409, "approval_consumed", "approval_consumed"),
            Self::NotFound              => row(404, "resource_not_found", "not_found"),
            Self::RateLimited           => row(429, "provider_rate_limited", "rate_limited"),
            Self::PolicyEvalFailed      => row(503, "policy_eval_failed", "policy_eval_failed"),
            Self::RevocationsStale      => row(503, "sts_unavailable", "revocation_stale"),
            Self::Unavailable           => row(503, "sts_unavailable", "unavailable"),
            Self::StsTimeout            => row(504, "sts_unavailable", "sts_timeout"),
            Self::StsUnreachable        => row(502, "sts_unavailable", "sts_unreachable"),
            Self::Upstream              => row(502, "internal_error", "upstream"),
            Self::UpstreamTimeout       => row(504, "internal_error", "upstream_timeout"),
            Self::ProviderCredential    => row(502, "http_request_failed", "provider_credential"),
            Self::ProviderUnavailable   => row(403, "provider_unavailable", "provider_unavailable"),
            Self::CredentialNotProvisioned => row(403, "credential_not_provisioned", "credential_not_provisioned"),
            Self::CredentialRefreshFailed => row(403, "credential_refresh_failed", "credential_refresh_failed"),
            Self::CredentialExpired     => row(403, "credential_expired_not_renewable", "credential_expired"),
            Self::UpstreamRequest       => row(400, "internal_error", "build_failed"),
            Self::Internal              => row(500, "internal_error", "internal"),
        }
    }

    /// Says why, for people: names the thing, holds no secret.
    pub fn because(self, why: impl Into<Cow<'static, str>>) -> Refused {
        Refused {
            refusal: self,
            description: why.into(),
            retry_after: None,
            approval: None,
        }
    }
}

/// A refusal and its description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub refusal: Refusal,
    /// `error_description`.
    pub description: Cow<'static, str>,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
    /// The hold that a human has to decide first.
    pub approval: Option<Box<PendingApproval>>,
}

/// A hold, as the refused caller is told of it (spec: sts §2.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingApproval {
    /// To be waited for and to be presented.
    pub id: ApprovalId,
    /// Names of the tiers that ask for it; may be empty.
    pub tier: String,
    /// What it is bound to.
    pub binding: String,
    /// Until when it can be decided and used.
    pub expires_at: Timestamp,
}

impl Refused {
    /// The same, to be tried again after `seconds`.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The same, until a human has decided this hold.
    #[must_use]
    pub fn until(mut self, approval: PendingApproval) -> Self {
        self.approval = Some(Box::new(approval));
        self
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.description, self.refusal.row().reason)
    }
}

impl std::error::Error for Refused {}
