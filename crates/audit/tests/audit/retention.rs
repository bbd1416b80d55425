//! Old evidence goes, from the beginning and in whole months; what is left verifies, and nobody else
//! can say where it begins.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use caracal_audit::{
    Auditor, CheckpointOptions, Checkpoints, Finding, Ingest, Retention, Trust, VerifyError,
    export_chain, verify_export, verify_ledger, verify_zone,
};
use caracal_bus::Bus;
use caracal_ledger::{Checkpoint, Flaw, Why};
use caracal_model::{Clock, TestClock, Timestamp};
use caracal_store::audit_exports::Export;
use caracal_store::audit_retention::{month_after, month_of};
use caracal_store::platform_settings::{AUDIT_RETENTION, PlatformSetting};
use caracal_store::{Store, on_each_engine, params, statements};
use caracal_tlog::ZoneLog;
use tokio_util::sync::CancellationToken;

use crate::verify::signing;
use crate::{event_of, key, log, zone};

const DAY: u64 = 24 * 3_600;

statements! { mod sql {
    MOVE_FLOOR = "UPDATE audit_floors SET chain_seq = 3, chain_hash = $1 WHERE zone_id = 'z1'";
    CUT = "DELETE FROM audit_events WHERE chain_seq <= 3
           AND zone_no = (SELECT zone_no FROM audit_zones WHERE zone_id = 'z1')";
} }

struct Ledger {
    store: Store,
    clock: Arc<TestClock>,
    ingest: Arc<Ingest>,
    count: std::cell::Cell<usize>,
}

impl Ledger {
    /// At the start of a month.
    fn new(store: &Store) -> Self {
        let clock = Arc::new(TestClock::default());
        let now = clock.now();
        clock.advance(month_after(now).since(now));
        let ingest = Ingest::new(store.clone(), Some(key()), clock.clone());
        Self {
            store: store.clone(),
            clock,
            ingest: Arc::new(ingest),
            count: std::cell::Cell::new(0),
        }
    }

    async fn append(&self, zone: &str, count: usize) {
        let first = self.count.replace(self.count.get() + count);
        let texts = (first..first + count)
            .map(|n| event_of(zone, &format!("e{n:05}")))
            .collect();
        let outcome = self.ingest.commit(texts).await.unwrap();
        assert_eq!(outcome.inserted, count);
    }

    fn days(&self, days: u64) {
        self.clock.advance(Duration::from_secs(days * DAY));
    }

    /// Puts everything into the trees, without which nothing is dropped, and verifies it again.
    async fn grow(&self) {
        let (ingest, bus) = (self.ingest.clone(), Bus::memory(self.clock.clone()));
        let options = CheckpointOptions::default();
        let mut checkpoints = Checkpoints::new(ingest, bus, "here", None, options);
        checkpoints.verify_again().await;
    }

    async fn retain(&self, days: u32) {
        self.grow().await;
        let bus = Bus::memory(self.clock.clone());
        let retention = Retention::new(self.ingest.clone(), bus, "here", days);
        retention.pass(&CancellationToken::new()).await.unwrap();
    }

    async fn verifies(&self, zone_id: &str) -> Result<u64, VerifyError> {
        let head = verify_zone(&self.store, &zone(zone_id), Some(&key())).await?;
        Ok(head.seq())
    }

    async fn first(&self, zone_id: &str) -> Option<u64> {
        let zone = zone(zone_id);
        let chain = self.store.zone(&zone).audit().chain(0, 1).await.unwrap();
        chain.first().map(|row| row.chain_seq)
    }
}

on_each_engine! {
    async fn whole_months_go_and_the_rest_verifies(store: Store) {
        let ledger = Ledger::new(&store);
        ledger.append("z1", 30).await;
        ledger.append("z2", 5).await;
        ledger.days(20);
        ledger.append("z1", 10).await;
        ledger.days(20);
        ledger.append("z1", 7).await;
        // The first month ends 9 days ago at most; of the second nothing is old enough.
        ledger.retain(365).await;
        assert_eq!((ledger.first("z1").await, ledger.first("z2").await), (Some(1), Some(1)));
        ledger.retain(30).await;
        assert_eq!(ledger.first("z1").await, Some(1), "the month has days within 30");
        ledger.retain(8).await;
        assert_eq!((ledger.first("z1").await, ledger.first("z2").await), (Some(41), None));
        assert_eq!(ledger.verifies("z1").await.unwrap(), 47);
        assert_eq!(ledger.verifies("z2").await.unwrap(), 5, "all of it is gone, and known to be");
        assert!(ledger.ingest.metrics().retention_dropped.get() >= 1);

        // Chains go on where they ended, and ids that are gone are free again: nothing knows them.
        ledger.append("z2", 3).await;
        assert_eq!(ledger.verifies("z2").await.unwrap(), 8);
        let floor = store.zone(&zone("z1")).audit().floor().await.unwrap().unwrap();
        assert_eq!(floor.chain_seq, 40);

        // What was verified up to a place below the floor is verified on from the floor.
        ledger.days(40);
        ledger.append("z1", 1).await;
        ledger.retain(8).await;
        ledger.grow().await;
        let metrics = ledger.ingest.metrics();
        let found = metrics.tamper_chain_breaks.get() + metrics.tamper_hmac_failures.get();
        assert_eq!(found + metrics.tamper_mismatch.get(), 0);
    }

    async fn what_is_to_be_exported_waits_for_that(store: Store) {
        let ledger = Ledger::new(&store);
        ledger.append("z1", 30).await;
        ledger.days(70);
        ledger.append("z1", 2).await;
        ledger.grow().await;
        let pass = async || {
            let bus = Bus::memory(ledger.clock.clone());
            let retention = Retention::new(ledger.ingest.clone(), bus, "here", 30);
            let retention = retention.after_export(true);
            retention.pass(&CancellationToken::new()).await.unwrap();
        };
        pass().await;
        assert_eq!(ledger.first("z1").await, Some(1), "nothing was exported");
        assert_eq!(ledger.ingest.metrics().retention_held.get(), 1);

        let export = Export {
            object: "hour-1".into(),
            hour: ledger.clock.now(),
            part: 1,
            ends_hour: true,
            events: 0,
            planned_at: ledger.clock.now(),
            sha256: None,
            exported_at: None,
        };
        let head = store.zone(&zone("z1")).audit().head().await.unwrap().unwrap();
        assert!(store.plan_audit_export(&export, &[], &[head]).await.unwrap());
        pass().await;
        assert_eq!(ledger.first("z1").await, Some(31));
    }

    async fn an_operator_may_keep_less_and_not_more(store: Store) {
        let ledger = Ledger::new(&store);
        ledger.append("z1", 3).await;
        ledger.days(70);
        let set = async |days: u32| {
            let setting = PlatformSetting {
                value: days,
                updated_by: "admin:test".into(),
                updated_at: Timestamp::from_unix_seconds(0),
            };
            let mut tx = store.begin("test").await.unwrap();
            tx.put_platform_setting(AUDIT_RETENTION, &setting).await.unwrap();
            tx.commit().await.unwrap();
        };
        set(3_000).await;
        ledger.retain(365).await;
        assert_eq!(ledger.first("z1").await, Some(1));
        set(10).await;
        ledger.retain(365).await;
        assert_eq!(ledger.first("z1").await, None);
    }

    async fn a_beginning_that_somebody_else_cut_off_is_found(store: Store) {
        let ledger = Ledger::new(&store);
        ledger.append("z1", 2).await;
        ledger.days(40);
        ledger.append("z1", 4).await;
        ledger.retain(5).await;
        assert_eq!(ledger.verifies("z1").await.unwrap(), 6);
        // With its floor moved along, but without the key.
        let zone = zone("z1");
        let row = store.zone(&zone).audit().chain(2, 1).await.unwrap().remove(0);
        let hash = caracal_crypto::digest::hex_decode(&row.chain_hash).unwrap();
        let mut tx = store.begin("tampering").await.unwrap();
        assert_eq!(tx.execute(&sql::CUT, &[]).await.unwrap(), 1);
        tx.execute(&sql::MOVE_FLOOR, &params![hash]).await.unwrap();
        tx.commit().await.unwrap();
        let found = ledger.verifies("z1").await.unwrap_err();
        let VerifyError::Found(Finding { seq, flaw, .. }) = found else { panic!("{found}") };
        assert_eq!((seq, flaw), (3, Flaw::Chain(Why::Author)));
    }

    async fn an_export_says_where_it_begins(store: Store) {
        let ledger = Ledger::new(&store);
        ledger.append("z1", 3).await;
        ledger.days(40);
        ledger.append("z1", 4).await;
        ledger.retain(5).await;
        let mut out = Vec::new();
        assert_eq!(export_chain(&store, &log("z1"), &mut out).await.unwrap(), 4);
        let none = Trust::default();
        let sound = verify_export(Cursor::new(&out), Some(&key()), &none).unwrap();
        assert_eq!((sound[0].1.head.seq(), sound[0].1.floor), (7, 3));
        let text = String::from_utf8(out).unwrap();
        let without = text.split_once('\n').unwrap().1;
        assert!(verify_export(Cursor::new(without), Some(&key()), &none).is_err());
        let forged = text.replacen("\"size\":3", "\"size\":2", 1);
        assert!(verify_export(Cursor::new(forged), Some(&key()), &none).is_err());
    }

    async fn what_is_gone_was_signed_and_what_is_left_continues_it(store: Store) {
        let ledger = Ledger::new(&store);
        let (_, mut checkpoints) = signing(&store, ledger.clock.clone());
        for count in [3, 2] {
            ledger.append("z1", count).await;
            checkpoints.sign_all().await;
        }
        ledger.days(40);
        ledger.append("z1", 4).await;
        ledger.retain(5).await;
        assert_eq!(ledger.first("z1").await, Some(6));
        checkpoints.sign_all().await;

        let keys = caracal_tlog::vkeys(&store).await.unwrap();
        let zone = zone("z1");
        let of_size = async |size| {
            let stored = store.zone(&zone).audit_tree().checkpoint(size).await.unwrap();
            Checkpoint::open(&stored.unwrap().note, &keys).unwrap()
        };
        let mut out = Vec::new();
        export_chain(&store, &log("z1"), &mut out).await.unwrap();
        for size in [3, 5, 9] {
            let checkpoints = vec![of_size(size).await];
            let trust = Trust { keys: keys.clone().into(), checkpoints, heads: Vec::new() };
            let sound = verify_export(Cursor::new(&out), None, &trust).unwrap();
            assert_eq!((sound[0].1.head.seq(), sound[0].1.floor), (9, 5), "{size}");
            verify_ledger(&store, &log("z1"), Some(&key()), &trust).await.unwrap();
        }
        // Page by page, however small the pages are, and nothing is handed out in the place of what is gone.
        let trust = Trust { keys: keys.clone().into(), ..Trust::default() };
        let mut auditor = Auditor::new(None, &trust);
        let (mut cursor, mut pages) = (None, 0);
        loop {
            let page = caracal_tlog::pages::page(&store, &log("z1"), cursor, 1).await.unwrap();
            page.lines.into_iter().for_each(|line| auditor.take(line).unwrap());
            pages += 1;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        let sound = auditor.finish().unwrap().remove(0).1;
        assert_eq!((sound.head.seq(), sound.signed.unwrap().size, sound.checkpoints), (9, 9, 3));
        assert!(pages > 4, "{pages}");
        let gone = ZoneLog::of(&store, &log("z1")).entries(0, 5).await.unwrap();
        assert_eq!(gone, Vec::<String>::new());

        let mut forged = of_size(3).await;
        forged.root = [7; 32];
        let trust = Trust { keys: keys.into(), checkpoints: vec![forged], heads: Vec::new() };
        let found = verify_export(Cursor::new(&out), None, &trust).unwrap_err();
        let VerifyError::Found(found) = found else { panic!("{found}") };
        assert_eq!((found.seq, found.flaw), (1, Flaw::Unproven { size: 3 }));
    }

    async fn what_no_checkpoint_covers_stays(store: Store) {
        let ledger = Ledger::new(&store);
        let (_, mut checkpoints) = signing(&store, ledger.clock.clone());
        ledger.append("z1", 2).await;
        checkpoints.sign_all().await;
        ledger.append("z1", 2).await;
        ledger.days(40);
        ledger.retain(5).await;
        assert_eq!(ledger.first("z1").await, Some(1));
        checkpoints.sign_all().await;
        ledger.retain(5).await;
        assert_eq!(ledger.first("z1").await, None);
    }

    async fn time_of_ingestion_never_goes_back_along_a_chain(store: Store) {
        let ledger = Ledger::new(&store);
        ledger.append("z1", 2).await;
        ledger.clock.step_back(Duration::from_secs(5 * DAY));
        ledger.append("z1", 2).await;
        // Another ingester, whose clock is behind as well, learns it from the store.
        let other = Ledger { ingest: Arc::new(Ingest::new(store.clone(), Some(key()),
            ledger.clock.clone())), ..Ledger::new(&store) };
        other.count.set(100);
        other.append("z1", 2).await;
        let zone = zone("z1");
        let rows = store.zone(&zone).audit().chain(0, 10).await.unwrap();
        assert_eq!(rows.len(), 6);
        assert!(rows.is_sorted_by_key(|row| row.ingested_at));
        assert_eq!(month_of(rows[0].ingested_at), month_of(rows[5].ingested_at));
    }

    async fn months_are_made_ahead_and_when_they_are_missing(store: Store) {
        let ledger = Ledger::new(&store);
        ledger.retain(365).await;
        let made = ledger.ingest.metrics().retention_created.get();
        if format!("{store:?}") == "Store(SQLite)" {
            assert_eq!(made, 0);
            return;
        }
        let months = store.audit_months().await.unwrap();
        let now = month_of(ledger.clock.now());
        let expected = [now, month_after(now), month_after(month_after(now))];
        assert!(expected.iter().all(|month| months.contains(month)), "{months:?}");
        ledger.retain(365).await;
        assert_eq!(ledger.ingest.metrics().retention_created.get(), made, "once");
        // Nobody led for a year: appending makes the month that it needs.
        ledger.days(400);
        ledger.append("z1", 3).await;
        assert!(store.audit_months().await.unwrap().contains(&month_of(ledger.clock.now())));
        assert_eq!(ledger.verifies("z1").await.unwrap(), 3);
    }

    async fn an_id_is_known_across_months(store: Store) {
        let ledger = Ledger::new(&store);
        let text = event_of("z1", "once");
        ledger.ingest.commit(vec![text.clone()]).await.unwrap();
        ledger.days(100);
        let again = ledger.ingest.commit(vec![text.clone()]).await.unwrap();
        assert_eq!((again.inserted, again.duplicates), (0, 1));
        let forged = ledger.ingest.commit(vec![text.replace("allow", "deny")]).await.unwrap();
        assert_eq!((forged.inserted, forged.tampered.len()), (0, 1));
    }
}
