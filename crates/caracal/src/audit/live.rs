//! The logs of a deployment as its API hands them out, verified page by page: what is held at a time
//! is one page, whatever the size of the log.
//!
//! **Forces.** Whoever answers is not trusted: it may leave out a log, its end, or all of it, and what
//! is left still fits itself. **Choice.** What the API says elsewhere (zones, the newest entry, the
//! latest checkpoint) and what was kept must be there, and so must something of every log that it
//! lists. **Consequence.** An API that lies everywhere about a log of which nothing was kept cannot be
//! caught: what it hands out nothing of is named, and not told as sound; when that is all, nothing
//! was verified.

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use caracal_audit::{Auditor, Finding, Trust, VerifyError};
use caracal_crypto::mac::HmacKey;
use caracal_ledger::line::Entry;
use caracal_ledger::{
    AdminRecord, Checkpoint, Event, Flaw, Floor, Line, Sound, Unsound, Vkey, Why,
};
use caracal_model::{LogId, LogKind, ZoneId};
use serde_json::Value;

use super::{Reader, items};

/// Entries of a page: what every listing of the API allows.
const PAGE: u32 = 500;
/// How often a log is read from its beginning again because retention has dropped that meanwhile.
const TRIES: u32 = 5;
/// Whoever answers must not keep us reading for ever.
const SAME: &str = "the API answers with the same page again";

/// A log that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// It holds.
    Holds(Box<Sound>),
    /// The API hands out nothing of it, and nothing else says that there is something: that cannot
    /// be told from a log that is kept back.
    Nothing,
}

/// The logs that are to be there.
#[derive(Debug, Default)]
pub struct Logs {
    /// Every log that the deployment has or might have, or those of one zone.
    pub all: Vec<LogId>,
    /// Those that the API lists as logs: a log has an entry.
    pub listed: HashSet<LogId>,
}

/// What is to be read. A token of one zone may ask for no list.
pub async fn logs(reader: &Reader, zone: Option<&str>) -> anyhow::Result<Logs> {
    let mut logs = Logs::default();
    if let Some(zone) = zone {
        let zone = ZoneId::parse(zone).context("--zone")?;
        logs.all = vec![LogId::events(zone.clone()), LogId::admin(zone)];
        return Ok(logs);
    }
    logs.all.push(LogId::admin(ZoneId::trusted("")));
    each(reader, "/v1/audit-logs", |item| {
        let log = log(item).context("a log of the deployment cannot be read")?;
        logs.all.push(log.clone());
        logs.listed.insert(log);
        Ok(())
    })
    .await?;
    // A zone whose logs are not listed might have them all the same.
    each(reader, "/v1/zones", |item| {
        let id = item.get("id").and_then(Value::as_str).unwrap_or_default();
        let zone = ZoneId::parse(id).context("a zone of the deployment cannot be read")?;
        logs.all
            .extend([LogId::events(zone.clone()), LogId::admin(zone)]);
        Ok(())
    })
    .await?;
    Ok(logs)
}

/// Every item of a listing.
async fn each(
    reader: &Reader,
    path: &str,
    mut take: impl FnMut(&Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut cursor: Option<String> = None;
    loop {
        let at = cursor.as_deref().map(encoded);
        let at = at.map_or_else(String::new, |cursor| format!("&cursor={cursor}"));
        let page = reader.get(&format!("{path}?limit={PAGE}{at}")).await?;
        items(&page).try_for_each(&mut take)?;
        let next = page.get("next_cursor").and_then(Value::as_str);
        match next {
            None => return Ok(()),
            Some(next) if cursor.as_deref() == Some(next) => bail!("{SAME}"),
            Some(next) => cursor = Some(next.to_owned()),
        }
    }
}

fn log(item: &Value) -> Option<LogId> {
    let zone = match item.get("zone_id")? {
        Value::Null => ZoneId::trusted(""),
        zone => ZoneId::parse(zone.as_str()?).ok()?,
    };
    match serde_json::from_value(item.get("log")?.clone()).ok()? {
        LogKind::Events => Some(LogId::events(zone)),
        LogKind::Admin => Some(LogId::admin(zone)),
    }
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn path(log: &LogId) -> String {
    let zone = encoded(log.zone().as_str());
    match (log.kind(), zone.as_str()) {
        (LogKind::Events, zone) => format!("/v1/zones/{zone}/audit"),
        (LogKind::Admin, "") => "/v1/admin-audit".to_owned(),
        (LogKind::Admin, zone) => format!("/v1/zones/{zone}/admin-audit"),
    }
}

/// What the API says of a log elsewhere. Asked for before the log is read, so what it hands out then
/// must have all of it: an API that keeps entries back has to lie everywhere, and always.
#[derive(Debug, Default)]
struct Said {
    /// The latest checkpoint.
    checkpoint: Option<Checkpoint>,
    note: String,
    /// The id of the newest entry.
    newest: Option<String>,
    has_checkpoint: bool,
    has_newest: bool,
}

impl Said {
    async fn of(reader: &Reader, log: &LogId) -> anyhow::Result<Self> {
        let path = path(log);
        let first = async |which: &str| {
            let page = reader.find(&format!("{path}{which}?limit=1")).await?;
            anyhow::Ok(page.as_ref().and_then(|page| items(page).next().cloned()))
        };
        let text = |item: &Option<Value>, name: &str| {
            let text = item.as_ref()?.get(name)?.as_str()?;
            Some(text.to_owned())
        };
        let (newest, latest) = (first("").await?, first("/checkpoints").await?);
        let note = text(&latest, "checkpoint").unwrap_or_default();
        let checkpoint = match note.is_empty() {
            true => None,
            false => Some(Checkpoint::unverified(&note).context("the latest checkpoint")?),
        };
        Ok(Self {
            checkpoint,
            note,
            newest: text(&newest, "id"),
            ..Self::default()
        })
    }

    fn again(&mut self) {
        (self.has_checkpoint, self.has_newest) = (false, false);
    }

    fn see(&mut self, line: &Line) {
        match line {
            Line::Checkpoint(line) => self.has_checkpoint |= line.checkpoint == self.note,
            Line::Entry(line) => {
                let newest = self.newest.as_deref();
                self.has_newest |= newest.is_some_and(|id| is_entry(line, id));
            }
            Line::Floor(_) | Line::Key(_) => {}
        }
    }

    /// Whether what was handed out has all of it.
    fn agrees(&self, sound: &Sound) -> Result<(), Unsound> {
        let read = sound.head.seq();
        if let Some(checkpoint) = &self.checkpoint
            && !self.has_checkpoint
        {
            let size = checkpoint.size;
            return Err(match size > read {
                true => Unsound {
                    seq: read + 1,
                    flaw: Flaw::Cut { size },
                },
                false => Unsound {
                    seq: size,
                    flaw: Flaw::Unproven { size },
                },
            });
        }
        // Retention may have dropped the newest meanwhile, with all others.
        let is_kept = read == 0 || sound.floor < read;
        match self.newest.is_some() && !self.has_newest && is_kept {
            true => Err(missing(read + 1)),
            false => Ok(()),
        }
    }
}

/// An entry that must be there.
fn missing(seq: u64) -> Unsound {
    let flaw = Flaw::Chain(Why::Truncated);
    Unsound { seq, flaw }
}

/// Whether this entry has this id, and does not only mention it.
fn is_entry(line: &Entry, id: &str) -> bool {
    match line.log {
        LogKind::Events => Event::parse(&line.event).is_ok_and(|event| event.id.as_str() == id),
        LogKind::Admin => AdminRecord::parse(&line.event).is_some_and(|event| event.id == id),
    }
}

/// The keys of checkpoints that the deployment says it has, at the beginning of each log.
async fn keys(reader: &Reader, log: &LogId) -> anyhow::Result<Vec<Vkey>> {
    let (lines, _) = page(reader, log, None, &mut None).await?;
    let key = |line: Line| match line {
        Line::Key(line) => Some(line.key.parse()),
        Line::Entry(_) | Line::Checkpoint(_) | Line::Floor(_) => None,
    };
    let keys: Result<_, _> = lines.into_iter().filter_map(key).collect();
    keys.context("a key of the deployment cannot be read")
}

/// Verifies one log from its beginning; the finding when it does not hold, or when the API hands out
/// less than it says elsewhere that there is: nothing of a log that is `listed`, for one. Without a key,
/// those that the deployment itself names are believed.
pub async fn verify(
    reader: &Reader,
    log: &LogId,
    listed: bool,
    key: Option<&HmacKey>,
    trust: &Trust,
) -> anyhow::Result<Result<Reading, VerifyError>> {
    let mut trust = trust.of(log);
    let mut said = Said::of(reader, log).await?;
    if trust.keys.trusted().is_empty() {
        trust.keys = keys(reader, log).await?.into();
    }
    let mut tries = 0;
    loop {
        let mut begin = None;
        said.again();
        let verified = pass(reader, log, key, &trust, (&mut begin, &mut said)).await?;
        tries += 1;
        let verified = verified.and_then(|sound| {
            let is_empty = sound.head.seq() == 0;
            let agrees = said.agrees(&sound).and_then(|()| match is_empty && listed {
                true => Err(missing(1)),
                false => Ok(()),
            });
            agrees.map_err(|Unsound { seq, flaw }| {
                let log = log.clone();
                Finding { log, seq, flaw }
            })?;
            Ok(match is_empty {
                true => Reading::Nothing,
                false => Reading::Holds(Box::new(sound)),
            })
        });
        if verified.is_ok() || tries == TRIES {
            return Ok(verified);
        }
        // Retention may have dropped what was to be read next.
        let mut now = None;
        drop(page(reader, log, None, &mut now).await?);
        if now == begin {
            return Ok(verified);
        }
    }
}

async fn pass(
    reader: &Reader,
    log: &LogId,
    key: Option<&HmacKey>,
    trust: &Trust,
    (begin, said): (&mut Option<Floor>, &mut Said),
) -> anyhow::Result<Result<Sound, VerifyError>> {
    let mut auditor = Auditor::new(key, trust);
    let mut cursor: Option<String> = None;
    loop {
        let (lines, next) = page(reader, log, cursor.as_deref(), begin).await?;
        for line in lines {
            said.see(&line);
            if let Err(error) = auditor.take(line) {
                return Ok(Err(error));
            }
        }
        if next.is_none() {
            break;
        }
        if next == cursor {
            bail!("{SAME}");
        }
        cursor = next;
    }
    Ok(auditor.finish().map(|sounds| {
        let of_log = sounds.into_iter().find(|(of, _)| of == log);
        of_log.map(|(_, sound)| sound).unwrap_or_default()
    }))
}

/// The lines of a page, all of this log, and where the next one begins.
async fn page(
    reader: &Reader,
    log: &LogId,
    cursor: Option<&str>,
    begin: &mut Option<Floor>,
) -> anyhow::Result<(Vec<Line>, Option<String>)> {
    let mut path = format!("{}/ledger?limit={PAGE}", path(log));
    if let Some(cursor) = cursor {
        path = format!("{path}&cursor={}", encoded(cursor));
    }
    let mut page = reader.get(&path).await?;
    let what = || format!("{path} is no page of a log");
    let items = page.get_mut("items").map(Value::take).with_context(what)?;
    let lines: Vec<Line> = serde_json::from_value(items).with_context(what)?;
    for line in &lines {
        let of = match line {
            Line::Entry(line) => line.log(),
            Line::Checkpoint(line) => line.log(),
            Line::Floor(line) => {
                *begin = Some(line.floor.clone());
                line.log()
            }
            Line::Key(line) => line.log(),
        };
        if of.as_ref() != Some(log) {
            bail!("{path} answers with another log");
        }
    }
    let next = page.get("next_cursor").and_then(Value::as_str);
    Ok((lines, next.map(str::to_owned)))
}

#[cfg(test)]
mod tests;
