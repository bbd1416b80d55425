//! A log page by page, as lines that verify on their own ([`caracal_ledger::line`]): what exports
//! write, and what the API hands to whoever verifies a deployment from outside.

use std::fmt;
use std::str::FromStr;

use caracal_ledger::line::{Begin, Entry, Key, Line, Signed, named};
use caracal_ledger::receipt::encode;
use caracal_ledger::{Checkpoint, Floor, Head};
use caracal_model::{LogId, LogKind};
use caracal_store::admin_audit::AdminEvent;
use caracal_store::audit_events::AuditEvent;
use caracal_store::audit_trees::AuditCheckpoint;
use caracal_store::{Store, StoreError};

use crate::{TlogError, ZoneLog, vkeys};

/// Where the next page begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// With the checkpoints larger than this that lie below the floor, or end with it.
    Below(u64),
    /// With the entries after this place.
    After(u64),
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Below(size) => write!(f, "b{size}"),
            Self::After(place) => write!(f, "a{place}"),
        }
    }
}

/// The text is no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor")]
pub struct CursorError;

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let (kind, number) = text.split_at_checked(1).ok_or(CursorError)?;
        let is_plain = number.len() <= 18 && number.bytes().all(|digit| digit.is_ascii_digit());
        let number = number
            .parse()
            .ok()
            .filter(|_| is_plain)
            .ok_or(CursorError)?;
        match kind {
            "b" => Ok(Self::Below(number)),
            "a" => Ok(Self::After(number)),
            _ => Err(CursorError),
        }
    }
}

/// Some lines, in their order.
#[derive(Debug)]
pub struct Page {
    /// The lines: at most twice as many as were asked for, and one for each key.
    pub lines: Vec<Line>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Cursor>,
}

/// One page of a log, from its beginning or from a cursor, with at most so many entries.
///
/// # Errors
/// [`TlogError`].
pub async fn page(
    store: &Store,
    log: &LogId,
    from: Option<Cursor>,
    limit: u32,
) -> Result<Page, TlogError> {
    let mut lines = Vec::new();
    let from = match from {
        Some(from) => from,
        None => begin(store, log, &mut lines).await?,
    };
    let next = match from {
        Cursor::Below(size) => below(store, log, size, limit, &mut lines).await?,
        Cursor::After(place) => after(store, log, place, limit, &mut lines).await?,
    };
    Ok(Page { lines, next })
}

/// Keys and floor.
async fn begin(store: &Store, log: &LogId, lines: &mut Vec<Line>) -> Result<Cursor, TlogError> {
    let (zone_id, kind) = named(log);
    let changes = ZoneLog::of(store, log).rotations().await?;
    for key in vkeys(store).await? {
        let to = |change: &&AuditCheckpoint| {
            let read = Checkpoint::unverified(&change.note).ok();
            let rotation = read.and_then(|read| read.rotation);
            rotation.is_some_and(|rotation| rotation.to == key)
        };
        lines.push(Line::Key(Key {
            zone_id: zone_id.clone(),
            log: kind,
            change: changes.iter().find(to).map(|change| change.note.clone()),
            key: key.to_string(),
        }));
    }
    let Some((floor, code)) = floor(store, log).await? else {
        return Ok(Cursor::After(0));
    };
    lines.push(Line::Floor(Begin {
        zone_id,
        log: kind,
        floor,
        code,
    }));
    Ok(Cursor::Below(0))
}

/// Where a log begins since retention has dropped what was before, and the code of who says so;
/// `None` when nothing was dropped. The admin audit is kept whole.
async fn floor(store: &Store, log: &LogId) -> Result<Option<(Floor, String)>, TlogError> {
    if log.kind() != LogKind::Events {
        return Ok(None);
    }
    let Some(stored) = store.zone(log.zone()).audit().floor().await? else {
        return Ok(None);
    };
    let head = Head::stored(stored.chain_seq, &stored.chain_hash);
    let head = head.ok_or_else(|| StoreError::Corrupt {
        what: format!("the chain hash in the floor of zone {}", stored.zone),
    })?;
    // Nothing is dropped that is not in the tree.
    let tree = ZoneLog::of(store, log).tree(stored.chain_seq).await?;
    Ok(Some((Floor::new(&head, &tree), stored.code)))
}

async fn below(
    store: &Store,
    log: &LogId,
    size: u64,
    limit: u32,
    lines: &mut Vec<Line>,
) -> Result<Option<Cursor>, TlogError> {
    let tree = ZoneLog::of(store, log);
    let floor = floor(store, log).await?.map_or(0, |(floor, _)| floor.size);
    let page = tree.rows().above(size, limit).await?;
    let is_full = u32::try_from(page.len()) == Ok(limit);
    let mut last = size;
    for stored in page {
        if stored.size > floor {
            return Ok(Some(Cursor::After(floor)));
        }
        last = stored.size;
        let proof = match stored.size < floor {
            true => Some(encode(&tree.consistency(stored.size, floor).await?)),
            false => None,
        };
        lines.push(signed(log, stored, proof));
    }
    Ok(Some(match is_full {
        true => Cursor::Below(last),
        false => Cursor::After(floor),
    }))
}

async fn after(
    store: &Store,
    log: &LogId,
    place: u64,
    limit: u32,
    lines: &mut Vec<Line>,
) -> Result<Option<Cursor>, TlogError> {
    let tree = ZoneLog::of(store, log);
    // Before the entries: those of a checkpoint that is read here are there already.
    let checkpoints = tree.rows().above(place, limit).await?;
    let entries = entries(store, log, place, limit).await?;
    let is_last = u32::try_from(entries.len()) != Ok(limit);
    let last = entries.last().map_or(place, |entry| entry.seq);
    let covered = checkpoints
        .into_iter()
        .filter(|stored| stored.size <= last || is_last);
    lines.extend(covered.map(|stored| signed(log, stored, None)));
    lines.extend(entries.into_iter().map(Line::Entry));
    Ok((!is_last).then_some(Cursor::After(last)))
}

fn signed(log: &LogId, stored: AuditCheckpoint, proof: Option<Vec<String>>) -> Line {
    let (zone_id, log) = named(log);
    Line::Checkpoint(Signed {
        zone_id,
        log,
        checkpoint: stored.note,
        proof,
    })
}

pub(crate) async fn entries(
    store: &Store,
    log: &LogId,
    after: u64,
    limit: u32,
) -> Result<Vec<Entry>, StoreError> {
    let (zone_id, kind) = named(log);
    if kind == LogKind::Events {
        let rows = store.zone(log.zone()).audit().chain(after, limit).await?;
        let entry = |row: AuditEvent| Entry {
            zone_id: zone_id.clone(),
            log: kind,
            seq: row.chain_seq,
            event: row.event,
            content_sha256: row.content_sha256,
            chain_hash: row.chain_hash,
            chain_hmac: row.chain_hmac,
        };
        return Ok(rows.into_iter().map(entry).collect());
    }
    let rows = store.admin_audit().chain(log.zone(), after, limit).await?;
    let entry = |row: AdminEvent| Entry {
        zone_id: zone_id.clone(),
        log: kind,
        seq: row.chain_seq,
        event: row.record,
        content_sha256: row.content_sha256,
        chain_hash: row.chain_hash,
        chain_hmac: row.chain_hmac,
    };
    Ok(rows.into_iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_nothing_else_is_one() {
        for cursor in [Cursor::Below(0), Cursor::After(999_999_999_999_999_999)] {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        for text in [
            "",
            "a",
            "b-1",
            "a+1",
            "c1",
            "a1x",
            "é1",
            "a1000000000000000000",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(CursorError), "{text}");
        }
    }
}
