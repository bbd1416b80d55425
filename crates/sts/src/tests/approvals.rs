//! Approvals, row by row (spec: sts §11).

use std::fmt::Write as _;
use std::time::Duration;

use caracal_model::Mandate;
use caracal_store::approvals::Approval;
use serde_json::json;

use super::gated::Gated;
use super::told::is_whole;
use super::*;

/// The claims of a token, unverified.
fn claims(body: &Value) -> Mandate {
    let jws = Jws::parse(body["access_token"].as_str().unwrap()).unwrap();
    serde_json::from_slice(jws.payload()).unwrap()
}

fn short(body: &Value) -> String {
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    format!("{}: {}", text("error"), text("error_description"))
}

caracal_store::on_each_engine! {
    async fn a_gated_allow_is_held_until_a_human_approves_and_good_for_one_mandate(store: Store) {
        let gated = Gated::start(store).await;
        let (status, body) = gated.mint("desk:read", &[]).await;
        assert_eq!(status, 200, "what has no tier needs nobody: {body}");

        let seen = gated.evidence().await.len();
        let mut fields = caller("z1", "app-z1", "cs_of_z1");
        fields.extend([("resource", "resource://desk"), ("scope", "desk:write"),
            ("agent_session_id", "s2"), ("delegation_edge_id", "e1")]);
        let (status, headers, body) = gated.sts.send(exchange(&fields)).await;
        assert_eq!((status.as_u16(), short(&body).as_str()),
            (401, "interaction_required: Human approval required for this request"));
        assert_eq!(headers["www-authenticate"], "Bearer error=\"interaction_required\"");
        assert_eq!((&body["tier"], &body["approval_type"]), (&json!("high"), &json!("human_approval")));
        let id = body["approval_id"].as_str().unwrap().to_owned();
        let hold = gated.hold(&id).await;
        assert_eq!((&body["binding"], hold.binding.len()), (&json!(hold.binding), 64));
        assert_eq!(body["approval_expires_at"], hold.expires_at.iso_seconds());
        assert_eq!(hold.expires_at.since(hold.created_at), Duration::from_secs(4 * 3600));
        assert_eq!(hold.subject_anchor.as_deref(), Some("user_1"));
        assert_eq!(hold.metadata["resources"], json!(["resource://desk"]));
        assert_eq!(hold.metadata["policy_set_version_id"], "v1");
        assert_eq!(hold.metadata["agent_labels"], json!(["desk"]));
        assert_eq!(gated.kinds(seen).await, ["step_up_issued pending complete",
            "token_exchange deny complete", "token_exchange deny exchange_denied"]);
        let issued = &gated.evidence().await[seen];
        assert_eq!(issued.metadata_text("challenge_id").as_deref(), Some(&*id));
        assert_eq!(issued.metadata_text("subject_anchor").as_deref(), Some("user_1"));

        let seen = gated.evidence().await.len();
        assert_eq!(gated.held("desk:write", &[]).await, id, "the same request, the same hold");
        assert_eq!(gated.kinds(seen).await,
            ["token_exchange deny complete", "token_exchange deny exchange_denied"]);
        assert_ne!(gated.held("desk:any", &[]).await, id, "other scopes, another hold");

        assert!(gated.operator(&id, true).await);
        let seen = gated.evidence().await.len();
        let (status, body) = gated.mint("desk:write", &[]).await;
        assert_eq!(status, 200, "also without approval_id: {body}");
        let mandate = claims(&body);
        let zone = ZoneId::trusted("z1");
        let record = gated.store.zone(&zone).authority_record(&mandate.sid).await.unwrap().unwrap();
        assert_eq!((record.status.as_str(), record.expires_at.unix_seconds()), ("active", mandate.exp));
        assert_eq!(gated.hold(&id).await.issued_record_id, Some(mandate.sid));
        assert_eq!(gated.kinds(seen).await,
            ["step_up_consumed consumed complete", "token_exchange allow complete"]);
        assert_ne!(gated.held("desk:write", &[]).await, id, "the next one is asked for anew");
        assert!(gated.store.approval_evidence(super::gated::later(60), 10).await.unwrap().is_empty());
        gated.stop().await;
    }

    async fn a_no_counts_until_the_hold_expires_and_classes_that_conflict_are_refused(store: Store) {
        let gated = Gated::start(store).await;
        let id = gated.held("desk:write", &[]).await;
        assert!(gated.operator(&id, false).await);
        let seen = gated.evidence().await.len();
        let (status, body) = gated.mint("desk:write", &[]).await;
        assert_eq!((status.as_u16(), short(&body).as_str()), (403, "access_denied: approval was rejected"));
        assert_eq!(gated.kinds(seen).await,
            ["token_exchange deny approval_rejected", "token_exchange deny exchange_denied"]);
        gated.expire(&id).await;
        assert_ne!(gated.held("desk:write", &[]).await, id);

        let seen = gated.evidence().await.len();
        let (status, body) = gated.mint("desk:write desk:pay", &[]).await;
        assert_eq!((status.as_u16(), &body["error"]), (403, &json!("access_denied")));
        assert_eq!(gated.kinds(seen).await,
            ["token_exchange deny approval_class_conflict", "token_exchange deny exchange_denied"]);
        gated.stop().await;
    }

    async fn what_is_presented_must_fit_and_is_answered_by_its_state(store: Store) {
        let gated = Gated::start(store).await;
        let mut table = String::new();
        let id = gated.held("desk:write", &[]).await;
        let present = async |scope: &str, id: &str, more: &[(&str, &str)]| {
            let seen = gated.evidence().await.len();
            let mut fields = vec![("approval_id", id)];
            fields.extend_from_slice(more);
            let (status, body) = gated.mint(scope, &fields).await;
            let statuses: Vec<String> = gated.kinds(seen).await;
            (format!("{} {} [{}]", status.as_u16(), short(&body), statuses.join(", ")), body)
        };
        let elsewhere = [("agent_session_id", "s4"), ("delegation_edge_id", "e2")];
        let nowhere = [("agent_session_id", "s9"), ("delegation_edge_id", "e1")];
        let (none, unknown) = (&elsewhere[..0], "5c0e0000-0000-4000-8000-000000000000");
        let rows = [
            ("not a UUID", "desk:write", "a1", none),
            ("unknown", "desk:write", unknown, none),
            ("other scopes", "desk:any", &id, none),
            ("not gated", "desk:read", &id, none),
            ("other session", "desk:write", &id, &elsewhere[..]),
            ("before the session", "desk:any", &id, &nowhere[..]),
            ("pending", "desk:write", &id, none),
        ];
        for (case, scope, id, more) in rows {
            writeln!(table, "{case:<18} | {}", present(scope, id, more).await.0).unwrap();
        }
        gated.operator(&id, true).await;
        gated.activate("v2").await;
        let (row, _) = present("desk:write", &id, &[]).await;
        writeln!(table, "{:<18} | {row}", "other policy").unwrap();
        gated.activate("v1").await;
        let (row, body) = present("desk:write", &id, &[("ttl_seconds", "300")]).await;
        writeln!(table, "{:<18} | {row}", "approved").unwrap();
        let first = claims(&body);
        let (row, body) = present("desk:write", &id, &[]).await;
        writeln!(table, "{:<18} | {row}", "again").unwrap();
        let second = claims(&body);
        assert_eq!((&first.sid, &first.root_sid), (&second.sid, &second.root_sid));
        assert!(first.jti != second.jti && second.exp <= first.exp, "no more life than the record");
        gated.spent_long_ago(&id).await;
        writeln!(table, "{:<18} | {}", "two minutes later", present("desk:write", &id, &[]).await.0).unwrap();

        let revoked = gated.held("desk:write", &[]).await;
        gated.operator(&revoked, true).await;
        let (_, body) = present("desk:write", &revoked, &[]).await;
        gated.revoke(claims(&body).sid.as_str()).await;
        writeln!(table, "{:<18} | {}", "record revoked", present("desk:write", &revoked, &[]).await.0).unwrap();
        let expired = gated.held("desk:write", &[]).await;
        gated.operator(&expired, true).await;
        gated.expire(&expired).await;
        writeln!(table, "{:<18} | {}", "expired", present("desk:write", &expired, &[]).await.0).unwrap();
        let rejected = gated.held("desk:write", &[]).await;
        gated.operator(&rejected, false).await;
        writeln!(table, "{:<18} | {}", "rejected", present("desk:write", &rejected, &[]).await.0).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        not a UUID         | 401 access_denied: approval not found or bindings do not match [token_exchange deny approval_invalid]
        unknown            | 401 access_denied: approval not found or bindings do not match [token_exchange deny approval_invalid]
        other scopes       | 401 access_denied: approval not found or bindings do not match [token_exchange deny approval_invalid]
        not gated          | 401 access_denied: approval not found or bindings do not match [token_exchange deny approval_invalid]
        other session      | 401 access_denied: approval not found or bindings do not match [token_exchange deny approval_invalid]
        before the session | 401 access_denied: approval not found or bindings do not match [token_exchange deny approval_invalid]
        pending            | 401 interaction_required: Human approval required for this request [token_exchange deny exchange_denied]
        other policy       | 401 access_denied: approval not found or bindings do not match [token_exchange deny approval_invalid]
        approved           | 200 :  [step_up_consumed consumed complete, token_exchange allow complete]
        again              | 200 :  [step_up_consumed consumed complete, token_exchange allow complete]
        two minutes later  | 409 approval_consumed: approval was used already [token_exchange deny approval_already_consumed]
        record revoked     | 409 approval_consumed: approval was used already [token_exchange deny approval_already_consumed]
        expired            | 401 access_denied: approval has expired [token_exchange deny approval_expired]
        rejected           | 403 access_denied: approval was rejected [token_exchange deny approval_rejected]
        "); }
        gated.stop().await;
    }

    async fn a_denial_never_spends_an_approval(store: Store) {
        let gated = Gated::start(store).await;
        let id = gated.held("desk:write", &[]).await;
        gated.operator(&id, true).await;
        let (status, _) = gated.mint("desk:write", &[("approval_id", &id), ("ttl_seconds", "9999")]).await;
        assert_eq!(status, 400);
        assert_eq!(gated.hold(&id).await.consumed_at, None);
        let (status, _) = gated.mint("desk:write", &[("approval_id", &id)]).await;
        assert_eq!(status, 200);
        gated.stop().await;
    }

    async fn users_decide_in_the_order_of_the_checks(store: Store) {
        let gated = Gated::start(store).await;
        let paying = gated.held("desk:pay", &[]).await;
        let operator = gated.held("desk:write", &[]).await;
        let unanchored = gated.held("desk:any", &[("agent_session_id", "s4"), ("delegation_edge_id", "e2")]).await;
        let hold = gated.hold(&paying).await;
        let yes = json!({"decision": "approved", "binding": hold.binding});
        let of = |hold: &Approval| json!({"decision": "approved", "binding": hold.binding});
        let unknown = "5c0e0000-0000-4000-8000-000000000000";
        let user = gated.signed_in("r-again", "user_1", json!({})).await;
        let application = json!({"sub_type": "application", "sub": "app-z1"});
        let elsewhere = json!({"client_id": "app-z2"});
        let (paying_id, operator_id, unanchored_id) = (&*paying, &*operator, &*unanchored);
        let by = async |record: &str, subject: &str, change: Value| gated.signed_in(record, subject, change).await;
        let nobody = String::new;
        let bad = || "x".to_owned();
        let mut table = String::new();
        let rows: Vec<(&str, &str, String, Value)> = vec![
            ("not a UUID", "a1", nobody(), json!(1)),
            ("no bearer", unknown, nobody(), json!(1)),
            ("no object", unknown, bad(), json!(1)),
            ("other decision", unknown, bad(), json!({"decision": "maybe", "binding": "b"})),
            ("no binding", unknown, bad(), json!({"decision": "approved"})),
            ("long reason", unknown, bad(), json!({"decision": "approved", "binding": "b", "reason": "r".repeat(501)})),
            ("unknown", unknown, bad(), yes.clone()),
            ("no mandate", paying_id, bad(), yes.clone()),
            ("gateway mandate", paying_id, by("r-again", "user_1", json!({"use": "gateway"})).await, yes.clone()),
            ("an application", paying_id, by("r-again", "app-z1", application).await, yes.clone()),
            ("revoked record", paying_id, by("r-revoked", "user_1", json!({})).await, yes.clone()),
            ("no record", paying_id, by("r-none", "user_1", json!({})).await, yes.clone()),
            ("another's record", paying_id, by("r-other", "user_1", json!({})).await, yes.clone()),
            ("other application", paying_id, by("r-elsewhere", "user_1", elsewhere).await, yes.clone()),
            ("class operator", operator_id, user.clone(), of(&gated.hold(&operator).await)),
            ("another user", paying_id, by("r-other", "user_2", json!({})).await, yes.clone()),
            ("of another issuer", paying_id, by("r-namesake", "user_1", json!({})).await, yes.clone()),
            ("the agent's own", paying_id, by("r-user", "user_1", json!({})).await, yes.clone()),
            ("a child of it", paying_id, by("r-child", "user_1", json!({})).await, yes.clone()),
            ("other binding", paying_id, user.clone(), json!({"decision": "approved", "binding": "00"})),
            ("yes", paying_id, user.clone(), json!({"decision": "approved", "binding": hold.binding, "reason": "lunch"})),
            ("twice", paying_id, user.clone(), yes.clone()),
            ("no anchor", unanchored_id, by("r-other", "user_2", json!({})).await,
             json!({"decision": "rejected", "binding": gated.hold(&unanchored).await.binding})),
        ];
        for (case, id, token, body) in rows {
            gated.news().await;
            let (status, headers, body) = gated.decides(&token, id, &body).await;
            is_whole(case, status, &headers, &body);
            let recorded = gated.news().await.len();
            assert_eq!(recorded, usize::from(status == 200), "{case}: what is refused changes nothing");
            let challenged = headers.contains_key("www-authenticate");
            let state = body["state"].as_str().unwrap_or_default();
            let said = if status == 200 { state.to_owned() } else { short(&body) };
            let mark = if challenged { " (challenged)" } else { "" };
            writeln!(table, "{case:<18} | {} {said}{mark}", status.as_u16()).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        not a UUID         | 404 resource_not_found: approval not found
        no bearer          | 401 invalid_token: a user's session mandate is required as bearer (challenged)
        no object          | 400 invalid_token: decision must be approved or rejected
        other decision     | 400 invalid_token: decision must be approved or rejected
        no binding         | 400 invalid_token: binding is required: that of the hold
        long reason        | 400 invalid_token: reason is longer than 500 bytes
        unknown            | 404 resource_not_found: approval not found
        no mandate         | 401 invalid_token: invalid subject_token (challenged)
        gateway mandate    | 401 invalid_token: invalid subject_token (challenged)
        an application     | 403 access_denied: only a federated user can decide here
        revoked record     | 403 access_denied: the session is not live, or is with another application
        no record          | 403 access_denied: the session is not live, or is with another application
        another's record   | 403 access_denied: the session is not live, or is with another application
        other application  | 403 access_denied: the session is not live, or is with another application
        class operator     | 403 access_denied: this approval is for an operator to decide
        another user       | 403 access_denied: this approval is for another user to decide
        of another issuer  | 403 access_denied: this approval is for a user of another issuer to decide
        the agent's own    | 403 access_denied: the agent acts with this very session: sign in anew to decide
        a child of it      | 403 access_denied: the agent acts with this very session: sign in anew to decide
        other binding      | 409 access_denied: binding is not that of the hold
        yes                | 200 approved
        twice              | 409 access_denied: approval is not pending
        no anchor          | 200 rejected
        "); }
        let decided = gated.hold(&paying).await;
        assert_eq!(decided.approver_record_id.as_ref().map(|id| id.as_str()), Some("r-again"));
        let approver = decided.approver.unwrap();
        assert!(approver.starts_with("subject:pseudonym:") && !approver.contains("user_1"), "{approver}");
        let events = gated.evidence().await;
        let event = events.iter().find(|event| event.event_type == "step_up_decided").unwrap();
        assert_eq!((&*event.decision, &*event.request_id), ("approved", &*paying));
        assert_eq!(event.metadata_text("approver_plane").as_deref(), Some("subject"));
        assert_eq!(event.metadata_text("approver_session_id").as_deref(), Some("r-again"));
        assert_eq!(event.metadata_text("reason").as_deref(), Some("lunch"));
        assert!(!event.to_wire().contains("user_1"), "a pseudonym is all that is kept");
        let (status, _) = gated.mint("desk:pay", &[]).await;
        assert_eq!(status, 200);
        gated.stop().await;
    }

    async fn a_workload_or_an_anonymous_hold_names_nobody(store: Store) {
        let gated = Gated::start(store).await;
        let id = gated.held("desk:hide", &[]).await;
        let user = gated.signed_in("r-again", "user_1", json!({})).await;
        let body = json!({"decision": "approved", "binding": gated.hold(&id).await.binding});
        assert_eq!(gated.decides(&user, &id, &body).await.0, 200);
        assert_eq!(gated.hold(&id).await.approver.as_deref(), Some("subject:redacted"));
        for event in gated.evidence().await.iter().filter(|e| e.event_type.starts_with("step_up")) {
            assert!(!event.to_wire().contains("user_1"), "{}", event.to_wire());
        }
        gated.stop().await;
    }

    async fn whoever_waits_is_woken_by_the_decision_on_any_replica(store: Store) {
        let [here, there] = Gated::replicas(store).await;
        for (path, expected) in [("a1", 404), ("5c0e0000-0000-4000-8000-000000000000", 404)] {
            assert_eq!(here.standing(path, "?wait=1").await.0, expected);
        }
        let id = here.held("desk:write", &[]).await;
        for wait in ["?wait=-1", "?wait=", "?wait=1.5", "?wait=1&wait=1"] {
            let (status, body) = here.standing(&id, wait).await;
            assert_eq!((status.as_u16(), &body["error"]), (400, &json!("invalid_token")), "{wait}");
        }
        let (status, body) = here.standing(&id, "").await;
        let expires = here.hold(&id).await.expires_at.iso_seconds();
        assert_eq!((status.as_u16(), body), (200, json!({"id": id, "state": "pending", "expires_at": expires})));
        let (_, body) = here.standing(&id, "?wait=1").await;
        assert_eq!(body["state"], "pending", "at the deadline");

        let waits = async |gated: &Gated| {
            let (status, body) = gated.standing(&id.to_ascii_uppercase(), "?wait=99999999999999999999").await;
            (status.as_u16(), body["state"].as_str().unwrap().to_owned())
        };
        let decides = async {
            while here.sts.sts.waiters.awaited(None).is_empty() || there.sts.sts.waiters.awaited(None).is_empty() {
                tokio::task::yield_now().await;
            }
            assert!(there.operator(&id, true).await);
        };
        let (one, two, three, ()) = tokio::join!(waits(&here), waits(&here), waits(&there), decides);
        let woken = (200, "approved".to_owned());
        assert_eq!([one, two, three], [woken.clone(), woken.clone(), woken]);
        assert!(here.sts.sts.waiters.awaited(None).is_empty());

        // A process that stops keeps nobody waiting.
        let id = here.held("desk:any", &[]).await;
        here.sts.sts.waiters.close();
        assert_eq!(here.standing(&id, "?wait=25").await.1["state"], "pending");
        here.stop().await;
        there.stop().await;
    }

    async fn so_many_may_wait_for_a_hold_and_no_more(store: Store) {
        let gated = Gated::start(store).await;
        let id = gated.held("desk:write", &[]).await;
        let waits = futures_util::future::join_all((0..16).map(|_| gated.standing(&id, "?wait=25")));
        let decides = async {
            while gated.sts.sts.waiters.taken() < 16 {
                tokio::task::yield_now().await;
            }
            let (status, body) = gated.standing(&id, "?wait=25").await;
            assert_eq!((status.as_u16(), &body["error"]), (429, &json!("provider_rate_limited")));
            assert_eq!(gated.standing(&id, "").await.1["state"], "pending", "a look needs no seat");
            assert!(gated.operator(&id, false).await);
        };
        let (waited, ()) = tokio::join!(waits, decides);
        assert!(waited.iter().all(|(status, body)| *status == 200 && body["state"] == "rejected"));
        assert_eq!(gated.sts.sts.waiters.taken(), 0, "every seat is given back");
        gated.stop().await;
    }

    async fn evidence_that_a_crash_left_behind_is_recorded_once_by_whoever_finds_it(store: Store) {
        let gated = Gated::start(store).await;
        let sts = &gated.sts.sts;
        gated.held("desk:write", &[]).await;
        let issued = gated.evidence().await.remove(0);
        let mut tx = gated.store.begin("as if nobody had recorded it").await.unwrap();
        let (zone, text) = (ZoneId::trusted("z1"), issued.to_wire());
        let witness = caracal_store::approvals::Witness { event_id: issued.id.as_str(), event: &text };
        let long_ago = caracal_model::Timestamp::from_unix_seconds(1);
        tx.zone(&zone).approvals().witness(witness, long_ago).await.unwrap();
        tx.commit().await.unwrap();
        let before = gated.evidence().await.len();
        crate::approval::record_left_behind(sts).await.unwrap();
        let after = gated.evidence().await;
        assert_eq!(after.len(), before + 1);
        assert_eq!(after[before].to_wire(), text, "the same id, the same text: Audit takes it once");
        crate::approval::record_left_behind(sts).await.unwrap();
        assert_eq!(gated.evidence().await.len(), before + 1);
        gated.stop().await;
    }
}
