//! Who is refused for trying too often, and who is not (spec: sts §14, §20.4 to §20.8, §20.12).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use caracal_net::Peer;
use serde_json::json;

use super::gated::provision_gated;
use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn mint(secret: &'static str) -> Request<Body> {
    let mut fields = caller("z1", "app-z1", secret);
    fields.extend([
        ("resource", "resource://desk"),
        ("scope", "desk:read"),
        ("agent_session_id", "s4"),
        ("delegation_edge_id", "e2"),
    ]);
    exchange(&fields)
}

fn from(host: u8, mut request: Request<Body>) -> Request<Body> {
    let address = SocketAddr::from((Ipv4Addr::new(192, 0, 2, host), 4711));
    let peer = Peer {
        address,
        tls: false,
    };
    request.extensions_mut().insert(peer);
    request
}

async fn status(sts: &TestSts, request: Request<Body>) -> (u16, String, bool) {
    let (status, headers, body) = sts.send(request).await;
    let error = body["error"].as_str().unwrap_or_default().to_owned();
    (status.as_u16(), error, headers.contains_key("retry-after"))
}

fn told(code: u16, error: &str, retry: bool) -> (u16, String, bool) {
    (code, error.to_owned(), retry)
}

pub async fn furnished(store: &Store, bus: &Bus, set: impl FnOnce(&mut Config)) -> TestSts {
    provision_gated(store).await;
    // A lease that no busy machine loses.
    let views = ViewConfig {
        feed_max_lag: Duration::from_secs(30),
        ..ViewConfig::default()
    };
    TestSts::replica(store.clone(), bus.clone(), views, set).await
}

pub fn bus() -> Bus {
    Bus::memory(Arc::new(SystemClock::new()))
}

caracal_store::on_each_engine! {
    async fn the_right_secret_passes_while_others_guess(store: Store) {
        let sts = furnished(&store, &bus(), |_| {}).await;
        let refused = told(401, "access_denied", false);
        let before = sts.sts.evidence.stats().persisted;
        for guess in 1..=60 {
            assert_eq!(status(&sts, from(1, mint("cs_guess"))).await, refused, "guess {guess}");
        }
        let locked = told(429, "provider_rate_limited", true);
        assert_eq!(status(&sts, from(1, mint("cs_guess"))).await, locked);
        assert_eq!(status(&sts, from(2, mint("cs_guess"))).await, refused, "from elsewhere");
        assert_eq!(sts.sts.evidence.stats().persisted, before + 1, "of 62 guesses one is written");

        let passes = told(200, "", false);
        assert_eq!(status(&sts, from(1, mint("cs_of_z1"))).await, passes);
        assert_eq!(status(&sts, from(3, mint("cs_of_z1"))).await, passes);
        let before = sts.sts.evidence.stats().persisted;
        crate::guesses::settle_now(&sts.sts, true).await;
        assert_eq!(sts.sts.evidence.stats().persisted, before + 1, "and the rest as a number");
    }

    async fn an_outage_is_no_failed_login(store: Store) {
        let keyring = keyring();
        provision(&store, &keyring, &keyring.derive(crate::CLIENT_SECRETS)).await;
        let views = ViewConfig {
            feed_max_lag: Duration::from_millis(100),
            ..ViewConfig::default()
        };
        let sts = TestSts::replica(store.clone(), bus(), views, |_| {}).await;
        assert_eq!(status(&sts, from(1, mint("cs_guess"))).await.0, 401);
        // The feed first: a store that is gone alone is read from memory, which is no outage.
        sts.stop.cancel();
        store.shutdown().await;
        let gone = async {
            while status(&sts, from(1, mint("cs_guess"))).await.0 != 503 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("memory is not trusted for ever");
        for secret in ["cs_guess", "cs_of_z1"] {
            for _ in 0..100 {
                let answer = status(&sts, from(2, mint(secret))).await;
                assert_eq!(answer, told(503, "sts_unavailable", true));
            }
        }
        let here = std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
        let now = sts.sts.clock.ticks();
        assert_eq!(sts.sts.lockout.locked_for("app-z1", here, now), None);
    }

    async fn a_governed_call_is_charged_once_and_its_excess_is_429(store: Store) {
        for charge_exchanges in [false, true] {
            // The resource of one round is the other's too, but each has a bus of its own.
            let sts = if charge_exchanges {
                let views = ViewConfig::default();
                TestSts::replica(store.clone(), bus(), views, |config| {
                    config.mint_rate = 4;
                    config.charge_exchanges = true;
                }).await
            } else {
                furnished(&store, &bus(), |config| config.mint_rate = 4).await
            };
            let mut calls = 0;
            let refused = loop {
                let (code, headers, body) = sts.send(mint("cs_of_z1")).await;
                if code != 200 {
                    break (code.as_u16(), body["error"].clone(), headers.get("retry-after").cloned());
                }
                let token = body["access_token"].as_str().unwrap();
                let mandate = serde_json::from_slice(Jws::parse(token).unwrap().payload()).unwrap();
                let request_id = RequestId::visible_ascii("r1").unwrap();
                let call = caracal_client::GatewayExchange {
                    token, mandate: &mandate, resource: "resource://desk", method: "GET",
                    path: "/", request_id: &request_id, within: WAITS,
                };
                let granted = crate::gateway::exchange(&sts.sts, call, false, patience(&sts.sts)).await;
                assert!(granted.is_ok(), "{:?}", granted.err());
                calls += 1;
            };
            assert_eq!(calls, if charge_exchanges { 2 } else { 4 });
            assert_eq!(refused.0, 429);
            assert_eq!(refused.1, "provider_rate_limited");
            assert_eq!(refused.2.unwrap(), "60");
        }
    }

    async fn an_operator_lowers_the_rate_of_every_sts(store: Store) {
        let sts = furnished(&store, &bus(), |config| config.mint_rate = 1000).await;
        let set = async |value: u32| {
            let mut tx = store.begin("test").await.unwrap();
            let setting = caracal_store::platform_settings::PlatformSetting {
                value,
                updated_by: "admin:test".to_owned(),
                updated_at: SystemClock::new().now(),
            };
            let name = caracal_store::platform_settings::MINT_RATE;
            tx.put_platform_setting(name, &setting).await.unwrap();
            tx.commit().await.unwrap();
            crate::rate::read(&sts.sts).await;
        };
        set(2).await;
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(status(&sts, mint("cs_of_z1")).await.0);
        }
        assert_eq!(seen, [200, 200, 429]);
        set(5000).await;
        assert_eq!(sts.sts.rate.limit(), 1000, "never above the ceiling");
    }

    async fn a_warm_mint_and_a_warm_call_do_not_visit_the_store(store: Store) {
        let sts = furnished(&store, &bus(), |_| {}).await;
        let before = store.visits();
        let round = async || {
            let (code, _, body) = sts.send(mint("cs_of_z1")).await;
            assert_eq!(code, 200, "{body}");
            let token = body["access_token"].as_str().unwrap();
            let mandate: caracal_model::Mandate =
                serde_json::from_slice(Jws::parse(token).unwrap().payload()).unwrap();
            let request_id = RequestId::visible_ascii("r1").unwrap();
            let call = caracal_client::GatewayExchange {
                token, mandate: &mandate, resource: "resource://desk", method: "GET", path: "/",
                request_id: &request_id,
                within: WAITS,
            };
            let granted = crate::gateway::exchange(&sts.sts, call, true, patience(&sts.sts)).await.ok().unwrap();
            assert_eq!(json!(granted.mandate.unwrap().target), json!(["resource://desk"]));
        };
        round().await;
        let cold = store.visits();
        assert!(cold > before, "a cold call is counted");
        for _ in 0..50 {
            round().await;
        }
        assert_eq!(store.visits(), cold);
    }
}
