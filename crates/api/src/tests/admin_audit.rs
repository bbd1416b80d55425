//! What administrators did, through the service.

use caracal_store::testing::raw;
use serde_json::{Value, json};

use super::identity::add_record;
use super::stack::{BOOTSTRAP, grants};
use crate::on_stack;

/// What was done, oldest first: action, entity, status and payload.
fn told(page: &Value, zone: &str) -> String {
    let items = page["items"].as_array().unwrap().iter().rev();
    let line = |row: &Value| {
        let text = |name: &str| row[name].as_str().unwrap_or("-").replace(zone, "<zone>");
        format!(
            "{} {} {}/{} {} {}\n",
            text("actor_name"),
            text("action"),
            text("entity_type"),
            if text("entity_id").len() == 36 {
                "<id>".to_owned()
            } else {
                text("entity_id")
            },
            row["status_code"],
            row["payload_json"].to_string().replace(zone, "<zone>")
        )
    };
    items.map(line).collect()
}

on_stack! {
    async fn every_change_is_on_record_before_it_is_told(stack: Stack) {
        let zone = stack.zone("Recorded").await;
        let z = format!("/v1/zones/{zone}");
        let app = stack.make(&format!("{z}/applications"), json!({"name": "a", "registration_method": "managed"})).await;
        stack.send("PATCH", &format!("{z}/applications/{app}"), json!({"name": "b"})).await.is(200);
        stack.send("PATCH", &format!("{z}/applications/{app}"), json!({})).await;
        stack.send_as(BOOTSTRAP, "POST", &format!("{z}/applications/{app}/rotate-secret"), "").await.is(200);
        stack.delete(&format!("{z}/applications/{app}")).await.is(204);
        stack.get(&format!("{z}/applications/{app}")).await.is(404);
        stack.get(&format!("{z}/applications")).await.is(200);
        let page = stack.get(&format!("{z}/admin-audit")).await.is(200);
        insta::allow_duplicates! { insta::assert_snapshot!(told(&page, zone.as_str()).replace(&app, "<app>"), @r#"
        bootstrap POST /v1/zones zones/<zone> 201 {"change_kind":"create","changed_fields":["name"],"rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        bootstrap POST /v1/zones/<zone>/applications applications/<id> 201 {"change_kind":"create","changed_fields":["name","registration_method"],"rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        bootstrap PATCH /v1/zones/<zone>/applications/<app> applications/<id> 200 {"change_kind":"update","changed_fields":["name"],"rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        bootstrap PATCH /v1/zones/<zone>/applications/<app> applications/<id> 400 {"rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        bootstrap POST /v1/zones/<zone>/applications/<app>/rotate-secret applications/<id> 200 {"change_kind":"secret_rotation","rls_mode":"control_plane_wildcard","rls_zone_guc":"*","secret_rotated":true}
        bootstrap DELETE /v1/zones/<zone>/applications/<app> applications/<id> 204 {"change_kind":"delete","rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        bootstrap GET /v1/zones/<zone>/applications/<app> applications/<id> 404 {"rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        "#) };
        let first = page["items"].as_array().unwrap().last().unwrap();
        assert_eq!((&first["chain_seq"], &first["signed"], &first["method"]), (&json!(1), &json!(true), &json!("POST")));
        let deleted = stack.get(&format!("{z}/admin-audit?method=DELETE&fields=action,entity_id,change_kind")).await.is(200);
        assert_eq!(deleted["items"], json!([{"action": format!("DELETE {z}/applications/{app}"), "entity_id": app, "change_kind": "delete"}]));
        let csv = stack.get(&format!("{z}/admin-audit?format=csv&fields=method,status_code,changed_fields&entity_type=zones")).await;
        assert_eq!(csv.text, "method,status_code,changed_fields\r\nPOST,201,name\r\n");
        assert_eq!(csv.headers["content-disposition"], format!("attachment; filename=\"admin-audit-{zone}.csv\""));
        let page = stack.get(&format!("{z}/admin-audit?limit=2")).await.is(200);
        let next = page["next_cursor"].as_str().unwrap();
        let rest = stack.get(&format!("{z}/admin-audit?cursor={next}")).await.is(200);
        assert_eq!(rest["items"].as_array().unwrap().len() + 2, 7);
        for wrong in ["method=GET", "fields=payload_json", "entity_type=", "since=x"] {
            assert_eq!(stack.get(&format!("{z}/admin-audit?{wrong}")).await.status, 400, "{wrong}");
        }
    }

    async fn the_kill_switch_has_a_record_of_its_own(stack: Stack) {
        let zone = stack.zone("Cut").await;
        add_record(&stack, &zone, "rec-1", "user-1", Some("https://idp.example")).await;
        let body = json!({"subject_id": "user-1", "reason": "left"});
        stack.send("POST", &format!("/v1/zones/{zone}/subjects/revoke"), body).await.is(200);
        let page = stack.get(&format!("/v1/zones/{zone}/admin-audit?entity_type=subjects")).await.is(200);
        insta::allow_duplicates! { insta::assert_snapshot!(told(&page, zone.as_str()), @r#"
        bootstrap POST /v1/zones/<zone>/subjects/revoke subjects/- 200 {"change_kind":"action","changed_fields":["reason","subject_id"],"rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        bootstrap Subject authority revoked subjects/user-1 200 {"authority_records":1,"connections":0,"delegations":0,"reason":"left","rls_mode":"control_plane_wildcard","rls_zone_guc":"*","sessions":0}
        "#) };
    }

    async fn what_has_no_zone_is_read_by_the_platform_only(stack: Stack) {
        let zone = stack.zone("Mine").await;
        let token = stack.token("write", Some(&zone)).await;
        stack.send_as("nobody", "GET", "/v1/zones", "").await.is(401);
        let page = stack.get("/v1/admin-audit").await.is(200);
        assert_eq!(page["items"][0]["action"], "POST /v1/admin-tokens");
        assert_eq!(page["items"].as_array().unwrap().len(), 1, "strangers are counted: {page}");
        stack.send_as(&token, "GET", "/v1/admin-audit", "").await.is(403);
        // A zone token writes into its own zone, whatever it tries.
        stack.send_as(&token, "GET", "/v1/zones/other/policies", "").await.is(403);
        let page = stack.send_as(&token, "GET", &format!("/v1/zones/{zone}/admin-audit"), "").await.is(200);
        let told = told(&page, zone.as_str());
        insta::allow_duplicates! { insta::assert_snapshot!(told, @r#"
        bootstrap POST /v1/zones zones/<zone> 201 {"change_kind":"create","changed_fields":["name"],"rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        t GET /v1/admin-audit -/- 403 {"rls_mode":"zone_scoped","rls_zone_guc":"<zone>"}
        t GET /v1/zones/other/policies policies/- 403 {"rls_mode":"zone_scoped","rls_zone_guc":"<zone>"}
        "#) };
        assert_eq!(stack.get("/v1/zones/other/admin-audit").await.is(200)["items"], json!([]));
    }

    async fn a_change_that_cannot_be_recorded_is_not_made(stack: Stack) {
        let zone = stack.zone("Dark").await;
        let mut tx = stack.store.begin("a test's damage").await.unwrap();
        tx.execute(&raw("ALTER TABLE admin_audit_intents RENAME TO gone"), &[]).await.unwrap();
        tx.commit().await.unwrap();
        let body = json!({"name": "p", "content": grants("app-1")});
        let refused = stack.send("PATCH", &format!("/v1/zones/{zone}"), json!({"name": "New"})).await;
        assert_eq!(refused.to_string(), "500 audit_unavailable: the change cannot be recorded, so it was not made; try again");
        assert_eq!(stack.get(&format!("/v1/zones/{zone}")).await.is(200)["name"], "Dark");
        // What changes nothing in the store is refused all the same.
        let refused = stack.send("POST", "/v1/policies/validate", body).await;
        assert_eq!(refused.status, 500, "{refused}");
        assert_eq!(refused.body["error"], "audit_unavailable");
    }
}
