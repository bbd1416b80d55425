//! What the admin audit knows of this service (spec: coordinator §13).

use caracal_ledger::AdminRecord;
use caracal_model::ZoneId;
use serde_json::{Value, json};

use crate::support::{World, on_each, raw};

/// What was done in zone-a, oldest first.
async fn told(world: &World) -> String {
    let zone = ZoneId::trusted("zone-a");
    world.trail.settle(&zone).await.unwrap();
    let rows = world
        .store
        .admin_audit()
        .chain(&zone, 0, 100)
        .await
        .unwrap();
    let line = |text: &str| {
        let record = AdminRecord::parse(text).unwrap();
        let payload: Value = serde_json::from_str(record.payload.as_deref().unwrap()).unwrap();
        let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let action: Vec<_> = record
            .action
            .split('/')
            .map(|part| if part.len() == 36 { "<id>" } else { part })
            .collect();
        format!(
            "{} {} | {} | {} {} | {} {}\n",
            or(&record.actor_id),
            or(&record.actor_scope),
            action.join("/"),
            or(&record.entity_type),
            if record.entity_id.is_some() {
                "<id>"
            } else {
                "-"
            },
            record.status_code,
            payload
        )
    };
    rows.iter().map(|row| line(&row.record)).collect()
}

#[tokio::test]
async fn authenticated_calls_are_on_record_and_others_are_not() {
    on_each("recorded", |world| async move {
        let body = json!({"application_id": "app-1", "labels": ["x"], "metadata": {"a": {"b": 1}}});
        let id = world.post("/agents", body).await.id();
        world.get("/agents").await.ok();
        let suspend = format!("/agents/{id}/suspend");
        world.call("", "PATCH", &suspend, Value::Null).await.is(401, "missing_token");
        world.operator("PATCH", &suspend).await.ok();
        let again = world.operator("PATCH", &suspend).await;
        again.is(409, "session_not_found_or_not_active");
        world.get("/agents/none").await.is(404, "session_not_found");
        let told = told(&world).await;
        insta::allow_duplicates! { insta::assert_snapshot!(told, @r#"
        app-1 agent:lifecycle | POST /zones/zone-a/agents | agents - | 201 {"change_kind":"create","changed_fields":["application_id","labels","metadata.a.b"],"rls_mode":"zone_scoped","rls_zone_guc":"zone-a"}
        operator - | PATCH /zones/zone-a/agents/<id>/suspend | agents <id> | 200 {"change_kind":"action","rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        operator - | PATCH /zones/zone-a/agents/<id>/suspend | agents <id> | 409 {"rls_mode":"control_plane_wildcard","rls_zone_guc":"*"}
        app-1 agent:lifecycle | GET /zones/zone-a/agents/none | agents <id> | 404 {"rls_mode":"zone_scoped","rls_zone_guc":"zone-a"}
        "#) };
    })
    .await;
}

#[tokio::test]
async fn a_session_that_cannot_be_recorded_does_not_start() {
    on_each("unrecorded", |world| async move {
        let mut tx = world.store.begin("a test's damage").await.unwrap();
        let damage = raw("ALTER TABLE admin_audit_intents RENAME TO gone");
        tx.execute(&damage, &[]).await.unwrap();
        tx.commit().await.unwrap();
        let refused = world
            .post("/agents", json!({"application_id": "app-1"}))
            .await;
        refused.is(500, "audit_unavailable");
        assert!(refused.body["message"].is_string(), "{}", refused.body);
        assert_eq!(world.get("/agents").await.ok()["items"], json!([]));
    })
    .await;
}
