//! The run endpoints, row by row: what a launcher is told, and what is on record of it.

use std::fmt::Write as _;
use std::time::Duration;

use axum::body::Body;
use caracal_crypto::digest::sha256_hex;
use caracal_crypto::os::OsRng;
use caracal_crypto::verifier::SecretVerifier;
use caracal_model::{ApprovalId, Change, ProviderId, ResourceId, WorkloadId, ZoneId};
use caracal_store::Store;
use caracal_store::approvals::Verdict;
use caracal_store::policies::{Policy, PolicyVersion};
use caracal_store::policy_sets::{PolicySet, PolicySetVersion};
use caracal_store::providers::Provider;
use caracal_store::resources::Resource;
use caracal_store::secrets::provider_secret_ref;
use caracal_store::workloads::{Binding, Workload};
use caracal_store::zones::{Author, Provenance};
use http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};

use super::Endpoint;
use crate::tests::far::Far;
use crate::tests::told::{is_whole, on_record};
use crate::tests::{TestSts, eventually, post};

mod approvals;
mod credentials;
mod launches;
mod meanwhile;

const FORM: &str = "application/x-www-form-urlencoded";
const LAUNCH: &str = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000";
/// `mail:purge` needs an operator's approval.
const GATED: &str = "risk := [{\"scope\": \"mail:purge\", \"tier\": \"high\"}]\n\
                     approval_tiers := [{\"tier\": \"high\"}]\n";
const CANARY: &str = "canary-of-the-upstream";

/// Zone `z1` with a workload `w1` (secret `ws_of_w1`) that is bound to one resource of each kind.
struct Stage {
    at: TestSts,
    zone: ZoneId,
    store: Store,
}

fn binding(env: &str, resource: &str, scopes: &[&str]) -> Binding {
    Binding {
        env: env.to_owned(),
        resource: resource.to_owned(),
        scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        optional: false,
        on_failure: None,
    }
}

/// A stage with a service for each of these variables, each with a provider of its own.
async fn fetching(store: Store, far: &Far, envs: &[&str]) -> Stage {
    let at = TestSts::start_with(store.clone(), far.fetch.clone()).await;
    let stage = Stage::bare(at, store);
    let config = json!({
        "allow_runtime_injection": true, "token_endpoint": far.url, "client_id": "me",
        "allowed_token_hosts": ["upstream.test"],
    });
    let secret = json!({"client_secret": "s"});
    let mut bindings = Vec::new();
    for env in envs {
        let name = env.to_lowercase();
        let (config, secret) = (config.clone(), Some(secret.clone()));
        stage
            .resource(&name, "oauth2_client_credentials", config, secret)
            .await;
        let scopes: &[&str] = if *env == "MAIL" { &["mail:purge"] } else { &[] };
        bindings.push(binding(env, &format!("resource://{name}"), scopes));
    }
    stage.policy(GATED).await;
    stage.workload("w1", bindings).await;
    stage
}

impl Stage {
    async fn set(store: Store) -> Self {
        let at = TestSts::start(store.clone()).await;
        let stage = Self::bare(at, store);
        let permitted = json!({"allow_runtime_injection": true});
        let secret = json!({"api_key": CANARY});
        for (name, kind, config, secret) in [
            ("mail", "api_key", permitted.clone(), Some(secret.clone())),
            (
                "chat",
                "bearer_token",
                permitted.clone(),
                Some(json!({"bearer_token": CANARY})),
            ),
            ("closed", "api_key", json!({}), Some(secret)),
            ("lost", "api_key", permitted.clone(), None),
            (
                "basic",
                "http_basic",
                permitted.clone(),
                Some(json!({"password": CANARY})),
            ),
            ("ours", "caracal_mandate", permitted.clone(), None),
            ("open", "none", permitted.clone(), None),
            ("user", "oauth2_authorization_code", permitted, None),
        ] {
            stage.resource(name, kind, config, secret).await;
        }
        stage.archive_provider_of("gone").await;
        stage.policy(GATED).await;
        let mut bindings: Vec<Binding> = [
            "chat", "closed", "lost", "basic", "ours", "open", "user", "gone",
        ]
        .into_iter()
        .map(|name| binding(&name.to_uppercase(), &format!("resource://{name}"), &[]))
        .collect();
        bindings.push(binding(
            "MAIL",
            "resource://mail",
            &["mail:send", "undeclared"],
        ));
        bindings.push(binding("PURGE", "resource://mail", &["mail:purge"]));
        bindings.push(binding("NOWHERE", "resource://nowhere", &[]));
        stage.workload("w1", bindings).await;
        stage.workload("w2", Vec::new()).await;
        stage
    }

    /// Nothing is bound to anything yet.
    fn bare(at: TestSts, store: Store) -> Self {
        Self {
            at,
            zone: ZoneId::trusted("z1"),
            store,
        }
    }

    fn made(&self) -> Provenance {
        let at = self.at.sts.clock.now();
        Provenance::created(&Author {
            name: "t".to_owned(),
            via_operator: false,
            at,
        })
    }

    async fn commit(&self, mut tx: caracal_store::Tx) {
        tx.change(&Change::Zone(self.zone.clone()));
        tx.commit().await.unwrap();
        self.at.sts.announce.announce().await;
    }

    async fn resource(&self, name: &str, kind: &str, config: Value, secret: Option<Value>) {
        let provider = Provider {
            id: ProviderId::trusted(format!("p-{name}")),
            name: name.to_owned(),
            identifier: format!("provider://{name}"),
            kind: kind.to_owned(),
            config: config.as_object().cloned().unwrap_or_default(),
            secret_config_keys: Vec::new(),
            connectivity_failed_at: None,
            provenance: self.made(),
            archived_at: None,
        };
        let resource = Resource {
            id: ResourceId::trusted(format!("r-{name}")),
            name: name.to_owned(),
            identifier: format!("resource://{name}"),
            upstream_url: None,
            credential_provider_id: provider.id.clone(),
            scopes: vec![format!("{name}:send"), format!("{name}:purge")],
            operations: json!([]),
            operation_enforcement: "enforced".to_owned(),
            provenance: self.made(),
            archived_at: None,
        };
        let mut tx = self.store.begin("a resource").await.unwrap();
        tx.providers(&self.zone).insert(&provider).await.unwrap();
        tx.resources(&self.zone).insert(&resource).await.unwrap();
        if let Some(secret) = secret {
            let place = provider_secret_ref(&self.zone, provider.id.as_str());
            let sealed = self
                .at
                .sts
                .keyring
                .seal(&OsRng, &place, secret.to_string().as_bytes());
            let now = self.at.sts.clock.now();
            tx.secrets(&self.zone)
                .put(&place, &sealed.unwrap(), now)
                .await
                .unwrap();
        }
        self.commit(tx).await;
    }

    async fn archive_provider_of(&self, name: &str) {
        self.resource(
            name,
            "api_key",
            json!({"allow_runtime_injection": true}),
            None,
        )
        .await;
        let at = self.at.sts.clock.now();
        let author = Author {
            name: "t".to_owned(),
            via_operator: false,
            at,
        };
        let mut tx = self.store.begin("archiving").await.unwrap();
        tx.providers(&self.zone)
            .archive(&format!("p-{name}"), &author)
            .await
            .unwrap();
        self.commit(tx).await;
    }

    /// Puts one document into force.
    async fn policy(&self, body: &str) {
        self.put_in_force(body, true).await;
    }

    /// The same; with no announcement, this replica does not know of it.
    async fn put_in_force(&self, body: &str, is_announced: bool) {
        let content =
            format!("# caracal:data-document\npackage caracal.authz\nimport rego.v1\n{body}");
        let id = |what: &str| format!("{what}-{}", self.at.sts.ids.uuid());
        let (policy, version, set, bound) = (id("p"), id("pv"), id("ps"), id("psv"));
        let now = self.at.sts.clock.now();
        let manifest = caracal_policy::manifest_sha256(std::slice::from_ref(&version));
        let mut tx = self.store.begin("a policy").await.unwrap();
        let row = Policy {
            id: policy.clone(),
            name: policy.clone(),
            description: None,
            provenance: self.made(),
        };
        tx.policies(&self.zone).insert(&row).await.unwrap();
        let row = PolicyVersion {
            id: version.clone(),
            policy_id: policy,
            version: 1,
            content,
            content_sha256: String::new(),
            schema_version: "2026-05-20".to_owned(),
            created_by: None,
            created_via_operator: false,
            created_at: now,
        };
        tx.policies(&self.zone).insert_version(&row).await.unwrap();
        let row = PolicySet {
            id: set.clone(),
            name: set.clone(),
            description: None,
            active_version_id: None,
            provenance: self.made(),
        };
        tx.policy_sets(&self.zone).insert(&row).await.unwrap();
        let row = PolicySetVersion {
            id: bound.clone(),
            policy_set_id: set.clone(),
            version: 1,
            manifest_json: json!([{"policy_version_id": version}]).to_string(),
            manifest_sha256: manifest,
            schema_version: "2026-05-20".to_owned(),
            created_by: None,
            created_via_operator: false,
            created_at: now,
        };
        tx.policy_sets(&self.zone)
            .insert_version(&row)
            .await
            .unwrap();
        tx.policy_sets(&self.zone)
            .bind(&set, &bound, now)
            .await
            .unwrap();
        if is_announced {
            self.commit(tx).await;
        } else {
            tx.commit().await.unwrap();
        }
    }

    async fn workload(&self, id: &str, bindings: Vec<Binding>) {
        let pepper = self.at.sts.keyring.derive(crate::CLIENT_SECRETS);
        let workload = Workload {
            id: WorkloadId::trusted(id),
            zone: self.zone.clone(),
            name: format!("workload {id}"),
            secret_verifier: Some(
                SecretVerifier::for_generated(&pepper, &format!("ws_of_{id}")).to_string(),
            ),
            bindings,
            provenance: self.made(),
        };
        let mut tx = self.store.begin("a workload").await.unwrap();
        tx.workloads(&self.zone).insert(&workload).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// An operator decides.
    async fn decide(&self, id: &str, approved: bool) {
        let verdict = Verdict {
            approved,
            approver: "operator:t",
            record: None,
            reason: None,
            class: "operator",
        };
        let now = self.at.sts.clock.now();
        let mut tx = self.store.begin("deciding").await.unwrap();
        let mut zone = tx.zone(&self.zone).approvals();
        let decided = zone.decide(&ApprovalId::trusted(id), verdict, now).await;
        assert!(decided.unwrap().is_some(), "{id}");
        tx.commit().await.unwrap();
    }

    /// Changes the stored secret of `w1`.
    async fn rotate(&self, verifier: Option<String>) {
        let mut tx = self.store.begin("rotating").await.unwrap();
        let mut workload = tx.workloads(&self.zone).lock("w1").await.unwrap().unwrap();
        workload.secret_verifier = verifier;
        tx.workloads(&self.zone).update(&workload).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Sends it, under an id of its own unless it has one. What every answer has is checked, and so is
    /// that so many events are on record of it, and none holds the secret.
    async fn sent(&self, case: &str, mut request: Request<Body>, events: usize) -> Answer {
        let made = self.at.sts.ids.uuid().parse().unwrap();
        let id = request.headers_mut().entry("x-request-id").or_insert(made);
        let id = id.to_str().unwrap().to_owned();
        let (status, headers, body) = self.at.send(request).await;
        is_whole(case, status, &headers, &body);
        let events = self.at.events(&id, events).await;
        for event in &events {
            assert!(!event.to_string().contains(CANARY), "{case}: {event}");
        }
        Answer {
            status,
            headers,
            body,
            events,
        }
    }

    /// `status code: description` and what is on record of it.
    async fn refusal(&self, case: &str, request: Request<Body>, events: usize) -> String {
        self.sent(case, request, events).await.shown(case)
    }

    /// What is told of a credential, when this is done while its provider takes its time.
    async fn told_when(
        &self,
        far: &Far,
        env: &str,
        events: usize,
        done: impl Future<Output = ()>,
    ) -> String {
        far.behaves("late");
        let doing = async {
            eventually("it is asked", async || far.endpoint.count() == 1).await;
            done.await;
            far.behaves("");
            far.endpoint.now.notify_one();
        };
        let asking = self.sent(env, credential(env, &[]), events);
        tokio::join!(asking, doing).0.shown(env)
    }

    /// A success, whole: this body and nothing else, kept by no cache, and this on record.
    async fn released(
        &self,
        case: &str,
        request: Request<Body>,
        body: &Value,
        evidence: &[&str],
    ) -> Vec<Value> {
        let told = self.sent(case, request, evidence.len()).await;
        assert_eq!((told.status.as_u16(), &told.body), (200, body), "{case}");
        assert_eq!(told.headers["cache-control"], "no-store", "{case}");
        let recorded = on_record(case, &told.headers, &told.events);
        assert_eq!(recorded, evidence, "{case}");
        told.events
    }
}

/// What was answered, and what is on record of it.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
    events: Vec<Value>,
}

impl Answer {
    fn shown(&self, case: &str) -> String {
        let part = |name: &str| self.body[name].as_str().unwrap_or_default();
        let mut shown = format!(
            "{case:<26} | {} {}: {}",
            self.status.as_u16(),
            part("error"),
            part("error_description")
        );
        for event in &self.events {
            write!(
                shown,
                "\n    {} {} {}",
                event["event_type"].as_str().unwrap(),
                event["decision"].as_str().unwrap(),
                event["evaluation_status"].as_str().unwrap(),
            )
            .unwrap();
        }
        shown
    }
}

fn ask(path: &str, fields: &[(&str, &str)]) -> Request<Body> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(fields);
    post(path, FORM, form.finish())
}

fn manifest(id: &str, secret: &str) -> Request<Body> {
    ask(
        "/v1/run/manifest",
        &[("workload_id", id), ("secret", secret)],
    )
}

fn credential(env: &str, more: &[(&str, &str)]) -> Request<Body> {
    let mut fields = vec![("workload_id", "w1"), ("secret", "ws_of_w1"), ("env", env)];
    fields.extend_from_slice(more);
    ask("/v1/run/credential", &fields)
}

fn launched(mut request: Request<Body>, id: &str, launch: &str) -> Request<Body> {
    request
        .headers_mut()
        .insert("x-request-id", id.parse().unwrap());
    request
        .headers_mut()
        .insert("x-caracal-launch-id", launch.parse().unwrap());
    request
}
