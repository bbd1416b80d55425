//! Each way of tampering is found, and found where it was done.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use caracal_audit::{
    Finding, Flaw, Ingest, Sweep, VerifyError, export_chain, verify_export, verify_zone,
};
use caracal_bus::Bus;
use caracal_ledger::{Head, Why, chain};
use caracal_model::TestClock;
use caracal_store::{Sql, Store, on_each_engine, params, statements};

use crate::{event_of, events, ingest, key, zone};

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
async fn edit(store: &Store) {
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
        assert_eq!(export_chain(&store, &zone("z1"), &mut export).await.unwrap(), 20);
        assert_eq!(export_chain(&store, &zone("z2"), &mut export).await.unwrap(), 2);

        let key = key();
        let heads = verify_export(Cursor::new(&export), Some(&key), &[]).unwrap();
        let goes: Vec<_> = heads.iter().map(|(zone, head)| (zone.as_str(), head.seq())).collect();
        assert_eq!(goes, [("z1", 20), ("z2", 2)]);
        verify_export(Cursor::new(&export), Some(&key), &heads).unwrap();

        let text = String::from_utf8(export).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let verify = |lines: &[&str], kept: &[_]| {
            let broken = verify_export(Cursor::new(lines.join("\n")), Some(&key), kept);
            match broken.unwrap_err() {
                VerifyError::Found(found) => (found.zone.to_string(), found.seq, found.flaw),
                other => panic!("{other}"),
            }
        };
        let at = |zone: &str, seq, why| (zone.to_owned(), seq, Flaw::Chain(why));

        let edited = lines[6].replace("allow", "deny");
        let flipped = [&lines[..6], &[edited.as_str()], &lines[7..]].concat();
        assert_eq!(verify(&flipped, &[]), at("z1", 7, Why::Content));
        let dropped = [&lines[..6], &lines[7..]].concat();
        assert_eq!(verify(&dropped, &[]), at("z1", 7, Why::Gap { found: 8 }));
        let doubled = [&lines[..7], &lines[6..]].concat();
        assert_eq!(verify(&doubled, &[]), at("z1", 8, Why::Gap { found: 7 }));
        let swapped = [&lines[..6], &lines[7..8], &lines[6..7], &lines[8..]].concat();
        assert_eq!(verify(&swapped, &[]), at("z1", 7, Why::Gap { found: 8 }));
        let moved = lines[20].replace(r#""zone_id":"z2","seq""#, r#""zone_id":"z3","seq""#);
        let foreign = [&[moved.as_str()], &lines[..20]].concat();
        assert_eq!(verify(&foreign, &[]), ("z3".into(), 1, Flaw::Columns));
        assert_eq!(verify(&lines[..19], &heads), at("z1", 20, Why::Truncated));
        assert_eq!(verify(&lines[..20], &heads), at("z2", 1, Why::Truncated));

        let damaged = [&lines[..3], &["{\"zone_id\":1}"]].concat().join("\n");
        let line = verify_export(Cursor::new(damaged), Some(&key), &[]).unwrap_err();
        assert!(matches!(line, VerifyError::Line { line: 4, .. }), "{line}");
    }

    async fn a_sweep_continues_where_it_ended_and_counts_a_finding_once(store: Store) {
        let clock = Arc::new(TestClock::default());
        let bus = Bus::memory(clock.clone());
        let ingest = Arc::new(Ingest::new(store.clone(), Some(key()), clock.clone()));
        let mut sweep = Sweep::new(Arc::clone(&ingest), bus, "here");
        let metrics = ingest.metrics();
        ingest.commit(events(0..20)).await.unwrap();
        ingest.commit(vec![event_of("z2", "other")]).await.unwrap();
        sweep.sweep().await;
        assert_eq!(metrics.tamper_checked.get(), 21);
        ingest.commit(events(20..25)).await.unwrap();
        sweep.sweep().await;
        assert_eq!(metrics.tamper_checked.get(), 26);

        // What was verified is changed: the next full sweep finds it, and finds it once.
        edit(&store).await;
        sweep.sweep().await;
        assert_eq!(metrics.tamper_mismatch.get(), 0);
        for _ in 0..2 {
            clock.advance(Duration::from_secs(86_400));
            sweep.sweep().await;
            assert_eq!(metrics.tamper_mismatch.get(), 1);
        }
        let breaks = metrics.tamper_chain_breaks.get();
        assert_eq!((breaks, metrics.tamper_hmac_failures.get()), (0, 0));
    }

    async fn a_sweep_misses_no_zone_whose_head_is_gone(store: Store) {
        twenty(&store).await;
        tamper(&store, &sql::NO_HEAD, &[]).await;
        let ingest = Arc::new(ingest(&store));
        let bus = Bus::memory(Arc::new(TestClock::default()));
        Sweep::new(Arc::clone(&ingest), bus, "here").sweep().await;
        assert_eq!(ingest.metrics().tamper_chain_breaks.get(), 1);
    }
}
