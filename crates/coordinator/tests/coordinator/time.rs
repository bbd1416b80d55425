//! What time does, with the sweepers running.

use std::time::Duration;

use caracal_net::Tasks;
use caracal_store::Sql;
use serde_json::json;

use crate::support::{World, on_each_with, raw};

const OFTEN: [(&str, &str); 5] = [
    ("TTL_SWEEP_INTERVAL_MS", "100"),
    ("SERVICE_LEASE_SWEEP_INTERVAL_MS", "100"),
    ("RETENTION_CLEANUP_INTERVAL_MS", "1000"),
    ("SESSION_RETENTION_DAYS", "1"),
    ("DELEGATION_RETENTION_DAYS", "1"),
];
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until a statement that counts answers with `expected`.
async fn until(world: &World, what: &str, sql: &Sql, expected: i64) {
    let reached = async {
        loop {
            let row = world.store.query_opt(sql, &[]).await.unwrap().unwrap();
            if row.int("found").unwrap() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(DEADLINE, reached).await.is_ok(),
        "{what}"
    );
}

const EXPIRED: Sql =
    raw("SELECT COUNT(*) AS found FROM sessions WHERE status IN ('expired', 'terminated')");
const SUSPENDED: Sql = raw("SELECT COUNT(*) AS found FROM sessions WHERE status = 'suspended'");
const BROKEN: Sql = raw("UPDATE sessions SET subject_type = 'nobody'");
const EDGES: Sql = raw("SELECT COUNT(*) AS found FROM delegations WHERE status = 'active'");
const ALL: Sql = raw(
    "SELECT (SELECT COUNT(*) FROM sessions WHERE lifecycle = 'task')
    + (SELECT COUNT(*) FROM delegations) + (SELECT COUNT(*) FROM idempotency_receipts) AS found",
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweepers_end_tasks_suspend_services_and_forget_what_is_old() {
    on_each_with("sweepers", &OFTEN, |world| async move {
        let service = world.service().await;
        let parent = world.task().await;
        let child = world.child(&parent, "none").await;
        let peer = {
            let body = json!({ "application_id": "app-1", "ttl_seconds": 86_400 });
            let path = "/zones/zone-a/agents";
            let mut request = World::request("POST", path, &world.token, Some(&body));
            request
                .headers_mut()
                .insert("idempotency-key", http::HeaderValue::from_static("k"));
            world.send(request).await.id()
        };
        world
            .delegate(&peer, &parent, json!({ "ttl_seconds": 7_200 }))
            .await
            .edge();
        world.delegate(&peer, &service, json!({})).await.edge();

        let tasks = Tasks::new();
        caracal_coordinator::tasks(&world.coordinator, &tasks);
        world.clock.advance(Duration::from_secs(300));
        until(&world, "the service is suspended", &SUSPENDED, 1).await;
        until(&world, "the short edge expires", &EDGES, 1).await;
        world.clock.advance(Duration::from_secs(3_300));
        until(&world, "parent and child end", &EXPIRED, 2).await;
        until(&world, "the edge to the parent goes with it", &EDGES, 0).await;
        let row = world.operator("GET", &format!("/agents/{parent}")).await;
        assert_eq!(row.ok()["termination_reason"], "ttl");
        assert_eq!(world.status(&child).await, "terminated");
        let expired = world.news("caracal.delegations.invalidate").await;
        let expired: Vec<_> = expired
            .iter()
            .filter(|news| news["event"] == "edge_expire")
            .collect();
        assert_eq!((expired.len(), expired[0]["epoch"].as_str()), (1, "1"));
        assert_eq!(expired[0]["affected_edges"], "1");
        world.is_sound().await;

        // A task of a day, a day of retention, a week of receipts.
        world.clock.advance(Duration::from_secs(86_400));
        until(&world, "the peer ends", &EXPIRED, 3).await;
        world.clock.advance(Duration::from_secs(8 * 86_400));
        until(&world, "everything that ended is deleted", &ALL, 0).await;
        assert_eq!(world.status(&service).await, "suspended");
        assert!(tasks.shutdown(Duration::from_secs(5)).await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_cannot_be_ended_keeps_no_other_from_its_end() {
    on_each_with("broken session", &OFTEN, |world| async move {
        world.task().await;
        world.execute(&BROKEN, &[]).await;
        world.clock.advance(Duration::from_secs(1));
        world.task().await;
        let tasks = Tasks::new();
        caracal_coordinator::tasks(&world.coordinator, &tasks);
        world.clock.advance(Duration::from_secs(3_600));
        until(&world, "the sound task ends", &EXPIRED, 1).await;
        assert!(tasks.shutdown(Duration::from_secs(5)).await.is_empty());
    })
    .await;
}
