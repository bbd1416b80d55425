//! How much evidence waits in a directory, for an operator: whoever writes there may go on meanwhile.

use std::path::{Path, PathBuf};

use caracal_model::Timestamp;

use crate::disk::Reader;
use crate::error::OpenError;

/// A log with what waits in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The file.
    pub path: PathBuf,
    /// Events that were not delivered.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest was recorded.
    pub oldest: Option<Timestamp>,
}

/// Every log in `dir` (`AUDIT_REPLAY_DIR`), by name; none when there is no such directory.
///
/// # Errors
/// [`OpenError`] when the directory or a log cannot be read.
pub fn waiting(dir: &Path) -> Result<Vec<Waiting>, OpenError> {
    let unreadable = |source| OpenError::Directory {
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut logs = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with("evidence-") && name.ends_with(".db")) {
            logs.push(path);
        }
    }
    logs.sort();
    logs.into_iter().map(look).collect()
}

fn look(path: PathBuf) -> Result<Waiting, OpenError> {
    let counted = Reader::open(&path).and_then(|reader| reader.count());
    match counted {
        Ok(found) => Ok(Waiting {
            events: found.count,
            bytes: found.bytes,
            oldest: found.oldest,
            path,
        }),
        Err(source) => Err(OpenError::Log { path, source }),
    }
}
