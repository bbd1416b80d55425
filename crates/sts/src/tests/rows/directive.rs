//! What the Gateway is told of an upstream, for each kind of provider (spec: sts §6.1), and that a
//! token endpoint that is down, slow or lies opens nothing (spec: sts §6.2, §6.3).

use std::time::Duration;

use caracal_client::{Exchange as _, GatewayExchange, RemoteExchange};
use caracal_model::Mandate;
use caracal_net::egress::{
    AddressGuard, Egress, Forwarder, PoolSettings, SystemResolver, client_config,
};
use caracal_net::{Limits, Server, Tasks};
use caracal_store::params;
use caracal_store::secrets::provider_secret_ref;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::tests::far::Far;
use crate::tests::gated::later;

const PROVIDER: &str = "UPDATE providers SET kind = $1, config_json = $2 WHERE id = 'p1'";
/// Longer than any exchange may take.
const DEADLINE: Duration = Duration::from_secs(15);

async fn provides(gated: &Gated, kind: &str, config: &Value, secret: &Value) {
    let zone = ZoneId::trusted("z1");
    let place = provider_secret_ref(&zone, "p1");
    let plain = secret.to_string();
    let sealed = gated.sts.sts.keyring.seal(&OsRng, &place, plain.as_bytes());
    let mut tx = gated.store.begin("a secret").await.unwrap();
    let mut secrets = tx.secrets(&zone);
    secrets
        .put(&place, &sealed.unwrap(), later(0))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    alter(gated, PROVIDER, &params![kind, config.to_string()]).await;
}

async fn token(gated: &Gated) -> String {
    let minted = granted(gated, "a mint", mint(&[]), &["allow complete"]).await;
    minted["access_token"].as_str().unwrap().to_owned()
}

caracal_store::on_each_engine! {
    async fn directives_6_1_row_by_row(store: Store) {
        let far = Far::start().await;
        let gated = Gated::reaching(store, far.fetch.clone()).await;
        let token = token(&gated).await;
        let hosts = json!(["desk.example", "other.example"]);
        let oauth = |more: Value| {
            let mut config = json!({"token_endpoint": far.url, "client_id": "me", "allowed_token_hosts": ["upstream.test"]});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            config
        };
        let key = json!({"api_key": "k-1"});
        for (row, kind, config, secret, expected) in [
            ("none", "none", json!({}), json!({}), json!({"auth_mode": "none"})),
            ("caracal_mandate", "caracal_mandate", json!({}), json!({}),
                json!({"auth_mode": "caracal_jwt", "auth_header": "Authorization", "auth_scheme": "Bearer"})),
            ("api_key: a header", "api_key", json!({"header_name": "X-Key"}), key.clone(),
                json!({"auth_mode": "provider_apikey", "auth_header": "X-Key", "provider_token": "k-1"})),
            ("api_key: a scheme, and hosts", "api_key",
                json!({"header_name": "Authorization", "auth_scheme": "Token", "allowed_token_hosts": hosts}), key.clone(),
                json!({"auth_mode": "provider_apikey", "auth_header": "Authorization", "auth_scheme": "Token",
                    "allowed_token_hosts": hosts, "provider_token": "k-1"})),
            ("api_key: the query", "api_key", json!({"auth_location": "query", "query_param_name": "key"}), key,
                json!({"auth_mode": "provider_apikey", "auth_location": "query", "query_param_name": "key",
                    "provider_token": "k-1"})),
            ("bearer_token", "bearer_token", json!({}), json!({"bearer_token": "b-1"}),
                json!({"auth_mode": "provider_oauth", "auth_header": "Authorization", "auth_scheme": "Bearer",
                    "provider_token": "b-1"})),
            ("bearer_token: overridden", "bearer_token",
                json!({"auth_header": "X-Auth", "auth_scheme": "Token", "allowed_token_hosts": hosts,
                    "forward_caracal_identity": true}), json!({"bearer_token": "b-1"}),
                json!({"auth_mode": "provider_oauth", "auth_header": "X-Auth", "auth_scheme": "Token",
                    "allowed_token_hosts": hosts, "provider_token": "b-1", "forward_caracal_identity": true})),
            ("http_basic", "http_basic", json!({"username": "me", "allowed_token_hosts": hosts}),
                json!({"password": "p:1"}),
                json!({"auth_mode": "provider_oauth", "auth_header": "Authorization", "auth_scheme": "Basic",
                    "allowed_token_hosts": hosts, "provider_token": "bWU6cDox"})),
            // When a service's token ends is not told, nor are its endpoint's hosts.
            ("oauth2_client_credentials", "oauth2_client_credentials", oauth(json!({})), json!({"client_secret": "s"}),
                json!({"auth_mode": "provider_oauth", "auth_header": "Authorization", "auth_scheme": "Bearer",
                    "provider_token": "t1"})),
            ("oauth2_client_credentials: overridden", "oauth2_client_credentials",
                oauth(json!({"auth_header": "X-Auth", "auth_scheme": "Token"})), json!({"client_secret": "s"}),
                json!({"auth_mode": "provider_oauth", "auth_header": "X-Auth", "auth_scheme": "Token",
                    "provider_token": "t2"})),
        ] {
            provides(&gated, kind, &config, &secret).await;
            let answer = granted(&gated, row, called(&token, &[]), &["allow complete"]).await;
            let mut whole = json!({"url": "https://desk.example", "provider_id": "p1"});
            whole.as_object_mut().unwrap().extend(expected.as_object().unwrap().clone());
            assert_eq!(answer["upstreams"], json!({"resource://desk": whole}), "{row}");
        }

        let mut config = oauth(json!({"auth_scheme": "Token"}));
        provides(&gated, "oauth2_authorization_code", &config, &json!({"client_secret": "s"})).await;
        super::account::connect(&gated, "app-z1").await;
        let row = "oauth2_authorization_code";
        let answer = granted(&gated, row, called(&token, &[]), &["allow complete"]).await;
        let told = &answer["upstreams"]["resource://desk"];
        let left = told["expires_at"].as_i64().unwrap() - later(0).unix_seconds();
        assert!((590..=600).contains(&left), "{told}");
        assert!(!told["connection_id"].as_str().unwrap().is_empty(), "{told}");
        assert_eq!(told, &json!({
            "url": "https://desk.example", "provider_id": "p1", "auth_mode": "provider_oauth",
            "auth_header": "Authorization", "auth_scheme": "Token", "provider_token": "account of app-z1",
            "connection_id": told["connection_id"], "expires_at": told["expires_at"],
        }));

        // What the API would not take opens nothing either.
        config["token_endpoint"] = json!("https://upstream.test/");
        let failed = told_failed();
        for (row, kind, config) in [
            ("a kind of nobody", "ticket", json!({})),
            ("an API key without a place", "api_key", json!({})),
            ("no name", "http_basic", json!({})),
        ] {
            provides(&gated, kind, &config, &json!({"api_key": "k", "password": "p"})).await;
            let (status, headers, body) = gated.sts.send(called(&token, &[])).await;
            is_whole(row, status, &headers, &body);
            assert!(failed.contains(&(status.as_u16(), body["error"].as_str().unwrap())), "{row}: {body}");
        }
        gated.stop().await;
    }

    async fn a_token_endpoint_that_is_down_slow_or_lies_opens_nothing_in_time(store: Store) {
        let far = Far::start().await;
        let gated = Gated::reaching(store, far.fetch.clone()).await;
        let token = token(&gated).await;
        let service = told(502, "http_request_failed", "the provider's credential is not available")
            .on_record(&["deny provider_credential_unavailable", "deny exchange_denied"]);
        for (n, mode) in ["down", "slow", "garbage", "page", "huge"].into_iter().enumerate() {
            far.behaves(mode);
            // Each configuration is another credential.
            let config = json!({"token_endpoint": far.url, "client_id": format!("me-{n}"), "allowed_token_hosts": ["upstream.test"]});
            provides(&gated, "oauth2_client_credentials", &config, &json!({"client_secret": "s"})).await;
            let refused = check(&gated, mode, called(&token, &[]), service);
            tokio::time::timeout(DEADLINE, refused).await.expect("within the deadline");
            granted(&gated, "a mint needs no provider", mint(&[]), &["allow complete"]).await;
        }
        gated.stop().await;
    }

    async fn a_slow_token_endpoint_is_its_own_failure_over_both_hops(store: Store) {
        let far = Far::start().await;
        let gated = Gated::reaching(store, far.fetch.clone()).await;
        let (remote, tasks) = over_the_wire(&gated).await;
        let token = token(&gated).await;
        let mandate: Mandate = serde_json::from_slice(Jws::parse(&token).unwrap().payload()).unwrap();
        far.behaves("slow");
        let config = json!({"token_endpoint": far.url, "client_id": "me", "allowed_token_hosts": ["upstream.test"]});
        provides(&gated, "oauth2_client_credentials", &config, &json!({"client_secret": "s"})).await;
        let ids: Vec<_> = (0..4).map(|n| RequestId::visible_ascii(&format!("r{n}")).unwrap()).collect();
        let call = |n: usize| GatewayExchange {
            token: &token,
            mandate: &mandate,
            resource: "resource://desk",
            method: "GET",
            path: "/",
            request_id: &ids[n],
            within: WAITS,
        };
        let told = tokio::join!(
            remote.exchange(call(0)),
            remote.exchange(call(1)),
            remote.exchange(call(2)),
            gated.sts.sts.exchange(call(3)),
        );
        let told = [told.0, told.1, told.2, told.3].map(|told| told.unwrap_err().to_string());
        for told in told {
            assert_eq!(told, "502 http_request_failed: the provider's credential is not available");
        }
        assert!(!remote.circuit().open, "the STS is well: one provider's zone must not shut out the others");
        tasks.shutdown(WAITS).await;
        gated.stop().await;
    }
}

/// The STS over the wire, as a Gateway in another process asks it.
async fn over_the_wire(gated: &Gated) -> (RemoteExchange, Tasks) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let tasks = Tasks::new();
    let router = crate::router(gated.sts.sts.clone(), false);
    let server = Server::new(listener, router, Limits::default());
    tasks.spawn("sts", server.serve(tasks.stop()));
    let (clock, resolver) = (system_clock(), Arc::new(SystemResolver));
    let egress = Egress::new(AddressGuard::upstream(), resolver, clock.clone());
    let tls = client_config(None).unwrap();
    let exchange = RemoteExchange::new(
        &url.parse().unwrap(),
        Some(HmacKey::from_hex(KEY).unwrap()),
        clock,
        Arc::new(OsRng),
        Forwarder::new(egress, tls, PoolSettings::default()),
        WAITS,
    );
    (exchange.unwrap(), tasks)
}

/// What a credential that cannot be used may be told as: refused before the answer, or while it is made.
const fn told_failed() -> [(u16, &'static str); 2] {
    [(403, "provider_unavailable"), (502, "http_request_failed")]
}
