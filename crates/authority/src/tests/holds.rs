//! Exchanges that wait for a human (spec: sts §11).

use crate::Requirement;
use crate::decide::{Class, Outcome, Standing};
use caracal_model::{RecordId, Refusal, SubjectType};
use serde_json::json;

use super::world::*;

fn both(world: &mut World) {
    world.requested = vec!["resource://r0".to_owned(), "resource://r1".to_owned()];
}

#[test]
fn an_allow_that_needs_a_human_is_held_and_granted_once_approved() {
    let mut world = World::new();
    both(&mut world);
    let says = Says::answers(|question| {
        let step_up = json!({"step_up_required": {"type": "human_approval", "tiers": []}});
        Ok(allowed(if question.resource.id == "res-1" {
            &[]
        } else {
            std::slice::from_ref(&step_up)
        }))
    });
    let decision = world.decide(Class::Delegated, says.clone());
    let Outcome::Hold(requirement) = &decision.outcome else {
        panic!("{decision:?}")
    };
    assert_eq!(requirement, &Requirement::merge([]).unwrap());
    assert_eq!(
        evidence(&decision),
        ["deny complete", "deny exchange_denied"]
    );
    let why = Refusal::AccessDenied.because("approval was rejected");
    let rejected = decision.withheld("approval_rejected", why);
    assert_eq!(
        evidence(&rejected),
        ["deny approval_rejected", "deny exchange_denied"]
    );
    assert_eq!(refused(&rejected).0, 403);

    let resources = world.requested();
    let approved = world.ask(Class::Delegated, &resources, |request, facts| {
        let standing = Standing::establish(request, facts, NOW).unwrap();
        standing.resolved().decide(&policy(says.clone()))
    });
    assert_eq!(evidence(&approved), ["allow complete"; 2]);
    assert_eq!(
        granted(&approved).target,
        ["resource://r0", "resource://r1"]
    );
    assert!(says.questions().last().unwrap().context.challenge_resolved);
    assert!(approved.requirement.is_some());

    // A call that is under way cannot be held.
    let mandate = world.mandate();
    world.requested.pop();
    let decision = world.decide(gateway(&mandate, "GET", "/tickets"), says);
    let why = "policy denied (human_approval_required)".to_owned();
    assert_eq!(refused(&decision), (403, "access_denied", why));
}

#[test]
fn tiers_that_name_different_approvers_are_refused() {
    let world = World::new();
    let tiers = |approver: &str| json!({"tier": approver, "approver": approver});
    let says = Says::answers(move |_| {
        let tiers = [tiers("operator"), tiers("subject")];
        Ok(allowed(&[
            json!({"step_up_required": {"type": "human_approval", "tiers": tiers}}),
        ]))
    });
    let decision = world.decide(Class::Delegated, says);
    assert_eq!(refused(&decision).0, 403);
    assert_eq!(evidence(&decision), ["deny approval_class_conflict"]);
}

#[test]
fn the_user_behind_a_session_anchors_its_approvals_and_may_not_approve_with_the_same_record() {
    let mut world = World::new();
    let anchored = |world: &World| {
        world.ask(Class::Delegated, &[], |request, facts| {
            let standing = Standing::establish(request, facts, NOW).unwrap();
            let own: Vec<_> = standing.own_records().into_iter().cloned().collect();
            (standing.subject_anchor().map(str::to_owned), own)
        })
    };
    assert_eq!(anchored(&world), (None, vec![RecordId::trusted("r-app")]));
    world.records = vec![record("r-user", SubjectType::User, "user_123").into()];
    for at in [0, 1] {
        world.session(at).subject_type = SubjectType::User;
        world.session(at).subject_record_id = RecordId::trusted("r-user");
    }
    let (user, own) = (
        Some("user_123".to_owned()),
        vec![RecordId::trusted("r-user")],
    );
    assert_eq!(anchored(&world), (user, own));
}
