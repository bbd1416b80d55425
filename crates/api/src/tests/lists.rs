//! Pages (spec: admin-api §2.2).

use std::collections::BTreeSet;

use serde_json::json;

use crate::on_stack;

on_stack! {
    async fn following_the_cursor_shows_every_row_once_newest_first(stack: Stack) {
        let zone = stack.zone("pages").await;
        let path = format!("/v1/zones/{zone}/policy-sets");
        let mut made = Vec::new();
        for n in 0..7 {
            made.push(stack.make(&path, json!({"name": format!("set-{n}")})).await);
        }
        let mut seen = Vec::new();
        let mut next = format!("{path}?limit=3");
        loop {
            let page = stack.get(&next).await.is(200);
            seen.extend(page["items"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()));
            match page["next_cursor"].as_str() {
                Some(cursor) => next = format!("{path}?limit=3&cursor={cursor}"),
                None => break,
            }
        }
        made.reverse();
        assert_eq!(seen, made);
    }

    async fn a_full_last_page_has_a_cursor_to_an_empty_one(stack: Stack) {
        let zone = stack.zone("pages").await;
        let path = format!("/v1/zones/{zone}/policy-sets");
        for n in 0..2 {
            stack.make(&path, json!({"name": format!("set-{n}")})).await;
        }
        let page = stack.get(&format!("{path}?limit=2")).await.is(200);
        let cursor = page["next_cursor"].as_str().unwrap();
        let page = stack.get(&format!("{path}?limit=2&cursor={cursor}")).await.is(200);
        assert_eq!(page, json!({"items": [], "next_cursor": null}));
    }

    async fn rows_of_other_zones_do_not_show(stack: Stack) {
        let (one, two) = (stack.zone("one").await, stack.zone("two").await);
        let wish = json!({"name": "a", "registration_method": "managed"});
        let id = stack.make(&format!("/v1/zones/{one}/applications"), wish).await;
        let listed = stack.get(&format!("/v1/zones/{two}/applications")).await.is(200);
        assert_eq!(listed["items"], json!([]));
        for (method, path, body) in [
            ("GET", format!("applications/{id}"), ""),
            ("PATCH", format!("applications/{id}"), r#"{"name":"b"}"#),
            ("POST", format!("applications/{id}/rotate-secret"), ""),
            ("GET", format!("applications/{id}/client-secret"), ""),
            ("DELETE", format!("applications/{id}"), ""),
        ] {
            let path = format!("/v1/zones/{two}/{path}");
            let reply = stack.send_as(super::stack::BOOTSTRAP, method, &path, body).await;
            assert_eq!(reply.text("error"), "application_not_found", "{method} {path}");
        }
        stack.get(&format!("/v1/zones/{one}/applications/{id}")).await.is(200);
    }

    async fn a_list_in_no_zone_is_empty(stack: Stack) {
        for list in ["applications", "providers", "resources", "policies", "policy-sets", "workloads", "audit"] {
            let page = stack.get(&format!("/v1/zones/nope/{list}")).await.is(200);
            assert_eq!(page, json!({"items": [], "next_cursor": null}), "{list}");
        }
    }

    async fn zones_of_one_name_get_slugs_of_their_own(stack: Stack) {
        let mut slugs = BTreeSet::new();
        for _ in 0..3 {
            let zone = stack.zone("Prod EU").await;
            let shown = stack.get(&format!("/v1/zones/{zone}")).await.is(200);
            slugs.insert(shown["slug"].as_str().unwrap().to_owned());
        }
        assert_eq!(slugs.into_iter().collect::<Vec<_>>(), ["prod-eu", "prod-eu-2", "prod-eu-3"]);
    }
}
