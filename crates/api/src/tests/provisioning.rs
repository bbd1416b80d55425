//! What the published administration clients do, end to end.

use std::time::Duration;

use caracal_crypto::digest::sha256_hex;
use caracal_model::Topic;
use serde_json::{Value, json};

use super::Stack;
use super::stack::grants;
use crate::on_stack;

/// What an `ensure_resource` compares, and whether it would write.
fn differs(held: &Value, wish: &Value) -> bool {
    let set = |of: &Value, name: &str| {
        let mut items: Vec<String> = of[name]
            .as_array()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        items.sort();
        items
    };
    [
        "identifier",
        "upstream_url",
        "credential_provider_id",
        "operation_enforcement",
        "name",
    ]
    .iter()
    .any(|name| held[name] != wish[name])
        || set(held, "scopes") != set(wish, "scopes")
        || set(held, "operations") != set(wish, "operations")
}

async fn until_loaded(stack: &Stack, url: &str) -> Value {
    let poll = async {
        loop {
            let status = stack.get(url).await.is(200);
            match status["propagation_status"].as_str() {
                Some("loaded") => return status,
                Some("failed") => panic!("{status}"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), poll)
        .await
        .expect("loaded in time")
}

on_stack! {
    async fn an_inventory_is_provisioned_and_a_second_run_finds_nothing_to_do(stack: Stack) {
        let zone = stack.zone("Prod").await;
        let z = format!("/v1/zones/{zone}");
        let application = json!({
            "name": "desk", "registration_method": "managed", "traits": null,
        });
        let made = stack.send("POST", &format!("{z}/applications"), application).await.is(201);
        assert!(made["client_secret"].as_str().unwrap().starts_with("cs_"));
        let provider = stack.make(&format!("{z}/providers"), json!({
            "identifier": "provider://crm-key", "kind": "api_key",
            "config_json": {"header_name": "X-Api-Key", "api_key": "k-1"},
        })).await;
        let mut wish = json!({
            "name": "CRM", "identifier": "resource://crm",
            "upstream_url": "https://crm.example", "credential_provider_id": provider,
            "scopes": ["crm:write", "crm:read"],
            "operations": [
                {"method": "get", "path": "/v1/contacts", "scope": "crm:read"},
                {"method": "POST", "path": "/v1/contacts", "scope": "crm:write"},
            ],
            "operation_enforcement": "enforced",
        });
        stack.send("POST", &format!("{z}/resources"), wish.clone()).await.is(201);

        // The view has it all: a key to sign with, the application, the sealed key of the provider.
        let view = stack.views.zone(&zone).await.unwrap();
        assert_eq!((view.keys.jwks.len(), view.applications.len()), (1, 1));
        assert!(view.keys.signing.is_some());
        let crm = view.resources.by_identifier("resource://crm").unwrap();
        assert!(crm.provider.secret.obtain(std::time::Duration::from_secs(5)).await.unwrap().is_some());

        // The second run.
        let items = stack.get(&format!("{z}/applications")).await.is(200);
        let held = &items["items"][0];
        assert_eq!(held["registration_method"], "managed");
        assert_eq!((&held["expires_at"], &held["traits"]), (&Value::Null, &json!([])));
        let items = stack.get(&format!("{z}/providers")).await.is(200);
        let held = &items["items"][0];
        assert_eq!((&held["identifier"], &held["kind"]), (&json!("provider://crm-key"), &json!("api_key")));
        let items = stack.get(&format!("{z}/resources")).await.is(200);
        wish["operations"][0]["method"] = json!("GET");
        assert!(!differs(&items["items"][0], &wish), "{items}");
    }

    async fn grants_are_provisioned_and_a_second_run_finds_nothing_to_do(stack: Stack) {
        let zone = stack.zone("Prod").await;
        let z = format!("/v1/zones/{zone}");
        let content = grants("app-1");
        let policy = stack.send("POST", &format!("{z}/policies"), json!({
            "name": "application-grants", "content": content,
        })).await.is(201);
        let set = stack.make(&format!("{z}/policy-sets"), json!({
            "name": "application-grant-policy",
        })).await;
        let version = stack.send("POST", &format!("{z}/policy-sets/{set}/versions"), json!({
            "manifest": [{"policy_version_id": policy["version_id"]}],
        })).await.is(201);
        let path = format!("{z}/policy-sets/{set}/activate");
        let activated = stack.send("POST", &path, json!({"version_id": version["version_id"]}))
            .await.is(202);
        assert_eq!(activated["activated"], true);
        let status = until_loaded(&stack, activated["status_url"].as_str().unwrap()).await;
        assert_eq!(status["outbox"]["state"], "dispatched", "{status}");
        assert_eq!(status["sts"]["state"], "loaded");

        // The second run.
        let at = format!("{z}/policies/{}", policy["id"].as_str().unwrap());
        let held = stack.get(&at).await.is(200);
        assert_eq!(held["versions"][0]["content_sha256"], sha256_hex(content.as_bytes()));
        assert_eq!(held["versions"][0]["version"], 1);
        let items = stack.get(&format!("{z}/policy-sets")).await.is(200);
        assert_eq!(items["items"][0]["active_version_id"], version["version_id"]);
    }

    async fn a_zone_serves_its_keys_from_its_first_moment(stack: Stack) {
        let zone = stack.zone("Keys").await;
        let view = stack.views.zone(&zone).await.unwrap();
        let key = view.keys.signing.as_ref().unwrap();
        assert_eq!(view.keys.jwks.first().unwrap().kid, *key.kid());
        assert!(!view.archived);
        let news = stack.store.outbox().latest(&zone, Topic::KeysInvalidate).await.unwrap();
        assert_eq!(news.unwrap().fields["zone_id"], zone.as_str());
        stack.delete(&format!("/v1/zones/{zone}")).await.is(204);
        assert!(stack.views.zone(&zone).await.unwrap().archived, "the archive reached memory");
    }

    async fn deleting_the_set_in_force_denies_everything(stack: Stack) {
        let zone = stack.zone("Deny").await;
        let (set, version) = stack.activated_set(&zone).await;
        let view = stack.views.zone(&zone).await.unwrap();
        assert_eq!(view.policy.version_id.as_deref(), Some(version.as_str()));
        let news = async || {
            let entry = stack.store.outbox().latest(&zone, Topic::PolicyInvalidate).await;
            entry.unwrap().unwrap().fields
        };
        assert_eq!(news().await["policy_set_version_id"], version);
        stack.delete(&format!("/v1/zones/{zone}/policy-sets/{set}")).await.is(204);
        let view = stack.views.zone(&zone).await.unwrap();
        assert_eq!(view.policy.version_id, None);
        let news = news().await;
        assert_eq!(news["policy_set_id"], set);
        assert!(!news.contains_key("policy_set_version_id"), "absent, not empty");
    }
}
