//! Credentials against a token endpoint that behaves as told, over TLS on this machine.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use caracal_bus::Bus;
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::{Clock as _, ProviderId, Secret, Timestamp, ZoneId};
use caracal_net::Tasks;
use caracal_net::egress::Fetcher;
use caracal_store::Store;
use caracal_store::connections::{
    ACCESS_TOKEN_AAD, REFRESH_TOKEN_AAD, SHARED_SUBJECT, SealedTokens,
};
use caracal_store::zones::{Author, Provenance};
use caracal_view::{Provider, ProviderSecret};
use serde_json::{Value, json};

use super::{AtHand, CredentialFault, at_hand, obtain, without_user};
use crate::patience::Patience;
use crate::tests::far::{Endpoint, Far};
use crate::tests::{TestSts, patience};

mod faults;

const SECOND: Duration = Duration::from_secs(1);

struct World {
    sts: TestSts,
    endpoint: Arc<Endpoint>,
    url: String,
    zone: ZoneId,
    fetch: Fetcher,
    _tasks: Tasks,
}

impl World {
    async fn start(store: Store) -> Self {
        let clock = Arc::new(SystemClock::new());
        Self::on(store, Bus::memory(clock)).await
    }

    async fn on(store: Store, bus: Bus) -> Self {
        let Far {
            endpoint,
            url,
            fetch,
            tasks,
        } = Far::start().await;
        Self {
            sts: TestSts::start_on(store, bus, fetch.clone()).await,
            fetch,
            endpoint,
            url,
            zone: ZoneId::trusted("z1"),
            _tasks: tasks,
        }
    }

    fn now(&self) -> Timestamp {
        SystemClock::new().now()
    }

    fn mode(&self, mode: &'static str) {
        *self.endpoint.mode.lock() = mode;
        self.endpoint.asked.lock().clear();
    }

    fn provider(&self, id: &str, kind: &str, hosts: &[&str]) -> Provider {
        Provider {
            id: ProviderId::trusted(id),
            identifier: "provider://p".into(),
            kind: kind.into(),
            config: json!({
                "token_endpoint": self.url, "client_id": "me", "allowed_token_hosts": hosts,
            }),
            secret: ProviderSecret::here(br#"{"client_secret":"s"}"#.to_vec()),
            fingerprint: [7; 32],
        }
    }

    fn service(&self, id: &str) -> Provider {
        self.provider(id, "oauth2_client_credentials", &["upstream.test"])
    }

    /// An account provider, stored, because connections refer to it.
    async fn accounts(&self, id: &str) -> Provider {
        let provider = self.provider(id, "oauth2_authorization_code", &["upstream.test"]);
        let author = Author {
            name: "t".to_owned(),
            via_operator: false,
            at: self.now(),
        };
        let row = caracal_store::providers::Provider {
            id: provider.id.clone(),
            name: id.to_owned(),
            identifier: format!("provider://{id}"),
            kind: provider.kind.to_string(),
            config: provider.config.as_object().unwrap().clone(),
            secret_config_keys: Vec::new(),
            connectivity_failed_at: None,
            provenance: Provenance::created(&author),
            archived_at: None,
        };
        let mut tx = self.sts.sts.store.begin("a test's provider").await.unwrap();
        tx.providers(&self.zone).insert(&row).await.unwrap();
        tx.commit().await.unwrap();
        provider
    }

    async fn connect(
        &self,
        provider: &Provider,
        subject: &str,
        token: &str,
        refresh: Option<&str>,
        left: i64,
    ) {
        let sts = &self.sts.sts;
        let seal = |aad, text: &str| sts.keyring.seal(&OsRng, aad, text.as_bytes()).unwrap();
        let (access, refresh) = (
            seal(ACCESS_TOKEN_AAD, token),
            refresh.map(|text| seal(REFRESH_TOKEN_AAD, text)),
        );
        let expires_at = Timestamp::from_unix_seconds(self.now().unix_seconds() + left);
        let tokens = SealedTokens {
            access: &access,
            refresh: refresh.as_deref(),
            expires_at: Some(expires_at),
        };
        let mut tx = sts.store.begin("a test's connection").await.unwrap();
        let id = sts.ids.uuid();
        tx.connections(&self.zone)
            .put(&id, &provider.id, subject, tokens, self.now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        sts.announce.announce().await;
    }

    async fn credential(&self, provider: &Provider, subject: &str) -> String {
        credential(&self.sts, &self.zone, provider, subject).await
    }
}

/// As an exchange gets it: what is at hand, else what is obtained.
async fn credential(sts: &TestSts, zone: &ZoneId, provider: &Provider, subject: &str) -> String {
    let patience = patience(&sts.sts);
    credential_within(sts, zone, provider, subject, patience).await
}

/// The same, by somebody who waits so long.
async fn credential_within(
    sts: &TestSts,
    zone: &ZoneId,
    provider: &Provider,
    subject: &str,
    patience: Patience,
) -> String {
    let sts = &sts.sts;
    let provider = &Arc::new(provider.clone());
    let mut found = at_hand(sts, zone, provider, subject, None).await.unwrap();
    if matches!(found, AtHand::Due | AtHand::Fetch) {
        let obtained = obtain(sts, zone, provider, subject, patience).await;
        found = at_hand(sts, zone, provider, subject, Some(obtained))
            .await
            .unwrap();
    }
    match found {
        AtHand::Ready(credential) => credential.token.expose().clone(),
        AtHand::Fault(fault) => format!("{fault:?}"),
        other => format!("{other:?}"),
    }
}

caracal_store::on_each_engine! {
    async fn a_service_token_is_fetched_once_for_everybody_and_held(store: Store) {
        let world = World::start(store).await;
        let provider = world.service("p1");
        let calls = (0..16).map(|_| world.credential(&provider, "app"));
        let tokens = futures_util::future::join_all(calls).await;
        assert!(tokens.iter().all(|token| token == "t1"), "{tokens:?}");
        assert_eq!(world.endpoint.count(), 1);
        let asked = world.endpoint.asked.lock()[0].clone();
        assert_eq!(asked["grant_type"], "client_credentials");
        // Another configuration is another credential.
        let changed = Provider { fingerprint: [8; 32], ..world.service("p1") };
        assert_eq!(world.credential(&changed, "app").await, "t2");
        let zone = world.sts.sts.views.zone(&world.zone).await.unwrap();
        let sts = &world.sts.sts;
        let injected = without_user(sts, &zone, &Arc::new(changed), patience(sts)).await.unwrap();
        assert_eq!(injected.token.expose(), "t2");
        let left = injected.expires_at.unwrap().since(world.now());
        assert!(left <= 600 * SECOND && left > 500 * SECOND, "{left:?}");
    }

    async fn an_endpoint_that_fails_or_lies_gives_no_credential(store: Store) {
        let world = World::start(store).await;
        let mut table = String::new();
        for (n, mode) in ["", "once down", "down", "denies", "moved", "huge", "garbage", "other type"].into_iter().enumerate() {
            world.mode(mode);
            let told = world.credential(&world.service(&format!("p{n}")), "app").await;
            writeln!(table, "{mode:<10} {told}, asked {}", world.endpoint.count()).unwrap();
        }
        world.mode("");
        for hosts in [&[][..], &["other.test"]] {
            let provider = world.provider("q", "oauth2_client_credentials", hosts);
            let told = world.credential(&provider, "app").await;
            writeln!(table, "{hosts:?} {told}, asked {}", world.endpoint.count()).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r#"
                   t1, asked 1
        once down  t2, asked 2
        down       Failed, asked 2
        denies     Failed, asked 1
        moved      Failed, asked 1
        huge       Failed, asked 1
        garbage    Failed, asked 1
        other type Failed, asked 1
        [] Failed, asked 0
        ["other.test"] Failed, asked 0
        "#); }
    }

    async fn a_provider_that_keeps_failing_is_left_alone_by_every_replica(store: Store) {
        let world = World::start(store).await;
        let provider = world.service("p1");
        world.mode("garbage");
        for n in 1..=5 {
            assert_eq!(world.credential(&provider, "app").await, "Failed");
            assert_eq!(world.endpoint.count(), n);
        }
        world.mode("");
        assert_eq!(world.credential(&provider, "app").await, "Failed");
        assert_eq!(world.endpoint.count(), 0, "the circuit is open");
        assert_eq!(world.credential(&world.service("p2"), "app").await, "t1", "it is one provider's");
    }

    async fn a_success_clears_what_was_counted(store: Store) {
        let world = World::start(store).await;
        for round in 0..3 {
            world.mode("garbage");
            for _ in 0..4 {
                assert_eq!(world.credential(&world.service("p1"), "app").await, "Failed");
            }
            world.mode("");
            let other = Provider { fingerprint: [round; 32], ..world.service("p1") };
            assert_eq!(world.credential(&other, "app").await, "t1");
        }
    }

    async fn the_own_connection_goes_before_the_shared_one(store: Store) {
        let world = World::start(store).await;
        let provider = world.accounts("p1").await;
        assert_eq!(world.credential(&provider, "user-1").await, "NotProvisioned");
        world.connect(&provider, SHARED_SUBJECT, "shared", None, 600).await;
        assert_eq!(world.credential(&provider, "user-1").await, "shared");
        world.connect(&provider, "user-1", "own", None, 600).await;
        assert_eq!(world.credential(&provider, "user-1").await, "own");
        assert_eq!(world.credential(&provider, "user-2").await, "shared");
        let sts = &world.sts.sts;
        let mut tx = sts.store.begin("a test's revocation").await.unwrap();
        assert_eq!(tx.connections(&world.zone).revoke_subject("user-1", world.now()).await.unwrap(), 1);
        tx.commit().await.unwrap();
        sts.announce.announce().await;
        assert_eq!(world.credential(&provider, "user-1").await, "shared");
    }

    async fn a_connection_that_ended_says_so_and_is_marked(store: Store) {
        let world = World::start(store).await;
        let provider = world.accounts("p1").await;
        world.connect(&provider, "user-1", "old", None, -1).await;
        assert_eq!(world.credential(&provider, "user-1").await, "Expired");
        let row = world.sts.sts.store.zone(&world.zone).connections().last(&provider.id, "user-1").await;
        assert_eq!(row.unwrap().unwrap().status, "expired");
        assert_eq!(world.credential(&provider, "user-1").await, "NotProvisioned");
        assert_eq!(CredentialFault::Expired.refusal().row().error, "credential_expired_not_renewable");
    }

    async fn a_refresh_token_is_used_once_however_many_want_it(store: Store) {
        let world = World::start(store).await;
        let provider = world.accounts("p1").await;
        world.mode("rotating");
        "r0".clone_into(&mut world.endpoint.refresh.lock());
        world.connect(&provider, "user-1", "t0", Some("r0"), 20).await;
        let calls = (0..12).map(|_| world.credential(&provider, "user-1"));
        let tokens = futures_util::future::join_all(calls).await;
        assert!(tokens.iter().all(|token| token == "t1"), "{tokens:?}");
        assert_eq!(world.endpoint.count(), 1);
        let row = world.sts.sts.store.zone(&world.zone).connections().active(&provider.id, "user-1").await;
        let row = row.unwrap().unwrap();
        assert_eq!(row.version, 2);
        let opened = world.sts.sts.keyring.open(REFRESH_TOKEN_AAD, &row.refresh_token.unwrap()).unwrap();
        assert_eq!(opened.expose(), b"r1", "the rotated token is kept");
    }

    async fn a_refresh_that_fails_is_the_fault_of_all_who_waited(store: Store) {
        let world = World::start(store).await;
        let provider = world.accounts("p1").await;
        world.mode("denies");
        world.connect(&provider, "user-1", "t0", Some("r0"), 20).await;
        let calls = (0..6).map(|_| world.credential(&provider, "user-1"));
        let told = futures_util::future::join_all(calls).await;
        assert!(told.iter().all(|fault| fault == "RefreshFailed"), "{told:?}");
        assert_eq!(world.endpoint.count(), 1);
        // One subject whose grant is gone says nothing about the provider.
        world.mode("");
        world.connect(&provider, "user-2", "t0", Some("r0"), 20).await;
        assert_eq!(world.credential(&provider, "user-2").await, "t1");
    }
}

#[test]
fn stored_credentials_are_read_by_kind() {
    let provider = |kind: &str, config: Value| Provider {
        id: ProviderId::trusted("p"),
        identifier: "provider://p".into(),
        kind: kind.into(),
        config,
        secret: ProviderSecret::None,
        fingerprint: [0; 32],
    };
    for (kind, config, secret, expected) in [
        ("api_key", json!({}), r#"{"api_key":"k"}"#, Some("k")),
        ("api_key", json!({}), r#"{"bearer_token":"k"}"#, None),
        (
            "bearer_token",
            json!({}),
            r#"{"bearer_token":"t"}"#,
            Some("t"),
        ),
        (
            "http_basic",
            json!({"username": "Aladdin"}),
            r#"{"password":"open sesame"}"#,
            Some("QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ),
        ("http_basic", json!({"username": "Aladdin"}), "{}", None),
        ("http_basic", json!({}), r#"{"password":"p"}"#, None),
        ("telepathy", json!({}), r#"{"api_key":"k"}"#, None),
        ("api_key", json!({}), "not json", None),
    ] {
        let document = Secret::new(secret.as_bytes().to_vec());
        let found = super::stored(&provider(kind, config), &document);
        let found = found.map(|credential| credential.token.expose().clone());
        assert_eq!(found.as_deref(), expected, "{kind} {secret}");
    }
}
