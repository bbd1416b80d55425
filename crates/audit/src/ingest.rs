//! Appending to the ledger: a batch of events, in one transaction, exactly once.
//!
//! **Forces.** Events arrive at least once, from many producers, through several ingesters at a
//! time; the chain of a zone must have one order and no gap; and a commit of its own for each event
//! costs more than everything else about it.
//!
//! **Choice.** Look up which ids are known, link the rest behind the remembered heads, and append
//! rows and heads together, on condition that the heads are still where we saw them. Whoever was
//! overtaken looks again. INVARIANT (exactly once): ids are unique in the ledger, so a batch that
//! was delivered twice, even at the same time, is appended once.
//!
//! **Consequence.** An id that comes again with another text is never stored over what was first:
//! it is kept as an alert, counted and logged.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use caracal_bus::Bus;
use caracal_crypto::HmacKey;
use caracal_ledger::Head;
use caracal_model::change::Fields;
use caracal_model::{Clock, Timestamp, ZoneId};
use caracal_store::audit_events::{Appended, AuditAlert, AuditHead, HeadMove, Placed};
use caracal_store::{Store, StoreError};
use tokio::sync::Mutex;

use crate::dead_letters::{DeadLetters, LettersError};
use crate::entry::Incoming;
use crate::metrics::Metrics;
use crate::parallel;
use crate::recent::{Recent, Step};

/// How often a batch may be overtaken before somebody else should have the processor.
const ATTEMPTS: usize = 64;
/// Events that fail one after another before it is the store that fails.
const OUTAGE: usize = 3;

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngestOutcome {
    /// Appended now.
    pub inserted: usize,
    /// Known already, with the same text.
    pub duplicates: usize,
    /// Known already, with another text: their places in the batch.
    pub tampered: Vec<usize>,
    /// Not to be stored, ever: their places in the batch, and why.
    pub rejected: Vec<(usize, Rejection)>,
    /// Not stored this time, while others were: their places in the batch, and why
    /// ([`Ingest::commit_each`] only).
    pub delayed: Vec<(usize, String)>,
}

/// Why an event can never be stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It is no event.
    #[error("json_parse_error:{0}")]
    NotAnEvent(String),
    /// The store takes others, and refuses this one.
    #[error("pg_permanent_error:{0}")]
    Refused(String),
}

/// Appends to the ledger. Cheap to share.
pub struct Ingest {
    store: Store,
    key: Option<Arc<HmacKey>>,
    clock: Arc<dyn Clock>,
    /// Where the chains end, as far as we know. Its lock is also the queue of this process: two
    /// batches at once would only overtake each other.
    heads: Mutex<Tips>,
    /// What was appended since, for the trees.
    recent: Recent,
    metrics: Metrics,
    letters: DeadLetters,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ingest(..)")
    }
}

/// Where the chain of a zone ends, and when that was appended.
#[derive(Clone, Debug)]
struct Tip {
    head: Head,
    at: Timestamp,
}

impl Default for Tip {
    fn default() -> Self {
        Self {
            head: Head::GENESIS,
            at: Timestamp::from_unix_micros(0),
        }
    }
}

type Tips = HashMap<ZoneId, Tip>;

/// A parsed batch.
#[derive(Default)]
struct Batch {
    /// Place in the batch, and event.
    events: Vec<(usize, Incoming)>,
    outcome: IngestOutcome,
}

impl Ingest {
    /// Without a key, chains show every change but not who made them. What can never be appended is
    /// kept in the store ([`Ingest::with_bus`] has it on the bus).
    pub fn new(store: Store, key: Option<HmacKey>, clock: Arc<dyn Clock>) -> Self {
        Self {
            letters: DeadLetters::in_store(store.clone(), Arc::clone(&clock)),
            store,
            key: key.map(Arc::new),
            clock,
            heads: Mutex::default(),
            recent: Recent::default(),
            metrics: Metrics::default(),
        }
    }

    /// Keeps what can never be appended on this bus, whose topic the events come from.
    #[must_use]
    pub fn with_bus(mut self, bus: Bus) -> Self {
        self.letters = DeadLetters::on_bus(bus, Arc::clone(&self.clock));
        self
    }

    /// What could not be appended.
    pub fn dead_letters(&self) -> &DeadLetters {
        &self.letters
    }

    /// Keeps these as dead letters.
    pub(crate) async fn bury(&self, letters: &[Fields]) -> Result<(), LettersError> {
        for letter in letters {
            let said = |name| letter.get(name).map_or("", String::as_str);
            let (position, reason) = (said("src_id"), said("reason"));
            tracing::error!(position, reason, "evidence is a dead letter");
        }
        let dropped = self.letters.keep(letters).await?;
        let add = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.metrics.dlq.inc_by(add(letters.len()));
        self.metrics.dlq_dropped.inc_by(dropped);
        Ok(())
    }

    /// The store that is appended to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The key of signatures and chains.
    pub fn key(&self) -> Option<&HmacKey> {
        self.key.as_deref()
    }

    pub(crate) fn shared_key(&self) -> Option<Arc<HmacKey>> {
        self.key.clone()
    }

    /// Whether each of these texts carries its signature (hex); all do without a key.
    pub(crate) async fn are_signed(&self, texts: Vec<(String, Option<String>)>) -> Vec<bool> {
        let Some(key) = self.key.clone() else {
            return vec![true; texts.len()];
        };
        let since = self.clock.ticks();
        let are_signed = parallel::map(texts, move |(text, sig)| {
            sig.is_some_and(|sig| key.verify_hex(text.as_bytes(), &sig))
        });
        let are_signed = are_signed.await;
        let took = self.clock.ticks().since(since);
        self.metrics.verify.took(took);
        are_signed
    }

    pub(crate) fn recent(&self) -> &Recent {
        &self.recent
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    /// Appends the texts in their order; answers when that is durable.
    ///
    /// # Errors
    /// When the store did not take the batch; nothing of it was appended then, or all of it was and
    /// only the answer got lost. Trying again is right in both cases.
    pub async fn commit(&self, texts: Vec<String>) -> Result<IngestOutcome, StoreError> {
        let size = u64::try_from(texts.len()).unwrap_or(u64::MAX);
        let batch = parse(texts).await;
        let mut heads = self.heads.lock().await;
        let since = self.clock.ticks();
        let outcome = match self.append(&mut heads, &batch).await {
            Err(error) if !error.is_transient() && batch.events.len() > 1 => {
                tracing::warn!(%error, "a batch is refused, and taken apart");
                self.singly(&mut heads, batch).await
            }
            done => done,
        };
        let took = self.clock.ticks().since(since);
        self.metrics.commit.took(took);
        if outcome.is_err() {
            self.metrics.commit_failures.inc();
        }
        let outcome = outcome?;
        self.metrics.batch_size.0.observe(size);
        self.count(&outcome);
        Ok(outcome)
    }

    /// As [`Ingest::commit`], in a transaction for each event: for a batch that failed more than
    /// once while the store answered, so that one event in it may be the reason.
    ///
    /// # Errors
    /// When the store took none of them.
    pub async fn commit_each(&self, texts: Vec<String>) -> Result<IngestOutcome, StoreError> {
        let batch = parse(texts).await;
        let mut heads = self.heads.lock().await;
        let outcome = self.singly(&mut heads, batch).await;
        if outcome.is_err() {
            self.metrics.commit_failures.inc();
        }
        let outcome = outcome?;
        self.count(&outcome);
        Ok(outcome)
    }

    fn count(&self, outcome: &IngestOutcome) {
        let add = |counter: &caracal_net::metrics::Counter, count: usize| {
            counter.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        };
        add(&self.metrics.inserts, outcome.inserted);
        add(&self.metrics.duplicates, outcome.duplicates);
        add(&self.metrics.tamper_replay, outcome.tampered.len());
        add(&self.metrics.parse_errors, outcome.rejected.len());
    }

    /// One event that the store refuses must not hold up all others. When it refuses every one, the
    /// fault is not theirs, and none is given up.
    async fn singly(&self, heads: &mut Tips, batch: Batch) -> Result<IngestOutcome, StoreError> {
        let mut outcome = batch.outcome;
        let mut taken = false;
        let mut failed = 0;
        let mut last = None;
        for (place, event) in batch.events {
            let single = Batch {
                events: vec![(place, event)],
                ..Batch::default()
            };
            match self.append(heads, &single).await {
                Ok(done) => {
                    taken = true;
                    outcome.inserted += done.inserted;
                    outcome.duplicates += done.duplicates;
                    outcome.tampered.extend(done.tampered);
                }
                // The store is away, and was for the ones before: nothing is learned by going on.
                Err(error) if !taken && failed >= OUTAGE => return Err(error),
                Err(error) => {
                    failed += 1;
                    if error.is_transient() {
                        outcome.delayed.push((place, error.to_string()));
                    } else {
                        let refused = Rejection::Refused(error.to_string());
                        outcome.rejected.push((place, refused));
                    }
                    last = Some(error);
                }
            }
        }
        match last {
            Some(error) if !taken => Err(error),
            _ => Ok(outcome),
        }
    }

    async fn append(&self, heads: &mut Tips, batch: &Batch) -> Result<IngestOutcome, StoreError> {
        if batch.events.is_empty() {
            return Ok(batch.outcome.clone());
        }
        for _ in 0..ATTEMPTS {
            let sorted = self.sort_out(batch).await?;
            self.learn(heads, &sorted.fresh).await?;
            let mut appending = self.link(heads, &sorted.fresh);
            let events = std::mem::take(&mut appending.events);
            let appended = self
                .store
                .append_placed_audit_events(&appending.moves, events, &sorted.alerts)
                .await;
            match appended {
                Ok(Appended::Done) => {
                    for (zone, steps) in appending.steps {
                        let from = heads.get(&zone).map_or(&Head::GENESIS, |tip| &tip.head);
                        self.recent.add(&zone, from, steps);
                    }
                    heads.extend(appending.heads);
                    return Ok(sorted.outcome);
                }
                // An error may hide a commit whose answer got lost: the heads are not to be trusted.
                Ok(Appended::Overtaken) => forget(heads, &appending.moves),
                Err(error) => {
                    forget(heads, &appending.moves);
                    return Err(error);
                }
            }
        }
        Err(StoreError::Busy {
            doing: "appending to the ledger",
        })
    }

    /// Tells new events from known ones, and those from attempts to replace them.
    async fn sort_out<'b>(&self, batch: &'b Batch) -> Result<Sorted<'b>, StoreError> {
        let ids: Vec<&str> = batch.events.iter().map(|(_, event)| event.id()).collect();
        let known = self.store.known_audit_events(&ids).await?;
        let mut known: HashMap<&str, &str> = known
            .iter()
            .map(|(id, sha256)| (id.as_str(), sha256.as_str()))
            .collect();
        let mut outcome = batch.outcome.clone();
        let mut fresh = Vec::new();
        let mut alerts = Vec::new();
        for (place, event) in &batch.events {
            match known.get(event.id()) {
                None => {
                    known.insert(event.id(), event.sha256());
                    fresh.push(event);
                }
                Some(&stored) if stored == event.sha256() => outcome.duplicates += 1,
                Some(&stored) => {
                    outcome.tampered.push(*place);
                    alerts.push(alert(event, stored));
                }
            }
        }
        outcome.inserted = fresh.len();
        Ok(Sorted {
            fresh,
            alerts,
            outcome,
        })
    }

    /// Learns the heads of zones that we do not remember.
    async fn learn(&self, heads: &mut Tips, fresh: &[&Incoming]) -> Result<(), StoreError> {
        let zones: HashSet<&ZoneId> = fresh.iter().map(|event| event.zone()).collect();
        let unknown: Vec<&str> = zones
            .iter()
            .filter(|zone| !heads.contains_key(**zone))
            .map(|zone| zone.as_str())
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        for (stored, at) in self.store.audit_tips(&unknown).await? {
            let head = head_of(&stored)?;
            heads.insert(stored.zone, Tip { head, at });
        }
        for zone in zones {
            heads.entry(zone.clone()).or_default();
        }
        Ok(())
    }

    fn link<'b>(&self, heads: &Tips, fresh: &[&'b Incoming]) -> Appending<'b> {
        let now = self.clock.now();
        let mut moved = Tips::new();
        let mut steps: HashMap<ZoneId, Vec<Step>> = HashMap::new();
        let mut events = Vec::with_capacity(fresh.len());
        for event in fresh {
            let zone = event.zone();
            let before = moved.get(zone).or_else(|| heads.get(zone));
            // INVARIANT (months are contiguous): along a chain time of ingestion never goes back,
            // whatever the clocks of several ingesters say.
            let at = before.map_or(now, |tip| now.max(tip.at));
            let link = event.link(before.map(|tip| &tip.head), self.key());
            let head = link.head().clone();
            let step = Step {
                leaf: event.leaf(),
                head: head.clone(),
            };
            steps.entry(zone.clone()).or_default().push(step);
            moved.insert(zone.clone(), Tip { head, at });
            events.push(event.placed(link, at));
        }
        let mut moves: Vec<HeadMove> = moved
            .iter()
            .map(|(zone, to)| HeadMove {
                from: stored(zone, &heads.get(zone).cloned().unwrap_or_default()),
                to: stored(zone, to),
                at: to.at,
            })
            .collect();
        // New zones are written in the order of the moves: one order, so that nobody waits in a ring.
        moves.sort_by(|a, b| a.from.zone.cmp(&b.from.zone));
        Appending {
            moves,
            events,
            heads: moved,
            steps,
        }
    }
}

struct Sorted<'b> {
    fresh: Vec<&'b Incoming>,
    alerts: Vec<AuditAlert>,
    outcome: IngestOutcome,
}

struct Appending<'b> {
    moves: Vec<HeadMove>,
    events: Vec<Placed<'b>>,
    heads: Tips,
    /// What the trees grow by when it is appended.
    steps: HashMap<ZoneId, Vec<Step>>,
}

async fn parse(texts: Vec<String>) -> Batch {
    let mut batch = Batch::default();
    let parsed = parallel::map(texts, Incoming::parse).await;
    for (place, parsed) in parsed.into_iter().enumerate() {
        match parsed {
            Ok(event) => batch.events.push((place, event)),
            Err(error) => {
                let rejection = Rejection::NotAnEvent(error.to_string());
                batch.outcome.rejected.push((place, rejection));
            }
        }
    }
    batch
}

fn alert(event: &Incoming, stored: &str) -> AuditAlert {
    tracing::error!(
        event_id = event.id(),
        zone_id = event.zone().as_str(),
        stored_sha256 = stored,
        incoming_sha256 = event.sha256(),
        "an event came again with another text; the first one stays"
    );
    AuditAlert {
        event_id: event.id().to_owned(),
        zone: event.zone().clone(),
        stored_sha256: stored.to_owned(),
        incoming_sha256: event.sha256().to_owned(),
        event: event.text().to_owned(),
    }
}

fn forget(heads: &mut Tips, moves: &[HeadMove]) {
    for step in moves {
        heads.remove(&step.from.zone);
    }
}

fn stored(zone: &ZoneId, tip: &Tip) -> AuditHead {
    AuditHead {
        zone: zone.clone(),
        chain_seq: tip.head.seq(),
        chain_hash: tip.head.chain_hash(),
    }
}

/// A stored head as the ledger knows it.
pub(crate) fn head_of(stored: &AuditHead) -> Result<Head, StoreError> {
    Head::stored(stored.chain_seq, &stored.chain_hash).ok_or_else(|| StoreError::Corrupt {
        what: format!("the chain hash in the head of zone {}", stored.zone),
    })
}
