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
use http::Request;
use serde_json::{Value, json};

use super::Endpoint;
use crate::tests::{TestSts, post};

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

impl Stage {
    async fn set(store: Store) -> Self {
        let at = TestSts::start(store.clone()).await;
        let stage = Self {
            at,
            zone: ZoneId::trusted("z1"),
            store,
        };
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

    /// `status code: description` and what is on record of it.
    async fn refusal(&self, case: &str, request: Request<Body>, events: usize) -> String {
        let id = self.at.sts.ids.uuid();
        let mut request = request;
        request
            .headers_mut()
            .insert("x-request-id", id.parse().unwrap());
        let row = self.at.row(case, request).await;
        let events = self.at.events(&id, events).await;
        let mut shown = row;
        for event in events {
            assert!(!event.to_string().contains(CANARY), "{event}");
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

caracal_store::on_each_engine! {
    async fn requests_that_are_wrong_say_what_to_fix_and_leave_nothing_on_record(store: Store) {
        let stage = Stage::set(store).await;
        let mut table = String::new();
        for path in ["/v1/run/manifest", "/v1/run/credential"] {
            for (case, request) in [
                ("other method", Request::get(path).body(Body::empty()).unwrap()),
                ("query string", post(&format!("{path}?workload_id=w1"), FORM, "")),
                ("JSON", post(path, "application/json", "{}")),
                ("65,537 bytes", post(path, FORM, "a".repeat(65_537))),
                ("repeated field", post(path, FORM, "secret=a&secret=b")),
                ("repeated unknown", post(path, FORM, "x=a&x=b")),
                ("broken escape", post(path, FORM, "secret=%2")),
                ("empty form", post(path, FORM, "")),
                ("no secret", ask(path, &[("workload_id", "w1"), ("env", "MAIL")])),
                ("empty secret", ask(path, &[("workload_id", "w1"), ("secret", ""), ("env", "MAIL")])),
            ] {
                writeln!(table, "{}", stage.refusal(case, request, 0).await).unwrap();
            }
        }
        let no_env = ask("/v1/run/credential", &[("workload_id", "w1"), ("secret", "ws_x")]);
        writeln!(table, "{}", stage.refusal("no env", no_env, 0).await).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        other method               | 405 invalid_token: launches are asked for by POST
        query string               | 400 invalid_token: query string must be empty: send every field in the form
        JSON                       | 415 invalid_token: content type must be application/x-www-form-urlencoded
        65,537 bytes               | 413 payload_too_large: request body too large
        repeated field             | 400 invalid_token: secret is repeated: send it once
        repeated unknown           | 400 invalid_token: x is repeated: send it once
        broken escape              | 400 invalid_token: the form holds a broken percent escape
        empty form                 | 400 invalid_token: workload_id is required
        no secret                  | 400 invalid_token: secret is required
        empty secret               | 400 invalid_token: secret is required
        other method               | 405 invalid_token: launches are asked for by POST
        query string               | 400 invalid_token: query string must be empty: send every field in the form
        JSON                       | 415 invalid_token: content type must be application/x-www-form-urlencoded
        65,537 bytes               | 413 payload_too_large: request body too large
        repeated field             | 400 invalid_token: secret is repeated: send it once
        repeated unknown           | 400 invalid_token: x is repeated: send it once
        broken escape              | 400 invalid_token: the form holds a broken percent escape
        empty form                 | 400 invalid_token: workload_id is required
        no secret                  | 400 invalid_token: secret is required
        empty secret               | 400 invalid_token: secret is required
        no env                     | 400 invalid_token: env is required
        "); }
    }

    async fn a_manifest_lists_the_bindings_as_they_are_stored(store: Store) {
        let stage = Stage::set(store).await;
        let request = launched(manifest("w1", "ws_of_w1"), "r1", LAUNCH);
        let (status, headers, body) = stage.at.send(request).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!((&body["zone_id"], &body["workload_id"]), (&json!("z1"), &json!("w1")));
        let bindings = body["bindings"].as_array().unwrap();
        assert_eq!(bindings.len(), 11);
        assert_eq!(bindings[0], json!({"env": "CHAT", "resource": "resource://chat"}));
        assert_eq!(bindings[8], json!({
            "env": "MAIL", "resource": "resource://mail", "scopes": ["mail:send", "undeclared"],
        }));
        let event = &stage.at.events("r1", 1).await[0];
        assert_eq!(event["event_type"], "run_launch");
        assert_eq!((&event["decision"], &event["evaluation_status"]), (&json!("allow"), &json!("complete")));
        assert_eq!(event["metadata_json"], json!({
            "workload_id": "w1", "workload_name": "workload w1", "binding_count": 11, "launch_id": LAUNCH,
        }));
        // What is no UUID is no launch.
        stage.at.send(launched(manifest("w1", "ws_of_w1"), "r2", "mine")).await;
        assert_eq!(stage.at.events("r2", 1).await[0]["metadata_json"].get("launch_id"), None);
    }

    async fn an_id_that_does_not_exist_answers_like_a_wrong_secret(store: Store) {
        let stage = Stage::set(store).await;
        let mut table = String::new();
        for (case, request, events) in [
            ("unknown id", manifest("w9", "ws_of_w1"), 0),
            ("no id at all", manifest("w 1", "ws_of_w1"), 0),
            ("wrong secret", manifest("w1", "ws_of_w2"), 1),
            ("wrong, credential", ask("/v1/run/credential",
                &[("workload_id", "w1"), ("secret", "x"), ("env", "MAIL")]), 1),
            ("no bindings", manifest("w2", "ws_of_w2"), 1),
        ] {
            writeln!(table, "{}", stage.refusal(case, request, events).await).unwrap();
        }
        stage.rotate(None).await;
        writeln!(table, "{}", stage.refusal("no secret stored", manifest("w1", "ws_of_w1"), 1).await).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        unknown id                 | 401 access_denied: invalid workload credentials
        no id at all               | 401 access_denied: invalid workload credentials
        wrong secret               | 401 access_denied: invalid workload credentials
            run_launch deny workload_auth_failed
        wrong, credential          | 401 access_denied: invalid workload credentials
            run_launch deny workload_auth_failed
        no bindings                | 404 resource_not_found: the workload has no bindings: give it some with PUT …/workloads/{id}
            run_launch deny complete
        no secret stored           | 401 access_denied: invalid workload credentials
            run_launch deny workload_auth_failed
        "); }
    }

    async fn an_id_that_does_not_exist_costs_what_a_wrong_secret_costs(store: Store) {
        let stage = Stage::set(store).await;
        let slow = async |id: &str, secret: &str| {
            let before = stage.at.sts.secrets.slow_comparisons();
            assert_eq!(stage.at.send(manifest(id, secret)).await.0, 401, "{id} {secret}");
            stage.at.sts.secrets.slow_comparisons() - before
        };
        let wrong = [("w9", "ws_of_w1"), ("w 9", "x"), ("w1", "wrong"), ("w2", "wrong")];
        for (id, secret) in wrong {
            assert_eq!(slow(id, secret).await, 0, "{id}: nothing here takes a slow comparison");
        }
        let chosen = SecretVerifier::argon2id(&OsRng, "imported with a slow hash").unwrap();
        stage.rotate(Some(chosen.to_string())).await;
        for (id, secret) in wrong {
            assert_eq!(slow(id, secret).await, 1, "{id}: as w1, whose secret was imported");
        }
        // Whoever knows a secret waits for nobody else's.
        let before = stage.at.sts.secrets.slow_comparisons();
        assert_eq!(stage.at.send(manifest("w2", "ws_of_w2")).await.0, 404);
        assert_eq!(stage.at.sts.secrets.slow_comparisons(), before);
    }

    async fn a_policy_that_changes_before_an_approval_is_spent_is_a_conflict(store: Store) {
        let stage = Stage::set(store).await;
        let (_, _, body) = stage.at.send(credential("PURGE", &[])).await;
        let id = body["approval_id"].as_str().unwrap().to_owned();
        stage.decide(&id, true).await;
        // Committed, and not known here yet: what this replica decides by is what was approved.
        stage.put_in_force(GATED, false).await;
        for more in [&[("approval_id", &*id)][..], &[]] {
            let refused = stage.refusal("policy changed", credential("PURGE", more), 1).await;
            assert_eq!(refused, "policy changed             | 409 access_denied: the policy changed since it was \
                approved: launch again\n    token_exchange deny approval_policy_changed");
        }
        // Nothing was spent for it.
        let hold = stage.store.find_approval(&ApprovalId::trusted(&*id)).await.unwrap().unwrap();
        assert_eq!(hold.consumed_at, None);
    }

    async fn a_policy_that_changes_while_approvals_are_spent_releases_nothing_after_it(store: Store) {
        let stage = Stage::set(store).await;
        for _ in 0..6 {
            let (_, _, body) = stage.at.send(credential("PURGE", &[])).await;
            let id = body["approval_id"].as_str().unwrap().to_owned();
            stage.decide(&id, true).await;
            let with = [("approval_id", &*id)];
            let all = (0..6).map(|_| stage.at.send(credential("PURGE", &with)));
            let all = futures_util::future::join_all(all);
            let (answers, ()) = tokio::join!(all, stage.policy(GATED));
            let released = answers.iter().filter(|(status, _, _)| *status == 200).count();
            assert!(released <= 1, "one approval, one release");
            for (status, _, body) in answers.iter().filter(|(status, _, _)| *status != 200) {
                let error = body["error"].as_str().unwrap();
                let told = [(409, "approval_consumed"), (409, "access_denied"), (401, "access_denied")];
                assert!(told.contains(&(status.as_u16(), error)), "{status} {body}");
                assert!(!body.to_string().contains(CANARY));
            }
            // The change is in force: what was approved before it opens nothing any more.
            let (status, _, body) = stage.at.send(credential("PURGE", &with)).await;
            assert_eq!((status.as_u16(), body.get("credential")), (401, None), "{body}");
        }
    }

    async fn a_credential_is_released_once_policy_allows_it(store: Store) {
        let stage = Stage::set(store).await;
        for (env, resource, scopes) in [
            ("MAIL", "resource://mail", json!(["mail:send", "undeclared"])),
            ("CHAT", "resource://chat", json!([])),
        ] {
            let request = launched(credential(env, &[]), env, LAUNCH);
            let (status, headers, body) = stage.at.send(request).await;
            assert_eq!(status, 200, "{body}");
            assert_eq!(headers["cache-control"], "no-store");
            assert_eq!(body, json!({"env": env, "credential": CANARY}));
            let event = &stage.at.events(env, 1).await[0];
            assert!(!event.to_string().contains(CANARY), "{event}");
            assert_eq!(event["event_type"], "token_exchange");
            assert_eq!((&event["decision"], &event["evaluation_status"]), (&json!("allow"), &json!("complete")));
            assert_eq!(event["determining_policies_json"], json!([{"policy": "caracal-workload-mint"}]));
            assert!(event["policy_set_version_id"].as_str().unwrap().starts_with("psv-"));
            assert_eq!(event["metadata_json"], json!({
                "workload_id": "w1", "workload_name": "workload w1", "launch_id": LAUNCH, "env": env,
                "resource": resource, "requested_scopes": scopes,
            }));
        }
    }

    async fn a_credential_is_refused_row_by_row(store: Store) {
        let stage = Stage::set(store).await;
        let mut table = String::new();
        for (case, request) in [
            ("no binding", credential("OTHER", &[])),
            ("no resource", credential("NOWHERE", &[])),
            ("no provider", credential("GONE", &[])),
            ("not permitted", credential("CLOSED", &[])),
            ("kind none", credential("OPEN", &[])),
            ("kind caracal_mandate", credential("OURS", &[])),
            ("kind http_basic", credential("BASIC", &[])),
            ("of a user", credential("USER", &[])),
            ("unknown approval", credential("MAIL", &[("approval_id", "5c0e2f5e-1111-4222-8333-444455556666")])),
            ("no secret in custody", credential("LOST", &[])),
        ] {
            writeln!(table, "{}", stage.refusal(case, request, 1).await).unwrap();
        }
        stage.policy("restrict := [\"all\"]\n").await;
        writeln!(table, "{}", stage.refusal("restricted", credential("MAIL", &[]), 1).await).unwrap();
        stage.policy("risk := [{\"scope\": \"mail:send\", \"tier\": \"a\"}, {\"scope\": \"mail:send\", \"tier\": \"b\"}]\n").await;
        writeln!(table, "{}", stage.refusal("contradiction", credential("MAIL", &[]), 1).await).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        no binding                 | 404 resource_not_found: the workload binds nothing to OTHER; see its bindings
            token_exchange deny credential_injection_denied
        no resource                | 404 resource_not_found: there is no resource resource://nowhere in the workload's zone
            token_exchange deny resource_not_found
        no provider                | 403 access_denied: the provider of resource://gone is gone: give it another
            token_exchange deny credential_injection_denied
        not permitted              | 403 access_denied: the provider does not permit it: set allow_runtime_injection in its config
            token_exchange deny credential_injection_denied
        kind none                  | 403 access_denied: credentials of a provider of kind none are not released to processes
            token_exchange deny credential_injection_denied
        kind caracal_mandate       | 403 access_denied: credentials of a provider of kind caracal_mandate are not released to processes
            token_exchange deny credential_injection_denied
        kind http_basic            | 403 access_denied: credentials of a provider of kind http_basic are not released to processes
            token_exchange deny credential_injection_denied
        of a user                  | 403 access_denied: the credential belongs to a user, not to a workload
            token_exchange deny credential_injection_denied
        unknown approval           | 401 access_denied: approval not found or bindings do not match
            token_exchange deny approval_invalid
        no secret in custody       | 502 http_request_failed: the provider's credential is not available
            token_exchange deny provider_credential_unavailable
        restricted                 | 403 access_denied: policy denied (restriction_active)
            token_exchange deny complete
        contradiction              | 503 policy_eval_failed: policy evaluation failed
            token_exchange deny policy_eval_failed
        "); }
    }

    async fn a_gated_credential_is_released_once_for_one_approval(store: Store) {
        let stage = Stage::set(store).await;
        let held = launched(credential("PURGE", &[]), "r1", LAUNCH);
        let (status, headers, body) = stage.at.send(held).await;
        assert_eq!((status.as_u16(), &body["error"]), (401, &json!("interaction_required")), "{body}");
        assert_eq!(headers["www-authenticate"], "Bearer error=\"interaction_required\"");
        assert_eq!((&body["approval_type"], &body["tier"]), (&json!("human_approval"), &json!("high")));
        let id = body["approval_id"].as_str().unwrap().to_owned();
        let events = stage.at.events("r1", 2).await;
        let issued = events.iter().find(|event| event["event_type"] == "step_up_issued").unwrap();
        assert_eq!(issued["metadata_json"]["workload_id"], "w1");
        assert_eq!(issued["metadata_json"]["launch_id"], LAUNCH);
        let denied = events.iter().find(|event| event["event_type"] == "token_exchange").unwrap();
        assert_eq!((&denied["decision"], &denied["evaluation_status"]), (&json!("deny"), &json!("complete")));

        // Again, with or without the id: the same hold, and nothing is released.
        let with = [("approval_id", &*id)];
        for more in [&[][..], &with] {
            let (status, _, body) = stage.at.send(credential("PURGE", more)).await;
            assert_eq!((status.as_u16(), &body["approval_id"]), (401, &json!(id)), "{body}");
        }
        stage.decide(&id, true).await;
        // It is for this variable's resource and scopes alone.
        assert_eq!(stage.at.send(credential("MAIL", &with)).await.0, 401);
        let used = launched(credential("PURGE", &with), "r2", LAUNCH);
        let (status, _, body) = stage.at.send(used).await;
        assert_eq!(status, 200, "{body}");
        let events = stage.at.events("r2", 2).await;
        let mut kinds: Vec<_> = events.iter().map(|event| event["event_type"].as_str().unwrap()).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, ["step_up_consumed", "token_exchange"]);
        // Nothing is released twice for one approval, not even a moment later.
        let again = stage.refusal("again", credential("PURGE", &with), 1).await;
        assert_eq!(again, "again                      | 409 approval_consumed: approval was used already\n    \
            token_exchange deny approval_already_consumed");
    }

    async fn an_approved_launch_needs_no_id_and_a_rejected_one_stays_rejected(store: Store) {
        let stage = Stage::set(store).await;
        let hold = async || {
            let (_, _, body) = stage.at.send(credential("PURGE", &[])).await;
            body["approval_id"].as_str().unwrap_or_default().to_owned()
        };
        stage.decide(&hold().await, true).await;
        assert_eq!(stage.at.send(credential("PURGE", &[])).await.0, 200);
        let second = hold().await;
        stage.decide(&second, false).await;
        for more in [&[][..], &[("approval_id", &*second)]] {
            let refused = stage.refusal("rejected", credential("PURGE", more), 1).await;
            assert_eq!(refused, "rejected                   | 403 access_denied: approval was rejected\n    \
                token_exchange deny approval_rejected");
        }
    }

    async fn an_approval_is_for_the_policy_that_asked_for_it(store: Store) {
        let stage = Stage::set(store).await;
        let (_, _, body) = stage.at.send(credential("PURGE", &[])).await;
        let id = body["approval_id"].as_str().unwrap().to_owned();
        stage.decide(&id, true).await;
        stage.policy(GATED).await;
        let refused = stage.refusal("other policy", credential("PURGE", &[("approval_id", &id)]), 1).await;
        assert_eq!(refused, "other policy               | 401 access_denied: approval not found or bindings do \
            not match\n    token_exchange deny approval_invalid");
        let (status, _, body) = stage.at.send(credential("PURGE", &[])).await;
        assert_eq!((status.as_u16(), &body["error"]), (401, &json!("interaction_required")));
        assert_ne!(body["approval_id"], id, "a new hold");
    }

    async fn many_at_once_spend_one_approval_once(store: Store) {
        let stage = Stage::set(store).await;
        let (_, _, body) = stage.at.send(credential("PURGE", &[])).await;
        let id = body["approval_id"].as_str().unwrap().to_owned();
        stage.decide(&id, true).await;
        let with = [("approval_id", &*id)];
        let all = (0..12).map(|_| stage.at.send(credential("PURGE", &with)));
        let answers = futures_util::future::join_all(all).await;
        let released = answers.iter().filter(|(status, _, _)| *status == 200).count();
        assert_eq!(released, 1);
        for (status, _, body) in answers.iter().filter(|(status, _, _)| *status != 200) {
            assert_eq!((status.as_u16(), &body["error"]), (409, &json!("approval_consumed")), "{body}");
        }
    }

    async fn requests_are_counted_before_the_secret_is_looked_at(store: Store) {
        let stage = Stage::set(store).await;
        let most = stage.at.sts.config.mint_rate;
        let unknown = format!("~{}", &sha256_hex(b"w9")[..3]);
        for (id, who) in [("w1", "w1"), ("w9", unknown.as_str())] {
            let key = Endpoint::Manifest.rate_key(who);
            for _ in 1..most {
                stage.at.sts.bus.count(&key, Duration::from_secs(60)).await.unwrap();
            }
            assert_eq!(stage.at.send(manifest(id, "wrong")).await.0, 401);
            // Known or not, and with the right secret too.
            for secret in ["wrong", "ws_of_w1"] {
                let (status, headers, body) = stage.at.send(manifest(id, secret)).await;
                assert_eq!((status.as_u16(), &body["error"]), (429, &json!("provider_rate_limited")), "{id}");
                assert_eq!(headers["retry-after"], "60");
            }
        }
        // Each endpoint and each workload has a count of its own.
        assert_eq!(stage.at.send(credential("MAIL", &[])).await.0, 200);
        assert_eq!(stage.at.send(manifest("w2", "ws_of_w2")).await.0, 404);
    }

    async fn a_rotated_secret_and_a_deleted_workload_stop_working_at_once(store: Store) {
        let stage = Stage::set(store).await;
        assert_eq!(stage.at.send(manifest("w1", "ws_of_w1")).await.0, 200);
        let chosen = SecretVerifier::argon2id(&OsRng, "imported with a slow hash").unwrap();
        stage.rotate(Some(chosen.to_string())).await;
        assert_eq!(stage.at.send(manifest("w1", "ws_of_w1")).await.0, 401);
        assert_eq!(stage.at.send(manifest("w1", "imported with a slow hash")).await.0, 200);
        let mut tx = stage.store.begin("deleting").await.unwrap();
        tx.workloads(&stage.zone).delete("w1").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(stage.at.send(manifest("w1", "imported with a slow hash")).await.0, 401);
    }

    async fn an_archived_zone_launches_nothing(store: Store) {
        let stage = Stage::set(store).await;
        let at = stage.at.sts.clock.now();
        let author = Author { name: "t".to_owned(), via_operator: false, at };
        let mut tx = stage.store.begin("archiving").await.unwrap();
        tx.zones().archive(&stage.zone, &author).await.unwrap();
        stage.commit(tx).await;
        assert_eq!(stage.at.send(manifest("w1", "ws_of_w1")).await.0, 401);
        assert_eq!(stage.at.send(credential("MAIL", &[])).await.0, 401);
    }

    async fn without_evidence_nothing_is_released(store: Store) {
        let stage = Stage::set(store).await;
        stage.at.sts.evidence.close().await;
        for request in [manifest("w1", "ws_of_w1"), credential("MAIL", &[]), manifest("w1", "wrong")] {
            let (status, headers, body) = stage.at.send(request).await;
            assert_eq!((status.as_u16(), &body["error"]), (503, &json!("sts_unavailable")), "{body}");
            assert!(headers.contains_key("retry-after"));
            assert!(!body.to_string().contains(CANARY));
        }
    }

    async fn an_outage_of_the_store_is_no_wrong_secret(store: Store) {
        let stage = Stage::set(store).await;
        stage.store.shutdown().await;
        for request in [manifest("w1", "ws_of_w1"), manifest("w9", "x"), credential("MAIL", &[])] {
            let (status, _, body) = stage.at.send(request).await;
            assert_eq!((status.as_u16(), &body["error"]), (503, &json!("sts_unavailable")), "{body}");
        }
    }
}

#[test]
fn a_request_does_not_show_its_secret() {
    let body = b"workload_id=w1&secret=ws_hidden";
    let headers = http::HeaderMap::new();
    let request = super::RunRequest::parse(super::Endpoint::Manifest, &headers, body).unwrap();
    assert!(!format!("{request:?}").contains("ws_hidden"));
}
