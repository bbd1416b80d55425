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

use caracal_crypto::HmacKey;
use caracal_crypto::digest::sha256_hex;
use caracal_ledger::{Head, chain};
use caracal_model::{Clock, EventId, ZoneId};
use caracal_store::audit_events::{Appended, AuditAlert, AuditEvent, AuditHead, HeadMove};
use caracal_store::{Store, StoreError};
use tokio::sync::Mutex;

use crate::entry::Incoming;
use crate::metrics::Metrics;

/// How often a batch may be overtaken before somebody else should have the processor.
const ATTEMPTS: usize = 64;
/// Events that are parsed and hashed before others get a turn.
const PARSED_AT_ONCE: usize = 128;

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
    key: Option<HmacKey>,
    clock: Arc<dyn Clock>,
    /// Where the chains end, as far as we know. Its lock is also the queue of this process: two
    /// batches at once would only overtake each other.
    heads: Mutex<HashMap<ZoneId, Head>>,
    metrics: Metrics,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ingest(..)")
    }
}

/// A parsed batch.
#[derive(Default)]
struct Batch {
    /// Place in the batch, and event.
    events: Vec<(usize, Incoming)>,
    outcome: IngestOutcome,
}

impl Ingest {
    /// Without a key, chains show every change but not who made them.
    pub fn new(store: Store, key: Option<HmacKey>, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            key,
            clock,
            heads: Mutex::default(),
            metrics: Metrics::default(),
        }
    }

    /// The store that is appended to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The key of signatures and chains.
    pub fn key(&self) -> Option<&HmacKey> {
        self.key.as_ref()
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
        let batch = parse(texts).await;
        let mut heads = self.heads.lock().await;
        let outcome = match self.append(&mut heads, &batch).await {
            Err(error) if !error.is_transient() && batch.events.len() > 1 => {
                self.one_by_one(&mut heads, batch, error).await
            }
            done => done,
        };
        if outcome.is_err() {
            self.metrics.commit_failures.inc();
        }
        let outcome = outcome?;
        self.count(&outcome);
        Ok(outcome)
    }

    /// Keeps what can be no event as an alert, where there is no dead-letter topic.
    pub(crate) async fn keep_unstorable(&self, id: &EventId, text: &str) -> Result<(), StoreError> {
        let alert = AuditAlert {
            event_id: id.to_string(),
            zone: ZoneId::trusted("unknown"),
            stored_sha256: String::new(),
            incoming_sha256: sha256_hex(text.as_bytes()),
            event: text.replace('\0', "\u{fffd}"),
        };
        self.store
            .append_audit_events(&[], &[], &[alert])
            .await
            .map(drop)
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
    async fn one_by_one(
        &self,
        heads: &mut HashMap<ZoneId, Head>,
        batch: Batch,
        error: StoreError,
    ) -> Result<IngestOutcome, StoreError> {
        let mut outcome = batch.outcome;
        let mut refused = Vec::new();
        let total = batch.events.len();
        for (place, event) in batch.events {
            let single = Batch {
                events: vec![(place, event)],
                ..Batch::default()
            };
            match self.append(heads, &single).await {
                Ok(done) => {
                    outcome.inserted += done.inserted;
                    outcome.duplicates += done.duplicates;
                    outcome.tampered.extend(done.tampered);
                }
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => refused.push((place, Rejection::Refused(error.to_string()))),
            }
        }
        if refused.len() == total {
            return Err(error);
        }
        outcome.rejected.extend(refused);
        Ok(outcome)
    }

    async fn append(
        &self,
        heads: &mut HashMap<ZoneId, Head>,
        batch: &Batch,
    ) -> Result<IngestOutcome, StoreError> {
        if batch.events.is_empty() {
            return Ok(batch.outcome.clone());
        }
        for _ in 0..ATTEMPTS {
            let sorted = self.sort_out(batch).await?;
            self.learn(heads, &sorted.fresh).await?;
            let appending = self.link(heads, &sorted.fresh);
            let appended = self
                .store
                .append_audit_events(&appending.moves, &appending.rows, &sorted.alerts)
                .await;
            match appended {
                Ok(Appended::Done) => {
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
                    known.insert(event.id(), &event.sha256);
                    fresh.push(event);
                }
                Some(&stored) if stored == event.sha256 => outcome.duplicates += 1,
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
    async fn learn(
        &self,
        heads: &mut HashMap<ZoneId, Head>,
        fresh: &[&Incoming],
    ) -> Result<(), StoreError> {
        let zones: HashSet<&ZoneId> = fresh.iter().map(|event| &event.event.zone_id).collect();
        let unknown: Vec<&str> = zones
            .iter()
            .filter(|zone| !heads.contains_key(**zone))
            .map(|zone| zone.as_str())
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        for stored in self.store.audit_heads(&unknown).await? {
            let head = head_of(&stored)?;
            heads.insert(stored.zone, head);
        }
        for zone in zones {
            heads.entry(zone.clone()).or_default();
        }
        Ok(())
    }

    fn link(&self, heads: &HashMap<ZoneId, Head>, fresh: &[&Incoming]) -> Appending {
        let now = self.clock.now();
        let mut moved: HashMap<ZoneId, Head> = HashMap::new();
        let mut rows = Vec::with_capacity(fresh.len());
        for event in fresh {
            let zone = &event.event.zone_id;
            let before = moved.get(zone).or_else(|| heads.get(zone));
            let link = chain::append(before, &event.text, self.key.as_ref());
            moved.insert(zone.clone(), link.head().clone());
            rows.push(event.row(link, now));
        }
        let moves = moved
            .iter()
            .map(|(zone, to)| HeadMove {
                from: stored(zone, heads.get(zone).unwrap_or(&Head::GENESIS)),
                to: stored(zone, to),
            })
            .collect();
        Appending {
            moves,
            rows,
            heads: moved,
        }
    }
}

struct Sorted<'b> {
    fresh: Vec<&'b Incoming>,
    alerts: Vec<AuditAlert>,
    outcome: IngestOutcome,
}

struct Appending {
    moves: Vec<HeadMove>,
    rows: Vec<AuditEvent>,
    heads: HashMap<ZoneId, Head>,
}

async fn parse(texts: Vec<String>) -> Batch {
    let mut batch = Batch::default();
    for (place, text) in texts.into_iter().enumerate() {
        match Incoming::parse(text) {
            Ok(event) => batch.events.push((place, event)),
            Err(error) => {
                let rejection = Rejection::NotAnEvent(error.to_string());
                batch.outcome.rejected.push((place, rejection));
            }
        }
        if place % PARSED_AT_ONCE == PARSED_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
    }
    batch
}

fn alert(event: &Incoming, stored: &str) -> AuditAlert {
    tracing::error!(
        event_id = event.id(),
        zone_id = event.event.zone_id.as_str(),
        stored_sha256 = stored,
        incoming_sha256 = event.sha256,
        "an event came again with another text; the first one stays"
    );
    AuditAlert {
        event_id: event.id().to_owned(),
        zone: event.event.zone_id.clone(),
        stored_sha256: stored.to_owned(),
        incoming_sha256: event.sha256.clone(),
        event: event.text.clone(),
    }
}

fn forget(heads: &mut HashMap<ZoneId, Head>, moves: &[HeadMove]) {
    for step in moves {
        heads.remove(&step.from.zone);
    }
}

fn stored(zone: &ZoneId, head: &Head) -> AuditHead {
    AuditHead {
        zone: zone.clone(),
        chain_seq: head.seq(),
        chain_hash: head.chain_hash(),
    }
}

/// A stored head as the ledger knows it.
pub(crate) fn head_of(stored: &AuditHead) -> Result<Head, StoreError> {
    Head::stored(stored.chain_seq, &stored.chain_hash).ok_or_else(|| StoreError::Corrupt {
        what: format!("the chain hash in the head of zone {}", stored.zone),
    })
}
