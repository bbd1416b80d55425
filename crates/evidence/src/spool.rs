//! Files of the old format: `*.ndjson`, one event a line, left by a producer of the reference
//! (spec: audit-and-streams §4). They are taken over when the log is opened.
//!
//! A file is claimed by renaming it, so two logs in one directory cannot both take it, and is
//! removed only after its events are synced in the log. A crash in between delivers them twice,
//! with the same ids. Lines that are no events go to a file beside it: they may still be evidence.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use caracal_ledger::Event;
use caracal_model::Timestamp;

use crate::backlog::Entry;
use crate::disk::Disk;
use crate::error::OpenError;
use crate::sink::Pending;

/// Events in one commit of an import.
const CHUNK: usize = 1_000;

/// Takes over every old file of the directory; answers how many files are set aside there because
/// of lines that are no events.
pub fn import(dir: &Path, name: &str, disk: &Disk, at: Timestamp) -> Result<u64, OpenError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Directory { path, source }
    };
    let claimed_as = format!("importing-{name}");
    for path in with_extension(dir, "ndjson").map_err(failed(dir))? {
        let claimed = path.with_extension(format!("ndjson.{claimed_as}"));
        match fs::rename(&path, &claimed) {
            // Another log in this directory was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(failed(&path))?,
        }
    }
    // Also those that an earlier process claimed before it died.
    for claimed in with_extension(dir, &claimed_as).map_err(failed(dir))? {
        let file = File::open(&claimed).map_err(failed(&claimed))?;
        let mut import = Import {
            disk,
            at,
            rejected: None,
            path: &claimed,
            taken: 0,
        };
        import.take(BufReader::new(file))?;
        fs::remove_file(&claimed).map_err(failed(&claimed))?;
        tracing::info!(file = %claimed.display(), events = import.taken, "old evidence taken over");
    }
    let aside = with_extension(dir, "rejected").map_err(failed(dir))?;
    Ok(aside.len() as u64)
}

fn with_extension(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new(extension)) && path.is_file() {
            found.push(path);
        }
    }
    // Names hold the time: older files first.
    found.sort();
    Ok(found)
}

struct Import<'a> {
    disk: &'a Disk,
    at: Timestamp,
    path: &'a Path,
    rejected: Option<File>,
    taken: u64,
}

impl Import<'_> {
    fn take(&mut self, mut lines: BufReader<File>) -> Result<(), OpenError> {
        let mut events = Vec::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            if lines
                .read_until(b'\n', &mut line)
                .map_err(|error| self.unreadable(error))?
                == 0
            {
                break;
            }
            match event(&line) {
                Some(event) => events.push(event),
                None if line.trim_ascii().is_empty() => {}
                None => self
                    .set_aside(&line)
                    .map_err(|error| self.unreadable(error))?,
            }
            if events.len() == CHUNK {
                self.commit(std::mem::take(&mut events))?;
            }
        }
        if let Some(rejected) = &self.rejected {
            rejected
                .sync_all()
                .map_err(|error| self.unreadable(error))?;
        }
        self.commit(events)
    }

    fn commit(&mut self, events: Vec<Pending>) -> Result<(), OpenError> {
        let last = self.disk.recover_last();
        let log_failed = |source| OpenError::Log {
            path: self.disk.path().to_owned(),
            source,
        };
        let places = last.map_err(log_failed)? + 1..;
        let entry = |(seq, event)| Entry {
            seq,
            at: self.at,
            event,
        };
        let entries: Vec<Entry> = places.zip(events).map(entry).collect();
        self.disk.commit(None, &entries).map_err(log_failed)?;
        self.taken += entries.len() as u64;
        Ok(())
    }

    /// Appends to `<file>.rejected`; the name of the old file without our claim.
    fn set_aside(&mut self, line: &[u8]) -> io::Result<()> {
        if self.rejected.is_none() {
            let aside = self.path.with_extension("rejected");
            tracing::warn!(file = %aside.display(), "lines that are no events are set aside");
            self.rejected = Some(File::options().create(true).append(true).open(aside)?);
        }
        self.rejected
            .as_mut()
            .map_or(Ok(()), |file| file.write_all(line))
    }

    fn unreadable(&self, source: io::Error) -> OpenError {
        OpenError::Directory {
            path: self.path.to_owned(),
            source,
        }
    }
}

/// The exact text of the line is the event's text: it is what was, or will be, signed.
fn event(line: &[u8]) -> Option<Pending> {
    let wire = std::str::from_utf8(line).ok()?.trim();
    let event = Event::parse(wire).ok()?;
    Some(Pending {
        id: event.id,
        wire: wire.to_owned(),
    })
}
