//! Requests at the same time. Each test ends with the invariants of `World::is_sound`.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::HeaderValue;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{Answer, World, on_each, on_each_with};

/// Runs so many at once.
async fn all<F, T>(count: usize, work: F) -> Vec<Answer>
where
    F: Fn(usize) -> T,
    T: Future<Output = Answer> + Send + 'static,
{
    let mut running = JoinSet::new();
    for at in 0..count {
        running.spawn(work(at));
    }
    running.join_all().await
}

fn count(answers: &[Answer], status: u16) -> usize {
    answers
        .iter()
        .filter(|answer| answer.status.as_u16() == status)
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_starts_at_once_fill_the_quota_exactly() {
    let settings = [("MAX_AGENTS_PER_ZONE", "50"), ("MAX_AGENTS_PER_APP", "40")];
    on_each_with("quota race", &settings, |world| async move {
        let starts = all(200, |at| {
            let world = world.clone();
            async move {
                let application = if at % 2 == 0 { "app-1" } else { "app-2" };
                let token = world.lifecycle(application);
                let body = json!({ "application_id": application });
                world.call(&token, "POST", "/agents", body).await
            }
        })
        .await;
        assert_eq!((count(&starts, 201), count(&starts, 429)), (50, 150));
        world.is_sound().await;
        let ids: Vec<String> = starts
            .iter()
            .filter(|a| a.status == 201)
            .map(Answer::id)
            .collect();
        let ids = Arc::new(ids);
        // Each is ended twice at once: one of the two has ended it.
        let ends = all(100, |at| {
            let (world, ids) = (world.clone(), ids.clone());
            async move {
                world
                    .operator("DELETE", &format!("/agents/{}", ids[at / 2]))
                    .await
            }
        })
        .await;
        assert_eq!((count(&ends, 204), count(&ends, 404)), (50, 50));
        world.is_sound().await;
        let left = world.operator("GET", "/agents?status=active").await;
        assert_eq!(left.ok()["items"], json!([]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_starts_while_its_parent_ends_does_not_survive_it() {
    on_each("orphan race", |world| async move {
        for _ in 0..8 {
            let root = world.task().await;
            let parent = world.child(&root, "none").await;
            let answers = all(9, |at| {
                let (world, root, parent) = (world.clone(), root.clone(), parent.clone());
                async move {
                    if at == 4 {
                        return world.operator("DELETE", &format!("/agents/{root}")).await;
                    }
                    let parent = if at % 2 == 0 { &parent } else { &root };
                    let body = json!({ "application_id": "app-1", "parent_id": parent });
                    world.post("/agents", body).await
                }
            })
            .await;
            assert_eq!(count(&answers, 204), 1);
            assert_eq!(
                count(&answers, 204) + count(&answers, 201) + count(&answers, 404),
                9
            );
            world.is_sound().await;
        }
        let left = world.operator("GET", "/agents?status=active").await;
        assert_eq!(left.ok()["items"], json!([]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_at_once_gives_one_session() {
    on_each("key race", |world| async move {
        let answers = all(20, |_| {
            let world = world.clone();
            async move {
                let body = json!({ "application_id": "app-1" });
                let path = "/zones/zone-a/agents";
                let mut request = World::request("POST", path, &world.token, Some(&body));
                request
                    .headers_mut()
                    .insert("idempotency-key", HeaderValue::from_static("once"));
                world.send(request).await
            }
        })
        .await;
        let ids: BTreeSet<String> = answers.iter().map(Answer::id).collect();
        assert_eq!(ids.len(), 1);
        let replayed = |answer: &&Answer| answer.headers.contains_key("idempotency-replayed");
        assert_eq!(answers.iter().filter(replayed).count(), 19);
        let list = world.get("/agents").await;
        assert_eq!(list.ok()["items"].as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delegation_that_is_made_while_its_parent_is_revoked_does_not_survive_it() {
    on_each("revoke race", |world| async move {
        let settings = json!({ "constraints": {"max_hops": 3} });
        for _ in 0..6 {
            let (a, b) = (world.task().await, world.task().await);
            let edge = world.delegate(&a, &b, settings.clone()).await.edge();
            let mut targets = Vec::new();
            for _ in 0..4 {
                targets.push(world.task().await);
            }
            let targets = Arc::new(targets);
            let answers = all(6, |at| {
                let (world, b, edge) = (world.clone(), b.clone(), edge.clone());
                let targets = targets.clone();
                async move {
                    match at {
                        2 => world.patch(&format!("/delegations/{edge}/revoke")).await,
                        5 => {
                            let body = json!({ "application_id": "app-1", "parent_id": b });
                            world.post("/agents", body).await
                        }
                        at => {
                            let target = targets[if at < 2 { at } else { at - 1 }].clone();
                            world.delegate(&b, &target, json!({})).await
                        }
                    }
                }
            })
            .await;
            assert_eq!(count(&answers, 200), 1);
            let active = world.operator("GET", "/delegations/active?limit=500").await;
            assert_eq!(active.ok()["items"], json!([]), "{answers:#?}");
            world.is_sound().await;
            for target in targets.iter().chain([&a]) {
                world.operator("DELETE", &format!("/agents/{target}")).await;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_delegations_that_close_a_circle_one_is_refused() {
    on_each("circle race", |world| async move {
        for _ in 0..6 {
            let (a, b) = (world.task().await, world.task().await);
            let answers = all(2, |at| {
                let world = world.clone();
                let (from, to) = if at == 0 {
                    (a.clone(), b.clone())
                } else {
                    (b.clone(), a.clone())
                };
                async move { world.delegate(&from, &to, json!({})).await }
            })
            .await;
            assert_eq!(count(&answers, 201), 1, "{answers:#?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_holders_one_keeps_the_lease() {
    on_each("lease race", |world| async move {
        let id = world.service().await;
        let leases = all(10, |_| {
            let (world, id) = (world.clone(), id.clone());
            async move {
                world
                    .post(&format!("/agents/{id}/lease"), Value::Null)
                    .await
            }
        })
        .await;
        let generations: BTreeSet<i64> = leases
            .iter()
            .map(|a| a.ok()["lease_generation"].as_i64().unwrap())
            .collect();
        assert_eq!(generations, (2..=11).collect());
        let beats = all(10, |at| {
            let (world, id) = (world.clone(), id.clone());
            async move {
                let body = json!({ "lease_generation": at + 2 });
                world.post(&format!("/agents/{id}/heartbeat"), body).await
            }
        })
        .await;
        assert_eq!((count(&beats, 200), count(&beats, 409)), (1, 9));
    })
    .await;
}
