//! What is decided: a grant or a refusal, and one verdict for each requested resource.

use std::sync::Arc;

use caracal_model::policy::{PolicyFault, PolicyInput, PolicyResult};
use caracal_model::{
    Actor, ApplicationId, ChainHop, DelegationId, Jti, Mandate, RecordId, Refused, SessionId,
    SubjectType, TokenUse, ZoneId,
};
use serde_json::Value;

use super::request::RequestedResource;
use crate::approval::Requirement;

/// Names of `evaluation_status` (spec: sts §2.6 and §17).
pub(super) mod status {
    pub const COMPLETE: &str = "complete";
    pub const RESOURCE_NOT_FOUND: &str = "resource_not_found";
    pub const SCOPE_MISMATCH: &str = "scope_mismatch";
    pub const OUTSIDE_DELEGATION: &str = "resource_outside_delegation";
    pub const OPERATION: &str = "operation_not_permitted";
    pub const RATE_LIMITED: &str = "rate_limited";
    pub const CONTROL: &str = "control_resource_requires_control_key";
    pub const POLICY_FAILED: &str = "policy_eval_failed";
    pub const EXCHANGE_DENIED: &str = "exchange_denied";
}

/// The answer to one exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Grant or refusal.
    pub outcome: Outcome,
    /// One for each requested resource, in the order of the request. A verdict allows only if a
    /// mandate comes of it.
    pub verdicts: Vec<ResourceVerdict>,
    /// Under which Delegation, when that was established; also for evidence of a refusal.
    pub lineage: Option<Arc<LineageClaims>>,
    /// The approval that what policy allowed needs, resolved or not.
    pub requirement: Option<Requirement>,
}

/// The reason of an allow that waits for a human.
pub(super) const HUMAN_APPROVAL: &str = "human_approval_required";

/// Grant, hold or refusal.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A mandate may be signed.
    Grant(Grant),
    /// Once a human has approved, it may be.
    Hold(Requirement),
    /// It may not.
    Deny(Refused),
}

/// Evidence of what became of one requested resource.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourceVerdict {
    /// Its identifier; what was requested, when there is no such resource.
    pub resource: Arc<str>,
    /// Whether the mandate is good for it.
    pub allowed: bool,
    /// How far it came.
    pub evaluation_status: &'static str,
    /// Whether policy was asked: evidence then names the policy version.
    pub policy_ran: bool,
    /// Names of the policies that decided.
    pub determining: Vec<String>,
    /// As policy emitted them.
    pub diagnostics: Vec<Value>,
    /// Why not.
    pub reason: Option<String>,
    /// What policy was asked and said, when it was.
    pub asked: Option<Box<Asked>>,
}

/// A question to policy and what came of it: all that is needed to ask it again.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The question.
    pub question: Arc<PolicyInput>,
    /// The answer: `allow`, `hold` (allowed with an approval), `deny` or `fault`. What became of
    /// the exchange may be less.
    pub answer: &'static str,
}

impl Asked {
    /// A question, and what was answered to it.
    pub fn answered(
        question: Arc<PolicyInput>,
        answer: &Result<PolicyResult, PolicyFault>,
    ) -> Self {
        let answer = match answer {
            Ok(answer) if answer.allow && answer.step_up().is_some() => "hold",
            Ok(answer) if answer.allow => "allow",
            Ok(_) => "deny",
            Err(_) => "fault",
        };
        Self { question, answer }
    }
}

impl ResourceVerdict {
    /// The word in evidence.
    pub const fn decision(&self) -> &'static str {
        if self.allowed { "allow" } else { "deny" }
    }

    pub(super) fn denied(
        resource: &RequestedResource<'_>,
        evaluation_status: &'static str,
        reason: impl Into<String>,
    ) -> Self {
        let known = resource.found.map(|found| found.identifier.clone());
        Self {
            resource: known.unwrap_or_else(|| resource.requested.into()),
            allowed: false,
            evaluation_status,
            policy_ran: false,
            determining: Vec::new(),
            diagnostics: Vec::new(),
            reason: Some(reason.into()),
            asked: None,
        }
    }

    /// Allowed by a rule of the platform, which no policy can change.
    pub(super) fn by_platform(resource: &RequestedResource<'_>, rule: &'static str) -> Self {
        Self {
            allowed: true,
            determining: vec![rule.to_owned()],
            reason: None,
            ..Self::denied(resource, status::COMPLETE, "")
        }
    }

    /// What was allowed is not, because no mandate comes of the exchange.
    pub(super) fn withdraw(&mut self, why: &Refused) {
        if self.allowed {
            self.allowed = false;
            self.evaluation_status = status::EXCHANGE_DENIED;
            self.determining.clear();
            self.reason = Some(why.description.clone().into_owned());
        }
    }
}

impl Decision {
    /// A refusal before any resource was looked at.
    pub(super) fn refused(resources: &[RequestedResource<'_>], why: Refused) -> Self {
        let each = |resource| {
            ResourceVerdict::denied(resource, status::EXCHANGE_DENIED, &*why.description)
        };
        let verdicts = resources.iter().map(each).collect();
        Self {
            outcome: Outcome::Deny(why),
            verdicts,
            lineage: None,
            requirement: None,
        }
    }

    /// The refusal that comes of a hold that is not resolved, or of a grant whose approval could
    /// not be spent: nothing was granted, and what would have been says so with this status
    /// (`complete` while it waits).
    #[must_use]
    pub fn withheld(mut self, status: &'static str, why: Refused) -> Self {
        let waits = status == status::COMPLETE;
        for verdict in &mut self.verdicts {
            if verdict.allowed || verdict.reason.as_deref() == Some(HUMAN_APPROVAL) {
                verdict.allowed = false;
                verdict.evaluation_status = status;
                verdict.determining.clear();
                let reason = if waits {
                    HUMAN_APPROVAL
                } else {
                    &*why.description
                };
                verdict.reason = Some(reason.to_owned());
            }
        }
        self.outcome = Outcome::Deny(why);
        self
    }
}

/// The claims that say under which Delegation a mandate stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineageClaims {
    /// The presenting Session.
    pub agent_session_id: SessionId,
    /// The presented Delegation.
    pub delegation_edge_id: DelegationId,
    /// Its source.
    pub source_session_id: Option<SessionId>,
    /// Its target.
    pub target_session_id: Option<SessionId>,
    /// Delegations from root to leaf.
    pub path: Vec<DelegationId>,
    /// One hop each, then the receiver.
    pub chain: Vec<ChainHop>,
    /// Length of the path.
    pub hop_count: Option<u32>,
    /// The zone's epoch.
    pub epoch: Option<u64>,
}

/// A mandate that may be signed, without what only the issuer knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// What it may be used for.
    pub token_use: TokenUse,
    /// Granted resource identifiers, sorted.
    pub targets: Vec<Arc<str>>,
    /// Subject.
    pub subject: String,
    /// What the subject is.
    pub subject_type: SubjectType,
    /// Scopes as text.
    pub scope: String,
    /// The zone.
    pub zone: ZoneId,
    /// The caller.
    pub client_id: ApplicationId,
    /// The record that a derived mandate hangs on.
    pub root_sid: Option<RecordId>,
    /// The record that was presented: parent of the new one.
    pub parent_sid: Option<RecordId>,
    /// Issue time, Unix seconds.
    pub issued_at: i64,
    /// Expiry, Unix seconds.
    pub expires_at: i64,
    /// Under which Delegation.
    pub lineage: Option<Arc<LineageClaims>>,
    /// Who acts.
    pub act: Option<Box<Actor>>,
}

impl Grant {
    /// `expires_in`; at least 1.
    pub const fn expires_in(&self) -> i64 {
        self.expires_at.saturating_sub(self.issued_at)
    }

    /// The claims to be signed (spec: sts §3). A mandate for resources is addressed to them, any
    /// other to the issuer.
    pub fn mandate(&self, issuer: &str, jti: Jti, sid: RecordId) -> Mandate {
        let target: Vec<String> = self
            .targets
            .iter()
            .map(|target| (**target).into())
            .collect();
        let lineage = self.lineage.as_deref();
        Mandate {
            iss: issuer.to_owned(),
            sub: self.subject.clone(),
            aud: match self.token_use {
                TokenUse::Resource => target.clone(),
                TokenUse::Session | TokenUse::Gateway => vec![issuer.to_owned()],
            },
            exp: self.expires_at,
            iat: self.issued_at,
            jti,
            zone_id: self.zone.clone(),
            client_id: self.client_id.clone(),
            scope: self.scope.clone(),
            root_sid: self.root_sid.clone().unwrap_or_else(|| sid.clone()),
            sid,
            token_use: self.token_use,
            sub_type: self.subject_type,
            target,
            agent_session_id: lineage.map(|l| l.agent_session_id.clone()),
            delegation_edge_id: lineage.map(|l| l.delegation_edge_id.clone()),
            source_session_id: lineage.and_then(|l| l.source_session_id.clone()),
            target_session_id: lineage.and_then(|l| l.target_session_id.clone()),
            delegation_path: lineage.map(|l| l.path.clone()).unwrap_or_default(),
            delegation_chain: lineage.map(|l| l.chain.clone()).unwrap_or_default(),
            hop_count: lineage.and_then(|l| l.hop_count),
            delegation_graph_epoch: lineage.and_then(|l| l.epoch),
            act: self.act.clone(),
        }
    }
}
