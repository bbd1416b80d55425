//! Trusted issuers and subjects, as their clients see them.

use std::fmt::Write as _;

use caracal_model::{ApplicationId, RecordId, Timestamp, ZoneId};
use caracal_store::authority_records::AuthorityRecord;
use caracal_view::{Anchors, IssuedTo};
use serde_json::{Value, json};

use super::Stack;
use crate::on_stack;

fn issuer(more: Value) -> Value {
    let mut wish = json!({
        "issuer": "https://idp.example", "jwks_url": "https://idp.example/keys",
        "audience": "caracal",
    });
    let more = more.as_object().unwrap().clone();
    wish.as_object_mut().unwrap().extend(more);
    wish
}

/// An authority record, of a user when it has an issuer.
pub async fn add_record(
    stack: &Stack,
    zone: &ZoneId,
    id: &str,
    subject: &str,
    issuer: Option<&str>,
) {
    let now = stack.api.clock.now();
    let row = AuthorityRecord {
        id: RecordId::trusted(id),
        record_type: if issuer.is_some() {
            "user"
        } else {
            "application"
        }
        .to_owned(),
        subject_id: subject.to_owned(),
        client_id: ApplicationId::trusted("app").to_string(),
        parent_id: None,
        status: "active".to_owned(),
        expires_at: now.plus(std::time::Duration::from_secs(900)),
        created_at: now,
        revoked_at: None,
        revoked_reason: None,
        issuer: issuer.map(str::to_owned),
    };
    let mut tx = stack.store.begin("a record").await.unwrap();
    tx.zone(zone).add_authority_records(&[row]).await.unwrap();
    tx.commit().await.unwrap();
}

on_stack! {
    async fn an_issuer_is_added_changed_and_archived(stack: Stack) {
        let zone = stack.zone("Idp").await;
        let path = format!("/v1/zones/{zone}/subject-issuers");
        let made = stack.send("POST", &path, issuer(json!({}))).await.is(201);
        let mut keys: Vec<_> = made.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        insta::allow_duplicates! { insta::assert_snapshot!(keys.join(" "), @"archived_at audience created_at created_by created_via_operator id issuer jwks_url updated_at updated_by updated_via_operator zone_id") };
        let at = format!("{path}/{}", made["id"].as_str().unwrap());
        assert_eq!(stack.get(&at).await.is(200), made);
        assert_eq!(stack.get(&path).await.is(200)["items"], json!([made]));
        let view = stack.views.zone(&zone).await.unwrap();
        assert_eq!(view.subject_issuers["https://idp.example"].audience, "caracal");
        assert_eq!(stack.send("PATCH", &at, json!({})).await.is(200), made, "nothing to change");
        let changed = stack.send("PATCH", &at, json!({"audience": "other"})).await.is(200);
        assert_eq!((&changed["audience"], &changed["jwks_url"]), (&json!("other"), &made["jwks_url"]));
        assert!(changed["updated_by"].is_string());
        assert_eq!(stack.send("POST", &path, issuer(json!({}))).await.text("error"), "subject_issuer_exists");
        stack.delete(&at).await.is(204);
        for reply in [stack.get(&at).await, stack.delete(&at).await, stack.send("PATCH", &at, json!({})).await] {
            assert_eq!(reply.text("error"), "subject_issuer_not_found");
            assert_eq!(reply.status, 404);
        }
        assert!(stack.views.zone(&zone).await.unwrap().subject_issuers.is_empty());
        stack.send("POST", &path, issuer(json!({}))).await.is(201);
    }

    async fn wrong_issuers_say_what_to_fix(stack: Stack) {
        let zone = stack.zone("Idp").await;
        let path = format!("/v1/zones/{zone}/subject-issuers");
        let at = format!("{path}/{}", stack.make(&path, issuer(json!({}))).await);
        let mut table = String::new();
        for (method, path, body) in [
            ("POST", path.as_str(), json!({})),
            ("POST", &path, issuer(json!({"issuer": "http://idp.example"}))),
            ("POST", &path, issuer(json!({"jwks_url": "https://u@idp.example/k"}))),
            ("POST", &path, issuer(json!({"jwks_url": "https://idp.example/k?a=b"}))),
            ("POST", &path, issuer(json!({"issuer": format!("https://idp.example/{}", "x".repeat(2048))}))),
            ("POST", &path, issuer(json!({"audience": "x".repeat(513)}))),
            ("POST", &path, json!([])),
            ("PATCH", &at, json!({"issuer": "https://other.example"})),
            ("PATCH", &at, json!({"jwks_url": 7})),
            ("POST", "/v1/zones/nowhere/subject-issuers", issuer(json!({}))),
        ] {
            let reply = stack.send(method, path, body).await;
            writeln!(table, "{reply}").unwrap();
        }
        let table = table.replace(zone.as_str(), "ZONE");
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        400 invalid_subject_issuer: issuer is required
        400 invalid_subject_issuer: issuer must be an https URL without user, query or fragment
        400 invalid_subject_issuer: jwks_url must be an https URL without user, query or fragment
        400 invalid_subject_issuer: jwks_url must be an https URL without user, query or fragment
        400 invalid_subject_issuer: issuer must be 1 to 2048 characters
        400 invalid_subject_issuer: audience must be 1 to 512 characters
        400 invalid_subject_issuer: the body must be a JSON object
        400 invalid_subject_issuer: issuer cannot change; archive this issuer and add another
        400 invalid_subject_issuer: jwks_url must be a string
        404 zone_not_found: there is no zone nowhere
        "); }
    }

    async fn a_zone_trusts_twenty_issuers_and_no_more_however_fast_they_come(stack: Stack) {
        let zone = stack.zone("Many").await;
        let path = format!("/v1/zones/{zone}/subject-issuers");
        let add = async |n: usize| {
            let wish = issuer(json!({"issuer": format!("https://idp{n}.example")}));
            stack.send("POST", &path, wish).await
        };
        let all = futures_util::future::join_all((0..24).map(add)).await;
        let refused: Vec<_> = all.iter().filter(|reply| reply.status == 409).collect();
        assert_eq!(refused.len(), 4);
        for reply in refused {
            assert_eq!(reply.text("error"), "subject_issuer_limit_reached");
        }
    }

    async fn the_kill_switch_takes_everything_and_says_how_much(stack: Stack) {
        let zone = stack.zone("Kill").await;
        let z = format!("/v1/zones/{zone}");
        let (user, before) = ("auth0|ann", stack.api.clock.now());
        add_record(&stack, &zone, "r1", user, Some("https://idp.example")).await;
        add_record(&stack, &zone, "r2", user, Some("https://idp.example")).await;
        let page = stack.get(&format!("{z}/subjects?kind=user&search=ANN")).await.is(200);
        let item = &page["items"][0];
        assert_eq!(item["subject_id"], user);
        assert_eq!(item["issuer"], "https://idp.example");
        assert_eq!(item["federated"], true);
        assert_eq!((&item["total_sessions"], &item["active_sessions"], &item["revoked_sessions"]),
                   (&json!(2), &json!(2), &json!(0)));
        assert_eq!((&item["application_name"], &item["last_revoked_at"]), (&Value::Null, &Value::Null));
        assert_eq!(page["next_cursor"], Value::Null);
        assert_eq!(stack.get(&format!("{z}/subjects?kind=application")).await.is(200)["items"], json!([]));

        let dead = async |at: Timestamp| {
            let subjects = [IssuedTo { zone: &zone, subject: user, at_ms: at.unix_millis() }];
            let anchors = Anchors { subjects: &subjects, ..Anchors::default() };
            stack.views.revoked(&anchors).await.unwrap().is_some()
        };
        assert!(!dead(before).await);
        let accounts = json!({"name": "Accounts", "kind": "oauth2_authorization_code", "config_json": {
            "authorization_endpoint": "https://id.example/authorize", "token_endpoint": "https://id.example/token",
            "redirect_uri": "https://us.example/cb", "client_id": "c", "client_secret": "s"}});
        let provider = stack.make(&format!("{z}/providers"), accounts).await;
        let token = json!({"provider_id": provider, "subject_id": user, "access_token": "at-1"});
        stack.send("POST", &format!("{z}/provider-connections"), token).await.is(201);
        let revoke = async |body: Value| stack.send("POST", &format!("{z}/subjects/revoke"), body).await;
        let done = revoke(json!({"subject_id": user, "reason": "left"})).await.is(200);
        assert_eq!(done, json!({"subject_id": user, "authority_records": 2, "sessions": 0, "delegations": 0, "connections": 1}));
        assert!(dead(before).await, "in memory before the answer");
        let later = stack.api.clock.now().plus(std::time::Duration::from_secs(1));
        assert!(!dead(later).await, "it may come back with its credential");
        let again = revoke(json!({"subject_id": user})).await.is(200);
        assert_eq!((&again["authority_records"], &again["connections"]), (&json!(0), &json!(0)));
        let page = stack.get(&format!("{z}/subjects")).await.is(200);
        assert_eq!(page["items"][0]["revoked_sessions"], 2);
        assert!(page["items"][0]["last_revoked_at"].is_string());
        let seen = stack.get(&format!("{z}/subjects/overview?subject_id=auth0%7Cann")).await.is(200);
        assert_eq!(seen["subject"]["subject_id"], user);
        assert_eq!(seen["governed"], json!({"active": 0, "total": 0, "recent": []}));
        assert_eq!(seen["approvals"], json!({"pending": 0, "total": 0}));
        assert_eq!((&seen["connections"][0]["provider_id"], &seen["connections"][0]["status"]), (&json!(provider), &json!("revoked")));
        assert_eq!(seen["connections"][0].get("access_token"), None);

        let mut table = String::new();
        for reply in [
            revoke(json!({"subject_id": "nobody"})).await,
            revoke(json!({})).await,
            revoke(json!({"subject_id": ""})).await,
            revoke(json!({"subject_id": "x".repeat(513)})).await,
            revoke(json!({"subject_id": user, "reason": "x".repeat(513)})).await,
            revoke(json!({"subject_id": user, "reason": "a\nb"})).await,
            stack.get(&format!("{z}/subjects/overview")).await,
            stack.get(&format!("{z}/subjects/overview?subject_id=x")).await,
            stack.get(&format!("{z}/subjects?limit=201")).await,
            stack.get(&format!("{z}/subjects?kind=robot")).await,
            stack.get(&format!("{z}/subjects?cursor=x")).await,
        ] {
            writeln!(table, "{reply}").unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        404 subject_not_found: this zone has no record of that subject_id
        400 invalid_subject_revoke: subject_id is required
        400 invalid_subject_revoke: subject_id must be 1 to 512 characters
        400 invalid_subject_revoke: subject_id must be 1 to 512 characters
        400 invalid_subject_revoke: reason must be 1 to 512 characters
        400 invalid_subject_revoke: reason must not contain control characters
        400 invalid_query: subject_id is required
        404 subject_not_found: this zone has no record of that subject_id
        400 invalid_query: limit must be a whole number from 1 to 200
        400 invalid_query: kind must be one of user, application
        400 invalid_cursor: cursor must be a next_cursor of this list
        "); }
    }

    async fn authority_records_are_listed_with_who_vouches_for_them(stack: Stack) {
        let zone = stack.zone("Records").await;
        let path = format!("/v1/zones/{zone}/authority-records");
        add_record(&stack, &zone, "r1", "=ann", Some("https://idp.example")).await;
        add_record(&stack, &zone, "r2", "app", None).await;
        let all = stack.get(&path).await.is(200);
        let ids: Vec<_> = all["items"].as_array().unwrap().iter().map(|row| &row["authority_record_id"]).collect();
        assert_eq!(ids, ["r2", "r1"]);
        let mut keys: Vec<_> = all["items"][0].as_object().unwrap().keys().cloned().collect();
        keys.sort();
        insta::allow_duplicates! { insta::assert_snapshot!(keys.join(" "), @"authenticated_at authority_record_id authority_record_type created_at expires_at federated_user_issuer parent_authority_record_id revoked_at revoked_reason status subject_id zone_id") };
        for (query, found) in [
            ("kind=user", 1), ("status=active", 2), ("status=revoked", 0), ("status=expired", 0),
            ("subject_id=app", 1), ("authority_record_id=r1", 1), ("authority_record_id=r9", 0),
        ] {
            let page = stack.get(&format!("{path}?{query}")).await.is(200);
            assert_eq!(page["items"].as_array().unwrap().len(), found, "{query}");
        }
        let csv = stack.get(&format!("{path}?format=csv&kind=user")).await;
        assert_eq!(csv.headers["content-disposition"], format!("attachment; filename=\"authority-records-{zone}.csv\""));
        let lines: Vec<_> = csv.text.split("\r\n").collect();
        assert!(lines[0].starts_with("authority_record_id,zone_id,") && lines[1].contains(",'=ann,"), "{}", csv.text);
        let elsewhere = stack.zone("Elsewhere").await;
        let path = format!("/v1/zones/{elsewhere}/authority-records");
        assert_eq!(stack.get(&path).await.is(200)["items"], json!([]));
    }

    async fn subjects_are_paged_whatever_their_ids_hold(stack: Stack) {
        let zone = stack.zone("Pages").await;
        let path = format!("/v1/zones/{zone}/subjects");
        let long = "\u{e4} ".repeat(170) + "x";
        for (at, subject) in ["auth0|a b", "x&y=\"z\"", &long].into_iter().enumerate() {
            add_record(&stack, &zone, &format!("r{at}"), subject, Some("https://idp.example")).await;
        }
        let (mut seen, mut next) = (Vec::new(), format!("{path}?limit=1"));
        for _ in 0..5 {
            let page = stack.get(&next).await.is(200);
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            seen.push(page["items"][0]["subject_id"].as_str().unwrap().to_owned());
            next = format!("{path}?limit=1&cursor={cursor}");
        }
        assert_eq!(seen, [long.as_str(), "x&y=\"z\"", "auth0|a b"]);
    }

    async fn actor_tokens_are_off_until_the_zone_says_otherwise(stack: Stack) {
        let zone = stack.zone("Actors").await;
        let path = format!("/v1/zones/{zone}");
        assert_eq!(stack.get(&path).await.is(200)["actor_tokens"], false);
        let changed = stack.send("PATCH", &path, json!({"actor_tokens": true})).await.is(200);
        assert_eq!(changed["actor_tokens"], true);
        assert!(stack.views.zone(&zone).await.unwrap().actor_tokens);
        let wrong = stack.send("PATCH", &path, json!({"actor_tokens": "yes"})).await;
        assert_eq!(wrong.text("error"), "invalid_zone");
    }
}
