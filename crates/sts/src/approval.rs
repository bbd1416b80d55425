//! Approvals in the STS (spec: sts §11): the gate that a hold passes, whoever asks.
//!
//! **For callers.** [`Ask`] says what is asked for, on the policy that answers. [`presented`] takes
//! an `approval_id`, [`gate`] finds or issues the hold of a gated allow, [`consume`] spends an
//! approved one at the very end, in the transaction of what comes of it. Token exchange and
//! workload credentials go the same way; what differs is in the [`Ask`].
//!
//! **Forces.** The policy may change between the moment it is asked and the moment a hold is spent,
//! on another replica as well. **Choice.** An ask borrows the zone whose policy is evaluated, so
//! both are one snapshot; and the statement that spends a hold asks the store once more whether
//! that policy is the active one. INVARIANT (spend once): see `caracal_store::approvals`.

mod evidence;
pub(crate) mod exchange;
pub(crate) mod http;
mod listen;
mod wait;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use caracal_authority::{ApprovalState, Binding, Course, Requirement};
use caracal_model::{
    ApplicationId, ApprovalId, DelegationId, PendingApproval, RecordId, Refusal, Refused,
    RequestId, SessionId, Timestamp,
};
use caracal_policy::{CONTRACT_VERSION, contract_sha256};
use caracal_store::StoreError;
use caracal_store::approvals::{Approval, Slot};
use caracal_store::authority_records::AuthorityRecord;
use caracal_view::ZoneView;
use serde_json::{Map, Value, json};

use crate::Sts;

#[cfg(test)]
pub(crate) use listen::record_left_behind;
pub(crate) use listen::{listen, measure, sweep};
pub(crate) use wait::Waiters;

/// How long after it was spent a hold gives another bearer for the record that came of it.
const REISSUE: Duration = Duration::from_secs(120);
/// How often a slot is looked at again, when others change it at the same time.
const TRIES: usize = 4;

/// What an approval is asked for. What does not apply is `None` or empty.
pub struct Ask<'a> {
    /// The zone, with the policy that is evaluated.
    pub zone: &'a ZoneView,
    /// The id of the request.
    pub request_id: &'a RequestId,
    /// Who asks: the id of an application or of a workload.
    pub principal: &'a str,
    /// The calling application; without one no user can decide.
    pub application: Option<&'a ApplicationId>,
    /// The authority record that was presented.
    pub record: Option<&'a RecordId>,
    /// The governed Session.
    pub session: Option<&'a SessionId>,
    /// The Delegation.
    pub delegation: Option<&'a DelegationId>,
    /// Identifiers of the requested resources.
    pub resources: Vec<&'a str>,
    /// Requested scopes.
    pub scopes: Vec<&'a str>,
    /// Labels of the Session.
    pub labels: &'a [Arc<str>],
    /// The only user who may decide, if there is one.
    pub subject_anchor: Option<String>,
    /// Records whose holders may not decide.
    pub own_records: BTreeSet<&'a RecordId>,
    /// Records of whoever acts: an approval is good for them alone.
    pub actors: Vec<&'a RecordId>,
    /// Who asks, as evidence tells it: members such as `application_name` or `workload_id`.
    pub about: Map<String, Value>,
}

impl Ask<'_> {
    fn binding(&self) -> Binding<'_> {
        Binding {
            actors: self.actors.iter().map(|id| id.as_str()).collect(),
            resources: self.resources.clone(),
            scopes: self.scopes.clone(),
            principal: self.principal,
            authority_record: self.record.map_or("", RecordId::as_str),
            session: self.session.map_or("", SessionId::as_str),
            delegation: self.delegation.map_or("", DelegationId::as_str),
            application: self.application.map_or("", ApplicationId::as_str),
            policy_set_version: self.zone.policy.version_id.as_deref().unwrap_or_default(),
            policy_manifest: &self.zone.policy.manifest_sha256,
            decision_contract_version: CONTRACT_VERSION,
            decision_contract_sha: contract_sha256(),
        }
    }

    /// What approvers are shown (spec: sts §11.1).
    fn metadata(&self) -> Value {
        let mut shown = Map::new();
        shown.insert("requested_scopes".to_owned(), json!(self.scopes));
        shown.insert("resources".to_owned(), json!(self.resources));
        if let Some(session) = self.session {
            shown.insert("agent_session_id".to_owned(), json!(session));
        }
        if !self.labels.is_empty() {
            let labels: Vec<&str> = self.labels.iter().map(|label| &**label).collect();
            shown.insert("agent_labels".to_owned(), json!(labels));
        }
        if let Some(delegation) = self.delegation {
            shown.insert("delegation_edge_id".to_owned(), json!(delegation));
        }
        let binding = self.binding();
        for (name, value) in [
            ("policy_set_version_id", binding.policy_set_version),
            ("policy_manifest_sha", binding.policy_manifest),
            (
                "decision_contract_version",
                binding.decision_contract_version,
            ),
            ("decision_contract_sha", binding.decision_contract_sha),
        ] {
            shown.insert(name.to_owned(), json!(value));
        }
        Value::Object(shown)
    }

    fn hold(&self, sts: &Sts, requirement: &Requirement, now: Timestamp) -> Approval {
        let binding = self.binding();
        let life = Duration::from_secs(requirement.ttl_seconds.unsigned_abs());
        let id = ApprovalId::trusted(sts.ids.uuid4());
        Approval {
            principal_id: self.principal.to_owned(),
            application_id: self.application.cloned(),
            record_id: self.record.cloned(),
            agent_session_id: self.session.cloned(),
            tier: requirement.tier.clone(),
            approver_class: requirement.approver.as_str().to_owned(),
            privacy_mode: requirement.privacy.as_str().to_owned(),
            subject_anchor: self.subject_anchor.clone(),
            own_records: self.own_records.iter().copied().cloned().collect(),
            binding: binding.digest(),
            terms: binding.terms(requirement),
            policy_set_version_id: binding.policy_set_version.to_owned(),
            metadata: self.metadata(),
            ..Approval::undecided(id, self.zone.id.clone(), now, now.plus(life))
        }
    }
}

/// A refusal, and the status that evidence gives it.
#[derive(Debug)]
pub struct Refusing {
    /// `evaluation_status`: `approval_rejected` and the like; `complete` while a human is awaited.
    pub status: &'static str,
    /// What the caller is told.
    pub why: Refused,
}

/// The status of a hold that waits.
pub const WAITING: &str = "complete";
/// The status of a hold whose policy is no longer the active one.
pub const POLICY_CHANGED: &str = "approval_policy_changed";

impl Refusing {
    fn new(status: &'static str, why: Refused) -> Self {
        Self { status, why }
    }

    /// The one answer to an approval that is not, or not for this.
    fn invalid() -> Self {
        let why = "approval not found or bindings do not match";
        Self::new("approval_invalid", Refusal::ApprovalInvalid.because(why))
    }

    fn consumed() -> Self {
        let why = Refusal::ApprovalConsumed.because("approval was used already");
        Self::new("approval_already_consumed", why)
    }

    fn rejected() -> Self {
        let why = Refusal::AccessDenied.because("approval was rejected");
        Self::new("approval_rejected", why)
    }

    fn expired() -> Self {
        let why = Refusal::ApprovalInvalid.because("approval has expired");
        Self::new("approval_expired", why)
    }

    fn pending(hold: &Approval) -> Self {
        let why = Refusal::InteractionRequired.because("Human approval required for this request");
        let why = why.until(PendingApproval {
            id: hold.id.clone(),
            tier: hold.tier.clone(),
            binding: hold.binding.clone(),
            expires_at: hold.expires_at,
        });
        Self::new(WAITING, why)
    }
}

impl From<StoreError> for Refusing {
    fn from(error: StoreError) -> Self {
        Self::new("exchange_denied", unavailable(&error))
    }
}

/// Approvals are kept in the store; without it nobody can say how they stand.
fn unavailable(error: &StoreError) -> Refused {
    tracing::warn!(%error, "denied: approvals cannot be read or written");
    Refusal::Unavailable
        .because("approvals are unavailable, try again shortly")
        .retry_after(1)
}

/// What happened to a hold, and when it ends.
pub(crate) fn course(hold: &Approval) -> Course {
    Course {
        expires_at: hold.expires_at,
        satisfied_at: hold.satisfied_at,
        rejected_at: hold.rejected_at,
        consumed_at: hold.consumed_at,
    }
}

/// An approval that was presented and fits.
#[derive(Debug)]
pub enum Presented {
    /// Approved, and not spent yet: to be spent with [`consume`].
    Approved(Approval),
    /// Spent a moment ago, for this authority record, which is in force: another bearer for it may
    /// be issued.
    Spent(Approval, Box<AuthorityRecord>),
}

impl Presented {
    /// For callers that issue nothing twice.
    ///
    /// # Errors
    /// 409 `approval_consumed`.
    pub fn unspent(self) -> Result<Approval, Refusing> {
        match self {
            Self::Approved(hold) => Ok(hold),
            Self::Spent(..) => Err(Refusing::consumed()),
        }
    }
}

/// Looks at an approval that the caller presents (spec: sts §11.4). Spends nothing.
///
/// # Errors
/// One answer for whatever does not fit; then by state.
pub async fn presented(sts: &Sts, ask: &Ask<'_>, id: &str) -> Result<Presented, Refusing> {
    let id = uuid(id).ok_or_else(Refusing::invalid)?;
    let scope = sts.store.zone(&ask.zone.id);
    let hold = scope
        .approvals()
        .get(&id)
        .await?
        .ok_or_else(Refusing::invalid)?;
    let fits = hold.principal_id == ask.principal
        && hold.record_id.as_ref() == ask.record
        && hold.binding == ask.binding().digest();
    if !fits {
        return Err(Refusing::invalid());
    }
    let now = sts.clock.now();
    match course(&hold).state(now) {
        ApprovalState::Approved => Ok(Presented::Approved(hold)),
        ApprovalState::Pending => Err(Refusing::pending(&hold)),
        ApprovalState::Rejected => Err(Refusing::rejected()),
        ApprovalState::Expired => Err(Refusing::expired()),
        ApprovalState::Consumed => spent(sts, hold, now).await,
    }
}

async fn spent(sts: &Sts, hold: Approval, now: Timestamp) -> Result<Presented, Refusing> {
    let lately = hold.consumed_at.is_some_and(|at| at.plus(REISSUE) > now);
    let Some(issued) = hold.issued_record_id.as_ref().filter(|_| lately) else {
        return Err(Refusing::consumed());
    };
    let scope = sts.store.zone(&hold.zone);
    // From the store, not from memory: this is as cold as the spending was, and as strict.
    let record = scope.authority_record(issued).await?;
    let in_force = record.filter(|record| record.status == "active" && record.expires_at > now);
    let current = scope
        .approvals()
        .is_current_policy(&hold.policy_set_version_id)
        .await?;
    match in_force {
        Some(record) if current => Ok(Presented::Spent(hold, Box::new(record))),
        _ => Err(Refusing::consumed()),
    }
}

/// Whether a hold covers what is required now: it may have been issued on other terms.
///
/// # Errors
/// 401, as if there were none.
pub fn covers(
    ask: &Ask<'_>,
    requirement: Option<&Requirement>,
    hold: &Approval,
) -> Result<(), Refusing> {
    let same = requirement.is_none_or(|now| ask.binding().terms(now) == hold.terms);
    if same {
        Ok(())
    } else {
        Err(Refusing::invalid())
    }
}

/// The approved hold of a gated allow (spec: sts §11.2), or the refusal until there is one: then a
/// hold exists, and the evidence that it was issued is durable.
///
/// # Errors
/// 401 `interaction_required` while nobody has decided, 403 after a no, 503 without the store.
pub async fn gate(
    sts: &Sts,
    ask: &Ask<'_>,
    requirement: &Requirement,
) -> Result<Approval, Refusing> {
    for _ in 0..TRIES {
        let now = sts.clock.now();
        let hold = ask.hold(sts, requirement, now);
        let slot = Slot {
            principal: &hold.principal_id,
            record: hold.record_id.as_ref(),
            binding: &hold.binding,
        };
        let live = sts.store.zone(&hold.zone).approvals().live(slot).await?;
        let stands = |found: &Approval| found.terms == hold.terms && found.expires_at > now;
        if let Some(found) = live.filter(stands) {
            match course(&found).state(now) {
                ApprovalState::Approved => return Ok(found),
                ApprovalState::Pending => return Err(Refusing::pending(&found)),
                ApprovalState::Rejected => return Err(Refusing::rejected()),
                // Somebody spends it at this moment: the next look finds its place free.
                ApprovalState::Consumed | ApprovalState::Expired => continue,
            }
        }
        if issue(sts, ask, &hold).await? {
            return Err(Refusing::pending(&hold));
        }
    }
    let why = "the approval of this request is changing, try again";
    let why = Refusal::Unavailable.because(why).retry_after(1);
    Err(Refusing::new("exchange_denied", why))
}

/// Issues a hold; `false` when another request was first.
async fn issue(sts: &Sts, ask: &Ask<'_>, hold: &Approval) -> Result<bool, Refusing> {
    let event = evidence::issued(sts, ask, hold);
    let text = event.to_wire();
    let mut tx = sts.store.begin("issuing an approval").await?;
    let witness = evidence::witness(&event, &text);
    let issued = tx.zone(&hold.zone).approvals().issue(hold, witness).await?;
    tx.commit().await?;
    if issued {
        evidence::record(sts, event).await;
    }
    Ok(issued)
}

/// Spends an approved hold, and stores what comes of it, in one step; evidence of it is durable
/// when this returns. The last thing before an answer: nothing after it may refuse.
///
/// # Errors
/// Why it cannot be spent: 409 `approval_consumed` for the loser of a race.
pub async fn consume(
    sts: &Sts,
    ask: &Ask<'_>,
    hold: &Approval,
    comes_of_it: Option<&AuthorityRecord>,
) -> Result<(), Refusing> {
    let now = sts.clock.now();
    let event = evidence::consumed(sts, ask, hold, comes_of_it.map(|record| &record.id));
    let text = event.to_wire();
    let mut tx = sts.store.begin("spending an approval").await?;
    let issued = comes_of_it.map(|record| &record.id);
    let mut approvals = tx.zone(&hold.zone).approvals();
    if !approvals
        .consume(&hold.id, &ask.binding().digest(), issued, now)
        .await?
    {
        tx.rollback().await;
        return Err(why_not(sts, hold).await?);
    }
    approvals
        .witness(evidence::witness(&event, &text), now)
        .await?;
    if let Some(record) = comes_of_it {
        let rows = std::slice::from_ref(record);
        tx.zone(&hold.zone).add_authority_records(rows).await?;
    }
    tx.commit().await?;
    evidence::record(sts, event).await;
    Ok(())
}

/// Why a hold that was approved a moment ago could not be spent.
async fn why_not(sts: &Sts, hold: &Approval) -> Result<Refusing, Refusing> {
    let approvals = sts.store.zone(&hold.zone).approvals();
    let Some(found) = approvals.get(&hold.id).await? else {
        return Ok(Refusing::invalid());
    };
    let current = approvals
        .is_current_policy(&found.policy_set_version_id)
        .await?;
    Ok(match course(&found).state(sts.clock.now()) {
        ApprovalState::Consumed => Refusing::consumed(),
        ApprovalState::Rejected => Refusing::rejected(),
        ApprovalState::Expired => Refusing::expired(),
        ApprovalState::Pending => Refusing::pending(&found),
        ApprovalState::Approved if current => Refusing::invalid(),
        ApprovalState::Approved => Refusing {
            status: POLICY_CHANGED,
            ..Refusing::invalid()
        },
    })
}

/// An id that may be one of ours; a UUID in any case.
pub(crate) fn uuid(text: &str) -> Option<ApprovalId> {
    let hyphen = |at| matches!(at, 8 | 13 | 18 | 23);
    let fits = text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| {
            if hyphen(at) {
                byte == b'-'
            } else {
                byte.is_ascii_hexdigit()
            }
        });
    fits.then(|| ApprovalId::trusted(text.to_ascii_lowercase()))
}
