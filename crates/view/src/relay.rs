//! The relay: from the outbox to the bus.
//!
//! **Forces.** News is committed with its change and must reach its topic soon, revocations first,
//! also when the process that committed it dies in between. Somebody usually waits for it to be
//! out; nobody should wait for it to be recorded as sent.
//!
//! **Choice.** Whoever committed drains the outbox itself ([`Relay::drain`]); a loop drains what is
//! left, woken by commits and, to be safe, now and again. Entries of a topic go out in the
//! order of their ids, all topics pipelined. Delivery is at least once, so recording that entries
//! were sent is done by the loop, many at a time, off everybody's path. A round is a task of its own:
//! a caller that hangs up in it must not take with it what was claimed for others.
//!
//! **Rejected.** Holding row locks while talking to the bus: an outage of one then blocks the
//! other. Counting an outage as a failure of the entries: after a long one they would all be dead.
//!
//! **Losses.** A Redis that may have lost what it had acknowledged is told the revocations of the last
//! day again: our own replicas start over from the store, but what resource servers have marked there
//! is gone with the rest.
//!
//! **Witnesses.** News that is evidence is also told to a [`Witness`], which writes it down before it
//! counts as sent; it comes again until it is written down.
//!
//! **Consequence.** After a crash, entries that were sent and not recorded are sent again, with the
//! same `outbox_id`. An entry that the bus refuses is set aside and dead after
//! [`RelayOptions::max_attempts`]; a person has to look at it.

mod losses;
mod mirror;
mod state;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use caracal_bus::{Bus, BusError};
use caracal_crypto::HmacKey;
use caracal_crypto::mac::sign_entry;
use caracal_model::change::Fields;
use caracal_model::{Clock, Ticks, Topic, ZoneId};
use caracal_store::Store;
use caracal_store::outbox::Entry;
use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::losses::Losses;
use self::mirror::Mirror;
use self::state::Sending;
use crate::ViewError;
use crate::backoff::{Backoff, spread};

/// How long entries that were sent may stay unrecorded.
const RECORD_EVERY: Duration = Duration::from_millis(50);
/// How often entries that were sent long ago are removed.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// Entries that are removed in one statement.
const PRUNE_BATCH: u32 = 500;
/// How long the last round may take when the process stops.
const LAST_ROUND: Duration = Duration::from_secs(3);

/// How a relay behaves.
#[derive(Clone, Copy, Debug)]
pub struct RelayOptions {
    /// An entry that was refused this often is dead (`OUTBOX_MAX_ATTEMPTS`).
    pub max_attempts: u32,
    /// How long entries that were sent are kept (`OUTBOX_RETENTION_DAYS`).
    pub keep: Duration,
    /// Entries that are claimed at once (`OUTBOX_BATCH_SIZE`).
    pub batch: u32,
    /// For how long a claim keeps other relays from sending the same (`OUTBOX_LOCK_SEC`). Short: when
    /// a process dies with a claim, a revocation waits for that long. Sending twice is harmless.
    pub claim: Duration,
    /// How often the loop looks without having been woken (`OUTBOX_POLL_MS`).
    pub look_every: Duration,
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self {
            max_attempts: 20,
            keep: Duration::from_secs(7 * 24 * 3600),
            batch: 500,
            claim: Duration::from_secs(1),
            look_every: Duration::from_millis(250),
        }
    }
}

/// What a relay has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayStats {
    /// Entries that reached their topic.
    pub sent: u64,
    /// Attempts that the bus refused.
    pub refused: u64,
    /// Rounds that an outage of bus or store cut short.
    pub interrupted: u64,
    /// Entries that wait for the mirror.
    pub mirror_waiting: usize,
    /// Entries that the mirror never got: it was away for too long.
    pub mirror_lost: u64,
}

/// Writes down news that is evidence. It is told of an entry at least once, in the order of ids.
#[async_trait::async_trait]
pub trait Witness: Send + Sync {
    /// Whether news of this topic is to be witnessed.
    fn minds(&self, topic: &str) -> bool;

    /// Writes these entries down; durable when this answers.
    ///
    /// # Errors
    /// When they are not: they come again.
    async fn saw(
        &self,
        entries: Vec<Entry>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// Moves entries from the outbox to the bus. Clones share one state.
#[derive(Clone)]
pub struct Relay(Arc<Inner>);

struct Inner {
    store: Store,
    bus: Bus,
    clock: Arc<dyn Clock>,
    key: Option<HmacKey>,
    options: RelayOptions,
    mirror: Option<Mirror>,
    witness: OnceLock<Arc<dyn Witness>>,
    /// False while the witness does not write.
    witnessed: AtomicBool,
    sending: Mutex<Sending>,
    losses: Mutex<Losses>,
    /// Drains that were asked for.
    asked: AtomicU64,
    /// False while something that was committed may not be on the bus.
    healthy: Arc<AtomicBool>,
    sent: AtomicU64,
    refused: AtomicU64,
    interrupted: AtomicU64,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Relay {
    /// A relay from this store to this bus. With a key, entries are signed. With a mirror, the
    /// topics that resource servers and exporters read are copied there as well.
    pub fn new(
        store: Store,
        bus: Bus,
        clock: Arc<dyn Clock>,
        key: Option<HmacKey>,
        mirror: Option<Bus>,
        options: RelayOptions,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            bus,
            clock,
            key,
            options,
            mirror: mirror.map(Mirror::new),
            witness: OnceLock::new(),
            witnessed: AtomicBool::new(true),
            sending: Mutex::default(),
            losses: Mutex::default(),
            asked: AtomicU64::new(0),
            healthy: Arc::new(AtomicBool::new(true)),
            sent: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            interrupted: AtomicU64::new(0),
        }))
    }

    /// Has news witnessed from now on. One relay has one witness: a second one is ignored.
    pub fn witnessed_by(&self, witness: Arc<dyn Witness>) {
        if self.0.witness.set(witness).is_err() {
            tracing::error!("the relay has a witness already");
        }
    }

    /// Sends everything that was committed before this was called, unless the bus refuses it or
    /// another relay has just claimed it. Safe to call from everywhere at once: callers that come
    /// while one drains share the next round.
    ///
    /// # Errors
    /// When bus or store cannot be reached; the loop tries again.
    pub async fn drain(&self) -> Result<(), ViewError> {
        let number = self.0.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let at = Arc::clone(&self.0);
        #[expect(
            clippy::disallowed_methods,
            reason = "owned by who waits for it, else by the next round: it waits for `sending`"
        )]
        let round = tokio::spawn(async move { at.drain(number).await });
        let drained = round.await;
        drained.unwrap_or_else(|error| Err(ViewError::Unreachable(error.to_string())))
    }

    /// Drains, and waits until nothing that ends authority in this zone is left in the outbox,
    /// whichever relay has it in hand. `false` when that took longer than `wait`.
    ///
    /// # Errors
    /// When bus or store cannot be reached.
    pub async fn flush(&self, zone: &ZoneId, wait: Duration) -> Result<bool, ViewError> {
        let began = self.0.clock.ticks();
        let looks = async {
            loop {
                self.drain().await?;
                self.record().await?;
                if !self.0.store.zone(zone).has_unsent_revocations().await? {
                    return Ok(true);
                }
                if self.0.clock.ticks().since(began) >= wait {
                    return Ok(false);
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(wait, looks).await.unwrap_or(Ok(false))
    }

    /// Records what was sent.
    ///
    /// # Errors
    /// When the store cannot be reached: it is recorded later.
    pub async fn record(&self) -> Result<(), ViewError> {
        let (mut unrecorded, unwitnessed) = {
            let sending = self.0.sending.lock().await;
            let waits = self
                .0
                .mirror
                .as_ref()
                .map(Mirror::holds_back)
                .unwrap_or_default();
            let unrecorded = sending.unrecorded(&waits);
            let unwitnessed = sending.unwitnessed(&unrecorded);
            (unrecorded, unwitnessed)
        };
        let held_back = self.0.witness(unwitnessed).await;
        unrecorded.retain(|id| !held_back.contains(id));
        if unrecorded.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = unrecorded.iter().map(String::as_str).collect();
        self.0.store.outbox().dispatched(&ids).await?;
        // Only now: until the store says so, a claim may bring them again.
        self.0.sending.lock().await.recorded(&unrecorded);
        Ok(())
    }

    /// Drains, records and prunes until told to stop, then once more.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut pruned: Option<Ticks> = None;
        while !stop.is_cancelled() {
            let pause = match self.round(&mut pruned).await {
                Ok(()) => {
                    backoff.reset();
                    self.0.options.look_every
                }
                Err(error) => {
                    tracing::warn!(%error, "outbox not relayed, kept in the store");
                    backoff.next()
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.wait(pause) => {}
            }
        }
        let last = async {
            self.round(&mut pruned).await?;
            self.record().await
        };
        if !matches!(timeout(LAST_ROUND, last).await, Ok(Ok(()))) {
            tracing::warn!("outbox not drained at the end, kept in the store");
        }
    }

    /// Until a commit rings, or `pause` is over; what was sent is recorded in between.
    async fn wait(&self, pause: Duration) {
        let rung = self.0.store.outbox_wake().notified();
        let tick = async {
            sleep(RECORD_EVERY.min(pause)).await;
            if let Err(error) = self.record().await {
                tracing::debug!(%error, "sent entries not recorded yet");
            }
            sleep(pause.saturating_sub(RECORD_EVERY)).await;
        };
        tokio::select! {
            () = rung => {}
            () = tick => {}
        }
    }

    async fn round(&self, pruned: &mut Option<Ticks>) -> Result<(), ViewError> {
        self.0.make_up_for_losses().await?;
        self.drain().await?;
        if let Some(mirror) = &self.0.mirror {
            mirror.catch_up().await;
        }
        let full = self.0.sending.lock().await.is_due_for_recording();
        if full {
            self.record().await?;
        }
        let now = self.0.clock.ticks();
        if pruned.is_none_or(|at| now.since(at) >= PRUNE_EVERY) {
            let before = self.0.clock.now().minus(self.0.options.keep);
            while self.0.store.outbox().prune(before, PRUNE_BATCH).await? >= u64::from(PRUNE_BATCH)
            {
            }
            *pruned = Some(now);
        }
        Ok(())
    }

    /// False while something that was committed may not be on the bus.
    pub(crate) fn health(&self) -> Arc<AtomicBool> {
        self.0.healthy.clone()
    }

    /// What was done so far.
    pub fn stats(&self) -> RelayStats {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        RelayStats {
            sent: count(&self.0.sent),
            refused: count(&self.0.refused),
            interrupted: count(&self.0.interrupted),
            mirror_waiting: self
                .0
                .mirror
                .as_ref()
                .map(Mirror::waiting)
                .unwrap_or_default(),
            mirror_lost: self.0.mirror.as_ref().map(Mirror::lost).unwrap_or_default(),
        }
    }
}

/// One topic's share of what is to be sent.
struct Batch {
    topic: String,
    ids: Vec<String>,
    entries: Vec<Fields>,
}

impl Inner {
    /// Has entries written down; answers with those that were not, which are told of again.
    async fn witness(&self, mut entries: Vec<Entry>) -> HashSet<String> {
        let Some(witness) = self.witness.get().filter(|_| !entries.is_empty()) else {
            return HashSet::new();
        };
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        let ids = entries.iter().map(|entry| entry.id.clone()).collect();
        match witness.saw(entries).await {
            Ok(()) => {
                self.witnessed.store(true, Ordering::Relaxed);
                HashSet::new()
            }
            Err(error) => {
                // Told once, not twenty times a second.
                if self.witnessed.swap(false, Ordering::Relaxed) {
                    tracing::error!(%error, "changes are not written down as evidence yet");
                }
                ids
            }
        }
    }

    /// Drains for the caller of this number, unless a round that began later has.
    async fn drain(&self, number: u64) -> Result<(), ViewError> {
        let mut sending = self.sending.lock().await;
        if sending.served >= number {
            return Ok(());
        }
        let covers = self.asked.load(Ordering::SeqCst);
        let drained = Box::pin(self.drain_all(&mut sending)).await;
        self.healthy.store(drained.is_ok(), Ordering::SeqCst);
        if drained.is_err() {
            self.interrupted.fetch_add(1, Ordering::Relaxed);
        }
        drained?;
        sending.served = covers;
        Ok(())
    }

    async fn drain_all(&self, sending: &mut Sending) -> Result<(), ViewError> {
        loop {
            // What is sent and not recorded comes again with a claim, so more has to be asked for.
            let (batch, claim) = (self.options.batch, self.options.claim);
            let limit = batch.saturating_add(sending.unrecorded_count());
            let claimed = self.store.outbox().claim(limit, claim).await?;
            let more = claimed.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
            sending.take(claimed);
            if sending.is_idle() {
                return Ok(());
            }
            self.send(sending).await?;
            if !more {
                return Ok(());
            }
        }
    }

    async fn send(&self, sending: &mut Sending) -> Result<(), ViewError> {
        let batches = self.batches(sending);
        let appends = batches
            .iter()
            .map(|batch| self.bus.append(&batch.topic, &batch.entries));
        let answers = join_all(appends).await;
        let mut outage = None;
        for (batch, answer) in batches.into_iter().zip(answers) {
            match answer {
                Ok(_) => self.sent(sending, &batch),
                Err(error) if error.is_outage() => outage = Some(error),
                // One of them is refused: find out which.
                Err(_) => {
                    if let Err(error) = self.send_each(sending, batch).await {
                        outage = Some(error);
                    }
                }
            }
        }
        outage.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn send_each(&self, sending: &mut Sending, batch: Batch) -> Result<(), BusError> {
        for (id, fields) in batch.ids.into_iter().zip(batch.entries) {
            let one = Batch {
                topic: batch.topic.clone(),
                ids: vec![id],
                entries: vec![fields],
            };
            match self.bus.append(&one.topic, &one.entries).await {
                Ok(_) => self.sent(sending, &one),
                Err(error) if error.is_outage() => return Err(error),
                Err(error) => self.set_aside(sending, &one, &error).await,
            }
        }
        Ok(())
    }

    fn sent(&self, sending: &mut Sending, batch: &Batch) {
        let count = u64::try_from(batch.ids.len()).unwrap_or(u64::MAX);
        self.sent.fetch_add(count, Ordering::Relaxed);
        if let Some(mirror) = &self.mirror {
            mirror.add(&batch.topic, &batch.ids, &batch.entries);
        }
        let witness = self.witness.get();
        for id in &batch.ids {
            sending.sent(id, |entry| {
                witness.is_some_and(|witness| witness.minds(&entry.topic))
            });
        }
    }

    async fn set_aside(&self, sending: &mut Sending, one: &Batch, why: &BusError) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        for id in &one.ids {
            let attempts = sending.give_up(id);
            let pause = spread(Duration::from_secs(1), Duration::from_secs(60), attempts);
            tracing::error!(id, topic = one.topic, %why, attempts, "outbox entry refused");
            let (ids, why) = ([id.as_str()], why.to_string());
            let outbox = self.store.outbox();
            let failed = outbox.failed(&ids, &why, pause, self.options.max_attempts);
            if let Err(error) = failed.await {
                tracing::warn!(id, %error, "failure of an outbox entry not recorded");
            }
        }
    }

    fn batches(&self, sending: &Sending) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        for entry in sending.in_order() {
            let fields = self.envelope(entry);
            let batch = match batches.iter_mut().find(|batch| batch.topic == entry.topic) {
                Some(batch) => batch,
                None => {
                    let topic = entry.topic.clone();
                    batches.push(Batch {
                        topic,
                        ids: Vec::new(),
                        entries: Vec::new(),
                    });
                    let Some(batch) = batches.last_mut() else {
                        continue;
                    };
                    batch
                }
            };
            batch.ids.push(entry.id.clone());
            batch.entries.push(fields);
        }
        batches
    }

    /// What goes on the wire: the fields, `outbox_id`, and `_sig` when there is a key. Evidence has
    /// a signature of its own (spec: audit-and-streams §1).
    fn envelope(&self, entry: &Entry) -> Fields {
        let mut fields = entry.fields.clone();
        fields.insert("outbox_id".to_owned(), entry.id.clone());
        let is_evidence = entry.topic == Topic::AuditEvents.name();
        if let Some(key) = self.key.as_ref().filter(|_| !is_evidence) {
            sign_entry(key, &entry.topic, &mut fields);
        }
        fields
    }
}
