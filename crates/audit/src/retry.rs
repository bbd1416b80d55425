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

/// Between two looks.
const EVERY: Duration = Duration::from_secs(30);
const LEADER: &str = "caracal:audit:dead-letters";
/// After the first failure; doubled after each.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Attempts of one process; an operator can replay what is left.
const ATTEMPTS: u32 = 8;
/// Letters that are read at a time.
const PAGE: usize = 500;

/// Tries dead letters again.
pub struct Retry {
    ingest: Arc<Ingest>,
    bus: Bus,
    holder: String,
    tried: HashMap<Position, Tried>,
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
        }
    }

    /// Looks every half minute until `stop`, while this process leads.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            match self.bus.lead(LEADER, &self.holder, EVERY * 3).await {
                Ok(true) => {
                    if let Err(error) = self.turn().await {
                        tracing::warn!(%error, "dead letters were not tried again");
                    }
                }
                Ok(false) => self.tried.clear(),
                Err(error) => tracing::warn!(%error, "it is not known who tries dead letters"),
            }
        }
    }

    /// Tries what is due; answers with how many are in the ledger now.
    ///
    /// # Errors
    /// When letters or ledger cannot be reached.
    pub async fn turn(&mut self) -> Result<usize, LettersError> {
        let (mut settled, mut there) = (0, HashSet::new());
        let mut from = Position::START;
        // All of them: what nobody can replay must not stand before what may work now.
        loop {
            let letters = self.ingest.dead_letters().list(from, PAGE).await?;
            for letter in letters.iter().filter(|letter| letter.is_replayable()) {
                there.insert(letter.position);
                settled += usize::from(self.try_again(letter).await?);
            }
            match letters.last() {
                Some(last) if letters.len() == PAGE => from = last.position.next(),
                _ => break,
            }
        }
        // What is gone was removed by somebody.
        self.tried.retain(|position, _| there.contains(position));
        Ok(settled)
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
