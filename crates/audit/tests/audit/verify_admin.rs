//! Each way of tampering with the admin audit is found.

use caracal_audit::{VerifyError, verify_admin};
use caracal_ledger::{AdminRecord, Flaw, Head, Why, chain};
use caracal_model::{Timestamp, ZoneId};
use caracal_store::admin_audit::{AdminEvent, AdminHead, AdminMove};
use caracal_store::audit_events::Appended;
use caracal_store::testing::raw;
use caracal_store::{Store, on_each_engine};

use crate::key;

fn record(zone: Option<&str>, n: usize) -> AdminRecord {
    AdminRecord {
        id: format!("{}-{n}", zone.unwrap_or("none")),
        request_id: format!("r-{n}"),
        actor_id: Some("t1".to_owned()),
        actor_name: Some("ops".to_owned()),
        actor_scope: Some("global".to_owned()),
        action: "PATCH /v1/zones/z1".to_owned(),
        method: "PATCH".to_owned(),
        path: "/v1/zones/z1".to_owned(),
        zone_id: zone.map(ZoneId::trusted),
        entity_type: Some("zones".to_owned()),
        entity_id: zone.map(str::to_owned),
        status_code: 200,
        payload: Some("{}".to_owned()),
        occurred_at: Timestamp::from_unix_seconds(1_767_225_600),
    }
}

/// Five records of a zone, or of none.
async fn append(store: &Store, zone: Option<&str>) {
    let id = ZoneId::trusted(zone.unwrap_or_default());
    let mut head = Head::GENESIS;
    let mut rows = Vec::new();
    for n in 0..5 {
        let record = record(zone, n);
        let text = record.to_text();
        let link = chain::append(Some(&head), &text, Some(&key()));
        head = link.head().clone();
        rows.push(AdminEvent {
            zone: id.clone(),
            chain_seq: link.seq,
            id: record.id,
            actor_id: record.actor_id,
            method: record.method,
            entity_type: record.entity_type,
            entity_id: record.entity_id,
            occurred_at: record.occurred_at,
            record: text,
            content_sha256: link.content_sha256,
            chain_hash: link.chain_hash,
            chain_hmac: link.chain_hmac,
        });
    }
    let at = |head: &Head| AdminHead {
        zone: id.clone(),
        chain_seq: head.seq(),
        chain_hash: head.chain_hash(),
    };
    let step = AdminMove {
        from: at(&Head::GENESIS),
        to: at(&head),
    };
    let appended = store.admin_audit().append(&[step], &rows).await.unwrap();
    assert_eq!(appended, Appended::Done);
}

async fn finding(store: &Store) -> Option<(String, u64, Flaw)> {
    match verify_admin(store, Some(&key())).await {
        Ok(_) => None,
        Err(VerifyError::Found(found)) => Some((found.zone.to_string(), found.seq, found.flaw)),
        Err(other) => panic!("{other}"),
    }
}

async fn tamper(store: &Store, statement: &'static str) {
    let mut tx = store.begin("tampering").await.unwrap();
    assert!(tx.execute(&raw(statement), &[]).await.unwrap() > 0);
    tx.commit().await.unwrap();
}

on_each_engine! {
    async fn chains_of_zones_and_of_the_deployment_hold(store: Store) {
        append(&store, None).await;
        append(&store, Some("z1")).await;
        let heads = verify_admin(&store, Some(&key())).await.unwrap();
        let told: Vec<_> = heads.iter().map(|(zone, head)| (zone.as_str(), head.seq())).collect();
        assert_eq!(told, [("", 5), ("z1", 5)]);
    }

    async fn an_edited_record_is_found(store: Store) {
        append(&store, Some("z1")).await;
        tamper(&store, "UPDATE admin_audit_events SET record = REPLACE(record, 'ops', 'eve') WHERE chain_seq = 3").await;
        assert_eq!(finding(&store).await, Some(("z1".into(), 3, Flaw::Chain(Why::Content))));
    }

    async fn a_column_that_says_something_else_is_found(store: Store) {
        append(&store, Some("z1")).await;
        tamper(&store, "UPDATE admin_audit_events SET actor_id = 't2' WHERE chain_seq = 2").await;
        assert_eq!(finding(&store).await, Some(("z1".into(), 2, Flaw::Columns)));
    }

    async fn a_lost_record_and_a_cut_end_are_found(store: Store) {
        append(&store, None).await;
        tamper(&store, "DELETE FROM admin_audit_events WHERE chain_seq = 5").await;
        assert_eq!(finding(&store).await, Some(("(deployment)".into(), 5, Flaw::Chain(Why::Truncated))));
        tamper(&store, "DELETE FROM admin_audit_events WHERE chain_seq = 2").await;
        assert_eq!(finding(&store).await, Some(("(deployment)".into(), 2, Flaw::Chain(Why::Gap { found: 3 }))));
    }
}
