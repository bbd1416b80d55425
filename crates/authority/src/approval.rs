//! Human approvals (spec: sts §11): who has to agree, what exactly is agreed to, and how a hold
//! stands at a moment.
//!
//! **Forces.** An approval is given by a person who looks at one request, and used later by a
//! program that sends another. Whatever differs between the two was never approved.
//!
//! **Choice.** A hold is bound twice. [`Binding`] is the digest of the specification: it goes to
//! clients, which echo it. [`Binding::terms`] covers what that digest leaves open (resource identifiers are
//! folded there, and it says nothing of tiers and approvers), so that a hold which was issued on
//! easier terms, or for a namesake, does not count.

use std::collections::BTreeSet;

use caracal_crypto::digest::{hex_encode, sha256_hex, sha256_of};
use caracal_model::{Refusal, Refused, Timestamp, ZoneId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::facts::words;

/// Shortest life of a hold, in seconds.
const FLOOR: i64 = 60;

words! {
    /// Who may decide.
    ApproverClass {
        /// An operator, through the management API.
        Operator = "operator",
        /// The user on whose behalf the agent acts.
        Subject = "subject",
        /// Either.
        Any = "any",
    }
    /// How much is kept of a user who decides; the strongest is the last.
    Privacy {
        /// The subject.
        Identified = "identified",
        /// A digest of it.
        Pseudonymous = "pseudonymous",
        /// Nothing.
        Anonymous = "anonymous",
    }
    /// How a hold stands.
    ApprovalState {
        /// It was used.
        Consumed = "consumed",
        /// Somebody said no.
        Rejected = "rejected",
        /// Its time is over, decided or not.
        Expired = "expired",
        /// Somebody said yes: it can be used once.
        Approved = "approved",
        /// Nobody has decided yet.
        Pending = "pending",
    }
}

impl ApproverClass {
    /// Whether a user may decide.
    pub const fn admits_subject(self) -> bool {
        matches!(self, Self::Subject | Self::Any)
    }

    /// Default and most of the life of a hold, in seconds.
    const fn life(self) -> (i64, i64) {
        match self {
            Self::Operator => (4 * 3600, 7 * 86_400),
            Self::Subject | Self::Any => (15 * 60, 86_400),
        }
    }
}

/// What must happen before a gated allow is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Names of the tiers, joined.
    pub tier: String,
    /// Who may decide.
    pub approver: ApproverClass,
    /// How much is kept of a user who decides.
    pub privacy: Privacy,
    /// Life of the hold, in seconds.
    pub ttl_seconds: i64,
}

/// Why no requirement comes of the declarations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequirementError {
    /// One tier wants an operator, another the user: no one person can satisfy both.
    #[error("the tiers of this request name different approvers: request their scopes apart")]
    Conflict,
    /// A declaration cannot be read. The contract denies before that; here it is one more lock.
    #[error("an approval tier cannot be read")]
    Malformed,
}

impl RequirementError {
    /// The status in evidence.
    pub const fn status(self) -> &'static str {
        match self {
            Self::Conflict => "approval_class_conflict",
            Self::Malformed => "policy_eval_failed",
        }
    }

    /// What the caller is told.
    pub fn refused(self) -> Refused {
        match self {
            Self::Conflict => Refusal::AccessDenied,
            Self::Malformed => Refusal::PolicyEvalFailed,
        }
        .because(self.to_string())
    }
}

impl Requirement {
    /// What the `step_up_required` diagnostics of one request ask for together; `None` without any.
    ///
    /// # Errors
    /// [`RequirementError`]; nothing may be granted then.
    pub fn of(gates: &[Value]) -> Result<Option<Self>, RequirementError> {
        if gates.is_empty() {
            return Ok(None);
        }
        let tiers = |gate: &'_ Value| Some(gate.get("tiers")?.as_array()?.clone());
        let declared: Option<Vec<Vec<Value>>> = gates.iter().map(tiers).collect();
        let declared = declared.ok_or(RequirementError::Malformed)?;
        Self::merge(declared.iter().flatten()).map(Some)
    }

    /// Merges the declarations that matched: names joined in order, `any` yields to a specific
    /// class, the shortest life, the strongest privacy.
    ///
    /// # Errors
    /// [`RequirementError`]; nothing may be granted then.
    pub fn merge<'v>(
        declarations: impl IntoIterator<Item = &'v Value>,
    ) -> Result<Self, RequirementError> {
        let mut tiers = BTreeSet::new();
        let mut approver = None;
        let mut privacy = Privacy::Identified;
        let mut shortest: Option<i64> = None;
        for declaration in declarations {
            let declared = Declared::read(declaration).ok_or(RequirementError::Malformed)?;
            tiers.insert(declared.tier);
            approver = Some(match approver {
                None => declared.approver,
                Some(so_far) => both(so_far, declared.approver)?,
            });
            privacy = privacy.max(declared.privacy);
            shortest = match (shortest, declared.ttl_seconds) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        let approver = approver.unwrap_or(ApproverClass::Operator);
        let (default, most) = approver.life();
        let tiers: Vec<&str> = tiers.into_iter().collect();
        Ok(Self {
            tier: tiers.join(","),
            approver,
            privacy,
            ttl_seconds: shortest.unwrap_or(default).clamp(FLOOR, most),
        })
    }
}

fn both(one: ApproverClass, other: ApproverClass) -> Result<ApproverClass, RequirementError> {
    match (one, other) {
        (ApproverClass::Any, specific) | (specific, ApproverClass::Any) => Ok(specific),
        (one, other) if one == other => Ok(one),
        _ => Err(RequirementError::Conflict),
    }
}

struct Declared<'v> {
    tier: &'v str,
    approver: ApproverClass,
    privacy: Privacy,
    ttl_seconds: Option<i64>,
}

impl<'v> Declared<'v> {
    fn read(value: &'v Value) -> Option<Self> {
        let word = |name: &str| match value.get(name) {
            None => Some(None),
            Some(value) => value.as_str().map(Some),
        };
        Some(Self {
            tier: value
                .get("tier")?
                .as_str()
                .filter(|tier| !tier.is_empty())?,
            approver: word("approver")?
                .map_or(Some(ApproverClass::Operator), ApproverClass::parse)?,
            privacy: word("privacy")?.map_or(Some(Privacy::Identified), Privacy::parse)?,
            ttl_seconds: match value.get("ttl_seconds") {
                None => None,
                Some(value) => Some(seconds(value)?),
            },
        })
    }
}

/// A number of seconds; more than we could ever use is as good as much. `900.0` is 900.
fn seconds(value: &Value) -> Option<i64> {
    const MOST: i64 = 366 * 86_400;
    if let Some(whole) = value.as_i64() {
        return (whole > 0).then_some(whole.min(MOST));
    }
    let any = value.as_f64()?;
    (any >= 1.0).then(|| {
        if any >= 31_622_400.0 {
            MOST
        } else {
            floor(any)
        }
    })
}

/// Whole seconds of a number below the most that is asked with.
#[expect(clippy::cast_possible_truncation, reason = "1 <= value < 31,622,400")]
const fn floor(value: f64) -> i64 {
    value as i64
}

/// What a hold is bound to (spec: sts §11.1). What does not apply is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding<'a> {
    /// Identifiers of the requested resources.
    pub resources: Vec<&'a str>,
    /// Requested scopes.
    pub scopes: Vec<&'a str>,
    /// Who asks.
    pub principal: &'a str,
    /// The authority record that was presented.
    pub authority_record: &'a str,
    /// The governed Session.
    pub session: &'a str,
    /// The Delegation.
    pub delegation: &'a str,
    /// The calling application.
    pub application: &'a str,
    /// The policy that was evaluated.
    pub policy_set_version: &'a str,
    /// Digest of its documents.
    pub policy_manifest: &'a str,
    /// Version of the decision contract.
    pub decision_contract_version: &'a str,
    /// Digest of the decision contract.
    pub decision_contract_sha: &'a str,
    /// Authority records of whoever acts. Not in the digest, which clients know: in the terms.
    pub actors: Vec<&'a str>,
}

impl Binding<'_> {
    /// The digest, in hex.
    pub fn digest(&self) -> String {
        let resources = list(self.resources.iter().map(|one| one.trim().to_lowercase()));
        let scopes = list(self.scopes.iter().map(|one| one.trim().to_owned()));
        let pairs = [
            ("resources", &*resources),
            ("scopes", &*scopes),
            ("principal", self.principal),
            ("authority_record", self.authority_record),
            ("session", self.session),
            ("delegation", self.delegation),
            ("application", self.application),
            ("policy_set_version", self.policy_set_version),
            ("policy_manifest", self.policy_manifest),
            ("decision_contract_version", self.decision_contract_version),
            ("decision_contract_sha", self.decision_contract_sha),
        ];
        let parts: Vec<&str> = pairs
            .iter()
            .flat_map(|(name, value)| [*name, *value])
            .collect();
        sha256_hex(parts.join("\0").as_bytes())
    }

    /// The digest of what the approver was shown and the binding leaves open.
    pub fn terms(&self, requirement: &Requirement) -> String {
        let mut resources = self.resources.clone();
        resources.sort_unstable();
        resources.dedup();
        let mut parts = vec![
            requirement.tier.as_str(),
            requirement.approver.as_str(),
            requirement.privacy.as_str(),
        ];
        parts.extend(resources);
        if !self.actors.is_empty() {
            parts.push("actors");
            parts.extend(&self.actors);
        }
        sha256_hex(parts.join("\0").as_bytes())
    }
}

/// Distinct values, sorted, one a line.
fn list(values: impl Iterator<Item = String>) -> String {
    let distinct: BTreeSet<String> = values.collect();
    distinct.into_iter().collect::<Vec<_>>().join("\n")
}

/// What happened to a hold, and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    /// When it ends by itself.
    pub expires_at: Timestamp,
    /// When somebody said yes.
    pub satisfied_at: Option<Timestamp>,
    /// When somebody said no.
    pub rejected_at: Option<Timestamp>,
    /// When it was used.
    pub consumed_at: Option<Timestamp>,
}

impl Course {
    /// How it stands at `now`.
    pub fn state(&self, now: Timestamp) -> ApprovalState {
        if self.consumed_at.is_some() {
            ApprovalState::Consumed
        } else if self.rejected_at.is_some() {
            ApprovalState::Rejected
        } else if self.expires_at <= now {
            ApprovalState::Expired
        } else if self.satisfied_at.is_some() {
            ApprovalState::Approved
        } else {
            ApprovalState::Pending
        }
    }
}

/// What is kept of a user, under this mode; `None` keeps nothing.
pub fn known_as(privacy: Privacy, zone: &ZoneId, subject: &str) -> Option<String> {
    match privacy {
        Privacy::Identified => Some(subject.to_owned()),
        Privacy::Pseudonymous => {
            let digest = sha256_of(&[zone.as_str().as_bytes(), b"\0", subject.as_bytes()]);
            let short = digest.get(..8).unwrap_or_default();
            Some(format!("pseudonym:{}", hex_encode(short)))
        }
        Privacy::Anonymous => None,
    }
}

/// How a user who decided is recorded.
pub fn approver(privacy: Privacy, zone: &ZoneId, subject: &str) -> String {
    let known = known_as(privacy, zone, subject);
    format!("subject:{}", known.as_deref().unwrap_or("redacted"))
}
