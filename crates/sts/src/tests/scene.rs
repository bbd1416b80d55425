//! A zone with a policy, a Control key and a trusted issuer, and exchanges in it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use caracal_bus::Bus;
use caracal_crypto::es256::{Jws, SigningKey};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_crypto::verifier::SecretVerifier;
use caracal_evidence::{Pending, Relay, Sink, SinkError};
use caracal_model::policy::SCHEMA_VERSION;
use caracal_model::{ApplicationId, Change, Clock as _, Kid, Mandate, ZoneId};
use caracal_policy::manifest_sha256;
use caracal_store::Store;
use caracal_store::applications::Application;
use caracal_store::policies::{Policy, PolicyVersion};
use caracal_store::policy_sets::{PolicySet, PolicySetVersion};
use caracal_store::resources::Resource;
use caracal_store::subject_issuers::SubjectIssuer;
use caracal_store::zones::{Author, Provenance};
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::told::{is_token, is_whole, on_record};
use super::{TestSts, caller, exchange, keyring, provision};
use crate::form::ID_TOKEN_TYPE;

pub const IDP: &str = "https://idp.example";

pub fn zone() -> ZoneId {
    ZoneId::trusted("z1")
}

pub fn now() -> i64 {
    SystemClock::new().now().unix_seconds()
}

/// Where the evidence ends up.
#[derive(Default)]
struct Ledger(Mutex<Vec<Value>>);

#[async_trait]
impl Sink for Ledger {
    async fn deliver(&self, batch: &[Pending]) -> Result<caracal_evidence::Delivered, SinkError> {
        let events = batch
            .iter()
            .map(|event| serde_json::from_str(&event.wire).unwrap());
        self.0.lock().extend(events.collect::<Vec<Value>>());
        Ok(caracal_evidence::Delivered::Kept)
    }
}

/// `z1` with a policy, the desk and the Control resource, a Control key and a trusted issuer.
pub struct Scene {
    pub sts: TestSts,
    pub key: SigningKey,
    ledger: Arc<Ledger>,
}

pub fn application(sts: &TestSts, id: &str, traits: &[&str], made: &Provenance) -> Application {
    let pepper = sts.sts.keyring.derive(crate::CLIENT_SECRETS);
    Application {
        id: ApplicationId::trusted(id),
        name: id.to_owned(),
        registration_method: "managed".to_owned(),
        secret_verifier: Some(SecretVerifier::for_generated(&pepper, "cs_of_key").to_string()),
        traits: traits.iter().map(|name| (*name).to_owned()).collect(),
        expires_at: None,
        provenance: made.clone(),
        archived_at: None,
    }
}

fn resource(
    identifier: &str,
    upstream: Option<&str>,
    scopes: &[&str],
    made: &Provenance,
) -> Resource {
    Resource {
        id: caracal_model::ResourceId::trusted(format!("id-{}", scopes.len())),
        name: identifier.to_owned(),
        identifier: identifier.to_owned(),
        upstream_url: upstream.map(str::to_owned),
        credential_provider_id: caracal_model::ProviderId::trusted("provider-none-z1"),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        operations: json!([]),
        operation_enforcement: "transport_uniform".to_owned(),
        provenance: made.clone(),
        archived_at: None,
    }
}

impl Scene {
    pub async fn start(store: Store) -> Self {
        let keyring = keyring();
        provision(&store, &keyring, &keyring.derive(crate::CLIENT_SECRETS)).await;
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        let (sts, drain) = TestSts::on(store.clone(), bus).await;
        let ledger = Arc::<Ledger>::default();
        let relay = Relay::new(drain, ledger.clone(), Arc::new(OsRng));
        caracal_net::Tasks::new().spawn("evidence", relay.run(sts.stop.clone()));
        let zone = zone();
        let at = SystemClock::new().now();
        let author = Author {
            name: "admin:1".to_owned(),
            via_operator: false,
            at,
        };
        let made = Provenance::created(&author);
        let soon = at.plus(std::time::Duration::from_secs(3000)).iso_seconds();
        let (soon, past) = (
            format!("control:expires:{soon}"),
            "control:expires:2020-01-01T00:00:00Z",
        );
        let (invoke, read) = ("control:invoke", "control:scope:control:app:read");
        let mut tx = store.begin("a scene").await.unwrap();
        tx.providers(&zone).none(&author).await.unwrap();
        for row in [
            resource(
                "resource://desk",
                Some("https://desk.example"),
                &["desk:read"],
                &made,
            ),
            resource(
                "caracal-control",
                None,
                &["control:app:read", "control:app:write"],
                &made,
            ),
        ] {
            tx.resources(&zone).insert(&row).await.unwrap();
        }
        for (id, traits) in [
            ("key", vec![invoke, read]),
            ("key-soon", vec![invoke, read, &soon, "control:max-ttl:120"]),
            ("key-past", vec![invoke, read, past]),
            ("key-odd", vec![invoke, read, "control:expires:tomorrow"]),
            ("no-key", vec![read]),
        ] {
            tx.applications(&zone)
                .insert(&application(&sts, id, &traits, &made))
                .await
                .unwrap();
        }
        for (name, audience) in [(IDP, "caracal"), ("https://other.example", "other")] {
            let row = SubjectIssuer {
                id: format!("id-{audience}"),
                issuer: name.to_owned(),
                jwks_url: format!("{name}/keys"),
                audience: audience.to_owned(),
                provenance: made.clone(),
                archived_at: None,
            };
            tx.subject_issuers(&zone).insert(&row).await.unwrap();
        }
        activate(&mut tx, &zone, &made).await;
        tx.change(&Change::Zone(zone));
        tx.commit().await.unwrap();
        sts.sts.announce.announce().await;
        let key = SigningKey::generate(Kid::trusted("idp-1")).unwrap();
        sts.idp.publishes(&[&key]);
        Self { sts, key, ledger }
    }

    /// The evidence since this was asked last.
    pub async fn evidence(&self) -> Vec<Value> {
        let all = async {
            loop {
                let stats = self.sts.sts.evidence.stats();
                if stats.delivered >= stats.persisted {
                    return std::mem::take(&mut *self.ledger.0.lock());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, all)
            .await
            .expect("evidence is delivered")
    }

    /// Sets whether the zone takes actor tokens.
    pub async fn actors(&self, taken: bool) {
        let (sts, zone) = (&self.sts.sts, zone());
        let mut tx = sts.store.begin("a setting").await.unwrap();
        let mut row = tx.zones().lock(&zone).await.unwrap().unwrap();
        row.actor_tokens = taken;
        tx.zones().update(&row).await.unwrap();
        tx.change(&Change::Zone(zone));
        tx.commit().await.unwrap();
        sts.announce.announce().await;
    }

    pub fn id_token(&self, change: impl FnOnce(&mut Value)) -> String {
        let at = now();
        let mut claims = json!({
            "iss": IDP, "sub": "user_123", "aud": "caracal", "exp": at + 300, "iat": at,
            "nonce": "n", "email": "ann@example.com",
        });
        change(&mut claims);
        self.key.sign(&claims).unwrap()
    }

    /// Answers with status, code and description, and with the evidence that was written; headers
    /// and body are those of such an answer.
    pub async fn row(&self, case: &str, fields: &[(&str, &str)]) -> String {
        self.evidence().await;
        let (status, headers, body) = self.sts.send(exchange(fields)).await;
        is_whole(case, status, &headers, &body);
        if status.is_success() {
            is_token(case, &headers, &body);
        }
        let said = match body["error"].as_str() {
            Some(error) => format!("{error}: {}", body["error_description"].as_str().unwrap()),
            None => format!(
                "{} for {} s",
                body["issued_token_type"].as_str().unwrap_or("-"),
                body["expires_in"]
            ),
        };
        let said = said.replace("urn:ietf:params:oauth:token-type:", "");
        let events = on_record(case, &headers, &self.evidence().await);
        let row = format!(
            "{case:<22} | {} {said} | {}",
            status.as_u16(),
            events.join(", ")
        );
        row.trim_end().to_owned()
    }

    pub async fn minted(&self, fields: &[(&str, &str)]) -> Mandate {
        let (status, _, body) = self.sts.send(exchange(fields)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        claims(body["access_token"].as_str().unwrap())
    }

    pub async fn token(&self, fields: &[(&str, &str)]) -> String {
        let (status, _, body) = self.sts.send(exchange(fields)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body["access_token"].as_str().unwrap().to_owned()
    }
}

pub fn claims(token: &str) -> Mandate {
    serde_json::from_slice(Jws::parse(token).unwrap().payload()).unwrap()
}

async fn activate(tx: &mut caracal_store::Tx, zone: &ZoneId, made: &Provenance) {
    let content = "# caracal:data-document\npackage caracal.authz\nimport rego.v1\n\
        app_ids := {\"desk\": \"app-z1\"}\n\
        grants := {\"resource://desk\": {\"application\": \"desk\", \"roles\": {}}}\n";
    let policy = Policy {
        id: "p1".to_owned(),
        name: "grants".to_owned(),
        description: None,
        provenance: made.clone(),
    };
    tx.policies(zone).insert(&policy).await.unwrap();
    let version = PolicyVersion {
        id: "pv1".to_owned(),
        policy_id: "p1".to_owned(),
        version: 1,
        content: content.to_owned(),
        content_sha256: caracal_crypto::digest::sha256_hex(content.as_bytes()),
        schema_version: SCHEMA_VERSION.to_owned(),
        created_by: None,
        created_via_operator: false,
        created_at: made.created_at,
    };
    tx.policies(zone).insert_version(&version).await.unwrap();
    let set = PolicySet {
        id: "ps1".to_owned(),
        name: "set".to_owned(),
        description: None,
        active_version_id: None,
        provenance: made.clone(),
    };
    tx.policy_sets(zone).insert(&set).await.unwrap();
    let version = PolicySetVersion {
        id: "psv1".to_owned(),
        policy_set_id: "ps1".to_owned(),
        version: 1,
        manifest_json: r#"[{"policy_version_id":"pv1"}]"#.to_owned(),
        manifest_sha256: manifest_sha256(&["pv1".to_owned()]),
        schema_version: SCHEMA_VERSION.to_owned(),
        created_by: None,
        created_via_operator: false,
        created_at: made.created_at,
    };
    tx.policy_sets(zone).insert_version(&version).await.unwrap();
    tx.policy_sets(zone)
        .bind("ps1", "psv1", made.created_at)
        .await
        .unwrap();
}

pub fn desk() -> Vec<(&'static str, &'static str)> {
    caller("z1", "app-z1", "cs_of_z1")
}

pub fn with_id<'a>(token: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = desk();
    fields.extend([
        ("subject_token", token),
        ("subject_token_type", ID_TOKEN_TYPE),
    ]);
    fields.extend_from_slice(more);
    fields
}

pub fn lifecycle<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = desk();
    fields.extend([
        ("resource", "resource://desk"),
        ("scope", "agent:lifecycle"),
    ]);
    fields.extend_from_slice(more);
    fields
}
