//! The one writer of chains in a process, and what hands records to it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use caracal_crypto::HmacKey;
use caracal_ledger::{AdminRecord, Head, chain};
use caracal_model::{Clock, Ids, Timestamp, ZoneId};
use caracal_store::admin_audit::{AdminEvent, AdminHead, AdminMove, ID_INDEX, Intent};
use caracal_store::audit_events::Appended;
use caracal_store::{Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::draft::chain_of;
use crate::metrics::Metrics;
use crate::tally::Tallies;

/// Records that may wait for the chainer.
const QUEUE: usize = 4_096;
/// Records that are appended at a time.
const BATCH: usize = 256;
/// How often a batch may be overtaken before it is given up.
const ATTEMPTS: u32 = 64;
/// How often refusals are told, and intents of others looked for.
const ROUND: Duration = Duration::from_secs(15);
/// Rounds between two records of the same sort of refusal.
const ROUNDS_A_TALLY: u32 = 4;
/// Age at which an intent is nobody's any more: longer than any request takes.
const LEFT_BEHIND: Duration = Duration::from_secs(60);
/// How long a reader waits for records that are on their way, at most.
const SETTLES_WITHIN: Duration = Duration::from_millis(500);
const LOOKS_AGAIN: Duration = Duration::from_millis(10);
/// How long a record that has to be there before the answer may take.
const APPENDED_WITHIN: Duration = Duration::from_secs(10);
/// How long an append waits before it is tried again, twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_millis(1_600);
/// Sets codes of intents apart from every other code under the key.
const INTENT_LABEL: &str = "caracal:admin-audit:intent:v1\n";

enum Command {
    Append {
        records: Vec<AdminRecord>,
        /// Told when they are in their chains.
        done: Option<oneshot::Sender<Result<(), Arc<StoreError>>>>,
        /// Whether their intents are in the store, so that nothing is lost when this fails.
        intended: bool,
    },
    /// Answered when everything before it is done.
    Flush(oneshot::Sender<()>),
}

/// Where records go. Clones share it.
#[derive(Clone)]
pub struct Trail(Arc<Inner>);

struct Inner {
    store: Store,
    key: Option<HmacKey>,
    clock: Arc<dyn Clock>,
    ids: Arc<Ids>,
    queue: mpsc::Sender<Command>,
    tallies: Tallies,
    metrics: Metrics,
}

impl std::fmt::Debug for Trail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trail(..)")
    }
}

/// A record was not written.
#[derive(Debug)]
pub struct Unrecorded;

impl Trail {
    /// A trail, and the loop that writes it. With a key, every link is signed.
    pub fn new(
        store: Store,
        key: Option<HmacKey>,
        clock: Arc<dyn Clock>,
        ids: Arc<Ids>,
    ) -> (Self, Chainer) {
        let (queue, commands) = mpsc::channel(QUEUE);
        let trail = Self(Arc::new(Inner {
            store,
            key,
            clock,
            ids,
            queue,
            tallies: Tallies::default(),
            metrics: Metrics::default(),
        }));
        let chainer = Chainer {
            inner: Arc::clone(&trail.0),
            commands,
            heads: HashMap::new(),
        };
        (trail, chainer)
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn new_id(&self) -> String {
        self.0.ids.uuid()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// A record as it rides along with its change.
    pub(crate) fn intent(&self, record: &AdminRecord) -> Intent {
        let text = record.to_text();
        let key = self.0.key.as_ref();
        Intent {
            id: record.id.clone(),
            zone: chain_of(record),
            mac: key.map(|key| code(key, &text)).unwrap_or_default(),
            record: text,
        }
    }

    /// Completes records whose intents are in the store. Never waits: what finds no room now is
    /// found by its intent later.
    pub(crate) fn complete(&self, records: Vec<AdminRecord>) {
        let sent = self.0.queue.try_send(Command::Append {
            records,
            done: None,
            intended: true,
        });
        if sent.is_err() {
            tracing::debug!("a record of the admin audit is left to its intent");
        }
    }

    /// Appends records before the answer.
    pub(crate) async fn append(&self, records: Vec<AdminRecord>) -> Result<(), Unrecorded> {
        let (done, answer) = oneshot::channel();
        let command = Command::Append {
            records,
            done: Some(done),
            intended: false,
        };
        let appended = async {
            self.0.queue.send(command).await.map_err(|_| Unrecorded)?;
            answer.await.map_err(|_| Unrecorded)?.map_err(|error| {
                tracing::error!(%error, "the admin audit cannot be written");
                Unrecorded
            })
        };
        tokio::time::timeout(APPENDED_WITHIN, appended)
            .await
            .unwrap_or(Err(Unrecorded))
    }

    /// Appends records after the answer, as well as can be.
    pub(crate) fn note(&self, records: Vec<AdminRecord>) {
        let sent = self.0.queue.try_send(Command::Append {
            records,
            done: None,
            intended: false,
        });
        if sent.is_err() {
            self.0.metrics.lost.inc();
        }
    }

    /// Counts a refusal; `actor` is none for a stranger.
    pub(crate) fn count(&self, actor: Option<&str>, method: &str, status: u16) {
        self.0.tallies.count(actor, method, status, self.now());
    }

    /// Waits until the records of this zone that are on their way have arrived, so that who has
    /// just changed something finds it; not longer than half a second.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn settle(&self, zone: &ZoneId) -> Result<(), StoreError> {
        let (flushed, answer) = oneshot::channel();
        let settled = async {
            if self.0.queue.send(Command::Flush(flushed)).await.is_ok() {
                // A chainer that has ended has nothing left to flush.
                let _ = answer.await;
            }
            while self.0.store.admin_audit().waiting(zone).await? > 0 {
                tokio::time::sleep(LOOKS_AGAIN).await;
            }
            Ok(())
        };
        tokio::time::timeout(SETTLES_WITHIN, settled)
            .await
            .unwrap_or(Ok(()))
    }
}

fn code(key: &HmacKey, text: &str) -> String {
    key.sign_hex(format!("{INTENT_LABEL}{text}").as_bytes())
}

fn is_genuine(key: &HmacKey, intent: &Intent) -> bool {
    key.verify_hex(
        format!("{INTENT_LABEL}{}", intent.record).as_bytes(),
        &intent.mac,
    )
}

/// Writes the chains.
pub struct Chainer {
    inner: Arc<Inner>,
    commands: mpsc::Receiver<Command>,
    /// Where the chains end, as far as we know.
    heads: HashMap<ZoneId, Head>,
}

impl std::fmt::Debug for Chainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chainer(..)")
    }
}

/// What was taken from the queue together.
#[derive(Default)]
struct Batch {
    records: Vec<AdminRecord>,
    waiters: Vec<oneshot::Sender<Result<(), Arc<StoreError>>>>,
    flushes: Vec<oneshot::Sender<()>>,
    /// Records that are lost when they cannot be appended now.
    fleeting: u64,
}

impl Batch {
    fn take(&mut self, command: Command) {
        match command {
            Command::Append {
                records,
                done,
                intended,
            } => {
                if done.is_none() && !intended {
                    self.fleeting += u64::try_from(records.len()).unwrap_or(0);
                }
                self.records.extend(records);
                self.waiters.extend(done);
            }
            Command::Flush(flushed) => self.flushes.push(flushed),
        }
    }
}

impl Chainer {
    /// Writes until `stop`, and then what is in the queue.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rounds = 0u32;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = round.tick() => {
                    rounds = rounds.wrapping_add(1);
                    if rounds.is_multiple_of(ROUNDS_A_TALLY) {
                        self.tell_tallies().await;
                    }
                    Box::pin(self.recover()).await;
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.serve(command).await,
                    None => break,
                },
            }
        }
        self.commands.close();
        while let Some(command) = self.commands.recv().await {
            self.serve(command).await;
        }
        self.tell_tallies().await;
    }

    /// Appends a command and whatever has gathered behind it.
    async fn serve(&mut self, first: Command) {
        let mut batch = Batch::default();
        batch.take(first);
        while batch.records.len() < BATCH
            && let Ok(command) = self.commands.try_recv()
        {
            batch.take(command);
        }
        let count = u64::try_from(batch.records.len()).unwrap_or(0);
        let appended = self.persist(&batch.records).await.map_err(Arc::new);
        match &appended {
            Ok(()) => {
                self.inner.metrics.appended.inc_by(count);
            }
            Err(error) => {
                self.inner.metrics.lost.inc_by(batch.fleeting);
                tracing::warn!(%error, lost = batch.fleeting, "records of the admin audit not appended");
            }
        }
        for waiter in batch.waiters {
            // Nobody waits any more when this fails.
            let _ = waiter.send(appended.clone());
        }
        for flushed in batch.flushes {
            let _ = flushed.send(());
        }
    }

    /// Appends, through an outage that is short: those whose intents are kept would arrive anyway,
    /// but without their answers.
    async fn persist(&mut self, records: &[AdminRecord]) -> Result<(), StoreError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match Box::pin(self.append(records.to_vec())).await {
                Err(error) if error.is_transient() && pause <= LAST_PAUSE => {
                    tracing::debug!(%error, "the admin audit waits for the store");
                    tokio::time::sleep(pause).await;
                    pause = pause.saturating_mul(2);
                }
                done => return done,
            }
        }
    }

    async fn tell_tallies(&mut self) {
        let ids = Arc::clone(&self.inner.ids);
        let records = self.inner.tallies.take("/v1/", || ids.uuid());
        let count = u64::try_from(records.len()).unwrap_or(0);
        if let Err(error) = Box::pin(self.append(records)).await {
            self.inner.metrics.lost.inc_by(count);
            tracing::warn!(%error, "counted refusals not recorded");
        }
    }

    /// Appends what others left without an answer.
    async fn recover(&mut self) {
        if let Err(error) = self.try_recover().await {
            tracing::warn!(%error, "intents of the admin audit not looked at");
        }
    }

    async fn try_recover(&mut self) -> Result<(), StoreError> {
        let store = self.inner.store.clone();
        let until = self.inner.clock.now().minus(LEFT_BEHIND);
        loop {
            let left = store.admin_audit().left(until, 200).await?;
            if left.is_empty() {
                return Ok(());
            }
            let (records, strange) = self.sort_out(&left);
            store.admin_audit().refuse(&strange).await?;
            let ids: Vec<&str> = left.iter().map(|intent| intent.id.as_str()).collect();
            let known = store.admin_audit().known(&ids).await?;
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            store.admin_audit().settle(&known).await?;
            let mut records = records;
            records.retain(|record| !known.contains(&record.id.as_str()));
            let count = u64::try_from(records.len()).unwrap_or(0);
            self.append(records).await?;
            self.inner.metrics.recovered.inc_by(count);
            if count > 0 {
                tracing::warn!(
                    count,
                    "changes are on record whose process ended before it answered"
                );
            }
        }
    }

    /// The records of intents, and the ids of those that nobody of ours wrote.
    fn sort_out<'i>(&self, left: &'i [Intent]) -> (Vec<AdminRecord>, Vec<&'i str>) {
        let mut records = Vec::new();
        let mut strange = Vec::new();
        for intent in left {
            let key = self.inner.key.as_ref();
            let record = AdminRecord::parse(&intent.record)
                .filter(|record| record.id == intent.id)
                .filter(|_| key.is_none_or(|key| is_genuine(key, intent)));
            match record {
                Some(record) => records.push(record),
                None => {
                    tracing::error!(
                        id = intent.id,
                        "an intent of the admin audit carries no code of ours: it is set aside"
                    );
                    self.inner.metrics.refused.inc();
                    strange.push(intent.id.as_str());
                }
            }
        }
        (records, strange)
    }

    /// Appends records, each once, whoever else may have appended some of them.
    async fn append(&mut self, mut records: Vec<AdminRecord>) -> Result<(), StoreError> {
        let store = self.inner.store.clone();
        for attempt in 0..ATTEMPTS {
            if records.is_empty() {
                return Ok(());
            }
            self.learn(&records).await?;
            let (moves, rows, heads) = self.link(&records);
            match store.admin_audit().append(&moves, &rows).await {
                Ok(Appended::Done) => {
                    self.heads.extend(heads);
                    return Ok(());
                }
                Ok(Appended::Overtaken) => {
                    self.forget(&moves);
                    // Whoever overtook us is done by now; we may meet again, so not in step.
                    let most = Duration::from_millis(1 << attempt.min(6));
                    tokio::time::sleep(most.mul_f64(self.fraction())).await;
                }
                Err(error) if error.is_conflict_on(ID_INDEX) => {
                    self.forget(&moves);
                    let ids: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
                    let known: HashSet<_> =
                        store.admin_audit().known(&ids).await?.into_iter().collect();
                    let settled: Vec<&str> = known.iter().map(String::as_str).collect();
                    store.admin_audit().settle(&settled).await?;
                    records.retain(|record| !known.contains(&record.id));
                }
                // The commit may have happened: the heads are not to be trusted.
                Err(error) => {
                    self.forget(&moves);
                    return Err(error);
                }
            }
        }
        Err(StoreError::Busy {
            doing: "appending to the admin audit",
        })
    }

    /// From the last digits of an id, which are random.
    fn fraction(&self) -> f64 {
        let id = self.inner.ids.uuid();
        let digit = id.bytes().next_back().map_or(0, |b| b % 16);
        0.25 + f64::from(digit) / 20.0
    }

    async fn learn(&mut self, records: &[AdminRecord]) -> Result<(), StoreError> {
        let zones: HashSet<ZoneId> = records.iter().map(chain_of).collect();
        let unknown: Vec<&str> = zones
            .iter()
            .filter(|zone| !self.heads.contains_key(*zone))
            .map(ZoneId::as_str)
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        for stored in self.inner.store.admin_audit().heads(&unknown).await? {
            let head = Head::stored(stored.chain_seq, &stored.chain_hash);
            let head = head.ok_or_else(|| StoreError::Corrupt {
                what: format!("the chain hash in the admin head of zone {}", stored.zone),
            })?;
            self.heads.insert(stored.zone, head);
        }
        for zone in zones {
            self.heads.entry(zone).or_default();
        }
        Ok(())
    }

    fn link(
        &self,
        records: &[AdminRecord],
    ) -> (Vec<AdminMove>, Vec<AdminEvent>, HashMap<ZoneId, Head>) {
        let mut moved: HashMap<ZoneId, Head> = HashMap::new();
        let mut rows = Vec::with_capacity(records.len());
        for record in records {
            let zone = chain_of(record);
            let text = record.to_text();
            let before = moved.get(&zone).or_else(|| self.heads.get(&zone));
            let link = chain::append(before, &text, self.inner.key.as_ref());
            moved.insert(zone.clone(), link.head().clone());
            rows.push(row(zone, record, text, link));
        }
        let moves = moved.iter().map(|(zone, to)| AdminMove {
            from: stored(zone, self.heads.get(zone).unwrap_or(&Head::GENESIS)),
            to: stored(zone, to),
        });
        (moves.collect(), rows, moved.clone())
    }

    fn forget(&mut self, moves: &[AdminMove]) {
        for step in moves {
            self.heads.remove(&step.from.zone);
        }
    }
}

/// The row of a record: its columns are what its text says.
fn row(zone: ZoneId, record: &AdminRecord, text: String, link: caracal_ledger::Link) -> AdminEvent {
    // What a text cannot hold is not in it, so the columns are read back from it.
    let record = AdminRecord::parse(&text).unwrap_or_else(|| record.clone());
    AdminEvent {
        zone,
        chain_seq: link.seq,
        id: record.id,
        actor_id: record.actor_id,
        method: record.method,
        entity_type: record.entity_type,
        entity_id: record.entity_id,
        occurred_at: record.occurred_at,
        record: text,
        content_sha256: link.content_sha256,
        chain_hash: link.chain_hash,
        chain_hmac: link.chain_hmac,
    }
}

fn stored(zone: &ZoneId, head: &Head) -> AdminHead {
    AdminHead {
        zone: zone.clone(),
        chain_seq: head.seq(),
        chain_hash: head.chain_hash(),
    }
}
