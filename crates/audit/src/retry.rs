//! Dead letters whose reason may have gone away are tried again by themselves: into the ledger
//! directly, so that no exporter reads them twice, with a backoff, and so often only.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use caracal_bus::{Bus, Position};
use caracal_model::Ticks;
use tokio_util::sync::CancellationToken;

use crate::dead_letters::{Letter, LettersError};
use crate::ingest::Ingest;

/// Between two turns.
const EVERY: Duration = Duration::from_secs(30);
/// Between two looks at who leads.
const LOOK: Duration = Duration::from_secs(10);
/// How long a leader that is silent stays one.
const LEASE: Duration = Duration::from_secs(90);
const LEADER: &str = "caracal:audit:dead-letters";
/// After the first failure; doubled after each.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Attempts of one process; an operator can replay what is left.
const ATTEMPTS: u32 = 8;
/// Letters that are read at a time.
const PAGE: usize = 500;
/// Between two looks at all of them. What came since the last turn is looked at in every one; a clock
/// that stepped back may have put it before that.
const ALL_EVERY: Duration = Duration::from_secs(600);

/// Tries dead letters again.
pub struct Retry {
    ingest: Arc<Ingest>,
    bus: Bus,
    holder: String,
    tried: HashMap<Position, Tried>,
    /// Everything before it was looked at.
    upto: Position,
    /// When the last look at all of them began.
    walked_at: Option<Ticks>,
    /// When the last turn began, of those since this process leads.
    turned_at: Option<Ticks>,
}

#[derive(Clone, Copy, Default)]
struct Tried {
    attempts: u32,
    at: Option<Ticks>,
}

impl Tried {
    fn is_due(self, now: Ticks) -> bool {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.attempts.min(ATTEMPTS));
        self.attempts < ATTEMPTS && self.at.is_none_or(|at| now.since(at) >= pause)
    }
}

impl std::fmt::Debug for Retry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retry")
            .field("holder", &self.holder)
            .finish_non_exhaustive()
    }
}

impl Retry {
    /// `holder` names this process among those that might lead.
    pub fn new(ingest: Arc<Ingest>, bus: Bus, holder: impl Into<String>) -> Self {
        Self {
            ingest,
            bus,
            holder: holder.into(),
            tried: HashMap::new(),
            upto: Position::START,
            walked_at: None,
            turned_at: None,
        }
    }

    /// A turn every half minute until `stop`, while this process leads.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.look().await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn look(&mut self) {
        match self.bus.lead(LEADER, &self.holder, LEASE).await {
            Ok(true) => {}
            Ok(false) => {
                self.tried.clear();
                (self.walked_at, self.turned_at) = (None, None);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "it is not known who tries dead letters");
                return;
            }
        }
        let now = self.ingest.clock().ticks();
        if self.turned_at.is_some_and(|at| now.since(at) < EVERY) {
            return;
        }
        self.turned_at = Some(now);
        if let Err(error) = self.turn().await {
            tracing::warn!(%error, "dead letters were not tried again");
        }
    }

    /// Tries what is due; answers with how many are in the ledger now.
    ///
    /// # Errors
    /// When letters or ledger cannot be reached.
    pub async fn turn(&mut self) -> Result<usize, LettersError> {
        let now = self.ingest.clock().ticks();
        let lately = |at: Ticks| now.since(at) < ALL_EVERY;
        if self.walked_at.is_some_and(lately) {
            let due = self.due(now).await?;
            return Ok(due + self.look_on(&mut HashSet::new()).await?);
        }
        // All of them: what nobody can replay must not stand before what may work now.
        self.upto = Position::START;
        let mut there = HashSet::new();
        let settled = self.look_on(&mut there).await?;
        // What is gone was removed by somebody.
        self.tried.retain(|position, _| there.contains(position));
        self.walked_at = Some(now);
        Ok(settled)
    }

    /// Tries those again that it is time for.
    async fn due(&mut self, now: Ticks) -> Result<usize, LettersError> {
        let due = self.tried.iter().filter(|(_, tried)| tried.is_due(now));
        let due: Vec<Position> = due.map(|(position, _)| *position).collect();
        let mut settled = 0;
        for position in due {
            match self.ingest.dead_letters().get(position).await? {
                Some(letter) => settled += usize::from(self.try_again(&letter).await?),
                None => drop(self.tried.remove(&position)),
            }
        }
        Ok(settled)
    }

    /// Tries what nobody has looked at yet, and notes what may be tried again.
    async fn look_on(&mut self, there: &mut HashSet<Position>) -> Result<usize, LettersError> {
        let mut settled = 0;
        loop {
            let letters = self.ingest.dead_letters().list(self.upto, PAGE).await?;
            for letter in &letters {
                self.upto = letter.position.next();
                if letter.is_replayable() {
                    there.insert(letter.position);
                    settled += usize::from(self.try_again(letter).await?);
                }
            }
            if letters.len() < PAGE {
                return Ok(settled);
            }
        }
    }

    /// Whether it is in the ledger now.
    async fn try_again(&mut self, letter: &Letter) -> Result<bool, LettersError> {
        let now = self.ingest.clock().ticks();
        let tried = self.tried.entry(letter.position).or_default();
        if !tried.is_due(now) {
            return Ok(false);
        }
        *tried = Tried {
            attempts: tried.attempts + 1,
            at: Some(now),
        };
        let settled = self.ingest.take_back(letter).await?;
        if settled {
            self.ingest.metrics().dlq_retried.inc();
        }
        Ok(settled)
    }
}

impl Ingest {
    /// Whether the letter is in the ledger now, and so no dead letter any more.
    pub(crate) async fn take_back(&self, letter: &Letter) -> Result<bool, LettersError> {
        let Some(text) = letter.text().filter(|text| self.may_append(text, letter)) else {
            return Ok(false);
        };
        let outcome = match self.commit(vec![text.to_owned()]).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_transient() => return Err(error.into()),
            // Refused as it was before.
            Err(_) => return Ok(false),
        };
        if outcome.inserted + outcome.duplicates == 0 {
            return Ok(false);
        }
        self.dead_letters().remove(&[letter.position]).await?;
        Ok(true)
    }

    /// What came over a bus is worth what its signature is; what an embedded producer handed over
    /// has none.
    fn may_append(&self, text: &str, letter: &Letter) -> bool {
        match (self.key(), self.dead_letters().are_on_bus()) {
            (Some(key), true) => key.verify_hex(text.as_bytes(), letter.field("src_sig")),
            _ => true,
        }
    }
}
