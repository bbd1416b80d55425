//! Receipts, checkpoints and the tree over HTTP.

use caracal_crypto::envelope::{Kek, Keyring};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_ledger::history::checkpoint_of;
use caracal_ledger::merkle::{Tree, leaf_hash};
use caracal_ledger::{Consistency, Head, Receipt, Vkey};
use caracal_model::{Clock as _, LogId, Timestamp, ZoneId};
use caracal_store::audit_trees::{AuditCheckpoint, AuditFinding};
use caracal_tlog::{Signer, ZoneLog};
use serde_json::json;

use super::Stack;
use super::audit::{append_after, append_events, event};
use super::stack::{BOOTSTRAP, KEK};
use crate::on_stack;

/// Does what Audit does: grows the tree over the events so far and signs it.
async fn checkpoint(stack: &Stack, zone: &ZoneId) -> u64 {
    sign(stack, &LogId::events(zone.clone())).await
}

async fn sign(stack: &Stack, id: &LogId) -> u64 {
    let keyring = Keyring::new(Kek::from_hex(KEK).unwrap(), None);
    let clock = SystemClock::new();
    let signer = Signer::open(&stack.store, &keyring, &OsRng, &clock, None);
    let signer = signer.await.unwrap();
    let log = ZoneLog::of(&stack.store, id);
    let state = log.rows().state().await.unwrap();
    let (size, hash) = state.map_or((0, "-".to_owned()), |state| (state.size, state.chain_hash));
    let mut growth = log.growth(size).await.unwrap();
    let texts = log.entries(size, 1000).await.unwrap();
    texts
        .iter()
        .for_each(|text| growth.append(leaf_hash(text.as_bytes())));
    let size_now = growth.size();
    assert!(log.store((size, &hash), growth, "-").await.unwrap());
    let tree: Tree = log.tree(size_now).await.unwrap();
    let mut made = checkpoint_of(signer.origin(id), &Head::GENESIS, &tree);
    made.chain_hash = None;
    let last = log.rows().latest().await.unwrap();
    let last = last.as_ref().map(|last| last.note.as_str());
    let note = signer.sign(made, last).unwrap().note;
    let stored = AuditCheckpoint {
        size: size_now,
        note,
        made_at: clock.now(),
    };
    assert!(log.rows().sign(&stored).await.unwrap());
    size_now
}

fn at(zone: &ZoneId, rest: &str) -> String {
    format!("/v1/zones/{zone}/audit{rest}")
}

async fn zone_with_events(stack: &Stack, count: usize) -> ZoneId {
    let zone = ZoneId::trusted("z-proofs");
    let events =
        (0..count).map(|n| event(&zone, n, "r", "allow", &json!({"session_id": "record-1"})));
    append_events(stack, &zone, events.collect()).await;
    zone
}

on_stack! {
    async fn a_key_is_replaced_and_everything_from_before_verifies(stack: Stack) {
        let rotate = async || stack.send_as(BOOTSTRAP, "POST", "/v1/audit-keys/rotate", "").await;
        let none = rotate().await;
        assert_eq!((none.status.as_u16(), none.text("error")), (404, "checkpoints_unavailable"));
        assert_eq!(stack.get("/v1/audit-keys").await.is(200), json!({"items": []}));
        let zone = zone_with_events(&stack, 3).await;
        checkpoint(&stack, &zone).await;
        let old = stack.get("/v1/audit-keys").await.is(200)["items"][0]["key"].clone();
        let made = rotate().await.is(201);
        assert_eq!((&made["id"], &made["status"]), (&json!("2"), &json!("signing")));
        let listed = stack.get("/v1/audit-keys").await.is(200);
        let told: Vec<_> = listed["items"].as_array().unwrap().iter()
            .map(|key| (key["key"].clone(), key["status"].as_str().unwrap())).collect();
        assert_eq!(told, [(old.clone(), "replaced"), (made["key"].clone(), "signing")]);
        assert!(!listed.to_string().contains("sealed"), "{listed}");
        assert!(listed["items"].as_array().unwrap().iter().all(|key| key["private_key"] == "kept"));

        let [old, new]: [Vkey; 2] = [&old, &made["key"]].map(|key| key.as_str().unwrap().parse().unwrap());
        let receipt = async || -> Receipt {
            let receipt = stack.get(&at(&zone, "/evt-1/receipt")).await.is(200);
            serde_json::from_value(receipt).unwrap()
        };
        let before = receipt().await;
        append_after(&stack, &zone, 3, vec![event(&zone, 3, "r", "allow", &json!({}))]).await;
        checkpoint(&stack, &zone).await;
        let change = receipt().await;
        append_after(&stack, &zone, 4, vec![event(&zone, 4, "r", "allow", &json!({}))]).await;
        checkpoint(&stack, &zone).await;
        let after = receipt().await;
        let by = |receipt: &Receipt| [&old, &new].map(|key| receipt.verify(std::slice::from_ref(key)).is_ok());
        assert_eq!([by(&before), by(&change), by(&after)], [[true, false], [true, true], [false, true]]);
        let proven = stack.get(&at(&zone, "/consistency?from=3&to=5")).await.is(200);
        let proven: Consistency = serde_json::from_value(proven).unwrap();
        assert!(proven.verify(std::slice::from_ref(&new)).is_err(), "it begins under the old key");
        assert_eq!(proven.verify(&[old, new]).unwrap().1.size, 5);
        assert!(stack.store.destroy_audit_key("1").await.unwrap());
        let listed = stack.get("/v1/audit-keys").await.is(200);
        assert_eq!(listed["items"][0]["private_key"], "destroyed");
        assert_eq!(receipt().await, after, "its public half is there");

        assert_eq!(stack.get("/v1/audit-findings").await.is(200), json!({"items": []}));
        let finding = AuditFinding { zone: zone.clone(), seq: 3, flaw: "changed".to_owned() };
        assert!(stack.store.add_audit_finding(&finding).await.unwrap());
        let found = stack.get("/v1/audit-findings").await.is(200)["items"][0].clone();
        assert_eq!((&found["log"], &found["seq"], &found["flaw"]), (&json!(zone), &json!(3), &json!("changed")));
    }

    async fn what_administrators_did_is_proven_as_events_are(stack: Stack) {
        let zone = stack.zone("proven").await;
        stack.token("read", None).await;
        let z = format!("/v1/zones/{zone}/admin-audit");
        for (prefix, of, log) in [
            (z.as_str(), zone.clone(), "/~admin"),
            ("/v1/admin-audit", ZoneId::trusted(""), "/~deployment/~admin"),
        ] {
            // Reading waits for what is on its way to the chain.
            let listed = stack.get(&format!("{prefix}?limit=1")).await.is(200);
            let size = sign(&stack, &LogId::admin(of)).await;
            assert!(size > 0, "{prefix}");
            let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
            let key = stack.get(&format!("{prefix}/checkpoint-key")).await.is(200);
            assert!(key["origin"].as_str().unwrap().ends_with(log), "{key}");
            let vkey: Vkey = key["key"].as_str().unwrap().parse().unwrap();
            let receipt = stack.get(&format!("{prefix}/{id}/receipt")).await.is(200);
            let receipt: Receipt = serde_json::from_value(receipt).unwrap();
            assert_eq!(receipt.verify(&[vkey]).unwrap().size, size);
            assert!(receipt.event.contains(&id));
            let latest = stack.get(&format!("{prefix}/checkpoint")).await;
            assert_eq!(latest.text.lines().nth(1), Some(size.to_string().as_str()));
            assert_eq!(stack.get(&format!("{prefix}/tile/0/000.p/{size}")).await.bytes.len(), 32 * size as usize);
            assert_eq!(stack.get(&format!("{prefix}/tile/entries/000.p/{size}")).await.status.as_u16(), 200);
            let none = stack.get(&format!("{prefix}/nothing/receipt")).await;
            assert_eq!((none.status.as_u16(), none.text("error")), (404, "record_not_found"));
        }
        // Another zone's record, and what belongs to no zone, are not for a token of the zone.
        let other = stack.zone("other").await;
        let listed = stack.get(&format!("{z}?limit=1")).await.is(200);
        let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
        let elsewhere = stack.get(&format!("/v1/zones/{other}/admin-audit/{id}/receipt")).await;
        assert_eq!(elsewhere.text("error"), "record_not_found");
        let token = stack.token("read", Some(&zone)).await;
        for (path, status) in [
            (format!("{z}/ledger"), 200),
            (format!("/v1/zones/{other}/admin-audit/ledger"), 403),
            ("/v1/admin-audit/ledger".to_owned(), 403),
            ("/v1/admin-audit/tile/0/000".to_owned(), 403),
            ("/v1/audit-logs".to_owned(), 403),
            ("/v1/audit-findings".to_owned(), 403),
        ] {
            let answer = stack.send_as(&token, "GET", &path, "").await;
            assert_eq!(answer.status.as_u16(), status, "{path}: {answer}");
        }
    }

    async fn a_log_is_read_page_by_page_to_its_end(stack: Stack) {
        let zone = zone_with_events(&stack, 5).await;
        checkpoint(&stack, &zone).await;
        append_after(&stack, &zone, 5, vec![event(&zone, 5, "r", "allow", &json!({"session_id": "kept"}))]).await;
        let mut lines = Vec::new();
        let mut pages = 0;
        let mut cursor = String::new();
        loop {
            let page = stack.get(&at(&zone, &format!("/ledger?limit=2{cursor}"))).await.is(200);
            lines.extend(page["items"].as_array().unwrap().clone());
            pages += 1;
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(pages, 4);
        let kinds: Vec<_> = lines.iter().map(|line| match (&line["key"], &line["checkpoint"]) {
            (key, _) if key.is_string() => "key".to_owned(),
            (_, note) if note.is_string() => "checkpoint".to_owned(),
            _ => line["seq"].to_string(),
        }).collect();
        assert_eq!(kinds, ["key", "1", "2", "3", "4", "checkpoint", "5", "6"]);
        assert!(lines.last().unwrap()["event"].as_str().unwrap().contains("kept"), "unredacted");
        for (query, error) in [("cursor=x", "invalid_cursor"), ("cursor=a-1", "invalid_cursor"), ("limit=1001", "invalid_query"), ("limit=0", "invalid_query")] {
            let refused = stack.get(&at(&zone, &format!("/ledger?{query}"))).await;
            assert_eq!((refused.status.as_u16(), refused.text("error")), (400, error), "{query}");
        }
        let logs = stack.get("/v1/audit-logs?limit=1").await.is(200);
        assert_eq!(logs["items"].as_array().unwrap().len(), 1);
        let next = logs["next_cursor"].as_str().map(|next| format!("&cursor={}", next.replace('/', "%2F")));
        let rest = stack.get(&format!("/v1/audit-logs?limit=1000{}", next.unwrap_or_default())).await.is(200);
        let all: Vec<_> = [&logs, &rest].iter().flat_map(|page| page["items"].as_array().unwrap().clone()).collect();
        assert!(all.contains(&json!({"zone_id": zone, "log": "events"})), "{all:?}");
    }

    async fn only_a_global_token_of_the_platform_replaces_a_key(stack: Stack) {
        let zone = zone_with_events(&stack, 3).await;
        checkpoint(&stack, &zone).await;
        let own = stack.zone("own").await;
        let of_zone = stack.token("write", Some(&own)).await;
        let reads = stack.token("read", None).await;
        for token in [of_zone, reads] {
            let refused = stack.send_as(&token, "POST", "/v1/audit-keys/rotate", "").await;
            assert_eq!(refused.status.as_u16(), 403, "{refused}");
        }
        assert_eq!(stack.get("/v1/audit-keys").await.is(200)["items"].as_array().unwrap().len(), 1);
    }

    async fn events_are_bundled_as_the_standard_has_it(stack: Stack) {
        let zone = zone_with_events(&stack, 300).await;
        let absent = stack.get(&at(&zone, "/tile/entries/000")).await;
        assert_eq!((absent.status.as_u16(), absent.text("error")), (404, "tile_not_found"));
        checkpoint(&stack, &zone).await;
        append_after(&stack, &zone, 300, vec![event(&zone, 300, "r", "allow", &json!({}))]).await;
        // As a reader of the standard does it: cut at the lengths, hash, compare with the tile.
        for (path, count) in [("000", 256), ("000.p/7", 7), ("001.p/44", 44)] {
            let bundle = stack.get(&at(&zone, &format!("/tile/entries/{path}"))).await;
            assert_eq!(bundle.headers["content-type"], "application/octet-stream");
            let mut rest = &bundle.bytes[..];
            let mut leaves = Vec::new();
            while let Some((length, behind)) = rest.split_first_chunk::<2>() {
                let (entry, behind) = behind.split_at(u16::from_be_bytes(*length).into());
                leaves.push(leaf_hash(entry));
                rest = behind;
            }
            assert_eq!(leaves.len(), count, "{path}");
            let tile = stack.get(&at(&zone, &format!("/tile/0/{path}"))).await;
            assert_eq!(leaves.concat(), tile.bytes, "{path}");
        }
        for path in ["001", "001.p/45", "002", "000.p/0", "0", "entries/000"] {
            let absent = stack.get(&at(&zone, &format!("/tile/entries/{path}"))).await;
            assert_eq!(absent.status.as_u16(), 404, "{path}");
        }
    }

    async fn a_bundle_that_does_not_fit_is_not_cut_short(stack: Stack) {
        let zone = ZoneId::trusted("z-long");
        let long = json!({"note": "x".repeat(70_000)});
        let events = vec![event(&zone, 0, "r", "allow", &json!({})), event(&zone, 1, "r", "allow", &long)];
        append_events(&stack, &zone, events).await;
        checkpoint(&stack, &zone).await;
        assert_eq!(stack.get(&at(&zone, "/tile/entries/000.p/1")).await.status.as_u16(), 200);
        let refused = stack.get(&at(&zone, "/tile/entries/000.p/2")).await;
        assert_eq!((refused.status.as_u16(), refused.text("error")), (404, "entry_too_long"));
    }

    async fn a_receipt_verifies_with_the_served_key_alone(stack: Stack) {
        let zone = zone_with_events(&stack, 300).await;
        let pending = stack.get(&at(&zone, "/evt-7/receipt")).await;
        assert_eq!(pending.text("error"), "checkpoints_unavailable");
        checkpoint(&stack, &zone).await;
        let key = stack.get(&at(&zone, "/checkpoint-key")).await.is(200);
        for name in ["key", "deployment_key"] {
            let vkey: Vkey = key[name].as_str().unwrap().parse().unwrap();
            for id in ["evt-0", "evt-7", "evt-299"] {
                let receipt = stack.get(&at(&zone, &format!("/{id}/receipt"))).await.is(200);
                let receipt: Receipt = serde_json::from_value(receipt).unwrap();
                assert_eq!(receipt.verify(std::slice::from_ref(&vkey)).unwrap().size, 300);
                assert!(receipt.event.contains("record-1"), "its exact text");
            }
        }
        let unknown = stack.get(&at(&zone, "/evt-300/receipt")).await;
        assert_eq!((unknown.status.as_u16(), unknown.text("error")), (404, "event_not_found"));
    }

    async fn a_receipt_of_what_no_checkpoint_covers_asks_for_one(stack: Stack) {
        let zone = zone_with_events(&stack, 3).await;
        let other = ZoneId::trusted("z-other");
        append_events(&stack, &other, vec![event(&other, 900, "r", "allow", &json!({}))]).await;
        checkpoint(&stack, &other).await;
        let later = Timestamp::from_unix_seconds(0);
        assert_eq!(stack.store.audit_trees_due(later, 1000).await.unwrap().len(), 1, "the first is due");
        let pending = stack.get(&at(&zone, "/evt-1/receipt")).await;
        assert_eq!((pending.status.as_u16(), pending.text("error")), (409, "checkpoint_pending"));
        assert_eq!(pending.headers["retry-after"], "2");
        checkpoint(&stack, &zone).await;
        stack.get(&at(&zone, "/evt-1/receipt")).await.is(200);
    }

    async fn checkpoints_are_listed_and_proven_to_continue_each_other(stack: Stack) {
        let zone = zone_with_events(&stack, 3).await;
        let none = stack.get(&at(&zone, "/checkpoint")).await;
        assert_eq!((none.status.as_u16(), none.text("error")), (404, "checkpoint_not_found"));
        assert_eq!(stack.get(&at(&zone, "/checkpoints")).await.is(200), json!({"items": [], "next_cursor": null}));
        checkpoint(&stack, &zone).await;
        let latest = stack.get(&at(&zone, "/checkpoint")).await;
        assert_eq!(latest.headers["content-type"], "text/plain; charset=utf-8");
        assert!(latest.text.starts_with("caracal/") && latest.text.contains("\n3\n"), "{}", latest.text);
        let by_size = stack.get(&at(&zone, "/checkpoints/3")).await;
        assert_eq!(by_size.text, latest.text);
        let page = stack.get(&at(&zone, "/checkpoints?limit=1")).await.is(200);
        assert_eq!(page["items"][0]["checkpoint"], json!(latest.text));
        assert_eq!(page["next_cursor"], "3");
        let end = stack.get(&at(&zone, "/checkpoints?limit=1&cursor=3")).await.is(200);
        assert_eq!(end["items"], json!([]));
        let key = stack.get(&at(&zone, "/checkpoint-key")).await.is(200);
        let vkey: Vkey = key["key"].as_str().unwrap().parse().unwrap();
        let proven = stack.get(&at(&zone, "/consistency?from=3")).await.is(200);
        let proven: Consistency = serde_json::from_value(proven).unwrap();
        assert_eq!(proven.verify(&[vkey]).unwrap().1.size, 3);
        let mut table = String::new();
        for path in ["/checkpoints/4", "/checkpoints/x", "/checkpoints?cursor=x", "/consistency",
                     "/consistency?from=3&to=4", "/consistency?from=x", "/tile/0/000", "/tile/9/000"] {
            table.push_str(&format!("{path} | {}\n", stack.get(&at(&zone, path)).await));
        }
        let expected = [
            "/checkpoints/4 | 404 checkpoint_not_found: no checkpoint of this size was signed",
            "/checkpoints/x | 404 checkpoint_not_found: no checkpoint of this size was signed",
            "/checkpoints?cursor=x | 400 invalid_cursor: cursor is the next_cursor of the page before",
            "/consistency | 400 invalid_query: from is required",
            "/consistency?from=3&to=4 | 404 checkpoint_not_found: from and to must be sizes of checkpoints",
            "/consistency?from=x | 400 invalid_query: from must be the size of a checkpoint",
            "/tile/0/000 | 404 tile_not_found: the tree has no such tile",
            "/tile/9/000 | 404 tile_not_found: the tree has no such tile",
        ];
        assert_eq!(table.lines().collect::<Vec<_>>(), expected);
    }

    async fn the_tree_is_served_as_tiles(stack: Stack) {
        let zone = zone_with_events(&stack, 300).await;
        assert_eq!(stack.get(&at(&zone, "/tile/0/000")).await.status, 404);
        checkpoint(&stack, &zone).await;
        for (path, status) in [("0/000", 200), ("0/001.p/44", 200), ("0/001", 404), ("0/001.p/45", 404),
                               ("1/000.p/1", 200), ("1/000", 404), ("2/000.p/1", 404)] {
            assert_eq!(stack.get(&at(&zone, &format!("/tile/{path}"))).await.status, status, "{path}");
        }
    }
}
