//! Does the ledger still say what was said? Verification of a zone in the store, naming the first
//! event that cannot be trusted; [`crate::verify_export`] does the same without the store.

use caracal_crypto::HmacKey;
use caracal_ledger::chain::StoredLink;
use caracal_ledger::merkle::Hash;
use caracal_ledger::{
    Checkpoint, CheckpointError, Flaw, Floor, Head, History, Kept, Keys, Opened, Sound, Unsound,
};
use caracal_model::ZoneId;
use caracal_store::audit_events::AuditEvent;
use caracal_store::audit_trees::AuditCheckpoint;
use caracal_store::{Store, StoreError};
use caracal_tlog::{TlogError, ZoneLog};

use crate::entry;
use crate::floor;
use crate::ingest::head_of;

/// Events that are read at a time.
pub(crate) const PAGE: u32 = 1_000;

/// What does not hold, and where it starts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("zone {zone}, event {seq}: {flaw}")]
pub struct Finding {
    /// The zone.
    pub zone: ZoneId,
    /// The first place of its chain that cannot be trusted.
    pub seq: u64,
    /// What does not hold there.
    pub flaw: Flaw,
}

impl Finding {
    pub(crate) fn at(zone: &ZoneId, unsound: Unsound) -> Self {
        Self {
            zone: zone.clone(),
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
    /// What was kept of a zone, for its history to agree with.
    pub(crate) fn tell(&self, zone: &ZoneId, history: &mut History<'_>) -> Result<(), Finding> {
        let found = |unsound| Finding::at(zone, unsound);
        let of_zone = |kept: &&Checkpoint| kept.zone().as_ref() == Some(zone);
        for kept in self.checkpoints.iter().filter(of_zone) {
            history.expect(Kept::from(kept.clone())).map_err(found)?;
        }
        for (_, head) in self.heads.iter().filter(|(of, _)| of == zone) {
            history.lead_through(head.clone()).map_err(found)?;
        }
        Ok(())
    }
}

/// A checkpoint that the ledger of this zone brings along. A change of keys that it tells of is
/// learned.
///
/// # Errors
/// [`CheckpointError`] when it is of none of the keys.
pub(crate) fn open_of(
    keys: &mut Keys,
    zone: &ZoneId,
    note: &str,
) -> Result<Opened, CheckpointError> {
    let opened = keys.open(note)?;
    if opened.checkpoint.zone().as_ref() != Some(zone) {
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
    let sound = verify_ledger(store, zone, key, &Trust::default()).await?;
    Ok(sound.head)
}

/// As [`verify_zone`], and that every checkpoint that was ever signed of it, or was kept elsewhere,
/// is a beginning of it.
///
/// # Errors
/// [`VerifyError::Found`] names the first event that cannot be trusted.
pub async fn verify_ledger(
    store: &Store,
    zone: &ZoneId,
    key: Option<&HmacKey>,
    trust: &Trust,
) -> Result<Sound, VerifyError> {
    let mut floor = floor::of(store, zone, key).await?;
    loop {
        let begin = floor.as_ref().map(|(floor, _)| floor);
        let verified = Box::pin(verify_from(store, zone, key, trust, begin)).await;
        if verified.is_ok() {
            return verified;
        }
        // Retention may have dropped what was to be read next.
        let now = floor::of(store, zone, key).await?;
        if now == floor {
            return verified;
        }
        floor = now;
    }
}

async fn verify_from(
    store: &Store,
    zone: &ZoneId,
    key: Option<&HmacKey>,
    trust: &Trust,
    floor: Option<&Floor>,
) -> Result<Sound, VerifyError> {
    let found = |unsound| Finding::at(zone, unsound);
    let audit = store.zone(zone).audit();
    let mut history = History::new(floor, key).map_err(found)?;
    trust.tell(zone, &mut history)?;
    expect_own(store, zone, trust, &mut history).await?;
    loop {
        let page = audit.chain(history.size(), PAGE).await?;
        check_rows(&mut history, &page).map_err(found)?;
        if !page.is_empty() {
            // A long chain must not keep a worker of the runtime to itself.
            tokio::task::yield_now().await;
            continue;
        }
        let head = audit
            .head()
            .await?
            .map_or(Ok(Head::default()), |head| head_of(&head))?;
        // Events and head move together, so what was appended since the page is there now.
        let late = audit.chain(history.size(), PAGE).await?;
        if head.seq() > history.size() && !late.is_empty() {
            check_rows(&mut history, &late).map_err(found)?;
            continue;
        }
        history.ends_at(&head).map_err(found)?;
        return Ok(history.finish().map_err(found)?);
    }
}

/// Has the history agree with every checkpoint in the store.
async fn expect_own(
    store: &Store,
    zone: &ZoneId,
    trust: &Trust,
    history: &mut History<'_>,
) -> Result<(), VerifyError> {
    let log = ZoneLog::of(store, zone);
    let floor = history.size();
    let mut keys = trust.keys.clone();
    for change in log.rotations().await? {
        keys.learn(&change.note);
    }
    for stored in log.checkpoints().await? {
        let opened = open_stored(&mut keys, zone, &stored)?;
        let proof = match stored.size < floor {
            true => Some(log.consistency(stored.size, floor).await?),
            false => None,
        };
        let expected = history.expect(Kept::of(opened, proof));
        expected.map_err(|unsound| Finding::at(zone, unsound))?;
    }
    Ok(())
}

/// A checkpoint of the store, which must say what its row says.
pub(crate) fn open_stored(
    keys: &mut Keys,
    zone: &ZoneId,
    stored: &AuditCheckpoint,
) -> Result<Opened, Finding> {
    let opened = open_of(keys, zone, &stored.note);
    let fits = |opened: Opened| match opened.checkpoint.size == stored.size {
        true => Ok(opened),
        false => Err(CheckpointError::Text),
    };
    opened.and_then(fits).map_err(|error| Finding {
        zone: zone.clone(),
        seq: stored.size,
        flaw: Flaw::Checkpoint(error),
    })
}

/// Continues a history with rows, whose columns must say what their texts say; answers with their
/// leaves.
pub(crate) fn check_rows(
    history: &mut History<'_>,
    rows: &[AuditEvent],
) -> Result<Vec<Hash>, Unsound> {
    let mut leaves = Vec::with_capacity(rows.len());
    for row in rows {
        leaves.push(history.check(&link_of(row))?);
        if !entry::says_what_it_says(row) {
            return Err(Unsound {
                seq: row.chain_seq,
                flaw: Flaw::Columns,
            });
        }
    }
    Ok(leaves)
}

fn link_of(row: &AuditEvent) -> StoredLink<'_> {
    StoredLink {
        seq: row.chain_seq,
        wire: &row.event,
        content_sha256: &row.content_sha256,
        chain_hash: &row.chain_hash,
        chain_hmac: &row.chain_hmac,
    }
}
