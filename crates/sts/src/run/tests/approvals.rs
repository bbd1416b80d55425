//! Credentials that need an approval.

use super::*;

caracal_store::on_each_engine! {
    async fn a_policy_that_changes_before_an_approval_is_spent_is_a_conflict(store: Store) {
        let stage = Stage::set(store).await;
        let (_, _, body) = stage.at.send(credential("PURGE", &[])).await;
        let id = body["approval_id"].as_str().unwrap().to_owned();
        stage.decide(&id, true).await;
        // Committed, and not known here yet: what this replica decides by is what was approved.
        stage.put_in_force(GATED, false).await;
        for more in [&[("approval_id", &*id)][..], &[]] {
            let refused = stage.refusal("policy changed", credential("PURGE", more), 1).await;
            assert_eq!(refused, "policy changed             | 409 access_denied: the policy changed since it was \
                approved: launch again\n    token_exchange deny approval_policy_changed");
        }
        // Nothing was spent for it.
        let hold = stage.store.find_approval(&ApprovalId::trusted(&*id)).await.unwrap().unwrap();
        assert_eq!(hold.consumed_at, None);
    }

    async fn a_policy_that_changes_while_approvals_are_spent_releases_nothing_after_it(store: Store) {
        let stage = Stage::set(store).await;
        for _ in 0..6 {
            let (_, _, body) = stage.at.send(credential("PURGE", &[])).await;
            let id = body["approval_id"].as_str().unwrap().to_owned();
            stage.decide(&id, true).await;
            let with = [("approval_id", &*id)];
            let all = (0..6).map(|_| stage.at.send(credential("PURGE", &with)));
            let all = futures_util::future::join_all(all);
            let (answers, ()) = tokio::join!(all, stage.policy(GATED));
            let released = answers.iter().filter(|(status, _, _)| *status == 200).count();
            assert!(released <= 1, "one approval, one release");
            for (status, _, body) in answers.iter().filter(|(status, _, _)| *status != 200) {
                let error = body["error"].as_str().unwrap();
                let told = [(409, "approval_consumed"), (409, "access_denied"), (401, "access_denied")];
                assert!(told.contains(&(status.as_u16(), error)), "{status} {body}");
                assert!(!body.to_string().contains(CANARY));
            }
            // The change is in force: what was approved before it opens nothing any more.
            let (status, _, body) = stage.at.send(credential("PURGE", &with)).await;
            assert_eq!((status.as_u16(), body.get("credential")), (401, None), "{body}");
        }
    }

    async fn a_gated_credential_is_released_once_for_one_approval(store: Store) {
        let stage = Stage::set(store).await;
        let held = launched(credential("PURGE", &[]), "r1", LAUNCH);
        let (status, headers, body) = stage.at.send(held).await;
        assert_eq!((status.as_u16(), &body["error"]), (401, &json!("interaction_required")), "{body}");
        assert_eq!(headers["www-authenticate"], "Bearer error=\"interaction_required\"");
        assert_eq!((&body["approval_type"], &body["tier"]), (&json!("human_approval"), &json!("high")));
        let id = body["approval_id"].as_str().unwrap().to_owned();
        let events = stage.at.events("r1", 2).await;
        let issued = events.iter().find(|event| event["event_type"] == "step_up_issued").unwrap();
        assert_eq!(issued["metadata_json"]["workload_id"], "w1");
        assert_eq!(issued["metadata_json"]["launch_id"], LAUNCH);
        let denied = events.iter().find(|event| event["event_type"] == "token_exchange").unwrap();
        assert_eq!((&denied["decision"], &denied["evaluation_status"]), (&json!("deny"), &json!("complete")));
        // Whether or not it is ever spent, the hold can be decided again.
        assert_eq!(denied["metadata_json"]["policy_decision"], "hold");
        let asked = &denied["metadata_json"]["policy_input"];
        let asked = caracal_policy::recorded(asked, "r1").unwrap();
        let zone = stage.at.sts.views.zone(&stage.zone).await.unwrap();
        let again = zone.policy.contract.evaluate(&asked).unwrap();
        assert!(again.allow && again.step_up().is_some(), "{again:?}");

        // Again, with or without the id: the same hold, and nothing is released.
        let with = [("approval_id", &*id)];
        for (more, on_record) in [(&[][..], "deny complete"), (&with, "deny credential_injection_denied")] {
            let told = stage.sent("pending", credential("PURGE", more), 1).await;
            assert_eq!((told.status.as_u16(), &told.body["approval_id"]), (401, &json!(id)), "{}", told.body);
            assert_eq!(super::on_record("pending", &told.headers, &told.events), [on_record]);
        }
        stage.decide(&id, true).await;
        // It is for this variable's resource and scopes alone.
        let refused = stage.refusal("another variable", credential("MAIL", &with), 1).await;
        assert_eq!(refused, "another variable           | 401 access_denied: approval not found or bindings do \
            not match\n    token_exchange deny approval_invalid");
        let used = launched(credential("PURGE", &with), "r2", LAUNCH);
        let body = json!({"env": "PURGE", "credential": CANARY});
        let spent = ["step_up_consumed consumed complete", "allow complete"];
        let events = stage.released("approved", used, &body, &spent).await;
        for event in &events {
            let about = &event["metadata_json"];
            assert_eq!((&about["workload_id"], &about["launch_id"]), (&json!("w1"), &json!(LAUNCH)), "{event}");
        }
        assert!(events.iter().any(|event| event["metadata_json"]["challenge_id"] == *id));
        // Nothing is released twice for one approval, not even a moment later.
        let again = stage.refusal("again", credential("PURGE", &with), 1).await;
        assert_eq!(again, "again                      | 409 approval_consumed: approval was used already\n    \
            token_exchange deny approval_already_consumed");
    }

    async fn an_approved_launch_needs_no_id_and_a_rejected_one_stays_rejected(store: Store) {
        let stage = Stage::set(store).await;
        let hold = async || {
            let (_, _, body) = stage.at.send(credential("PURGE", &[])).await;
            body["approval_id"].as_str().unwrap_or_default().to_owned()
        };
        stage.decide(&hold().await, true).await;
        let body = json!({"env": "PURGE", "credential": CANARY});
        let spent = ["step_up_consumed consumed complete", "allow complete"];
        stage.released("approved, and no id sent", credential("PURGE", &[]), &body, &spent).await;
        let second = hold().await;
        stage.decide(&second, false).await;
        for more in [&[][..], &[("approval_id", &*second)]] {
            let refused = stage.refusal("rejected", credential("PURGE", more), 1).await;
            assert_eq!(refused, "rejected                   | 403 access_denied: approval was rejected\n    \
                token_exchange deny approval_rejected");
        }
    }

    async fn an_approval_is_for_the_policy_that_asked_for_it(store: Store) {
        let stage = Stage::set(store).await;
        let (_, _, body) = stage.at.send(credential("PURGE", &[])).await;
        let id = body["approval_id"].as_str().unwrap().to_owned();
        stage.decide(&id, true).await;
        stage.policy(GATED).await;
        let refused = stage.refusal("other policy", credential("PURGE", &[("approval_id", &id)]), 1).await;
        assert_eq!(refused, "other policy               | 401 access_denied: approval not found or bindings do \
            not match\n    token_exchange deny approval_invalid");
        let (status, _, body) = stage.at.send(credential("PURGE", &[])).await;
        assert_eq!((status.as_u16(), &body["error"]), (401, &json!("interaction_required")));
        assert_ne!(body["approval_id"], id, "a new hold");
    }

    async fn many_at_once_spend_one_approval_once(store: Store) {
        let stage = Stage::set(store).await;
        let (_, _, body) = stage.at.send(credential("PURGE", &[])).await;
        let id = body["approval_id"].as_str().unwrap().to_owned();
        stage.decide(&id, true).await;
        let with = [("approval_id", &*id)];
        let all = (0..12).map(|_| stage.at.send(credential("PURGE", &with)));
        let answers = futures_util::future::join_all(all).await;
        let released = answers.iter().filter(|(status, _, _)| *status == 200).count();
        assert_eq!(released, 1);
        for (status, _, body) in answers.iter().filter(|(status, _, _)| *status != 200) {
            assert_eq!((status.as_u16(), &body["error"]), (409, &json!("approval_consumed")), "{body}");
        }
    }
}
