//! The folder thread: moves what the write-ahead log has gathered into the file.
//!
//! **Forces.** SQLite would do it within a commit, for whose length nobody is answered. From another
//! connection it disturbs no commit; but the log can begin anew only at a moment when nothing is
//! left in it, which a busy writer never grants.
//!
//! **Choice.** The bulk is folded from here. Once the log is long, the writer is asked to fold the
//! rest between two commits: what has come since, which is little.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

use rusqlite::Connection;
use tokio::sync::mpsc::WeakSender;

use crate::disk::checkpoint;
use crate::error::OpenError;
use crate::writer::Command;

/// Pages in the write-ahead log past which it is begun anew.
pub const LONG: i64 = 4_000;

pub struct Folder {
    connection: Connection,
    asked: Receiver<()>,
    /// Weak: the folder does not keep the writer alive.
    writer: WeakSender<Command>,
    /// In pages.
    long: i64,
}

impl Folder {
    pub fn new(
        path: &Path,
        asked: Receiver<()>,
        writer: WeakSender<Command>,
        long: i64,
    ) -> Result<Self, OpenError> {
        let open = || {
            let connection = Connection::open(path)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            Ok(connection)
        };
        let connection = open().map_err(|source| OpenError::Log {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            connection,
            asked,
            writer,
            long,
        })
    }

    /// The body of the thread; ends with whoever asks.
    pub fn run(self) {
        while self.asked.recv().is_ok() {
            match checkpoint(&self.connection, "PASSIVE") {
                Ok(pages) if pages > self.long => self.begin_anew(),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "evidence log not folded into its file; it grows until it is");
                }
            }
        }
    }

    fn begin_anew(&self) {
        let Some(writer) = self.writer.upgrade() else {
            return;
        };
        let (done, waiting) = sync_channel(1);
        // A full queue has it asked for again after the next fold. Two folds at a time are one too
        // many for SQLite, so this one waits; a writer that ends drops its end.
        if writer.try_send(Command::Restart(done)).is_ok() {
            drop(writer);
            let _ = waiting.recv();
        }
    }
}

#[cfg(test)]
mod tests {
    use caracal_model::{EventId, Timestamp};

    use super::*;
    use crate::backlog::Entry;
    use crate::disk::{Disk, wal};
    use crate::log::Durability;
    use crate::sink::Pending;

    fn write(disk: &Disk, from: u64) {
        for seq in from..from + 1_000 {
            let id = EventId::trusted(format!("evt-{seq}"));
            let wire = "{}".to_owned();
            let event = Pending { id, wire };
            let at = Timestamp::from_unix_seconds(0);
            disk.commit(None, &[Entry { seq, at, event }]).unwrap();
        }
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the test owns the thread and waits for it"
    )]
    fn a_long_log_is_folded_and_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("evidence-test.db");
        let disk = Disk::open(&path, Durability::Process).unwrap();
        disk.recover().unwrap();
        let (ask, asked) = sync_channel(1);
        let (writer, mut commands) = tokio::sync::mpsc::channel(1);
        let folder = Folder::new(&path, asked, writer.downgrade(), 500).unwrap();
        let folding = std::thread::spawn(move || folder.run());
        let length = || std::fs::metadata(wal(&path)).unwrap().len();

        write(&disk, 1);
        let before = length();
        ask.send(()).unwrap();
        let Some(Command::Restart(done)) = commands.blocking_recv() else {
            panic!("a log of {before} bytes is not long");
        };
        disk.restart().unwrap();
        drop(done);
        write(&disk, 1_001);
        assert!(length() < before + before / 2, "{} bytes", length());

        drop(ask);
        folding.join().unwrap();
        assert_eq!(disk.recover_last().unwrap(), 2_000);
    }
}
