//! Who signs, with which key, and what whoever has one of the keys is told.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use caracal_audit::{
    CheckpointOptions, Checkpoints, Ingest, Sealing, Trust, VerifyError, export_chain,
    verify_export, verify_ledger,
};
use caracal_bus::Bus;
use caracal_crypto::NoteKey;
use caracal_crypto::os::SystemClock;
use caracal_ledger::{Checkpoint, CheckpointError, Flaw, Named, Vkey};
use caracal_model::TestClock;
use caracal_store::on_each_engine;
use caracal_store::reseal::CHECKPOINT_KEY_AAD;
use serde_json::json;

use crate::verify::{edit, sealing, signing};
use crate::{events, key, log, zone};

/// Waits for something.
async fn reached(what: &str, is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let within = Duration::from_secs(60);
    assert!(
        tokio::time::timeout(within, waiting).await.is_ok(),
        "{what}"
    );
}

on_each_engine! {
    async fn keys_are_changed_and_whoever_has_one_of_them_can_follow(store: Store) {
        let (ingest, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        let Sealing { keyring, rng } = sealing();
        let clock = SystemClock::new();
        let z1 = zone("z1");
        ingest.commit(events(0..10)).await.unwrap();
        checkpoints.sign_due().await;
        for first in [10, 20] {
            let rotated = caracal_tlog::rotate(&store, &keyring, rng.as_ref(), &clock);
            assert!(rotated.await.unwrap().is_some());
            checkpoints.sign_due().await;
            ingest.commit(events(first..first + 5)).await.unwrap();
            // The change was wished for, so nothing has to become due.
            checkpoints.sign_due().await;
            ingest.commit(events(first + 5..first + 10)).await.unwrap();
            checkpoints.sign_all().await;
        }
        let stored = store.zone(&z1).audit_tree().above(0, 10).await.unwrap();
        let opened = stored.iter().map(|one| Checkpoint::unverified(&one.note).unwrap());
        let told: Vec<_> = opened.map(|one| (one.size, one.rotation.is_some())).collect();
        assert_eq!(told, [(10, false), (15, true), (20, false), (25, true), (30, false)]);
        checkpoints.verify_again().await;
        assert_eq!(store.audit_findings().await.unwrap(), []);

        let vkeys = caracal_tlog::vkeys(&store).await.unwrap();
        let trusting = |keys: &[Vkey]| Trust { keys: keys.to_vec().into(), ..Trust::default() };
        let mut export = Vec::new();
        export_chain(&store, &log("z1"), &mut export).await.unwrap();
        let export = String::from_utf8(export).unwrap();
        let names = |vkey: &Vkey, size, checkpoints| Named { key: vkey.clone(), size, checkpoints };
        let [one, two, three] = &vkeys[..] else { panic!("{vkeys:?}") };
        for (keys, signed, named) in [
            (&vkeys[..], 30, vec![]),
            (&vkeys[..1], 15, vec![names(two, 25, 2), names(three, 30, 1)]),
            (&vkeys[1..2], 25, vec![names(one, 10, 1), names(three, 30, 1)]),
            (&vkeys[2..], 30, vec![names(two, 20, 2), names(one, 10, 1)]),
        ] {
            let trust = trusting(keys);
            let ledger = verify_ledger(&store, &log("z1"), None, &trust).await.unwrap();
            let file = verify_export(Cursor::new(&export), None, &trust).unwrap().remove(0).1;
            for sound in [ledger, file] {
                assert_eq!(sound.signed.unwrap().size, signed);
                let by_size = |mut all: Vec<Named>| {
                    all.sort_by_key(|named| named.size);
                    all
                };
                assert_eq!(by_size(sound.named), by_size(named.clone()));
            }
        }
    }

    async fn a_key_that_no_log_needs_is_destroyed_and_one_that_is_missed_is_told_of(store: Store) {
        let clock = Arc::new(TestClock::default());
        let (ingest, mut checkpoints) = signing(&store, clock.clone());
        let Sealing { keyring, rng } = sealing();
        let rotate = async || {
            let rotated = caracal_tlog::rotate(&store, &keyring, rng.as_ref(), clock.as_ref());
            assert!(rotated.await.unwrap().is_some());
        };
        let private = async || -> Vec<bool> {
            let keys = store.audit_keys().await.unwrap();
            keys.iter().map(|key| key.has_private()).collect()
        };
        let mut next = 0;
        let mut sign = async |checkpoints: &mut Checkpoints| {
            ingest.commit(events(next..next + 5)).await.unwrap();
            next += 5;
            checkpoints.sign_all().await;
        };
        sign(&mut checkpoints).await;
        rotate().await;
        clock.advance(Duration::from_secs(7_200));
        checkpoints.forget_keys().await;
        assert_eq!(private().await, [true, true], "the log is of the first key still");
        sign(&mut checkpoints).await;
        checkpoints.forget_keys().await;
        assert_eq!(private().await, [false, true]);
        sign(&mut checkpoints).await;
        let told = || ingest.metrics().unproven_key_changes.get();
        assert_eq!((told(), store.audit_findings().await.unwrap().len()), (0, 0));

        rotate().await;
        assert!(store.destroy_audit_key("2").await.unwrap());
        sign(&mut checkpoints).await;
        sign(&mut checkpoints).await;
        assert_eq!((told(), ingest.metrics().checkpoints.get()), (1, 5));
        let found = store.audit_findings().await.unwrap();
        assert_eq!((found.len(), found[0].0.seq), (1, 20));
        assert!(found[0].0.flaw.contains("nothing proves the change"));
        let vkeys = caracal_tlog::vkeys(&store).await.unwrap();
        let verified = async |keys: &[Vkey]| {
            let trust = Trust { keys: keys.to_vec().into(), ..Trust::default() };
            verify_ledger(&store, &log("z1"), None, &trust).await
        };
        assert_eq!(verified(&vkeys).await.unwrap().signed.unwrap().size, 25);
        let unknown = Flaw::Checkpoint(CheckpointError::Note(caracal_ledger::note::NoteError::OtherKey));
        match verified(&vkeys[..2]).await.unwrap_err() {
            VerifyError::Found(found) => assert_eq!((found.seq, found.flaw), (20, unknown)),
            other => panic!("{other}"),
        }
        checkpoints.verify_again().await;
        assert_eq!(store.audit_findings().await.unwrap().len(), 1);
    }

    async fn a_key_that_was_replaced_continues_no_ledger(store: Store) {
        let (ingest, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        let Sealing { keyring, rng } = sealing();
        let z1 = zone("z1");
        ingest.commit(events(0..10)).await.unwrap();
        checkpoints.sign_all().await;
        caracal_tlog::rotate(&store, &keyring, rng.as_ref(), &SystemClock::new()).await.unwrap();
        ingest.commit(events(10..20)).await.unwrap();
        checkpoints.sign_all().await;
        ingest.commit(events(20..30)).await.unwrap();
        let mut export = Vec::new();
        export_chain(&store, &log("z1"), &mut export).await.unwrap();
        let export = String::from_utf8(export).unwrap();
        // Whoever has stolen the old key signs what really happened, or something else.
        let stolen = store.audit_keys().await.unwrap().remove(0);
        let stolen = keyring.open(CHECKPOINT_KEY_AAD, &stolen.sealed_private).unwrap();
        let stolen = NoteKey::from_seed(stolen.expose()).unwrap();
        let latest = store.zone(&z1).audit_tree().latest().await.unwrap().unwrap();
        let mut forged = Checkpoint::unverified(&latest.note).unwrap();
        forged.rotation = None;
        forged.size = 30;
        let line = json!({"zone_id": "z1", "checkpoint": forged.sign([&stolen]).unwrap()}).to_string();
        let vkeys = caracal_tlog::vkeys(&store).await.unwrap();
        let first_event = export.find(r#"{"zone_id":"z1","seq":1"#).unwrap();
        let with = format!("{}{line}\n{}", &export[..first_event], &export[first_event..]);
        for keys in [&vkeys[..], &vkeys[..1]] {
            let trust = Trust { keys: keys.to_vec().into(), ..Trust::default() };
            verify_export(Cursor::new(&export), None, &trust).unwrap();
            let found = match verify_export(Cursor::new(&with), None, &trust).unwrap_err() {
                VerifyError::Found(found) => found.flaw,
                other => panic!("{other}"),
            };
            assert_eq!(found, Flaw::Checkpoint(CheckpointError::Replaced { at: 20 }));
        }
    }

    async fn a_tree_has_what_others_appended_too(store: Store) {
        let (ingest, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        let other = crate::ingest(&store);
        ingest.commit(events(0..3)).await.unwrap();
        other.commit(events(3..5)).await.unwrap();
        ingest.commit(events(5..9)).await.unwrap();
        checkpoints.sign_all().await;
        ingest.commit(events(9..12)).await.unwrap();
        other.commit(events(12..13)).await.unwrap();
        checkpoints.sign_all().await;
        let trust = Trust {
            keys: caracal_tlog::vkeys(&store).await.unwrap().into(),
            ..Trust::default()
        };
        let ledger = verify_ledger(&store, &log("z1"), Some(&key()), &trust).await.unwrap();
        assert_eq!((ledger.head.seq(), ledger.checkpoints), (13, 2));
    }

    /// The tree has what came in, whatever the rows say meanwhile.
    async fn a_row_that_is_changed_before_it_is_signed_contradicts_what_is_signed(store: Store) {
        let (ingest, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        ingest.commit(events(0..20)).await.unwrap();
        edit(&store).await;
        checkpoints.sign_all().await;
        checkpoints.verify_again().await;
        let found = store.audit_findings().await.unwrap();
        let found: Vec<_> = found.iter().map(|(found, _)| (found.zone.as_str(), found.seq)).collect();
        assert_eq!(found, [("z1", 7)]);
    }

    async fn an_audit_that_cannot_sign_leaves_the_lead_to_one_that_can(store: Store) {
        let clock = Arc::new(TestClock::default());
        let bus = Bus::memory(clock.clone());
        let ingest = Arc::new(Ingest::new(store.clone(), Some(key()), clock));
        ingest.commit(events(0..3)).await.unwrap();
        let made = |sealing: Option<Sealing>, holder: &str| {
            let signs = sealing.is_some();
            let options = CheckpointOptions::default();
            let made = Checkpoints::new(ingest.clone(), bus.clone(), holder, sealing, options);
            assert_eq!(ingest.metrics().signs_checkpoints.get(), i64::from(signs));
            made
        };
        let stop = tokio_util::sync::CancellationToken::new();
        let blind = made(None, "without the key").run(stop.clone());
        let others = async {
            let seen = || ingest.metrics().tamper_checked.get();
            reached("the one without the key verifies", || seen() >= 3).await;
            let z1 = zone("z1");
            assert_eq!(store.zone(&z1).audit_tree().latest().await.unwrap(), None);
            let signing = made(Some(sealing()), "with the key").run(stop.clone());
            let signed = async {
                reached("the one with the key signs", || ingest.metrics().checkpoints.get() == 1).await;
                stop.cancel();
            };
            tokio::join!(signing, signed);
        };
        tokio::join!(blind, others);
    }
}
