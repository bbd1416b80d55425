//! The logs of a deployment as its API hands them out, verified page by page: what is held at a time
//! is one page, whatever the size of the log.

use anyhow::{Context as _, bail};
use caracal_audit::{Auditor, Trust, VerifyError};
use caracal_crypto::mac::HmacKey;
use caracal_ledger::{Floor, Line, Sound, Vkey};
use caracal_model::{LogId, LogKind, ZoneId};
use serde_json::Value;

use super::{Reader, items};

/// Entries of a page.
const PAGE: u32 = 500;
/// How often a log is read from its beginning again because retention has dropped that meanwhile.
const TRIES: u32 = 5;

/// Every log of the deployment, or those of one zone.
pub async fn logs(reader: &Reader, zone: Option<&str>) -> anyhow::Result<Vec<LogId>> {
    if let Some(zone) = zone {
        let zone = ZoneId::parse(zone).context("--zone")?;
        return Ok(vec![LogId::events(zone.clone()), LogId::admin(zone)]);
    }
    let mut logs = Vec::new();
    let mut path = "/v1/audit-logs?limit=1000".to_owned();
    loop {
        let page = reader.get(&path).await?;
        for item in items(&page) {
            logs.push(log(item).context("a log of the deployment cannot be read")?);
        }
        match page.get("next_cursor").and_then(Value::as_str) {
            None => return Ok(logs),
            Some(next) => path = format!("/v1/audit-logs?limit=1000&cursor={}", encoded(next)),
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
        (LogKind::Events, zone) => format!("/v1/zones/{zone}/audit/ledger?limit={PAGE}"),
        (LogKind::Admin, "") => format!("/v1/admin-audit/ledger?limit={PAGE}"),
        (LogKind::Admin, zone) => format!("/v1/zones/{zone}/admin-audit/ledger?limit={PAGE}"),
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

/// Verifies one log from its beginning; the finding when it does not hold. Without a key, those that
/// the deployment itself names are believed.
pub async fn verify(
    reader: &Reader,
    log: &LogId,
    key: Option<&HmacKey>,
    trust: &Trust,
) -> anyhow::Result<Result<Sound, VerifyError>> {
    let mut trust = trust.of(log);
    if trust.keys.trusted().is_empty() {
        trust.keys = keys(reader, log).await?.into();
    }
    let mut tries = 0;
    loop {
        let mut begin = None;
        let verified = pass(reader, log, key, &trust, &mut begin).await?;
        tries += 1;
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
    begin: &mut Option<Floor>,
) -> anyhow::Result<Result<Sound, VerifyError>> {
    let mut auditor = Auditor::new(key, trust);
    let mut cursor: Option<String> = None;
    loop {
        let (lines, next) = page(reader, log, cursor.as_deref(), begin).await?;
        for line in lines {
            if let Err(error) = auditor.take(line) {
                return Ok(Err(error));
            }
        }
        if next.is_none() {
            break;
        }
        // Whoever answers must not keep us reading for ever.
        if next == cursor {
            bail!("the API answers with the same page again");
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
    let mut path = path(log);
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
