//! Delegations: create, read, revoke, inherit.

use std::time::Duration;

use http::HeaderValue;
use serde_json::{Value, json};

use crate::support::{RESOURCE, World, on_each, on_each_with, raw};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delegation_says_what_it_carries_and_why_it_was_allowed() {
    on_each("create", |world| async move {
        let (source, target) = (world.task().await, world.task().await);
        let answer = world.delegate(&source, &target, json!({})).await;
        let id = answer.edge();
        let names = [(source.as_str(), "s"), (target.as_str(), "t"), (id.as_str(), "e")];
        let text = names.iter().fold(answer.body.to_string(), |text, (id, name)| text.replace(id, name));
        insta::allow_duplicates! { insta::assert_snapshot!(text, @r#"{"allow_reason":["same_zone_endpoints_active","resource_scope_checked","source_authority_root","typed_constraints_validated"],"constraints_json":{"ttl_seconds":300},"created_at":"2026-11-23T00:00:00.000Z","delegation_edge_id":"e","edge_version":0,"effective_authority":{"broad":false,"expires_at":"2026-11-23T00:05:00.000Z","max_hops":1,"parent_edge_id":null,"parent_edges_considered":[],"resource_id":"res-1","resources":["resource://pipernet"],"scopes":["pipernet:read"],"source_session_id":"s","target_session_id":"t","ttl_seconds":300},"expires_at":"2026-11-23T00:05:00.000Z","issuer_application_id":"app-1","parent_edge_id":null,"receiver_application_id":"app-1","resource_id":"res-1","revoked_at":null,"scopes":["pipernet:read"],"source_session_id":"s","status":"active","target_session_id":"t","warnings":[],"zone_id":"zone-a"}"#); }
        let one = world.get(&format!("/delegations/inbound/{target}/{id}")).await;
        assert_eq!(one.ok(), &json!({
            "id": id, "status": "active", "expires_at": "2026-11-23T00:05:00.000Z",
        }));
        let list = world.get(&format!("/delegations/inbound/{target}")).await;
        assert_eq!(list.ok()["items"][0]["id"], json!(id));
        assert_eq!(list.body["next_cursor"], Value::Null);
        let bare = world.operator("GET", &format!("/delegations/outbound/{source}")).await;
        assert_eq!(bare.ok()[0]["id"], json!(id));
        let paged = world.operator("GET", &format!("/delegations/outbound/{source}?limit=1")).await;
        assert_eq!(paged.ok()["next_cursor"], json!(id));
        let active = world.get("/delegations/active").await;
        assert_eq!(active.ok()["items"][0]["broad_reason"], Value::Null);
        let sum = world.get(&format!("/agents/{target}/effective-authority")).await;
        assert_eq!(sum.ok()["effective_scopes"], json!(["pipernet:read"]));
        let none = world.get(&format!("/agents/{source}/effective-authority")).await;
        assert_eq!(none.ok()["effective_max_hops"], 0);
        let other = world.lifecycle("app-2");
        world.call(&other, "GET", &format!("/delegations/inbound/{target}"), Value::Null).await
            .is(404, "session_not_found");
        assert_eq!(world.call(&other, "GET", "/delegations/active", Value::Null).await.ok()["items"], json!([]));
        let created = world.news("caracal.delegations.invalidate").await;
        assert_eq!((created[0]["event"].as_str(), created[0]["epoch"].as_str()), ("edge_create", "1"));
        world.clock.advance(Duration::from_secs(300));
        world.get(&format!("/delegations/inbound/{target}/{id}")).await.is(404, "delegation_not_found");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_refused_by_its_own_code() {
    on_each("refusals", |world| async move {
        let (source, target) = (world.task().await, world.task().await);
        let mut table = String::new();
        for (case, more) in [
            ("no expiry", json!({ "ttl_seconds": null })),
            ("expiry with an offset", json!({ "expires_at": "2026-11-24T00:00:00+01:00" })),
            ("unknown constraint", json!({ "constraints": {"resource": "x"} })),
            ("bad hops", json!({ "constraints": {"max_hops": 0} })),
            ("other issuer", json!({ "issuer_application_id": "app-2" })),
            ("self", json!({ "target_session_id": source })),
            ("broad", json!({ "resource_id": null })),
            ("unknown session", json!({ "target_session_id": "nobody" })),
            ("other receiver", json!({ "receiver_application_id": "app-2" })),
            ("unknown resource", json!({ "resource_id": "resource://nothing" })),
            ("resource not listed", json!({ "constraints": {"resources": ["resource://desk"]} })),
            ("scopes of another resource", json!({ "scopes": ["desk:read"] })),
            ("unknown parent", json!({ "parent_edge_id": "nobody" })),
            ("over before it began", json!({ "expires_at": "2026-11-22T00:00:00Z" })),
        ] {
            let mut body = World::wish(&source, &target);
            for (key, value) in more.as_object().unwrap() {
                if key == "ttl_seconds" {
                    body.as_object_mut().unwrap().remove(key);
                } else {
                    body[key] = value.clone();
                }
            }
            let answer = world.post("/delegations", body).await;
            table += &format!("{case:<26} | {}\n", answer.line());
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        no expiry                  | 400 delegation_expiry_required: send ttl_seconds or expires_at
        expiry with an offset      | 400 invalid_body: expires_at must be a UTC time such as 2026-01-01T00:00:00Z
        unknown constraint         | 400 invalid_delegation_constraint: constraints must be an object of known keys only
        bad hops                   | 400 invalid_max_hops: max_hops is not valid
        other issuer               | 403 issuer_ownership_required: the issuing application is not the one of the token
        self                       | 400 self_delegation_denied: source and target must be different sessions
        broad                      | 403 broad_delegation_permission_required: name a resource_id or constraints.resources
        unknown session            | 404 delegation_endpoint_not_found: source or target is not an active session of this zone
        other receiver             | 409 delegation_application_mismatch: the sessions belong to other applications than issuer and receiver
        unknown resource           | 404 resource_not_found: no such resource in this zone
        resource not listed        | 400 delegation_resource_scope_mismatch: resource_id must be one of constraints.resources
        scopes of another resource | 403 delegation_scopes_exceed_resource: the scopes are not all scopes of the named resources
        unknown parent             | 403 parent_delegation_not_active: the delegation to narrow is not active, or not one of the source session
        over before it began       | 400 delegation_expired: the expiry is in the past
        "); }
        assert!(world.news("caracal.delegations.invalidate").await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authority_only_narrows_down_the_line() {
    on_each("narrowing", |world| async move {
        let (a, b, c) = (world.task().await, world.task().await, world.task().await);
        let hops = json!({ "constraints": {"max_hops": 2}, "scopes": ["pipernet:read", "pipernet:write"] });
        let first = world.delegate(&a, &b, hops).await.edge();
        world.delegate(&b, &c, json!({ "ttl_seconds": 301 })).await
            .is(403, "delegation_exceeds_parent_authority");
        world.delegate(&b, &c, json!({ "resource_id": "resource://desk", "scopes": ["desk:read"] })).await
            .is(403, "delegation_exceeds_parent_authority");
        let second = world.delegate(&b, &c, json!({})).await;
        assert_eq!(second.created()["parent_edge_id"], json!(first));
        world.delegate(&c, &a, json!({})).await.is(403, "delegation_exceeds_parent_authority");
        let d = world.task().await;
        let again = world.delegate(&d, &b, json!({})).await.edge();
        world.delegate(&b, &c, json!({})).await.is(409, "parent_delegation_ambiguous");
        world.delegate(&b, &c, json!({ "parent_edge_id": second.edge() })).await
            .is(403, "parent_delegation_not_active");
        world.delegate(&b, &d, json!({ "parent_edge_id": again })).await
            .is(403, "delegation_exceeds_parent_authority");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circles_are_refused() {
    on_each("circles", |world| async move {
        let (a, b) = (world.task().await, world.task().await);
        let wide = json!({ "constraints": {"max_hops": 5} });
        let first = world.delegate(&a, &b, wide).await.edge();
        world
            .delegate(&b, &a, json!({ "parent_edge_id": first }))
            .await
            .is(409, "delegation_cycle_denied");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_inherits_its_parents_delegation_and_fails_closed_when_that_has_lapsed() {
    on_each("inherit", |world| async move {
        let (root, worker) = (world.task().await, world.task().await);
        let edge = world.delegate(&root, &worker, json!({})).await.edge();
        let body = json!({ "application_id": "app-1", "parent_id": worker });
        let child = world.post("/agents", body.clone()).await;
        let mirrored = child.edge();
        let inbound = world
            .get(&format!("/delegations/inbound/{}", child.id()))
            .await;
        assert_eq!(inbound.ok()["items"][0]["parent_edge_id"], json!(edge));
        assert_eq!(inbound.body["items"][0]["id"], json!(mirrored));
        assert_eq!(inbound.body["items"][0].get("mirrored"), None);
        let second = world
            .delegate(&world.task().await, &worker, json!({}))
            .await
            .edge();
        world
            .post("/agents", body.clone())
            .await
            .is(409, "inherit_parent_edge_ambiguous");
        let mut named = body.clone();
        named["inherit_parent_edge_id"] = json!(second);
        world.post("/agents", named.clone()).await.edge();
        named["inherit_parent_edge_id"] = json!("nobody");
        world
            .post("/agents", named)
            .await
            .is(409, "inherit_parent_edge_not_active");
        world.clock.advance(Duration::from_secs(300));
        world
            .post("/agents", body.clone())
            .await
            .is(409, "inherit_parent_edge_not_active");
        let mut none = body;
        none["parent_authority"] = json!("none");
        assert_eq!(
            world.post("/agents", none).await.created()["delegation_edge_id"],
            Value::Null
        );
        // The child had authority from its parent, so it does not become a root by waiting; the
        // worker has no parent, so it does.
        let other = world.task().await;
        world
            .delegate(&child.id(), &other, json!({}))
            .await
            .is(403, "parent_delegation_not_active");
        world.delegate(&worker, &other, json!({})).await.edge();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_takes_everything_that_it_led_to() {
    on_each("revoke", |world| async move {
        let (a, b, c) = (world.task().await, world.task().await, world.task().await);
        let first = world
            .delegate(&a, &b, json!({ "constraints": {"max_hops": 3} }))
            .await
            .edge();
        world.delegate(&b, &c, json!({})).await.edge();
        let child = world.child(&c, "inherit").await;
        let walk = world
            .operator("GET", &format!("/delegations/{first}/traverse"))
            .await;
        let depths: Vec<_> = walk
            .ok()
            .as_array()
            .unwrap()
            .iter()
            .map(|hop| hop["depth"].clone())
            .collect();
        assert_eq!(depths, [json!(1), json!(2), json!(3)]);
        let impact = world
            .operator("GET", &format!("/delegations/{first}/impact"))
            .await;
        assert_eq!(
            impact.ok()["affected_sessions"].as_array().unwrap().len(),
            3
        );
        assert_eq!(
            impact.body["affected_agents"],
            impact.body["affected_sessions"]
        );
        assert_eq!(
            impact.body["affected_authority_records"],
            json!(["record-app-1"])
        );
        let other = world.lifecycle("app-2");
        world
            .call(
                &other,
                "PATCH",
                &format!("/delegations/{first}/revoke"),
                Value::Null,
            )
            .await
            .is(403, "issuer_ownership_required");
        let path = format!("/delegations/{first}/revoke?wait_ms=5000");
        let revoked = world.patch(&path).await;
        assert_eq!(
            revoked.ok(),
            &json!({
                "revoked_edges": 3, "affected_sessions": 1, "terminated_sessions": 3,
                "replicas": [{ "replica": "local", "applied": true }],
            })
        );
        for session in [&b, &c, &child] {
            assert_eq!(world.status(session).await, "terminated");
        }
        assert_eq!(world.status(&a).await, "active");
        world
            .patch(&format!("/delegations/{first}/revoke"))
            .await
            .is(404, "delegation_not_found");
        let epochs: Vec<String> = world
            .news("caracal.delegations.invalidate")
            .await
            .iter()
            .map(|news| format!("{} {}", news["event"], news["epoch"]))
            .collect();
        assert_eq!(
            epochs,
            [
                "edge_create 1",
                "edge_create 1",
                "edge_create 1",
                "edge_revoke 2",
                "edge_revoke 2",
                "edge_revoke 2",
            ]
        );
        let named: Vec<_> = world.news("caracal.sessions.revoke").await;
        assert_eq!(named.len(), 6);
        assert!(
            named
                .iter()
                .all(|news| news.contains_key("agent_session_id"))
        );
        assert!(named.iter().all(|news| news["agent_session_id"] != a));
        assert!(named.iter().all(|news| !news.contains_key("session_id")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_epoch_rises_for_cut_offs_only() {
    on_each("epoch", |world| async move {
        let epoch = || async {
            world
                .news("caracal.delegations.invalidate")
                .await
                .pop()
                .unwrap()["epoch"]
                .clone()
        };
        let source = world.task().await;
        let (one, two) = (world.task().await, world.task().await);
        world.delegate(&source, &one, json!({})).await.edge();
        world.delegate(&source, &two, json!({})).await.edge();
        assert_eq!(world.delete(&format!("/agents/{one}")).await.status, 204);
        assert_eq!(epoch().await, "1");
        assert_eq!(
            world
                .operator("DELETE", &format!("/agents/{two}"))
                .await
                .status,
            204
        );
        assert_eq!(epoch().await, "2");
    })
    .await;
    let settings = [("DELEGATION_EPOCH_ON_SESSION_END", "true")];
    on_each_with("epoch on end", &settings, |world| async move {
        let (source, target) = (world.task().await, world.task().await);
        world.delegate(&source, &target, json!({})).await.edge();
        world.delete(&format!("/agents/{target}")).await;
        let last = world
            .news("caracal.delegations.invalidate")
            .await
            .pop()
            .unwrap();
        assert_eq!(
            (last["event"].as_str(), last["epoch"].as_str()),
            ("edge_revoke", "2")
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broad_delegation_needs_its_scope_and_says_so() {
    on_each("broad", |world| async move {
        let (source, target) = (world.task().await, world.task().await);
        let mut body = World::wish(&source, &target);
        body.as_object_mut().unwrap().remove("resource_id");
        let token = world.lifecycle_with("app-1", "coordinator.delegate_broad");
        let answer = world.call(&token, "POST", "/delegations", body).await;
        let created = answer.created();
        assert_eq!(created["constraints_json"], json!({
            "ttl_seconds": 300, "policy_approved": true, "broad_reason": "resource_null_delegation",
        }));
        assert_eq!(created["allow_reason"][1], "broad_delegation_elevated");
        assert_eq!(created["warnings"], json!(["resource_null_delegation_broadens_resource_matching"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_gives_one_delegation() {
    on_each("delegation key", |world| async move {
        let (source, target) = (world.task().await, world.task().await);
        let send = |scopes: Value| {
            let mut body = World::wish(&source, &target);
            body["scopes"] = scopes;
            let path = "/zones/zone-a/delegations";
            let mut request = World::request("POST", path, &world.token, Some(&body));
            request
                .headers_mut()
                .insert("idempotency-key", HeaderValue::from_static("k"));
            world.send(request)
        };
        let first = send(json!(["pipernet:read", "pipernet:write"])).await;
        let again = send(json!(["pipernet:write", "pipernet:read"])).await;
        assert_eq!(first.edge(), again.edge());
        assert_eq!(again.headers["idempotency-replayed"], "true");
        send(json!(["pipernet:read"]))
            .await
            .is(409, "idempotency_key_conflict");
        world
            .patch(&format!("/delegations/{}/revoke", first.edge()))
            .await
            .ok();
        send(json!(["pipernet:read", "pipernet:write"]))
            .await
            .is(409, "idempotency_result_inactive");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_are_found_by_row_id_too() {
    on_each("row id", |world| async move {
        let (source, target) = (world.task().await, world.task().await);
        let more = json!({ "resource_id": "res-1", "constraints": {"resources": [RESOURCE]} });
        let answer = world.delegate(&source, &target, more).await;
        assert_eq!(answer.created()["resource_id"], "res-1");
        let gone = raw("UPDATE sessions SET ends_at = 0 WHERE id = $1");
        world.execute(&gone, &caracal_store::params![&target]).await;
        world
            .delegate(&source, &target, json!({}))
            .await
            .is(404, "delegation_endpoint_not_found");
    })
    .await;
}
