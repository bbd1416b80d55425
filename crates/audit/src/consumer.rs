//! From the bus into the ledger (spec: audit-and-streams §6; "better" 1 to 3 and 5).
//!
//! **Forces.** Nothing may be acknowledged that is not durable, or a crash loses it. A store outage
//! must not turn evidence into dead letters. One entry that can never be stored must not hold up
//! the rest.
//!
//! **Choice.** Read a thousand, check signatures, commit once, acknowledge once, then trim what is
//! acknowledged. While the store refuses, the batch stays in hand and nothing further is read: the
//! topic is the queue. Only poison goes to the dead-letter topic: no text, no valid signature, no
//! event, another text under a known id, or a text that the store refuses while it takes others.
//!
//! INVARIANT (acknowledge last): an entry is acknowledged after its commit, or after its dead
//! letter was written. Whatever fails in between comes again, and is then a duplicate.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use caracal_bus::{Bus, BusError, Entry, Position};
use caracal_model::change::Fields;
use caracal_model::{Ticks, Topic};
use caracal_store::StoreError;
use tokio_util::sync::CancellationToken;

use crate::ingest::{Ingest, IngestOutcome};

/// The group in which ingesters share the topic.
pub const GROUP: &str = "audit-ingestor";
/// Where poison goes.
pub const DEAD_LETTERS: &str = "caracal.audit.events.dlq";
/// Holds the dead letters for whoever looks at them.
pub const DEAD_LETTER_GROUP: &str = "audit-dlq-observer";

const TOPIC: &str = Topic::AuditEvents.name();
/// How often acknowledged entries are trimmed, at most.
const TRIM_EVERY: Duration = Duration::from_secs(1);
const BACKOFF_FROM: Duration = Duration::from_millis(100);
const BACKOFF_TO: Duration = Duration::from_secs(10);

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
}

impl ConsumerOptions {
    /// The defaults of the service, under this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            batch: 1_000,
            wait: Duration::from_secs(5),
            claim_idle: Duration::from_secs(30),
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
                    self.health.set(false);
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
        self.bus
            .ensure_group(DEAD_LETTERS, DEAD_LETTER_GROUP, true)
            .await
    }

    /// Takes a batch, unless one is in hand, and finishes it.
    async fn turn(&mut self, stop: &CancellationToken) -> Result<(), ConsumeError> {
        if self.in_hand.is_empty() {
            self.in_hand = self.take(stop).await?;
        }
        self.finish().await?;
        self.trim().await;
        Ok(())
    }

    async fn take(&mut self, stop: &CancellationToken) -> Result<Vec<Entry>, ConsumeError> {
        let options = &self.options;
        let now = self.ingest.clock().ticks();
        let due = self
            .claimed_at
            .is_none_or(|at| now.since(at) >= options.claim_idle / 2);
        if due {
            if self.claimed_at.is_none() {
                self.ensure_groups().await?;
            }
            let (idle, batch) = (options.claim_idle, options.batch);
            let claimed = self
                .bus
                .claim_idle(TOPIC, GROUP, &options.name, idle, batch)
                .await?;
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
            .read_group(TOPIC, GROUP, &options.name, options.batch, options.wait);
        tokio::select! {
            // What a read that was cut off had been given is claimed later, by anybody.
            () = stop.cancelled() => Ok(Vec::new()),
            entries = read => Ok(entries?),
        }
    }

    /// Commits the batch in hand, writes its dead letters, then acknowledges it.
    async fn finish(&mut self) -> Result<(), ConsumeError> {
        if self.in_hand.is_empty() {
            return Ok(());
        }
        let mut sorted = self.sort_out();
        let outcome = self
            .ingest
            .commit(std::mem::take(&mut sorted.texts))
            .await?;
        sorted.condemn(&outcome);
        self.bury(&sorted.poison).await?;
        let done: Vec<Position> = self.in_hand.iter().map(|entry| entry.position).collect();
        self.bus.ack(TOPIC, GROUP, &done).await?;
        self.in_hand.clear();
        self.untrimmed = true;
        Ok(())
    }

    fn sort_out(&self) -> Sorted {
        let mut sorted = Sorted::default();
        for (at, entry) in self.in_hand.iter().enumerate() {
            match self.text(&entry.fields) {
                Ok(text) => {
                    sorted.texts.push(text.to_owned());
                    sorted.origins.push(at);
                }
                Err(reason) => sorted.poison.push((at, reason.to_owned())),
            }
        }
        sorted
    }

    fn text<'f>(&self, fields: &'f Fields) -> Result<&'f str, &'static str> {
        let text = fields.get("data").ok_or("missing_data_field")?;
        let Some(key) = self.ingest.key() else {
            return Ok(text);
        };
        let signed = fields
            .get("sig")
            .is_some_and(|sig| key.verify_hex(text.as_bytes(), sig));
        if signed {
            Ok(text)
        } else {
            self.ingest.metrics().hmac_failures.inc();
            Err("hmac_verify_failed")
        }
    }

    async fn bury(&self, poison: &[(usize, String)]) -> Result<(), BusError> {
        let letters: Vec<Fields> = poison
            .iter()
            .filter_map(|(at, reason)| Some(self.dead_letter(self.in_hand.get(*at)?, reason)))
            .collect();
        self.bus.append(DEAD_LETTERS, &letters).await?;
        self.ingest
            .metrics()
            .dlq
            .inc_by(u64::try_from(letters.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn dead_letter(&self, entry: &Entry, reason: &str) -> Fields {
        tracing::error!(position = %entry.position, reason, "evidence is a dead letter");
        let received_at = self.ingest.clock().now().unix_millis();
        let mut letter: Fields = entry
            .fields
            .iter()
            .map(|(name, value)| (format!("src_{name}"), value.clone()))
            .collect();
        letter.insert("reason".to_owned(), reason.to_owned());
        letter.insert("src_id".to_owned(), entry.position.to_string());
        letter.insert("received_at".to_owned(), received_at.to_string());
        letter
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
    /// Adds what the ledger would not take.
    fn condemn(&mut self, outcome: &IngestOutcome) {
        let tampered = outcome
            .tampered
            .iter()
            .map(|&at| (at, "tamper_on_replay".to_owned()));
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
