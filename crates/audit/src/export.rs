//! A log as lines that verify without the store or us ([`caracal_ledger::line`]): written to a file,
//! and read from one, or from the API page by page.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};

use caracal_crypto::HmacKey;
use caracal_ledger::chain::StoredLink;
use caracal_ledger::line::{Begin, Entry, Signed};
use caracal_ledger::receipt::{decode, is_of};
use caracal_ledger::{Checkpoint, Flaw, Floor, History, Kept, Keys, Line, Sound, Unsound};
use caracal_model::LogId;
use caracal_store::Store;
use caracal_tlog::pages;

use crate::floor;
use crate::verify::{Finding, PAGE, Trust, VerifyError, open_of};

/// Longest line of an export; an event is far shorter.
const MAX_LINE: u64 = 16 * 1024 * 1024;

/// Writes a log; answers with how many entries that were.
///
/// # Errors
/// When the store or `out` fails.
pub async fn export_chain(
    store: &Store,
    log: &LogId,
    out: &mut (dyn Write + Send),
) -> Result<u64, VerifyError> {
    let mut cursor = None;
    let mut written = 0;
    loop {
        let page = pages::page(store, log, cursor, PAGE).await?;
        for line in &page.lines {
            serde_json::to_writer(&mut *out, line).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
            written += u64::from(matches!(line, Line::Entry(_)));
        }
        cursor = page.next;
        if cursor.is_none() {
            out.flush()?;
            return Ok(written);
        }
    }
}

/// Verifies an export of one or more logs, each from its first entry or its floor; answers with how
/// far each goes. An end that was cut off shows only against what was kept elsewhere.
///
/// # Errors
/// [`VerifyError::Found`] names the first entry that cannot be trusted.
pub fn verify_export(
    mut export: impl BufRead,
    key: Option<&HmacKey>,
    trust: &Trust,
) -> Result<Vec<(LogId, Sound)>, VerifyError> {
    let mut auditor = Auditor::new(key, trust);
    let mut at = 0;
    while let Some(line) = next_line(&mut export, &mut at)? {
        auditor.take(line).map_err(|error| error.at(at))?;
    }
    auditor.finish()
}

/// Verifies lines as they come.
#[derive(Debug)]
pub struct Auditor<'k> {
    key: Option<&'k HmacKey>,
    trust: &'k Trust,
    keys: Keys,
    histories: BTreeMap<LogId, History<'k>>,
}

impl<'k> Auditor<'k> {
    /// With a key, every link must carry its code.
    pub fn new(key: Option<&'k HmacKey>, trust: &'k Trust) -> Self {
        Self {
            key,
            trust,
            keys: trust.keys.clone(),
            histories: BTreeMap::new(),
        }
    }

    /// The next line.
    ///
    /// # Errors
    /// [`VerifyError::Found`] names the first entry that cannot be trusted, [`VerifyError::Line`]
    /// says of a line that it is none.
    pub fn take(&mut self, line: Line) -> Result<(), VerifyError> {
        match line {
            Line::Entry(entry) => Ok(self.entry(&entry, &of(entry.log())?)?),
            Line::Checkpoint(signed) => self.checkpoint(&signed, &of(signed.log())?),
            Line::Floor(begin) => self.floor(&begin, &of(begin.log())?),
            Line::Key(key) => {
                if let Some(change) = &key.change {
                    self.keys.learn(change);
                }
                Ok(())
            }
        }
    }

    fn begin(&mut self, log: &LogId, floor: Option<&Floor>) -> Result<&mut History<'k>, Finding> {
        let found = |unsound| Finding::at(log, unsound);
        if !self.histories.contains_key(log) {
            let mut history = History::new(floor, self.key).map_err(found)?;
            self.trust.tell(log, &mut history)?;
            self.histories.insert(log.clone(), history);
        }
        let unsound = Unsound {
            seq: 0,
            flaw: Flaw::Floor,
        };
        self.histories.get_mut(log).ok_or_else(|| found(unsound))
    }

    fn floor(&mut self, begin: &Begin, log: &LogId) -> Result<(), VerifyError> {
        if self.histories.contains_key(log) {
            let size = begin.floor.size;
            return Err(not_a_line(format!(
                "a floor of {size} events, not before everything else"
            )));
        }
        floor::check(log, &begin.floor, &begin.code, self.key)?;
        self.begin(log, Some(&begin.floor))?;
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, log: &LogId) -> Result<(), Finding> {
        let found = |unsound| Finding::at(log, unsound);
        let link = StoredLink {
            seq: entry.seq,
            wire: &entry.event,
            content_sha256: &entry.content_sha256,
            chain_hash: &entry.chain_hash,
            chain_hmac: &entry.chain_hmac,
        };
        self.begin(log, None)?.check(&link).map_err(found)?;
        if is_of(log, &entry.event) {
            return Ok(());
        }
        Err(found(Unsound {
            seq: entry.seq,
            flaw: Flaw::Columns,
        }))
    }

    fn checkpoint(&mut self, signed: &Signed, log: &LogId) -> Result<(), VerifyError> {
        let read = self.begin(log, None)?.size().max(1);
        // Where it says that it ends, for people: nothing of it is believed yet.
        let claimed = Checkpoint::unverified(&signed.checkpoint);
        let seq = claimed.map_or(read, |claimed| claimed.size);
        let opened = open_of(&mut self.keys, log, &signed.checkpoint);
        let opened = opened.map_err(|error| Finding {
            log: log.clone(),
            seq,
            flaw: Flaw::Checkpoint(error),
        })?;
        let proof = signed.proof.as_ref().map(|proof| {
            let why = || not_a_line("a hash of the proof is no SHA-256 in base64".to_owned());
            decode(proof).ok_or_else(why)
        });
        let kept = Kept::of(opened, proof.transpose()?);
        let expected = self.begin(log, None)?.expect(kept);
        expected.map_err(|unsound| Finding::at(log, unsound))?;
        Ok(())
    }

    /// After the last line; answers with how far each log goes.
    ///
    /// # Errors
    /// [`VerifyError::Found`] when that is not far enough.
    pub fn finish(mut self) -> Result<Vec<(LogId, Sound)>, VerifyError> {
        let trust = self.trust;
        for log in trust.logs() {
            self.begin(&log, None)?;
        }
        let finish = |(log, history): (LogId, History<'_>)| {
            let sound = history.finish();
            let sound = sound.map_err(|unsound| Finding::at(&log, unsound))?;
            Ok((log, sound))
        };
        self.histories.into_iter().map(finish).collect()
    }
}

fn of(log: Option<LogId>) -> Result<LogId, VerifyError> {
    log.ok_or_else(|| not_a_line("it names no log".to_owned()))
}

fn not_a_line(why: String) -> VerifyError {
    VerifyError::Line { line: 0, why }
}

fn next_line(export: &mut impl BufRead, at: &mut u64) -> Result<Option<Line>, VerifyError> {
    let mut bytes = Vec::new();
    let length = export
        .by_ref()
        .take(MAX_LINE)
        .read_until(b'\n', &mut bytes)?;
    if length == 0 {
        return Ok(None);
    }
    *at += 1;
    // Nearly all lines are entries, and those are read without trying anything else first.
    let entry = serde_json::from_slice(&bytes).map(Line::Entry);
    let line = entry.or_else(|_| serde_json::from_slice(&bytes));
    line.map(Some).map_err(|_| VerifyError::Line {
        line: *at,
        why: "no line of an export".to_owned(),
    })
}
