//! What both engines promise. Every test runs on SQLite, and on Postgres when there is one.

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

    async fn news_goes_out_with_its_commit_only(store: Store) {
        let zone = ZoneId::trusted("z1");
        let mut tx = store.begin("announcing").await.unwrap();
        tx.change(&Change::Zone(zone.clone()));
        drop(tx);
        assert!(store.outbox().claim(10, LEASE).await.unwrap().is_empty());

        let mut tx = store.begin("announcing").await.unwrap();
        tx.announce(lifecycle(&zone, "first"));
        tx.announce(lifecycle(&zone, "second"));
        tx.change(&Change::Zone(zone.clone()));
        tx.commit().await.unwrap();
        tokio::time::timeout(DEADLINE, store.outbox_wake().notified()).await.unwrap();

        let entries = store.outbox().claim(10, LEASE).await.unwrap();
        let topics: Vec<_> = entries.iter().map(|entry| entry.topic.as_str()).collect();
        let lifecycle = Topic::AgentsLifecycle.name();
        assert_eq!(topics, [Topic::ViewChanges.name(), lifecycle, lifecycle]);
        assert_eq!(Change::parse(&entries[0].fields), Some(Change::Zone(zone)));
        assert_eq!(entries[1].fields["event"], "first");
        assert_eq!(entries[2].fields["event"], "second");
    }

    async fn news_remembers_its_request_and_does_not_tell(store: Store) {
        let zone = ZoneId::trusted("z1");
        let say = async || {
            let mut tx = store.begin("announcing").await.unwrap();
            tx.announce(lifecycle(&zone, "said"));
            tx.commit().await.unwrap();
        };
        origin::of_request(Some(RequestId::trusted("r1")), say()).await;
        origin::of_request(None, say()).await;
        let entries = store.outbox().claim(10, LEASE).await.unwrap();
        let of: Vec<_> = entries.iter().map(|entry| entry.request_id.as_deref()).collect();
        assert_eq!(of, [Some("r1"), None]);
        assert_eq!(entries[0].fields, entries[1].fields);
    }

    async fn a_lease_from_a_clock_that_was_ahead_holds_nothing_up(store: Store) {
        let zone = ZoneId::trusted("z1");
        let mut tx = store.begin("announcing").await.unwrap();
        tx.announce(lifecycle(&zone, "first"));
        tx.commit().await.unwrap();
        let outbox = store.outbox();
        let hour = Duration::from_secs(3600);
        assert_eq!(outbox.claim(10, hour).await.unwrap().len(), 1);
        // No lease lasts for an hour: its clock was an hour ahead.
        assert_eq!(outbox.claim(10, Duration::ZERO).await.unwrap().len(), 1);
    }

    async fn entries_are_sent_pruned_or_die_and_are_counted(store: Store) {
        let zone = ZoneId::trusted("z1");
        for event in ["first", "second", "third"] {
            let mut tx = store.begin("announcing").await.unwrap();
            tx.announce(lifecycle(&zone, event));
            tx.commit().await.unwrap();
        }
        let outbox = store.outbox();
        let entries = outbox.claim(10, Duration::ZERO).await.unwrap();
        let [first, second, third] = &entries[..] else { panic!("{entries:?}") };

        outbox.dispatched(&[&first.id]).await.unwrap();
        outbox.failed(&[&second.id], "no route", Duration::ZERO, 5).await.unwrap();
        outbox.failed(&[&third.id], "no route", Duration::ZERO, 1).await.unwrap();
        let counts = outbox.counts().await.unwrap();
        assert_eq!((counts.pending, counts.dead), (1, 1));
        assert!(counts.oldest_pending.is_some() && counts.oldest_dead.is_some());

        let again = outbox.claim(10, Duration::ZERO).await.unwrap();
        assert_eq!(again.len(), 1);
        assert_eq!((again[0].attempts, again[0].last_error.as_deref()), (1, Some("no route")));
        let latest = outbox.latest(&zone, Topic::AgentsLifecycle).await.unwrap().unwrap();
        assert_eq!(latest.standing, crate::outbox::Standing::Dead);

        assert!(!outbox.requeue(&ZoneId::trusted("z2"), &third.id).await.unwrap());
        assert!(outbox.requeue(&zone, &third.id).await.unwrap());
        assert!(!outbox.requeue(&zone, &third.id).await.unwrap());
        assert_eq!(outbox.claim(10, Duration::ZERO).await.unwrap().len(), 2);

        let later = store.clock().now().plus(Duration::from_secs(1));
        let long_ago = later.minus(Duration::from_secs(60));
        let revive = async |topic, since, until| outbox.revive(&[topic], since, until).await.unwrap();
        assert_eq!(revive(Topic::SessionsRevoke, long_ago, later).await, 0, "of another topic");
        assert_eq!(revive(Topic::AgentsLifecycle, later, later).await, 0, "sent before");
        assert_eq!(revive(Topic::AgentsLifecycle, long_ago, long_ago).await, 0, "committed later");
        assert_eq!(revive(Topic::AgentsLifecycle, long_ago, later).await, 1);
        let revived = outbox.claim(10, Duration::ZERO).await.unwrap();
        assert!(revived.iter().any(|entry| entry.id == first.id));
        outbox.dispatched(&[&first.id]).await.unwrap();

        assert_eq!(outbox.prune(later, 10).await.unwrap(), 1);
        assert_eq!(outbox.prune(later, 10).await.unwrap(), 0);
    }

    async fn authority_records_are_kept_and_revoked_with_all_that_came_of_them(store: Store) {
        use crate::authority_records::AuthorityRecord;
        use caracal_model::RecordId;

        let zone = ZoneId::trusted("z1");
        add_zone(&store, "z1").await;
        let now = store.clock().now();
        let record = |id: &str, parent: Option<&str>| AuthorityRecord {
            id: RecordId::trusted(id),
            record_type: "application".into(),
            subject_id: "app-1".into(),
            client_id: "app-1".into(),
            parent_id: parent.map(RecordId::trusted),
            status: "active".into(),
            expires_at: now,
            created_at: now,
            revoked_at: None,
            revoked_reason: None,
            issuer: (id == "other").then(|| "https://idp.example".to_owned()),
        };
        let records =
            [record("root", None), record("child", Some("root")), record("other", None)];
        let mut tx = store.begin("adding records").await.unwrap();
        tx.zone(&zone).add_authority_records(&records).await.unwrap();
        tx.commit().await.unwrap();
        let root = &records[0].id;
        let read = store.zone(&zone).authority_record(root).await.unwrap();
        assert_eq!(read.as_ref(), Some(&records[0]));
        let elsewhere = ZoneId::trusted("z2");
        assert_eq!(store.zone(&elsewhere).authority_record(root).await.unwrap(), None);

        let mut tx = store.begin("revoking").await.unwrap();
        let mut ended = tx.zone(&zone).revoke_authority_record(root, "asked", now).await.unwrap();
        tx.commit().await.unwrap();
        ended.sort();
        assert_eq!(ended, [RecordId::trusted("child"), RecordId::trusted("root")]);
        let read = store.zone(&zone).authority_record(root).await.unwrap().unwrap();
        assert_eq!((read.status.as_str(), read.revoked_at), ("revoked", Some(now)));
        let later = now.plus(Duration::from_secs(1));
        assert_eq!(store.prune_authority_records(later, 100).await.unwrap(), 3);
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_run_once_however_many_run_them() {
    for database in Database::each("migrations").await {
        let stores = futures_util::future::join_all((0..6).map(|_| database.open())).await;
        let runs = futures_util::future::join_all(stores.iter().map(Store::migrate)).await;
        let mut applied: Vec<u32> = runs.into_iter().flat_map(Result::unwrap).collect();
        applied.sort_unstable();
        let mut once = applied.clone();
        once.dedup();
        assert!(!applied.is_empty() && applied == once, "{applied:?}");
        for store in stores {
            assert!(store.migrate().await.unwrap().is_empty());
            store.shutdown().await;
        }
        database.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_entries_are_claimed_by_one_relay_at_a_time() {
    for database in Database::each("claims").await.into_iter().skip(1) {
        let store = database.open().await;
        store.migrate().await.unwrap();
        let mut tx = store.begin("announcing").await.unwrap();
        for n in 0..40 {
            tx.announce(lifecycle(&ZoneId::trusted("z1"), &n.to_string()));
        }
        tx.commit().await.unwrap();
        let claims = (0..8).map(|_| async { store.outbox().claim(10, LEASE).await.unwrap() });
        let mut claimed: Vec<_> = futures_util::future::join_all(claims)
            .await
            .into_iter()
            .flatten()
            .map(|entry| entry.id)
            .collect();
        let all = claimed.len();
        claimed.sort();
        claimed.dedup();
        assert_eq!((all, claimed.len()), (40, 40));
        store.shutdown().await;
        database.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_is_due_at_once_though_the_clock_stepped_back_since() {
    for database in Database::each("step").await {
        let clock = Arc::new(caracal_model::TestClock::default());
        let store = database.open_with(clock.clone()).await;
        store.migrate().await.unwrap();
        let mut tx = store.begin("announcing").await.unwrap();
        tx.announce(lifecycle(&ZoneId::trusted("z1"), "terminate"));
        tx.commit().await.unwrap();
        clock.step_back(Duration::from_secs(3600));
        assert_eq!(store.outbox().claim(10, LEASE).await.unwrap().len(), 1);
        store.shutdown().await;
        database.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_connections_that_were_cut_are_an_outage_and_are_replaced() {
    for database in Database::each("cut").await.into_iter().skip(1) {
        let (store, killer) = (database.open().await, database.open().await);
        store.migrate().await.unwrap();
        let mut open = store.begin("being cut").await.unwrap();
        open.execute(&sql::ZONE, &zone("z1")).await.unwrap();
        // The role of tests may not, the user behind it may.
        let mut kill = killer.begin("killing").await.unwrap();
        kill.execute(&sql::NO_ROLE, &[]).await.unwrap();
        kill.query(&sql::KILL_OTHERS, &[]).await.unwrap();
        kill.rollback().await;
        let cut = open.commit().await.unwrap_err();
        assert!(cut.is_transient(), "{cut:?}");
        // A connection that looked alive may be handed out once more; then it is replaced.
        let again = async {
            while let Err(error) = store.ping().await {
                assert!(error.is_transient(), "{error:?}");
            }
        };
        tokio::time::timeout(DEADLINE, again).await.unwrap();
        add_zone(&store, "z2").await;
        assert_eq!(ids(&store).await, ["z2"]);
        store.shutdown().await;
        assert!(store.ping().await.unwrap_err().is_transient());
        killer.shutdown().await;
        database.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_transaction_that_stalls_is_rolled_back_and_lets_others_pass() {
    let database = Database::each("stall").await.remove(0);
    let store = Arc::new(database.open().await);
    store.migrate().await.unwrap();
    let mut stalled = store.begin("stalling").await.unwrap();
    stalled.execute(&sql::ZONE, &zone("z1")).await.unwrap();
    // Waits behind the stalled one until that is taken back.
    tokio::time::timeout(DEADLINE, add_zone(&store, "z2"))
        .await
        .unwrap();
    let refused = stalled.execute(&sql::ZONE, &zone("z3")).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Abandoned { .. }),
        "{refused:?}"
    );
    assert_eq!(ids(&store).await, ["z2"]);
    store.shutdown().await;
    assert!(store.ping().await.is_err());
    database.remove().await;
}

/// SQLite checks a deferred reference at the outer COMMIT, which is how a test makes that fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_shared_sqlite_commit_fails_nobody_in_it_hears_of_success() {
    let database = Database::each("group").await.remove(0);
    // On a clock that stands still, a group never is too old to take more in.
    let store = database
        .open_with(Arc::new(caracal_model::TestClock::default()))
        .await;
    store.migrate().await.unwrap();

    let mut poison = store.begin("poisoning").await.unwrap();
    poison.query(&sql::DEFER, &[]).await.unwrap();
    poison
        .execute(&sql::COUNTER, &params!["nowhere"])
        .await
        .unwrap();
    let insert = async |id: &'static str| {
        let mut tx = store.begin("sharing").await.unwrap();
        tx.execute(&sql::ZONE, &zone(id)).await?;
        tx.commit().await
    };
    // The others queue behind the poison, which commits once they have.
    let poisoned = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        poison.commit().await
    };
    let (first, second, poisoned) = futures_util::join!(insert("z1"), insert("z2"), poisoned);
    assert!(poisoned.unwrap_err().is_transient());
    let kept = ids(&store).await;
    assert_eq!(first.is_ok(), kept.contains(&"z1".to_owned()));
    assert_eq!(second.is_ok(), kept.contains(&"z2".to_owned()));
    assert!(first.is_err(), "the first must have shared the commit");
    add_zone(&store, "z3").await;
    store.shutdown().await;
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_from_a_refusal() {
    use crate::{Durability, PoolOptions, StoreConfig, StoreUrl};
    use caracal_model::{Ids, Secret, TestClock, TestRng};

    let clock = Arc::new(TestClock::default());
    let ids = Arc::new(Ids::new(clock.clone(), Arc::new(TestRng::default())));
    let url = StoreUrl::Pg {
        // Nothing listens on the discard port.
        url: Secret::new("postgres://nobody:hunter2@127.0.0.1:9/nothing".into()),
        tls: None,
        pool: PoolOptions {
            max: 1,
            connect_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(2),
            ..PoolOptions::default()
        },
    };
    let config = StoreConfig {
        url,
        durability: Durability::Process,
    };
    let store = Store::open(config, clock, ids).await.unwrap();
    let outage = store.ping().await.unwrap_err();
    assert!(outage.is_transient(), "{outage:?}");
    assert!(!format!("{outage} {outage:?}").contains("hunter2"));
}
