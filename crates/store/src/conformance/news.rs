//! The outbox, and records of authority.

use super::*;

on_each_engine! {
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
