//! Who may launch, and what is listed for it.

use std::fmt::Write as _;

use super::*;

caracal_store::on_each_engine! {
    async fn requests_that_are_wrong_say_what_to_fix_and_leave_nothing_on_record(store: Store) {
        let stage = Stage::set(store).await;
        let mut table = String::new();
        for path in ["/v1/run/manifest", "/v1/run/credential"] {
            for (case, request) in [
                ("other method", Request::get(path).body(Body::empty()).unwrap()),
                ("query string", post(&format!("{path}?workload_id=w1"), FORM, "")),
                ("JSON", post(path, "application/json", "{}")),
                ("65,537 bytes", post(path, FORM, "a".repeat(65_537))),
                ("repeated field", post(path, FORM, "secret=a&secret=b")),
                ("repeated unknown", post(path, FORM, "x=a&x=b")),
                ("broken escape", post(path, FORM, "secret=%2")),
                ("empty form", post(path, FORM, "")),
                ("no secret", ask(path, &[("workload_id", "w1"), ("env", "MAIL")])),
                ("empty secret", ask(path, &[("workload_id", "w1"), ("secret", ""), ("env", "MAIL")])),
            ] {
                writeln!(table, "{}", stage.refusal(case, request, 0).await).unwrap();
            }
        }
        let no_env = ask("/v1/run/credential", &[("workload_id", "w1"), ("secret", "ws_x")]);
        writeln!(table, "{}", stage.refusal("no env", no_env, 0).await).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        other method               | 405 invalid_token: launches are asked for by POST
        query string               | 400 invalid_token: query string must be empty: send every field in the form
        JSON                       | 415 invalid_token: content type must be application/x-www-form-urlencoded
        65,537 bytes               | 413 payload_too_large: request body too large
        repeated field             | 400 invalid_token: secret is repeated: send it once
        repeated unknown           | 400 invalid_token: x is repeated: send it once
        broken escape              | 400 invalid_token: the form holds a broken percent escape
        empty form                 | 400 invalid_token: workload_id is required
        no secret                  | 400 invalid_token: secret is required
        empty secret               | 400 invalid_token: secret is required
        other method               | 405 invalid_token: launches are asked for by POST
        query string               | 400 invalid_token: query string must be empty: send every field in the form
        JSON                       | 415 invalid_token: content type must be application/x-www-form-urlencoded
        65,537 bytes               | 413 payload_too_large: request body too large
        repeated field             | 400 invalid_token: secret is repeated: send it once
        repeated unknown           | 400 invalid_token: x is repeated: send it once
        broken escape              | 400 invalid_token: the form holds a broken percent escape
        empty form                 | 400 invalid_token: workload_id is required
        no secret                  | 400 invalid_token: secret is required
        empty secret               | 400 invalid_token: secret is required
        no env                     | 400 invalid_token: env is required
        "); }
    }

    async fn a_manifest_lists_the_bindings_as_they_are_stored(store: Store) {
        let stage = Stage::set(store).await;
        let named = |env: &str| json!({"env": env, "resource": format!("resource://{}", env.to_lowercase())});
        let mut bindings: Vec<Value> =
            ["CHAT", "CLOSED", "LOST", "BASIC", "OURS", "OPEN", "USER", "GONE"].map(named).into();
        bindings.push(json!({
            "env": "MAIL", "resource": "resource://mail", "scopes": ["mail:send", "undeclared"],
        }));
        bindings.push(json!({"env": "PURGE", "resource": "resource://mail", "scopes": ["mail:purge"]}));
        bindings.push(named("NOWHERE"));
        let body = json!({"zone_id": "z1", "workload_id": "w1", "bindings": bindings});
        let launch = ["run_launch allow complete"];
        let request = launched(manifest("w1", "ws_of_w1"), "r1", LAUNCH);
        let event = &stage.released("a manifest", request, &body, &launch).await[0];
        assert_eq!(event["determining_policies_json"], json!([]), "no policy was asked");
        assert_eq!(event["diagnostics_json"], json!([]));
        assert!(event.get("policy_set_version_id").is_none_or(Value::is_null), "{event}");
        assert_eq!(event["metadata_json"], json!({
            "workload_id": "w1", "workload_name": "workload w1", "binding_count": 11, "launch_id": LAUNCH,
        }));
        // What is no UUID is no launch.
        let request = launched(manifest("w1", "ws_of_w1"), "r2", "mine");
        let event = &stage.released("no launch", request, &body, &launch).await[0];
        assert_eq!(event["metadata_json"].get("launch_id"), None);

        // What a launcher may do without is listed as such.
        let optional = Binding { optional: true, on_failure: Some("warn".to_owned()), ..binding("A", "resource://a", &[]) };
        stage.workload("w3", vec![optional]).await;
        let body = json!({"zone_id": "z1", "workload_id": "w3", "bindings": [
            {"env": "A", "resource": "resource://a", "optional": true, "on_failure": "warn"},
        ]});
        stage.released("an optional one", manifest("w3", "ws_of_w3"), &body, &launch).await;
    }

    async fn an_id_that_does_not_exist_answers_like_a_wrong_secret(store: Store) {
        let stage = Stage::set(store).await;
        let mut table = String::new();
        for (case, request, events) in [
            ("unknown id", manifest("w9", "ws_of_w1"), 0),
            ("no id at all", manifest("w 1", "ws_of_w1"), 0),
            ("wrong secret", manifest("w1", "ws_of_w2"), 1),
            ("wrong, credential", ask("/v1/run/credential",
                &[("workload_id", "w1"), ("secret", "x"), ("env", "MAIL")]), 1),
            ("no bindings", manifest("w2", "ws_of_w2"), 1),
        ] {
            writeln!(table, "{}", stage.refusal(case, request, events).await).unwrap();
        }
        stage.rotate(None).await;
        writeln!(table, "{}", stage.refusal("no secret stored", manifest("w1", "ws_of_w1"), 1).await).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        unknown id                 | 401 access_denied: invalid workload credentials
        no id at all               | 401 access_denied: invalid workload credentials
        wrong secret               | 401 access_denied: invalid workload credentials
            run_launch deny workload_auth_failed
        wrong, credential          | 401 access_denied: invalid workload credentials
            run_launch deny workload_auth_failed
        no bindings                | 404 resource_not_found: the workload has no bindings: give it some with PUT …/workloads/{id}
            run_launch deny complete
        no secret stored           | 401 access_denied: invalid workload credentials
            run_launch deny workload_auth_failed
        "); }
    }

    async fn an_id_that_does_not_exist_costs_what_a_wrong_secret_costs(store: Store) {
        let stage = Stage::set(store).await;
        let slow = async |id: &str, secret: &str| {
            let before = stage.at.sts.secrets.slow_comparisons();
            assert_eq!(stage.at.send(manifest(id, secret)).await.0, 401, "{id} {secret}");
            stage.at.sts.secrets.slow_comparisons() - before
        };
        let wrong = [("w9", "ws_of_w1"), ("w 9", "x"), ("w1", "wrong"), ("w2", "wrong")];
        for (id, secret) in wrong {
            assert_eq!(slow(id, secret).await, 0, "{id}: nothing here takes a slow comparison");
        }
        let chosen = SecretVerifier::argon2id(&OsRng, "imported with a slow hash").unwrap();
        stage.rotate(Some(chosen.to_string())).await;
        for (id, secret) in wrong {
            assert_eq!(slow(id, secret).await, 1, "{id}: as w1, whose secret was imported");
        }
        // Whoever knows a secret waits for nobody else's.
        let before = stage.at.sts.secrets.slow_comparisons();
        assert_eq!(stage.at.send(manifest("w2", "ws_of_w2")).await.0, 404);
        assert_eq!(stage.at.sts.secrets.slow_comparisons(), before);
    }

    async fn requests_are_counted_before_the_secret_is_looked_at(store: Store) {
        let stage = Stage::set(store).await;
        let most = stage.at.sts.config.mint_rate;
        let unknown = format!("~{}", &sha256_hex(b"w9")[..3]);
        for (id, who) in [("w1", "w1"), ("w9", unknown.as_str())] {
            let key = Endpoint::Manifest.rate_key(who);
            for _ in 1..most {
                stage.at.sts.bus.count(&key, Duration::from_secs(60)).await.unwrap();
            }
            assert_eq!(stage.at.send(manifest(id, "wrong")).await.0, 401);
            // Known or not, and with the right secret too.
            for secret in ["wrong", "ws_of_w1"] {
                let told = stage.sent(id, manifest(id, secret), 0).await;
                assert_eq!((told.status.as_u16(), &told.body["error"]), (429, &json!("provider_rate_limited")), "{id}");
                assert_eq!(told.headers["retry-after"], "60");
            }
        }
        // Each endpoint and each workload has a count of its own.
        assert_eq!(stage.at.send(credential("MAIL", &[])).await.0, 200);
        assert_eq!(stage.at.send(manifest("w2", "ws_of_w2")).await.0, 404);
    }

    async fn a_rotated_secret_and_a_deleted_workload_stop_working_at_once(store: Store) {
        let stage = Stage::set(store).await;
        assert_eq!(stage.at.send(manifest("w1", "ws_of_w1")).await.0, 200);
        let chosen = SecretVerifier::argon2id(&OsRng, "imported with a slow hash").unwrap();
        stage.rotate(Some(chosen.to_string())).await;
        assert_eq!(stage.at.send(manifest("w1", "ws_of_w1")).await.0, 401);
        assert_eq!(stage.at.send(manifest("w1", "imported with a slow hash")).await.0, 200);
        let mut tx = stage.store.begin("deleting").await.unwrap();
        tx.workloads(&stage.zone).delete("w1").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(stage.at.send(manifest("w1", "imported with a slow hash")).await.0, 401);
    }

    async fn an_archived_zone_launches_nothing(store: Store) {
        let stage = Stage::set(store).await;
        let at = stage.at.sts.clock.now();
        let author = Author { name: "t".to_owned(), via_operator: false, at };
        let mut tx = stage.store.begin("archiving").await.unwrap();
        tx.zones().archive(&stage.zone, &author).await.unwrap();
        stage.commit(tx).await;
        for request in [manifest("w1", "ws_of_w1"), credential("MAIL", &[])] {
            let refused = stage.refusal("an archived zone", request, 0).await;
            assert_eq!(refused, "an archived zone           | 401 access_denied: invalid workload credentials");
        }
    }

    async fn without_evidence_nothing_is_released(store: Store) {
        let stage = Stage::set(store).await;
        stage.at.sts.evidence.close().await;
        for request in [manifest("w1", "ws_of_w1"), credential("MAIL", &[]), manifest("w1", "wrong")] {
            let told = stage.sent("no evidence", request, 0).await;
            assert_eq!((told.status.as_u16(), &told.body["error"]), (503, &json!("sts_unavailable")), "{}", told.body);
            assert!(!told.body.to_string().contains(CANARY));
        }
    }

    async fn an_outage_of_the_store_is_no_wrong_secret(store: Store) {
        let stage = Stage::set(store).await;
        stage.store.shutdown().await;
        for request in [manifest("w1", "ws_of_w1"), manifest("w9", "x"), credential("MAIL", &[])] {
            let told = stage.sent("no store", request, 0).await;
            assert_eq!((told.status.as_u16(), &told.body["error"]), (503, &json!("sts_unavailable")), "{}", told.body);
        }
    }
}

#[test]
fn a_request_does_not_show_its_secret() {
    let body = b"workload_id=w1&secret=ws_hidden";
    let headers = http::HeaderMap::new();
    let request = crate::run::RunRequest::parse(Endpoint::Manifest, &headers, body).unwrap();
    assert!(!format!("{request:?}").contains("ws_hidden"));
}
