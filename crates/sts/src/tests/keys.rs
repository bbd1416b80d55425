//! Signing keys over several replicas (spec: sts §4, §16, §20.7).

use std::time::Duration;

use caracal_model::{Mandate, TokenUse, Topic};
use caracal_store::testing::raw;
use serde_json::json;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn jwks(zone: &str) -> Request<Body> {
    let uri = format!("/.well-known/jwks.json?zone_id={zone}");
    Request::get(uri).body(Body::empty()).unwrap()
}

fn operator(method: &str, path: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("authorization", "Bearer rotate-me");
    request.body(Body::empty()).unwrap()
}

async fn kids(sts: &TestSts, zone: &str) -> Vec<String> {
    let (_, _, body) = sts.send(jwks(zone)).await;
    let keys = body["keys"].as_array().cloned().unwrap_or_default();
    let kid = |key: &Value| key["kid"].as_str().unwrap().to_owned();
    keys.iter().map(kid).collect()
}

/// A session mandate of `app-z1`, signed by whatever signs at this replica.
async fn mandate(sts: &TestSts) -> (String, String) {
    let zone = ZoneId::trusted("z1");
    let zone = sts.sts.views.zone(&zone).await.unwrap();
    let now = SystemClock::new().now().unix_seconds();
    let mandate: Mandate = serde_json::from_value(json!({
        "iss": ISSUER, "sub": "app-z1", "aud": [ISSUER], "exp": now + 900, "iat": now, "jti": "j1",
        "zone_id": "z1", "client_id": "app-z1", "sid": "r1", "root_sid": "r1", "use": "session",
        "sub_type": "application",
    }))
    .unwrap();
    let token = crate::sign::sign(&sts.sts, &zone, &mandate).unwrap();
    let token = token.expose().clone();
    let kid = Jws::parse(&token).unwrap().kid().to_owned();
    (token, kid)
}

async fn is_valid(sts: &TestSts, token: &str) -> bool {
    let zone = ZoneId::trusted("z1");
    let zone = sts.sts.views.zone(&zone).await.unwrap();
    crate::gateway::verified(&sts.sts, token, &zone, TokenUse::Session).is_ok()
}

caracal_store::on_each_engine! {
    async fn a_rotation_reaches_every_replica_and_old_mandates_stay_valid(store: Store) {
        let keyring = keyring();
        provision(&store, &keyring, &keyring.derive(crate::CLIENT_SECRETS)).await;
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        let replica = async |store: &Store| {
            TestSts::replica(store.clone(), bus.clone(), ViewConfig::default(), |_| {}).await
        };
        let (one, two) = (replica(&store).await, replica(&store).await);
        let (old, first) = mandate(&one).await;
        assert_eq!(first, "kid-z1");
        assert!(is_valid(&two, &old).await);
        let topic = Topic::KeysInvalidate.name();
        let before = bus.last(topic).await.unwrap();

        let path = "/internal/zones/z1/signing-key/rotate";
        let (status, _, next) = one.send(operator("POST", path)).await;
        assert_eq!(status, 200);
        let next = next["kid"].as_str().unwrap().to_owned();
        for sts in [&one, &two] {
            eventually("the next key is published", async || kids(sts, "z1").await.contains(&next))
                .await;
            assert_eq!(mandate(sts).await.1, first, "and does not sign yet");
        }
        let (_, _, list) = two.send(operator("GET", "/internal/zones/z1/signing-key")).await;
        let states: Vec<_> = list["keys"].as_array().unwrap().iter()
            .map(|key| (key["kid"].as_str().unwrap(), key["state"].as_str().unwrap())).collect();
        assert_eq!(states, [(&*first, "signing"), (&*next, "next")]);

        let path = format!("{path}?emergency=true");
        let (_, _, leaked) = two.send(operator("POST", &path)).await;
        let now = leaked["kid"].as_str().unwrap().to_owned();
        for sts in [&one, &two] {
            eventually("the new key signs", async || mandate(sts).await.1 == now).await;
            assert!(is_valid(sts, &old).await, "what the old key signed stays valid");
        }
        let (new, _) = mandate(&two).await;
        assert!(is_valid(&one, &new).await);

        let history = bus.incarnation().await.unwrap();
        let told = bus.tail_within(&history, &[(topic, before)], PATIENCE, 10).await.unwrap();
        // Each at least once, whichever of the two relays sent it.
        let news: std::collections::BTreeSet<_> =
            told.iter().map(|entry| entry.fields.get("outbox_id").unwrap()).collect();
        assert_eq!(news.len(), 2, "{told:?}");
        assert!(told.iter().all(|entry| entry.fields["zone_id"] == "z1"), "{told:?}");
    }

    async fn a_zone_that_came_without_a_key_gets_one_when_somebody_asks(store: Store) {
        let sts = TestSts::start(store.clone()).await;
        let keyless = raw("DELETE FROM zone_keys WHERE zone_id = 'z2'");
        let mut tx = store.begin("test").await.unwrap();
        tx.execute(&keyless, &[]).await.unwrap();
        tx.commit().await.unwrap();
        let (status, _, body) = sts.send(jwks("z2")).await;
        assert_eq!((status.as_u16(), body["keys"].as_array().unwrap().len()), (200, 1));
        let made = kids(&sts, "z2").await;
        assert_eq!(kids(&sts, "z2").await, made, "and keeps it");
        assert_eq!(sts.send(jwks("z9")).await.0, 404);
    }

    async fn only_the_operator_of_the_sts_manages_keys(store: Store) {
        let sts = TestSts::start(store.clone()).await;
        let mut wrong = operator("GET", "/internal/zones/z1/signing-key");
        wrong.headers_mut().insert("authorization", "Bearer guess".parse().unwrap());
        let (status, headers, _) = sts.send(wrong).await;
        assert_eq!(status, 401);
        assert!(headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
        assert_eq!(sts.send(operator("GET", "/internal/zones/z9/signing-key")).await.0, 404);
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        let closed = TestSts::replica(store, bus, ViewConfig::default(), |config| {
            config.admin_token = None;
        }).await;
        assert_eq!(closed.send(operator("GET", "/internal/zones/z1/signing-key")).await.0, 404);
        let path = "/internal/zones/z1/signing-key/rotate";
        assert_eq!(closed.send(operator("POST", path)).await.0, 404);
    }
}
