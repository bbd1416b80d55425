//! The decision: one pure function of request, facts, policy and time.
//!
//! **Order** (spec: sts §2.5 to §2.7, §9). The request as a whole ([`Standing::establish`]), then
//! each resource through the rows of §2.6 (`judge`), then the exchange as a whole (`conclude`). A
//! denied resource is dropped and the others go on; what aborts says so by its type.
//!
//! **Evidence.** Every requested resource gets exactly one verdict, and a verdict allows only if a
//! mandate comes of the exchange: what was allowed before an abort is withdrawn.

mod actor;
mod input;
mod outcome;
mod request;
mod standing;

pub(crate) use input::about;
pub use outcome::{Asked, Decision, Grant, LineageClaims, Outcome, ResourceVerdict};
pub use request::{Class, CredentialFault, ExchangeRequest, Facts, RequestedResource};
pub use standing::Standing;

use std::collections::BTreeSet;
use std::sync::Arc;

use caracal_model::policy::{ActivePolicy, PolicyInput};
use caracal_model::scope::LIFECYCLE;
use caracal_model::{Refusal, Refused, SubjectType, Timestamp, TokenUse};
use serde_json::{Value, json};

use crate::approval::Requirement;
use crate::facts::ResourceFacts;
use crate::operation;
use outcome::{HUMAN_APPROVAL, status};

/// Decides an exchange.
pub fn decide(
    request: &ExchangeRequest<'_>,
    facts: &Facts<'_>,
    policy: &ActivePolicy,
    now: Timestamp,
) -> Decision {
    match Standing::establish(request, facts, now) {
        Ok(standing) => standing.decide(policy),
        Err(refused) => Decision::refused(facts.resources, refused),
    }
}

/// What becomes of one resource.
enum Judgement<'a> {
    Granted(&'a ResourceFacts, ResourceVerdict),
    /// Allowed by policy, if a human approves; with the declarations that say so.
    Gated(&'a ResourceFacts, ResourceVerdict, Value),
    Dropped(ResourceVerdict),
    Aborted(ResourceVerdict, Refused),
}

/// What the resources before the last one left behind.
#[derive(Default)]
struct Tally<'a> {
    verdicts: Vec<ResourceVerdict>,
    granted: Vec<&'a ResourceFacts>,
    /// What asks for an approval.
    gates: Vec<Value>,
}

impl<'a> Standing<'a> {
    /// Whether minting for this resource is charged against the mint limit: it has come as far as
    /// the limiter (row 5), and the class is charged at all. Whoever counts asks this first, then
    /// fills in [`RequestedResource::rate_limited`].
    pub fn is_chargeable(&self, resource: &RequestedResource<'_>) -> bool {
        self.request.class.is_charged() && self.screen(resource).is_ok()
    }

    /// The same request, its resources with what the limiter said.
    #[must_use]
    pub fn with_resources(mut self, resources: &'a [RequestedResource<'a>]) -> Self {
        self.facts.resources = resources;
        self
    }

    /// Decides about the resources.
    pub fn decide(&self, policy: &ActivePolicy) -> Decision {
        let resources = self.facts.resources;
        if resources.is_empty() {
            let why = Refusal::BadRequest.because("at least one resource is required");
            return Decision::refused(resources, why);
        }
        let mut question = Arc::new(input::question(self));
        let mut tally = Tally::default();
        for (at, resource) in resources.iter().enumerate() {
            let (verdict, abort) = match self.judge(resource, &mut question, policy) {
                Judgement::Granted(found, verdict) => {
                    tally.granted.push(found);
                    (verdict, None)
                }
                Judgement::Gated(found, verdict, gate) => {
                    tally.gates.push(gate);
                    tally.granted.push(found);
                    (verdict, None)
                }
                Judgement::Dropped(verdict) => (verdict, None),
                Judgement::Aborted(verdict, why) => (verdict, Some(why)),
            };
            tally.verdicts.push(verdict);
            if let Some(why) = abort {
                let unseen = resources.iter().skip(at + 1).map(|resource| {
                    ResourceVerdict::denied(resource, status::EXCHANGE_DENIED, &*why.description)
                });
                tally.verdicts.extend(unseen);
                return self.deny(tally.verdicts, why);
            }
        }
        self.conclude(tally)
    }

    /// Rows 1 to 8 of §2.6, then policy.
    fn judge(
        &self,
        resource: &RequestedResource<'a>,
        question: &mut Arc<PolicyInput>,
        policy: &ActivePolicy,
    ) -> Judgement<'a> {
        let drop = |status: &'static str| {
            Judgement::Dropped(ResourceVerdict::denied(resource, status, status))
        };
        let abort = |status: &'static str, why: Refused| {
            Judgement::Aborted(ResourceVerdict::denied(resource, status, status), why)
        };
        let found = match self.screen(resource) {
            Ok(found) => found,
            Err(status) => return drop(status),
        };
        if let Class::Gateway { method, path, .. } = self.request.class
            && !operation::permitted(
                &found.operations,
                found.enforcement,
                method,
                path,
                &self.carried,
            )
        {
            let why = Refusal::OperationNotPermitted.because("operation not permitted");
            return abort(status::OPERATION, why);
        }
        if self.request.class.is_charged() && resource.rate_limited.is_some() {
            return drop(status::RATE_LIMITED);
        }
        let is_control = *found.identifier == *self.facts.control_audience;
        if let Class::Control { key } = self.request.class
            && is_control
            && key.opens(&self.requested, self.now)
        {
            return Judgement::Granted(found, ResourceVerdict::by_platform(resource, CONTROL_KEY));
        }
        if is_control || matches!(self.request.class, Class::Control { .. }) {
            let why = Refusal::AccessDenied.because("the control resource requires a control key");
            return abort(status::CONTROL, why);
        }
        if let Class::Gateway { .. } = self.request.class
            && let Some(fault) = resource.credential_fault
        {
            return drop(fault.as_str());
        }
        Arc::make_mut(question).resource = input::about(found);
        self.ask(resource, found, question, policy)
    }

    /// Rows 1 to 3 of §2.6. A Gateway exchange asks for no scopes of its own; what it would carry
    /// on is held against the resource as it is declared now, so that a scope which was taken from
    /// a resource is gone at once.
    fn screen(&self, resource: &RequestedResource<'a>) -> Result<&'a ResourceFacts, &'static str> {
        let found = resource.found.ok_or(status::RESOURCE_NOT_FOUND)?;
        let declared = |scope: &str| {
            found.scopes.contains(scope) || (scope == LIFECYCLE && found.upstream_url.is_some())
        };
        if !self.carried.iter().all(declared) {
            return Err(status::SCOPE_MISMATCH);
        }
        let admitted = self
            .lineage
            .as_ref()
            .is_none_or(|lineage| lineage.admits(found));
        if admitted {
            Ok(found)
        } else {
            Err(status::OUTSIDE_DELEGATION)
        }
    }

    /// Row 9. Policy can only subtract: whatever it says, nothing above is undone.
    fn ask(
        &self,
        resource: &RequestedResource<'_>,
        found: &'a ResourceFacts,
        question: &Arc<PolicyInput>,
        policy: &ActivePolicy,
    ) -> Judgement<'a> {
        let mut verdict = ResourceVerdict::denied(resource, status::COMPLETE, "");
        verdict.policy_ran = true;
        let answered = policy.contract.evaluate(question);
        verdict.asked = Some(Box::new(Asked::answered(Arc::clone(question), &answered)));
        let answer = match answered {
            Ok(answer) => answer,
            Err(fault) => {
                verdict.evaluation_status = status::POLICY_FAILED;
                verdict.diagnostics = vec![json!({"error": fault.0})];
                verdict.reason = Some(status::POLICY_FAILED.to_owned());
                let why = Refusal::PolicyEvalFailed.because("policy evaluation failed");
                return Judgement::Aborted(verdict, why);
            }
        };
        let gate = answer.step_up().filter(|_| answer.allow).cloned();
        verdict.reason = answer.reason().map(str::to_owned);
        verdict.diagnostics = answer.diagnostics;
        verdict.determining = answer.determining;
        if !answer.allow {
            return Judgement::Dropped(verdict);
        }
        if !self.is_targeted(found) {
            verdict.determining.clear();
            verdict.reason = Some("mandate_target_mismatch".to_owned());
            return Judgement::Dropped(verdict);
        }
        if let Some(gate) = gate {
            return self.gated(found, verdict, gate);
        }
        verdict.allowed = true;
        verdict.reason = None;
        Judgement::Granted(found, verdict)
    }

    /// An allow that needs an approval: one that was resolved stands, else it waits.
    fn gated(
        &self,
        found: &'a ResourceFacts,
        mut verdict: ResourceVerdict,
        gate: Value,
    ) -> Judgement<'a> {
        verdict.allowed = self.resolved;
        verdict.reason = (!self.resolved).then(|| HUMAN_APPROVAL.to_owned());
        if !self.resolved {
            verdict.determining.clear();
        }
        Judgement::Gated(found, verdict, gate)
    }

    /// Whether the presented mandate, if any, was minted for this resource. The contract says so
    /// too; here it holds whatever the contract says.
    fn is_targeted(&self, found: &ResourceFacts) -> bool {
        let presented = self.request.class.presented();
        presented.is_none_or(|p| p.target.iter().any(|target| **target == *found.identifier))
    }

    /// Steps 9 to 12 of §2.5.
    fn conclude(&self, tally: Tally<'a>) -> Decision {
        if tally.granted.is_empty() {
            let why = self.why_nothing(&tally.verdicts);
            return self.deny(tally.verdicts, why);
        }
        // A call under way cannot wait for anybody: its mandate was approved, or is good for nothing.
        if let (Class::Gateway { .. }, false) = (self.request.class, tally.gates.is_empty()) {
            let why = Refusal::AccessDenied.because(denied_for(HUMAN_APPROVAL));
            return self.deny(tally.verdicts, why);
        }
        let token_use = match self.request.class {
            Class::Bootstrap => TokenUse::Session,
            Class::Delegated => TokenUse::Gateway,
            Class::Gateway { .. } | Class::Control { .. } => TokenUse::Resource,
            Class::SubjectToken { .. } => {
                let why = Refusal::AccessDenied.because("resource exchanges must use the Gateway");
                return self.deny(tally.verdicts, why);
            }
        };
        let requirement = match Requirement::of(&tally.gates) {
            Ok(requirement) => requirement,
            Err(error) => {
                let why = error.refused();
                let nothing = self.deny(tally.verdicts, why.clone());
                return nothing.withheld(error.status(), why);
            }
        };
        if let Some(requirement) = requirement.clone().filter(|_| !self.resolved) {
            return self.hold(tally.verdicts, requirement);
        }
        Decision {
            outcome: Outcome::Grant(self.grant(token_use, &tally.granted)),
            verdicts: tally.verdicts,
            lineage: self.claims.clone(),
            requirement,
        }
    }

    /// Nothing is granted yet, whatever was allowed without an approval too.
    fn hold(&self, mut verdicts: Vec<ResourceVerdict>, requirement: Requirement) -> Decision {
        let why = "another resource of the request needs a human approval";
        let why = Refusal::InteractionRequired.because(why);
        for verdict in &mut verdicts {
            verdict.withdraw(&why);
        }
        Decision {
            outcome: Outcome::Hold(requirement.clone()),
            verdicts,
            lineage: self.claims.clone(),
            requirement: Some(requirement),
        }
    }

    fn grant(&self, token_use: TokenUse, granted: &[&ResourceFacts]) -> Grant {
        let presented = self.request.class.presented();
        let application = self.request.application;
        let targets: BTreeSet<Arc<str>> = granted.iter().map(|r| r.identifier.clone()).collect();
        let (issued_at, expires_at) = self.lifetime;
        Grant {
            token_use,
            targets: targets.into_iter().collect(),
            subject: presented.map_or_else(|| application.to_string(), |p| p.sub.clone()),
            subject_type: presented.map_or(SubjectType::Application, |p| p.sub_type),
            scope: presented
                .map_or(self.request.scope, |p| &p.scope)
                .to_owned(),
            zone: self.request.zone.clone(),
            client_id: application.clone(),
            root_sid: presented.map(|p| p.root_sid.clone()),
            parent_sid: presented.map(|p| p.sid.clone()),
            issued_at,
            expires_at,
            lineage: self.claims.clone(),
            act: self.request.act(),
        }
    }

    fn deny(&self, mut verdicts: Vec<ResourceVerdict>, why: Refused) -> Decision {
        for verdict in &mut verdicts {
            verdict.withdraw(&why);
        }
        Decision {
            outcome: Outcome::Deny(why),
            verdicts,
            lineage: self.claims.clone(),
            requirement: None,
        }
    }

    /// Step 10, and §20.5: the description names the cause that helps most.
    fn why_nothing(&self, verdicts: &[ResourceVerdict]) -> Refused {
        let resources = self.facts.resources;
        let retry_after = resources
            .iter()
            .filter_map(|resource| resource.rate_limited)
            .max();
        if verdicts
            .iter()
            .all(|verdict| verdict.evaluation_status == status::RATE_LIMITED)
        {
            let why = Refusal::RateLimited.because("mint rate limit exceeded");
            return why.retry_after(retry_after.unwrap_or(1).max(1));
        }
        let faults = resources
            .iter()
            .zip(verdicts)
            .rev()
            .find_map(|(resource, verdict)| {
                let fault = resource.credential_fault?;
                (verdict.evaluation_status == fault.as_str()).then_some(fault)
            });
        if let Some(fault) = faults {
            return fault.refusal().because(fault.advice());
        }
        let by_policy = verdicts.iter().filter(|verdict| verdict.policy_ran);
        let reason = by_policy
            .chain(verdicts)
            .find_map(|verdict| verdict.reason.as_deref());
        let why = reason.map_or_else(|| "policy denied".to_owned(), denied_for);
        Refusal::AccessDenied.because(why)
    }
}

/// What decides for a Control key.
const CONTROL_KEY: &str = "control-key";

fn denied_for(reason: &str) -> String {
    format!("policy denied ({reason})")
}
