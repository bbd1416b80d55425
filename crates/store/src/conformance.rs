//! What both engines promise. Every test runs on SQLite, and on Postgres when there is one.

mod engines;
mod news;

use std::sync::Arc;
use std::time::Duration;

use caracal_model::{Change, Outgoing, RequestId, Topic, ZoneId};

use crate::testing::Database;
use crate::{Param, Store, StoreError, on_each_engine, origin, params, statements};

statements! { mod sql {
    ZONE = "INSERT INTO zones (id, name, slug, dcr_enabled, operator_coauthor_badge,
                operator_governed, created_via_operator, updated_via_operator, created_at,
                updated_at)
            VALUES ($1, $2, $3, FALSE, TRUE, FALSE, FALSE, FALSE, $4, $4)";
    ZONE_ONCE = "INSERT INTO zones (id, name, slug, dcr_enabled, operator_coauthor_badge,
                operator_governed, created_via_operator, updated_via_operator, created_at,
                updated_at)
            VALUES ($1, $2, $3, FALSE, TRUE, FALSE, FALSE, FALSE, $4, $4)
            ON CONFLICT DO NOTHING";
    NAMES = "SELECT id, name, dcr_enabled, created_at, archived_at FROM zones ORDER BY id";
    SWAPPED = "SELECT CAST($2 AS TEXT) AS second, CAST($1 AS TEXT) AS first,
                   CAST($2 AS TEXT) AS again";
    KEY = "INSERT INTO zone_keys (id, zone_id, public_x, public_y, sealed_private, created_at,
               signs_from)
           VALUES ($1, $2, 'x', 'y', $3, 0, 0)";
    SEALED = "SELECT sealed_private FROM zone_keys WHERE id = $1";
    APPLICATION = "INSERT INTO applications (id, zone_id, name, name_key, registration_method,
                       traits, created_via_operator, updated_via_operator, created_at, updated_at)
                   VALUES ($1, $2, $3, LOWER($3), 'managed', '[]', FALSE, FALSE, 0, 0)";
    COUNTER = "INSERT INTO session_counts (zone_id, holder, live) VALUES ($1, 'zone', 0)";
    TAKE = "UPDATE session_counts SET live = live + 1
            WHERE zone_id = $1 AND holder = 'zone' AND live < $2";
    LIVE = "SELECT live FROM session_counts WHERE zone_id = $1 AND holder = 'zone'";
    STATE = pg: "INSERT INTO service_state (name, value, updated_at)
                 SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])",
            lite: "INSERT INTO service_state (name, value, updated_at) VALUES ($1, $2, $3)";
    STATES = "SELECT name, value FROM service_state ORDER BY name";
    COUNTDOWN = "WITH RECURSIVE line (n) AS (
                     SELECT CAST($1 AS BIGINT) UNION ALL SELECT n - 1 FROM line WHERE n > 1)
                 SELECT COUNT(*) AS steps, CAST(SUM(n) AS BIGINT) AS total FROM line";
    AMONG = pg: "SELECT id FROM zones WHERE id = ANY($1) ORDER BY id",
            lite: "SELECT id FROM zones WHERE id IN (SELECT value FROM json_each($1)) ORDER BY id";
    DEFER = pg: "SELECT 1 AS one", lite: "PRAGMA defer_foreign_keys = ON";
    NO_ROLE = pg: "SET ROLE NONE", lite: "SELECT 1";
    KILL_OTHERS = pg: "SELECT pg_terminate_backend(pid) AS gone FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()",
                  lite: "SELECT 1 AS one";
    MAYBE = "SELECT id FROM zones WHERE CAST($1 AS TEXT) IS NULL OR id = $1 ORDER BY id";
} }

fn zone(id: &str) -> [Param<'_>; 4] {
    params![id, id, id, 7]
}

async fn add_zone(store: &Store, id: &str) {
    let mut tx = store.begin("adding a zone").await.unwrap();
    tx.execute(&sql::ZONE, &zone(id)).await.unwrap();
    tx.commit().await.unwrap();
}

async fn ids(store: &Store) -> Vec<String> {
    let rows = store.query(&sql::NAMES, &[]).await.unwrap();
    rows.iter().map(|row| row.string("id").unwrap()).collect()
}

const LEASE: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(10);

fn lifecycle(zone: &ZoneId, event: &str) -> Outgoing {
    Outgoing::new(
        Topic::AgentsLifecycle,
        zone,
        [("event", Some(event.to_owned()))],
    )
}

on_each_engine! {
    async fn every_statement_prepares(store: Store) {
        let refused = store.refused_statements(crate::statements()).await.unwrap();
        let ours = store.refused_statements(sql::ALL.iter().copied()).await.unwrap();
        assert!(refused.is_empty() && ours.is_empty(), "{refused:#?} {ours:#?}");
    }

    async fn parameters_bind_by_number_wherever_they_stand(store: Store) {
        let row = store.query_opt(&sql::SWAPPED, &params!["one", "two"]).await.unwrap().unwrap();
        assert_eq!(row.text("first").unwrap(), "one");
        assert_eq!(row.text("second").unwrap(), "two");
        assert_eq!(row.text("again").unwrap(), "two");
    }

    async fn a_wrong_number_of_parameters_is_refused(store: Store) {
        for params in [&params!["one"][..], &params!["one", "two", "three"][..]] {
            let refused = store.query(&sql::SWAPPED, params).await.unwrap_err();
            assert!(matches!(refused, StoreError::Statement { .. }), "{refused:?}");
        }
    }

    async fn a_commit_is_seen_and_typed(store: Store) {
        add_zone(&store, "z1").await;
        let row = store.query_opt(&sql::NAMES, &[]).await.unwrap().unwrap();
        assert_eq!(row.text("id").unwrap(), "z1");
        assert!(!row.bool("dcr_enabled").unwrap());
        assert_eq!(row.time("created_at").unwrap().unix_micros(), 7);
        assert_eq!(row.opt_time("archived_at").unwrap(), None);
        assert!(matches!(row.text("archived_at"), Err(StoreError::Corrupt { .. })));
        assert!(matches!(row.text("nowhere"), Err(StoreError::Corrupt { .. })));
    }

    async fn nothing_is_seen_before_its_commit(store: Store) {
        let mut tx = store.begin("adding a zone").await.unwrap();
        tx.execute(&sql::ZONE, &zone("z1")).await.unwrap();
        assert_eq!(tx.query(&sql::NAMES, &[]).await.unwrap().len(), 1);
        assert!(ids(&store).await.is_empty());
        tx.commit().await.unwrap();
        assert_eq!(ids(&store).await, ["z1"]);
    }

    async fn a_rolled_back_or_dropped_transaction_leaves_nothing(store: Store) {
        let mut tx = store.begin("rolled back").await.unwrap();
        tx.execute(&sql::ZONE, &zone("z1")).await.unwrap();
        tx.rollback().await;
        let mut tx = store.begin("dropped").await.unwrap();
        tx.execute(&sql::ZONE, &zone("z2")).await.unwrap();
        drop(tx);
        add_zone(&store, "z3").await;
        assert_eq!(ids(&store).await, ["z3"]);
    }

    async fn whoever_is_beaten_and_rolls_back_finds_what_beat_it(store: Store) {
        let attempt = async |id: &str| {
            let mut tx = store.begin("first or none").await.unwrap();
            if tx.execute(&sql::ZONE_ONCE, &zone(id)).await.unwrap() == 1 {
                tx.commit().await.unwrap();
            } else {
                tx.rollback().await;
                assert!(ids(&store).await.iter().any(|known| known == id), "{id}");
            }
        };
        for round in 0..50 {
            let id = format!("z{round}");
            futures_util::future::join_all((0..6).map(|_| attempt(&id))).await;
        }
        assert_eq!(ids(&store).await.len(), 50);
    }

    async fn a_transaction_whose_caller_went_away_leaves_nothing(store: Store) {
        for at in 0..20 {
            let mut tx = store.begin("cancelled").await.unwrap();
            let id = format!("gone-{at}");
            let work = async {
                for n in 0.. {
                    tx.execute(&sql::ZONE, &zone(&format!("{id}-{n}"))).await.unwrap();
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(3), work).await;
            drop(tx);
        }
        add_zone(&store, "z1").await;
        assert_eq!(ids(&store).await, ["z1"]);
    }

    async fn a_failed_statement_abandons_its_transaction(store: Store) {
        add_zone(&store, "z1").await;
        let mut tx = store.begin("failing").await.unwrap();
        tx.execute(&sql::ZONE, &zone("z2")).await.unwrap();
        assert!(tx.execute(&sql::ZONE, &zone("z1")).await.is_err());
        let refused = tx.execute(&sql::ZONE, &zone("z3")).await.unwrap_err();
        assert!(matches!(refused, StoreError::Abandoned { .. }), "{refused:?}");
        assert!(matches!(tx.commit().await, Err(StoreError::Abandoned { .. })));
        assert_eq!(ids(&store).await, ["z1"]);
    }

    async fn a_conflict_names_its_index(store: Store) {
        add_zone(&store, "z1").await;
        let insert = async |sql, params: &[Param<'_>]| {
            let mut tx = store.begin("conflicting").await.unwrap();
            let result = tx.execute(sql, params).await;
            tx.commit().await.ok();
            result.err().map(|error| format!("{error:?}"))
        };
        let named = |index: &str| Some(format!("Conflict {{ constraint: {index:?} }}"));

        let slug = insert(&sql::ZONE, &params!["z2", "z2", "z1", 7]).await;
        assert_eq!(slug, named("zones_slug"));
        let id = insert(&sql::ZONE, &params!["z1", "z2", "z2", 7]).await;
        assert_eq!(id, named("zones_pkey"));
        assert_eq!(insert(&sql::APPLICATION, &params!["a1", "z1", "Desk"]).await, None);
        let name = insert(&sql::APPLICATION, &params!["a2", "z1", "DESK"]).await;
        assert_eq!(name, named("applications_name"));
        assert_eq!(insert(&sql::COUNTER, &params!["z1"]).await, None);
        let composite = insert(&sql::COUNTER, &params!["z1"]).await;
        assert_eq!(composite, named("session_counts_pkey"));
    }

    async fn a_reference_to_nothing_is_refused(store: Store) {
        let mut tx = store.begin("referring").await.unwrap();
        let refused = tx.execute(&sql::COUNTER, &params!["nowhere"]).await.unwrap_err();
        assert!(matches!(refused, StoreError::Reference { .. }), "{refused:?}");
    }

    async fn a_conditional_counter_never_exceeds_its_limit(store: Store) {
        add_zone(&store, "z1").await;
        let mut tx = store.begin("counting").await.unwrap();
        tx.execute(&sql::COUNTER, &params!["z1"]).await.unwrap();
        tx.commit().await.unwrap();

        let take = async || {
            let mut tx = store.begin("taking").await.unwrap();
            let taken = tx.execute(&sql::TAKE, &params!["z1", 25]).await.unwrap();
            tx.commit().await.unwrap();
            taken
        };
        let takes = futures_util::future::join_all((0..60).map(|_| take())).await;
        assert_eq!(takes.iter().sum::<u64>(), 25);
        let row = store.query_opt(&sql::LIVE, &params!["z1"]).await.unwrap().unwrap();
        assert_eq!(row.int("live").unwrap(), 25);
    }

    async fn concurrent_transactions_commit_or_vanish_one_by_one(store: Store) {
        let run = async |n: usize| {
            let id = format!("z{n:03}");
            let mut tx = store.begin("one of many").await.unwrap();
            tx.execute(&sql::ZONE, &zone(&id)).await.unwrap();
            match n % 3 {
                0 => tx.commit().await.unwrap(),
                1 => drop(tx),
                _ => {
                    assert!(tx.execute(&sql::ZONE, &zone(&id)).await.is_err());
                    assert!(tx.commit().await.is_err());
                }
            }
        };
        futures_util::future::join_all((0..90).map(run)).await;
        let expected: Vec<_> = (0..90).step_by(3).map(|n| format!("z{n:03}")).collect();
        assert_eq!(ids(&store).await, expected);
    }

    async fn many_rows_go_in_at_once_or_not_at_all(store: Store) {
        let names: Vec<_> = (0..1_000).map(|n| format!("n{n:04}")).collect();
        let rows = |upto: usize| -> Vec<Vec<Param<'_>>> {
            names[..upto].iter().map(|name| params![name, "", 1].to_vec()).collect()
        };
        let mut tx = store.begin("inserting rows").await.unwrap();
        assert_eq!(tx.execute_rows(&sql::STATE, &rows(400)).await.unwrap(), 400);
        assert_eq!(tx.execute_rows(&sql::STATE, &[]).await.unwrap(), 0);
        tx.commit().await.unwrap();

        let mut tx = store.begin("inserting rows").await.unwrap();
        let refused = tx.execute_rows(&sql::STATE, &rows(1_000)).await.unwrap_err();
        assert!(refused.is_conflict_on("service_state_pkey"), "{refused:?}");
        drop(tx);
        assert_eq!(store.query(&sql::STATES, &[]).await.unwrap().len(), 400);
    }

    async fn a_snapshot_sees_one_state(store: Store) {
        add_zone(&store, "z1").await;
        let mut at = store.snapshot("looking twice").await.unwrap();
        assert_eq!(at.query(&sql::NAMES, &[]).await.unwrap().len(), 1);
        add_zone(&store, "z2").await;
        assert_eq!(at.query(&sql::NAMES, &[]).await.unwrap().len(), 1);
        drop(at);
        assert_eq!(ids(&store).await, ["z1", "z2"]);
        add_zone(&store, "z3").await;
    }

    async fn arrays_and_optional_filters_select(store: Store) {
        for id in ["a", "b", "c\"'"] {
            add_zone(&store, id).await;
        }
        let among = [Param::Texts(vec!["c\"'", "a", "x"])];
        assert_eq!(store.query(&sql::AMONG, &among).await.unwrap().len(), 2);
        let none = params![None::<&str>];
        assert_eq!(store.query(&sql::MAYBE, &none).await.unwrap().len(), 3);
        assert_eq!(store.query(&sql::MAYBE, &params!["b"]).await.unwrap().len(), 1);
    }

    async fn recursion_runs(store: Store) {
        let row = store.query_opt(&sql::COUNTDOWN, &params![100]).await.unwrap().unwrap();
        assert_eq!((row.int("steps").unwrap(), row.int("total").unwrap()), (100, 5_050));
    }

    async fn big_values_come_back_unchanged(store: Store) {
        add_zone(&store, "z1").await;
        let sealed: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let mut tx = store.begin("storing a big value").await.unwrap();
        tx.execute(&sql::KEY, &params!["k1", "z1", &sealed]).await.unwrap();
        tx.commit().await.unwrap();
        let row = store.query_opt(&sql::SEALED, &params!["k1"]).await.unwrap().unwrap();
        assert_eq!(row.bytes("sealed_private").unwrap(), sealed);

        let text = "ä𝄞\u{1}\n'\"\\".repeat(100_000);
        store.put_service_state("text", &text).await.unwrap();
        assert_eq!(store.service_state("text").await.unwrap(), Some(text));
        store.put_service_state("text", "").await.unwrap();
        assert_eq!(store.service_state("text").await.unwrap(), Some(String::new()));
    }

    async fn text_with_nul_is_refused_before_it_reaches_the_engine(store: Store) {
        let refused = store.put_service_state("a\0b", "").await.unwrap_err();
        assert!(matches!(refused, StoreError::Invalid { .. }), "{refused:?}");
        let among = [Param::Texts(vec!["a", "\0"])];
        let refused = store.query(&sql::AMONG, &among).await.unwrap_err();
        assert!(matches!(refused, StoreError::Invalid { .. }), "{refused:?}");

        let mut tx = store.begin("announcing").await.unwrap();
        let zone = ZoneId::trusted("z\0");
        tx.change(&Change::Zone(zone));
        assert!(matches!(tx.commit().await, Err(StoreError::Invalid { .. })));
    }
}
