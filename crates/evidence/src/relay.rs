//! The relay: hands what was recorded to the sink, in order, and lets go only what has arrived.
//!
//! **Forces.** A stream acknowledges at once, and may lose afterwards what it acknowledged: its server
//! is started again without its data, fails over to a replica that lags, or is emptied. The log would
//! have deleted it by then.
//!
//! **Choice.** What was sent stays in the log until the ledger's group is done with it, which the relay
//! asks for now and then. INVARIANT (arrived): that answer counts only in the history that was seen
//! before anything was sent; another history has everything sent again that was not known to have
//! arrived. Audit knows the ids of what comes twice.
//!
//! **Consequence.** While Audit is away the logs grow as the stream does, and a producer that is
//! started again meanwhile sends its part twice.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use caracal_bus::Position;
use caracal_model::Rng;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::backlog::{Backlog, Batch, Next, Span};
use crate::disk::Reader;
use crate::keeper::Alarm;
use crate::sink::{Delivered, Sink, SinkError};

/// Most events in one delivery.
const BATCH: usize = 1_000;
/// How long events may gather before a delivery that would not be full. Each is that much later in
/// the ledger at most; one transaction of the sink for many events costs a third of many for few.
const LINGER: Duration = Duration::from_millis(20);
/// The first and the longest wait after a failed delivery.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often the sink is asked what has arrived, while something is on its way.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How often it is asked at the end, when nothing is left to be sent: what has not arrived by then
/// is sent again by the next process.
const LAST_QUESTIONS: u32 = 4;
/// Batches on their way that are told apart; later ones are taken as one.
const TOLD_APART: usize = 64;
/// Batches on their way after which it is time to ask, however busy the log is.
const ASK_AFTER: usize = 16;
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

    /// The sink has taken these: what comes next is after them.
    fn sent(&mut self, span: &Span) {
        self.backlog.sent(span);
        self.after = span.last();
    }

    /// These need not be kept any more.
    fn arrived(&self, span: &Span) {
        self.backlog.arrived(span);
        self.alarm.raise();
    }

    /// These, and whatever was taken after them, come again.
    fn returned(&mut self, span: &Span) {
        self.backlog.returned(span);
        self.after = self.backlog.acknowledged();
    }
}

/// Owned by whoever opened the log, who starts it, cancels it and waits for it to end.
pub struct Relay {
    drain: Drain,
    sink: Arc<dyn Sink>,
    rng: Arc<dyn Rng>,
    grace: Duration,
    failures: u32,
    /// Offered and not taken; offered again as it is, or with what came since.
    in_hand: Batch,
    /// Sent and not known to have arrived, each with the place of its end on the stream.
    on_the_way: VecDeque<(Span, Position)>,
    /// The history of the stream, as it was before anything on its way was sent.
    history: Option<String>,
    /// It is time to ask what has arrived.
    asks: bool,
    /// Questions since there was nothing left to send but to wait.
    questions: u32,
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
            on_the_way: VecDeque::new(),
            history: None,
            asks: false,
            questions: 0,
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
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            match self.step().await {
                Ok(0) if stop.is_cancelled() && self.is_done() => return,
                Ok(delivered) => {
                    self.failures = 0;
                    if delivered < BATCH {
                        self.rest(delivered, &mut ticks, stop).await;
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

    /// At the end: nothing is on its way, or it takes too long.
    fn is_done(&self) -> bool {
        self.on_the_way.is_empty() || self.questions >= LAST_QUESTIONS
    }

    /// After a delivery of so many: until there is something to deliver, and more may have come to
    /// it, or it is time to ask.
    async fn rest(&mut self, delivered: usize, ticks: &mut Interval, stop: &CancellationToken) {
        let (waits, stops) = (!self.on_the_way.is_empty(), stop.is_cancelled());
        if stops && (delivered > 0 || !waits) {
            return;
        }
        tokio::select! {
            () = stop.cancelled(), if !stops => {}
            () = gather(&self.drain.backlog, delivered) => {}
            _ = ticks.tick(), if waits => {
                self.asks = true;
                self.questions = if stops { self.questions + 1 } else { 0 };
            }
        }
    }

    /// Looks what has arrived, when it is time, and delivers one batch; answers how many events it
    /// had.
    async fn step(&mut self) -> Result<usize, SinkError> {
        if self.asks || self.on_the_way.len() >= ASK_AFTER {
            self.ask().await?;
            self.asks = false;
        }
        self.deliver().await
    }

    async fn ask(&mut self) -> Result<(), SinkError> {
        let Some(progress) = self.sink.progress().await? else {
            return Ok(());
        };
        // INVARIANT (arrived).
        if self.history.as_ref() != Some(&progress.history) {
            self.take_back();
            self.history = Some(progress.history);
            return Ok(());
        }
        let has_arrived = |end: &Position| progress.before.is_some_and(|before| *end < before);
        while let Some((span, _)) = self.on_the_way.pop_front_if(|(_, end)| has_arrived(end)) {
            self.drain.arrived(&span);
        }
        Ok(())
    }

    /// Whatever is on its way may be lost, so it is sent again.
    fn take_back(&mut self) {
        let spans = self.on_the_way.drain(..).map(|(span, _)| span);
        let Some(all) = spans.reduce(Span::and) else {
            return;
        };
        let events = all.count();
        tracing::warn!(
            events,
            "the stream may have lost evidence: it is sent again"
        );
        self.drain.returned(&all);
        // It comes after these, and is read again with them.
        self.in_hand = Batch::default();
    }

    async fn deliver(&mut self) -> Result<usize, SinkError> {
        let unlogged = self.deliver_unlogged().await;
        if self.failures > 0 && self.in_hand.events.len() < BATCH {
            // A sink that takes apart what it refuses can tell one bad event from its own trouble only
            // beside others: what came meanwhile goes with it.
            self.in_hand = Batch::default();
        }
        if self.in_hand.events.is_empty() {
            self.in_hand = self.drain.next().await?;
        }
        if self.in_hand.events.is_empty() {
            return Ok(unlogged);
        }
        if self.history.is_none() {
            // INVARIANT (arrived): the history from before.
            self.ask().await?;
        }
        let delivered = self.sink.deliver(&self.in_hand.events).await?;
        let Batch { events, span } = std::mem::take(&mut self.in_hand);
        self.drain.sent(&span);
        match delivered {
            Delivered::Kept => self.drain.arrived(&span),
            Delivered::Sent(end) => self.remember(span, end),
        }
        Ok(events.len() + unlogged)
    }

    fn remember(&mut self, span: Span, end: Position) {
        let is_crowded = self.on_the_way.len() >= TOLD_APART;
        match self.on_the_way.back_mut().filter(|_| is_crowded) {
            Some(last) => *last = (last.0.and(span), end),
            None => self.on_the_way.push_back((span, end)),
        }
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
async fn gather(backlog: &Backlog, delivered: usize) {
    if delivered == 0 || backlog.is_empty() {
        backlog.appended().await;
    }
    tokio::time::sleep(LINGER).await;
}
