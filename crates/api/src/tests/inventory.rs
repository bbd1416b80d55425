//! Applications, providers and resources, as their clients see them.

use serde_json::{Value, json};

use super::Stack;
use crate::on_stack;

fn keys(object: &Value) -> String {
    let mut keys: Vec<_> = object.as_object().unwrap().keys().cloned().collect();
    keys.sort();
    keys.join(" ")
}

async fn provider(stack: &Stack, z: &str, wish: Value) -> Value {
    stack
        .send("POST", &format!("{z}/providers"), wish)
        .await
        .is(201)
}

on_stack! {
    async fn objects_have_exactly_the_published_members(stack: Stack) {
        let zone = stack.zone("Shapes").await;
        let z = format!("/v1/zones/{zone}");
        let shown = stack.get(&z).await.is(200);
        insta::allow_duplicates! { insta::assert_snapshot!(keys(&shown), @"actor_tokens created_at created_by created_via_operator dcr_enabled id name operator_coauthor_badge operator_governed slug updated_at updated_by updated_via_operator") };
        let wish = json!({"name": "a", "registration_method": "managed"});
        let made = stack.send("POST", &format!("{z}/applications"), wish).await.is(201);
        insta::allow_duplicates! { insta::assert_snapshot!(keys(&made), @"client_secret created_at created_by created_via_operator expires_at id name registration_method traits updated_at updated_by updated_via_operator zone_id") };
        let id = made["id"].as_str().unwrap();
        let shown = stack.get(&format!("{z}/applications/{id}")).await.is(200);
        insta::allow_duplicates! { insta::assert_snapshot!(keys(&shown), @"archived_at created_at created_by created_via_operator expires_at id name registration_method traits updated_at updated_by updated_via_operator zone_id") };
        let zoned = stack.token("read", Some(&zone)).await;
        let shown = stack.send_as(&zoned, "GET", &format!("{z}/applications/{id}"), "").await.is(200);
        assert!(shown.get("traits").is_none(), "traits are for global tokens");
        let made = provider(&stack, &z, json!({"name": "n", "kind": "none"})).await;
        insta::allow_duplicates! { insta::assert_snapshot!(keys(&made), @"archived_at config_json connectivity_failed_at created_at created_by created_via_operator id identifier kind name secret_config_keys updated_at updated_by updated_via_operator zone_id") };
        let wish = json!({"name": "CRM", "scopes": ["s"], "upstream_url": "https://crm.example", "credential_provider_id": made["id"]});
        let made = stack.send("POST", &format!("{z}/resources"), wish).await.is(201);
        insta::allow_duplicates! { insta::assert_snapshot!(keys(&made), @"archived_at created_at created_by created_via_operator credential_provider_id id identifier name operation_enforcement operations scopes updated_at updated_by updated_via_operator upstream_url zone_id") };
        assert_eq!(made["identifier"], "resource://crm");
        assert_eq!(made["upstream_url"], "https://crm.example", "exactly as sent");
        let at = made["created_at"].as_str().unwrap();
        assert!(at.len() == 24 && at.ends_with('Z'), "{at}");
    }

    async fn names_of_applications_are_unique_ignoring_case_until_archived(stack: Stack) {
        let zone = stack.zone("Names").await;
        let path = format!("/v1/zones/{zone}/applications");
        let wish = |name| json!({"name": name, "registration_method": "managed"});
        let first = stack.make(&path, wish("Desk")).await;
        let second = stack.make(&path, wish("Other")).await;
        assert_eq!(stack.send("POST", &path, wish(" desk ")).await.text("error"), "application_name_taken");
        let renamed = stack.send("PATCH", &format!("{path}/{second}"), json!({"name": "DESK"})).await;
        assert_eq!(renamed.text("error"), "application_name_taken");
        stack.delete(&format!("{path}/{first}")).await.is(204);
        stack.get(&format!("{path}/{first}")).await.is(404);
        let archived = stack.get(&format!("{path}?status=archived")).await.is(200);
        assert_eq!(archived["items"][0]["id"], first);
        stack.make(&path, wish("desk")).await;
    }

    async fn a_zone_token_leaves_control_keys_alone(stack: Stack) {
        let zone = stack.zone("Control").await;
        let path = format!("/v1/zones/{zone}/applications");
        let zoned = stack.token("write", Some(&zone)).await;
        let wish = json!({"name": "key", "registration_method": "managed", "traits": ["control:invoke", "control:scope:control:app:read"]});
        assert_eq!(stack.send_as(&zoned, "POST", &path, &wish.to_string()).await.text("error"), "trait_forbidden");
        let id = stack.make(&path, wish).await;
        for (method, at, body) in [
            ("PATCH", format!("{path}/{id}"), r#"{"name":"x"}"#),
            ("POST", format!("{path}/{id}/rotate-secret"), ""),
            ("GET", format!("{path}/{id}/client-secret"), ""),
            ("DELETE", format!("{path}/{id}"), ""),
        ] {
            assert_eq!(stack.send_as(&zoned, method, &at, body).await.text("error"), "trait_forbidden", "{method} {at}");
        }
    }

    async fn a_public_patch_keeps_the_sealed_key_of_a_provider(stack: Stack) {
        let zone = stack.zone("Providers").await;
        let z = format!("/v1/zones/{zone}");
        let upstream = async |id: &Value| {
            let wish = json!({"name": "R", "scopes": ["s"], "upstream_url": "https://r.example", "credential_provider_id": id});
            stack.send("POST", &format!("{z}/resources"), wish).await.is(201);
        };
        let sealed = async || {
            let view = stack.views.zone(&zone).await.unwrap();
            let resource = view.resources.iter().next().unwrap();
            resource.provider.secret.obtain(std::time::Duration::from_secs(5)).await.unwrap().map(|secret| String::from_utf8_lossy(secret.expose()).into_owned())
        };
        let made = provider(&stack, &z, json!({
            "name": "key", "kind": "api_key",
            "config_json": {"header_name": "X-Key", "api_key": "first"},
        })).await;
        assert_eq!(made["config_json"], json!({"auth_location": "header", "header_name": "X-Key"}));
        assert_eq!(made["secret_config_keys"], json!(["api_key"]));
        upstream(&made["id"]).await;
        let first = sealed().await.unwrap();
        assert!(first.contains("first"));
        let path = format!("{z}/providers/{}", made["id"].as_str().unwrap());
        let patch = json!({"config_json": {"header_name": "X-Other"}});
        let changed = stack.send("PATCH", &path, patch).await.is(200);
        assert_eq!(changed["config_json"]["header_name"], "X-Other");
        assert_eq!(sealed().await.as_ref(), Some(&first));
        let patch = json!({"config_json": {"header_name": "X-Other", "api_key": "second"}});
        let reply = stack.send("PATCH", &path, patch).await;
        assert!(!reply.text.contains("second"), "secrets are never echoed");
        assert!(sealed().await.unwrap().contains("second"));
        let patch = json!({"kind": "none", "config_json": {}});
        assert_eq!(stack.send("PATCH", &path, patch).await.is(200)["secret_config_keys"], json!([]));
        assert!(sealed().await.is_none());
        let patch = json!({"kind": "bearer_token", "config_json": {}});
        assert_eq!(stack.send("PATCH", &path, patch).await.text("error"), "invalid_provider_config");
    }

    async fn the_control_resource_is_kept_by_the_platform(stack: Stack) {
        let zone = stack.zone("Control").await;
        let path = format!("/v1/zones/{zone}/resources");
        let wish = json!({"identifier": "caracal-control", "scopes": ["control:app:read", "agent:lifecycle"]});
        let zoned = stack.token("write", Some(&zone)).await;
        assert_eq!(stack.send_as(&zoned, "POST", &path, &wish.to_string()).await.text("error"), "protected_resource");
        let made = stack.send("POST", &path, wish).await.is(201);
        assert_eq!(made["credential_provider_id"], format!("provider-none-{zone}"));
        assert_eq!(made["scopes"], json!(["control:app:read"]), "the lifecycle scope is derived");
        let at = format!("{path}/{}", made["id"].as_str().unwrap());
        assert_eq!(stack.send_as(&zoned, "GET", &at, "").await.text("error"), "resource_not_found");
        assert_eq!(stack.send_as(&zoned, "GET", &path, "").await.is(200)["items"], json!([]));
        assert_eq!(stack.delete(&at).await.text("error"), "protected_resource");
        stack.get(&at).await.is(200);
    }

    async fn a_resource_keeps_its_rules_when_it_changes(stack: Stack) {
        let zone = stack.zone("Rules").await;
        let z = format!("/v1/zones/{zone}");
        let none = provider(&stack, &z, json!({"name": "n", "kind": "none"})).await;
        let wish = json!({
            "name": "R", "scopes": ["a", "b"], "upstream_url": "https://r.example/x",
            "credential_provider_id": none["id"],
            "operations": [{"method": "get", "path": "/x", "scope": "b"}],
        });
        let made = stack.send("POST", &format!("{z}/resources"), wish).await.is(201);
        let at = format!("{z}/resources/{}", made["id"].as_str().unwrap());
        for (patch, code) in [
            (json!({"scopes": ["a"]}), "operation_scope_not_in_resource_scopes"),
            (json!({"upstream_url": null}), "upstream_url_required"),
            (json!({"credential_provider_id": null}), "credential_provider_required"),
            (json!({"credential_provider_id": "nope"}), "provider_not_found"),
            (json!({"identifier": "nonsense"}), "invalid_resource_identifier"),
        ] {
            assert_eq!(stack.send("PATCH", &at, patch.clone()).await.text("error"), code, "{patch}");
        }
        let mut held = stack.get(&at).await.is(200);
        assert_eq!(held, made);
        let patch = json!({"scopes": ["b", "c"], "operation_enforcement": "transport_uniform"});
        let changed = stack.send("PATCH", &at, patch).await.is(200);
        held["scopes"] = json!(["b", "c"]);
        held["operation_enforcement"] = json!("transport_uniform");
        held["updated_by"] = changed["updated_by"].clone();
        held["updated_at"] = changed["updated_at"].clone();
        assert_eq!(changed, held);
        assert!(changed["updated_by"].as_str().unwrap().starts_with("admin:"));
    }

    async fn identifiers_are_generated_and_unique(stack: Stack) {
        let zone = stack.zone("Ids").await;
        let z = format!("/v1/zones/{zone}");
        let none = provider(&stack, &z, json!({"name": "n", "kind": "none"})).await;
        let wish = |more: Value| {
            let mut wish = json!({"scopes": ["s"], "upstream_url": "https://r.example", "credential_provider_id": none["id"]});
            wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            wish
        };
        let path = format!("{z}/resources");
        for expected in ["resource://sales-crm", "resource://sales-crm-2"] {
            let made = stack.send("POST", &path, wish(json!({"name": "Sales CRM"}))).await.is(201);
            assert_eq!(made["identifier"], expected);
        }
        let taken = stack.send("POST", &path, wish(json!({"identifier": "resource://sales-crm"}))).await;
        assert_eq!(taken.text("error"), "resource_identifier_conflict");
        let taken = stack.send("POST", &format!("{z}/providers"), json!({"name": "N", "kind": "none"})).await;
        assert_eq!(taken.text("error"), "provider_identifier_conflict");
    }

    async fn a_zone_has_no_more_resources_than_its_quota(stack: Stack) [("API_MAX_RESOURCES_PER_ZONE", "1")] {
        let zone = stack.zone("Quota").await;
        let z = format!("/v1/zones/{zone}");
        let none = provider(&stack, &z, json!({"name": "n", "kind": "none"})).await;
        let wish = |name: &str| json!({"name": name, "scopes": ["s"], "upstream_url": "https://r.example", "credential_provider_id": none["id"]});
        let path = format!("{z}/resources");
        let (a, b) = tokio::join!(
            stack.send("POST", &path, wish("a")),
            stack.send("POST", &path, wish("b")),
        );
        let mut statuses = [a.status.as_u16(), b.status.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409]);
    }

    async fn dynamic_registration_is_off_unless_the_zone_allows_it(stack: Stack) {
        let zone = stack.zone("Dcr").await;
        let z = format!("/v1/zones/{zone}");
        let register = async || stack.send("POST", &format!("{z}/applications/dcr"), json!({"name": "a"})).await;
        assert_eq!(register().await.text("error"), "dcr_disabled");
        let changed = stack.send("PATCH", &z, json!({"dcr_enabled": true})).await.is(200);
        assert_eq!(changed["dcr_enabled"], true);
        let status = stack.get(&format!("{z}/dcr-status")).await.is(200);
        assert_eq!(status, json!({"id": zone, "dcr_enabled": true, "live_dcr_applications": 0}));
        let changed = stack.send("PATCH", &z, json!({"dcr_enabled": false, "dcr_shutdown": "revoke_live"})).await.is(200);
        assert_eq!(changed["dcr_enabled"], false);
    }
}
