//! A zone in which scopes need approvals, an agent in it, and users who may approve.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use caracal_evidence::{Pending, Relay, Sink, SinkError};
use caracal_ledger::Event;
use caracal_model::{ApprovalId, Change, Mandate, Timestamp};
use caracal_net::egress::Fetcher;
use caracal_policy::manifest_sha256;
use caracal_store::Sql;
use caracal_store::approvals::{Approval, Verdict};
use caracal_store::params;
use caracal_store::testing::raw;
use parking_lot::Mutex;
use serde_json::json;

use super::*;

/// Scope to tier: `desk:write` asks an operator, `desk:pay` the user, `desk:any` either.
const DOCUMENT: &str = r#"# caracal:data-document
package caracal.authz
import rego.v1
app_ids := {"desk": "app-z1"}
grants := {"resource://desk": {"application": "desk", "roles": {"desk": ["desk:read", "desk:write", "desk:pay", "desk:any", "desk:hide"]}}}
risk := [{"scope": "desk:write", "tier": "high"}, {"scope": "desk:pay", "tier": "payer"}, {"scope": "desk:any", "tier": "either"}, {"scope": "desk:hide", "tier": "hidden"}]
approval_tiers := [{"tier": "high"}, {"tier": "payer", "approver": "subject", "privacy": "pseudonymous"}, {"tier": "either", "approver": "any", "ttl_seconds": 60}, {"tier": "hidden", "approver": "any", "privacy": "anonymous"}]
"#;

const PROVIDER: Sql = raw(
    "INSERT INTO providers (id, zone_id, name, identifier, kind, config_json,
    secret_config_keys, created_via_operator, updated_via_operator, created_at, updated_at)
    VALUES ('p1', 'z1', 'p', 'provider://p', 'none', '{}', '[]', FALSE, FALSE, 0, 0)",
);
const RESOURCE: Sql = raw("INSERT INTO resources (id, zone_id, name, identifier, upstream_url,
    credential_provider_id, scopes, operations, operation_enforcement, created_via_operator,
    updated_via_operator, created_at, updated_at)
    VALUES ('res-1', 'z1', 'Desk', 'resource://desk', 'https://desk.example', 'p1',
    '[\"desk:any\",\"desk:hide\",\"desk:pay\",\"desk:read\",\"desk:write\"]', '[]', 'transport_uniform',
    FALSE, FALSE, 0, 0)");
const POLICY: Sql = raw(
    "INSERT INTO policies (id, zone_id, name, created_via_operator,
    updated_via_operator, created_at, updated_at) VALUES ('pol', 'z1', 'p', FALSE, FALSE, 0, 0)",
);
const POLICY_VERSION: Sql = raw(
    "INSERT INTO policy_versions (id, zone_id, policy_id, version, content,
    content_sha256, schema_version, created_via_operator, created_at)
    VALUES ('pv-1', 'z1', 'pol', 1, $1, '', '', FALSE, 0)",
);
const SET: Sql = raw(
    "INSERT INTO policy_sets (id, zone_id, name, created_via_operator,
    updated_via_operator, created_at, updated_at) VALUES ('set', 'z1', 's', FALSE, FALSE, 0, 0)",
);
const SET_VERSION: Sql = raw(
    "INSERT INTO policy_set_versions (id, zone_id, policy_set_id, version,
    manifest_json, manifest_sha256, schema_version, created_via_operator, created_at)
    VALUES ($1, 'z1', 'set', $2, '[{\"policy_version_id\":\"pv-1\"}]', $3, '', FALSE, 0)",
);
const BIND: Sql = raw(
    "INSERT INTO policy_bindings (zone_id, policy_set_id, version_id, activated_at)
    VALUES ('z1', 'set', $1, 0)
    ON CONFLICT (zone_id) DO UPDATE SET version_id = excluded.version_id",
);
const RECORD: Sql = raw(
    "INSERT INTO authority_records (id, zone_id, record_type, subject_id,
    client_id, parent_id, status, expires_at, claims_json, created_at)
    VALUES ($1, 'z1', 'user', $2, $3, $4, 'active', $5, $6, 0)",
);
const SESSION: Sql = raw("INSERT INTO sessions (id, zone_id, application_id, subject_record_id,
    subject_type, lifecycle, labels, metadata_json, status, depth, live_children, ttl_seconds,
    started_at, ends_at, last_active_at, lease_generation, updated_at)
    VALUES ($1, 'z1', 'app-z1', $2, $3, 'task', '[\"desk\"]', '{}', 'active', 0, 0, 3600, $4, $5, 0, 0, 0)");
const EDGE: Sql = raw("INSERT INTO delegations (id, zone_id, source_session_id, target_session_id,
    issuer_application_id, receiver_application_id, mirrored, scopes, constraints_json, status,
    edge_version, expires_at, created_at)
    VALUES ($1, 'z1', $2, $3, 'app-z1', 'app-z1', FALSE,
    '[\"desk:any\",\"desk:hide\",\"desk:pay\",\"desk:read\",\"desk:write\"]', '{\"max_hops\":1}', 'active', 0,
    $4, 0)");
const REVOKE: Sql = raw("UPDATE authority_records SET status = 'revoked' WHERE id = $1");
const EXPIRE: Sql = raw("UPDATE approvals SET expires_at = $2 WHERE id = $1");
const SPENT_AT: Sql = raw("UPDATE approvals SET consumed_at = $2 WHERE id = $1");

/// Takes evidence, for a test to read.
#[derive(Default)]
pub struct Taken(Mutex<Vec<Event>>);

#[async_trait]
impl Sink for Taken {
    async fn deliver(&self, batch: &[Pending]) -> Result<caracal_evidence::Delivered, SinkError> {
        let events = batch.iter().map(|event| Event::parse(&event.wire).unwrap());
        self.0.lock().extend(events);
        Ok(caracal_evidence::Delivered::Kept)
    }
}

/// A replica that serves the gated zone.
pub struct Gated {
    pub sts: TestSts,
    pub store: Store,
    taken: Arc<Taken>,
    /// How much of it [`Gated::news`] has told.
    told: AtomicUsize,
    tasks: caracal_net::Tasks,
}

pub fn later(seconds: u64) -> Timestamp {
    SystemClock::new().now().plus(Duration::from_secs(seconds))
}

pub async fn change(store: &Store, sql: &Sql, params: &[caracal_store::Param<'_>]) {
    let mut tx = store.begin("a test's change").await.unwrap();
    tx.execute(sql, params).await.unwrap();
    tx.commit().await.unwrap();
}

/// Puts a version into force without an announcement.
pub async fn bind_silently(store: &Store, version: &str) {
    change(store, &BIND, &params![version]).await;
}

/// The zone, before anybody serves it.
pub async fn provision_gated(store: &Store) {
    let keyring = keyring();
    provision(store, &keyring, &keyring.derive(crate::CLIENT_SECRETS)).await;
    let mut tx = store.begin("a gated zone").await.unwrap();
    for sql in [&PROVIDER, &RESOURCE, &POLICY, &SET] {
        tx.execute(sql, &[]).await.unwrap();
    }
    tx.execute(&POLICY_VERSION, &params![DOCUMENT])
        .await
        .unwrap();
    let hash = manifest_sha256(&["pv-1".to_owned()]);
    for (id, number) in [("v1", 1), ("v2", 2)] {
        tx.execute(&SET_VERSION, &params![id, number, &hash])
            .await
            .unwrap();
    }
    tx.execute(&BIND, &params!["v1"]).await.unwrap();
    let end = later(3600);
    // user_1 started the agent with `r-user`, and has signed in again since.
    for (id, subject, client, parent) in [
        ("r-user", "user_1", "app-z1", None),
        ("r-child", "user_1", "app-z1", Some("r-user")),
        ("r-again", "user_1", "app-z1", None),
        ("r-other", "user_2", "app-z1", None),
        ("r-elsewhere", "user_1", "app-z2", None),
        ("r-revoked", "user_1", "app-z1", None),
        ("r-namesake", "user_1", "app-z1", None),
    ] {
        let issuer = match id {
            "r-namesake" => r#"{"iss":"https://other.example"}"#,
            _ => r#"{"iss":"https://idp.example"}"#,
        };
        tx.execute(&RECORD, &params![id, subject, client, parent, end, issuer])
            .await
            .unwrap();
    }
    tx.execute(&REVOKE, &params!["r-revoked"]).await.unwrap();
    let now = SystemClock::new().now();
    // Sessions of the user, and of nobody.
    for (id, record, kind) in [
        ("s1", "r-user", "user"),
        ("s2", "r-user", "user"),
        ("s3", "r-app", "application"),
        ("s4", "r-app", "application"),
    ] {
        tx.execute(&SESSION, &params![id, record, kind, now, end])
            .await
            .unwrap();
    }
    for (id, from, to) in [("e1", "s1", "s2"), ("e2", "s3", "s4")] {
        tx.execute(&EDGE, &params![id, from, to, end])
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
}

impl Gated {
    pub async fn start(store: Store) -> Self {
        let [gated] = Self::replicas(store).await;
        gated
    }

    /// Asking token endpoints in this way.
    pub async fn reaching(store: Store, fetch: Fetcher) -> Self {
        let [gated] = Self::several(store, fetch).await;
        gated
    }

    /// Replicas on one store and one bus.
    pub async fn replicas<const N: usize>(store: Store) -> [Self; N] {
        Self::several(store, nowhere()).await
    }

    async fn several<const N: usize>(store: Store, fetch: Fetcher) -> [Self; N] {
        provision_gated(&store).await;
        let bus = Bus::memory(Arc::new(SystemClock::new()));
        let mut all = Vec::new();
        for _ in 0..N {
            let (sts, drain) = TestSts::reaching(store.clone(), bus.clone(), fetch.clone()).await;
            let tasks = caracal_net::Tasks::new();
            let taken = Arc::new(Taken::default());
            let relay = Relay::new(drain, taken.clone(), Arc::new(OsRng));
            tasks.spawn("evidence", relay.run(tasks.stop()));
            crate::tasks(&sts.sts, &tasks, &CancellationToken::new());
            all.push(Self {
                sts,
                store: store.clone(),
                taken,
                told: AtomicUsize::new(0),
                tasks,
            });
        }
        all.try_into()
            .unwrap_or_else(|_| unreachable!("one for each"))
    }

    pub async fn stop(self) {
        self.tasks.shutdown(Duration::from_secs(5)).await;
    }

    /// A mint of the agent of `user_1` under `e1`, of the agent of nobody under `e2`.
    pub async fn mint(&self, scope: &str, more: &[(&str, &str)]) -> (StatusCode, Value) {
        let mut fields = caller("z1", "app-z1", "cs_of_z1");
        fields.extend([("resource", "resource://desk"), ("scope", scope)]);
        if !more.iter().any(|(name, _)| *name == "delegation_edge_id") {
            fields.extend([("agent_session_id", "s2"), ("delegation_edge_id", "e1")]);
        }
        fields.extend_from_slice(more);
        let (status, _, body) = self.sts.send(exchange(&fields)).await;
        (status, body)
    }

    /// The hold of a mint that must be held.
    pub async fn held(&self, scope: &str, more: &[(&str, &str)]) -> String {
        let (status, body) = self.mint(scope, more).await;
        assert_eq!(
            (status.as_u16(), &body["error"]),
            (401, &json!("interaction_required")),
            "{body}"
        );
        assert_eq!(
            (&body["approval_type"], &body["state"]),
            (&json!("human_approval"), &json!("pending"))
        );
        body["approval_id"].as_str().unwrap().to_owned()
    }

    pub async fn hold(&self, id: &str) -> Approval {
        self.store
            .find_approval(&ApprovalId::trusted(id))
            .await
            .unwrap()
            .unwrap()
    }

    /// An operator decides, as the API does.
    pub async fn operator(&self, id: &str, approved: bool) -> bool {
        let verdict = Verdict {
            approved,
            approver: "admin:t1",
            record: None,
            reason: None,
            class: "operator",
        };
        let (zone, id) = (ZoneId::trusted("z1"), ApprovalId::trusted(id));
        let mut tx = self.store.begin("a test decides").await.unwrap();
        let now = SystemClock::new().now();
        let decided = tx
            .zone(&zone)
            .approvals()
            .decide(&id, verdict, now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        self.sts.sts.announce.announce().await;
        decided.is_some()
    }

    pub async fn activate(&self, version: &str) {
        let mut tx = self.store.begin("activating").await.unwrap();
        tx.execute(&BIND, &params![version]).await.unwrap();
        tx.change(&Change::Zone(ZoneId::trusted("z1")));
        tx.commit().await.unwrap();
        self.sts.sts.announce.announce().await;
    }

    pub async fn expire(&self, id: &str) {
        change(&self.store, &EXPIRE, &params![id, SystemClock::new().now()]).await;
    }

    pub async fn revoke(&self, record: &str) {
        change(&self.store, &REVOKE, &params![record]).await;
    }

    pub async fn spent_long_ago(&self, id: &str) {
        let at = SystemClock::new().now().minus(Duration::from_secs(121));
        change(&self.store, &SPENT_AT, &params![id, at]).await;
    }

    /// A session mandate, as federation issues it.
    pub async fn signed_in(&self, record: &str, subject: &str, change: Value) -> String {
        let now = SystemClock::new().now().unix_seconds();
        let mut claims = json!({
            "iss": ISSUER, "sub": subject, "aud": [ISSUER], "exp": now + 600, "iat": now,
            "jti": "j1", "zone_id": "z1", "client_id": "app-z1", "sid": record,
            "root_sid": record, "use": "session", "sub_type": "user",
        });
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let mandate: Mandate = serde_json::from_value(claims).unwrap();
        let zone = self
            .sts
            .sts
            .views
            .zone(&ZoneId::trusted("z1"))
            .await
            .unwrap();
        zone.keys.signing.as_ref().unwrap().sign(&mandate).unwrap()
    }

    /// A user decides.
    pub async fn decides(
        &self,
        token: &str,
        id: &str,
        body: &Value,
    ) -> (StatusCode, http::HeaderMap, Value) {
        let mut request = post(
            &format!("/approvals/{id}/decision"),
            "application/json",
            body.to_string(),
        );
        if !token.is_empty() {
            let bearer = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert("authorization", bearer);
        }
        self.sts.send(request).await
    }

    pub async fn standing(&self, id: &str, wait: &str) -> (StatusCode, Value) {
        let request = Request::get(format!("/approvals/{id}{wait}"))
            .body(Body::empty())
            .unwrap();
        let (status, headers, body) = self.sts.send(request).await;
        super::told::is_whole(wait, status, &headers, &body);
        (status, body)
    }

    /// What was recorded so far, all of it: `event decision status`.
    pub async fn evidence(&self) -> Vec<Event> {
        loop {
            let stats = self.sts.sts.evidence.stats();
            if stats.delivered == stats.persisted {
                return self.taken.0.lock().clone();
            }
            tokio::task::yield_now().await;
        }
    }

    /// What was recorded since this was asked last.
    pub async fn news(&self) -> Vec<Value> {
        let all = self.evidence().await;
        let from = self.told.swap(all.len(), Ordering::Relaxed);
        let wire = |event: &Event| serde_json::from_str(&event.to_wire()).unwrap();
        all.iter().skip(from).map(wire).collect()
    }

    /// `event decision status` of the events since `from`.
    pub async fn kinds(&self, from: usize) -> Vec<String> {
        let kind = |event: &Event| {
            format!(
                "{} {} {}",
                event.event_type, event.decision, event.evaluation_status
            )
        };
        self.evidence().await.iter().skip(from).map(kind).collect()
    }
}
