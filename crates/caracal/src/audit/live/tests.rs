use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use caracal_crypto::NoteKey;
use caracal_ledger::checkpoint::origin;
use caracal_ledger::history::checkpoint_of;
use caracal_ledger::line::{Entry, Key, Signed};
use caracal_ledger::merkle::{Tree, leaf_hash};
use caracal_ledger::{Event, Head, chain};
use caracal_model::{EventId, Secret, Timestamp};
use caracal_net::{Limits, Server};
use http::StatusCode;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::web::Web;

/// What an API answers about the zone `z1`.
#[derive(Clone, Default)]
struct Tale {
    listed: bool,
    lines: Vec<Line>,
    newest: Option<&'static str>,
    checkpoint: Option<String>,
}

/// The longest page of a listing, as the API has it (spec: admin-api, ours beyond it).
fn most(path: &str) -> u32 {
    match path {
        "/v1/zones" => 500,
        _ => 1_000,
    }
}

async fn answer(State(tale): State<Arc<Tale>>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let asked = url::form_urlencoded::parse(query.as_bytes());
    for (name, value) in asked {
        let longest = most(request.uri().path());
        let is_allowed = |limit: u32| (1..=longest).contains(&limit);
        if name == "limit" && !value.parse().is_ok_and(is_allowed) {
            let refused = json!({"error": "invalid_query"});
            return (StatusCode::BAD_REQUEST, Json(refused)).into_response();
        }
    }
    let items = match request.uri().path() {
        "/v1/audit-logs" if tale.listed => json!([{"zone_id": "z1", "log": "events"}]),
        "/v1/zones" => json!([{"id": "z1"}]),
        "/v1/zones/z1/audit/ledger" => json!(tale.lines),
        "/v1/zones/z1/audit" => tale.newest.map_or(json!([]), |id| json!([{"id": id}])),
        "/v1/zones/z1/audit/checkpoints" => {
            let shown = |note: &String| json!([{"size": 3, "checkpoint": note}]);
            tale.checkpoint.as_ref().map_or(json!([]), shown)
        }
        _ => json!([]),
    };
    Json(json!({"items": items, "next_cursor": null})).into_response()
}

/// An API that tells this, until `stop`.
#[expect(
    clippy::disallowed_methods,
    reason = "the test is the owner of this loop"
)]
async fn telling(tale: Tale, stop: &CancellationToken) -> Reader {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(answer);
    let router = router.with_state(Arc::new(tale));
    let server = Server::new(listener, router, Limits::default());
    tokio::spawn(server.serve(stop.clone()));
    Reader {
        web: Web::new(),
        api,
        token: Secret::new("token".to_owned()),
    }
}

fn log() -> LogId {
    LogId::events(ZoneId::trusted("z1"))
}

/// Three events under one checkpoint, and the key.
fn truth() -> (Tale, Vkey) {
    let zone = ZoneId::trusted("z1");
    let key = NoteKey::from_seed(&[7; 32]).unwrap();
    let vkey = Vkey::new("caracal/a1", key.public()).unwrap();
    let (mut head, mut tree, mut entries) = (Head::GENESIS, Tree::default(), Vec::new());
    for id in ["e1", "e2", "e3"] {
        let (id, at) = (EventId::trusted(id), Timestamp::from_unix_seconds(1));
        let event = Event::new(
            id,
            zone.clone(),
            "token_exchange",
            "r",
            "allow",
            "complete",
            at,
        );
        let event = event.to_wire();
        let link = chain::append(Some(&head), &event, None);
        tree.append(leaf_hash(event.as_bytes()));
        head = link.head().clone();
        entries.push(Line::Entry(Entry {
            zone_id: Some(zone.clone()),
            log: LogKind::Events,
            seq: link.seq,
            event,
            content_sha256: link.content_sha256,
            chain_hash: link.chain_hash,
            chain_hmac: link.chain_hmac,
        }));
    }
    let note = checkpoint_of(origin(vkey.name(), &log()), &head, &tree);
    let note = note.sign([&key]).unwrap();
    let mut lines = vec![
        Line::Key(Key {
            zone_id: Some(zone.clone()),
            log: LogKind::Events,
            key: vkey.to_string(),
            change: None,
        }),
        Line::Checkpoint(Signed {
            zone_id: Some(zone),
            log: LogKind::Events,
            checkpoint: note.clone(),
            proof: None,
        }),
    ];
    lines.extend(entries);
    let tale = Tale {
        listed: true,
        lines,
        newest: Some("e3"),
        checkpoint: Some(note),
    };
    (tale, vkey)
}

async fn heard(tale: &Tale, trust: &Trust) -> Result<Reading, (u64, Flaw)> {
    let stop = CancellationToken::new();
    let reader = telling(tale.clone(), &stop).await;
    let log = log();
    let listed = logs(&reader, None).await.unwrap().listed.contains(&log);
    let verified = verify(&reader, &log, listed, None, trust).await.unwrap();
    stop.cancel();
    verified.map_err(|error| match error {
        VerifyError::Found(finding) => (finding.seq, finding.flaw),
        other => panic!("{other}"),
    })
}

#[tokio::test]
async fn an_api_that_keeps_back_what_it_has_is_caught_by_whatever_else_it_says() {
    let (truth, vkey) = truth();
    let kept = Checkpoint::unverified(truth.checkpoint.as_ref().unwrap()).unwrap();
    let trust = Trust {
        keys: vec![vkey].into(),
        ..Trust::default()
    };
    let Ok(Reading::Holds(sound)) = heard(&truth, &trust).await else {
        panic!("the truth holds");
    };
    assert_eq!((sound.head.seq(), sound.signed.unwrap().size), (3, 3));

    let nothing = |newest, checkpoint| Tale {
        lines: Vec::new(),
        newest,
        checkpoint,
        ..truth.clone()
    };
    let note = truth.checkpoint.clone();
    let cut = Err((1, Flaw::Cut { size: 3 }));
    let short = Err((1, Flaw::Chain(Why::Truncated)));
    assert_eq!(heard(&nothing(None, note.clone()), &trust).await, cut);
    assert_eq!(heard(&nothing(Some("e3"), None), &trust).await, short);
    // A log that is listed has an entry.
    let listed = nothing(None, None);
    assert_eq!(heard(&listed, &trust).await, short);
    // Whoever lies everywhere is not told as sound, and is caught by what was kept.
    let silent = Tale {
        listed: false,
        ..listed
    };
    assert_eq!(heard(&silent, &trust).await, Ok(Reading::Nothing));
    let kept = Trust {
        checkpoints: vec![kept],
        ..trust.clone()
    };
    assert_eq!(heard(&silent, &kept).await, cut);

    // The end is left out, with the checkpoint that covers it.
    let without = |leave_out: fn(&Line) -> bool| {
        let mut tale = truth.clone();
        tale.lines.retain(|line| !leave_out(line));
        tale
    };
    let end = without(|line| match line {
        Line::Entry(entry) => entry.seq == 3,
        line => matches!(line, Line::Checkpoint(_)),
    });
    assert_eq!(heard(&end, &trust).await, Err((3, Flaw::Cut { size: 3 })));
    let end = Tale {
        checkpoint: None,
        ..end
    };
    let short = Err((3, Flaw::Chain(Why::Truncated)));
    assert_eq!(heard(&end, &trust).await, short);
    // An entry that only mentions the newest is not the newest.
    let mut mentioned = end;
    mentioned.newest = Some("token_exchange");
    assert_eq!(heard(&mentioned, &trust).await, short);
    // Only the signature is.
    let unsigned = without(|line| matches!(line, Line::Checkpoint(_)));
    let unproven = Err((3, Flaw::Unproven { size: 3 }));
    assert_eq!(heard(&unsigned, &trust).await, unproven);
}

#[tokio::test]
async fn a_log_that_is_not_listed_is_read_all_the_same() {
    let stop = CancellationToken::new();
    for listed in [true, false] {
        let (tale, _) = truth();
        let reader = telling(Tale { listed, ..tale }, &stop).await;
        let found = logs(&reader, None).await.unwrap().all;
        let z1 = ZoneId::trusted("z1");
        for log in [log(), LogId::admin(z1), LogId::admin(ZoneId::trusted(""))] {
            assert!(found.contains(&log), "{log}");
        }
    }
    stop.cancel();
}
