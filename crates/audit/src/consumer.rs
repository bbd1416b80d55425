//! From the bus into the ledger (spec: audit-and-streams §6; "better" 1 to 3 and 5).
//!
//! **Forces.** Nothing may be acknowledged that is not durable, or a crash loses it. A store outage
//! must not turn evidence into dead letters. One entry that can never be stored must not hold up
//! the rest.
//!
//! **Choice.** Read a thousand, check signatures, commit once, acknowledge once, then trim what is
//! acknowledged. While the store refuses, the batch stays in hand and nothing further is read: the
//! topic is the queue. Only poison goes to the dead-letter topic: no text, no valid signature, no
//! event, another text under a known id, or a text that the store refuses while it takes others. A
//! batch that fails although the store answers is taken apart: what fails alone, again and again,
//! while others succeed, is poison too (`AUDIT_MAX_DELIVERIES`). Where there are no others in the
//! batch, those that come later are read beside it, so that it does not hold them up.
//!
//! INVARIANT (acknowledge last): an entry is acknowledged after its commit, or after its dead
//! letter was written. Whatever fails in between comes again, and is then a duplicate.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use caracal_bus::{Bus, BusError, Entry, Position};
use caracal_model::change::Fields;
use caracal_model::{Ticks, Topic};
use caracal_store::StoreError;
use tokio_util::sync::CancellationToken;

use crate::dead_letters::{
    DEAD_LETTER_GROUP, DEAD_LETTERS, EMPTY, LettersError, TAMPERED, TOO_OFTEN, UNSIGNED, letter,
};
use crate::ingest::{Ingest, IngestOutcome};

/// The group in which ingesters share the topic: what it is done with, producers forget.
pub const GROUP: &str = caracal_evidence::LEDGER_GROUP;
/// Reads the topic for an exporter of somebody's own; provisioned for it, and holds nothing until it
/// reads (spec: audit-and-streams §0 and §2.1).
pub const EXPORTER_GROUP: &str = "siem-export";

const TOPIC: &str = Topic::AuditEvents.name();
/// How often acknowledged entries are trimmed, at most.
const TRIM_EVERY: Duration = Duration::from_secs(1);
/// How often a batch may fail, while the store answers, before it is taken apart.
const SUSPECT: u32 = 3;
const BACKOFF_FROM: Duration = Duration::from_millis(100);
/// Short, because it is also how much later than the store or the bus the consumer comes back.
const BACKOFF_TO: Duration = Duration::from_secs(1);

/// How the consumer reads.
#[derive(Clone, Debug)]
pub struct ConsumerOptions {
    /// Its name within the group; of this process alone.
    pub name: String,
    /// Entries that are read at a time.
    pub batch: usize,
    /// How long a read waits for the first.
    pub wait: Duration,
    /// When entries that another consumer did not finish are taken over.
    pub claim_idle: Duration,
    /// How often an entry may fail while others succeed before it is a dead letter.
    pub max_deliveries: u32,
}

impl ConsumerOptions {
    /// The defaults of the service, under this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            batch: 1_000,
            wait: Duration::from_secs(5),
            claim_idle: Duration::from_secs(30),
            max_deliveries: 8,
        }
    }
}

/// Whether the consumer makes progress: `/ready` asks.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<AtomicBool>);

impl Health {
    /// Whether the last thing that it tried worked.
    pub fn is_well(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, well: bool) {
        if self.0.swap(well, Ordering::Relaxed) != well {
            tracing::info!(well, "the consumer of evidence changed its state");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ConsumeError {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ConsumeError {
    /// The store is away, which `/ready` asks it itself; what was read waits.
    fn is_backpressure(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

impl From<LettersError> for ConsumeError {
    fn from(error: LettersError) -> Self {
        match error {
            LettersError::Bus(error) => Self::Bus(error),
            LettersError::Store(error) => Self::Store(error),
        }
    }
}

/// Reads evidence from the bus into the ledger.
pub struct Consumer {
    bus: Bus,
    ingest: Arc<Ingest>,
    options: ConsumerOptions,
    health: Health,
    claimed_at: Option<Ticks>,
    trimmed_at: Option<Ticks>,
    /// Something was acknowledged since.
    untrimmed: bool,
    /// Read, and not yet finished.
    in_hand: Vec<Entry>,
    /// How often what is in hand has failed while the store answered.
    refusals: u32,
    /// How often an entry has failed while others succeeded.
    failures: HashMap<Position, u32>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What a batch comes to.
#[derive(Default)]
struct Sorted {
    /// Texts to commit, and which entry each came from.
    texts: Vec<String>,
    origins: Vec<usize>,
    /// Entries that can never be stored, and why.
    poison: Vec<(usize, String)>,
}

impl Consumer {
    /// Reads from this bus into this ledger.
    pub fn new(bus: Bus, ingest: Arc<Ingest>, options: ConsumerOptions) -> Self {
        Self {
            bus,
            ingest,
            options,
            health: Health::default(),
            claimed_at: None,
            trimmed_at: None,
            untrimmed: false,
            in_hand: Vec::new(),
            refusals: 0,
            failures: HashMap::new(),
        }
    }

    /// How it is doing.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Reads until `stop`; finishes the batch in hand, unless the store or the bus is away.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = BACKOFF_FROM;
        while !stop.is_cancelled() {
            match self.turn(&stop).await {
                Ok(()) => {
                    self.health.set(true);
                    backoff = BACKOFF_FROM;
                }
                Err(error) => {
                    if !error.is_backpressure() {
                        self.health.set(false);
                    }
                    tracing::warn!(%error, in_hand = self.in_hand.len(), "evidence waits");
                    self.recreate_groups(&error).await;
                    let pause = backoff + self.jitter(backoff);
                    backoff = (backoff * 2).min(BACKOFF_TO);
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
        if let Err(error) = self.finish().await {
            // What was not acknowledged is given to somebody else, or to us after the restart.
            tracing::warn!(%error, "evidence stays on the bus");
        }
    }

    /// Up to half as much again, so that replicas do not come back all at once.
    fn jitter(&self, of: Duration) -> Duration {
        let micros = self.ingest.clock().now().unix_micros().unsigned_abs();
        let half = u64::try_from(of.as_micros() / 2).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(micros % half)
    }

    async fn recreate_groups(&self, error: &ConsumeError) {
        if matches!(error, ConsumeError::Bus(BusError::NoGroup { .. })) {
            tracing::warn!("the consumer group is gone and is made again, from the first entry");
            // Failing again shows at the next read.
            let _ = self.ensure_groups().await;
        }
    }

    async fn ensure_groups(&self) -> Result<(), BusError> {
        self.bus.ensure_group(TOPIC, GROUP, true).await?;
        self.bus.ensure_group(TOPIC, EXPORTER_GROUP, false).await?;
        self.bus
            .ensure_group(DEAD_LETTERS, DEAD_LETTER_GROUP, true)
            .await
    }

    /// Takes a batch, unless one is in hand, and finishes it. What failed alone joins the next one,
    /// to see whether it fails while others succeed.
    async fn turn(&mut self, stop: &CancellationToken) -> Result<(), ConsumeError> {
        if self.in_hand.is_empty() || !self.failures.is_empty() || self.is_suspect() {
            let room = self.options.batch.saturating_sub(self.in_hand.len());
            if room > 0 {
                let taken = self.take(room, stop).await?;
                self.in_hand.extend(taken);
            }
        }
        self.finish().await?;
        self.trim().await;
        Ok(())
    }

    /// What is in hand already is claimed again when that takes long: it must not stand before what
    /// nobody has.
    fn without_held(&self, mut taken: Vec<Entry>) -> Vec<Entry> {
        let held: HashSet<Position> = self.in_hand.iter().map(|entry| entry.position).collect();
        taken.retain(|entry| !held.contains(&entry.position));
        taken
    }

    async fn take(
        &mut self,
        room: usize,
        stop: &CancellationToken,
    ) -> Result<Vec<Entry>, ConsumeError> {
        let options = &self.options;
        let now = self.ingest.clock().ticks();
        let due = self
            .claimed_at
            .is_none_or(|at| now.since(at) >= options.claim_idle / 2);
        if due {
            if self.claimed_at.is_none() {
                self.ensure_groups().await?;
            }
            let claimed = self
                .bus
                .claim_idle(TOPIC, GROUP, &options.name, options.claim_idle, room)
                .await?;
            let claimed = self.without_held(claimed);
            let count = u64::try_from(claimed.len()).unwrap_or(u64::MAX);
            self.ingest.metrics().retries.inc_by(count);
            if !claimed.is_empty() {
                return Ok(claimed); // and look for more before reading new ones
            }
            self.claimed_at = Some(now);
            // The bus answers and nothing is in hand: there is no need to wait for an entry.
            self.health.set(true);
        }
        let read = self
            .bus
            .read_group(TOPIC, GROUP, &options.name, room, options.wait);
        tokio::select! {
            // What a read that was cut off had been given is claimed later, by anybody.
            () = stop.cancelled() => Ok(Vec::new()),
            entries = read => Ok(self.without_held(entries?)),
        }
    }

    /// Commits the batch in hand, writes its dead letters, then acknowledges it.
    async fn finish(&mut self) -> Result<(), ConsumeError> {
        if self.in_hand.is_empty() {
            return Ok(());
        }
        let mut sorted = self.sort_out().await;
        let outcome = self.commit(std::mem::take(&mut sorted.texts)).await?;
        let delayed = self.delayed(&mut sorted, &outcome);
        sorted.condemn(&outcome);
        self.bury(&sorted.poison).await?;
        let done: Vec<Position> = self
            .in_hand
            .iter()
            .map(|entry| entry.position)
            .filter(|position| !delayed.contains(position))
            .collect();
        self.bus.ack(TOPIC, GROUP, &done).await?;
        self.in_hand
            .retain(|entry| delayed.contains(&entry.position));
        self.failures
            .retain(|position, _| delayed.contains(position));
        self.untrimmed = true;
        Ok(())
    }

    /// One event may be why a batch fails: then each is committed alone, until none is left that
    /// fails.
    async fn commit(&mut self, texts: Vec<String>) -> Result<IngestOutcome, ConsumeError> {
        let apart = self.is_suspect() || !self.failures.is_empty();
        let outcome = if apart {
            self.ingest.commit_each(texts).await
        } else {
            self.ingest.commit(texts).await
        };
        match outcome {
            Ok(outcome) => {
                self.refusals = 0;
                Ok(outcome)
            }
            Err(error) => {
                if !error.is_transient() || self.ingest.store().ping().await.is_ok() {
                    self.refusals = self.refusals.saturating_add(1);
                }
                Err(error.into())
            }
        }
    }

    /// Whether what is in hand may be why it fails.
    fn is_suspect(&self) -> bool {
        self.refusals >= SUSPECT
    }

    /// Counts the failures of what failed while others succeeded; answers with what stays in hand.
    fn delayed(&mut self, sorted: &mut Sorted, outcome: &IngestOutcome) -> HashSet<Position> {
        let mut stays = HashSet::new();
        for (at, why) in &outcome.delayed {
            let Some(&origin) = sorted.origins.get(*at) else {
                continue;
            };
            let Some(entry) = self.in_hand.get(origin) else {
                continue;
            };
            let failures = self.failures.entry(entry.position).or_default();
            *failures = failures.saturating_add(1);
            if *failures >= self.options.max_deliveries {
                sorted.poison.push((origin, format!("{TOO_OFTEN}:{why}")));
            } else {
                stays.insert(entry.position);
            }
        }
        stays
    }

    async fn sort_out(&self) -> Sorted {
        let mut sorted = Sorted::default();
        let mut signed = Vec::with_capacity(self.in_hand.len());
        for (at, entry) in self.in_hand.iter().enumerate() {
            match entry.fields.get("data") {
                Some(text) => {
                    sorted.texts.push(text.clone());
                    sorted.origins.push(at);
                    signed.push((text.clone(), entry.fields.get("sig").cloned()));
                }
                None => sorted.poison.push((at, EMPTY.to_owned())),
            }
        }
        let are_signed = self.ingest.are_signed(signed).await;
        let unsigned = sorted.keep_signed(&are_signed);
        self.ingest.metrics().hmac_failures.inc_by(unsigned);
        sorted
    }

    async fn bury(&self, poison: &[(usize, String)]) -> Result<(), LettersError> {
        let now = self.ingest.clock().now();
        let letters: Vec<Fields> = poison
            .iter()
            .filter_map(|(at, reason)| Some((self.in_hand.get(*at)?, reason)))
            .map(|(entry, reason)| {
                let source = entry.fields.clone();
                letter(source, entry.position.to_string(), reason, now)
            })
            .collect();
        self.ingest.bury(&letters).await
    }

    async fn trim(&mut self) {
        let now = self.ingest.clock().ticks();
        let lately = self.trimmed_at.is_some_and(|at| now.since(at) < TRIM_EVERY);
        if lately || !self.untrimmed {
            return;
        }
        self.trimmed_at = Some(now);
        self.untrimmed = false;
        if let Err(error) = self.bus.trim_acknowledged(TOPIC, &[GROUP]).await {
            tracing::warn!(%error, "acknowledged evidence was not trimmed");
        }
    }
}

impl Sorted {
    /// Leaves those to commit that are signed; answers with how many are not.
    fn keep_signed(&mut self, are_signed: &[bool]) -> u64 {
        let texts = std::mem::take(&mut self.texts);
        let origins = std::mem::take(&mut self.origins);
        let mut unsigned = 0;
        for ((text, origin), is_signed) in texts.into_iter().zip(origins).zip(are_signed) {
            if *is_signed {
                self.texts.push(text);
                self.origins.push(origin);
            } else {
                self.poison.push((origin, UNSIGNED.to_owned()));
                unsigned += 1;
            }
        }
        unsigned
    }

    /// Adds what the ledger would not take.
    fn condemn(&mut self, outcome: &IngestOutcome) {
        let tampered = outcome.tampered.iter().map(|&at| (at, TAMPERED.to_owned()));
        let rejected = outcome
            .rejected
            .iter()
            .map(|(at, why)| (*at, why.to_string()));
        let mut seen: HashSet<usize> = HashSet::new();
        for (at, reason) in tampered.chain(rejected) {
            if let Some(&origin) = self.origins.get(at).filter(|&&origin| seen.insert(origin)) {
                self.poison.push((origin, reason));
            }
        }
    }
}
