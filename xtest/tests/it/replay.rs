//! Decisions of a deployment, asked again of other policies (`caracal policy replay`), and explained:
//! also what was held for a human whom nobody asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use xtest::world::policy_set;
use xtest::{CALLED, DENIED, MINTED, Stack, World, eventually, on_both_stacks};

/// What is recorded of a mint that a human has to approve first.
const HELD: &[&str] = &[
    "step_up_issued pending complete",
    "token_exchange deny complete",
    "token_exchange deny exchange_denied",
];

/// Which requests would be decided otherwise by this policy, and how.
async fn replayed(world: &World, body: &str) -> BTreeMap<String, String> {
    let stack = &world.stack;
    let set = policy_set(stack, &world.zone, body).await;
    let line = format!(
        "policy replay --since 1h --json --api-url {} --zone {} --candidate {}",
        stack.urls.api,
        world.zone,
        set.id()
    );
    let told = stack.caracal(&line).await;
    assert!(told.status.success(), "{told:?}");
    let report: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(report["counts"]["undecidable"], 0, "{report}");
    let strict = stack.caracal(&format!("{line} --fail-on-change")).await;
    let items = report["items"].as_array().unwrap();
    assert_eq!(strict.status.success(), items.is_empty(), "{strict:?}");
    let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
    let both = |item: &Value| (text(item, "request_id"), text(item, "change"));
    items.iter().map(both).collect()
}

on_both_stacks! {
    async fn a_policy_is_tried_on_what_was_decided_and_on_what_was_held(stack: Arc<Stack>) {
        let world = World::new(Arc::clone(&stack)).await;
        let agent = world.agent().await;
        let minted = world.mint(&agent).await.unwrap().expect(200);
        let called = world.call(&minted.text("access_token")).await.unwrap().expect(200).request_id();
        let minted = minted.request_id();
        let denied = world.exchange(&[("scope", "desk:write")]).await.unwrap().expect(403).request_id();

        let open = World::grants(std::slice::from_ref(&world), &["desk:read", "desk:write"]);
        let gated = format!(
            "{open}\nrisk := [{{\"scope\": \"desk:read\", \"tier\": \"high\"}}]\n\
             approval_tiers := [{{\"tier\": \"high\"}}]\n"
        );
        policy_set(&stack, &world.zone, &gated).await.activate(&stack).await;
        let held = parking_lot::Mutex::new(String::new());
        eventually("a mint is held", async || {
            let answer = world.mint(&agent).await.unwrap();
            *held.lock() = answer.request_id();
            answer.status == 401
        })
        .await;
        let held = held.into_inner();
        for (request, recorded) in [(&minted, MINTED), (&called, CALLED), (&denied, DENIED), (&held, HELD)] {
            world.is_recorded(request, recorded).await;
        }

        let shut = replayed(&world, &format!("{open}\nrestrict := [\"all\"]\n")).await;
        let change = |of: &BTreeMap<String, String>, id: &str| of.get(id).cloned().unwrap_or_default();
        for (id, expected) in [(&minted, "newly_denied"), (&called, "newly_denied"), (&held, "newly_denied"), (&denied, "")] {
            assert_eq!(change(&shut, id), expected, "{shut:?}");
        }
        let same = replayed(&world, &open).await;
        for (id, expected) in [(&minted, ""), (&called, ""), (&held, "newly_allowed"), (&denied, "")] {
            assert_eq!(change(&same, id), expected, "{same:?}");
        }
        // A call that is under way is not gated.
        let stricter = replayed(&world, &gated).await;
        for (id, expected) in [(&minted, "newly_held"), (&called, ""), (&held, ""), (&denied, "")] {
            assert_eq!(change(&stricter, id), expected, "{stricter:?}");
        }

        for (id, told) in [(&held, "caracal-desk-mint"), (&denied, "no_rule_matched")] {
            let line = format!("audit explain {id} --api-url {} --zone {}", stack.urls.api, world.zone);
            let explained = stack.caracal(&line).await;
            let said = String::from_utf8_lossy(&explained.stdout);
            assert!(explained.status.success(), "{explained:?}");
            assert!(said.contains(&world.resource) && said.contains(told), "{told}: {said}");
        }
    }
}
