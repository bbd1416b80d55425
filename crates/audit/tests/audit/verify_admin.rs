//! Each way of tampering with the admin audit is found.

use std::io::Cursor;
use std::sync::Arc;

use caracal_audit::{Trust, VerifyError, export_chain, verify_admin, verify_export, verify_ledger};
use caracal_ledger::{AdminRecord, Checkpoint, Flaw, Head, Why, chain};
use caracal_model::{LogId, TestClock, Timestamp, ZoneId};
use caracal_store::admin_audit::{AdminEvent, AdminHead, AdminMove};
use caracal_store::audit_events::Appended;
use caracal_store::testing::raw;
use caracal_store::{Store, on_each_engine, params};
use caracal_tlog::ZoneLog;

use crate::key;
use crate::verify::signing;

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
        Err(VerifyError::Found(found)) => Some((found.log.to_string(), found.seq, found.flaw)),
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
        let told: Vec<_> = heads.iter().map(|(log, sound)| (log.zone().as_str(), sound.head.seq())).collect();
        assert_eq!(told, [("", 5), ("z1", 5)]);
    }

    async fn an_edited_record_is_found(store: Store) {
        append(&store, Some("z1")).await;
        tamper(&store, "UPDATE admin_audit_events SET record = REPLACE(record, 'ops', 'eve') WHERE chain_seq = 3").await;
        assert_eq!(finding(&store).await, Some(("admin audit of zone z1".into(), 3, Flaw::Chain(Why::Content))));
    }

    async fn a_column_that_says_something_else_is_found(store: Store) {
        append(&store, Some("z1")).await;
        tamper(&store, "UPDATE admin_audit_events SET actor_id = 't2' WHERE chain_seq = 2").await;
        assert_eq!(finding(&store).await, Some(("admin audit of zone z1".into(), 2, Flaw::Columns)));
    }

    async fn a_lost_record_and_a_cut_end_are_found(store: Store) {
        append(&store, None).await;
        tamper(&store, "DELETE FROM admin_audit_events WHERE chain_seq = 5").await;
        assert_eq!(finding(&store).await, Some(("admin audit of the deployment".into(), 5, Flaw::Chain(Why::Truncated))));
        tamper(&store, "DELETE FROM admin_audit_events WHERE chain_seq = 2").await;
        assert_eq!(finding(&store).await, Some(("admin audit of the deployment".into(), 2, Flaw::Chain(Why::Gap { found: 3 }))));
    }

    async fn what_administrators_did_is_signed_and_what_is_made_anew_shows(store: Store) {
        append(&store, None).await;
        append(&store, Some("z1")).await;
        let (ingest, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        checkpoints.sign_due().await;
        checkpoints.verify_again().await;
        assert_eq!((ingest.metrics().checkpoints.get(), store.audit_findings().await.unwrap().len()), (2, 0));
        let keys = caracal_tlog::vkeys(&store).await.unwrap();
        let z1 = LogId::admin(ZoneId::trusted("z1"));
        let trusting = |checkpoints: Vec<Checkpoint>| Trust {
            keys: keys.clone().into(),
            checkpoints,
            ..Trust::default()
        };
        for log in [&z1, &LogId::admin(ZoneId::trusted(""))] {
            let trust = trusting(Vec::new());
            let sound = verify_ledger(&store, log, Some(&key()), &trust).await.unwrap();
            assert_eq!(sound.signed.unwrap().log().as_ref(), Some(log));
            let mut export = Vec::new();
            assert_eq!(export_chain(&store, log, &mut export).await.unwrap(), 5);
            let sound = verify_export(Cursor::new(&export), Some(&key()), &trust).unwrap();
            assert_eq!(sound[0].0, *log);
            assert_eq!(sound[0].1.signed.as_ref().unwrap().size, 5);
        }
        // Whoever has the key and every table makes the end anew, without the checkpoint.
        let stored = ZoneLog::of(&store, &z1).rows().latest().await.unwrap().unwrap();
        let kept = Checkpoint::open(&stored.note, &keys).unwrap();
        for table in ["audit_checkpoints", "audit_trees", "audit_tiles"] {
            let mut tx = store.begin("tampering").await.unwrap();
            let text = match table {
                "audit_checkpoints" => "DELETE FROM audit_checkpoints WHERE zone_id = 'z1/~admin'",
                "audit_trees" => "DELETE FROM audit_trees WHERE zone_id = 'z1/~admin'",
                _ => "DELETE FROM audit_tiles WHERE zone_id = 'z1/~admin'",
            };
            assert!(tx.execute(&raw(text), &[]).await.unwrap() > 0);
            tx.commit().await.unwrap();
        }
        tamper(&store, "DELETE FROM admin_audit_events WHERE zone_id = 'z1' AND chain_seq = 5").await;
        let last = store.admin_audit().chain(&ZoneId::trusted("z1"), 3, 1).await.unwrap().remove(0);
        let mut tx = store.begin("tampering").await.unwrap();
        let back = raw("UPDATE admin_audit_heads SET chain_seq = 4, chain_hash = $1 WHERE zone_id = 'z1'");
        tx.execute(&back, &params![&last.chain_hash]).await.unwrap();
        tx.commit().await.unwrap();
        let alone = verify_ledger(&store, &z1, Some(&key()), &trusting(Vec::new())).await.unwrap();
        assert_eq!(alone.head.seq(), 4, "it fits itself");
        let found = verify_ledger(&store, &z1, Some(&key()), &trusting(vec![kept])).await.unwrap_err();
        assert_eq!(found.to_string(), "admin audit of zone z1, record 5: the ledger ends before it, and a checkpoint of 5 events was signed");
        // The process that had signed it notices by itself.
        checkpoints.sign_all().await;
        checkpoints.verify_again().await;
        let findings = store.audit_findings().await.unwrap();
        assert!(findings.iter().any(|(found, _)| found.zone.as_str() == "z1/~admin"), "{findings:?}");
    }

    async fn a_record_without_a_code_is_signed_and_a_forged_code_is_not(store: Store) {
        append(&store, Some("z1")).await;
        tamper(&store, "UPDATE admin_audit_events SET chain_hmac = '' WHERE chain_seq = 2").await;
        let (ingest, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        checkpoints.sign_due().await;
        assert_eq!(ingest.metrics().checkpoints.get(), 1, "its service had no key");
        assert_eq!(finding(&store).await.unwrap().2, Flaw::Chain(Why::Author), "whoever asks for it is told");
        append(&store, Some("z2")).await;
        tamper(&store, "UPDATE admin_audit_events SET chain_hmac = REPLACE(chain_hmac, '0', '1') WHERE zone_id = 'z2'").await;
        checkpoints.sign_due().await;
        assert_eq!(ingest.metrics().checkpoints.get(), 1);
        assert_eq!(store.audit_findings().await.unwrap().len(), 1);
    }
}
