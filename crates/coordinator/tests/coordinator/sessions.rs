//! Sessions: start, read, lease, suspension and end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use caracal_model::{SubjectType, TokenUse};
use caracal_store::params;
use http::HeaderValue;
use serde_json::{Value, json};

use crate::support::{NowPlus, OPERATOR, World, on_each, on_each_with, raw};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_started_listed_and_ended() {
    on_each("task", |world| async move {
        let body = json!({
            "application_id": "app-1", "labels": [" triage "], "ttl_seconds": 900,
            "metadata": {"task": "sort"},
        });
        let answer = world.post("/agents", body).await;
        let mut started = answer.created().clone();
        let id = answer.id();
        started["agent_session_id"] = json!("s");
        insta::allow_duplicates! {
            insta::assert_snapshot!(started, @r#"{"agent_session_id":"s","application_id":"app-1","delegation_edge_id":null,"depth":0,"heartbeat_deadline_at":null,"labels":["triage"],"last_heartbeat_at":null,"lease_generation":0,"lifecycle":"task","parent_id":null,"started_at":"2026-11-23T00:00:00.000Z","status":"active","subject_authority_record_id":"record-app-1","ttl_seconds":900,"zone_id":"zone-a"}"#);
        }
        let row = world.get(&format!("/agents/{id}")).await;
        assert_eq!(row.ok()["metadata"], json!({"task": "sort"}));
        assert_eq!(row.ok()["termination_reason"], Value::Null);
        let list = world.get("/agents?label=triage&lifecycle=task&status=active").await;
        assert_eq!(list.ok()["items"].as_array().unwrap().len(), 1);
        assert_eq!(world.get("/agents?label=tri").await.ok()["items"], json!([]));
        let ended = world.delete(&format!("/agents/{id}?reason=done")).await;
        assert_eq!((ended.status.as_u16(), &ended.body), (204, &json!("")));
        world.delete(&format!("/agents/{id}")).await.is(404, "session_not_found");
        let row = world.get(&format!("/agents/{id}")).await;
        assert_eq!(row.ok()["termination_reason"], "done");
        let revoked = world.news("caracal.sessions.revoke").await;
        assert_eq!(revoked.len(), 1);
        assert_eq!(revoked[0]["agent_session_id"], id);
        assert_eq!(revoked[0].get("session_id"), None);
        let lifecycle = world.news("caracal.agents.lifecycle").await;
        let events: Vec<_> = lifecycle.iter().map(|news| news["event"].as_str()).collect();
        assert_eq!(events, ["spawn", "terminate"]);
        assert_eq!(lifecycle[1]["dedupe_key"], format!("terminate:{id}"));
        let origins = world.origins("caracal.agents.lifecycle").await;
        assert!(origins.iter().all(Option::is_some), "evidence finds its request: {origins:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_go_from_new_to_old_and_end_with_a_short_one() {
    on_each("pages", |world| async move {
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.push(world.task().await);
        }
        ids.reverse();
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = world.get(&format!("/agents?limit=2{cursor}")).await;
            let items = page.ok()["items"].as_array().unwrap();
            seen.extend(
                items
                    .iter()
                    .map(|item| item["agent_session_id"].as_str().unwrap().to_owned()),
            );
            let Some(next) = page.body["next_cursor"].as_str() else {
                break;
            };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen, ids);
        world
            .get("/agents?cursor=nobody")
            .await
            .is(400, "invalid_cursor");
        let foreign = world
            .call(
                &world.lifecycle("app-2"),
                "GET",
                &format!("/agents?cursor={}", ids[0]),
                Value::Null,
            )
            .await;
        foreign.is(400, "invalid_cursor");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_sees_its_own_sessions_and_the_operator_sees_all() {
    on_each("isolation", |world| async move {
        let (id, other) = (world.task().await, world.lifecycle("app-2"));
        world
            .call(&other, "GET", &format!("/agents/{id}"), Value::Null)
            .await
            .is(404, "session_not_found");
        let list = world.call(&other, "GET", "/agents", Value::Null).await;
        assert_eq!(list.ok()["items"], json!([]));
        world
            .call(&other, "DELETE", &format!("/agents/{id}"), Value::Null)
            .await
            .is(403, "application_ownership_required");
        assert_eq!(
            world.operator("GET", "/agents").await.ok()["items"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        let admin = world.lifecycle_with("app-2", "coordinator.admin");
        assert_eq!(
            world
                .call(&admin, "GET", &format!("/agents/{id}"), Value::Null)
                .await
                .status,
            200
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_keeps_its_lease_and_a_new_holder_fences_the_old_one() {
    on_each("lease", |world| async move {
        let id = world.service().await;
        let beat = |generation: i64| json!({ "lease_generation": generation, "status": "healthy" });
        let path = format!("/agents/{id}/heartbeat");
        world.clock.advance(Duration::from_secs(60));
        let answer = world.post(&path, beat(1)).await;
        assert_eq!(
            answer.ok()["agent"]["heartbeat_deadline_at"],
            "2026-11-23T00:03:00.000Z"
        );
        assert_eq!(answer.body["agent"]["lease_generation"], 1);
        let lease = world
            .post(&format!("/agents/{id}/lease"), Value::Null)
            .await;
        assert_eq!(lease.ok()["lease_generation"], 2);
        world
            .post(&path, beat(1))
            .await
            .is(409, "session_lease_fenced");
        world
            .delete(&format!("/agents/{id}"))
            .await
            .is(400, "lease_generation_required");
        let end = |generation: i64| {
            world.call(
                &world.token,
                "DELETE",
                &path[..path.len() - 10],
                beat(generation),
            )
        };
        end(1).await.is(409, "session_lease_fenced");
        assert_eq!(end(2).await.status, 204);
        world.post(&path, beat(2)).await.is(409, "session_not_live");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lapsed_lease_suspends_and_an_operator_brings_it_back() {
    on_each("lapse", |world| async move {
        let id = world.service().await;
        let child = {
            let body = json!({ "application_id": "app-1", "parent_id": id });
            world.post("/agents", body).await.id()
        };
        let path = format!("/agents/{id}/heartbeat");
        let beat = json!({ "lease_generation": 1 });
        world.clock.advance(Duration::from_secs(120));
        world
            .post(&path, beat.clone())
            .await
            .is(409, "session_lease_expired");
        assert_eq!(world.status(&id).await, "suspended");
        assert_eq!(world.status(&child).await, "suspended");
        let still = world.post(&path, beat.clone()).await;
        assert_eq!(still.ok()["agent"]["status"], "suspended");
        world
            .post(&format!("/agents/{id}/lease"), Value::Null)
            .await
            .is(409, "session_suspended");
        world
            .operator("PATCH", &format!("/agents/{id}/suspend"))
            .await
            .is(409, "session_not_found_or_not_active");
        let resumed = world
            .operator("PATCH", &format!("/agents/{id}/resume"))
            .await;
        assert_eq!(resumed.ok(), &json!({ "resumed": 2 }));
        assert_eq!(
            world.post(&path, beat).await.ok()["agent"]["status"],
            "active"
        );
        assert!(world.news("caracal.sessions.revoke").await.is_empty());
        let events: Vec<String> = world
            .news("caracal.agents.lifecycle")
            .await
            .iter()
            .map(|news| {
                format!(
                    "{} {}",
                    news["event"],
                    news.get("reason").map_or("-", |r| r)
                )
            })
            .collect();
        assert_eq!(
            events,
            [
                "spawn -",
                "spawn -",
                "suspend service_heartbeat_lost",
                "suspend service_heartbeat_lost",
                "resume -",
                "resume -",
            ]
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_parent_ends_its_children() {
    on_each("cascade", |world| async move {
        let root = world.task().await;
        let child = world.child(&root, "none").await;
        let grandchild = world.child(&child, "inherit").await;
        let children = world.get(&format!("/agents/{root}/children")).await;
        let item = &children.ok()["items"][0];
        assert_eq!(
            (&item["agent_session_id"], item.get("lease_generation")),
            (&json!(child), None)
        );
        assert_eq!(
            world
                .operator("DELETE", &format!("/agents/{child}"))
                .await
                .status,
            204
        );
        assert_eq!(world.status(&root).await, "active");
        let row = world
            .operator("GET", &format!("/agents/{grandchild}"))
            .await;
        assert_eq!(row.ok()["termination_reason"], "parent_terminated");
        let body = json!({ "application_id": "app-1", "parent_id": child });
        world
            .post("/agents", body)
            .await
            .is(404, "parent_not_found");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_hold_and_what_has_run_out_does_not_count() {
    let settings = [("MAX_AGENTS_PER_ZONE", "4"), ("MAX_AGENTS_PER_APP", "3")];
    on_each_with("quotas", &settings, |world| async move {
        let short = json!({ "application_id": "app-1", "ttl_seconds": 10 });
        for _ in 0..3 {
            world.post("/agents", short.clone()).await.id();
        }
        world
            .post("/agents", short.clone())
            .await
            .is(429, "session_limit_exceeded");
        let other = world.lifecycle("app-2");
        let two = json!({ "application_id": "app-2" });
        let id = world
            .call(&other, "POST", "/agents", two.clone())
            .await
            .id();
        world
            .call(&other, "POST", "/agents", two.clone())
            .await
            .is(429, "session_zone_limit_exceeded");
        world
            .call(&other, "DELETE", &format!("/agents/{id}"), Value::Null)
            .await;
        world.clock.advance(Duration::from_secs(10));
        world.task().await;
        assert_eq!(
            world.news("caracal.sessions.revoke").await.last().unwrap()["reason"],
            "ttl"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_has_ten_children_and_a_line_ten_generations() {
    on_each("bounds", |world| async move {
        let root = world.task().await;
        for _ in 0..10 {
            world.child(&root, "none").await;
        }
        let child = |parent: &str| json!({ "application_id": "app-1", "parent_id": parent });
        world
            .post("/agents", child(&root))
            .await
            .is(429, "session_children_limit_exceeded");
        let mut last = world.task().await;
        for _ in 0..10 {
            last = world.child(&last, "none").await;
        }
        world
            .post("/agents", child(&last))
            .await
            .is(429, "session_depth_limit_exceeded");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dynamically_registered_applications_have_one_root_task() {
    on_each("dcr", |world| async move {
        let token = world.lifecycle("app-dcr");
        let start = |more: Value| {
            let mut body = json!({ "application_id": "app-dcr" });
            body.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let (world, token) = (world.clone(), token.clone());
            async move { world.call(&token, "POST", "/agents", body).await }
        };
        start(json!({ "lifecycle": "service" }))
            .await
            .is(409, "dcr_application_cannot_host_service");
        start(json!({ "parent_id": "x" }))
            .await
            .is(409, "dcr_application_cannot_be_child");
        let id = start(json!({})).await.id();
        start(json!({}))
            .await
            .is(409, "dcr_application_already_bound");
        let body = json!({ "application_id": "app-1", "parent_id": id });
        world
            .post("/agents", body)
            .await
            .is(409, "dcr_application_cannot_start_child");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_gives_one_session_across_new_tokens() {
    on_each("idempotency", |world| async move {
        let start = |token: &str, key: &str, body: Value| {
            let mut request = World::request("POST", "/zones/zone-a/agents", token, Some(&body));
            request
                .headers_mut()
                .insert("idempotency-key", HeaderValue::from_str(key).unwrap());
            request
        };
        let body = json!({ "application_id": "app-1", "metadata": {"b": 1, "a": 2} });
        let first = world.send(start(&world.token, "k", body.clone())).await;
        assert!(!first.headers.contains_key("idempotency-replayed"));
        // A new exchange gives the token another record.
        let later = world.clock.now_plus(3600);
        let record = raw(
            "INSERT INTO authority_records (id, zone_id, record_type, subject_id,
            client_id, status, expires_at, created_at)
            VALUES ('record-new', 'zone-a', 'application', 'app-1', 'app-1', 'active', $1, 0)",
        );
        world.execute(&record, &params![later]).await;
        let mut claims = world.claims("zone-a", "app-1");
        claims.sid = caracal_model::RecordId::trusted("record-new");
        claims.root_sid = claims.sid.clone();
        let token = world.sign("zone-a", &claims);
        let again = world.send(start(&token, "k", body.clone())).await;
        assert_eq!((again.status, &again.body), (first.status, &first.body));
        assert_eq!(again.headers["idempotency-replayed"], "true");
        let other = json!({ "application_id": "app-1", "labels": ["x"] });
        world
            .send(start(&token, "k", other))
            .await
            .is(409, "idempotency_key_conflict");
        world.delete(&format!("/agents/{}", first.id())).await;
        world
            .send(start(&token, "k", body.clone()))
            .await
            .is(409, "idempotency_result_inactive");
        world.clock.advance(Duration::from_secs(604_800));
        let token = world.lifecycle("app-1");
        world
            .send(start(&token, "k", body))
            .await
            .is(401, "identity_revoked");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_record_needs_to_be_the_applications_own_or_proven() {
    on_each("subject", |world| async move {
        world.user_record("user-own", "app-1").await;
        world.user_record("user-other", "app-2").await;
        let start = |record: &str, token: Option<String>| {
            let mut body = json!({ "application_id": "app-1", "subject_session_id": record });
            if let Some(token) = token {
                body["subject_token"] = json!(token);
            }
            let world = world.clone();
            async move { world.post("/agents", body).await }
        };
        start("user-own", None).await.id();
        start("user-other", None)
            .await
            .is(403, "subject_proof_application_mismatch");
        start("record-app-2", None)
            .await
            .is(403, "subject_proof_application_mismatch");
        start("nobody", None).await.is(404, "session_not_found");
        let proof = |record: &str, change: fn(&mut caracal_model::Mandate)| {
            let mut claims = world.claims("zone-a", "app-1");
            claims.sid = caracal_model::RecordId::trusted(record);
            claims.root_sid = claims.sid.clone();
            claims.sub = "user_123".to_owned();
            claims.sub_type = SubjectType::User;
            claims.scope = String::new();
            change(&mut claims);
            Some(world.sign("zone-a", &claims))
        };
        start("user-own", proof("user-own", |_| ())).await.id();
        for (case, change) in [
            (
                "gateway",
                (|c| c.token_use = TokenUse::Gateway) as fn(&mut caracal_model::Mandate),
            ),
            ("scope", |c| c.scope = "agent:lifecycle".to_owned()),
            ("application", |c| c.sub_type = SubjectType::Application),
            ("root", |c| {
                c.root_sid = caracal_model::RecordId::trusted("other")
            }),
            ("expired", |c| c.exp -= 2_000),
            ("audience", |c| c.aud = vec!["https://other".to_owned()]),
            ("target", |c| c.target = vec!["resource://x".to_owned()]),
        ] {
            let answer = start("user-own", proof("user-own", change)).await;
            assert_eq!(
                (answer.status.as_u16(), answer.error()),
                (401, "invalid_subject_proof"),
                "{case}"
            );
        }
        start("user-own", proof("user-other", |_| ()))
            .await
            .is(401, "invalid_subject_proof");
        let foreign = proof("user-own", |c| {
            c.client_id = caracal_model::ApplicationId::trusted("app-2")
        });
        start("user-own", foreign)
            .await
            .is(403, "subject_proof_application_mismatch");
        start("user-own", Some("x".to_owned()))
            .await
            .is(401, "invalid_subject_proof");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_ends_when_its_user_is_gone() {
    on_each("user gone", |world| async move {
        world.user_record("user-1", "app-1").await;
        let body = json!({
            "application_id": "app-1", "lifecycle": "service", "subject_session_id": "user-1",
        });
        let id = world.post("/agents", body).await.id();
        let gone =
            raw("UPDATE authority_records SET status = 'revoked', revoked_at = 1 WHERE id = $1");
        let mut tx = world.store.begin("test").await.unwrap();
        tx.execute(&gone, &params!["user-1"]).await.unwrap();
        tx.change(&caracal_model::Change::Record(
            caracal_model::ZoneId::trusted("zone-a"),
            caracal_model::RecordId::trusted("user-1"),
        ));
        tx.commit().await.unwrap();
        world.coordinator.announce().await;
        let beat = json!({ "lease_generation": 1 });
        let path = format!("/agents/{id}/heartbeat");
        world
            .post(&path, beat)
            .await
            .is(409, "session_subject_inactive");
        assert_eq!(world.status(&id).await, "terminated");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_application_and_a_revoked_record_authenticate_nobody() {
    on_each("identity", |world| async move {
        let old = world.lifecycle("app-old");
        world
            .call(&old, "GET", "/agents", Value::Null)
            .await
            .is(401, "identity_revoked");
        let mut claims = world.claims("zone-a", "app-1");
        claims.sid = caracal_model::RecordId::trusted("nobody");
        let token = world.sign("zone-a", &claims);
        world
            .call(&token, "GET", "/agents", Value::Null)
            .await
            .is(401, "identity_revoked");
        // The token was good before, so its signature is remembered; that must not help it.
        world.task().await;
        let gone = raw(
            "UPDATE authority_records SET status = 'revoked', revoked_at = 1
            WHERE id = 'record-app-1'",
        );
        let mut tx = world.store.begin("test").await.unwrap();
        tx.execute(&gone, &[]).await.unwrap();
        tx.change(&caracal_model::Change::Record(
            caracal_model::ZoneId::trusted("zone-a"),
            caracal_model::RecordId::trusted("record-app-1"),
        ));
        tx.commit().await.unwrap();
        world.coordinator.announce().await;
        world.get("/agents").await.is(401, "identity_revoked");
        assert_eq!(
            world
                .call(OPERATOR, "GET", "/agents", Value::Null)
                .await
                .status,
            200
        );
    })
    .await;
}

/// Clients take the refusal for success, and whoever ended it may not have announced it yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_something_is_over_is_said_only_after_it_was_announced() {
    on_each("over", |world| async move {
        let (suspended, source, target) = (
            world.service().await,
            world.task().await,
            world.task().await,
        );
        let edge = world.delegate(&source, &target, json!({})).await.edge();
        let paths = [
            (
                "PATCH",
                format!("/agents/{suspended}/suspend"),
                409,
                "session_not_found_or_not_active",
            ),
            (
                "PATCH",
                format!("/delegations/{edge}/revoke"),
                404,
                "delegation_not_found",
            ),
            (
                "DELETE",
                format!("/agents/{source}"),
                404,
                "session_not_found",
            ),
        ];
        for (method, path, status, error) in paths {
            let first = world.call(&world.token, method, &path, Value::Null).await;
            assert!(first.status.is_success(), "{path}: {}", first.body);
            let before = world.announced.load(Ordering::SeqCst);
            world
                .call(&world.token, method, &path, Value::Null)
                .await
                .is(status, error);
            let announced = world.announced.load(Ordering::SeqCst) - before;
            assert_eq!(announced, 1, "{path}");
        }
    })
    .await;
}
