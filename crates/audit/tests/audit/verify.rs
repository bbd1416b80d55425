//! Each way of tampering is found, and found where it was done.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use caracal_audit::{
    CheckpointOptions, Checkpoints, Finding, Ingest, Sealing, Trust, VerifyError, export_chain,
    verify_export, verify_ledger, verify_zone,
};
use caracal_bus::Bus;
use caracal_crypto::NoteKey;
use caracal_crypto::envelope::{Kek, Keyring};
use caracal_crypto::os::OsRng;
use caracal_ledger::{Checkpoint, Flaw, Head, Why, chain};
use caracal_model::TestClock;
use caracal_store::{Sql, Store, on_each_engine, params, statements};
use serde_json::json;

use crate::{KEY, event_of, events, ingest, key, log, zone};

/// `zone_no` of the zone that is tampered with.
macro_rules! z1 {
    () => {
        "zone_no = (SELECT zone_no FROM audit_zones WHERE zone_id = 'z1')"
    };
}

statements! { mod sql {
    EDIT = concat!("UPDATE audit_events SET event = $1 WHERE ", z1!(), " AND chain_seq = 7");
    EDIT_AND_HASH = concat!("UPDATE audit_events SET event = $1, content_sha256 = $2 WHERE ",
        z1!(), " AND chain_seq = 7");
    COLUMN = concat!("UPDATE audit_events SET decision = 'deny' WHERE ", z1!(),
        " AND chain_seq = 7");
    ID = concat!("UPDATE audit_events SET agent_session_id = $1 WHERE ", z1!(),
        " AND chain_seq = 7");
    LABELS = concat!("UPDATE audit_events SET labels = '' WHERE ", z1!(), " AND chain_seq = 7");
    DROP = concat!("DELETE FROM audit_events WHERE ", z1!(), " AND chain_seq = 7");
    FIRST = concat!("DELETE FROM audit_events WHERE ", z1!(), " AND chain_seq = 1");
    LAST = concat!("DELETE FROM audit_events WHERE ", z1!(), " AND chain_seq = 20");
    PARK = concat!("UPDATE audit_events SET chain_seq = 1000 WHERE ", z1!(), " AND chain_seq = 7");
    SHIFT = concat!("UPDATE audit_events SET chain_seq = 7 WHERE ", z1!(), " AND chain_seq = 8");
    UNPARK = concat!("UPDATE audit_events SET chain_seq = 8 WHERE ", z1!(),
        " AND chain_seq = 1000");
    COPY = concat!("INSERT INTO audit_events (zone_no, chain_seq, occurred_at, ingested_at, id,
                request_id, event_type, decision, application_id, agent_session_id,
                authority_record_id, labels, content_sha256, chain_hash, chain_hmac, event)
            SELECT zone_no, 21, occurred_at, ingested_at, $1, request_id, event_type, decision,
                application_id, agent_session_id, authority_record_id, labels, content_sha256,
                chain_hash, chain_hmac, event
            FROM audit_events WHERE ", z1!(), " AND chain_seq = 7");
    REWRITE = concat!("UPDATE audit_events SET event = $2, content_sha256 = $3, chain_hash = $4,
                   decision = 'deny' WHERE ", z1!(), " AND chain_seq = $1");
    HEAD = "UPDATE audit_heads SET chain_hash = $1 WHERE zone_id = 'z1'";
    BACK = "UPDATE audit_heads SET chain_seq = 19, chain_hash = $1 WHERE zone_id = 'z1'";
    NO_HEAD = "DELETE FROM audit_heads WHERE zone_id = 'z1'";
    TILE = pg: "UPDATE audit_tiles SET hashes = set_byte(hashes, 600, 255 - get_byte(hashes, 600))
                WHERE zone_id = 'z1' AND level = 0",
           lite: "UPDATE audit_tiles SET hashes = CAST(
                      substr(hashes, 33, 32) || substr(hashes, 1, 32) || substr(hashes, 65) AS BLOB)
                  WHERE zone_id = 'z1' AND level = 0";
    TREE_BACK = "UPDATE audit_trees SET size = 7 WHERE zone_id = 'z1'";
    TREE_FORTH = "UPDATE audit_trees SET size = 25 WHERE zone_id = 'z1'";
    NOTE = "UPDATE audit_checkpoints SET note = REPLACE(note, 'time 2', 'time 1')";
    NOTE_BACK = "UPDATE audit_checkpoints SET note = REPLACE(note, 'time 1', 'time 2')";
    OLD_NOTE = "UPDATE audit_checkpoints SET note = REPLACE(note, 'chain ', 'chaim ')
                WHERE size = 4";
    HIDE_NOTE = "UPDATE audit_checkpoints SET zone_id = 'hidden'";
    SHOW_NOTE = "UPDATE audit_checkpoints SET zone_id = 'z1'";
    HMAC = concat!("UPDATE audit_events SET chain_hmac = $1 WHERE ", z1!(), " AND chain_seq = 7");
} }

async fn tamper(store: &Store, statement: &Sql, params: &[caracal_store::Param<'_>]) {
    let mut tx = store.begin("tampering").await.unwrap();
    assert!(tx.execute(statement, params).await.unwrap() > 0);
    tx.commit().await.unwrap();
}

fn bytes(hex: &str) -> Vec<u8> {
    caracal_crypto::digest::hex_decode(hex).unwrap()
}

/// Turns event 7 into a deny; the text as it is written is one of the stored forms.
pub async fn edit(store: &Store) {
    let z1 = zone("z1");
    let row = store.zone(&z1).audit().chain(6, 1).await.unwrap().remove(0);
    let text = row.event.replace("\"allow\"", "\"deny\"").into_bytes();
    tamper(store, &sql::EDIT, &params![text]).await;
}

/// Where the chain of `z1` breaks, and why.
async fn finding(store: &Store) -> Option<(u64, Flaw)> {
    match verify_zone(store, &zone("z1"), Some(&key())).await {
        Ok(_) => None,
        Err(VerifyError::Found(Finding { seq, flaw, .. })) => Some((seq, flaw)),
        Err(other) => panic!("{other}"),
    }
}

fn broken(seq: u64, why: Why) -> Option<(u64, Flaw)> {
    Some((seq, Flaw::Chain(why)))
}

async fn twenty(store: &Store) {
    ingest(store).commit(events(0..20)).await.unwrap();
    assert_eq!(finding(store).await, None);
}

/// Rewrites the chain from event 7 on, as somebody could who has the table but not the key.
async fn rewrite(store: &Store) -> Head {
    let z1 = zone("z1");
    let rows = store.zone(&z1).audit().chain(0, 100).await.unwrap();
    let mut head = Head::stored(6, &rows[5].chain_hash).unwrap();
    for row in &rows[6..] {
        let text = row.event.replace("\"allow\"", "\"deny\"");
        let link = chain::append(Some(&head), &text, None);
        let seq = i64::try_from(link.seq).unwrap();
        let hashes = (bytes(&link.content_sha256), bytes(&link.chain_hash));
        let params = params![seq, text.into_bytes(), hashes.0, hashes.1];
        tamper(store, &sql::REWRITE, &params).await;
        head = link.head().clone();
    }
    tamper(store, &sql::HEAD, &params![bytes(&head.chain_hash())]).await;
    head
}

on_each_engine! {
    async fn an_edited_event_is_found(store: Store) {
        twenty(&store).await;
        edit(&store).await;
        assert_eq!(finding(&store).await, broken(7, Why::Content));
    }

    async fn an_edited_event_with_its_hash_is_found(store: Store) {
        twenty(&store).await;
        let z1 = zone("z1");
        let row = store.zone(&z1).audit().chain(6, 1).await.unwrap().remove(0);
        let text = row.event.replace("\"allow\"", "\"deny\"").into_bytes();
        let hash = caracal_crypto::digest::sha256(&text).to_vec();
        tamper(&store, &sql::EDIT_AND_HASH, &params![text, hash]).await;
        assert_eq!(finding(&store).await, broken(7, Why::Link));
    }

    async fn a_column_that_contradicts_its_event_is_found(store: Store) {
        twenty(&store).await;
        tamper(&store, &sql::COLUMN, &[]).await;
        assert_eq!(finding(&store).await, Some((7, Flaw::Columns)));
    }

    async fn a_column_that_stands_for_its_text_is_found(store: Store) {
        twenty(&store).await;
        tamper(&store, &sql::ID, &params![b"\0another".to_vec()]).await;
        assert_eq!(finding(&store).await, broken(7, Why::Content));
    }

    async fn emptied_labels_are_found(store: Store) {
        twenty(&store).await;
        tamper(&store, &sql::LABELS, &[]).await;
        assert_eq!(finding(&store).await, Some((7, Flaw::Columns)));
    }

    async fn a_dropped_event_is_found(store: Store) {
        twenty(&store).await;
        tamper(&store, &sql::DROP, &[]).await;
        assert_eq!(finding(&store).await, broken(7, Why::Gap { found: 8 }));
    }

    async fn a_dropped_beginning_is_found(store: Store) {
        twenty(&store).await;
        tamper(&store, &sql::FIRST, &[]).await;
        assert_eq!(finding(&store).await, broken(1, Why::Gap { found: 2 }));
    }

    async fn a_dropped_end_is_found_against_the_head(store: Store) {
        twenty(&store).await;
        tamper(&store, &sql::LAST, &[]).await;
        assert_eq!(finding(&store).await, broken(20, Why::Truncated));
    }

    async fn an_exchange_of_two_events_is_found(store: Store) {
        twenty(&store).await;
        for statement in [&sql::PARK, &sql::SHIFT, &sql::UNPARK] {
            tamper(&store, statement, &[]).await;
        }
        assert_eq!(finding(&store).await, broken(7, Why::Link));
    }

    async fn a_copied_event_at_the_end_is_found(store: Store) {
        twenty(&store).await;
        tamper(&store, &sql::COPY, &params![b"\0forged".to_vec()]).await;
        assert_eq!(finding(&store).await, broken(21, Why::Link));
    }

    async fn a_code_of_another_hand_is_found(store: Store) {
        twenty(&store).await;
        tamper(&store, &sql::HMAC, &params![vec![7_u8; 32]]).await;
        assert_eq!(finding(&store).await, broken(7, Why::Author));
    }

    async fn a_chain_that_was_rewritten_with_its_head_is_found_by_the_key(store: Store) {
        twenty(&store).await;
        let head = rewrite(&store).await;
        assert_eq!(finding(&store).await, broken(7, Why::Author));
        // Without the key it holds: this is what the key is for.
        let without = verify_zone(&store, &zone("z1"), None).await.unwrap();
        assert_eq!(without, head);
    }

    async fn a_head_that_was_moved_or_removed_is_found(store: Store) {
        twenty(&store).await;
        let z1 = zone("z1");
        let rows = store.zone(&z1).audit().chain(18, 1).await.unwrap();
        tamper(&store, &sql::BACK, &params![bytes(&rows[0].chain_hash)]).await;
        assert_eq!(finding(&store).await, broken(19, Why::Head));
        tamper(&store, &sql::NO_HEAD, &[]).await;
        assert_eq!(finding(&store).await, broken(0, Why::Head));
    }

    async fn a_zone_without_events_verifies(store: Store) {
        assert_eq!(finding(&store).await, None);
        store.ping().await.unwrap();
    }

    async fn verifying_while_others_append_finds_nothing(store: Store) {
        let writing = async {
            let ingest = ingest(&store);
            for batch in events(0..600).chunks(20) {
                ingest.commit(batch.to_vec()).await.unwrap();
            }
        };
        let checking = async {
            for _ in 0..20 {
                verify_zone(&store, &zone("z1"), Some(&key())).await.unwrap();
            }
        };
        futures_util::future::join(writing, checking).await;
    }

    async fn an_export_verifies_on_its_own_and_shows_every_change(store: Store) {
        let ingest = ingest(&store);
        ingest.commit(events(0..20)).await.unwrap();
        ingest.commit(vec![event_of("z2", "other-1"), event_of("z2", "other-2")]).await.unwrap();
        let mut export = Vec::new();
        assert_eq!(export_chain(&store, &log("z1"), &mut export).await.unwrap(), 20);
        assert_eq!(export_chain(&store, &log("z2"), &mut export).await.unwrap(), 2);

        let key = key();
        let none = Trust::default();
        let sound = verify_export(Cursor::new(&export), Some(&key), &none).unwrap();
        let heads = sound.iter().map(|(log, sound)| (log.zone().clone(), sound.head.clone()));
        let heads = Trust { heads: heads.collect(), ..Trust::default() };
        let goes: Vec<_> = heads.heads.iter().map(|(zone, head)| (zone.as_str(), head.seq())).collect();
        assert_eq!(goes, [("z1", 20), ("z2", 2)]);
        verify_export(Cursor::new(&export), Some(&key), &heads).unwrap();

        let text = String::from_utf8(export).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let verify = |lines: &[&str], kept: &Trust| {
            let broken = verify_export(Cursor::new(lines.join("\n")), Some(&key), kept);
            match broken.unwrap_err() {
                VerifyError::Found(found) => (found.log.key().to_string(), found.seq, found.flaw),
                other => panic!("{other}"),
            }
        };
        let at = |zone: &str, seq, why| (zone.to_owned(), seq, Flaw::Chain(why));

        let edited = lines[6].replace("allow", "deny");
        let flipped = [&lines[..6], &[edited.as_str()], &lines[7..]].concat();
        assert_eq!(verify(&flipped, &none), at("z1", 7, Why::Content));
        let dropped = [&lines[..6], &lines[7..]].concat();
        assert_eq!(verify(&dropped, &none), at("z1", 7, Why::Gap { found: 8 }));
        let doubled = [&lines[..7], &lines[6..]].concat();
        assert_eq!(verify(&doubled, &none), at("z1", 8, Why::Gap { found: 7 }));
        let swapped = [&lines[..6], &lines[7..8], &lines[6..7], &lines[8..]].concat();
        assert_eq!(verify(&swapped, &none), at("z1", 7, Why::Gap { found: 8 }));
        let moved = lines[20].replace(r#""zone_id":"z2","seq""#, r#""zone_id":"z3","seq""#);
        let foreign = [&[moved.as_str()], &lines[..20]].concat();
        assert_eq!(verify(&foreign, &none), ("z3".into(), 1, Flaw::Columns));
        assert_eq!(verify(&lines[..19], &heads), at("z1", 20, Why::Truncated));
        assert_eq!(verify(&lines[..20], &heads), at("z2", 1, Why::Truncated));

        let damaged = [&lines[..3], &["{\"zone_id\":1}"]].concat().join("\n");
        let line = verify_export(Cursor::new(damaged), Some(&key), &none).unwrap_err();
        assert!(matches!(line, VerifyError::Line { line: 4, .. }), "{line}");
    }

    async fn what_was_verified_is_verified_again_and_a_finding_counts_once(store: Store) {
        let clock = Arc::new(TestClock::default());
        let (ingest, mut checkpoints) = signing(&store, clock.clone());
        let metrics = ingest.metrics();
        ingest.commit(events(0..20)).await.unwrap();
        ingest.commit(vec![event_of("z2", "other")]).await.unwrap();
        checkpoints.sign_all().await;
        assert_eq!((metrics.tamper_checked.get(), metrics.checkpoints.get()), (21, 2));
        ingest.commit(events(20..25)).await.unwrap();
        checkpoints.sign_all().await;
        assert_eq!((metrics.tamper_checked.get(), metrics.checkpoints.get()), (26, 3));
        checkpoints.verify_again().await;
        assert_eq!(metrics.tamper_checked.get(), 26 + 26);

        // What was verified is changed: verifying again finds it, and counts it once.
        edit(&store).await;
        for _ in 0..2 {
            checkpoints.verify_again().await;
            assert_eq!(metrics.tamper_mismatch.get(), 1);
        }
        let breaks = metrics.tamper_chain_breaks.get();
        assert_eq!((breaks, metrics.tamper_hmac_failures.get()), (0, 0));
        let found = store.audit_findings().await.unwrap();
        let found: Vec<_> = found.iter().map(|(found, _)| (found.zone.as_str(), found.seq)).collect();
        assert_eq!(found, [("z1", 7)]);
    }

    async fn no_zone_is_missed_whose_head_is_gone(store: Store) {
        twenty(&store).await;
        let (ingest, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        checkpoints.sign_all().await;
        tamper(&store, &sql::NO_HEAD, &[]).await;
        checkpoints.verify_again().await;
        assert_eq!(ingest.metrics().tamper_chain_breaks.get(), 1);
    }

    async fn a_checkpoint_is_due_by_time_by_number_and_by_wish(store: Store) {
        let clock = Arc::new(TestClock::default());
        let (ingest, mut checkpoints) = signing(&store, clock.clone());
        let z1 = zone("z1");
        let sizes = async || {
            let all = store.zone(&z1).audit_tree().above(0, 100).await.unwrap();
            all.iter().map(|one| one.size).collect::<Vec<_>>()
        };
        ingest.commit(events(0..3)).await.unwrap();
        checkpoints.sign_due().await;
        assert_eq!(sizes().await, [3], "the first is due at once");
        ingest.commit(events(3..5)).await.unwrap();
        checkpoints.sign_due().await;
        assert_eq!(sizes().await, [3]);
        clock.advance(Duration::from_secs(3_600));
        checkpoints.sign_due().await;
        checkpoints.sign_due().await;
        assert_eq!(sizes().await, [3, 5]);
        ingest.commit(events(5..55)).await.unwrap();
        checkpoints.sign_due().await;
        assert_eq!(sizes().await, [3, 5, 55]);
        ingest.commit(events(55..56)).await.unwrap();
        store.zone(&z1).audit_tree().wish().await.unwrap();
        checkpoints.sign_due().await;
        ingest.commit(events(56..57)).await.unwrap();
        checkpoints.sign_due().await;
        assert_eq!(sizes().await, [3, 5, 55, 56], "a wish is for one checkpoint");
        let covered = store.audit_checkpointed().await.unwrap();
        assert_eq!(covered.into_iter().collect::<Vec<_>>(), [(z1.clone(), 56)]);
    }

    async fn what_another_one_left_unsigned_is_signed_on_the_way_to_its_end(store: Store) {
        ingest(&store).commit(events(0..2_500)).await.unwrap();
        let (_, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        checkpoints.sign_due().await;
        let all = store.zone(&zone("z1")).audit_tree().above(0, 100).await.unwrap();
        assert_eq!(all.iter().map(|one| one.size).collect::<Vec<_>>(), [1_000, 2_000, 2_500]);
    }

    async fn an_orderly_stop_signs_what_is_not_signed_yet(store: Store) {
        let (ingest, checkpoints) = signing(&store, Arc::new(TestClock::default()));
        ingest.commit(events(0..3)).await.unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        stop.cancel();
        checkpoints.run(stop).await;
        let latest = store.zone(&zone("z1")).audit_tree().latest().await.unwrap();
        assert_eq!(latest.unwrap().size, 3);
    }

    async fn a_checkpoint_that_was_changed_is_found_when_it_is_verified_again(store: Store) {
        let (ingest, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        for first in [0, 4] {
            ingest.commit(events(first..first + 4)).await.unwrap();
            checkpoints.sign_all().await;
        }
        tamper(&store, &sql::OLD_NOTE, &[]).await;
        checkpoints.verify_again().await;
        let found = store.audit_findings().await.unwrap();
        let found: Vec<_> = found.iter().map(|(found, _)| found.seq).collect();
        assert_eq!((found, ingest.metrics().tamper_hmac_failures.get()), (vec![4], 1));
    }

    async fn nothing_is_signed_that_does_not_continue_what_was_signed(store: Store) {
        let (ingest, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        let metrics = ingest.metrics();
        ingest.commit(events(0..20)).await.unwrap();
        checkpoints.sign_all().await;
        ingest.commit(events(20..25)).await.unwrap();
        let spoil = async |checkpoints: &mut Checkpoints, statement: &Sql, repair: &Sql| {
            let before = store.audit_findings().await.unwrap().len();
            tamper(&store, statement, &[]).await;
            checkpoints.sign_all().await;
            assert_eq!(metrics.checkpoints.get(), 1, "{}", statement.name);
            assert_eq!(store.audit_findings().await.unwrap().len(), before + 1, "{}", statement.name);
            tamper(&store, repair, &[]).await;
        };
        spoil(&mut checkpoints, &sql::TILE, &sql::TILE).await;
        spoil(&mut checkpoints, &sql::TREE_BACK, &sql::TREE_FORTH).await;
        spoil(&mut checkpoints, &sql::NOTE, &sql::NOTE_BACK).await;
        spoil(&mut checkpoints, &sql::HIDE_NOTE, &sql::SHOW_NOTE).await;
        checkpoints.sign_all().await;
        assert_eq!(metrics.checkpoints.get(), 2);
    }

    async fn a_ledger_that_was_rewritten_with_the_key_contradicts_a_kept_checkpoint(store: Store) {
        let (ingest, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        ingest.commit(events(0..10)).await.unwrap();
        checkpoints.sign_all().await;
        ingest.commit(events(10..20)).await.unwrap();
        checkpoints.sign_all().await;
        let z1 = zone("z1");
        let vkey = caracal_tlog::vkeys(&store).await.unwrap().remove(0);
        let stored = store.zone(&z1).audit_tree().above(0, 10).await.unwrap();
        let kept: Vec<_> = stored.iter().map(|one| Checkpoint::open(&one.note, std::slice::from_ref(&vkey)).unwrap()).collect();
        let trust = |kept: &[Checkpoint]| Trust {
            keys: vec![vkey.clone()].into(),
            checkpoints: kept.to_vec(),
            heads: Vec::new(),
        };
        let sound = verify_ledger(&store, &log("z1"), Some(&key()), &trust(&kept)).await.unwrap();
        assert_eq!((sound.head.seq(), sound.signed.unwrap().size, sound.checkpoints), (20, 20, 4));

        // Everything that the deployment holds is made anew, except what others kept.
        let mut export = Vec::new();
        export_chain(&store, &log("z1"), &mut export).await.unwrap();
        let honest = String::from_utf8(export).unwrap();
        verify_export(Cursor::new(&honest), None, &trust(&kept)).unwrap();
        let rewritten = rechained(&honest, |seq, event| match seq {
            12.. => event.replace("allow", "deny"),
            _ => event,
        });
        let alone = verify_export(Cursor::new(&rewritten), Some(&key()), &Trust::default()).unwrap();
        assert_eq!(alone[0].1.head.seq(), 20, "it fits itself");
        let found = |text: &str, kept: &[Checkpoint]| {
            match verify_export(Cursor::new(text), Some(&key()), &trust(kept)).unwrap_err() {
                VerifyError::Found(found) => (found.seq, found.flaw),
                other => panic!("{other}"),
            }
        };
        assert_eq!(found(&rewritten, &kept), (11, Flaw::Signed { size: 20 }));
        let cut: String = rewritten.lines().take(9).flat_map(|line| [line, "\n"]).collect();
        assert_eq!(found(&cut, &kept[..1]), (10, Flaw::Cut { size: 10 }));
        // A checkpoint of its own does not help: it is of another key, or it is no longer what was signed.
        let forger = NoteKey::generate(&OsRng).unwrap();
        let mut forged = kept[1].clone();
        forged.root = [7; 32];
        let forged = [forged.sign([&forger]).unwrap(), stored[1].note.replace("\n20\n", "\n19\n")];
        for (note, size) in forged.into_iter().zip([20, 19]) {
            let line = json!({"zone_id": "z1", "checkpoint": note}).to_string();
            let (seq, flaw) = found(&format!("{line}\n{honest}"), &[]);
            assert!(seq == size && matches!(flaw, Flaw::Checkpoint(_)), "{seq}: {flaw}");
        }
    }
}

/// What opens the keys of checkpoints.
pub fn sealing() -> Sealing {
    let kek = Kek::from_hex(&KEY.replace("0123", "93af")).unwrap();
    Sealing {
        keyring: Arc::new(Keyring::new(kek, None)),
        rng: Arc::new(OsRng),
    }
}

/// A ledger and what signs it: every 50 events, or every hour.
pub fn signing(store: &Store, clock: Arc<TestClock>) -> (Arc<Ingest>, Checkpoints) {
    let bus = Bus::memory(clock.clone());
    let ingest = Arc::new(Ingest::new(store.clone(), Some(key()), clock));
    let options = CheckpointOptions {
        events: 50,
        ..CheckpointOptions::default()
    };
    let checkpoints = Checkpoints::new(ingest.clone(), bus, "here", Some(sealing()), options);
    (ingest, checkpoints)
}

/// The events of an export with other texts and a chain of their own, made with the key; no
/// checkpoints.
fn rechained(export: &str, text: impl Fn(u64, String) -> String) -> String {
    let mut head = None;
    let mut out = String::new();
    for line in export.lines() {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        let Some(seq) = line["seq"].as_u64() else {
            continue;
        };
        let wire = text(seq, line["event"].as_str().unwrap().to_owned());
        let link = chain::append(head.as_ref(), &wire, Some(&key()));
        head = Some(link.head().clone());
        line["event"] = json!(wire);
        line["content_sha256"] = json!(link.content_sha256);
        line["chain_hash"] = json!(link.chain_hash);
        line["chain_hmac"] = json!(link.chain_hmac);
        out.push_str(&format!("{line}\n"));
    }
    out
}
