//! Somebody with nothing but an export, the public key and one older checkpoint. Whoever tampers has
//! the database and `AUDIT_HMAC_KEY`, and takes away the later checkpoints that would contradict; only
//! the key of checkpoints is not theirs.

use std::io::Cursor;
use std::sync::Arc;

use caracal_audit::{Ingest, Trust, VerifyError, export_chain, verify_export};
use caracal_crypto::NoteKey;
use caracal_crypto::digest::hex_decode;
use caracal_ledger::note::NoteError;
use caracal_ledger::{Checkpoint, CheckpointError, Flaw, Head, Why, chain};
use caracal_model::{TestClock, ZoneId};
use caracal_store::{Param, Sql, Store, on_each_engine, params, statements};

use crate::verify::signing;
use crate::{event_of, key, log};

macro_rules! of {
    () => {
        "zone_no = (SELECT zone_no FROM audit_zones WHERE zone_id = $1)"
    };
}

statements! { mod sql {
    FLIP = concat!("UPDATE audit_events SET event = $2 WHERE ", of!(), " AND chain_seq = 7");
    DROP = concat!("DELETE FROM audit_events WHERE ", of!(), " AND chain_seq = $2");
    CUT = concat!("DELETE FROM audit_events WHERE ", of!(), " AND chain_seq > $2");
    MOVE = concat!("UPDATE audit_events SET chain_seq = $3 WHERE ", of!(), " AND chain_seq = $2");
    INSERT = concat!("INSERT INTO audit_events (zone_no, chain_seq, occurred_at, ingested_at, id,
                request_id, event_type, decision, application_id, agent_session_id,
                authority_record_id, labels, content_sha256, chain_hash, chain_hmac, event)
            SELECT zone_no, 26, occurred_at, ingested_at, $2, request_id, event_type, decision,
                application_id, agent_session_id, authority_record_id, labels, content_sha256,
                chain_hash, chain_hmac, event
            FROM audit_events WHERE ", of!(), " AND chain_seq = 7");
    REWRITE = concat!("UPDATE audit_events SET event = $3, content_sha256 = $4, chain_hash = $5
            WHERE ", of!(), " AND chain_seq = $2");
    HEAD = "UPDATE audit_heads SET chain_seq = $2, chain_hash = $3 WHERE zone_id = $1";
    FORGET = "DELETE FROM audit_checkpoints WHERE zone_id = $1 AND size > $2";
    FORGE = "UPDATE audit_checkpoints SET note = $2 WHERE zone_id = $1 AND size = 20";
} }

async fn does(store: &Store, statement: &Sql, params: &[Param<'_>]) {
    let mut tx = store.begin("tampering").await.unwrap();
    assert!(
        tx.execute(statement, params).await.unwrap() > 0,
        "{}",
        statement.name
    );
    tx.commit().await.unwrap();
}

fn bytes(hex: &str) -> Vec<u8> {
    hex_decode(hex).unwrap()
}

async fn made(ingest: &Ingest, zone: &str, range: std::ops::Range<usize>) {
    let texts = range.map(|n| event_of(zone, &format!("{zone}-{n:02}")));
    ingest.commit(texts.collect()).await.unwrap();
}

/// Takes the end away with its head and what was signed of it.
async fn rewind(store: &Store, zone: &str, to: i64) {
    let id = ZoneId::trusted(zone);
    let place = u64::try_from(to - 1).unwrap();
    let last = store
        .zone(&id)
        .audit()
        .chain(place, 1)
        .await
        .unwrap()
        .remove(0);
    does(store, &sql::CUT, &params![zone, to]).await;
    does(
        store,
        &sql::HEAD,
        &params![zone, to, bytes(&last.chain_hash)],
    )
    .await;
    does(store, &sql::FORGET, &params![zone, to]).await;
}

/// Says something else from the first event on, in a chain that holds.
async fn replace(store: &Store, zone: &str) {
    let id = ZoneId::trusted(zone);
    let mut head = Head::GENESIS;
    for row in store.zone(&id).audit().chain(0, 100).await.unwrap() {
        let text = row.event.replace("night shift", "day shift");
        let link = chain::append(Some(&head), &text, Some(&key()));
        let hashes = (bytes(&link.content_sha256), bytes(&link.chain_hash));
        let seq = i64::try_from(link.seq).unwrap();
        let rewritten = params![zone, seq, text.into_bytes(), hashes.0, hashes.1];
        does(store, &sql::REWRITE, &rewritten).await;
        head = link.head().clone();
    }
    does(store, &sql::FORGET, &params![zone, 0i64]).await;
}

async fn forge(store: &Store, zone: &str) {
    let id = ZoneId::trusted(zone);
    let stored = store
        .zone(&id)
        .audit_tree()
        .checkpoint(20)
        .await
        .unwrap()
        .unwrap();
    let mut forged = Checkpoint::unverified(&stored.note).unwrap();
    forged.root = [7; 32];
    let theirs = NoteKey::from_seed(&[9; 32]).unwrap();
    let note = forged.sign([&theirs]).unwrap();
    does(store, &sql::FORGE, &params![zone, &note]).await;
}

async fn tamper(store: &Store, zone: &str) {
    match zone {
        "flip" => {
            let id = ZoneId::trusted(zone);
            let row = store.zone(&id).audit().chain(6, 1).await.unwrap().remove(0);
            let text = row.event.replace("\"allow\"", "\"deny\"").into_bytes();
            does(store, &sql::FLIP, &params![zone, text]).await;
        }
        "drop" => does(store, &sql::DROP, &params![zone, 7i64]).await,
        "first" => does(store, &sql::DROP, &params![zone, 1i64]).await,
        "insert" => does(store, &sql::INSERT, &params![zone, &b"\0inserted"[..]]).await,
        "reorder" => {
            for (from, to) in [(7i64, 1_000i64), (8, 7), (1_000, 8)] {
                does(store, &sql::MOVE, &params![zone, from, to]).await;
            }
        }
        "truncate" => rewind(store, zone, 8).await,
        "fork" => {
            rewind(store, zone, 8).await;
            // The service itself goes on from there, after a restart.
            let texts = (0..17).map(|n| event_of(zone, &format!("anew-{n:02}")));
            let again = Ingest::new(store.clone(), Some(key()), Arc::new(TestClock::default()));
            assert_eq!(again.commit(texts.collect()).await.unwrap().inserted, 17);
        }
        "replace" => replace(store, zone).await,
        "forge" => forge(store, zone).await,
        _ => {}
    }
}

on_each_engine! {
    async fn every_way_of_tampering_shows_and_is_located(store: Store) {
        let (ingest, mut checkpoints) = signing(&store, Arc::new(TestClock::default()));
        let chained = |seq, why| Some((seq, Flaw::Chain(why)));
        let other = Flaw::Checkpoint(CheckpointError::Note(NoteError::OtherKey));
        let table = [
            ("none", None),
            ("flip", chained(7, Why::Content)),
            ("drop", chained(7, Why::Gap { found: 8 })),
            ("first", chained(1, Why::Gap { found: 2 })),
            ("insert", chained(26, Why::Content)),
            ("reorder", chained(7, Why::Link)),
            ("truncate", Some((9, Flaw::Cut { size: 10 }))),
            ("fork", Some((6, Flaw::Signed { size: 10 }))),
            ("replace", Some((1, Flaw::Signed { size: 10 }))),
            ("forge", Some((20, other))),
        ];
        for (from, to) in [(0, 5), (5, 10), (10, 20), (20, 25)] {
            for (zone, _) in &table {
                made(&ingest, zone, from..to).await;
            }
            if to != 25 {
                checkpoints.sign_all().await;
            }
        }
        let keys = caracal_tlog::vkeys(&store).await.unwrap();
        for (zone, expected) in table {
            let id = ZoneId::trusted(zone);
            let older = store.zone(&id).audit_tree().checkpoint(10).await.unwrap().unwrap();
            let older = Checkpoint::open(&older.note, &keys).unwrap();
            tamper(&store, zone).await;
            let mut export = Vec::new();
            export_chain(&store, &log(zone), &mut export).await.unwrap();
            let trust = Trust {
                keys: keys.clone().into(),
                checkpoints: vec![older],
                ..Trust::default()
            };
            let found = match verify_export(Cursor::new(export), None, &trust) {
                Ok(_) => None,
                Err(VerifyError::Found(found)) => Some((found.seq, found.flaw)),
                Err(error) => panic!("{zone}: {error}"),
            };
            assert_eq!(found, expected, "{zone}");
        }
    }
}
