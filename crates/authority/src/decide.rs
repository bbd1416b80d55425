//! The decision of a token exchange: one pure function from what is asked, what is known, policy
//! and the time, to a grant or a refusal and to the evidence of both (spec: sts §2.5 to §2.7).
//!
//! Resources are decided one by one, in byte order. A denied one is left out of the grant; the
//! cases that abort the whole request are named in [`Abort`]. A verdict says `allow` only when a
//! token results.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use caracal_model::limits::{DEFAULT_TTL_SECONDS, MAX_SUBJECT_TTL_SECONDS, MAX_TTL_SECONDS};
use caracal_model::policy::{ActivePolicy, PolicyResult};
use caracal_model::scope::LIFECYCLE;
use caracal_model::{
    ApplicationId, Mandate, RecordId, Refusal, Refused, Scopes, SessionId, Timestamp, ZoneId,
};
use serde_json::Value;

use crate::facts::{ResourceFacts, SessionFacts};
use crate::input;
use crate::lineage::Lineage;
use crate::operation;

/// What kind of exchange this is (spec: sts §2.3).
#[derive(Clone, Copy, Debug)]
pub enum Class<'a> {
    /// An application asks for itself: the result is a session mandate.
    Principal,
    /// An application asks under a Delegation: the result is a gateway mandate.
    Delegated,
    /// The Gateway asks for one call: the result is a resource mandate.
    Gateway {
        /// The mandate that was presented, verified.
        mandate: &'a Mandate,
        /// Inbound method.
        method: &'a str,
        /// Inbound path, decoded.
        path: &'a str,
    },
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// What kind of exchange.
    pub class: Class<'a>,
    /// The caller's zone.
    pub zone: &'a ZoneId,
    /// The caller.
    pub application: &'a ApplicationId,
    /// `managed` or `dcr`.
    pub registration_method: &'a str,
    /// Requested scopes, as sent.
    pub scope: &'a str,
    /// The same, as a set.
    pub scopes: &'a Scopes,
    /// Requested lifetime in seconds.
    pub ttl_seconds: Option<i64>,
    /// Authority record that was presented.
    pub record: Option<&'a RecordId>,
    /// Governed Session that was presented.
    pub session: Option<&'a SessionId>,
    /// Request id.
    pub request_id: &'a str,
    /// Longest lifetime of any mandate, in seconds (`MAX_GRANT_TTL_SECONDS`).
    pub max_grant_ttl: i64,
}

/// Where the provider's credential stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    /// It can be injected, or none is needed, or nobody asks for it now.
    Ready,
    /// The provider is gone or its secret cannot be read.
    Unavailable,
}

/// One requested resource.
#[derive(Clone, Debug)]
pub struct Requested<'a> {
    /// As requested.
    pub name: &'a str,
    /// The resource, when the zone has it.
    pub facts: Option<&'a ResourceFacts>,
    /// Whether the caller is over its mint rate for it.
    pub rate_limited: bool,
    /// Whether its provider's credential is at hand.
    pub credential: Credential,
}

/// What is known.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The requested resources, in byte order.
    pub resources: Vec<Requested<'a>>,
    /// The governed Session that was presented.
    pub session: Option<&'a SessionFacts>,
    /// The lineage of the Delegation that was presented; it holds.
    pub lineage: Option<Lineage<'a>>,
    /// The zone's graph epoch.
    pub epoch: u64,
}

/// What is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Granted resource identifiers, in byte order.
    pub targets: Vec<Arc<str>>,
    /// Granted scopes, as they go into the token.
    pub scope: String,
    /// Lifetime in whole seconds, at least 1.
    pub expires_in: i64,
}

/// What became of one requested resource, for evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// As requested.
    pub resource: String,
    /// Whether a token results for it.
    pub allow: bool,
    /// `complete`, or the status of the check that failed (spec: sts §17).
    pub status: &'static str,
    /// Names of the policies that decided.
    pub determining: Vec<String>,
    /// What the contract said of it.
    pub diagnostics: Vec<Value>,
}

/// A grant or a refusal, and the evidence of it.
#[derive(Clone, Debug)]
pub struct Decision {
    /// What the caller gets.
    pub outcome: Result<Grant, Refused>,
    /// One a requested resource, in their order.
    pub verdicts: Vec<Verdict>,
}

/// A resource was denied (`Skip`), or the whole request is (`Abort`).
enum No {
    Skip(Denial),
    Abort(Denial),
}

struct Denial {
    status: &'static str,
    refused: Refused,
    /// Among skips, the higher rank speaks for the request (spec: sts §2.5 step 10).
    rank: u8,
    result: Option<PolicyResult>,
}

/// Decides. See the module documentation.
pub fn decide(ask: &Ask<'_>, facts: &Facts<'_>, policy: &ActivePolicy, now: Timestamp) -> Decision {
    let mut verdicts = Vec::with_capacity(facts.resources.len());
    let mut targets = Vec::new();
    let mut denials = Vec::new();
    if let Err(refused) = check_request(ask, facts) {
        return refuse(facts, verdicts, refused);
    }
    for requested in &facts.resources {
        match decide_one(ask, facts, requested, policy) {
            Ok((resource, result)) => {
                targets.push(Arc::clone(&resource.identifier));
                verdicts.push(verdict(requested, true, "complete", Some(result)));
            }
            Err(No::Skip(denial)) => {
                verdicts.push(verdict(requested, false, denial.status, denial.result.clone()));
                denials.push(denial);
            }
            Err(No::Abort(denial)) => {
                verdicts.push(verdict(requested, false, denial.status, denial.result));
                return refuse(facts, verdicts, denial.refused);
            }
        }
    }
    if targets.is_empty() {
        return refuse(facts, verdicts, nothing_granted(denials));
    }
    match lifetime(ask, facts, now) {
        Ok(expires_in) => {
            targets.sort_unstable();
            targets.dedup();
            let scope = granted_scope(ask);
            Decision { outcome: Ok(Grant { targets, scope, expires_in }), verdicts }
        }
        Err(refused) => refuse(facts, verdicts, refused),
    }
}

fn verdict(
    requested: &Requested<'_>,
    allow: bool,
    status: &'static str,
    result: Option<PolicyResult>,
) -> Verdict {
    let (determining, diagnostics) =
        result.map(|result| (result.determining, result.diagnostics)).unwrap_or_default();
    Verdict { resource: requested.name.to_owned(), allow, status, determining, diagnostics }
}

/// Nothing leaves, so no verdict may say that it did, and every resource has one.
fn refuse(facts: &Facts<'_>, mut verdicts: Vec<Verdict>, refused: Refused) -> Decision {
    for verdict in &mut verdicts {
        if verdict.allow {
            verdict.allow = false;
            verdict.status = "exchange_denied";
        }
    }
    let unseen = facts.resources.iter().skip(verdicts.len());
    verdicts.extend(unseen.map(|requested| verdict(requested, false, "exchange_denied", None)));
    Decision { outcome: Err(refused), verdicts }
}

fn denied(why: impl Into<Cow<'static, str>>) -> Refused {
    Refusal::AccessDenied.because(why)
}

/// What concerns the request as a whole.
fn check_request(ask: &Ask<'_>, facts: &Facts<'_>) -> Result<(), Refused> {
    if facts.resources.is_empty() {
        return Err(Refusal::BadRequest.because("at least one resource is required"));
    }
    let cap = match ask.class {
        Class::Gateway { .. } => MAX_SUBJECT_TTL_SECONDS,
        Class::Principal | Class::Delegated => MAX_TTL_SECONDS,
    };
    if ask.ttl_seconds.is_some_and(|ttl| ttl > cap) {
        let why = format!("ttl_seconds is over the limit of {cap}: ask for less");
        return Err(Refusal::BadRequest.because(why));
    }
    let Some(lineage) = &facts.lineage else {
        return match ask.class {
            Class::Principal => Ok(()),
            // A mandate for the Gateway without a Delegation cannot come from here.
            Class::Delegated | Class::Gateway { .. } => {
                Err(denied("the delegation does not exist in this zone"))
            }
        };
    };
    if !carried(ask).is_within(&lineage.scopes) {
        return Err(denied("a requested scope is outside the delegation"));
    }
    let over = |cap: u32| ask.ttl_seconds.is_some_and(|ttl| ttl > i64::from(cap));
    if lineage.ttl_cap.is_some_and(over) {
        return Err(denied("ttl_seconds is over what the delegation allows"));
    }
    Ok(())
}

/// The scopes that the resulting token would carry.
fn carried(ask: &Ask<'_>) -> Scopes {
    match ask.class {
        Class::Gateway { mandate, .. } => Scopes::parse(&mandate.scope),
        Class::Principal | Class::Delegated => ask.scopes.clone(),
    }
}

fn granted_scope(ask: &Ask<'_>) -> String {
    match ask.class {
        Class::Gateway { mandate, .. } => mandate.scope.clone(),
        Class::Principal | Class::Delegated => ask.scope.to_owned(),
    }
}

fn decide_one<'a>(
    ask: &Ask<'_>,
    facts: &Facts<'_>,
    requested: &Requested<'a>,
    policy: &ActivePolicy,
) -> Result<(&'a ResourceFacts, PolicyResult), No> {
    let resource = requested.facts.ok_or_else(|| skip("resource_not_found"))?;
    if !declared(ask, resource) {
        return Err(skip("scope_mismatch"));
    }
    if facts.lineage.as_ref().is_some_and(|lineage| !lineage.reaches(resource)) {
        return Err(skip("resource_outside_delegation"));
    }
    floor(ask, resource)?;
    if requested.rate_limited {
        return Err(rate_limited());
    }
    if requested.credential == Credential::Unavailable {
        return Err(credential_unavailable());
    }
    let result = evaluate(ask, facts, resource, policy)?;
    Ok((resource, result))
}

fn declared(ask: &Ask<'_>, resource: &ResourceFacts) -> bool {
    let carried = carried(ask);
    carried.iter().all(|scope| {
        let lifecycle = scope == LIFECYCLE && resource.upstream_url.is_some();
        lifecycle || resource.scopes.contains(scope)
    })
}

fn floor(ask: &Ask<'_>, resource: &ResourceFacts) -> Result<(), No> {
    let Class::Gateway { mandate, method, path } = ask.class else { return Ok(()) };
    if !mandate.target.iter().any(|target| **target == *resource.identifier) {
        return Err(skip("mandate_target_mismatch"));
    }
    let scopes = Scopes::parse(&mandate.scope);
    if operation::permitted(resource, method, path, &scopes) {
        return Ok(());
    }
    let why = "no declared operation of the resource with a scope of this mandate matches the \
               method and path";
    Err(No::Abort(Denial {
        status: "operation_not_permitted",
        refused: Refusal::OperationNotPermitted.because(why),
        rank: 0,
        result: None,
    }))
}

fn evaluate(
    ask: &Ask<'_>,
    facts: &Facts<'_>,
    resource: &ResourceFacts,
    policy: &ActivePolicy,
) -> Result<PolicyResult, No> {
    let question = input::question(ask, facts, resource);
    let result = policy.contract.evaluate(&question).map_err(|fault| {
        No::Abort(Denial {
            status: "policy_eval_failed",
            refused: Refusal::PolicyEvalFailed.because(fault.to_string()),
            rank: 0,
            result: Some(PolicyResult {
                allow: false,
                determining: Vec::new(),
                diagnostics: vec![serde_json::json!({ "error": fault.0 })],
            }),
        })
    })?;
    if !result.allow {
        let (why, rank) = match result.reason() {
            Some(reason) => (format!("policy denied ({reason})"), 2),
            None => ("policy denied".to_owned(), 1),
        };
        let refused = denied(why);
        return Err(No::Skip(Denial { status: "complete", refused, rank, result: Some(result) }));
    }
    if result.step_up().is_some() {
        // Holds are not served yet. An allow that stands only with an approval is no allow.
        let refused = denied("policy denied (human_approval_required)");
        let status = "approval_required_unavailable";
        return Err(No::Skip(Denial { status, refused, rank: 2, result: Some(result) }));
    }
    Ok(result)
}

fn skip(status: &'static str) -> No {
    let refused = denied(format!("policy denied ({status})"));
    No::Skip(Denial { status, refused, rank: 1, result: None })
}

fn rate_limited() -> No {
    let refused = Refusal::RateLimited
        .because("the mint rate of this application for this resource is exhausted")
        .retry_after(60);
    No::Skip(Denial { status: "rate_limited", refused, rank: 0, result: None })
}

fn credential_unavailable() -> No {
    let refused = denied("the provider's credential is not available");
    No::Skip(Denial { status: "provider_unavailable", refused, rank: 3, result: None })
}

/// The denial that speaks for all: a credential failure, then policy's first reason, then the
/// first other cause. A rate limit speaks only when it alone is the cause.
fn nothing_granted(denials: Vec<Denial>) -> Refused {
    let mut spoken: Option<Denial> = None;
    for denial in denials {
        if spoken.as_ref().is_none_or(|so_far| denial.rank > so_far.rank) {
            spoken = Some(denial);
        }
    }
    spoken.map_or_else(|| denied("policy denied"), |denial| denial.refused)
}

/// Whole seconds, at least 1: never longer than the lineage, the presented mandate or a cap.
fn lifetime(ask: &Ask<'_>, facts: &Facts<'_>, now: Timestamp) -> Result<i64, Refused> {
    let wished = ask.ttl_seconds.unwrap_or(DEFAULT_TTL_SECONDS).min(ask.max_grant_ttl);
    let mut until = now.plus(Duration::from_secs(wished.unsigned_abs()));
    if let Some(lineage) = &facts.lineage {
        until = until.min(lineage.expires_at);
        if let Some(cap) = lineage.ttl_cap {
            until = until.min(now.plus(Duration::from_secs(cap.into())));
        }
    }
    if let Class::Gateway { mandate, .. } = ask.class {
        until = until.min(Timestamp::from_unix_seconds(mandate.exp));
    }
    let seconds = until.unix_micros().saturating_sub(now.unix_micros()).div_euclid(1_000_000);
    if seconds < 1 {
        return Err(denied("the delegation ends within a second"));
    }
    Ok(seconds)
}
