use std::sync::Arc;

use caracal_crypto::os::SystemClock;

use super::*;
use crate::PoolOptions;
use crate::testing::Database;

const BATCH: u64 = 2_000;

/// Rows that this transaction read by walking through months.
const WALKED: crate::Sql = crate::Sql {
    name: "test",
    pg: "SELECT CAST(COALESCE(SUM(seq_tup_read), 0) AS BIGINT) AS walked
         FROM pg_stat_xact_user_tables WHERE relname LIKE 'audit_events%'",
    lite: "SELECT 0 AS walked",
};

fn event(zone: &ZoneId, seq: u64) -> AuditEvent {
    let at = Timestamp::from_unix_seconds(1_700_000_000);
    AuditEvent {
        zone: zone.clone(),
        chain_seq: seq,
        id: format!("event-{seq}"),
        event_type: "token_exchange".to_owned(),
        request_id: format!("request-{seq}"),
        decision: "allow".to_owned(),
        application_id: None,
        agent_session_id: None,
        authority_record_id: None,
        labels: Vec::new(),
        occurred_at: at,
        ingested_at: at,
        event: format!(r#"{{"id":"event-{seq}"}}"#),
        content_sha256: format!("{seq:064x}"),
        chain_hash: format!("{seq:064x}"),
        chain_hmac: String::new(),
    }
}

fn head(zone: &ZoneId, seq: u64) -> AuditHead {
    AuditHead {
        zone: zone.clone(),
        chain_seq: seq,
        chain_hash: format!("{seq:064x}"),
    }
}

async fn append(store: &Store, zone: &ZoneId, from: u64, to: u64) {
    let events: Vec<_> = (from + 1..=to).map(|seq| event(zone, seq)).collect();
    let moved = HeadMove {
        from: head(zone, from),
        to: head(zone, to),
        at: Timestamp::from_unix_seconds(1_700_000_000),
    };
    let appended = store.append_audit_events(&[moved], &events, &[]).await;
    assert_eq!(appended.unwrap(), Appended::Done);
}

/// A plan that is made and kept while a month has few rows, as every month begins, walks the month.
#[tokio::test]
async fn ids_are_looked_up_by_index_in_a_month_that_was_empty() {
    for database in Database::each("ids_are_looked_up_by_index").await {
        // Plans are kept by each connection.
        let one = PoolOptions {
            min: 1,
            max: 1,
            ..PoolOptions::default()
        };
        let store = database
            .open_pool(Arc::new(SystemClock::default()), one)
            .await;
        store.migrate().await.unwrap();
        let zone = ZoneId::trusted("z1");
        append(&store, &zone, 0, 1).await;
        let ids: Vec<_> = (1..=BATCH).map(|seq| format!("event-{seq}")).collect();
        let ids: Vec<_> = ids.iter().map(|id| &**id).collect();
        for _ in 0..10 {
            assert_eq!(store.known_audit_events(&ids).await.unwrap().len(), 1);
        }
        append(&store, &zone, 1, BATCH).await;
        let mut tx = store.begin("test").await.unwrap();
        let packed = ids.iter().take(3).map(|id| pack::pack_id(id)).collect();
        let known = tx
            .query(&sql::KNOWN, &[Param::Blobs(packed)])
            .await
            .unwrap();
        assert_eq!(known.len(), 3);
        let walked = tx.query_opt(&WALKED, &[]).await.unwrap().unwrap();
        let walked = walked.count("walked").unwrap();
        assert!(walked < BATCH, "{walked}");
        tx.rollback().await;
        drop(store);
        database.remove().await;
    }
}
