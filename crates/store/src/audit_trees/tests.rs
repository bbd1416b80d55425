use super::*;

fn checkpoint(size: u64) -> AuditCheckpoint {
    AuditCheckpoint {
        size,
        note: format!("note of {size}\n"),
        made_at: Timestamp::from_unix_seconds(whole_int(size)),
    }
}

fn growing<'g>(from: (u64, &'g str), to: (u64, &'g str), tiles: &'g [AuditTile]) -> Growing<'g> {
    Growing { from, to, tiles }
}

const WISHED: crate::Sql = crate::testing::raw("SELECT zone_id FROM audit_checkpoint_wishes");

crate::on_each_engine! {
    async fn a_tree_grows_only_from_where_it_was_seen(store: Store) {
        let z1 = ZoneId::trusted("z1");
        let tree = store.zone(&z1).audit_tree();
        assert_eq!(tree.state().await.unwrap(), None);
        let first = [(0, 0, vec![1; 64]), (1, 0, vec![2; 32])];
        assert!(tree.grow(&growing((0, "none"), (2, "two"), &first)).await.unwrap());
        for stale in [(0, "none"), (2, "other"), (1, "two")] {
            let late = [(0, 0, vec![9; 32])];
            assert!(!tree.grow(&growing(stale, (3, "three"), &late)).await.unwrap(), "{stale:?}");
        }
        let second = [(0, 0, vec![3; 96])];
        assert!(tree.grow(&growing((2, "two"), (3, "three"), &second)).await.unwrap());
        let state = tree.state().await.unwrap().unwrap();
        assert_eq!((state.size, state.chain_hash.as_str(), state.signed_size), (3, "three", 0));
        let covered = store.audit_checkpointed().await.unwrap();
        assert_eq!(covered.into_iter().collect::<Vec<_>>(), [(z1.clone(), 3)]);
        let mut tiles = tree.tiles(&[(0, 0), (1, 0), (0, 1), (1, 1)]).await.unwrap();
        tiles.sort();
        assert_eq!(tiles, [(0, 0, vec![3; 96]), (1, 0, vec![2; 32])]);
        let z2 = ZoneId::trusted("z2");
        assert_eq!(store.zone(&z2).audit_tree().tiles(&[(0, 0)]).await.unwrap(), []);
    }

    async fn a_checkpoint_is_kept_once_and_listed_both_ways(store: Store) {
        let z1 = ZoneId::trusted("z1");
        let tree = store.zone(&z1).audit_tree();
        assert_eq!(tree.latest().await.unwrap(), None);
        for size in [3, 5, 9] {
            assert!(tree.sign(&checkpoint(size)).await.unwrap());
        }
        let other = AuditCheckpoint { note: "another".to_owned(), ..checkpoint(5) };
        assert!(!tree.sign(&other).await.unwrap());
        assert_eq!(tree.checkpoint(5).await.unwrap(), Some(checkpoint(5)));
        assert_eq!(tree.checkpoint(4).await.unwrap(), None);
        assert_eq!(tree.latest().await.unwrap(), Some(checkpoint(9)));
        assert_eq!(tree.below(9, 10).await.unwrap(), [checkpoint(5), checkpoint(3)]);
        assert_eq!(tree.above(3, 1).await.unwrap(), [checkpoint(5)]);
    }

    async fn a_finding_is_new_once(store: Store) {
        let finding = AuditFinding { zone: ZoneId::trusted("z1"), seq: 7, flaw: "changed".to_owned() };
        assert!(store.add_audit_finding(&finding).await.unwrap());
        assert!(!store.add_audit_finding(&finding).await.unwrap());
        let later = AuditFinding { seq: 8, ..finding.clone() };
        assert!(store.add_audit_finding(&later).await.unwrap());
        let found: Vec<_> = store.audit_findings().await.unwrap().into_iter().map(|(one, _)| one).collect();
        assert_eq!(found, [finding, later]);
    }

    async fn the_first_key_stays(store: Store) {
        let key = |public: u8| AuditKey {
            id: "1".to_owned(),
            deployment: "caracal/a1".to_owned(),
            public_key: vec![public; 32],
            sealed_private: vec![public; 100],
            created_at: Timestamp::from_unix_seconds(1),
        };
        assert!(store.add_audit_key(&key(1)).await.unwrap());
        assert!(!store.add_audit_key(&key(2)).await.unwrap());
        assert_eq!(store.audit_keys().await.unwrap(), [key(1)]);
    }

    async fn only_the_private_half_of_a_key_that_was_replaced_is_destroyed(store: Store) {
        let key = |id: &str| AuditKey {
            id: id.to_owned(),
            deployment: "caracal/a1".to_owned(),
            public_key: vec![1; 32],
            sealed_private: vec![2; 100],
            created_at: Timestamp::from_unix_seconds(1),
        };
        for id in ["9", "10"] {
            assert!(store.add_audit_key(&key(id)).await.unwrap());
        }
        assert!(!store.destroy_audit_key("10").await.unwrap(), "it signs");
        assert!(store.destroy_audit_key("9").await.unwrap());
        assert!(!store.destroy_audit_key("9").await.unwrap(), "it is gone");
        let gone = AuditKey { sealed_private: vec![], ..key("9") };
        assert!(!gone.has_private() && key("10").has_private());
        assert_eq!(store.audit_keys().await.unwrap(), [gone, key("10")]);
        // Nor is what is gone sealed again under another key.
        let place = crate::reseal::Place::CheckpointKeys;
        let sealed = store.sealed_otherwise(place, b"KEK1........", "", 10).await.unwrap();
        assert_eq!(sealed.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["10"]);
    }

    async fn the_latest_checkpoint_of_every_log_is_read_page_by_page(store: Store) {
        for zone in ["z1", "z2", "z3"] {
            let zone = ZoneId::trusted(zone);
            let tree = store.zone(&zone).audit_tree();
            assert!(tree.grow(&growing((0, "none"), (2, "two"), &[])).await.unwrap());
            if zone.as_str() != "z2" {
                assert!(tree.sign(&checkpoint(1)).await.unwrap());
                assert!(tree.sign(&checkpoint(2)).await.unwrap());
            }
        }
        let read = async |after: &str| store.latest_audit_notes(after, 1).await.unwrap();
        let of = |zone: &str| vec![(zone.to_owned(), checkpoint(2).note)];
        assert_eq!((read("").await, read("z1").await, read("z3").await), (of("z1"), of("z3"), vec![]));
    }

    async fn keys_are_in_the_order_of_their_numbers_whatever_the_clock_said(store: Store) {
        for (id, at) in [("10", 1), ("2", 2), ("1", 3)] {
            let key = AuditKey {
                id: id.to_owned(),
                deployment: "caracal/a1".to_owned(),
                public_key: vec![1; 32],
                sealed_private: vec![1; 100],
                created_at: Timestamp::from_unix_seconds(at),
            };
            assert!(store.add_audit_key(&key).await.unwrap());
        }
        let ids: Vec<_> = store.audit_keys().await.unwrap().into_iter().map(|key| key.id).collect();
        assert_eq!(ids, ["1", "2", "10"]);
    }

    async fn every_zone_that_was_signed_can_be_wished_for_at_once(store: Store) {
        for zone in ["z1", "z2"] {
            let zone = ZoneId::trusted(zone);
            let tree = store.zone(&zone).audit_tree();
            assert!(tree.grow(&growing((0, "none"), (2, "two"), &[])).await.unwrap());
            if zone.as_str() == "z1" {
                assert!(tree.sign(&checkpoint(2)).await.unwrap());
            }
        }
        for _ in 0..2 {
            store.wish_audit_checkpoints().await.unwrap();
        }
        let rows = store.query(&WISHED, &[]).await.unwrap();
        let wished: Vec<_> = rows.iter().map(|row| row.string("zone_id").unwrap()).collect();
        assert_eq!(wished, ["z1"]);
    }

    async fn checkpoints_that_say_something_are_found(store: Store) {
        let z1 = ZoneId::trusted("z1");
        let tree = store.zone(&z1).audit_tree();
        for (size, line) in [(3, "rotated a b"), (5, "time rotated "), (9, "rotated b c")] {
            let note = format!("log\n{size}\nroot\n{line}\n\nsigned\n");
            assert!(tree.sign(&AuditCheckpoint { note, ..checkpoint(size) }).await.unwrap());
        }
        let found = tree.saying("rotated").await.unwrap();
        assert_eq!(found.iter().map(|one| one.size).collect::<Vec<_>>(), [3, 9]);
    }
}
