//! The check tables of the specification, row by row, as far as the kernel answers them (spec: sts
//! §2.5, §2.6, §2.7, §9). What concerns the message and the caller is in the tests of the STS.

mod request;

use std::sync::Arc;

use caracal_model::policy::PolicyFault;
use caracal_model::{DelegationId, Mandate, RecordId, ResourceId, SessionId, SubjectType};
use serde_json::json;

use super::world::*;
use crate::decide::{Class, CredentialFault, Decision, ExchangeRequest, Outcome};
use crate::{
    Constraints, EdgeStatus, Enforcement, Known, Lifecycle, RecordStatus, SessionStatus, decide,
};

/// A decision on one line: `403 access_denied: why | deny this, allow that`.
fn line(decision: &Decision) -> String {
    let said = match &decision.outcome {
        Outcome::Deny(_) => {
            let (status, error, why) = refused(decision);
            format!("{status} {error}: {why}")
        }
        Outcome::Hold(requirement) => format!("hold {}", requirement.tier),
        Outcome::Grant(grant) => format!("200 {}", grant.targets.join(" ")),
    };
    format!("{said} | {}", evidence(decision).join(", "))
}

fn check<'c>(rows: impl IntoIterator<Item = (&'c str, Decision, &'c str)>) {
    for (row, decision, expected) in rows {
        assert_eq!(line(&decision), expected, "{row}");
        if matches!(decision.outcome, Outcome::Deny(_)) {
            assert!(
                decision.verdicts.iter().all(|v| !v.allowed),
                "{row}: allow without a token"
            );
        }
    }
}

/// The world after a change, asked for a delegated mint.
fn mint(change: impl FnOnce(&mut World)) -> Decision {
    let mut world = World::new();
    change(&mut world);
    world.decide(Class::Delegated, Says::allow())
}

/// The world after a change, asked by the Gateway with the mandate from before it.
fn call(change: impl FnOnce(&mut World, &mut Mandate)) -> Decision {
    let mut world = World::new();
    let mut presented = world.mandate();
    change(&mut world, &mut presented);
    world.decide(gateway(&presented, "GET", "/tickets"), Says::allow())
}

fn two(world: &mut World) {
    world.requested = vec!["resource://r0".to_owned(), "resource://r1".to_owned()];
}

#[test]
fn rows_of_2_6() {
    let policy_says = |reason: &'static str| Says::answers(move |_| Ok(denied(reason)));
    let faulty = || Says::answers(|_| Err(PolicyFault("two documents disagree".to_owned())));
    let provider = |fault| {
        let world = World::new();
        let presented = world.mandate();
        let mut resources = world.requested();
        resources[0].credential_fault = Some(fault);
        world.ask(
            gateway(&presented, "GET", "/tickets"),
            &resources,
            |request, facts| decide(request, facts, &policy(Says::allow()), NOW),
        )
    };
    check([
        (
            "row 1, unknown",
            mint(|w| w.requested = vec!["resource://r9".to_owned()]),
            "403 access_denied: policy denied (resource_not_found) | deny resource_not_found",
        ),
        (
            "row 1, by row id",
            mint(|w| w.requested = vec!["res-0".to_owned()]),
            "200 resource://r0 | allow complete",
        ),
        (
            "row 1, dropped",
            mint(|w| w.requested.push("resource://r9".to_owned())),
            "200 resource://r0 | allow complete, deny resource_not_found",
        ),
        (
            "row 2, undeclared",
            mint(|w| {
                w.edge(0).scopes = "desk:read x".split(' ').collect();
                w.scope = "x".into();
            }),
            "403 access_denied: policy denied (scope_mismatch) | deny scope_mismatch",
        ),
        (
            "row 2, nothing asked",
            mint(|w| w.scope.clear()),
            "200 resource://r0 | allow complete",
        ),
        (
            "row 2, implicit lifecycle",
            {
                let mut world = World::new();
                world.scope = "agent:lifecycle".to_owned();
                world.decide(Class::Bootstrap, Says::allow())
            },
            "200 resource://r0 | allow complete",
        ),
        (
            "row 2, no upstream, no lifecycle",
            {
                let mut world = World::new();
                world.scope = "agent:lifecycle".to_owned();
                world.resources[0].upstream_url = None;
                world.decide(Class::Bootstrap, Says::allow())
            },
            "403 access_denied: policy denied (scope_mismatch) | deny scope_mismatch",
        ),
        (
            "row 3, bound elsewhere",
            mint(|w| w.edge(0).resource_id = Some(ResourceId::trusted("res-1"))),
            "403 access_denied: policy denied (resource_outside_delegation) | deny resource_outside_delegation",
        ),
        (
            "row 3, constrained elsewhere",
            mint(|w| w.edge(0).constraints.resources = Some(["resource://r1".into()].into())),
            "403 access_denied: policy denied (resource_outside_delegation) | deny resource_outside_delegation",
        ),
        (
            "row 3, dropped",
            mint(|w| {
                two(w);
                w.edge(0).resource_id = Some(ResourceId::trusted("res-0"));
            }),
            "200 resource://r0 | allow complete, deny resource_outside_delegation",
        ),
        (
            "row 4, operation not declared",
            call(|w, _| w.resources[0].operations.clear()),
            "403 operation_not_permitted: operation not permitted | deny operation_not_permitted",
        ),
        (
            "row 4, its scope not carried",
            call(|w, m| {
                w.resources[0].operations[0].scope = "desk:write".into();
                m.scope = "desk:read".into();
            }),
            "403 operation_not_permitted: operation not permitted | deny operation_not_permitted",
        ),
        (
            "row 4, transport_uniform",
            call(|w, _| {
                w.resources[0].operations.clear();
                w.resources[0].enforcement = Enforcement::TransportUniform;
            }),
            "200 resource://r0 | allow complete",
        ),
        (
            "row 4, not at the mint",
            mint(|w| w.resources[0].operations.clear()),
            "200 resource://r0 | allow complete",
        ),
        (
            "row 5, the only reason",
            mint(|w| w.rate_limited = Some(3)),
            "429 provider_rate_limited: mint rate limit exceeded | deny rate_limited",
        ),
        (
            "row 5, one of two reasons",
            mint(|w| {
                w.rate_limited = Some(3);
                w.requested.push("resource://r9".to_owned());
            }),
            "403 access_denied: policy denied (rate_limited) | deny rate_limited, deny resource_not_found",
        ),
        (
            "row 7, abort",
            {
                let mut world = World::new();
                two(&mut world);
                world.resources[1].identifier = "caracal-control".into();
                world.requested[1] = "caracal-control".to_owned();
                world.requested.push("resource://r0".to_owned());
                world.decide(Class::Delegated, Says::allow())
            },
            "403 access_denied: the control resource requires a control key | deny exchange_denied, \
            deny control_resource_requires_control_key, deny exchange_denied",
        ),
        (
            "row 8, no provider",
            provider(CredentialFault::ProviderUnavailable),
            "403 provider_unavailable: the credential of the provider is not available | deny provider_unavailable",
        ),
        (
            "row 8, not connected",
            provider(CredentialFault::NotProvisioned),
            "403 credential_not_provisioned: the subject has not connected its account at the provider | deny credential_not_provisioned",
        ),
        (
            "row 8, not refreshed",
            provider(CredentialFault::RefreshFailed),
            "403 credential_refresh_failed: the connection to the provider could not be refreshed | deny credential_refresh_failed",
        ),
        (
            "row 9, denied",
            World::new().decide(Class::Delegated, policy_says("role_scope_mismatch")),
            "403 access_denied: policy denied (role_scope_mismatch) | deny complete",
        ),
        (
            "row 9, denied without a reason",
            World::new().decide(
                Class::Delegated,
                Says::answers(|_| {
                    Ok(caracal_model::policy::PolicyResult {
                        allow: false,
                        determining: Vec::new(),
                        diagnostics: Vec::new(),
                    })
                }),
            ),
            "403 access_denied: policy denied | deny complete",
        ),
        (
            "row 9, fault",
            World::new().decide(Class::Delegated, faulty()),
            "503 policy_eval_failed: policy evaluation failed | deny policy_eval_failed",
        ),
    ]);
}

#[test]
fn several_resources_are_decided_in_their_order_and_an_abort_takes_all() {
    let by_resource = |r0: &'static str, r1: &'static str| {
        let mut world = World::new();
        two(&mut world);
        world.decide(
            Class::Delegated,
            Says::answers(move |question| {
                match if question.resource.id == "res-0" {
                    r0
                } else {
                    r1
                } {
                    "allow" => Ok(allowed(&[])),
                    "fault" => Err(PolicyFault("broken".to_owned())),
                    reason => Ok(denied(reason)),
                }
            }),
        )
    };
    check([
        (
            "both",
            by_resource("allow", "allow"),
            "200 resource://r0 resource://r1 | allow complete, allow complete",
        ),
        (
            "first dropped",
            by_resource("a", "allow"),
            "200 resource://r1 | deny complete, allow complete",
        ),
        (
            "second dropped",
            by_resource("allow", "b"),
            "200 resource://r0 | allow complete, deny complete",
        ),
        (
            "the first reason is told",
            by_resource("a", "b"),
            "403 access_denied: policy denied (a) | deny complete, deny complete",
        ),
        (
            "fault after an allow",
            by_resource("allow", "fault"),
            "503 policy_eval_failed: policy evaluation failed | deny exchange_denied, deny policy_eval_failed",
        ),
        (
            "fault before an allow",
            by_resource("fault", "allow"),
            "503 policy_eval_failed: policy evaluation failed | deny policy_eval_failed, deny exchange_denied",
        ),
        (
            "policy's reason before ours",
            {
                let mut world = World::new();
                world.requested.insert(0, "resource://r9".to_owned());
                world.decide(Class::Delegated, Says::answers(|_| Ok(denied("a"))))
            },
            "403 access_denied: policy denied (a) | deny resource_not_found, deny complete",
        ),
        (
            "ours when policy was not asked",
            mint(|w| {
                w.requested = vec!["resource://r8".to_owned(), "resource://r9".to_owned()];
            }),
            "403 access_denied: policy denied (resource_not_found) | deny resource_not_found, deny resource_not_found",
        ),
    ]);
}
