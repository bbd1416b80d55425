//! Replacing the key-encryption key: what was sealed under the old one is sealed anew, and the old
//! one can go.

use caracal_crypto::envelope::{Kek, Keyring};
use caracal_crypto::os::OsRng;
use caracal_crypto::verifier::SecretVerifier;
use caracal_store::connections::ACCESS_TOKEN_AAD;
use caracal_store::reseal::Place;
use caracal_store::secrets::{application_secret_ref, provider_secret_ref};
use serde_json::json;

use super::stack::KEK;
use crate::application_secrets::PEPPER;
use crate::on_stack;
use crate::reseal::{Swept, sweep};

const NEXT: &str = "a4c1f8020e6a9c3d5b7f1a2c4e6d8b908f3d9a712c45e6b0d18f2a4c6e9b3d57";

fn ring(current: &str, previous: Option<&str>) -> Keyring {
    let kek = |hex| Kek::from_hex(hex).unwrap();
    Keyring::new(kek(current), previous.map(kek))
}

on_stack! {
    async fn what_the_previous_key_sealed_opens_without_it_after_a_sweep(stack: Stack) {
        let zone = stack.zone("Sealed").await;
        let at = |path: &str| format!("/v1/zones/{zone}/{path}");
        let app = stack.send("POST", &at("applications"), json!({"name": "desk", "registration_method": "managed"})).await.is(201);
        let key = json!({"name": "Key", "kind": "api_key", "config_json": {"header_name": "X-Key", "api_key": "k-1"}});
        let keyed = stack.send("POST", &at("providers"), key).await.is(201);
        let account = stack.send("POST", &at("providers"), json!({"name": "Accounts", "kind": "oauth2_authorization_code", "config_json": {
            "authorization_endpoint": "https://id.example/a", "token_endpoint": "https://id.example/t",
            "redirect_uri": "https://us.example/cb", "client_id": "c", "client_secret": "s",
        }})).await.is(201);
        let connection = json!({"provider_id": account["id"], "access_token": "t-1", "refresh_token": "r-1"});
        stack.send("POST", &at("provider-connections"), connection).await.is(201);

        let during = ring(NEXT, Some(KEK));
        let swept = sweep(&stack.store, &stack.api.custody, &during, &OsRng).await.unwrap();
        // Client secret, two providers, the zone's key, both tokens.
        assert_eq!(swept, Swept { resealed: 6, rehashed: 1, unopened: 0 });
        assert_eq!(sweep(&stack.store, &stack.api.custody, &during, &OsRng).await.unwrap(), Swept::default());

        let after = ring(NEXT, None);
        let scope = stack.store.zone(&zone);
        let (app, keyed) = (app["id"].as_str().unwrap(), keyed["id"].as_str().unwrap());
        for (place, expected) in [
            (application_secret_ref(&zone, app), None),
            (provider_secret_ref(&zone, keyed), Some(&br#"{"api_key":"k-1"}"#[..])),
        ] {
            let envelope = scope.secrets().envelope(&place).await.unwrap().unwrap();
            let opened = after.open(&place, &envelope).unwrap();
            assert!(expected.is_none_or(|expected| opened.expose() == expected), "{place}");
        }
        let place = application_secret_ref(&zone, app);
        let secret = after.open(&place, &scope.secrets().envelope(&place).await.unwrap().unwrap()).unwrap();
        let row = scope.applications().get(app).await.unwrap().unwrap();
        let verifier = SecretVerifier::parse(&row.secret_verifier.unwrap()).unwrap();
        assert!(verifier.verify(&after.derive(PEPPER), std::str::from_utf8(secret.expose()).unwrap()));
        let provider = caracal_model::ProviderId::trusted(account["id"].as_str().unwrap());
        let row = scope.connections().active(&provider, "caracal:shared").await.unwrap().unwrap();
        assert_eq!(after.open(ACCESS_TOKEN_AAD, &row.access_token).unwrap().expose(), b"t-1");
        for place in Place::ALL {
            let left = stack.store.sealed_otherwise(place, &after.prefix(), "", 10).await.unwrap();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    async fn what_neither_key_opens_is_counted_and_left_alone(stack: Stack) {
        let zone = stack.zone("Sealed").await;
        let other = "b4c1f8020e6a9c3d5b7f1a2c4e6d8b908f3d9a712c45e6b0d18f2a4c6e9b3d57";
        let swept = sweep(&stack.store, &stack.api.custody, &ring(NEXT, Some(other)), &OsRng).await.unwrap();
        assert_eq!((swept.resealed, swept.unopened), (0, 1), "the signing key of {zone}");
    }
}
