//! Does a log still say what was said? Verification in the store, naming the first entry that cannot
//! be trusted; [`crate::Auditor`] does the same without the store.

use caracal_crypto::HmacKey;
use caracal_ledger::{
    Checkpoint, CheckpointError, Flaw, Floor, Head, History, Kept, Keys, Opened, Sound, Unsound,
};
use caracal_model::{LogId, ZoneId};
use caracal_store::audit_trees::AuditCheckpoint;
use caracal_store::{Store, StoreError};
use caracal_tlog::{TlogError, ZoneLog};

use crate::floor;
use crate::source::{self, Page};

/// Events that are read at a time.
pub(crate) const PAGE: u32 = 1_000;

/// What does not hold, and where it starts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{log}, {} {seq}: {flaw}", log.entry())]
pub struct Finding {
    /// The log.
    pub log: LogId,
    /// The first place of its chain that cannot be trusted.
    pub seq: u64,
    /// What does not hold there.
    pub flaw: Flaw,
}

impl Finding {
    pub(crate) fn at(log: &LogId, unsound: Unsound) -> Self {
        Self {
            log: log.clone(),
            seq: unsound.seq,
            flaw: unsound.flaw,
        }
    }
}

/// Why a verification did not end well.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The ledger was tampered with.
    #[error("{0}")]
    Found(#[from] Finding),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tree could not be read.
    #[error(transparent)]
    Tree(#[from] TlogError),
    /// The export could not be read or written.
    #[error("the export: {0}")]
    Io(#[from] std::io::Error),
    /// A line of the export is none that we write.
    #[error("line {line} of the export: {why}")]
    Line {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
}

impl VerifyError {
    /// With the line of an export that it is about.
    pub(crate) fn at(self, line: u64) -> Self {
        match self {
            Self::Line { why, .. } => Self::Line { line, why },
            other => other,
        }
    }
}

/// What whoever verifies knows from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Keys of which checkpoints must be. Without any, the checkpoints of the ledger itself are
    /// believed, which shows only that it fits itself.
    pub keys: Keys,
    /// Checkpoints that were kept.
    pub checkpoints: Vec<Checkpoint>,
    /// Heads that were kept: each chain must lead through its own.
    pub heads: Vec<(ZoneId, Head)>,
}

impl Trust {
    /// Every log of which something was kept: one that is not there any more must not pass for that.
    pub fn logs(&self) -> impl Iterator<Item = LogId> {
        let heads = self.heads.iter().map(|(zone, _)| zone.clone());
        let checkpoints = self.checkpoints.iter().filter_map(Checkpoint::log);
        heads.map(LogId::events).chain(checkpoints)
    }

    /// What is known of one log.
    #[must_use]
    pub fn of(&self, log: &LogId) -> Self {
        let mut trust = self.clone();
        trust
            .checkpoints
            .retain(|kept| kept.log().as_ref() == Some(log));
        trust
            .heads
            .retain(|(zone, _)| LogId::events(zone.clone()) == *log);
        trust
    }

    /// What was kept of a log, for its history to agree with.
    pub(crate) fn tell(&self, log: &LogId, history: &mut History<'_>) -> Result<(), Finding> {
        let found = |unsound| Finding::at(log, unsound);
        let kept = self.of(log);
        for checkpoint in kept.checkpoints {
            history.expect(Kept::from(checkpoint)).map_err(found)?;
        }
        for (_, head) in kept.heads {
            history.lead_through(head).map_err(found)?;
        }
        Ok(())
    }
}

/// A checkpoint that a log brings along. A change of keys that it tells of is learned.
///
/// # Errors
/// [`CheckpointError`] when it is of none of the keys.
pub(crate) fn open_of(keys: &mut Keys, log: &LogId, note: &str) -> Result<Opened, CheckpointError> {
    let opened = keys.open(note)?;
    if opened.checkpoint.log().as_ref() != Some(log) {
        return Err(CheckpointError::OtherLog);
    }
    if opened.checkpoint.rotation.is_some() {
        keys.learn(note);
    }
    Ok(opened)
}

/// Verifies the chain of a zone from its first event, or from where retention left it, to its
/// recorded head; answers with that head. With a key, also who made it.
///
/// # Errors
/// [`VerifyError::Found`] names the first event that cannot be trusted.
pub async fn verify_zone(
    store: &Store,
    zone: &ZoneId,
    key: Option<&HmacKey>,
) -> Result<Head, VerifyError> {
    let log = LogId::events(zone.clone());
    let sound = verify_ledger(store, &log, key, &Trust::default()).await?;
    Ok(sound.head)
}

/// As [`verify_zone`], of any log, and that every checkpoint that was ever signed of it, or was kept
/// elsewhere, is a beginning of it.
///
/// # Errors
/// [`VerifyError::Found`] names the first entry that cannot be trusted.
pub async fn verify_ledger(
    store: &Store,
    log: &LogId,
    key: Option<&HmacKey>,
    trust: &Trust,
) -> Result<Sound, VerifyError> {
    let mut floor = floor::of(store, log, key).await?;
    loop {
        let verified = Box::pin(verify_from(store, log, key, trust, floor.as_ref())).await;
        if verified.is_ok() {
            return verified;
        }
        // Retention may have dropped what was to be read next.
        let now = floor::of(store, log, key).await?;
        if now == floor {
            return verified;
        }
        floor = now;
    }
}

async fn verify_from(
    store: &Store,
    log: &LogId,
    key: Option<&HmacKey>,
    trust: &Trust,
    floor: Option<&Floor>,
) -> Result<Sound, VerifyError> {
    let found = |unsound| Finding::at(log, unsound);
    let mut history = History::new(floor, key).map_err(found)?;
    trust.tell(log, &mut history)?;
    expect_own(store, log, trust, &mut history).await?;
    loop {
        let page = Page::read(store, log, history.size(), PAGE)
            .await?
            .unpack()?;
        source::check(&mut history, &page).map_err(found)?;
        if !page.is_empty() {
            // A long chain must not keep a worker of the runtime to itself.
            tokio::task::yield_now().await;
            continue;
        }
        let head = source::head(store, log).await?;
        // Entries and head move together, so what was appended since the page is there now.
        let late = Page::read(store, log, history.size(), PAGE)
            .await?
            .unpack()?;
        if head.seq() > history.size() && !late.is_empty() {
            source::check(&mut history, &late).map_err(found)?;
            continue;
        }
        history.ends_at(&head).map_err(found)?;
        return Ok(history.finish().map_err(found)?);
    }
}

/// Has the history agree with every checkpoint in the store.
async fn expect_own(
    store: &Store,
    log: &LogId,
    trust: &Trust,
    history: &mut History<'_>,
) -> Result<(), VerifyError> {
    let tree = ZoneLog::of(store, log);
    let floor = history.size();
    let mut keys = trust.keys.clone();
    for change in tree.rotations().await? {
        keys.learn(&change.note);
    }
    for stored in tree.checkpoints().await? {
        let opened = open_stored(&mut keys, log, &stored)?;
        let proof = match stored.size < floor {
            true => Some(tree.consistency(stored.size, floor).await?),
            false => None,
        };
        let expected = history.expect(Kept::of(opened, proof));
        expected.map_err(|unsound| Finding::at(log, unsound))?;
    }
    Ok(())
}

/// A checkpoint of the store, which must say what its row says.
pub(crate) fn open_stored(
    keys: &mut Keys,
    log: &LogId,
    stored: &AuditCheckpoint,
) -> Result<Opened, Finding> {
    let opened = open_of(keys, log, &stored.note);
    let fits = |opened: Opened| match opened.checkpoint.size == stored.size {
        true => Ok(opened),
        false => Err(CheckpointError::Text),
    };
    opened.and_then(fits).map_err(|error| Finding {
        log: log.clone(),
        seq: stored.size,
        flaw: Flaw::Checkpoint(error),
    })
}
