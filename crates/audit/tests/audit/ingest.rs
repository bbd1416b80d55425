use std::sync::Arc;
use std::time::Duration;

use caracal_audit::{Rejection, verify_zone};
use caracal_evidence::{Pending, Sink};
use caracal_model::{EventId, Timestamp};
use caracal_store::audit_events::AuditFilter;
use caracal_store::{on_each_engine, statements};
use futures_util::future::join_all;

use crate::{event, event_of, events, ingest, key, zone};

statements! { mod sql {
    POISON = pg: "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                  'BEGIN RAISE EXCEPTION ''no''; END'",
             lite: "CREATE TRIGGER poison BEFORE INSERT ON audit_events
                    WHEN NEW.id = x'00706f69736f6e' BEGIN SELECT RAISE(ABORT, 'no'); END";
    POISON_TRIGGER = pg: "CREATE TRIGGER poison BEFORE INSERT ON audit_events FOR EACH ROW
                          WHEN (NEW.id = '\\x00706f69736f6e'::bytea) EXECUTE FUNCTION refuse()",
                     lite: "SELECT 1 AS one";
    // SQLite has no error that passes, for one row.
    LATE = pg: "CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN RAISE EXCEPTION ''not now'' USING ERRCODE = ''lock_not_available''; END'",
           lite: "SELECT 1 AS one";
    LATE_TRIGGER = pg: "CREATE TRIGGER late BEFORE INSERT ON audit_events FOR EACH ROW
                        WHEN (NEW.id = '\\x006c617465'::bytea) EXECUTE FUNCTION delay()",
                   lite: "SELECT 1 AS one";
    IN_TIME = pg: "DROP FUNCTION delay() CASCADE", lite: "SELECT 1 AS one";
} }

on_each_engine! {
    async fn events_are_appended_once_however_often_they_come(store: Store) {
        let ingest = ingest(&store);
        let texts = events(0..1_500);
        let first = ingest.commit(texts.clone()).await.unwrap();
        assert_eq!((first.inserted, first.duplicates), (1_500, 0));
        let again = ingest.commit(texts.clone()).await.unwrap();
        assert_eq!((again.inserted, again.duplicates), (0, 1_500));
        let both = [&texts[1_400..], &events(1_500..1_510), &texts[..1]].concat();
        let mixed = ingest.commit(both).await.unwrap();
        // What was appended before keeps its text; new events carry new times.
        assert_eq!((mixed.inserted, mixed.duplicates), (10, 101));
        assert!(mixed.tampered.is_empty());
        let head = verify_zone(&store, &zone("z1"), Some(&key())).await.unwrap();
        assert_eq!(head.seq(), 1_510);
    }

    async fn a_batch_that_repeats_itself_is_appended_once(store: Store) {
        let text = event("twice");
        let outcome = ingest(&store).commit(vec![text.clone(), text]).await.unwrap();
        assert_eq!((outcome.inserted, outcome.duplicates), (1, 1));
    }

    async fn another_text_under_a_known_id_is_kept_as_an_alert(store: Store) {
        let ingest = ingest(&store);
        let first = event("e1");
        ingest.commit(vec![first.clone()]).await.unwrap();
        let forged = first.replace("\"allow\"", "\"deny\"");
        let batch = vec![forged.clone(), event("e2")];
        let outcome = ingest.commit(batch).await.unwrap();
        assert_eq!((outcome.inserted, &outcome.tampered[..]), (1, &[0][..]));
        // Coming again, it is not a new alert.
        ingest.commit(vec![forged]).await.unwrap();
        let audit_zone = zone("z1");
        let audit = store.zone(&audit_zone).audit();
        assert_eq!(audit.alerts().await.unwrap(), 1);
        assert_eq!(audit.by_request("request-of-e1").await.unwrap()[0].event, first);
        assert_eq!(ingest.metrics().tamper_replay.get(), 2);
    }

    async fn ingesters_at_once_keep_one_unbroken_chain_a_zone(store: Store) {
        let zones = ["z1", "z2", "z3"];
        // Every ingester gets every event, in an order of its own and in batches of its own.
        let texts: Vec<String> = (0..300)
            .map(|n| event_of(zones[n % 3], &format!("e{n:04}")))
            .collect();
        let run = async |n: usize| {
            let ingest = ingest(&store);
            let mut texts = texts.clone();
            texts.rotate_left(n * 53);
            let mut inserted = 0;
            for batch in texts.chunks(17 + n) {
                inserted += ingest.commit(batch.to_vec()).await.unwrap().inserted;
            }
            inserted
        };
        let inserted: usize = join_all((0..4).map(run)).await.into_iter().sum();
        assert_eq!(inserted, 300);
        for id in zones {
            let head = verify_zone(&store, &zone(id), Some(&key())).await.unwrap();
            assert_eq!(head.seq(), 100);
        }
    }

    async fn what_is_no_event_is_rejected_and_the_rest_appended(store: Store) {
        let texts = vec!["{}".into(), event("e1"), "not json".into(), event("e2"), "\0".into()];
        let outcome = ingest(&store).commit(texts).await.unwrap();
        assert_eq!(outcome.inserted, 2);
        let places: Vec<_> = outcome.rejected.iter().map(|(at, _)| *at).collect();
        assert_eq!(places, [0, 2, 4]);
        assert!(outcome.rejected[0].1.to_string().starts_with("json_parse_error:"));
    }

    async fn an_event_that_the_store_refuses_does_not_hold_up_the_others(store: Store) {
        let mut tx = store.begin("poisoning").await.unwrap();
        tx.execute(&sql::POISON, &[]).await.unwrap();
        tx.query(&sql::POISON_TRIGGER, &[]).await.unwrap();
        tx.commit().await.unwrap();

        let ingest = ingest(&store);
        let texts = vec![event("e1"), event("poison"), event("e2")];
        let outcome = ingest.commit(texts).await.unwrap();
        assert_eq!(outcome.inserted, 2);
        assert!(matches!(&outcome.rejected[..], [(1, Rejection::Refused(_))]), "{outcome:?}");
        // When everything is refused, the fault is not that of the events.
        assert!(ingest.commit(vec![event("poison")]).await.is_err());
        verify_zone(&store, &zone("z1"), Some(&key())).await.unwrap();
    }

    async fn what_is_delayed_when_a_batch_is_taken_apart_is_delivered_again(store: Store) {
        let does = async |statements: &[&caracal_store::Sql]| {
            let mut tx = store.begin("disturbing").await.unwrap();
            for sql in statements {
                tx.query(sql, &[]).await.unwrap();
            }
            tx.commit().await.unwrap();
        };
        does(&[&sql::POISON, &sql::POISON_TRIGGER, &sql::LATE, &sql::LATE_TRIGGER]).await;
        let ingest: Arc<dyn Sink> = Arc::new(ingest(&store));
        let batch = ["e1", "poison", "late"].map(|id| Pending {
            id: EventId::trusted(id),
            wire: event(id),
        });
        let first = ingest.deliver(&batch).await;
        assert_eq!(first.is_err(), format!("{store:?}") == "Store(Postgres)", "{first:?}");
        if first.is_err() {
            does(&[&sql::IN_TIME]).await;
            ingest.deliver(&batch).await.unwrap();
        }
        let head = verify_zone(&store, &zone("z1"), Some(&key())).await.unwrap();
        assert_eq!(head.seq(), 2);
        let letters = store.audit_dead_letters((0, 0), 10).await.unwrap();
        let buried: Vec<_> = letters.iter().map(|letter| &letter.fields["src_id"]).collect();
        assert_eq!(buried, ["poison"]);
    }

    async fn the_relay_of_an_embedded_deployment_delivers_into_the_ledger(store: Store) {
        let ingest: Arc<dyn Sink> = Arc::new(ingest(&store));
        let pending = |id: &str, wire: String| Pending { id: EventId::trusted(id), wire };
        let batch = [
            pending("e1", event("e1")),
            pending("broken", "no event\0".into()),
            pending("e2", event("e2")),
        ];
        ingest.deliver(&batch).await.unwrap();
        ingest.deliver(&batch).await.unwrap();
        let head = verify_zone(&store, &zone("z1"), Some(&key())).await.unwrap();
        assert_eq!(head.seq(), 2);
        let letters = store.audit_dead_letters((0, 0), 10).await.unwrap();
        assert_eq!(letters[0].fields["src_data"], "no event\0");
        assert_eq!(letters[0].fields["src_id"], "broken");
        store.shutdown().await;
        assert!(ingest.deliver(&batch).await.is_err());
    }

    async fn pages_are_exact_to_the_microsecond(store: Store) {
        let at = Timestamp::from_unix_seconds(1_779_364_800);
        let texts: Vec<String> = (0..30)
            .map(|n| {
                let time = at.plus(Duration::from_micros(n / 2)).iso_micros();
                format!(
                    r#"{{"id":"e{n:02}","zone_id":"z1","event_type":"token_exchange",
                        "request_id":"r","decision":"allow","occurred_at":"{time}"}}"#
                )
            })
            .collect();
        ingest(&store).commit(texts).await.unwrap();
        let zone = zone("z1");
        let audit = store.zone(&zone).audit();
        let mut seen = Vec::new();
        let mut after: Option<(Timestamp, String)> = None;
        loop {
            let from = after.as_ref().map(|(at, id)| (*at, id.as_str()));
            let page = audit.page(&AuditFilter::default(), from, 7).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some((last.occurred_at, last.id.clone()));
            seen.extend(page.into_iter().map(|event| event.id));
        }
        let expected: Vec<_> = (0..30).rev().map(|n| format!("e{n:02}")).collect();
        assert_eq!(seen, expected);
    }

    async fn every_filter_selects(store: Store) {
        let other = r#"{"id":"other","zone_id":"z1","event_type":"run_launch","request_id":"r",
            "decision":"deny","evaluation_status":"workload_auth_failed",
            "metadata_json":{"agent_labels":["desk night"]},
            "occurred_at":"2026-05-21T12:00:00.5Z"}"#;
        ingest(&store).commit(vec![event("e1"), other.to_owned()]).await.unwrap();
        let zone = zone("z1");
        let audit = store.zone(&zone).audit();
        let ids = async |filter: AuditFilter<'_>| -> Vec<String> {
            let page = audit.page(&filter, None, 10).await.unwrap();
            page.into_iter().map(|event| event.id).collect()
        };
        let all = AuditFilter::default;
        let half_past = Timestamp::parse_rfc3339("2026-05-21T12:00:00.500Z").unwrap();
        let later = half_past.plus(Duration::from_micros(1));

        assert_eq!(ids(all()).await, ["e1", "other"]);
        assert_eq!(ids(AuditFilter { decision: Some("deny"), ..all() }).await, ["other"]);
        let types = ["run_launch", "nothing"];
        assert_eq!(ids(AuditFilter { event_types: &types, ..all() }).await, ["other"]);
        let request = Some("request-of-e1");
        assert_eq!(ids(AuditFilter { request_id: request, ..all() }).await, ["e1"]);
        assert_eq!(ids(AuditFilter { application_id: Some("app-1"), ..all() }).await, ["e1"]);
        assert_eq!(ids(AuditFilter { session_id: Some("session-1"), ..all() }).await, ["e1"]);
        let record = Some("record-1");
        assert_eq!(ids(AuditFilter { authority_record_id: record, ..all() }).await, ["e1"]);
        assert_eq!(ids(AuditFilter { label: Some("desk"), ..all() }).await, ["e1"]);
        assert_eq!(ids(AuditFilter { label: Some("desk night"), ..all() }).await, ["other"]);
        assert!(ids(AuditFilter { label: Some("night"), ..all() }).await.is_empty());
        assert_eq!(ids(AuditFilter { since: Some(later), ..all() }).await, ["e1"]);
        assert_eq!(ids(AuditFilter { until: Some(later), ..all() }).await, ["other"]);
        assert!(ids(AuditFilter { until: Some(half_past), ..all() }).await.is_empty());
        assert_eq!(audit.decisions_since(half_past).await.unwrap(), (1, 1));
    }
}
