//! A governed call: a mandate for one call, the call, and the evidence of both.

use std::sync::Arc;

use xtest::http::Answer;
use xtest::{CALLED, DENIED, MINTED, Part, REPLAYED, Stack, World, on_both_stacks};

#[track_caller]
fn is_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(
        (answer.status, &*answer.text("error")),
        (status, code),
        "{:?}",
        answer.json()
    );
}

on_both_stacks! {
    async fn a_call_is_minted_made_and_recorded(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        let agent = world.agent().await;
        let minted = world.mint(&agent).await.unwrap().expect(200);
        world.is_recorded(&minted.request_id(), MINTED).await;
        assert_eq!(world.reached(), 0, "a mint calls nobody");

        let answer = world.call(&minted.text("access_token")).await.unwrap().expect(200);
        assert_eq!(&answer.body[..], br#"{"ok":true}"#);
        world.is_recorded(&answer.request_id(), CALLED).await;
        assert_eq!(world.reached(), 1);
    }

    async fn a_mandate_is_good_for_one_call(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        let agent = world.agent().await;
        let mandate = world.mandate(&agent).await;
        world.call(&mandate).await.unwrap().expect(200);
        let replayed = world.call(&mandate).await.unwrap();
        is_refused(&replayed, 401, "invalid_token");
        world.is_recorded(&replayed.request_id(), REPLAYED).await;
        assert_eq!(world.reached(), 1);
    }

    async fn sixteen_calls_at_once_with_one_mandate_are_one_call(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        let agent = world.agent().await;
        for _ in 0..5 {
            let before = world.reached();
            let mandate = world.mandate(&agent).await;
            let calls = (0..16).map(|_| world.call(&mandate));
            let answers = futures_util::future::join_all(calls).await;
            let mut statuses: Vec<u16> = answers.into_iter().map(|a| a.unwrap().status).collect();
            statuses.sort_unstable();
            assert_eq!(statuses, [&[200][..], &[401; 15]].concat());
            assert_eq!(world.reached(), before + 1);
        }
    }

    async fn a_denial_is_recorded_and_explained(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        // No Delegation stands behind it, so policy says no.
        let denied = world.exchange(&[("scope", "desk:write")]).await.unwrap();
        is_refused(&denied, 403, "access_denied");
        let id = denied.request_id();
        world.is_recorded(&id, DENIED).await;
        let path = format!("/v1/zones/{}/audit/by-request/{id}/explain", world.zone);
        let explained = world.stack.read(&path).await.expect(200).json();
        assert_eq!(explained["final_decision"], "deny");
        assert_eq!(explained["denied"][0]["metadata"]["application_id"], world.app);
    }

    async fn an_operation_that_is_not_declared_does_not_reach_the_upstream(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        let agent = world.agent().await;
        let refused =
            ["token_exchange deny operation_not_permitted", "token_exchange deny exchange_denied"];
        for (method, path) in [("POST", "/tickets"), ("GET", "/tickets/1"), ("GET", "/")] {
            let mandate = world.mandate(&agent).await;
            let answer = world.calls(method, path, &mandate).await.unwrap();
            is_refused(&answer, 403, "operation_not_permitted");
            world.is_recorded(&answer.request_id(), &refused).await;
        }
        assert_eq!(world.reached(), 0);
    }

    async fn narrowing_the_grants_stops_mandates_that_were_minted_before(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        let agent = world.agent().await;
        let (one, other) = (world.mandate(&agent).await, world.mandate(&agent).await);
        World::grant(std::slice::from_ref(&world), &["desk:write"]).await;
        is_refused(&world.call(&one).await.unwrap(), 403, "access_denied");
        is_refused(&world.mint(&agent).await.unwrap(), 403, "access_denied");
        World::grant(std::slice::from_ref(&world), &["desk:read", "desk:write"]).await;
        world.call(&other).await.unwrap().expect(200);
    }

    async fn a_revocation_refuses_the_next_call(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        let agent = world.agent().await;
        let mandate = world.mandate(&agent).await;
        world.revokes(&agent).await;
        xtest::eventually("a mint is refused", async || {
            world.mint(&agent).await.unwrap().status == 403
        })
        .await;
        world.is_dead(&mandate).await;
    }

    async fn a_restart_does_not_make_a_used_mandate_usable(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        let agent = world.agent().await;
        let used = world.mandate(&agent).await;
        let unused = world.mandate(&agent).await;
        world.call(&used).await.unwrap().expect(200);
        for _ in 0..2 {
            world.stack.kill9(&Part::ALL);
            world.stack.restart().await;
            is_refused(&world.call(&used).await.unwrap(), 401, "invalid_token");
        }
        assert_eq!(world.reached(), 1);
        // The one that nobody used may be lost with the process, but never works twice.
        let first = world.call(&unused).await.unwrap();
        is_refused(&world.call(&unused).await.unwrap(), 401, "invalid_token");
        let worked = u64::from(first.status == 200);
        assert!(worked == 1 || first.status == 401, "{first:?}");
        assert_eq!(world.reached(), 1 + worked);
        // What was granted before the kill is there after it.
        let mandate = world.mandate(&agent).await;
        world.call(&mandate).await.unwrap().expect(200);
    }

    async fn a_revocation_outlives_a_restart(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        let agent = world.agent().await;
        let mandate = world.mandate(&agent).await;
        world.revokes(&agent).await;
        world.stack.kill9(&Part::ALL);
        world.stack.restart().await;
        is_refused(&world.call(&mandate).await.unwrap(), 401, "invalid_token");
        is_refused(&world.mint(&agent).await.unwrap(), 403, "access_denied");
        assert_eq!(world.reached(), 0);
    }

    async fn an_orderly_stop_loses_no_evidence_and_ends_well(stack: Arc<Stack>) {
        let world = World::new(stack).await;
        let agent = world.agent().await;
        let mut calls = Vec::new();
        for _ in 0..20 {
            let mandate = world.mandate(&agent).await;
            calls.push(world.call(&mandate).await.unwrap().expect(200).request_id());
        }
        assert_eq!(world.stack.stop(), Vec::<&str>::new(), "processes that did not end well");
        world.stack.restart().await;
        for id in calls {
            world.is_recorded(&id, CALLED).await;
        }
    }
}
