//! Connections on both engines.

use caracal_model::{ProviderId, Timestamp, ZoneId};

use super::{Connection, Filter, SHARED_SUBJECT, SealedTokens};
use crate::zones::Slice;
use crate::{Sql, Store, on_each_engine};

const fn raw(text: &'static str) -> Sql {
    Sql {
        name: "test",
        pg: text,
        lite: text,
    }
}

const ZONE: Sql = raw(
    "INSERT INTO zones (id, name, slug, dcr_enabled, operator_coauthor_badge,
    operator_governed, created_via_operator, updated_via_operator, created_at, updated_at)
    VALUES ('z', 'z', 'z', FALSE, FALSE, FALSE, FALSE, FALSE, 0, 0)",
);
const PROVIDERS: Sql = raw(
    "INSERT INTO providers (id, zone_id, name, identifier, kind, config_json, secret_config_keys,
    created_via_operator, updated_via_operator, created_at, updated_at)
    VALUES ('p', 'z', 'p', 'provider://p', 'k', '{}', '[]', FALSE, FALSE, 0, 0),
           ('q', 'z', 'q', 'provider://q', 'k', '{}', '[]', FALSE, FALSE, 0, 0)",
);
const NEWS: Sql = raw("SELECT fields_json FROM outbox ORDER BY id");

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

fn zone() -> ZoneId {
    ZoneId::trusted("z")
}

fn tokens(access: &[u8]) -> SealedTokens<'_> {
    SealedTokens {
        access,
        refresh: Some(b"refresh"),
        expires_at: Some(at(100)),
    }
}

async fn prepare(store: &Store) {
    let mut tx = store.begin("preparing").await.unwrap();
    tx.execute(&ZONE, &[]).await.unwrap();
    tx.execute(&PROVIDERS, &[]).await.unwrap();
    tx.commit().await.unwrap();
}

async fn put(store: &Store, id: &str, provider: &str, subject: &str, access: &[u8]) -> Connection {
    let mut tx = store.begin("connecting").await.unwrap();
    let (zone, provider) = (zone(), ProviderId::trusted(provider));
    let mut connections = tx.connections(&zone);
    let row = connections
        .put(id, &provider, subject, tokens(access), at(1))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    row
}

async fn active(store: &Store, provider: &str, subject: &str) -> Option<Connection> {
    let provider = ProviderId::trusted(provider);
    store
        .zone(&zone())
        .connections()
        .active(&provider, subject)
        .await
        .unwrap()
}

on_each_engine! {
    async fn a_subject_has_one_active_connection_to_a_provider(store: Store) {
        prepare(&store).await;
        let first = put(&store, "c1", "p", "u", b"one").await;
        let second = put(&store, "c2", "p", "u", b"two").await;
        assert_eq!((first.version, second.version), (1, 2));
        assert_eq!((second.id.as_str(), second.created_at), ("c1", at(1)));
        assert_eq!(active(&store, "p", "u").await, Some(second));
        assert_eq!(active(&store, "q", "u").await, None);
        assert_eq!(active(&store, "p", SHARED_SUBJECT).await, None);
        let elsewhere = ZoneId::trusted("y");
        let found = store.zone(&elsewhere).connections().active(&ProviderId::trusted("p"), "u").await;
        assert_eq!(found.unwrap(), None);
    }

    async fn a_refresh_writes_only_over_what_it_read(store: Store) {
        prepare(&store).await;
        let read = put(&store, "c1", "p", "u", b"one").await;
        for (access, stored) in [(&b"two"[..], true), (&b"three"[..], false)] {
            let mut tx = store.begin("refreshing").await.unwrap();
            let zone = zone();
            let done = tx.connections(&zone).refresh(&read, tokens(access), at(5)).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(done, stored);
        }
        let row = active(&store, "p", "u").await.unwrap();
        assert_eq!((row.access_token.as_slice(), row.version, row.refreshed_at), (&b"two"[..], 2, Some(at(5))));
        let mut tx = store.begin("expiring what changed").await.unwrap();
        assert!(!tx.connections(&zone()).expire(&read, at(6)).await.unwrap());
        assert!(tx.connections(&zone()).expire(&row, at(6)).await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(active(&store, "p", "u").await, None);
    }

    async fn what_is_revoked_is_not_refreshed_and_may_be_connected_again(store: Store) {
        prepare(&store).await;
        let read = put(&store, "c1", "p", "u", b"one").await;
        put(&store, "c2", "q", "u", b"one").await;
        put(&store, "c3", "p", "v", b"one").await;
        let mut tx = store.begin("revoking").await.unwrap();
        let zone = zone();
        let mut connections = tx.connections(&zone);
        let revoked = connections.revoke(&ProviderId::trusted("p"), "u", at(7)).await.unwrap();
        assert_eq!(revoked.unwrap().status, "revoked");
        assert!(connections.revoke(&ProviderId::trusted("p"), "u", at(7)).await.unwrap().is_none());
        assert!(!connections.refresh(&read, tokens(b"two"), at(8)).await.unwrap());
        assert_eq!(connections.revoke_subject("u", at(9)).await.unwrap(), 1);
        assert_eq!(connections.revoke_provider("p", at(9)).await.unwrap(), 1);
        tx.commit().await.unwrap();
        assert_eq!(put(&store, "c4", "p", "u", b"new").await.version, 1);
        let last = store.zone(&zone).connections().last(&ProviderId::trusted("q"), "u").await;
        assert_eq!(last.unwrap().unwrap().status, "revoked");
    }

    async fn pages_are_filtered_and_every_change_is_told(store: Store) {
        prepare(&store).await;
        for (id, provider, subject) in [("c1", "p", "u"), ("c2", "p", "v"), ("c3", "q", "u")] {
            put(&store, id, provider, subject, b"t").await;
        }
        let slice = Slice { before: i64::MAX, before_id: "", limit: 10 };
        let zone = zone();
        for (filter, expected) in [
            (Filter::default(), vec!["c3", "c2", "c1"]),
            (Filter { provider: Some("p"), ..Filter::default() }, vec!["c2", "c1"]),
            (Filter { subject: Some("u"), ..Filter::default() }, vec!["c3", "c1"]),
            (Filter { status: Some("revoked"), ..Filter::default() }, vec![]),
        ] {
            let page = store.zone(&zone).connections().page(filter, slice).await.unwrap();
            let ids: Vec<_> = page.iter().map(|row| row.id.as_str()).collect();
            assert_eq!(ids, expected, "{filter:?}");
        }
        let news = store.query(&NEWS, &[]).await.unwrap();
        let told: Vec<_> = news.iter().map(|row| row.string("fields_json").unwrap()).collect();
        assert_eq!(told.len(), 3);
        assert!(told[0].contains("connection") && told[0].contains("\"u\""), "{told:?}");
    }
}
