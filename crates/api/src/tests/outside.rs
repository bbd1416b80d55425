//! Secrets that a backend outside keeps: what a change does there, and what it does not when the
//! backend is gone.

use std::sync::Arc;

use caracal_crypto::envelope::{Kek, Keyring};
use caracal_crypto::os::OsRng;
use caracal_model::ZoneId;
use caracal_store::Store;
use caracal_store::custody::{MemoryBackend, Moved};
use caracal_store::secrets::{Kept, application_secret_ref, provider_secret_ref};
use serde_json::{Value, json};

use super::Stack;
use super::stack::KEK;
use crate::reseal::{Swept, sweep};

struct Scene {
    stack: Stack,
    vault: Arc<MemoryBackend>,
    zone: ZoneId,
}

impl Scene {
    async fn start(store: Store) -> Self {
        let vault = Arc::<MemoryBackend>::default();
        let stack = Stack::start_over(store, &[], Some(vault.clone())).await;
        let zone = stack.zone("Outside").await;
        Self { stack, vault, zone }
    }

    fn at(&self, path: &str) -> String {
        format!("/v1/zones/{}/{path}", self.zone)
    }

    async fn application(&self, name: &str) -> Value {
        let body = json!({"name": name, "registration_method": "managed"});
        self.stack
            .send("POST", &self.at("applications"), body)
            .await
            .is(201)
    }

    async fn provider(&self, name: &str, key: &str) -> String {
        let body = json!({"name": name, "kind": "api_key", "config_json": {"header_name": "X-Key", "api_key": key}});
        self.stack.make(&self.at("providers"), body).await
    }

    async fn kept(&self, at: &str) -> Option<Kept> {
        self.stack
            .store
            .zone(&self.zone)
            .secrets()
            .kept(at)
            .await
            .unwrap()
    }

    /// What opens under this reference in the backend; nothing of it is in our database.
    async fn outside(&self, at: &str) -> String {
        let kept = self.kept(at).await;
        assert!(matches!(kept, Some(Kept::Outside(_))), "{kept:?}");
        let opened = self
            .stack
            .api
            .keyring
            .open(at, &self.vault.held(at).unwrap())
            .unwrap();
        String::from_utf8(opened.expose().clone()).unwrap()
    }

    async fn refused(&self, method: &str, path: &str, body: Value) {
        let refused = self.stack.send(method, &self.at(path), body).await;
        let told = (refused.status.as_u16(), refused.text("error").to_owned());
        assert_eq!(
            told,
            (502, "secret_backend_unavailable".to_owned()),
            "{method} {path}"
        );
        assert!(
            !refused.text.contains("CSS1") && !refused.text.contains("k-2"),
            "{refused}"
        );
    }
}

caracal_store::on_each_engine! {
    async fn every_secret_is_outside_and_goes_with_what_it_belongs_to(store: Store) {
        let scene = Scene::start(store).await;
        let (stack, zone) = (&scene.stack, &scene.zone);
        let made = scene.application("desk").await;
        let (id, secret) = (made["id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
        let place = application_secret_ref(zone, id);
        assert_eq!(scene.outside(&place).await, secret);
        let at = scene.at(&format!("applications/{id}"));
        let shown = stack.get(&format!("{at}/client-secret")).await.is(200);
        assert_eq!(shown["client_secret"], secret);
        let rotated = stack.send("POST", &format!("{at}/rotate-secret"), json!({})).await.is(200);
        assert_eq!(scene.outside(&place).await, rotated["client_secret"].as_str().unwrap());
        let chosen = "a secret that somebody chose, of 32 characters or more";
        stack.send("PATCH", &at, json!({"client_secret": chosen})).await.is(200);
        assert_eq!(scene.outside(&place).await, chosen);

        let workload = stack.send("POST", &scene.at("workloads"), json!({"name": "job"})).await.is(201);
        let job = scene.at(&format!("workloads/{}", workload["id"].as_str().unwrap()));
        let shown = stack.get(&format!("{job}/secret")).await.is(200);
        assert_eq!(shown["secret"], workload["secret"]);
        stack.send("POST", &format!("{job}/rotate-secret"), json!({})).await.is(200);

        let provider = scene.provider("Key", "k-1").await;
        let place = provider_secret_ref(zone, &provider);
        assert_eq!(scene.outside(&place).await, r#"{"api_key":"k-1"}"#);
        let of = scene.at(&format!("providers/{provider}"));
        let patched = json!({"config_json": {"header_name": "X-Other"}});
        stack.send("PATCH", &of, patched).await.is(200);
        assert_eq!(scene.outside(&place).await, r#"{"api_key":"k-1"}"#);
        let patched = json!({"config_json": {"header_name": "X-Other", "api_key": "k-2"}});
        stack.send("PATCH", &of, patched).await.is(200);
        assert_eq!(scene.outside(&place).await, r#"{"api_key":"k-2"}"#);
        assert_eq!(stack.api.custody.waiting().await.unwrap(), 0);

        for path in [&at, &job, &of] {
            stack.delete(path).await.is(204);
        }
        let swept = stack.api.custody.sweep().await.unwrap();
        assert_eq!(swept, Moved { forgotten: 3, ..Moved::default() });
        assert_eq!(scene.vault.count(), 0);
        scene.stack.stop().await;
    }

    async fn without_the_backend_nothing_changes_and_nothing_is_lost(store: Store) {
        let scene = Scene::start(store).await;
        let (stack, zone) = (&scene.stack, &scene.zone);
        let made = scene.application("desk").await;
        let (id, secret) = (made["id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
        let provider = scene.provider("Key", "k-1").await;
        let before = stack.get(&scene.at("providers")).await.is(200);

        for read_only in [false, true] {
            scene.vault.is_out(!read_only);
            scene.vault.is_read_only(read_only);
            let managed = json!({"name": "late", "registration_method": "managed"});
            scene.refused("POST", "applications", managed).await;
            scene.refused("POST", &format!("applications/{id}/rotate-secret"), json!({})).await;
            scene.refused("POST", "workloads", json!({"name": "late"})).await;
            let config = json!({"header_name": "X-Key", "api_key": "k-2"});
            let late = json!({"name": "Late", "kind": "api_key", "config_json": config});
            scene.refused("POST", "providers", late).await;
            let patch = json!({"config_json": config});
            scene.refused("PATCH", &format!("providers/{provider}"), patch).await;
            if !read_only {
                let shown = format!("applications/{id}/client-secret");
                scene.refused("GET", &shown, json!(null)).await;
            }
        }
        scene.vault.is_out(true);
        // What needs no secret goes on.
        let renamed = json!({"name": "Desk 2"});
        stack.send("PATCH", &scene.at(&format!("applications/{id}")), renamed).await.is(200);
        assert!(stack.api.custody.sweep().await.is_err());

        scene.vault.is_out(false);
        scene.vault.is_read_only(false);
        stack.api.custody.sweep().await.unwrap();
        assert_eq!(stack.api.custody.waiting().await.unwrap(), 0);
        assert_eq!(stack.get(&scene.at("providers")).await.is(200), before);
        assert_eq!(stack.get(&scene.at("applications")).await.is(200)["items"].as_array().unwrap().len(), 1);
        assert_eq!(scene.vault.count(), 2);
        assert_eq!(scene.outside(&application_secret_ref(zone, id)).await, secret);
        assert_eq!(scene.outside(&provider_secret_ref(zone, &provider)).await, r#"{"api_key":"k-1"}"#);

        // A deletion is in force at once, and is made good outside later.
        scene.vault.is_out(true);
        stack.delete(&scene.at(&format!("applications/{id}"))).await.is(204);
        assert!(stack.api.custody.sweep().await.is_err());
        scene.vault.is_out(false);
        stack.api.custody.sweep().await.unwrap();
        assert_eq!(scene.vault.count(), 1);
        scene.stack.stop().await;
    }

    async fn a_change_that_is_refused_leaves_nothing_outside(store: Store) {
        let scene = Scene::start(store).await;
        let stack = &scene.stack;
        scene.application("desk").await;
        let provider = scene.provider("Key", "k-1").await;
        let again = json!({"name": "DESK", "registration_method": "managed"});
        let refused = stack.send("POST", &scene.at("applications"), again).await;
        assert_eq!(refused.text("error"), "application_name_taken");
        let config = json!({"header_name": "X-Key", "api_key": "k-2"});
        let again = json!({"identifier": "provider://key", "kind": "api_key", "config_json": config});
        stack.send("POST", &scene.at("providers"), again).await.is(409);
        scene.provider("Other", "k-3").await;
        let taken = json!({"identifier": "provider://other", "config_json": config});
        stack.send("PATCH", &scene.at(&format!("providers/{provider}")), taken).await.is(409);
        for path in ["applications/none/rotate-secret", "workloads/none/rotate-secret"] {
            stack.send("POST", &scene.at(path), json!({})).await.is(404);
        }
        stack.api.custody.sweep().await.unwrap();
        assert_eq!(scene.vault.count(), 3);
        let place = provider_secret_ref(&scene.zone, &provider);
        assert_eq!(scene.outside(&place).await, r#"{"api_key":"k-1"}"#);
        assert_eq!(stack.api.custody.waiting().await.unwrap(), 0);
        scene.stack.stop().await;
    }

    async fn a_new_key_seals_what_is_outside_as_well(store: Store) {
        const NEXT: &str = "a4c1f8020e6a9c3d5b7f1a2c4e6d8b908f3d9a712c45e6b0d18f2a4c6e9b3d57";
        let scene = Scene::start(store).await;
        let stack = &scene.stack;
        let made = scene.application("desk").await;
        let provider = scene.provider("Key", "k-1").await;
        let kek = |hex| Kek::from_hex(hex).unwrap();
        let during = Keyring::new(kek(NEXT), Some(kek(KEK)));
        let custody = &stack.api.custody;
        scene.vault.is_out(true);
        assert!(sweep(&stack.store, custody, &during, &OsRng).await.is_err());
        scene.vault.is_out(false);
        let swept = sweep(&stack.store, custody, &during, &OsRng).await.unwrap();
        // The application's secret, the provider's, the zone's key.
        assert_eq!(swept, Swept { resealed: 3, rehashed: 1, unopened: 0 });
        assert_eq!(custody.sweep().await.unwrap(), Moved { out: 2, ..Moved::default() });
        let after = Keyring::new(kek(NEXT), None);
        for (place, expected) in [
            (application_secret_ref(&scene.zone, made["id"].as_str().unwrap()), made["client_secret"].as_str().unwrap()),
            (provider_secret_ref(&scene.zone, &provider), r#"{"api_key":"k-1"}"#),
        ] {
            assert!(matches!(scene.kept(&place).await, Some(Kept::Outside(_))));
            let opened = after.open(&place, &scene.vault.held(&place).unwrap()).unwrap();
            assert_eq!(opened.expose().as_slice(), expected.as_bytes());
        }
        assert_eq!(sweep(&stack.store, custody, &during, &OsRng).await.unwrap(), Swept::default());
        // One that the backend has lost is told of, and does not hold up the others.
        let lost = Keyring::new(kek(KEK), Some(kek(NEXT)));
        scene.vault.tamper(&provider_secret_ref(&scene.zone, &provider), None);
        let swept = sweep(&stack.store, custody, &lost, &OsRng).await.unwrap();
        assert_eq!((swept.resealed, swept.unopened), (2, 1));
        scene.stack.stop().await;
    }
}
