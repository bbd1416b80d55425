//! Approvals, the operator's side (spec: admin-api §9).

use std::fmt::Write as _;
use std::time::Duration;

use caracal_model::{ApplicationId, ApprovalId, RecordId, Timestamp, ZoneId};
use caracal_store::approvals::{Approval, Witness};
use serde_json::{Value, json};

use super::Stack;
use super::stack::BOOTSTRAP;
use crate::on_stack;

/// As the STS issues one.
async fn hold(stack: &Stack, zone: &ZoneId, id: &str, change: impl FnOnce(&mut Approval)) {
    let now = stack.api.clock.now();
    let ends = now.plus(Duration::from_secs(600));
    let mut hold = Approval {
        principal_id: "app-1".to_owned(),
        application_id: Some(ApplicationId::trusted("app-1")),
        tier: "high".to_owned(),
        privacy_mode: "pseudonymous".to_owned(),
        subject_anchor: Some("user_123".to_owned()),
        binding: format!("binding-of-{id}"),
        metadata: json!({"resources": ["resource://crm"], "agent_labels": ["crm"]}),
        ..Approval::undecided(ApprovalId::trusted(id), zone.clone(), now, ends)
    };
    change(&mut hold);
    let mut tx = stack.store.begin("a test's hold").await.unwrap();
    let event = Witness {
        event_id: id,
        event: "{}",
    };
    assert!(tx.zone(zone).approvals().issue(&hold, event).await.unwrap());
    tx.commit().await.unwrap();
    stack.store.approval_evidence_recorded(&[id]).await.unwrap();
}

on_stack! {
    async fn the_overview_of_a_subject_counts_the_approvals_that_concern_it(stack: Stack) {
        let zone = stack.zone("Concerned").await;
        let mut tx = stack.store.begin("a test's record").await.unwrap();
        let now = stack.api.clock.now();
        let record = caracal_store::authority_records::AuthorityRecord {
            id: caracal_model::RecordId::trusted("r-anchored"),
            record_type: "user".to_owned(),
            subject_id: "user_123".to_owned(),
            client_id: "app-1".to_owned(),
            parent_id: None,
            status: "active".to_owned(),
            expires_at: now.plus(Duration::from_secs(600)),
            created_at: now,
            revoked_at: None,
            revoked_reason: None,
            issuer: None,
        };
        tx.zone(&zone).add_authority_records(&[record]).await.unwrap();
        tx.commit().await.unwrap();
        let path = format!("/v1/zones/{zone}/subjects/overview?subject_id=user_123");
        let seen = async || stack.get(&path).await.is(200)["approvals"].clone();
        assert_eq!(seen().await, json!({"pending": 0, "total": 0}));
        let past = Timestamp::from_unix_seconds(1);
        hold(&stack, &zone, "c1", |hold| hold.approver_class = "any".to_owned()).await;
        hold(&stack, &zone, "c2", |hold| hold.expires_at = past).await;
        hold(&stack, &zone, "c3", |hold| hold.subject_anchor = None).await;
        assert_eq!(seen().await, json!({"pending": 1, "total": 2}));
        let reject = format!("/v1/zones/{zone}/approvals/c1/reject");
        stack.send("POST", &reject, json!({})).await.is(200);
        assert_eq!(seen().await, json!({"pending": 0, "total": 2}));
    }

    async fn an_operator_decides_once_and_only_what_is_for_an_operator(stack: Stack) {
        let zone = stack.zone("Approvals").await;
        let other = stack.zone("Others").await;
        let z = format!("/v1/zones/{zone}/approvals");
        let approve = stack.token("approve", Some(&zone)).await;
        let past = Timestamp::from_unix_seconds(1);
        hold(&stack, &zone, "a1", |_| {}).await;
        hold(&stack, &zone, "a2", |hold| hold.approver_class = "subject".to_owned()).await;
        hold(&stack, &zone, "a3", |hold| hold.approver_class = "any".to_owned()).await;
        hold(&stack, &zone, "a4", |hold| hold.expires_at = past).await;
        let long = json!({"reason": "r".repeat(501)}).to_string();
        let mut table = String::new();
        for (case, path, body) in [
            ("approve", format!("{z}/a1/approve"), r#"{"reason":"known customer"}"#),
            ("twice", format!("{z}/a1/approve"), ""),
            ("reject after", format!("{z}/a1/reject"), "{}"),
            ("of the user", format!("{z}/a2/approve"), "{}"),
            ("of either", format!("{z}/a3/reject"), r#"{"reason":null}"#),
            ("expired", format!("{z}/a4/approve"), "{}"),
            ("unknown", format!("{z}/a9/approve"), "{}"),
            ("reason too long", format!("{z}/a2/reject"), long.as_str()),
            ("no object", format!("{z}/a2/reject"), "[]"),
            ("another zone", format!("/v1/zones/{other}/approvals/a3/approve"), "{}"),
        ] {
            let reply = stack.send_as(&approve, "POST", &path, body).await;
            let said = match reply.body["error"].as_str() {
                Some(_) => format!("{reply} {}", reply.body["state"]),
                None => format!("{} {}", reply.status.as_u16(), reply.body["state"]),
            };
            writeln!(table, "{case:<15} {said}").unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r#"
        approve         200 "approved"
        twice           409 approval_not_decidable: the approval was decided or is over "approved"
        reject after    409 approval_not_decidable: the approval was decided or is over "approved"
        of the user     403 subject_approval_required: this approval is for the user to decide, not for an operator null
        of either       200 "rejected"
        expired         409 approval_not_decidable: the approval was decided or is over "expired"
        unknown         404 approval_not_found: there is no approval a9 in this zone null
        reason too long 400 invalid_approval: reason must be 0 to 500 characters null
        no object       400 invalid_approval: the body must be a JSON object null
        another zone    403 admin_token_zone_mismatch: this token belongs to another zone, or the route needs a global token null
        "#); }
        let shown = stack.get(&format!("{z}/a1")).await.is(200);
        assert!(shown["approver_subject_id"].as_str().unwrap().starts_with("admin:"), "{shown}");
        assert_eq!((&shown["decision_reason"], &shown["rejected_at"]), (&json!("known customer"), &Value::Null));
        assert_eq!(stack.get(&format!("/v1/zones/{other}/approvals/a1")).await.text("error"), "approval_not_found");
    }

    async fn a_decision_is_on_record_when_it_is_answered(stack: Stack) {
        let zone = stack.zone("Recorded").await;
        hold(&stack, &zone, "a1", |hold| hold.record_id = Some(RecordId::trusted("r1"))).await;
        let before = stack.evidence.stats().persisted;
        let path = format!("/v1/zones/{zone}/approvals/a1/approve");
        let answer = stack.send_as(BOOTSTRAP, "POST", &path, "").await.is(200);
        assert_eq!(answer["rejected_at"], Value::Null);
        assert!(answer["satisfied_at"].as_str().unwrap().ends_with('Z'));
        assert_eq!(stack.evidence.stats().persisted, before + 1);
        let later = stack.api.clock.now().plus(Duration::from_secs(60));
        assert!(stack.store.approval_evidence(later, 10).await.unwrap().is_empty());
    }

    async fn lists_page_and_filter_and_show_every_member(stack: Stack) {
        let zone = stack.zone("Listed").await;
        let z = format!("/v1/zones/{zone}/approvals");
        let now = stack.api.clock.now();
        for (n, id) in ["a1", "a2", "a3"].into_iter().enumerate() {
            hold(&stack, &zone, id, |hold| {
                hold.created_at = now.minus(Duration::from_secs(u64::try_from(10 - n).unwrap()));
                if id == "a2" {
                    hold.tier = "low".to_owned();
                    hold.principal_id = "app-2".to_owned();
                }
            }).await;
        }
        stack.send("POST", &format!("{z}/a3/reject"), json!({})).await.is(200);
        let ids = async |query: &str| {
            let page = stack.get(&format!("{z}?{query}")).await.is(200);
            let items = page["items"].as_array().unwrap();
            let ids: Vec<_> = items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect();
            (ids.join(" "), page["next_cursor"].as_str().map(str::to_owned))
        };
        assert_eq!(ids("").await, ("a3 a2 a1".to_owned(), None));
        let (first, cursor) = ids("limit=2").await;
        assert_eq!(first, "a3 a2");
        assert_eq!(ids(&format!("limit=2&cursor={}", cursor.unwrap())).await, ("a1".to_owned(), None));
        assert_eq!(ids("state=pending").await.0, "a2 a1");
        assert_eq!(ids("state=rejected").await.0, "a3");
        assert_eq!(ids("tier=low").await.0, "a2");
        assert_eq!(ids("principal=app-1&state=pending").await.0, "a1");
        let at = |seconds| now.minus(Duration::from_secs(seconds)).iso_micros();
        assert_eq!(ids(&format!("since={}&until={}", at(9), at(9))).await.0, "a2");
        for query in ["state=open", "tier=", "since=yesterday", "limit=0", "principal=a&principal=b"] {
            assert_eq!(stack.get(&format!("{z}?{query}")).await.text("error"), "invalid_query", "{query}");
        }
        let counts = stack.get(&format!("{z}/counts")).await.is(200);
        assert_eq!(counts, json!({"pending": 2, "approved": 0, "rejected": 1, "expired": 0, "consumed": 0}));
        let mut shown = stack.get(&format!("{z}/a1")).await.is(200);
        for name in ["created_at", "expires_at", "subject_anchor"] {
            assert!(shown[name].take().is_string(), "{name}");
        }
        assert_eq!(shown, json!({
            "id": "a1", "zone_id": zone, "session_id": null, "principal_id": "app-1",
            "application_id": "app-1", "approval_type": "human_approval", "tier": "high",
            "approver_class": "operator", "privacy_mode": "pseudonymous", "subject_anchor": null,
            "binding": "binding-of-a1", "decision_reason": null, "created_at": null,
            "metadata_json": {"resources": ["resource://crm"], "agent_labels": ["crm"]},
            "expires_at": null, "satisfied_at": null, "rejected_at": null, "consumed_at": null,
            "approver_subject_id": null, "principal_federated": false, "prior_approved": 0,
            "prior_rejected": 0, "state": "pending",
        }));
    }
}
