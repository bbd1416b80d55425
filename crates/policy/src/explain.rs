//! Why the contract answers as it does: which rule, which grant, and what would have to change.

use std::collections::BTreeSet;

use caracal_model::policy::{Contract, PolicyInput};
use serde::Serialize;
use serde_json::{Value, json};

use crate::answer;
use crate::bundle::zone_policy;
use crate::native::{NativeContract, Question};
use crate::simulate::SimulationError;
use crate::zone_policy::ZonePolicy;

/// One condition of the rule that would allow the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name in the contract.
    pub check: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// What would have to change for it to hold; absent when it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
}

/// Why the contract answers as it does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// What the request is to policy: `bootstrap`, `mint`, `use`, `workload` or `none`.
    pub kind: &'static str,
    /// The contract's `result`.
    pub result: Value,
    /// The policy that allowed it, or the reason that denied it.
    pub rule: String,
    /// The grant of the resource: who owns it, and the roles that matter here.
    pub grant: Option<Value>,
    /// The conditions of that kind, in the order in which they are looked at.
    pub checks: Vec<Check>,
}

/// Asks the documents and explains the answer.
///
/// # Errors
/// [`SimulationError`] when there is no answer.
pub fn explain(
    documents: &[(String, String)],
    input: &PolicyInput,
) -> Result<Explanation, SimulationError> {
    let policy = zone_policy(documents, input)?;
    let contract = NativeContract::new(policy.clone());
    let result = contract
        .evaluate(input)
        .map_err(|fault| SimulationError::Evaluation(fault.0))?;
    let question = Question::read(&policy, input);
    let (kind, checks) = checks(&question);
    let rule = match result.reason() {
        Some(reason) if !result.allow => reason.to_owned(),
        _ => result.determining.join(", "),
    };
    Ok(Explanation {
        kind,
        rule,
        grant: grant(&policy, &question),
        checks,
        result: answer::to_json(&result),
    })
}

fn check(check: &'static str, holds: bool, change: impl FnOnce() -> String) -> Check {
    Check {
        check,
        holds,
        change: (!holds).then(change),
    }
}

fn checks(question: &Question<'_>) -> (&'static str, Vec<Check>) {
    let policy = question.policy;
    let resource = &question.input.resource.identifier;
    let unrestricted = check("unrestricted", !policy.restricted, || {
        "empty `restrict`: while it has an entry, everything in the zone is denied".to_owned()
    });
    let owns = || {
        let application = &question.input.principal.id;
        check("owns", question.owner().is_some(), || {
            format!(
                "give `{resource}` a grant whose `application` is a name that `app_ids` maps to \
                 `{application}`"
            )
        })
    };
    let risk = || {
        check("risk_ok", policy.risk.is_some(), || {
            "make `risk` an array of objects with non-empty text `scope` and `tier`".to_owned()
        })
    };
    let tiers = || {
        check("tiers_ok", policy.tiers.is_some(), || {
            "make `approval_tiers` an array of objects with `tier`, and where given `approver` \
             (operator, subject, any), `privacy` (identified, pseudonymous, anonymous) and \
             `ttl_seconds` (a positive whole number)"
                .to_owned()
        })
    };
    if question.bootstrap {
        ("bootstrap", vec![unrestricted, owns()])
    } else if question.mint_request {
        let narrowed = check("narrowed", question.is_narrowed(), || {
            "delegate the missing scopes: the Delegation must carry every scope that is asked for"
                .to_owned()
        });
        let confined = check("confined", question.is_confined(), || {
            "ask for fewer scopes, or widen the `confinement` rule whose `label_prefix` fits a \
             label of the Session (a malformed rule fits everything)"
                .to_owned()
        });
        let role = role(question, &question.requested);
        let all = vec![
            unrestricted,
            risk(),
            tiers(),
            owns(),
            narrowed,
            confined,
            role,
        ];
        ("mint", all)
    } else if question.workload {
        ("workload", vec![unrestricted, risk(), tiers()])
    } else if question.presented {
        let target = check("targeted", question.is_targeted(), || {
            format!("mint a mandate whose targets include `{resource}`")
        });
        let role = role(question, &question.presented_scopes);
        ("use", vec![unrestricted, target, owns(), role])
    } else {
        let kind = check("kind", false, || {
            "no rule is about such a request: a lifecycle token is asked for alone, a mint needs \
             a Session, a Delegation and scopes, a call needs a mandate that was minted under a \
             Delegation"
                .to_owned()
        });
        ("none", vec![unrestricted, kind])
    }
}

fn role(question: &Question<'_>, scopes: &BTreeSet<&str>) -> Check {
    check("role", question.role_covers(scopes), || {
        let asked = scopes.iter().copied().collect::<Vec<_>>().join(", ");
        let mut roles: Vec<&str> = question
            .grant
            .iter()
            .flat_map(|grant| grant.roles.iter())
            .filter(|(_, granted)| scopes.iter().all(|scope| granted.contains(*scope)))
            .map(|(label, _)| &**label)
            .collect();
        roles.sort_unstable();
        match roles.as_slice() {
            [] => format!("add a role to the grant that covers all of: {asked}"),
            some => format!(
                "label the Session with a role that covers all of {asked}: {}; or add a role",
                some.join(", ")
            ),
        }
    })
}

/// The grant with the roles of the caller's labels.
fn grant(policy: &ZonePolicy, question: &Question<'_>) -> Option<Value> {
    let grant = question.grant?;
    let roles: serde_json::Map<String, Value> = question
        .input
        .principal
        .labels
        .iter()
        .filter_map(|label| {
            let mut scopes: Vec<&str> = grant
                .roles
                .get(label.as_str())?
                .iter()
                .map(|scope| &**scope)
                .collect();
            scopes.sort_unstable();
            Some((label.clone(), json!(scopes)))
        })
        .collect();
    let application = grant.application.as_deref();
    let owner = application.and_then(|name| policy.app_ids.get(name));
    Some(json!({
        "resource": question.input.resource.identifier,
        "application": application,
        "application_id": owner,
        "roles": roles,
    }))
}
