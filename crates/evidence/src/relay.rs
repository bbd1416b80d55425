//! The relay: hands what was recorded to the sink, in order, and lets go only what was taken.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use caracal_model::Rng;
use tokio_util::sync::CancellationToken;

use crate::backlog::{Backlog, Batch, Next};
use crate::disk::Reader;
use crate::keeper::Alarm;
use crate::sink::{Sink, SinkError};

/// Most events in one delivery.
const BATCH: usize = 1_000;
/// How long events may gather before a delivery that would not be full. Each is that much later in
/// the ledger at most; one transaction of the sink for many events costs a third of many for few.
const LINGER: Duration = Duration::from_millis(20);
/// The first and the longest wait after a failed delivery.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long a shutdown waits for the sink (spec: audit-and-streams §4 allows the Gateway 4 s).
const GRACE: Duration = Duration::from_secs(4);

/// The one reading end of a log.
#[derive(Debug)]
pub struct Drain {
    path: PathBuf,
    backlog: Arc<Backlog>,
    alarm: Arc<Alarm>,
    reader: Option<Reader>,
    /// Everything up to here was taken.
    after: u64,
}

impl Drain {
    pub(crate) fn new(path: PathBuf, backlog: Arc<Backlog>, alarm: Arc<Alarm>) -> Self {
        let after = backlog.acknowledged();
        Self {
            path,
            backlog,
            alarm,
            reader: None,
            after,
        }
    }

    async fn next(&mut self) -> Result<Batch, SinkError> {
        match self.backlog.after(self.after, BATCH) {
            Next::Batch(batch) => Ok(batch),
            Next::Nothing => Ok(Batch::default()),
            Next::OnDisk => self.read().await,
        }
    }

    /// Off the runtime: this happens only after a start or when the sink was away.
    async fn read(&mut self) -> Result<Batch, SinkError> {
        let (held, path, after) = (self.reader.take(), self.path.clone(), self.after);
        let read = move || {
            let reader = held.map_or_else(|| Reader::open(&path), Ok)?;
            let batch = reader.after(after, BATCH)?;
            Ok::<_, rusqlite::Error>((reader, batch))
        };
        let read = tokio::task::spawn_blocking(read)
            .await
            .map_err(SinkError::new)?;
        let (reader, batch) = read.map_err(SinkError::new)?;
        self.reader = Some(reader);
        if batch.events.is_empty() {
            // Somebody took entries out of the file. What is left must not wait for them.
            self.after = self.backlog.before_window().max(after);
            tracing::error!(
                after,
                resumed = self.after,
                "evidence is missing from its log"
            );
        }
        Ok(batch)
    }

    fn acknowledge(&mut self, batch: &Batch) {
        self.backlog.acknowledge(batch);
        self.after = batch.last();
        self.alarm.raise();
    }
}

/// Owned by whoever opened the log, who starts it, cancels it and waits for it to end.
pub struct Relay {
    drain: Drain,
    sink: Arc<dyn Sink>,
    rng: Arc<dyn Rng>,
    grace: Duration,
    failures: u32,
    /// Offered and not taken; offered again as it is.
    in_hand: Batch,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Relay({})", self.drain.path.display())
    }
}

impl Relay {
    /// From a log to a sink. The randomness spreads retries.
    pub fn new(drain: Drain, sink: Arc<dyn Sink>, rng: Arc<dyn Rng>) -> Self {
        Self {
            drain,
            sink,
            rng,
            grace: GRACE,
            failures: 0,
            in_hand: Batch::default(),
        }
    }

    /// How long a shutdown waits for the sink; what is left then stays in the log.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Delivers until stopped, then whatever is left, for the grace period at most. Stop it after
    /// the last producer and before the log is closed.
    pub async fn run(mut self, stop: CancellationToken) {
        let grace = self.grace;
        let overdue = async {
            stop.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            () = self.work(&stop) => {}
            () = overdue => {
                let (pending, ..) = self.drain.backlog.depth();
                tracing::warn!(pending, "evidence stays in its log until the next start");
            }
        }
        let unsent = self.drain.backlog.take_unlogged(usize::MAX).len();
        self.drain.backlog.lost(unsent as u64);
    }

    async fn work(&mut self, stop: &CancellationToken) {
        loop {
            match self.deliver().await {
                Ok(0) if stop.is_cancelled() => return,
                Ok(delivered) => {
                    self.failures = 0;
                    if delivered < BATCH {
                        gather(&self.drain.backlog, delivered, stop).await;
                    }
                }
                Err(error) => {
                    self.drain
                        .backlog
                        .counters
                        .sink_errors
                        .fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, "evidence not delivered, kept in its log");
                    self.back_off(stop).await;
                }
            }
        }
    }

    /// Delivers one batch; answers how many events it had.
    async fn deliver(&mut self) -> Result<usize, SinkError> {
        let unlogged = self.deliver_unlogged().await;
        if self.in_hand.events.is_empty() {
            self.in_hand = self.drain.next().await?;
        }
        if self.in_hand.events.is_empty() {
            return Ok(unlogged);
        }
        self.sink.deliver(&self.in_hand.events).await?;
        let taken = std::mem::take(&mut self.in_hand);
        self.drain.acknowledge(&taken);
        Ok(taken.events.len() + unlogged)
    }

    /// What the disk refused is offered once: there is nowhere to keep it.
    async fn deliver_unlogged(&mut self) -> usize {
        let batch = self.drain.backlog.take_unlogged(BATCH);
        if !batch.is_empty()
            && let Err(error) = self.sink.deliver(&batch).await
        {
            self.drain
                .backlog
                .counters
                .sink_errors
                .fetch_add(1, Ordering::Relaxed);
            self.drain.backlog.lost(batch.len() as u64);
            tracing::error!(%error, events = batch.len(), "evidence lost: neither logged nor sent");
        }
        batch.len()
    }

    /// Doubles up to the bound, and takes a random half off, so that producers do not come back
    /// all at once. While stopping it stays at the first step: there is little time left.
    async fn back_off(&mut self, stop: &CancellationToken) {
        let (first, longest) = BACKOFF;
        let doubled = first
            .saturating_mul(1 << self.failures.min(10))
            .min(longest);
        self.failures = self.failures.saturating_add(1);
        let mut random = [0u8; 1];
        self.rng.fill(&mut random);
        let [random] = random;
        let wait = doubled.mul_f64(0.5 + f64::from(random) / 512.0);
        if stop.is_cancelled() {
            tokio::time::sleep(wait.min(first)).await;
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// After a delivery of so many: until there is something to deliver, and more may have come to it.
async fn gather(backlog: &Backlog, delivered: usize, stop: &CancellationToken) {
    let gathered = async {
        if delivered == 0 || backlog.is_empty() {
            backlog.appended().await;
        }
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = gathered => {}
    }
}
