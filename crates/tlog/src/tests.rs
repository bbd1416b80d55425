use super::*;
use caracal_crypto::envelope::{Kek, Keyring};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_ledger::history::checkpoint_of;
use caracal_ledger::merkle::{leaf_hash, verify_consistency, verify_inclusion};
use caracal_ledger::{Checkpoint, Head};
use caracal_model::{Clock as _, ZoneId};
use caracal_store::on_each_engine;

const KEK: &str = "8f3d9a712c45e6b0d18f2a4c6e9b3d57a1c4f8020e6a9c3d5b7f1a2c4e6d8b90";

fn leaf(n: u64) -> Hash {
    leaf_hash(&n.to_be_bytes())
}

fn keyring() -> Keyring {
    Keyring::new(Kek::from_hex(KEK).unwrap(), None)
}

/// Grows the tree of the zone by this many leaves, in one step.
async fn grow(log: &ZoneLog<'_>, by: u64) {
    let state = log.rows().state().await.unwrap();
    let (size, hash) = state.map_or((0, "none".to_owned()), |state| {
        (state.size, state.chain_hash)
    });
    let mut growth = log.growth(size).await.unwrap();
    (size..size + by).for_each(|n| growth.append(leaf(n)));
    assert!(
        log.store((size, &hash), growth, &format!("at {}", size + by))
            .await
            .unwrap()
    );
}

on_each_engine! {
    async fn a_stored_tree_proves_at_every_size_that_it_had(store: Store) {
        let zone = LogId::events(ZoneId::trusted("z1"));
        let log = ZoneLog::of(&store, &zone);
        let mut whole = Tree::default();
        let mut trees = vec![whole.clone()];
        let sizes = [1u64, 255, 1, 300, 700];
        for by in sizes {
            grow(&log, by).await;
            (whole.size()..whole.size() + by).for_each(|n| whole.append(leaf(n)));
            assert_eq!(log.tree(whole.size()).await.unwrap(), whole);
            trees.push(whole.clone());
        }
        let (size, root) = (whole.size(), whole.root());
        for old in &trees {
            let proof = log.consistency(old.size(), size).await.unwrap();
            let verified = verify_consistency((old.size(), &old.root()), (size, &root), &proof);
            assert_eq!(verified, Ok(()), "{}", old.size());
        }
        for index in [0, 255, 256, 700, size - 1] {
            let proof = log.inclusion(index, size).await.unwrap();
            assert_eq!(verify_inclusion(&leaf(index), index, size, &proof, &root), Ok(()));
        }
        assert_eq!(log.leaves(254..258).await.unwrap(), [leaf(254), leaf(255), leaf(256), leaf(257)]);
        let short = TileId { level: 0, index: 2 };
        let tile = log.tile(short, 513).await.unwrap().unwrap();
        assert_eq!(tile, leaf(512));
        assert_eq!(log.tile(TileId { level: 0, index: 3 }, 513).await.unwrap(), None);
        assert!(matches!(log.tree(size + 1).await, Err(TlogError::Tile(_))));
    }

    async fn two_who_grow_a_tree_at_once_do_not_both_succeed(store: Store) {
        let zone = LogId::events(ZoneId::trusted("z1"));
        let log = ZoneLog::of(&store, &zone);
        grow(&log, 3).await;
        let (mut one, mut two) = (log.growth(3).await.unwrap(), log.growth(3).await.unwrap());
        one.append(leaf(3));
        two.append(leaf(9));
        assert!(log.store((3, "at 3"), one, "at 4").await.unwrap());
        assert!(!log.store((3, "at 3"), two, "also at 4").await.unwrap());
        assert_eq!(log.leaves(3..4).await.unwrap(), [leaf(3)]);
    }

    async fn a_deployment_has_one_key_and_one_name(store: Store) {
        let clock = SystemClock::new();
        let first = Signer::open(&store, &keyring(), &OsRng, &clock, Some("caracal.example/a")).await.unwrap();
        let again = Signer::open(&store, &keyring(), &OsRng, &clock, Some("other")).await.unwrap();
        let vkey = first.vkey().unwrap().clone();
        assert_eq!(again.vkey(), Some(&vkey));
        assert_eq!(vkeys(&store).await.unwrap(), std::slice::from_ref(&vkey));
        let zone = LogId::events(ZoneId::trusted("z1"));
        assert_eq!(first.origin(&zone), "caracal.example/a/z1");
        let checkpoint = checkpoint_of(first.origin(&zone), &Head::GENESIS, &Tree::default());
        let signed = again.sign(checkpoint, None).unwrap();
        assert_eq!(Checkpoint::open(&signed.note, &[vkey]), Ok(signed.checkpoint));
    }

    async fn a_key_that_does_not_open_is_said(store: Store) {
        let clock = SystemClock::new();
        Signer::open(&store, &keyring(), &OsRng, &clock, None).await.unwrap();
        let other = Keyring::new(Kek::from_hex(&KEK.replace("8f3d", "7f3d")).unwrap(), None);
        let refused = Signer::open(&store, &other, &OsRng, &clock, None).await;
        assert!(matches!(refused, Err(TlogError::Key(_))));
    }

    async fn a_log_changes_keys_with_a_checkpoint_that_old_and_new_sign(store: Store) {
        let clock = SystemClock::new();
        let open = async || Signer::open(&store, &keyring(), &OsRng, &clock, None).await.unwrap();
        let turn = async || rotate(&store, &keyring(), &OsRng, &clock).await.unwrap();
        assert!(turn().await.is_none(), "there is no key yet");
        let first = open().await;
        let zone = LogId::events(ZoneId::trusted("z1"));
        let sized = |size: u64| {
            let mut tree = Tree::default();
            (0..size).for_each(|n| tree.append(leaf(n)));
            checkpoint_of(first.origin(&zone), &Head::GENESIS, &tree)
        };
        let old = first.sign(sized(1), None).unwrap().note;
        let (made, second) = turn().await.unwrap();
        assert_eq!(made.id, "2");
        assert!(!first.is_current(&store).await.unwrap());
        // A log that nothing happens in skips a key.
        let (_, third) = turn().await.unwrap();
        let signer = open().await;
        assert!(signer.is_current(&store).await.unwrap());
        let vkeys = vkeys(&store).await.unwrap();
        assert_eq!(vkeys, [first.vkey().unwrap().clone(), second, third.clone()]);
        let Signed { checkpoint: changed, note: change, is_unproven } = signer.sign(sized(2), Some(&old)).unwrap();
        assert!(!is_unproven);
        let rotation = changed.rotation.unwrap();
        assert_eq!((&rotation.from, &rotation.to), (&vkeys[0], &third));
        assert_eq!(Checkpoint::signers(&change, &vkeys).len(), 3);
        let after = signer.sign(sized(3), Some(&change)).unwrap().note;
        assert_eq!(Checkpoint::signers(&after, &vkeys), [&third]);
        let new = signer.sign(sized(1), None).unwrap();
        assert!(new.checkpoint.rotation.is_none() && !new.is_unproven, "a new log has nothing to tell");
    }

    async fn a_private_half_is_destroyed_once_every_log_has_changed_keys(store: Store) {
        let clock = SystemClock::new();
        let open = async || Signer::open(&store, &keyring(), &OsRng, &clock, None).await.unwrap();
        let turn = async || rotate(&store, &keyring(), &OsRng, &clock).await.unwrap().unwrap();
        let forget = async |after: u64| {
            let later = clock.now().plus(std::time::Duration::from_secs(after));
            forget_replaced(&store, later).await.unwrap()
        };
        let [z1, z2] = ["z1", "z2"].map(|zone| LogId::events(ZoneId::trusted(zone)));
        let grown = async |log: &LogId, signer: &Signer| -> Signed {
            let log = (ZoneLog::of(&store, log), signer.origin(log));
            grow(&log.0, 1).await;
            let latest = log.0.rows().latest().await.unwrap();
            let size = latest.as_ref().map_or(1, |latest| latest.size + 1);
            let checkpoint = checkpoint_of(log.1, &Head::GENESIS, &log.0.tree(size).await.unwrap());
            let signed = signer.sign(checkpoint, latest.as_ref().map(|latest| latest.note.as_str())).unwrap();
            let kept = AuditCheckpoint { size, note: signed.note.clone(), made_at: clock.now() };
            assert!(log.0.rows().sign(&kept).await.unwrap());
            signed
        };
        let first = open().await;
        for log in [&z1, &z2] {
            grown(log, &first).await;
        }
        assert!(forget(9_999).await.is_empty(), "the only key signs");
        turn().await;
        let second = open().await;
        grown(&z1, &second).await;
        assert!(forget(9_999).await.is_empty(), "the other log is of the first key still");
        turn().await;
        let third = open().await;
        assert!(!grown(&z2, &third).await.is_unproven);
        assert!(forget(60).await.is_empty(), "somebody may have the old key open");
        // The first log is of the second key.
        assert_eq!(forget(9_999).await, ["1"]);
        assert!(forget(9_999).await.is_empty());
        assert!(!third.is_current(&store).await.unwrap());
        let third = open().await;
        assert!(!grown(&z1, &third).await.is_unproven, "the second key was there");
        assert_eq!(forget(9_999).await, ["2"]);
        let listed = list(&store).await.unwrap();
        let private: Vec<_> = listed.iter().map(|(key, _)| key.has_private()).collect();
        assert_eq!(private, [false, false, true]);
        assert_eq!(vkeys(&store).await.unwrap(), third.vkeys(), "what they signed still verifies");
    }

    async fn a_checkpoint_after_a_key_that_is_gone_is_signed_and_said_to_prove_no_change(store: Store) {
        let clock = SystemClock::new();
        let open = async || Signer::open(&store, &keyring(), &OsRng, &clock, None).await;
        let first = open().await.unwrap();
        let zone = LogId::events(ZoneId::trusted("z1"));
        let checkpoint = |signer: &Signer| checkpoint_of(signer.origin(&zone), &Head::GENESIS, &Tree::default());
        let old = first.sign(checkpoint(&first), None).unwrap().note;
        rotate(&store, &keyring(), &OsRng, &clock).await.unwrap();
        assert!(store.destroy_audit_key("1").await.unwrap());
        let signer = open().await.unwrap();
        let signed = signer.sign(checkpoint(&signer), Some(&old)).unwrap();
        assert!(signed.is_unproven && signed.checkpoint.rotation.is_none());
        assert_eq!(Checkpoint::signers(&signed.note, &signer.vkeys()), [signer.vkey().unwrap()]);
        assert!(!signer.sign(checkpoint(&signer), Some(&signed.note)).unwrap().is_unproven);
        let foreign = old.replace("caracal/", "other/");
        assert!(signer.sign(checkpoint(&signer), Some(&foreign)).unwrap().is_unproven);
    }

    async fn of_two_rotations_at_once_one_is_refused(store: Store) {
        let clock = SystemClock::new();
        Signer::open(&store, &keyring(), &OsRng, &clock, None).await.unwrap();
        let keyring = keyring();
        let turn = || rotate(&store, &keyring, &OsRng, &clock);
        let made = tokio::join!(turn(), turn(), turn());
        let made = [made.0, made.1, made.2].map(|made| made.unwrap().map(|(key, _)| key.id));
        let mut ids: Vec<_> = made.into_iter().flatten().collect();
        ids.sort();
        ids.dedup();
        let stored: Vec<_> = store.audit_keys().await.unwrap().into_iter().map(|key| key.id).collect();
        assert_eq!(stored[1..], ids[..], "each that was answered is there, once");
    }
}
