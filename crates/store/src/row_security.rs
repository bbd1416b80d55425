//! The second line of zone scoping, on Postgres alone: what a wrong statement of ours can reach.

use caracal_model::{Timestamp, ZoneId};

use crate::testing::raw as sql;
use crate::zones::{Provenance, Zone};
use crate::{Param, Store, params};

/// Statements without a zone, as a mistake would have them.
const ALL_IDS: &str = "SELECT id FROM policies ORDER BY id";
const RENAME: &str = "UPDATE policies SET name = 'x'";
const INSERT: &str = "INSERT INTO policies (id, zone_id, name, created_via_operator,
        updated_via_operator, created_at, updated_at)
    VALUES ($1, $2, $1, FALSE, FALSE, 1, 1)";

fn z1() -> ZoneId {
    ZoneId::trusted("z1")
}

fn z2() -> ZoneId {
    ZoneId::trusted("z2")
}

async fn insert(store: &Store, within: &ZoneId, zone: &str, id: &str) -> bool {
    let mut tx = store.begin("test").await.unwrap();
    let done = tx
        .zone(within)
        .tx()
        .execute(&sql(INSERT), &params![id, zone])
        .await;
    done.is_ok() && tx.commit().await.is_ok()
}

async fn seed(store: &Store) {
    for zone in [z1(), z2()] {
        let mut tx = store.begin("test").await.unwrap();
        let row = Zone {
            id: zone.clone(),
            name: zone.to_string(),
            slug: zone.to_string(),
            dcr_enabled: false,
            owner_account_id: None,
            operator_coauthor_badge: false,
            operator_governed: false,
            actor_tokens: false,
            provenance: Provenance {
                created_by: None,
                created_via_operator: false,
                updated_by: None,
                updated_via_operator: false,
                created_at: Timestamp::from_unix_seconds(1),
                updated_at: Timestamp::from_unix_seconds(1),
            },
        };
        tx.zones().insert(&row).await.unwrap();
        tx.commit().await.unwrap();
        assert!(insert(store, &zone, zone.as_str(), &format!("p-{zone}")).await);
    }
}

async fn ids(store: &Store, zone: &ZoneId) -> Vec<String> {
    let rows = store.zone(zone).query(&sql(ALL_IDS), &[]).await.unwrap();
    rows.iter().map(|row| row.string("id").unwrap()).collect()
}

fn is_postgres(store: &Store) -> bool {
    format!("{store:?}") == "Store(Postgres)"
}

crate::on_each_engine! {
    async fn a_wrong_statement_reaches_no_other_zone(store: Store) {
        if !is_postgres(&store) {
            return;
        }
        seed(&store).await;
        assert_eq!(ids(&store, &z1()).await, ["p-z1"]);
        assert_eq!(ids(&store, &z2()).await, ["p-z2"]);
        assert_eq!(ids(&store, &ZoneId::trusted("z3' OR '1'='1")).await, [""; 0]);
        // What the service does across zones it says so, on the same connections.
        let all = store.query(&sql(ALL_IDS), &[]).await.unwrap();
        assert_eq!(all.len(), 2);

        assert!(!insert(&store, &z1(), "z2", "smuggled").await);
        let mut tx = store.begin("test").await.unwrap();
        assert_eq!(tx.zone(&z1()).tx().execute(&sql(RENAME), &[]).await.unwrap(), 1);
        assert_eq!(tx.zone(&z2()).tx().execute(&sql(RENAME), &[]).await.unwrap(), 1);
        assert_eq!(tx.execute(&sql(RENAME), &[]).await.unwrap(), 2);
        tx.rollback().await;
        let mut reading = store.zone(&z2()).reading("test").await.unwrap();
        assert_eq!(reading.query(&sql(ALL_IDS), &[]).await.unwrap().len(), 1);
    }

    async fn who_says_no_zone_sees_nothing(store: Store) {
        if !is_postgres(&store) {
            return;
        }
        seed(&store).await;
        let mut tx = store.begin("test").await.unwrap();
        let forget = sql("SELECT set_config('caracal.zone_id', '', TRUE) AS zone");
        tx.query(&forget, &[]).await.unwrap();
        assert_eq!(tx.query(&sql(ALL_IDS), &[]).await.unwrap().len(), 0);
        assert_eq!(tx.execute(&sql(RENAME), &[]).await.unwrap(), 0);
    }

    async fn every_table_with_zones_is_secured(store: Store) {
        if !is_postgres(&store) {
            return;
        }
        let open = sql("SELECT c.relname::text AS name FROM pg_class c
            JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'zone_id'
            WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p')
                AND (a.attname IS NOT NULL OR c.relname = 'zones')
                AND NOT (c.relrowsecurity AND c.relforcerowsecurity)");
        let params: [Param<'_>; 0] = [];
        let rows = store.query(&open, &params).await.unwrap();
        let names: Vec<_> = rows.iter().map(|row| row.string("name").unwrap()).collect();
        assert_eq!(names, Vec::<String>::new());
        assert_eq!(store.migrate().await.unwrap(), Vec::<u32>::new(), "and again");
    }

    /// A zone that is said is said in the statement's own round trip.
    async fn a_read_of_a_zone_is_one_visit(store: Store) {
        seed(&store).await;
        let before = store.visits();
        ids(&store, &z1()).await;
        assert_eq!(store.visits() - before, 1);
    }
}
