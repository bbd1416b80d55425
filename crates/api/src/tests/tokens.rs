//! Admin tokens: seeded, minted, used, revoked.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::stack::{BOOTSTRAP, Stack};
use crate::{on_stack, seed};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(15);

on_stack! {
    async fn seeding_again_changes_nothing(stack: Stack) {
        let list = async || {
            let page = stack.get("/v1/admin-tokens").await.is(200);
            let rows = page["items"].as_array().unwrap().clone();
            let row = |row: &serde_json::Value| (
                row["name"].as_str().unwrap().to_owned(),
                (row["id"].clone(), row["capability"].clone(), row["created_by"].clone(), row["revoked_at"].clone()),
            );
            rows.iter().map(row).collect::<BTreeMap<_, _>>()
        };
        let first = list().await;
        seed(&stack.api).await.unwrap();
        assert_eq!(list().await, first);
        let shown: Vec<String> = first.iter().map(|(name, (_, can, by, _))| format!("{name} {can} {by}")).collect();
        insta::allow_duplicates! { insta::assert_snapshot!(shown.join("\n"), @r#"
        bootstrap "write" "env-bootstrap"
        console-approve "approve" "env-derived-approve"
        console-read-only "read" "env-derived"
        console-write "write" "env-derived-write"
        "#) };
    }

    async fn a_token_is_shown_once_works_and_stops_working(stack: Stack) {
        let wish = json!({"name": "ci", "scope": "global"});
        let made = stack.send("POST", "/v1/admin-tokens", wish).await.is(201);
        let token = made["token"].as_str().unwrap();
        assert!(token.starts_with("cat_") && token.len() == 4 + 43);
        assert_eq!((&made["capability"], &made["zone_id"]), (&json!("write"), &json!(null)));
        stack.send_as(token, "GET", "/v1/zones", "").await.is(200);
        let listed = stack.get("/v1/admin-tokens").await;
        assert!(!listed.text.contains(token));
        let row = listed.body["items"].as_array().unwrap().iter().find(|row| row["id"] == made["id"]).unwrap().clone();
        assert!(row["last_used_at"].is_string(), "{row}");
        let at = format!("/v1/admin-tokens/{}", made["id"].as_str().unwrap());
        stack.delete(&at).await.is(204);
        stack.send_as(token, "GET", "/v1/zones", "").await.is(401);
        assert_eq!(stack.delete(&at).await.text("error"), "admin_token_not_found");
    }

    async fn a_token_that_another_replica_revoked_stops_soon(stack: Stack) {
        let made = stack.send("POST", "/v1/admin-tokens", json!({"name": "ci", "scope": "global"})).await.is(201);
        let token = made["token"].as_str().unwrap();
        stack.send_as(token, "GET", "/v1/zones", "").await.is(200);
        let mut tx = stack.store.begin("revoke elsewhere").await.unwrap();
        let now = stack.api.clock.now();
        assert!(tx.admin_tokens().revoke(made["id"].as_str().unwrap(), now).await.unwrap());
        tx.commit().await.unwrap();
        let refused = async {
            while stack.send_as(token, "GET", "/v1/zones", "").await.status != 401 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, refused).await.expect("what is kept of a token is not kept");
    }

    async fn tokens_of_the_deployment_end_with_its_word(stack: Stack) {
        let console = stack.console("write");
        stack.get("/v1/zones").await.is(200);
        let minted = stack.token("read", None).await;
        // Another replica, which is told of no token.
        let other = Stack::start_over(stack.store.clone(), &[("CARACAL_ADMIN_TOKEN", "")], None).await;
        for token in [BOOTSTRAP, &console] {
            let refused = other.send_as(token, "GET", "/v1/zones", "").await;
            assert_eq!(refused.text("error"), "invalid_admin_token");
        }
        other.send_as(&minted, "GET", "/v1/zones", "").await.is(200);
        // The first starts again. Who cannot check an account has no business with its tokens.
        seed(&stack.api).await.unwrap();
        stack.get("/v1/zones").await.is(200);
        for (method, path) in [("GET", "/v1/zones"), ("POST", "/v1/zones"), ("GET", "/v1/admin-tokens")] {
            let refused = other.send_as(&console, method, path, r#"{"name": "x"}"#).await;
            assert_eq!((refused.status.as_u16(), refused.text("error")), (401, "invalid_account_assertion"));
        }
        other.stop().await;
    }

    async fn archiving_a_zone_ends_its_tokens(stack: Stack) {
        let zone = stack.zone("Ends").await;
        let token = stack.token("write", Some(&zone)).await;
        let path = format!("/v1/zones/{zone}");
        stack.send_as(&token, "GET", &path, "").await.is(200);
        stack.send_as(&token, "DELETE", &path, "").await.is(204);
        stack.send_as(&token, "GET", &path, "").await.is(401);
        assert_eq!(stack.get(&path).await.text("error"), "zone_not_found");
        let again = stack.send("POST", "/v1/zones", json!({"name": "x", "slug": "ends"})).await;
        assert_eq!(again.text("error"), "zone_slug_conflict", "the slug stays taken");
    }

    async fn only_the_exact_token_is_the_token(stack: Stack) {
        for wrong in [&BOOTSTRAP[1..], &format!("{BOOTSTRAP}x"), &BOOTSTRAP.to_uppercase()] {
            stack.send_as(wrong, "GET", "/v1/zones", "").await.is(401);
        }
    }

    async fn the_mint_rate_is_lowered_and_never_above_the_ceiling(stack: Stack) {
        let at = "/v1/mint-rate-limit";
        let unset = json!({"limit_per_minute": 1000, "max_per_minute": 1000,
            "updated_by": null, "updated_at": null});
        assert_eq!(stack.get(at).await.is(200), unset);
        for (body, error) in [
            (json!({}), "invalid_rate_limit"),
            (json!({"limit_per_minute": 0}), "invalid_rate_limit"),
            (json!({"limit_per_minute": "7"}), "invalid_rate_limit"),
            (json!({"limit_per_minute": 7.5}), "invalid_rate_limit"),
            (json!({"limit_per_minute": 7, "more": 1}), "invalid_rate_limit"),
            (json!({"limit_per_minute": 1001}), "rate_limit_above_ceiling"),
            (json!({"limit_per_minute": 10_000_000_000_u64}), "rate_limit_above_ceiling"),
        ] {
            let answer = stack.send("PUT", at, body.clone()).await;
            assert_eq!((answer.status.as_u16(), answer.text("error")), (400, error), "{body}");
        }
        assert_eq!(stack.get(at).await.is(200), unset, "nothing was set");
        let set = stack.send("PUT", at, json!({"limit_per_minute": 7})).await.is(200);
        assert_eq!((&set["limit_per_minute"], &set["max_per_minute"]), (&json!(7), &json!(1000)));
        assert!(set["updated_by"].is_string() && set["updated_at"].is_string(), "{set}");
        assert_eq!(stack.get(at).await.is(200), set);
        let zone = stack.zone("Own").await;
        let token = stack.token("write", Some(&zone)).await;
        stack.send_as(&token, "PUT", at, r#"{"limit_per_minute": 9}"#).await.is(403);
        let reader = stack.token("read", None).await;
        stack.send_as(&reader, "PUT", at, r#"{"limit_per_minute": 9}"#).await.is(403);
        assert_eq!(stack.get(at).await.is(200), set);
    }

    async fn retention_is_shortened_and_never_beyond_the_ceiling(stack: Stack) {
        let at = "/v1/audit-retention";
        let unset = json!({"retention_days": 365, "max_days": 365,
            "updated_by": null, "updated_at": null});
        assert_eq!(stack.get(at).await.is(200), unset);
        for (body, error) in [
            (json!({}), "invalid_body"),
            (json!({"retention_days": 0}), "invalid_body"),
            (json!({"retention_days": -3}), "invalid_body"),
            (json!({"retention_days": "30"}), "invalid_body"),
            (json!({"retention_days": 30, "more": 1}), "invalid_body"),
            (json!({"retention_days": 366}), "retention_above_limit"),
        ] {
            let answer = stack.send("PUT", at, body.clone()).await;
            assert_eq!((answer.status.as_u16(), answer.text("error")), (400, error), "{body}");
        }
        let set = stack.send("PUT", at, json!({"retention_days": 30})).await.is(200);
        assert_eq!((&set["retention_days"], &set["max_days"]), (&json!(30), &json!(365)));
        assert!(set["updated_by"].is_string() && set["updated_at"].is_string(), "{set}");
        assert_eq!(stack.get(at).await.is(200), set);
        let reader = stack.token("read", None).await;
        stack.send_as(&reader, "PUT", at, r#"{"retention_days": 9}"#).await.is(403);
    }

    async fn a_dead_outbox_entry_is_shown_and_sent_again(stack: Stack) {
        let zone = stack.zone("Own").await;
        let outbox = stack.store.outbox();
        let list = format!("/v1/zones/{zone}/outbox");
        let why = std::time::Duration::from_secs(1);
        let mut dead = None;
        // The relay publishes as well, and may be faster.
        for _ in 0..100 {
            let mut tx = stack.store.begin("test").await.unwrap();
            tx.change(&caracal_model::Change::Zone(zone.clone()));
            tx.commit().await.unwrap();
            let entry = outbox.latest(&zone, caracal_model::Topic::ViewChanges).await;
            let id = entry.unwrap().unwrap().id;
            outbox.failed(&[&id], "refused", why, 1).await.unwrap();
            let page = stack.get(&list).await.is(200);
            if page["items"][0]["id"] == id.as_str() {
                dead = Some((id, page));
                break;
            }
        }
        let (id, page) = dead.unwrap();
        assert_eq!(page["items"][0]["state"], "dead");
        assert_eq!(page["items"][0]["last_error"], "refused");
        let reader = stack.token("read", None).await;
        let requeue = format!("{list}/{id}/requeue");
        stack.send_as(&reader, "POST", &requeue, "").await.is(403);
        let answer = stack.send("POST", &requeue, json!({})).await.is(200);
        assert_eq!(answer, json!({"id": id, "status": "pending"}));
        let again = stack.send("POST", &requeue, json!({})).await;
        assert_eq!((again.status.as_u16(), again.text("error")), (404, "dead_outbox_not_found"));
        let dead = stack.get(&list).await.is(200);
        assert_eq!(dead, json!({"items": [], "next_cursor": null}));
    }
}
