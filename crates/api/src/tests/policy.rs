//! Policies and policy sets.

use caracal_crypto::digest::sha256_hex;
use serde_json::json;

use super::stack::grants;
use crate::on_stack;

on_stack! {
    async fn a_policy_has_numbered_versions_with_the_hash_of_their_bytes(stack: Stack) {
        let zone = stack.zone("Policies").await;
        let path = format!("/v1/zones/{zone}/policies");
        let made = stack.send("POST", &path, json!({"name": "p", "description": null, "content": grants("a")})).await.is(201);
        assert_eq!(made["version"]["content_sha256"], sha256_hex(grants("a").as_bytes()));
        assert_eq!(made["version_id"], made["version"]["id"]);
        let at = format!("{path}/{}", made["id"].as_str().unwrap());
        let added = stack.send("POST", &format!("{at}/versions"), json!({"content": grants("b")})).await.is(201);
        assert_eq!((&added["version"], &added["version_id"]), (&json!(2), &added["id"]));
        let shown = stack.get(&at).await.is(200);
        let numbers: Vec<_> = shown["versions"].as_array().unwrap().iter().map(|v| v["version"].clone()).collect();
        assert_eq!(numbers, [2, 1]);
        assert_eq!(shown["versions"][1]["content"], grants("a"));
        assert_eq!(shown["next_cursor"], json!(null));
        let mut read = Vec::new();
        let mut next = format!("{at}?limit=1");
        loop {
            let page = stack.get(&next).await.is(200);
            read.extend(page["versions"].as_array().unwrap().clone());
            match page["next_cursor"].as_str() {
                Some(cursor) => next = format!("{at}?limit=1&cursor={cursor}"),
                None => break,
            }
        }
        assert_eq!(json!(read), shown["versions"]);
        for (query, error) in [("limit=101", "invalid_query"), ("limit=0", "invalid_query"), ("cursor=x", "invalid_cursor")] {
            let refused = stack.get(&format!("{at}?{query}")).await;
            assert_eq!((refused.status.as_u16(), refused.text("error")), (400, error), "{query}");
        }
        let again = stack.send("POST", &path, json!({"name": "p", "content": grants("a")})).await;
        assert_eq!(again.text("error"), "policy_name_conflict");
        let bad = stack.send("POST", &path, json!({"name": "q", "content": ""})).await;
        assert_eq!((bad.status.as_u16(), bad.to_string().as_str()), (422, "422 invalid_rego: empty_policy"));
        stack.delete(&at).await.is(204);
        assert_eq!(stack.get(&at).await.text("error"), "policy_not_found");
    }

    async fn validation_previews_or_says_which_rule_is_broken(stack: Stack) {
        let good = stack.send("POST", "/v1/policies/validate", json!({"content": grants("a")})).await.is(200);
        assert_eq!((&good["valid"], &good["preview"]["package"]), (&json!(true), &json!("caracal.authz")));
        assert_eq!(good["preview"]["rules"], json!(["app_ids", "grants"]));
        let bad = stack.send("POST", "/v1/policies/validate", json!({"content": "package other"})).await;
        assert_eq!((bad.status.as_u16(), &bad.body["valid"]), (422, &json!(false)));
        assert_eq!(bad.text("error_description"), "must_use_package_caracal_authz");
        assert_eq!(bad.body["details"]["issues"], json!([{
            "path": ["content"], "code": "must_use_package_caracal_authz", "line": 1, "column": 1,
            "message": "line 1, column 1: the package must be `caracal.authz`; write `package caracal.authz`",
        }]));
    }

    async fn a_document_that_no_question_could_ask_is_refused_when_it_is_written(stack: Stack) {
        let z = format!("/v1/zones/{}/policies", stack.zone("Unevaluable").await);
        for (body, code, line) in [
            ("default risk := []\ndefault risk := [1]", "data_document_two_defaults:risk", 5),
            ("risk := []\nrisk := [1]", "data_document_does_not_evaluate", 5),
            ("restrict := {1} if { nobody(input) }", "unknown_function:nobody", 4),
            ("restrict := {1} if { print(input) }", "forbidden_builtin:print", 4),
        ] {
            let content = format!("# caracal:data-document\npackage caracal.authz\nimport rego.v1\n{body}\n");
            let checked = stack.send("POST", "/v1/policies/validate", json!({"content": content})).await.is(422);
            assert_eq!((&checked["error"], &checked["error_description"]), (&json!("invalid_rego"), &json!(code)));
            assert_eq!(checked["details"]["issues"][0]["line"], line, "{checked}");
            let made = stack.send("POST", &z, json!({"name": "p", "content": content})).await.is(422);
            assert_eq!(made["error_description"], code);
        }
        assert_eq!(stack.get(&z).await.is(200)["items"], json!([]));
    }

    async fn every_template_passes_validation(stack: Stack) {
        let templates = stack.get("/v1/policy-templates").await.is(200);
        let ids: Vec<_> = templates.as_array().unwrap().iter().map(|t| t["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["application-bindings", "resource-grants", "label-confinement", "zone-restriction"]);
        let zoned = stack.token("read", Some(&stack.zone("Any").await)).await;
        stack.send_as(&zoned, "HEAD", "/v1/policy-templates", "").await.is(200);
        for template in templates.as_array().unwrap() {
            stack.send("POST", "/v1/policies/validate", json!({"content": template["content"]})).await.is(200);
        }
    }

    async fn a_manifest_is_checked_before_it_becomes_a_version(stack: Stack) {
        let (zone, other) = (stack.zone("Manifest").await, stack.zone("Other").await);
        let make = async |zone: &caracal_model::ZoneId, name: &str, content: String| {
            let made = stack.send("POST", &format!("/v1/zones/{zone}/policies"), json!({"name": name, "content": content})).await.is(201);
            made["version_id"].as_str().unwrap().to_owned()
        };
        let one = make(&zone, "one", grants("a")).await;
        let two = make(&zone, "two", grants("b")).await;
        let foreign = make(&other, "one", grants("a")).await;
        let z = format!("/v1/zones/{zone}/policy-sets");
        let set = stack.make(&z, json!({"name": "s"})).await;
        let add = async |ids: &[&String]| {
            let manifest: Vec<_> = ids.iter().map(|id| json!({"policy_version_id": id})).collect();
            stack.send("POST", &format!("{z}/{set}/versions"), json!({"manifest": manifest})).await
        };
        assert_eq!(add(&[&one, &one]).await.text("error"), "invalid_policy_contract");
        assert_eq!(add(&[&foreign]).await.text("error"), "invalid_policy_contract");
        assert_eq!(add(&[&one, &two]).await.text("error"), "invalid_policy_bundle");
        let made = add(&[&one]).await.is(201);
        let text = format!(r#"[{{"policy_version_id":"{one}"}}]"#);
        assert_eq!(made["manifest_sha256"], sha256_hex(text.as_bytes()));
        let detail = stack.get(&format!("{z}/{set}/versions/{}", made["id"].as_str().unwrap())).await.is(200);
        assert_eq!((&detail["policies"], &detail["manifest_json"]), (&json!([one]), &json!([{"policy_version_id": one}])));
        let page = stack.get(&format!("{z}/{set}/versions")).await.is(200);
        assert_eq!(page["items"][0]["id"], made["id"]);
    }

    async fn activation_moves_between_versions_and_sets(stack: Stack) {
        let zone = stack.zone("Activate").await;
        let (first, v1) = stack.activated_set(&zone).await;
        let z = format!("/v1/zones/{zone}");
        let policy = stack.send("POST", &format!("{z}/policies"), json!({"name": "more", "content": grants("b")})).await.is(201);
        let second = stack.make(&format!("{z}/policy-sets"), json!({"name": "second"})).await;
        let manifest = json!({"manifest": [{"policy_version_id": policy["version_id"]}]});
        let v2 = stack.send("POST", &format!("{z}/policy-sets/{second}/versions"), manifest).await.is(201);
        let activate = async |set: &str, version: &str| {
            stack.send("POST", &format!("{z}/policy-sets/{set}/activate"), json!({"version_id": version})).await
        };
        let v2 = v2["version_id"].as_str().unwrap();
        assert_eq!(activate(&first, v2).await.text("error"), "version_not_found");
        activate(&second, v2).await.is(202);
        let set = stack.get(&format!("{z}/policy-sets/{first}")).await.is(200);
        assert_eq!(set["active_version_id"], json!(null), "one set is in force");
        let back = activate(&first, &v1).await.is(202);
        let again = activate(&first, &v1).await.is(202);
        assert_ne!(back["outbox_id"], again["outbox_id"], "announced again");
        let view = stack.views.zone(&zone).await.unwrap();
        assert_eq!(view.policy.version_id.as_deref(), Some(v1.as_str()));
        let stale = format!("{z}/policy-sets/{second}/activation-status?version_id={v2}&outbox_id=none");
        assert_eq!(stack.get(&stale).await.is(200)["propagation_status"], "waiting_for_activation");
        let bare = stack.get(&format!("{z}/policy-sets/{first}/activation-status")).await.is(200);
        assert_eq!((&bare["version_id"], &bare["outbox"]["id"]), (&json!(v1), &again["outbox_id"]));
        let other = back["outbox_id"].as_str().unwrap();
        let foreign = format!("{z}/policy-sets/{first}/activation-status?version_id={v1}&outbox_id={other}");
        assert_ne!(stack.get(&foreign).await.is(200)["outbox"]["state"], "mismatch");
    }

    async fn a_simulation_decides_without_anything_in_force(stack: Stack) {
        let zone = stack.zone("Simulate").await;
        let (set, version) = stack.activated_set(&zone).await;
        let path = format!("/v1/zones/{zone}/policy-sets/{set}/simulate");
        let input = |application: &str| json!({
            "principal": {"type": "Application", "id": application, "zone_id": zone},
            "resource": {"type": "Resource", "id": "r", "identifier": "resource://crm", "scopes": ["crm:read"]},
            "action": {"id": "TokenExchange"},
            "context": {"actor_claims": {}, "challenge_resolved": false, "requested_scopes": ["agent:lifecycle"]},
        });
        let run = async |input| stack.send("POST", &path, json!({"version_id": version, "input": input})).await.is(200);
        let allowed = run(input("app-1")).await;
        assert_eq!(allowed["result"]["decision"], "allow", "{allowed}");
        assert_eq!(allowed["result"]["determining_policies"], json!([{"policy": "caracal-bootstrap"}]));
        assert_eq!((&allowed["would_activate"], &allowed["warnings"]), (&json!(true), &json!([])));
        let denied = run(input("app-2")).await;
        assert_eq!(denied["explanation"]["decision"], "deny", "{denied}");
        let none = stack.send("POST", &path, json!({"version_id": version})).await.is(200);
        assert_eq!((&none["explanation"]["evaluation"], &none["result"]), (&json!("not_executed"), &json!(null)));
        let odd = run(json!({"schema_version": "1999", "principal": {"zone_id": "other"}})).await;
        assert_eq!(odd["explanation"]["evaluation"], "failed");
        insta::allow_duplicates! { insta::assert_snapshot!(odd["warnings"], @r#"["input_schema_mismatch:1999","principal_zone_mismatch","missing_resource","missing_action","missing_context","sts_simulation_failed:policy evaluation failed: schema_version 1999 is not supported"]"#) };
        assert_eq!(odd["would_activate"], false);
    }
}
