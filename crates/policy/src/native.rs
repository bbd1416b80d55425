//! The decision contract without an evaluator (spec: sts §10.3). It says what `contract.rego` says;
//! a property test asks both.

use std::collections::{BTreeMap, BTreeSet};

use caracal_model::policy::{Contract, PolicyFault, PolicyInput, PolicyResult};
use caracal_model::scope::LIFECYCLE;
use serde_json::{Value, json};

use crate::answer;
use crate::zone_policy::{Grant, Tier, ZonePolicy};

/// The contract over documents that are constant.
#[derive(Debug)]
pub(crate) struct NativeContract {
    policy: ZonePolicy,
}

impl NativeContract {
    pub(crate) const fn new(policy: ZonePolicy) -> Self {
        Self { policy }
    }
}

impl Contract for NativeContract {
    fn evaluate(&self, input: &PolicyInput) -> Result<PolicyResult, PolicyFault> {
        decide(&self.policy, input)
    }
}

/// What the contract says over these data.
pub(crate) fn decide(
    policy: &ZonePolicy,
    input: &PolicyInput,
) -> Result<PolicyResult, PolicyFault> {
    answer::check_schema(input)?;
    Question::read(policy, input).answer()
}

/// A question with its predicates worked out.
pub(crate) struct Question<'q> {
    pub policy: &'q ZonePolicy,
    pub input: &'q PolicyInput,
    pub requested: BTreeSet<&'q str>,
    pub presented_scopes: BTreeSet<&'q str>,
    pub grant: Option<&'q Grant>,
    pub bootstrap: bool,
    pub mint_request: bool,
    pub workload: bool,
    pub presented: bool,
}

impl<'q> Question<'q> {
    pub(crate) fn read(policy: &'q ZonePolicy, input: &'q PolicyInput) -> Self {
        let context = &input.context;
        let requested: BTreeSet<&str> = context
            .requested_scopes
            .iter()
            .map(String::as_str)
            .collect();
        let claim = |name: &str| context.subject_claims.get(name).and_then(Value::as_str);
        let presented_scopes: BTreeSet<&str> = claim("scope")
            .filter(|s| !s.is_empty())
            .map(|s| s.split(' ').collect())
            .unwrap_or_default();

        let subject = answer::has_subject(context);
        let edge = input.delegation_edge.is_some() || !context.delegation_edge_id.is_empty();
        let session =
            !input.principal.agent_session_id.is_empty() || !context.agent_session_id.is_empty();
        let alone = !subject && !edge && !session;
        let delegated = input
            .delegation_edge
            .as_ref()
            .is_some_and(|edge| !edge.id.is_empty())
            && !input.principal.agent_session_id.is_empty();
        let lifecycle = requested.contains(LIFECYCLE);
        Self {
            policy,
            input,
            grant: policy.grants.get(input.resource.identifier.as_str()),
            bootstrap: alone && lifecycle && requested.len() == 1,
            mint_request: delegated && !subject && !requested.is_empty() && !lifecycle,
            workload: alone
                && input.principal.kind == "Workload"
                && input.action.id == "CredentialInjection",
            presented: claim("delegation_edge_id").is_some_and(|id| !id.is_empty())
                && requested.is_empty()
                && !presented_scopes.is_empty(),
            requested,
            presented_scopes,
        }
    }

    fn answer(&self) -> Result<PolicyResult, PolicyFault> {
        let Some((name, gated)) = self.determining() else {
            return Ok(answer::deny(self.reason()));
        };
        let diagnostics = if gated { self.gates()? } else { Vec::new() };
        Ok(PolicyResult {
            allow: true,
            determining: vec![name],
            diagnostics,
        })
    }

    /// The policy that allows it, and whether an approval may be required.
    fn determining(&self) -> Option<(String, bool)> {
        if self.policy.restricted {
            return None;
        }
        let owner = self.owner();
        if self.bootstrap && owner.is_some() {
            return Some(("caracal-bootstrap".to_owned(), false));
        }
        if self.mint_request
            && let Some(application) = owner
            && self.is_narrowed()
            && self.is_confined()
            && self.role_covers(&self.requested)
            && self.is_well_formed()
        {
            return Some((format!("caracal-{application}-mint"), true));
        }
        if self.workload && self.is_well_formed() {
            return Some(("caracal-workload-mint".to_owned(), true));
        }
        if self.presented
            && self.is_targeted()
            && let Some(application) = owner
            && self.role_covers(&self.presented_scopes)
        {
            return Some((format!("caracal-{application}-use"), false));
        }
        None
    }

    /// The first reason that applies.
    fn reason(&self) -> &'static str {
        let checked = self.mint_request || (self.workload && !self.bootstrap);
        if self.policy.restricted {
            "restriction_active"
        } else if checked && self.policy.risk.is_none() {
            "malformed_risk_data"
        } else if checked && self.policy.tiers.is_none() {
            "malformed_approval_data"
        } else if self.mint_request {
            self.mint_reason()
        } else if self.presented {
            self.use_reason()
        } else {
            "no_rule_matched"
        }
    }

    fn mint_reason(&self) -> &'static str {
        if self.owner().is_none() {
            "resource_not_granted"
        } else if !self.is_narrowed() {
            "delegation_scope_exceeded"
        } else if !self.is_confined() {
            "confinement_violation"
        } else {
            "role_scope_mismatch"
        }
    }

    fn use_reason(&self) -> &'static str {
        if !self.is_targeted() {
            "mandate_target_mismatch"
        } else if self.owner().is_none() {
            "resource_not_granted"
        } else {
            "role_scope_mismatch"
        }
    }

    /// The name under which the caller owns the resource.
    pub(crate) fn owner(&self) -> Option<&'q str> {
        let application = self.grant?.application.as_deref()?;
        let id = self.policy.app_ids.get(application)?;
        (**id == *self.input.principal.id).then_some(application)
    }

    pub(crate) fn is_narrowed(&self) -> bool {
        let edge = self.input.delegation_edge.as_ref();
        edge.is_some_and(|edge| {
            self.requested
                .iter()
                .all(|scope| edge.scopes.iter().any(|carried| carried == scope))
        })
    }

    pub(crate) fn is_confined(&self) -> bool {
        let labels = &self.input.principal.labels;
        self.policy.confinement.as_ref().is_some_and(|rules| {
            rules.iter().all(|rule| {
                let applies = labels
                    .iter()
                    .any(|label| label.starts_with(&*rule.label_prefix));
                !applies
                    || self
                        .requested
                        .iter()
                        .all(|scope| rule.scopes.contains(*scope))
            })
        })
    }

    /// Whether one label covers all these scopes.
    pub(crate) fn role_covers(&self, scopes: &BTreeSet<&str>) -> bool {
        let roles = self.grant.map(|grant| &grant.roles);
        let mut labels = self.input.principal.labels.iter();
        labels.any(|label| {
            let granted = roles.and_then(|roles| roles.get(label.as_str()));
            granted.is_some_and(|granted| scopes.iter().all(|scope| granted.contains(*scope)))
        })
    }

    pub(crate) fn is_targeted(&self) -> bool {
        let targets = self
            .input
            .context
            .subject_claims
            .get("target")
            .and_then(Value::as_array);
        let identifier = self.input.resource.identifier.as_str();
        targets.is_some_and(|targets| targets.iter().any(|target| target == identifier))
    }

    fn is_well_formed(&self) -> bool {
        self.policy.risk.is_some() && self.policy.tiers.is_some()
    }

    /// Required approvals and risks of what is requested.
    fn gates(&self) -> Result<Vec<Value>, PolicyFault> {
        let risk = self.risk()?;
        let declared = self.policy.tiers.iter().flat_map(|tiers| tiers.iter());
        let matched = |tier: &&Tier| risk.values().any(|name| **name == *tier.name);
        let tiers: Vec<&Value> = declared
            .filter(matched)
            .map(|tier| &tier.declaration)
            .collect();
        let mut gates = Vec::new();
        if !tiers.is_empty() {
            let required = json!({"type": "human_approval", "tiers": tiers});
            gates.push(json!({"step_up_required": required}));
        }
        if !risk.is_empty() {
            let entry = |(scope, tier)| json!({"scope": scope, "tier": tier});
            let entries: Vec<Value> = risk.into_iter().map(entry).collect();
            gates.push(json!({"risk": entries}));
        }
        Ok(gates)
    }

    /// The tier of each requested scope that has one; in two, nobody can say which applies.
    fn risk(&self) -> Result<BTreeMap<&'q str, &'q str>, PolicyFault> {
        let Some(all) = &self.policy.risk else {
            return Ok(BTreeMap::new());
        };
        let mut risk = BTreeMap::new();
        for scope in &self.requested {
            let Some(tiers) = all.get(*scope) else {
                continue;
            };
            if tiers.len() > 1 {
                return Err(PolicyFault(format!("scope `{scope}` is in two risk tiers")));
            }
            risk.extend(tiers.first().map(|tier| (*scope, &**tier)));
        }
        Ok(risk)
    }
}
