//! Watches the ledger and signs what it has seen: new events, and records of what administrators did,
//! are verified and put into the tree of their log, a checkpoint is signed of it, and what was
//! verified long ago is verified again.
//!
//! **Forces.** Tampering must be noticed without anybody asking, at a cost that does not grow with
//! the age of the ledger. A signature must never be given to a history that contradicts an earlier
//! one, whoever has changed the rows, and whichever of several processes signs.
//!
//! **Choice.** One replica leads. How far each log was verified is stored, so nothing is verified
//! twice to get there, and verifying what came since is at the same time what the tree grows by. What
//! the leader appended itself (`recent`) it need not read back: the tree has what came in, and a row
//! that was changed since contradicts what is signed.
//! Every hour a slice of what is old is verified again, the whole ledger within about a day.
//! INVARIANT (one history): a checkpoint is signed of a tree that was grown, within this call, from
//! the root of the last checkpoint, by events that this process appended or whose chain and codes it
//! verified; and the tiles
//! must give the same root. What does not fit is recorded once, counted, logged, and nothing more is
//! signed of that log until it fits again.
//!
//! **Consequence.** Who can write every row and has `AUDIT_HMAC_KEY` can still have a new past
//! signed by removing the checkpoints too. So checkpoints belong in other hands: an earlier one then
//! contradicts (docs/evidence.md).

mod again;
mod grow;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use caracal_bus::Bus;
use caracal_crypto::envelope::Keyring;
use caracal_ledger::history::checkpoint_of;
use caracal_ledger::merkle::{Tree, verify_consistency};
use caracal_ledger::{Checkpoint, Flaw, Head, Keys, Unsound, Why};
use caracal_model::{LogId, Rng, Ticks, Timestamp};
use caracal_store::StoreError;
use caracal_store::audit_trees::{AuditCheckpoint, AuditFinding};
use caracal_tlog::{Signed, Signer, TlogError, ZoneLog};
use tokio_util::sync::CancellationToken;

use crate::ingest::Ingest;
use crate::verify::{Finding, VerifyError, open_stored};

/// Between two looks for logs of which a checkpoint is due.
const TICK: Duration = Duration::from_secs(1);
/// How long a leader is believed to live without a sign.
const LEAD: Duration = Duration::from_secs(30);
/// Events between two checkpoints of a log that is far behind, at least.
const LEAST: u64 = 1_000;
/// Between two slices of what is verified again.
const AGAIN: Duration = Duration::from_secs(3_600);
/// Before a log that did not hold is looked at again.
const HELD: Duration = Duration::from_secs(300);
/// How long the last checkpoints may take when the process stops.
const LAST: Duration = Duration::from_secs(3);
const LEADER: &str = "caracal:audit:checkpoints";
/// Who cannot sign must not keep from leading who can.
const VERIFIER: &str = "caracal:audit:verifying";

/// When and with what checkpoints are made.
#[derive(Debug)]
pub struct CheckpointOptions {
    /// Longest time between an event and the checkpoint that covers it.
    pub every: Duration,
    /// Most events that wait for a checkpoint.
    pub events: u64,
    /// How the logs of this deployment are called, when it has no key yet.
    pub name: Option<String>,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(3_600),
            events: 10_000,
            name: None,
        }
    }
}

/// What opens the key.
#[derive(Clone)]
pub struct Sealing {
    /// Opens what is sealed.
    pub keyring: Arc<Keyring>,
    /// Makes the first key.
    pub rng: Arc<dyn Rng>,
}

impl std::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealing(..)")
    }
}

/// The last checkpoint of a log.
struct Last {
    checkpoint: Checkpoint,
    note: String,
}

/// Verifies the ledger and signs checkpoints of it.
pub struct Checkpoints {
    ingest: Arc<Ingest>,
    bus: Bus,
    holder: String,
    sealing: Option<Sealing>,
    options: CheckpointOptions,
    signer: Option<Signer>,
    /// Keys that checkpoints in the store may be of.
    keys: Keys,
    /// The last checkpoint of each log that this process has signed: the store must still have it.
    signed: HashMap<LogId, Checkpoint>,
    /// Logs that did not hold, and when that was seen.
    held: HashMap<LogId, Ticks>,
    again_at: Option<Ticks>,
    /// Logs that the current round of verifying again has not come to the end of.
    open_rounds: usize,
}

impl std::fmt::Debug for Checkpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoints")
            .field("holder", &self.holder)
            .finish_non_exhaustive()
    }
}

impl Checkpoints {
    /// `holder` names this process among those that might lead. Without sealing, the ledger is
    /// verified but nothing is signed.
    pub fn new(
        ingest: Arc<Ingest>,
        bus: Bus,
        holder: impl Into<String>,
        sealing: Option<Sealing>,
        options: CheckpointOptions,
    ) -> Self {
        if sealing.is_none() {
            tracing::warn!(
                "this process verifies the ledger and signs no checkpoint of it: without them nobody \
                 outside can tell whether its end was cut off. Give it the SECRET_STORE_KEK that API \
                 and STS have, which seals the key"
            );
        }
        let signs = i64::from(sealing.is_some());
        ingest.metrics().signs_checkpoints.set(signs);
        Self {
            ingest,
            bus,
            holder: holder.into(),
            sealing,
            options,
            signer: None,
            keys: Keys::default(),
            signed: HashMap::new(),
            held: HashMap::new(),
            again_at: None,
            open_rounds: 0,
        }
    }

    /// Works until `stop`, while this process leads; then signs what is not signed yet.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = Box::pin(self.turn()) => {}
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
        if self.sealing.is_some()
            && matches!(self.bus.lead(LEADER, &self.holder, LEAD).await, Ok(true))
            && tokio::time::timeout(LAST, Box::pin(self.sign_all()))
                .await
                .is_err()
        {
            tracing::warn!("not every log has a checkpoint of its last events");
        }
    }

    async fn turn(&mut self) {
        let post = match self.sealing {
            Some(_) => LEADER,
            None => VERIFIER,
        };
        match self.bus.lead(post, &self.holder, LEAD).await {
            Ok(true) => {
                // Without a key everything would be due, always.
                if self.sealing.is_some() {
                    self.sign_due().await;
                }
                let now = self.ingest.clock().ticks();
                if self.again_at.is_none_or(|at| now.since(at) >= AGAIN) {
                    self.again_at = Some(now);
                    self.verify_again().await;
                    self.forget_keys().await;
                }
            }
            Ok(false) => {
                // Whoever leads meanwhile signs more than we remember.
                self.signed.clear();
            }
            Err(error) => tracing::warn!(%error, "it is not known who signs checkpoints"),
        }
    }

    /// Makes the checkpoints that are due.
    pub async fn sign_due(&mut self) {
        let period = self.ingest.clock().now().minus(self.options.every);
        self.sign_older(period, self.options.events).await;
    }

    /// Makes a checkpoint of every log that has entries which none covers.
    pub async fn sign_all(&mut self) {
        self.held.clear();
        self.sign_older(self.ingest.clock().now(), 1).await;
    }

    async fn sign_older(&mut self, than: Timestamp, events: u64) {
        let logs = match self.ingest.store().audit_trees_due(than, events).await {
            Ok(logs) => logs,
            Err(error) => {
                tracing::warn!(%error, "it is not known which checkpoints are due");
                return;
            }
        };
        for log in logs {
            let now = self.ingest.clock().ticks();
            let held = self.held.get(&log);
            if held.is_none_or(|at| now.since(*at) >= HELD) {
                self.log(&log).await;
            }
        }
    }

    /// Brings the tree of a log to the head that it has now, and signs it: on the way too, where that
    /// is far.
    async fn log(&mut self, log: &LogId) {
        let done = async {
            let mut end = None;
            loop {
                let last = self.last(log).await?;
                let base = self.base(last.as_ref());
                let most = self.options.events.max(LEAST);
                let Some(grown) = grow::grow(&self.ingest, log, base, most).await? else {
                    return Ok(());
                };
                self.sign(log, last, &grown.head, &grown.tree).await?;
                if grown.head.seq() >= *end.get_or_insert(grown.end) || self.signer.is_none() {
                    return Ok(());
                }
            }
        };
        let done = Box::pin(done).await;
        self.settle(log, done).await;
    }

    /// What a log has come to.
    async fn settle(&mut self, log: &LogId, done: Result<(), VerifyError>) {
        let now = self.ingest.clock().ticks();
        match done {
            Ok(()) => {
                self.held.remove(log);
            }
            Err(VerifyError::Found(finding)) => {
                self.held.insert(log.clone(), now);
                self.report(&finding).await;
            }
            Err(error) => {
                self.held.insert(log.clone(), now);
                self.ingest.metrics().checkpoint_errors.inc();
                tracing::error!(%error, ledger = %log, "no checkpoint could be made");
            }
        }
    }

    /// Opens the keys as they are now: one of them may have been replaced.
    async fn open_signer(&mut self) -> Result<(), TlogError> {
        let (store, clock) = (self.ingest.store(), self.ingest.clock());
        let Some(sealing) = &self.sealing else {
            self.keys = caracal_tlog::vkeys(store).await?.into();
            return Ok(());
        };
        if let Some(signer) = &self.signer
            && signer.is_current(store).await?
        {
            return Ok(());
        }
        let name = self.options.name.as_deref();
        let opening = Signer::open(store, &sealing.keyring, sealing.rng.as_ref(), clock, name);
        let signer = opening.await?;
        self.keys = signer.vkeys().into();
        self.signer = Some(signer);
        Ok(())
    }

    /// Where what is to be signed is grown from: the last checkpoint, or the very beginning.
    fn base(&self, last: Option<&Last>) -> Option<Head> {
        self.signer.as_ref()?;
        let last = last.and_then(|last| last.checkpoint.head());
        Some(last.unwrap_or(Head::GENESIS))
    }

    /// The last checkpoint, which must be ours, and no older than what we know to have signed.
    async fn last(&mut self, log: &LogId) -> Result<Option<Last>, VerifyError> {
        let kept = ZoneLog::of(self.ingest.store(), log);
        let stored = kept.rows().latest().await?;
        // After the checkpoint, so that its key is among them.
        self.open_signer().await?;
        let last = stored.map(|stored| {
            let opened = open_stored(&mut self.keys, log, &stored)?;
            Ok::<_, Finding>(Last {
                checkpoint: opened.checkpoint,
                note: stored.note,
            })
        });
        let last = last.transpose()?;
        let size = last.as_ref().map_or(0, |last| last.checkpoint.size);
        match self.signed.get(log) {
            // Somebody else may have signed more since; nobody can have signed less.
            Some(known)
                if known.size > size
                    || known.size == size
                        && last.as_ref().map(|last| &last.checkpoint) != Some(known) =>
            {
                let flaw = Flaw::Unproven { size: known.size };
                Err(Finding::at(
                    log,
                    Unsound {
                        seq: size + 1,
                        flaw,
                    },
                )
                .into())
            }
            _ => Ok(last),
        }
    }

    /// INVARIANT (one history).
    async fn sign(
        &mut self,
        log: &LogId,
        last: Option<Last>,
        head: &Head,
        tree: &Tree,
    ) -> Result<(), VerifyError> {
        let Some(signer) = &self.signer else {
            return Ok(());
        };
        let kept = ZoneLog::of(self.ingest.store(), log);
        let size = tree.size();
        let before = last.as_ref().map(|last| &last.checkpoint);
        if before.is_some_and(|last| last.size >= size) {
            return Ok(());
        }
        let unlike = |seq| {
            Finding::at(
                log,
                Unsound {
                    seq,
                    flaw: Flaw::Tree,
                },
            )
        };
        let after = before.map_or(1, |last| last.size + 1);
        let root = tree.root();
        if kept.tree(size).await?.root() != root {
            return Err(unlike(after).into());
        }
        if let Some(last) = before {
            let proof = kept.consistency(last.size, size).await?;
            verify_consistency((last.size, &last.root), (size, &root), &proof)
                .map_err(|_| unlike(after))?;
        }
        let now = self.ingest.clock().now();
        let mut checkpoint = checkpoint_of(signer.origin(log), head, tree);
        // As it will be read: to the millisecond.
        checkpoint.at = Timestamp::parse_rfc3339(&now.iso_millis()).ok();
        let note = last.as_ref().map(|last| last.note.as_str());
        let Signed {
            checkpoint,
            note,
            is_unproven,
        } = signer.sign(checkpoint, note)?;
        let stored = AuditCheckpoint {
            size,
            note,
            made_at: now,
        };
        if kept.rows().sign(&stored).await? {
            let metrics = self.ingest.metrics();
            metrics.checkpoints.inc();
            metrics.checkpoint_last.set(now.unix_seconds());
            let rotated = checkpoint.rotation.is_some();
            tracing::info!(ledger = %log, size, rotated, "a checkpoint was signed");
            self.signed.insert(log.clone(), checkpoint);
            if is_unproven {
                self.report_unproven(log, size).await;
            }
        }
        Ok(())
    }

    /// A log went over to another key, and whoever trusts only the one before cannot follow.
    async fn report_unproven(&self, log: &LogId, size: u64) {
        tracing::error!(ledger = %log, size, "the key that signed the last checkpoint is gone: the new \
            one is of another key, and nothing proves the change. Give auditors the new key yourself");
        self.ingest.metrics().unproven_key_changes.inc();
        let finding = AuditFinding {
            zone: log.key().clone(),
            seq: size,
            flaw:
                "the checkpoint that ends with it is of another key than the one before, which is \
                   gone: nothing proves the change"
                    .to_owned(),
        };
        let recorded = self.ingest.store().add_audit_finding(&finding).await;
        if let Err(error) = recorded {
            tracing::warn!(%error, "a finding was not recorded");
        }
    }

    /// Destroys what replaced keys could still sign with, where no log needs them.
    pub async fn forget_keys(&mut self) {
        if self.sealing.is_none() {
            return;
        }
        let now = self.ingest.clock().now();
        match caracal_tlog::forget_replaced(self.ingest.store(), now).await {
            // Nor does this process keep them.
            Ok(forgotten) if !forgotten.is_empty() => self.signer = None,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "it is not known which checkpoint keys are needed")
            }
        }
    }

    /// Records, counts and logs; counts once, however often it is found again.
    async fn report(&self, finding: &Finding) {
        tracing::error!(ledger = %finding.log, seq = finding.seq, flaw = %finding.flaw,
            "the ledger was tampered with");
        let recorded = AuditFinding {
            zone: finding.log.key().clone(),
            seq: finding.seq,
            flaw: finding.flaw.to_string(),
        };
        match self.ingest.store().add_audit_finding(&recorded).await {
            Ok(true) => {}
            Ok(false) => return,
            // Rather twice than never.
            Err(error) => tracing::warn!(%error, "a finding was not recorded"),
        }
        let metrics = self.ingest.metrics();
        match finding.flaw {
            Flaw::Columns | Flaw::Chain(Why::Content) | Flaw::Signed { .. } | Flaw::Tree => {
                metrics.tamper_mismatch.inc()
            }
            Flaw::Chain(Why::Author) | Flaw::Checkpoint(_) => metrics.tamper_hmac_failures.inc(),
            Flaw::Chain(_) | Flaw::Cut { .. } | Flaw::Unproven { .. } | Flaw::Floor => {
                metrics.tamper_chain_breaks.inc()
            }
        };
    }
}

/// A stored chain hash as a head.
fn head_at(size: u64, chain_hash: &str, log: &LogId) -> Result<Head, StoreError> {
    Head::stored(size, chain_hash).ok_or_else(|| StoreError::Corrupt {
        what: format!("the chain hash in the tree of {log}"),
    })
}
