//! Workloads, as their clients see them.

use std::fmt::Write as _;

use caracal_crypto::verifier::SecretVerifier;
use caracal_model::WorkloadId;
use serde_json::{Value, json};

use super::Stack;
use super::stack::BOOTSTRAP;
use crate::on_stack;

/// Whether the STS would accept this secret.
async fn accepts(stack: &Stack, id: &str, secret: &str) -> bool {
    let stored = stack
        .store
        .find_workload(&WorkloadId::trusted(id))
        .await
        .unwrap()
        .unwrap();
    let verifier = SecretVerifier::parse(&stored.secret_verifier.unwrap()).unwrap();
    assert!(!verifier.is_slow());
    verifier.verify(&stack.api.keyring.derive("caracal/client-secrets"), secret)
}

fn text(body: &Value, member: &str) -> String {
    body[member].as_str().unwrap().to_owned()
}

on_stack! {
    async fn a_workload_is_made_changed_rotated_revealed_and_deleted(stack: Stack) {
        let zone = stack.zone("launches").await;
        let path = format!("/v1/zones/{zone}/workloads");
        let made = stack.send("POST", &path, json!({"name": " Nightly "})).await.is(201);
        let (id, first) = (text(&made, "id"), text(&made, "secret"));
        assert!(first.starts_with("ws_") && first.len() == 3 + 43);
        let at = format!("{path}/{id}");
        let shown = stack.get(&at).await.is(200);
        let mut names: Vec<_> = shown.as_object().unwrap().keys().cloned().collect();
        names.sort();
        assert_eq!(names, [
            "bindings", "created_at", "created_by", "created_via_operator", "id", "name", "updated_at",
            "updated_by", "updated_via_operator", "zone_id",
        ]);
        assert_eq!((&shown["name"], &shown["bindings"]), (&json!("Nightly"), &json!([])));
        assert_eq!((&shown["updated_by"], &shown["zone_id"]), (&Value::Null, &json!(zone)));

        let wish = json!({"name": "Weekly", "bindings": [
            {"env": "A", "resource": "resource://a"},
            {"env": "_b1", "resource": "resource://b", "scopes": [], "optional": false, "on_failure": "warn"},
            {"env": "C", "resource": "c", "scopes": ["c:read", "c:write"], "optional": true},
            {"env": "D", "resource": "d", "scopes": null, "optional": true, "on_failure": "warn"},
        ]});
        let changed = stack.send("PUT", &at, wish).await.is(200);
        assert_eq!(changed["bindings"], json!([
            {"env": "A", "resource": "resource://a"},
            {"env": "_b1", "resource": "resource://b"},
            {"env": "C", "resource": "c", "scopes": ["c:read", "c:write"], "optional": true, "on_failure": "error"},
            {"env": "D", "resource": "d", "optional": true, "on_failure": "warn"},
        ]));
        assert_eq!(changed.get("secret"), None);
        assert_ne!(changed["updated_by"], Value::Null);
        // What is not sent stays.
        let renamed = stack.send("PUT", &at, json!({"name": "Daily"})).await.is(200);
        assert_eq!((&renamed["name"], &renamed["bindings"]), (&json!("Daily"), &changed["bindings"]));
        let emptied = stack.send("PUT", &at, json!({"bindings": []})).await.is(200);
        assert_eq!((&emptied["name"], &emptied["bindings"]), (&json!("Daily"), &json!([])));

        let rotated = stack.send("POST", &format!("{at}/rotate-secret"), json!({})).await.is(200);
        let second = text(&rotated, "secret");
        assert!(accepts(&stack, &id, &second).await && !accepts(&stack, &id, &first).await);
        let before = stack.evidence.stats().persisted;
        assert_eq!(stack.get(&format!("{at}/secret")).await.is(200), json!({"secret": second}));
        assert_eq!(stack.evidence.stats().persisted, before + 1);

        let listed = stack.get(&path).await.is(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 1);
        assert!(!listed.to_string().contains("ws_"));
        let place = format!("zones/{zone}/workloads/{id}/secret");
        let kept = stack.store.zone(&zone).secrets().envelope(&place).await.unwrap().unwrap();
        assert!(kept.starts_with(b"CSS1") && !String::from_utf8_lossy(&kept).contains(&second));
        stack.delete(&at).await.is(204);
        assert_eq!(stack.store.zone(&zone).secrets().envelope(&place).await.unwrap(), None);
        assert_eq!(stack.get(&at).await.text("error"), "workload_not_found");
        // Nothing is left of its name.
        stack.send("POST", &path, json!({"name": "daily"})).await.is(201);
    }

    async fn a_workload_belongs_to_its_zone(stack: Stack) {
        let (one, two) = (stack.zone("one").await, stack.zone("two").await);
        let id = stack.make(&format!("/v1/zones/{one}/workloads"), json!({"name": "w"})).await;
        stack.make(&format!("/v1/zones/{two}/workloads"), json!({"name": "W"})).await;
        for (method, path, body) in [
            ("GET", "", ""),
            ("PUT", "", r#"{"name":"b"}"#),
            ("POST", "/rotate-secret", ""),
            ("GET", "/secret", ""),
            ("DELETE", "", ""),
        ] {
            let path = format!("/v1/zones/{two}/workloads/{id}{path}");
            let reply = stack.send_as(BOOTSTRAP, method, &path, body).await;
            assert_eq!((reply.status.as_u16(), reply.text("error")), (404, "workload_not_found"), "{method} {path}");
        }
        stack.get(&format!("/v1/zones/{one}/workloads/{id}")).await.is(200);
    }

    async fn secrets_are_shown_to_those_who_could_replace_them_and_on_record(stack: Stack) {
        let zone = stack.zone("reveal").await;
        let path = format!("/v1/zones/{zone}/workloads");
        let at = format!("{path}/{}/secret", stack.make(&path, json!({"name": "w"})).await);
        for (capability, code) in [("read", "admin_token_read_only"), ("approve", "admin_token_approve_only")] {
            let token = stack.token(capability, None).await;
            let refused = stack.send_as(&token, "GET", &at, "").await;
            assert_eq!((refused.status.as_u16(), refused.text("error")), (403, code));
        }
        stack.evidence.close().await;
        let refused = stack.get(&at).await;
        assert_eq!((refused.status.as_u16(), refused.text("error")), (503, "audit_unavailable"));
        assert!(!refused.text.contains("ws_"));
    }

    async fn malformed_workloads_say_what_to_fix_and_change_nothing(stack: Stack) {
        let zone = stack.zone("z").await;
        let z = format!("/v1/zones/{zone}");
        let id = stack.make(&format!("{z}/workloads"), json!({"name": "w"})).await;
        stack.make(&format!("{z}/workloads"), json!({"name": "Taken"})).await;
        let mut transaction = stack.store.begin("losing a secret").await.unwrap();
        let place = format!("zones/{zone}/workloads/{id}/secret");
        transaction.secrets(&zone).delete(&place).await.unwrap();
        transaction.commit().await.unwrap();
        let before = stack.get(&format!("{z}/workloads")).await.is(200);
        let bind = |binding: &str| format!(r#"{{"bindings":[{binding}]}}"#);
        let many = |what: String, count| vec![what; count].join(",");
        let a = r#"{"env":"A","resource":"r"}"#;
        let mut table = String::new();
        for (case, method, path, body) in [
            ("no zone", "POST", "/v1/zones/nope/workloads", r#"{"name":"a"}"#.to_owned()),
            ("no name", "POST", "Z/workloads", "{}".to_owned()),
            ("blank name", "POST", "Z/workloads", r#"{"name":" "}"#.to_owned()),
            ("201 characters", "POST", "Z/workloads", format!(r#"{{"name":"{}"}}"#, "a".repeat(201))),
            ("strict create", "POST", "Z/workloads", r#"{"name":"a","bindings":[]}"#.to_owned()),
            ("taken, any case", "POST", "Z/workloads", r#"{"name":"TAKEN"}"#.to_owned()),
            ("no fields", "PUT", "Z/workloads/W", "{}".to_owned()),
            ("strict change", "PUT", "Z/workloads/W", r#"{"name":"a","secret":"x"}"#.to_owned()),
            ("taken, change", "PUT", "Z/workloads/W", r#"{"name":"taken"}"#.to_owned()),
            ("PATCH", "PATCH", "Z/workloads/W", r#"{"name":"a"}"#.to_owned()),
            ("no list", "PUT", "Z/workloads/W", r#"{"bindings":{}}"#.to_owned()),
            ("no object", "PUT", "Z/workloads/W", bind("7")),
            ("65 bindings", "PUT", "Z/workloads/W", bind(&many(a.to_owned(), 65))),
            ("no env", "PUT", "Z/workloads/W", bind(r#"{"resource":"r"}"#)),
            ("no resource", "PUT", "Z/workloads/W", bind(r#"{"env":"A"}"#)),
            ("strict binding", "PUT", "Z/workloads/W", bind(r#"{"env":"A","resource":"r","value":"v"}"#)),
            ("33 scopes", "PUT", "Z/workloads/W", bind(&format!(
                r#"{{"env":"A","resource":"r","scopes":[{}]}}"#, many(r#""s""#.to_owned(), 33)))),
            ("empty scope", "PUT", "Z/workloads/W", bind(r#"{"env":"A","resource":"r","scopes":[""]}"#)),
            ("on_failure", "PUT", "Z/workloads/W", bind(r#"{"env":"A","resource":"r","on_failure":"ignore"}"#)),
            ("optional", "PUT", "Z/workloads/W", bind(r#"{"env":"A","resource":"r","optional":"yes"}"#)),
            ("digit first", "PUT", "Z/workloads/W", bind(r#"{"env":"1A","resource":"r"}"#)),
            ("dash", "PUT", "Z/workloads/W", bind(r#"{"env":"A-B","resource":"r"}"#)),
            ("space around", "PUT", "Z/workloads/W", bind(r#"{"env":" A","resource":"r"}"#)),
            ("letter outside ASCII", "PUT", "Z/workloads/W", bind(r#"{"env":"Ä","resource":"r"}"#)),
            ("preload", "PUT", "Z/workloads/W", bind(r#"{"env":"Ld_Preload","resource":"r"}"#)),
            ("node", "PUT", "Z/workloads/W", bind(r#"{"env":"node_options","resource":"r"}"#)),
            ("twice", "PUT", "Z/workloads/W", bind(&format!("{a},{a}"))),
            ("absent, get", "GET", "Z/workloads/nope", String::new()),
            ("absent, put", "PUT", "Z/workloads/nope", r#"{"name":"b"}"#.to_owned()),
            ("absent, rotate", "POST", "Z/workloads/nope/rotate-secret", String::new()),
            ("absent, reveal", "GET", "Z/workloads/nope/secret", String::new()),
            ("absent, delete", "DELETE", "Z/workloads/nope", String::new()),
            ("not in custody", "GET", "Z/workloads/W/secret", String::new()),
            ("limit", "GET", "Z/workloads?limit=501", String::new()),
            ("cursor", "GET", "Z/workloads?cursor=e30", String::new()),
        ] {
            let full = path.replacen('Z', &z, usize::from(path.starts_with('Z'))).replace("/W", &format!("/{id}"));
            let reply = stack.send_as(BOOTSTRAP, method, &full, &body).await;
            writeln!(table, "{case:<21} {reply}").unwrap();
            if reply.body["error"].as_str().unwrap().ends_with("_credential_env") {
                assert!(reply.body["details"]["env"].is_string(), "{reply}");
            }
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        no zone               404 zone_not_found: there is no zone nope
        no name               400 invalid_workload: name is required
        blank name            400 invalid_workload: name must be 1 to 200 characters
        201 characters        400 invalid_workload: name must be 1 to 200 characters
        strict create         400 invalid_workload: bindings is not a field of this request
        taken, any case       409 workload_name_taken: another workload of this zone has that name; names ignore case
        no fields             400 no_fields: send at least one field to change
        strict change         400 invalid_workload: secret is not a field of this request
        taken, change         409 workload_name_taken: another workload of this zone has that name; names ignore case
        PATCH                 404 not_found: no such route
        no list               400 invalid_workload: bindings must be a list
        no object             400 invalid_workload: bindings.0 must be an object
        65 bindings           400 invalid_workload: bindings must have 0 to 64 items
        no env                400 invalid_workload: bindings.0.env is required
        no resource           400 invalid_workload: bindings.0.resource is required
        strict binding        400 invalid_workload: bindings.0.value is not a field of this request
        33 scopes             400 invalid_workload: bindings.0.scopes must have 0 to 32 items
        empty scope           400 invalid_workload: bindings.0.scopes.0 must be 1 to 200 characters
        on_failure            400 invalid_workload: bindings.0.on_failure must be one of warn, error
        optional              400 invalid_workload: bindings.0.optional must be true or false
        digit first           400 invalid_credential_env: `1A` must be a letter or `_`, then letters, digits or `_`
        dash                  400 invalid_credential_env: `A-B` must be a letter or `_`, then letters, digits or `_`
        space around          400 invalid_credential_env: ` A` must be a letter or `_`, then letters, digits or `_`
        letter outside ASCII  400 invalid_credential_env: `Ä` must be a letter or `_`, then letters, digits or `_`
        preload               400 invalid_credential_env: `Ld_Preload` would let a credential run code; choose another name
        node                  400 invalid_credential_env: `node_options` would let a credential run code; choose another name
        twice                 400 duplicate_credential_env: `A` is bound twice; each variable holds one credential
        absent, get           404 workload_not_found: there is no workload nope in this zone
        absent, put           404 workload_not_found: there is no workload nope in this zone
        absent, rotate        404 workload_not_found: there is no workload nope in this zone
        absent, reveal        404 workload_not_found: there is no workload nope in this zone
        absent, delete        404 workload_not_found: there is no workload nope in this zone
        not in custody        404 workload_secret_not_stored: the secret is not in custody; rotate it
        limit                 400 invalid_query: limit must be a whole number from 1 to 500
        cursor                400 invalid_cursor: cursor must be a next_cursor of this list
        ") };
        assert_eq!(stack.get(&format!("{z}/workloads")).await.is(200), before);
    }
}
