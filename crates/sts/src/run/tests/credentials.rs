//! Credentials, released and refused.

use std::fmt::Write as _;

use super::*;
use crate::tests::overtaken;
use caracal_store::Sql;
use caracal_store::testing::raw;
use std::sync::Arc;

const RENAMED: Sql = raw("UPDATE resources SET name = 'another' WHERE id = 'r-mail'");
const UNBOUND: Sql = raw("DELETE FROM policy_bindings WHERE zone_id = 'z1'");
const ROTATED: Sql = raw("UPDATE workloads SET secret_verifier = NULL WHERE id = 'w1'");

caracal_store::on_each_engine! {
    async fn a_credential_is_released_once_policy_allows_it(store: Store) {
        let stage = Stage::set(store).await;
        for (env, resource, scopes) in [
            ("MAIL", "resource://mail", json!(["mail:send", "undeclared"])),
            ("CHAT", "resource://chat", json!([])),
        ] {
            let request = launched(credential(env, &[]), env, LAUNCH);
            let body = json!({"env": env, "credential": CANARY});
            let event = &stage.released(env, request, &body, &["allow complete"]).await[0];
            assert_eq!(event["determining_policies_json"], json!([{"policy": "caracal-workload-mint"}]));
            assert!(event["policy_set_version_id"].as_str().unwrap().starts_with("psv-"));
            let mut metadata = event["metadata_json"].clone();
            let asked = metadata.as_object_mut().unwrap().remove("policy_input").unwrap();
            assert_eq!(metadata, json!({
                "workload_id": "w1", "workload_name": "workload w1", "launch_id": LAUNCH, "env": env,
                "resource": resource, "requested_scopes": scopes, "policy_decision": "allow",
            }));
            assert_eq!((&asked["principal"]["type"], &asked["principal"]["id"]), (&json!("Workload"), &json!("w1")));
            assert_eq!(asked["context"]["requested_scopes"], scopes);
        }
    }

    async fn a_credential_is_not_released_on_what_does_not_stand(store: Store) {
        let stage = Stage::set(store).await;
        let sts = &stage.at.sts;
        let happens = |sql| overtaken::happens(Arc::clone(sts), sql, Change::Zone(stage.zone.clone()));
        let mut table = String::new();
        for (case, sql) in [
            ("what does not matter", RENAMED), ("policy", UNBOUND), ("secret", ROTATED),
        ] {
            stage.policy(GATED).await;
            sts.interlude.then(happens(sql));
            let told = stage.sent(case, credential("CHAT", &[]), 1).await;
            let events = on_record(case, &told.headers, &told.events);
            let error = told.body["error_description"].as_str().unwrap_or("released");
            writeln!(table, "{case:<20} | {} {error} | {}", told.status.as_u16(), events.join(", ")).unwrap();
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @"
        what does not matter | 200 released | allow complete
        policy               | 403 policy denied (no_active_policy_set) | deny complete
        secret               | 401 invalid workload credentials | run_launch deny workload_auth_failed
        ") }
    }

    async fn a_token_that_is_fetched_says_when_it_ends_and_its_endpoint_is_not_believed(store: Store) {
        let far = Far::start().await;
        let stage = fetching(store, &far, &["FEED", "LATE", "LIAR", "GONE"]).await;

        let before = stage.at.sts.clock.now().unix_seconds();
        let told = stage.sent("a fetched token", credential("FEED", &[]), 1).await;
        assert_eq!(told.status, 200, "{}", told.body);
        let end = told.body["expires_at"].as_i64().unwrap();
        assert!((before + 590..=before + 610).contains(&end), "{end} after {before}");
        assert_eq!((told.status.as_u16(), &told.body),
            (200, &json!({"env": "FEED", "credential": "t1", "expires_at": end})));
        assert_eq!(told.headers["cache-control"], "no-store");
        assert_eq!(on_record("a fetched token", &told.headers, &told.events), ["allow complete"]);
        // Held: nobody is asked again, and it ends when it ends.
        let body = json!({"env": "FEED", "credential": "t1", "expires_at": end});
        stage.released("the same again", credential("FEED", &[]), &body, &["allow complete"]).await;
        assert_eq!(far.endpoint.count(), 1);

        for (mode, env) in [("slow", "LATE"), ("garbage", "LIAR"), ("down", "GONE")] {
            far.behaves(mode);
            let asked = stage.refusal(mode, credential(env, &[]), 1);
            let refused = tokio::time::timeout(Duration::from_secs(15), asked).await.expect("in time");
            assert_eq!(refused, format!("{mode:<26} | 502 http_request_failed: the provider's credential is not \
                available\n    token_exchange deny provider_credential_unavailable"));
        }
    }

    async fn a_credential_is_refused_row_by_row(store: Store) {
        let stage = Stage::set(store).await;
        let mut table = String::new();
        for (case, request) in [
            ("no binding", credential("OTHER", &[])),
            ("no resource", credential("NOWHERE", &[])),
            ("no provider", credential("GONE", &[])),
            ("not permitted", credential("CLOSED", &[])),
            ("kind none", credential("OPEN", &[])),
            ("kind caracal_mandate", credential("OURS", &[])),
            ("kind http_basic", credential("BASIC", &[])),
            ("of a user", credential("USER", &[])),
            ("unknown approval", credential("MAIL", &[("approval_id", "5c0e2f5e-1111-4222-8333-444455556666")])),
            ("no secret in custody", credential("LOST", &[])),
        ] {
            writeln!(table, "{}", stage.refusal(case, request, 1).await).unwrap();
        }
        stage.policy("restrict := [\"all\"]\n").await;
        writeln!(table, "{}", stage.refusal("restricted", credential("MAIL", &[]), 1).await).unwrap();
        stage.policy("risk := [{\"scope\": \"mail:send\", \"tier\": \"a\"}, {\"scope\": \"mail:send\", \"tier\": \"b\"}]\n").await;
        writeln!(table, "{}", stage.refusal("contradiction", credential("MAIL", &[]), 1).await).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r"
        no binding                 | 404 resource_not_found: the workload binds nothing to OTHER; see its bindings
            token_exchange deny credential_injection_denied
        no resource                | 404 resource_not_found: there is no resource resource://nowhere in the workload's zone
            token_exchange deny resource_not_found
        no provider                | 403 access_denied: the provider of resource://gone is gone: give it another
            token_exchange deny credential_injection_denied
        not permitted              | 403 access_denied: the provider does not permit it: set allow_runtime_injection in its config
            token_exchange deny credential_injection_denied
        kind none                  | 403 access_denied: credentials of a provider of kind none are not released to processes
            token_exchange deny credential_injection_denied
        kind caracal_mandate       | 403 access_denied: credentials of a provider of kind caracal_mandate are not released to processes
            token_exchange deny credential_injection_denied
        kind http_basic            | 403 access_denied: credentials of a provider of kind http_basic are not released to processes
            token_exchange deny credential_injection_denied
        of a user                  | 403 access_denied: the credential belongs to a user, not to a workload
            token_exchange deny credential_injection_denied
        unknown approval           | 401 access_denied: approval not found or bindings do not match
            token_exchange deny approval_invalid
        no secret in custody       | 502 http_request_failed: the provider's credential is not available
            token_exchange deny provider_credential_unavailable
        restricted                 | 403 access_denied: policy denied (restriction_active)
            token_exchange deny complete
        contradiction              | 503 policy_eval_failed: policy evaluation failed
            token_exchange deny policy_eval_failed
        "); }
    }
}
