//! What proves a log to others: receipts, checkpoints, consistency, the log itself in lines that verify
//! on their own, and its tree as C2SP tlog-tiles has it. The prefixes are `/v1/zones/{zone}/audit` for
//! the events of a zone, `/v1/zones/{zone}/admin-audit` for what administrators did in it, and
//! `/v1/admin-audit` for what they did outside of zones.
//!
//! A receipt, a bundle and a line hold the exact text of an entry, unredacted: with anything left out, nobody could
//! recompute the hash. Everything is checked before it is handed out: a proof that does not verify
//! would only make an auditor doubt the wrong thing.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, RawQuery, State};
use axum::response::IntoResponse;
use caracal_ledger::checkpoint::origin;
use caracal_ledger::line::named;
use caracal_ledger::merkle::leaf_hash;
use caracal_ledger::receipt::encode;
use caracal_ledger::tile::{TileId, WIDTH};
use caracal_ledger::{Consistency, Receipt, Vkey};
use caracal_model::id::is_id;
use caracal_model::{LogId, LogKind, ZoneId};
use caracal_store::admin_audit::deployment;
use caracal_store::audit_trees::AuditCheckpoint;
use caracal_tlog::pages::Cursor;
use caracal_tlog::{TlogError, ZoneLog};
use http::header;
use http::request::Parts;
use serde_json::json;

use crate::admin_audit;
use crate::failure::Failure;
use crate::query::Query;
use crate::service::Api;
use crate::wire::{self, Answer, At, Caller};

/// Seconds within which a checkpoint that was wished for is made, usually.
const SOON: u32 = 2;
/// The level of the events themselves.
const ENTRIES: &str = "entries";
/// Bytes of a hash.
const HASH: usize = 32;
const PARAMS: &str = "an id is 1 to 128 letters, digits, `_.-:`";
const TEXT: &str = "text/plain; charset=utf-8";

impl From<TlogError> for Failure {
    fn from(error: TlogError) -> Self {
        match error {
            TlogError::Store(error) => error.into(),
            error => broken(&error),
        }
    }
}

/// What is stored does not prove what it should. That is for the operators, not for the caller.
fn broken(error: &dyn std::fmt::Display) -> Failure {
    tracing::error!(%error, "the ledger cannot be proven; run `caracal audit verify`");
    Failure::internal()
}

/// The keys of the deployment, the newest last.
async fn keys(api: &Api) -> Result<Vec<Vkey>, Failure> {
    let keys = caracal_tlog::vkeys(&api.store).await?;
    if keys.is_empty() {
        return Err(Failure::absent(
            "checkpoints_unavailable",
            "this deployment signs no checkpoints yet: run the role audit with SECRET_STORE_KEK",
        ));
    }
    Ok(keys)
}

/// Whose log a request is about.
#[derive(Debug)]
pub struct Of {
    log: LogId,
    /// `{id}`, where there is one.
    id: String,
}

impl FromRequestParts<Arc<Api>> for Of {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        let At { zone, id, .. } = At::from_request_parts(parts, api).await?;
        let log = log_of(parts, api, zone).await?;
        Ok(Self { log, id })
    }
}

/// What belongs to no zone is for the platform's own tokens.
async fn log_of(parts: &mut Parts, api: &Arc<Api>, zone: ZoneId) -> Result<LogId, Failure> {
    let segments: Vec<&str> = parts.uri.path().split('/').collect();
    match segments.as_slice() {
        ["", "v1", "zones", _, "audit", ..] => Ok(LogId::events(zone)),
        ["", "v1", "zones", _, "admin-audit", ..] => Ok(LogId::admin(zone)),
        _ => {
            let caller = Caller::from_request_parts(parts, api).await?;
            admin_audit::of_platform(&caller)?;
            Ok(LogId::admin(deployment()))
        }
    }
}

/// The place and the exact text of an entry.
async fn entry(api: &Api, of: &Of) -> Result<(u64, String), Failure> {
    let (zone, id) = (of.log.zone(), &of.id);
    let found = match of.log.kind() {
        LogKind::Events => {
            let event = api.store.zone(zone).audit().find(id).await?;
            event.map(|event| (event.chain_seq, event.event))
        }
        LogKind::Admin => {
            let record = api.store.admin_audit().find(zone, id).await?;
            record.map(|record| (record.chain_seq, record.record))
        }
    };
    found.ok_or_else(|| match of.log.kind() {
        LogKind::Events => {
            let why = format!("no event {id} is on record in this zone");
            Failure::absent("event_not_found", why)
        }
        LogKind::Admin => {
            let why = format!("no record {id} is in this admin audit");
            Failure::absent("record_not_found", why)
        }
    })
}

/// `GET …/{id}/receipt`
pub async fn receipt(State(api): State<Arc<Api>>, of: Of) -> Answer {
    let (seq, event) = entry(&api, &of).await?;
    let log = ZoneLog::of(&api.store, &of.log);
    let covering = log.rows().latest().await?;
    // After the checkpoint, so that its key is among them.
    let keys = keys(&api).await?;
    let Some(checkpoint) = covering.filter(|latest| latest.size >= seq) else {
        log.rows().wish().await?;
        let why = "no checkpoint covers it yet; one is being made. Ask again shortly";
        return Err(Failure::conflict("checkpoint_pending", why).retry_after(SOON));
    };
    let leaf_index = seq.saturating_sub(1);
    let proof = log.inclusion(leaf_index, checkpoint.size).await?;
    let receipt = Receipt {
        event,
        leaf_index,
        inclusion_proof: encode(&proof),
        checkpoint: checkpoint.note,
    };
    receipt.verify(&keys).map_err(|error| broken(&error))?;
    wire::ok(json!(receipt))
}

fn shown(checkpoint: &AuditCheckpoint) -> serde_json::Value {
    json!({
        "size": checkpoint.size,
        "checkpoint": checkpoint.note,
        "created_at": checkpoint.made_at.iso_millis(),
    })
}

fn size_of(text: &str) -> Option<u64> {
    let fits = text.len() <= 18 && text.bytes().all(|digit| digit.is_ascii_digit());
    fits.then(|| text.parse().ok()).flatten()
}

/// `GET …/checkpoints`
pub async fn list(State(api): State<Arc<Api>>, of: Of, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let limit = query.limit(100, 1000)?;
    let below = match query.text("cursor", 512)? {
        None => i64::MAX.unsigned_abs(),
        Some(text) => size_of(text).ok_or_else(|| {
            Failure::bad(
                "invalid_cursor",
                "cursor is the next_cursor of the page before",
            )
        })?,
    };
    let rows = ZoneLog::of(&api.store, &of.log).rows();
    let page = rows.below(below, limit).await?;
    let full = u32::try_from(page.len()) == Ok(limit);
    let next = page
        .last()
        .filter(|_| full)
        .map(|last| last.size.to_string());
    let items: Vec<_> = page.iter().map(shown).collect();
    wire::ok(json!({"items": items, "next_cursor": next}))
}

fn no_checkpoint(why: &str) -> Failure {
    Failure::absent("checkpoint_not_found", why.to_owned())
}

fn note(checkpoint: Option<AuditCheckpoint>, why: &str) -> Answer {
    let checkpoint = checkpoint.ok_or_else(|| no_checkpoint(why))?;
    Ok(([(header::CONTENT_TYPE, TEXT)], checkpoint.note).into_response())
}

/// `GET …/checkpoint`
pub async fn latest(State(api): State<Arc<Api>>, of: Of) -> Answer {
    let latest = ZoneLog::of(&api.store, &of.log).rows().latest().await?;
    note(latest, "no checkpoint of this zone was signed yet")
}

/// `GET …/checkpoints/{id}`: by its size
pub async fn at_size(State(api): State<Arc<Api>>, of: Of) -> Answer {
    let rows = ZoneLog::of(&api.store, &of.log).rows();
    let found = match size_of(&of.id) {
        Some(size) => rows.checkpoint(size).await?,
        None => None,
    };
    note(found, "no checkpoint of this size was signed")
}

/// `GET …/consistency?from=&to=`: between two checkpoints, by their sizes; `to`
/// is the latest unless it is given
pub async fn consistency(State(api): State<Arc<Api>>, of: Of, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let size = |name: &str| {
        let text = query.text(name, 18)?;
        let size = text.map(|text| {
            let why = format!("{name} must be the size of a checkpoint");
            size_of(text).ok_or_else(|| Failure::bad("invalid_query", why))
        });
        size.transpose()
    };
    let rows = ZoneLog::of(&api.store, &of.log).rows();
    let from = size("from")?.ok_or_else(|| Failure::bad("invalid_query", "from is required"))?;
    let later = match size("to")? {
        Some(to) => rows.checkpoint(to).await?,
        None => rows.latest().await?,
    };
    let earlier = rows.checkpoint(from).await?;
    let (Some(earlier), Some(later)) = (earlier, later) else {
        return Err(no_checkpoint("from and to must be sizes of checkpoints"));
    };
    if earlier.size > later.size {
        return Err(Failure::bad(
            "invalid_query",
            "from must not be larger than to",
        ));
    }
    let log = ZoneLog::of(&api.store, &of.log);
    let proof = log.consistency(earlier.size, later.size).await?;
    let proven = Consistency {
        from: earlier.note,
        to: later.note,
        consistency_proof: encode(&proof),
    };
    let keys = keys(&api).await?;
    proven.verify(&keys).map_err(|error| broken(&error))?;
    wire::ok(json!(proven))
}

/// `GET …/ledger`: the log page by page, as an export has it; each item is a line.
pub async fn ledger(State(api): State<Arc<Api>>, of: Of, RawQuery(raw): RawQuery) -> Answer {
    let query = Query::parse(raw.as_deref());
    let limit = query.limit(500, 1000)?;
    let cursor = query.text("cursor", 20)?.map(str::parse::<Cursor>);
    let cursor = cursor.transpose().map_err(|_| {
        let why = "cursor is the next_cursor of the page before";
        Failure::bad("invalid_cursor", why)
    })?;
    let page = caracal_tlog::pages::page(&api.store, &of.log, cursor, limit).await?;
    wire::ok(json!({
        "items": page.lines,
        "next_cursor": page.next.map(|next| next.to_string()),
    }))
}

/// `GET /v1/audit-logs`: every log of the deployment. For the platform's own tokens.
pub async fn logs(State(api): State<Arc<Api>>, caller: Caller, RawQuery(raw): RawQuery) -> Answer {
    admin_audit::of_platform(&caller)?;
    let query = Query::parse(raw.as_deref());
    let limit = query.limit(100, 1000)?;
    let after = query.text("cursor", 160)?.unwrap_or_default();
    let mut logs = api.store.audit_logs().await?;
    logs.retain(|log| after.is_empty() || log.key().as_str() > after);
    logs.sort_by(|one, other| one.key().cmp(other.key()));
    let rest = logs.split_off(logs.len().min(usize::try_from(limit).unwrap_or(usize::MAX)));
    let next = logs.last().filter(|_| !rest.is_empty()).map(LogId::key);
    let items: Vec<_> = logs
        .iter()
        .map(|log| {
            let (zone, kind) = named(log);
            json!({"zone_id": zone, "log": kind})
        })
        .collect();
    wire::ok(json!({"items": items, "next_cursor": next}))
}

/// `GET /v1/audit-findings`: where logs were found not to hold, the latest thousand, the first first.
/// For the platform's own tokens.
pub async fn findings(State(api): State<Arc<Api>>, caller: Caller) -> Answer {
    admin_audit::of_platform(&caller)?;
    let found = api.store.audit_findings().await?;
    let items: Vec<_> = found
        .iter()
        .map(|(finding, at)| {
            json!({
                "log": finding.zone,
                "seq": finding.seq,
                "flaw": finding.flaw,
                "found_at": at.iso_millis(),
            })
        })
        .collect();
    wire::ok(json!({ "items": items }))
}

/// `GET …/checkpoint-key`
pub async fn key(State(api): State<Arc<Api>>, of: Of) -> Answer {
    let keys = keys(&api).await?;
    let of_zone = |key: &Vkey| {
        let key = key.of_log(&origin(key.name(), &of.log));
        key.map(|key| key.to_string())
    };
    let newest = keys.last().ok_or_else(Failure::internal)?;
    wire::ok(json!({
        "origin": origin(newest.name(), &of.log),
        "key": of_zone(newest),
        "keys": keys.iter().filter_map(of_zone).collect::<Vec<_>>(),
        "deployment_key": newest.to_string(),
    }))
}

/// Whose tile a request is about, and which.
#[derive(Debug)]
pub struct OfTile {
    log: LogId,
    level: String,
    path: String,
}

impl FromRequestParts<Arc<Api>> for OfTile {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        let names = Path::<HashMap<String, String>>::from_request_parts(parts, api).await;
        let Path(mut names) = names.map_err(|_| Failure::bad("invalid_params", PARAMS))?;
        let mut take = |name| names.remove(name).unwrap_or_default();
        let (zone, level, path) = (take("zone"), take("level"), take("tile"));
        if !(zone.is_empty() || is_id(&zone)) {
            return Err(Failure::bad("invalid_params", PARAMS));
        }
        let log = log_of(parts, api, ZoneId::trusted(zone)).await?;
        Ok(Self { log, level, path })
    }
}

/// `GET …/tile/{level}/{index}[.p/{width}]`; the level `entries` is the events of
/// a tile of level 0.
pub async fn tile(State(api): State<Arc<Api>>, of: OfTile) -> Answer {
    let OfTile { log, level, path } = of;
    let absent = || Failure::absent("tile_not_found", "the tree has no such tile");
    let is_bundle = level == ENTRIES;
    let of_level = if is_bundle { "0" } else { level.as_str() };
    let (id, width) = tile_of(of_level, &path).ok_or_else(absent)?;
    let log = ZoneLog::of(&api.store, &log);
    // Nothing is served that no checkpoint covers.
    let size = log.rows().latest().await?.map_or(0, |latest| latest.size);
    let hashes = log.tile(id, size).await?.ok_or_else(absent)?;
    let wanted = width.map_or(hashes.len(), |width| width * HASH);
    let full = width.is_some() || hashes.len() == 256 * HASH;
    let hashes = hashes.get(..wanted).filter(|_| full).ok_or_else(absent)?;
    let served = match is_bundle {
        true => bundle(&log, id, hashes).await?,
        false => hashes.to_vec(),
    };
    let kind = (header::CONTENT_TYPE, "application/octet-stream");
    Ok(([kind], served).into_response())
}

/// The exact texts that a tile of leaves is made of, each after its length in two bytes.
async fn bundle(log: &ZoneLog<'_>, tile: TileId, hashes: &[u8]) -> Result<Vec<u8>, Failure> {
    let (leaves, _) = hashes.as_chunks::<HASH>();
    let before = tile.index.saturating_mul(WIDTH);
    let limit = u32::try_from(leaves.len()).unwrap_or(u32::MAX);
    let texts = log.entries(before, limit).await?;
    if texts.len() < leaves.len() {
        // Where the first is still there, so are all: what is dropped is dropped from the beginning.
        return Err(Failure::absent(
            "entries_not_kept",
            "retention has dropped events of this bundle; its hashes are in tile/0",
        ));
    }
    let mut bundle = Vec::new();
    for (text, leaf) in texts.iter().zip(leaves) {
        if leaf_hash(text.as_bytes()) != *leaf {
            return Err(broken(&format_args!(
                "an event of bundle {} is not what was signed",
                tile.index
            )));
        }
        let length = u16::try_from(text.len()).map_err(|_| {
            Failure::absent(
                "entry_too_long",
                "the format has no room for an event of more than 65535 bytes, and this bundle has \
                 one: read its event and receipt one by one",
            )
        })?;
        bundle.extend_from_slice(&length.to_be_bytes());
        bundle.extend_from_slice(text.as_bytes());
    }
    Ok(bundle)
}

/// A path of tlog-tiles: `0`, `x001/x234/067` or `x001/x234/067.p/12`.
fn tile_of(level: &str, path: &str) -> Option<(TileId, Option<usize>)> {
    let canonical = |text: &str| {
        let number = size_of(text)?;
        (number.to_string() == text).then_some(number)
    };
    let level = u32::try_from(canonical(level)?)
        .ok()
        .filter(|level| *level < 8)?;
    let (path, width) = match path.split_once(".p/") {
        None => (path, None),
        Some((path, width)) => {
            let width = canonical(width).filter(|width| (1..256).contains(width))?;
            (path, Some(usize::try_from(width).ok()?))
        }
    };
    let mut parts = path.split('/').peekable();
    let mut index: u64 = 0;
    let mut count = 0;
    while let Some(part) = parts.next() {
        let digits = match parts.peek() {
            Some(_) => part.strip_prefix('x')?,
            None => part,
        };
        let number = size_of(digits).filter(|_| digits.len() == 3)?;
        index = index.checked_mul(1000)?.checked_add(number)?;
        count += 1;
        // One index has one path.
        if count == 1 && number == 0 && parts.peek().is_some() {
            return None;
        }
    }
    Some((TileId { level, index }, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_have_the_paths_of_the_standard() {
        let at = |level: &str, path: &str| {
            tile_of(level, path).map(|(id, width)| (id.level, id.index, width))
        };
        assert_eq!(at("0", "000"), Some((0, 0, None)));
        assert_eq!(at("1", "x001/x234/067"), Some((1, 1_234_067, None)));
        assert_eq!(at("2", "x001/x234/067.p/8"), Some((2, 1_234_067, Some(8))));
        for (level, path) in [
            ("", "000"),
            ("00", "000"),
            ("8", "000"),
            ("-1", "000"),
            ("entries", "000"),
            ("0", ""),
            ("0", "0"),
            ("0", "x000/067"),
            ("0", "001/067"),
            ("0", "x001/x067"),
            ("0", "x001"),
            ("0", "000.p/0"),
            ("0", "000.p/256"),
            ("0", "000.p/08"),
            ("0", "x999/x999/x999/x999/x999/x999/x999/999"),
        ] {
            assert_eq!(at(level, path), None, "{level} {path}");
        }
    }
}
