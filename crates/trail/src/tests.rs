//! The chains on each engine: one order, whoever writes, and nothing that a stranger wrote.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Extension;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use caracal_crypto::HmacKey;
use caracal_crypto::os::OsRng;
use caracal_ledger::chain::{StoredLink, verify};
use caracal_ledger::{AdminRecord, Head};
use caracal_model::{Ids, RequestId, TestClock, ZoneId};
use caracal_net::Tasks;
use caracal_store::admin_audit::{AdminEvent, Intent, deployment};
use caracal_store::{Rider, Store, on_each_engine};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{Actor, Attendant, Deed, Draft, Made, Rules, Trail, attend};

const RULES: Rules = Rules {
    prefix: "/v1/",
    zones: "/v1/zones/",
    collections: &["zones", "things"],
    callback: Some("/v1/zones/{zone}/callback"),
    counts_strangers: true,
    names_creations: true,
    tells_message: false,
};

fn key() -> HmacKey {
    HmacKey::from_hex(&"5c".repeat(32)).unwrap()
}

/// A process with a trail of its own.
struct Process {
    store: Store,
    trail: Trail,
    tasks: Tasks,
    router: Router,
}

impl Process {
    fn start(store: &Store) -> Self {
        Self::start_after(store, Duration::ZERO)
    }

    fn start_after(store: &Store, time: Duration) -> Self {
        let clock = Arc::new(TestClock::default());
        clock.advance(time);
        let ids = Arc::new(Ids::new(clock.clone(), Arc::new(OsRng)));
        let (trail, chainer) = Trail::new(store.clone(), Some(key()), clock, ids);
        let tasks = Tasks::new();
        tasks.spawn("chainer", chainer.run(tasks.stop()));
        let attendant = Attendant::new(trail.clone(), &RULES);
        let router = Router::new()
            .route("/v1/zones/{zone}/things", post(make))
            .route(
                "/v1/zones/{zone}/things/{id}",
                post(check).delete(fail_late),
            )
            .route("/v1/zones/{zone}/callback", get(callback))
            .route("/v1/zones/{zone}/hang", post(hang))
            .layer(from_fn_with_state(attendant, attend))
            .layer(Extension(RequestId::trusted("r-1")))
            .layer(Extension(store.clone()));
        Self {
            store: store.clone(),
            trail,
            tasks,
            router,
        }
    }

    async fn send(&self, method: &str, path: &str) -> StatusCode {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Body::empty()).unwrap();
        self.router.clone().oneshot(request).await.unwrap().status()
    }

    /// The chain of a zone, which must hold.
    async fn chain(&self, zone: &str) -> Vec<(AdminRecord, Value)> {
        let zone = ZoneId::trusted(zone);
        self.trail.settle(&zone).await.unwrap();
        let rows = self
            .store
            .admin_audit()
            .chain(&zone, 0, 1_000)
            .await
            .unwrap();
        let head = verify(rows.iter().map(link), None, Some(&key())).unwrap();
        let kept = self
            .store
            .admin_audit()
            .heads(&[zone.as_str()])
            .await
            .unwrap();
        let kept = kept.first().map_or(Head::GENESIS, |kept| {
            Head::stored(kept.chain_seq, &kept.chain_hash).unwrap()
        });
        assert_eq!(head, kept);
        let records = rows.iter().map(|row| {
            let record = AdminRecord::parse(&row.record).unwrap();
            let payload = serde_json::from_str(record.payload.as_deref().unwrap()).unwrap();
            (record, payload)
        });
        records.collect()
    }

    async fn stop(self) {
        self.tasks.shutdown(Duration::from_secs(5)).await;
    }
}

fn link(row: &AdminEvent) -> StoredLink<'_> {
    StoredLink {
        seq: row.chain_seq,
        wire: &row.record,
        content_sha256: &row.content_sha256,
        chain_hash: &row.chain_hash,
        chain_hmac: &row.chain_hmac,
    }
}

fn known(draft: &Draft) {
    let some = |text: &str| Some(text.to_owned());
    draft.by(Actor {
        id: some("t1"),
        name: some("n"),
        scope: some("global"),
        ..Actor::default()
    });
}

async fn change(store: &Store) {
    let mut tx = store.begin("change").await.unwrap();
    tx.change(&caracal_model::Change::Zone(ZoneId::trusted("z1")));
    tx.commit().await.unwrap();
}

async fn make(draft: Extension<Arc<Draft>>, store: Extension<Store>) -> Response {
    // As admission does, before anybody knows who calls.
    change(&store).await;
    known(&draft);
    draft.says(&json!({"name": "x", "token": "secret"}));
    draft.does(Deed {
        action: "Thing blessed".to_owned(),
        entity_type: "things",
        entity_id: "new".to_owned(),
        details: json!({"how": "well"}).as_object().cloned().unwrap(),
    });
    change(&store).await;
    (StatusCode::CREATED, Extension(Made("new".to_owned()))).into_response()
}

async fn check(draft: Extension<Arc<Draft>>) {
    known(&draft);
}

async fn fail_late(draft: Extension<Arc<Draft>>, store: Extension<Store>) -> StatusCode {
    known(&draft);
    change(&store).await;
    StatusCode::CONFLICT
}

async fn callback(store: Extension<Store>) {
    change(&store).await;
}

async fn hang(draft: Extension<Arc<Draft>>, store: Extension<Store>) {
    known(&draft);
    change(&store).await;
    std::future::pending::<()>().await;
}

on_each_engine! {
    async fn what_is_done_is_on_record_with_its_answer(store: Store) {
        let process = Process::start(&store);
        assert_eq!(process.send("POST", "/v1/zones/z1/things?x=1").await, StatusCode::CREATED);
        assert_eq!(process.send("POST", "/v1/zones/z1/things/t9").await, StatusCode::OK);
        assert_eq!(process.send("DELETE", "/v1/zones/z1/things/t9").await, StatusCode::CONFLICT);
        assert_eq!(process.send("GET", "/v1/zones/z1/callback").await, StatusCode::OK);
        let mut told = String::new();
        for (record, payload) in process.chain("z1").await {
            let entity = record.entity_id.as_deref().unwrap_or("-");
            let actor = record.actor_id.as_deref().unwrap_or("-");
            told += &format!("{actor} {} {entity} {} {payload}\n", record.action, record.status_code);
        }
        insta::allow_duplicates! { insta::assert_snapshot!(told, @r#"
        t1 POST /v1/zones/z1/things new 201 {"change_kind":"create","changed_fields":["name"],"rls_mode":"control_plane_wildcard","rls_zone_guc":"*","secret_rotated":true}
        t1 Thing blessed new 201 {"how":"well","rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        t1 POST /v1/zones/z1/things/t9 t9 200 {"change_kind":"create","rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        t1 DELETE /v1/zones/z1/things/t9 t9 409 {"rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        - GET /v1/zones/z1/callback z1 200 {"rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        "#) };
        assert_eq!(store.admin_audit().counts().await.unwrap().waiting, 0);
        process.stop().await;
    }

    async fn strangers_are_counted_and_leave_one_record(store: Store) {
        let process = Process::start(&store);
        for _ in 0..50 {
            process.send("PUT", "/v1/zones/z1/things").await;
        }
        assert_eq!(process.chain("z1").await, []);
        // What was counted is told at the latest when the process ends.
        process.tasks.shutdown(Duration::from_secs(5)).await;
        let chain = process.chain("").await;
        let [(record, payload)] = &chain[..] else { panic!("{chain:?}") };
        assert_eq!((record.action.as_str(), record.status_code), ("Refused without authentication, 50", 405));
        assert_eq!((&record.actor_id, &payload["count"]), (&None, &json!(50)));
    }

    async fn a_caller_that_hangs_up_leaves_a_record_without_an_answer(store: Store) {
        let process = Process::start(&store);
        let hanging = process.send("POST", "/v1/zones/z1/hang");
        let committed = async {
            while store.admin_audit().counts().await.unwrap().waiting == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! { _ = hanging => panic!("it hangs"), () = committed => {} }
        let chain = process.chain("z1").await;
        let [(record, payload)] = &chain[..] else { panic!("{chain:?}") };
        assert_eq!((record.status_code, &payload["answer"]), (200, &json!("unknown")));
        process.stop().await;
    }

    async fn what_a_dead_process_left_is_appended_once_and_what_a_stranger_left_never(store: Store) {
        let dead = Process::start(&store);
        let draft = Draft::new(&dead.trail, &RULES, "POST", "/v1/zones/z1/things", None, "r".into());
        let draft = Arc::new(draft);
        known(&draft);
        Rider::new(draft.intention()).along(change(&store)).await;
        let forged = Intent {
            id: "forged".into(),
            zone: deployment(),
            record: AdminRecord { id: "forged".into(), ..draft.records(crate::draft::End::Unknown, false)[0].clone() }.to_text(),
            mac: "00".repeat(32),
        };
        struct Forger(Intent);
        impl caracal_store::Intention for Forger {
            fn intents(&self) -> Vec<Intent> { vec![self.0.clone()] }
        }
        Rider::new(Arc::new(Forger(forged))).along(change(&store)).await;
        dead.stop().await;
        // Long after: both look for what others left as soon as they start.
        let later = Duration::from_secs(100 * 365 * 24 * 3600);
        let (one, two) = (Process::start_after(&store, later), Process::start_after(&store, later));
        while store.admin_audit().counts().await.unwrap().waiting > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let chain = one.chain("z1").await;
        assert_eq!(chain.len(), 1);
        assert_eq!(chain[0].1["answer"], "unknown");
        let counts = store.admin_audit().counts().await.unwrap();
        assert_eq!((counts.waiting, counts.refused), (0, 1));
        one.stop().await;
        two.stop().await;
    }

    async fn processes_append_to_one_chain_in_one_order(store: Store) {
        let (one, two) = (Process::start(&store), Process::start(&store));
        let sends = (0..80).map(|n| {
            let process = if n % 2 == 0 { &one } else { &two };
            process.send("POST", "/v1/zones/z1/things/t1")
        });
        for status in futures_util::future::join_all(sends).await {
            assert_eq!(status, StatusCode::OK);
        }
        assert_eq!(one.chain("z1").await.len(), 80);
        one.stop().await;
        two.stop().await;
    }
}
