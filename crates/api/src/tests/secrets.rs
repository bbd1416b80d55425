//! Client secrets: shown once, kept sealed, revealed on record.

use caracal_crypto::verifier::SecretVerifier;
use serde_json::json;

use super::Stack;
use crate::on_stack;

/// Whether the service that checks secrets would accept this one.
async fn accepts(stack: &Stack, zone: &caracal_model::ZoneId, secret: &str) -> bool {
    let view = stack.views.zone(zone).await.unwrap();
    let application = view.applications.values().next().unwrap();
    let pepper = stack.api.keyring.derive("caracal/client-secrets");
    application
        .verifier
        .as_ref()
        .unwrap()
        .verify(&pepper, secret)
}

on_stack! {
    async fn a_secret_is_generated_rotated_chosen_and_revealed(stack: Stack) {
        let zone = stack.zone("Secrets").await;
        let path = format!("/v1/zones/{zone}/applications");
        let made = stack.send("POST", &path, json!({"name": "a", "registration_method": "managed"})).await.is(201);
        let first = made["client_secret"].as_str().unwrap().to_owned();
        assert_eq!(first.len(), 3 + 43);
        let at = format!("{path}/{}", made["id"].as_str().unwrap());
        let reveal = async || stack.get(&format!("{at}/client-secret")).await.is(200)["client_secret"].as_str().unwrap().to_owned();
        assert!(accepts(&stack, &zone, &first).await);
        assert_eq!(reveal().await, first);

        let rotated = stack.send("POST", &format!("{at}/rotate-secret"), json!({})).await.is(200);
        let second = rotated["client_secret"].as_str().unwrap().to_owned();
        assert!(accepts(&stack, &zone, &second).await && !accepts(&stack, &zone, &first).await);
        assert_eq!(reveal().await, second);

        let chosen = "a secret that somebody chose, of 32 characters or more";
        let changed = stack.send("PATCH", &at, json!({"client_secret": chosen})).await;
        assert!(!changed.text.contains(chosen));
        changed.is(200);
        assert!(accepts(&stack, &zone, chosen).await && !accepts(&stack, &zone, &second).await);
        assert_eq!(reveal().await, chosen);
        let row = stack.store.zone(&zone).applications().get(made["id"].as_str().unwrap()).await.unwrap().unwrap();
        assert!(SecretVerifier::parse(&row.secret_verifier.unwrap()).unwrap().is_slow());
    }

    async fn a_reveal_is_on_record_before_it_is_answered(stack: Stack) {
        let zone = stack.zone("Reveal").await;
        let path = format!("/v1/zones/{zone}/applications");
        let id = stack.make(&path, json!({"name": "a", "registration_method": "managed"})).await;
        let before = stack.evidence.stats().persisted;
        stack.get(&format!("{path}/{id}/client-secret")).await.is(200);
        assert_eq!(stack.evidence.stats().persisted, before + 1);
        stack.evidence.close().await;
        let refused = stack.get(&format!("{path}/{id}/client-secret")).await;
        assert_eq!((refused.status.as_u16(), refused.text("error")), (503, "audit_unavailable"));
        assert!(!refused.text.contains("cs_"));
    }

    async fn what_is_stored_of_a_secret_does_not_show_it(stack: Stack) {
        let zone = stack.zone("Sealed").await;
        let path = format!("/v1/zones/{zone}/applications");
        let made = stack.send("POST", &path, json!({"name": "a", "registration_method": "managed"})).await.is(201);
        let (id, secret) = (made["id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
        let row = stack.store.zone(&zone).applications().get(id).await.unwrap().unwrap();
        assert!(row.secret_verifier.unwrap().starts_with("hs256$"));
        let place = format!("zones/{zone}/applications/{id}/clientSecret");
        let envelope = stack.store.zone(&zone).secrets().envelope(&place).await.unwrap().unwrap();
        assert!(envelope.starts_with(b"CSS1"));
        assert!(!String::from_utf8_lossy(&envelope).contains(secret));
        let opened = stack.api.keyring.open(&place, &envelope).unwrap();
        assert_eq!(opened.expose().as_slice(), secret.as_bytes());
        stack.delete(&format!("{path}/{id}")).await.is(204);
        assert_eq!(stack.store.zone(&zone).secrets().envelope(&place).await.unwrap(), None);
    }
}
