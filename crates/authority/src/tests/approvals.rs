//! Approvals: merging, binding and the order of states (spec: sts §11).

use caracal_model::{Timestamp, ZoneId};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::world::{NOW, after, cases};
use crate::approval::{
    ApprovalState, ApproverClass, Binding, Course, Privacy, Requirement, RequirementError, approver,
};

fn merged(tiers: &[Value]) -> String {
    match Requirement::merge(tiers) {
        Ok(r) => format!(
            "{} {} {} {}",
            r.tier,
            r.approver.as_str(),
            r.privacy.as_str(),
            r.ttl_seconds
        ),
        Err(error) => format!("{error:?}"),
    }
}

#[test]
fn declarations_merge_row_by_row() {
    let any = json!({"tier": "a", "approver": "any"});
    let operator = json!({"tier": "o"});
    let subject = json!({"tier": "s", "approver": "subject"});
    for (tiers, expected) in [
        (vec![operator.clone()], "o operator identified 14400"),
        (vec![subject.clone()], "s subject identified 900"),
        (vec![any.clone()], "a any identified 900"),
        (
            vec![any.clone(), subject.clone()],
            "a,s subject identified 900",
        ),
        (
            vec![operator.clone(), any.clone()],
            "a,o operator identified 14400",
        ),
        (vec![operator.clone(), subject.clone()], "Conflict"),
        (
            vec![any.clone(), operator.clone(), subject.clone()],
            "Conflict",
        ),
        (
            vec![
                json!({"tier": "b", "ttl_seconds": 600}),
                json!({"tier": "a", "ttl_seconds": 90}),
            ],
            "a,b operator identified 90",
        ),
        (
            vec![json!({"tier": "a", "ttl_seconds": 600}), operator.clone()],
            "a,o operator identified 600",
        ),
        (
            vec![json!({"tier": "a", "ttl_seconds": 5})],
            "a operator identified 60",
        ),
        (
            vec![json!({"tier": "a", "ttl_seconds": 9e30})],
            "a operator identified 604800",
        ),
        (
            vec![json!({"tier": "a", "ttl_seconds": 90.0})],
            "a operator identified 90",
        ),
        (
            vec![json!({"tier": "a", "approver": "any", "ttl_seconds": 99_999_999})],
            "a any identified 86400",
        ),
        (
            vec![
                json!({"tier": "a", "privacy": "anonymous"}),
                json!({"tier": "b", "privacy": "pseudonymous"}),
            ],
            "a,b operator anonymous 14400",
        ),
        (
            vec![
                json!({"tier": "a"}),
                json!({"tier": "a", "privacy": "pseudonymous"}),
            ],
            "a operator pseudonymous 14400",
        ),
        (vec![json!({"tier": ""})], "Malformed"),
        (vec![json!({"tier": "a", "approver": "root"})], "Malformed"),
        (vec![json!({"tier": "a", "privacy": 1})], "Malformed"),
        (vec![json!({"tier": "a", "ttl_seconds": 0})], "Malformed"),
        (vec![json!({"tier": "a", "ttl_seconds": "60"})], "Malformed"),
        (vec![json!("a")], "Malformed"),
    ] {
        assert_eq!(merged(&tiers), expected, "{tiers:?}");
    }
}

fn vector<'a>(resources: Vec<&'a str>, scopes: Vec<&'a str>) -> Binding<'a> {
    Binding {
        resources,
        scopes,
        principal: "app-1",
        authority_record: "ar-1",
        session: "sess-1",
        delegation: "edge-1",
        application: "app-1",
        policy_set_version: "psv-1",
        policy_manifest: "m-1",
        decision_contract_version: "c-1",
        decision_contract_sha: "s-1",
        actors: Vec::new(),
    }
}

#[test]
fn the_binding_is_that_of_the_specification() {
    let binding = vector(
        vec![" Resource://B ", "resource://a"],
        vec!["desk:write", "desk:read"],
    );
    assert_eq!(
        binding.digest(),
        "563973c9b38589a908d81cf2d2543fe557cb5e47090dec5cfc6bfb4ea4330610"
    );
}

#[test]
fn terms_tell_namesakes_and_requirements_apart() {
    let requirement = Requirement::merge(&[json!({"tier": "high"})]).unwrap();
    let upper = vector(vec!["resource://A"], vec!["desk:read"]);
    let lower = vector(vec!["resource://a"], vec!["desk:read"]);
    assert_eq!(upper.digest(), lower.digest());
    assert_ne!(upper.terms(&requirement), lower.terms(&requirement));
    let subject = Requirement::merge(&[json!({"tier": "high", "approver": "subject"})]).unwrap();
    assert_ne!(lower.terms(&requirement), lower.terms(&subject));
}

#[test]
fn approvers_are_kept_as_their_privacy_says() {
    let zone = ZoneId::trusted("zone-1");
    for (privacy, expected) in [
        (Privacy::Identified, "subject:user_123"),
        (Privacy::Pseudonymous, "subject:pseudonym:d3581133aa2ae74c"),
        (Privacy::Anonymous, "subject:redacted"),
    ] {
        assert_eq!(approver(privacy, &zone, "user_123"), expected);
    }
}

#[test]
fn the_order_of_states_is_that_of_the_specification() {
    let at = |n| Some(after(n));
    let over = Course {
        expires_at: NOW,
        satisfied_at: at(0),
        rejected_at: at(0),
        consumed_at: at(0),
    };
    let mut course = over;
    assert_eq!(course.state(NOW).as_str(), "consumed");
    course.consumed_at = None;
    assert_eq!(course.state(NOW).as_str(), "rejected");
    course.rejected_at = None;
    assert_eq!(course.state(NOW).as_str(), "expired");
    course.expires_at = after(1);
    assert_eq!(course.state(NOW).as_str(), "approved");
    course.satisfied_at = None;
    assert_eq!(course.state(NOW).as_str(), "pending");
}

/// With as many cases as the full test run asks for.
mod properties {
    use super::*;

    fn declaration() -> impl Strategy<Value = Value> {
        (
            prop::sample::select(&["low", "high", "critical"][..]),
            prop::sample::select(&["operator", "subject", "any"][..]),
            prop::sample::select(&["identified", "pseudonymous", "anonymous"][..]),
            option::of(1i64..2_000_000),
        )
            .prop_map(|(tier, approver, privacy, ttl)| {
                let mut value = json!({"tier": tier, "approver": approver, "privacy": privacy});
                if let Some(ttl) = ttl {
                    value["ttl_seconds"] = json!(ttl);
                }
                value
            })
    }

    fn time() -> impl Strategy<Value = Option<Timestamp>> {
        option::of((0u64..100).prop_map(after))
    }

    proptest! {
        #![proptest_config(cases())]

        /// More tiers never make it easier: not sooner approved by others, not longer, not less private.
        #[test]
        fn merging_only_tightens(all in vec(declaration(), 1..5), order in any::<u64>()) {
            let mut shuffled = all.clone();
            let by = usize::try_from(order % 5).unwrap() % all.len();
            shuffled.rotate_left(by);
            let merged = Requirement::merge(&all);
            prop_assert_eq!(&merged, &Requirement::merge(&shuffled));
            let Ok(merged) = merged else {
                prop_assert_eq!(merged, Err(RequirementError::Conflict));
                return Ok(());
            };
            for one in &all {
                let one = Requirement::merge([one]).unwrap();
                prop_assert!(one.approver == ApproverClass::Any || one.approver == merged.approver);
                prop_assert!(merged.privacy >= one.privacy);
                prop_assert!(merged.tier.split(',').any(|tier| tier == one.tier));
            }
            prop_assert!((60..=604_800).contains(&merged.ttl_seconds));
            let declared = all.iter().filter_map(|one| one["ttl_seconds"].as_i64()).min();
            prop_assert!(declared.is_none_or(|least| merged.ttl_seconds <= least.max(60)));
        }

        /// Only what somebody approved, nobody rejected, nobody used and time has not ended is approved.
        #[test]
        fn approved_is_what_can_still_be_used(
            expires in 0u64..100, satisfied_at in time(), rejected_at in time(), consumed_at in time(),
            now in 0u64..100,
        ) {
            let course = Course { expires_at: after(expires), satisfied_at, rejected_at, consumed_at };
            let approved = consumed_at.is_none() && rejected_at.is_none() && expires > now
                && satisfied_at.is_some();
            let state = course.state(after(now));
            prop_assert_eq!(state == ApprovalState::Approved, approved);
            prop_assert_eq!(consumed_at.is_some(), state == ApprovalState::Consumed);
            prop_assert!(state != ApprovalState::Pending || satisfied_at.is_none());
        }

        /// Nothing that differs in what is bound has the same binding, whatever its separators.
        #[test]
        fn bindings_differ_wherever_requests_do(
            one in prop::collection::btree_set("[a-c]{1,2}", 0..3),
            other in prop::collection::btree_set("[a-c]{1,2}", 0..3),
        ) {
            let digest = |r, s| vector(r, s).digest();
            fn list(set: &std::collections::BTreeSet<String>) -> Vec<&str> {
                set.iter().map(String::as_str).collect()
            }
            prop_assert_eq!(digest(list(&one), vec![]) == digest(list(&other), vec![]), one == other);
            prop_assert_eq!(digest(vec![], list(&one)) == digest(vec![], list(&other)), one == other);
            let swapped = digest(list(&one), list(&other)) == digest(list(&other), list(&one));
            prop_assert_eq!(swapped, one == other);
        }
    }
}
