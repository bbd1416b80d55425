//! Secrets of providers that a backend outside keeps (spec: sts §13).
//!
//! **Forces.** A call must not wait for a backend, nor fail because it is gone for a while; but an
//! operator who takes a secret out of the backend expects that it is not used much longer.
//!
//! **Choice.** A secret is held in memory for a minute after the backend has confirmed it. One that is
//! in use is confirmed before the minute is over, beside the calls. When the backend gives no answer,
//! what is held is good for ten minutes; when it answers that it has no such secret, for none. A
//! secret that nobody has asked for lately is not asked for either: whoever wants it next waits for
//! it once, and not longer than a caller may wait. A backend that has not answered by then counts as
//! one that is gone.
//!
//! **Consequence.** A zone is in memory without its secrets, so a slow backend holds up nobody who
//! needs none of them. What a change of ours brings comes with the zone, by the feed.
//!
//! INVARIANT (confirmed): the minutes count from when the backend was asked, not from when it
//! answered.

use std::sync::Arc;
use std::time::Duration;

use caracal_crypto::Keyring;
use caracal_model::{Clock, Secret, Ticks, ZoneId};
use caracal_store::custody::{Confirmed, Custody, CustodyError};
use caracal_store::secrets::{Kept, Outside};
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// How long a secret is used after it was confirmed, while the backend answers.
const FRESH: Duration = Duration::from_secs(60);
/// How long it is used when the backend does not.
const STALE: Duration = Duration::from_secs(600);
/// When one that is in use is confirmed again: before [`FRESH`] is over, by more than an answer takes.
const EARLY: Duration = Duration::from_secs(40);
/// How long one counts as in use after it was used.
const IN_USE: Duration = Duration::from_secs(600);
/// After a failure, when the backend is asked again.
const RETRY: Duration = Duration::from_secs(10);
/// How often those that are in use are looked through.
const TURN: Duration = Duration::from_secs(2);
/// How many are asked for at once.
const AT_ONCE: usize = 8;

/// The secret document of a provider, JSON.
pub type Document = Arc<Secret<Vec<u8>>>;

/// The secret part of a provider, where the keys to it are held.
#[derive(Clone, Debug, Default)]
pub enum ProviderSecret {
    /// There is none, or it cannot be opened here.
    #[default]
    None,
    /// It came with the zone.
    Here(Document),
    /// A backend has it.
    Outside(Arc<Cell>),
}

/// There is a secret, but it is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret of the provider is not to be had")]
pub struct SecretLost;

/// What memory says of a secret.
#[derive(Clone, Debug)]
pub enum SecretAtHand {
    /// There is none.
    None,
    /// It may be used.
    Ready(Document),
    /// It has to be [obtained](ProviderSecret::obtain) first, which takes time.
    Due,
    /// It is known not to be had.
    Lost,
}

impl ProviderSecret {
    /// A secret that is at hand for ever.
    pub fn here(document: Vec<u8>) -> Self {
        Self::Here(Arc::new(Secret::new(document)))
    }

    /// What memory says. Takes no time.
    pub fn at_hand(&self) -> SecretAtHand {
        match self {
            Self::None => SecretAtHand::None,
            Self::Here(document) => SecretAtHand::Ready(document.clone()),
            Self::Outside(cell) => cell.at_hand(),
        }
    }

    /// The secret, if there is one; asks the backend when memory may not answer, and waits for it
    /// `within` that time, never longer than any call may.
    ///
    /// # Errors
    /// [`SecretLost`].
    pub async fn obtain(&self, within: Duration) -> Result<Option<Document>, SecretLost> {
        let mut found = self.at_hand();
        if let (SecretAtHand::Due, Self::Outside(cell)) = (&found, self) {
            let asked = cell.deps.clock.ticks();
            let still = |cell: &Cell| matches!(cell.at_hand(), SecretAtHand::Due);
            let confirmed = Box::pin(cell.confirm(still));
            let waited = tokio::time::timeout(within.min(cell.deps.patience), confirmed).await;
            if waited.is_err() {
                tracing::warn!(
                    place = cell.place,
                    "a backend is late with a provider's secret"
                );
                cell.state.lock().failed = Some(asked);
            }
            found = cell.at_hand();
        }
        match found {
            SecretAtHand::None => Ok(None),
            SecretAtHand::Ready(document) => Ok(Some(document)),
            SecretAtHand::Due | SecretAtHand::Lost => Err(SecretLost),
        }
    }
}

/// What every cell asks.
struct Deps {
    custody: Custody,
    keyring: Arc<Keyring>,
    clock: Arc<dyn Clock>,
    patience: Duration,
}

/// One envelope outside, and what it holds.
pub struct Cell {
    deps: Arc<Deps>,
    zone: ZoneId,
    place: String,
    known: Outside,
    state: Mutex<State>,
    /// Held by the one who asks the backend.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    document: Option<Document>,
    /// When the backend was asked, the last time that it confirmed.
    confirmed: Option<Ticks>,
    /// When it was asked, the last time that it did not.
    failed: Option<Ticks>,
    used: Option<Ticks>,
}

impl std::fmt::Debug for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cell({})", self.place)
    }
}

impl Cell {
    fn at_hand(&self) -> SecretAtHand {
        let now = self.deps.clock.ticks();
        let mut state = self.state.lock();
        state.used = Some(now);
        let within = |at: Option<Ticks>, most| at.is_some_and(|at| now.since(at) <= most);
        // Failures from before the last confirmation say nothing any more.
        let failed = state
            .failed
            .filter(|at| state.confirmed.is_none_or(|good| *at >= good));
        let failing = within(failed, FRESH);
        match &state.document {
            Some(document) if within(state.confirmed, FRESH) => {
                SecretAtHand::Ready(document.clone())
            }
            Some(document) if failing && within(state.confirmed, STALE) => {
                SecretAtHand::Ready(document.clone())
            }
            // Somebody asks in the background: calls need not each wait for it to fail.
            Some(_) if failing => SecretAtHand::Lost,
            None if within(failed, RETRY) => SecretAtHand::Lost,
            _ => SecretAtHand::Due,
        }
    }

    /// Whether the background should ask the backend now.
    fn is_due(&self, now: Ticks) -> bool {
        let state = self.state.lock();
        let older = |at: Option<Ticks>, than| at.is_none_or(|at| now.since(at) >= than);
        state.used.is_some_and(|at| now.since(at) <= IN_USE)
            && older(state.confirmed, EARLY)
            && older(state.failed, RETRY)
    }

    /// Asks the backend, unless somebody has meanwhile: whoever had to wait takes what came of it.
    async fn confirm(&self, still: impl Fn(&Self) -> bool) {
        let _asking = self.asking.lock().await;
        if !still(self) {
            return;
        }
        // INVARIANT (confirmed).
        let asked = self.deps.clock.ticks();
        let custody = &self.deps.custody;
        let outcome = Box::pin(custody.confirm(&self.zone, &self.place, &self.known)).await;
        self.learn(asked, outcome);
    }

    fn learn(&self, asked: Ticks, outcome: Result<Confirmed, CustodyError>) {
        match outcome {
            Ok(Confirmed::Same(envelope)) => self.have(asked, &envelope),
            // The zone is about to be read anew, and this cell is not part of it any more.
            Ok(Confirmed::Changed) => {}
            Err(error @ (CustodyError::Astray { .. } | CustodyError::Elsewhere { .. })) => {
                tracing::error!(%error, "a provider's secret is not where it was put");
                let mut state = self.state.lock();
                (state.document, state.confirmed) = (None, None);
                state.failed = Some(asked);
            }
            Err(error) => {
                let place = &self.place;
                tracing::warn!(%error, place, "a provider's secret is not confirmed");
                self.state.lock().failed = Some(asked);
            }
        }
    }

    /// The envelope counts as of `asked`.
    fn have(&self, asked: Ticks, envelope: &[u8]) {
        let mut state = self.state.lock();
        if state.document.is_none() {
            match self.deps.keyring.open(&self.place, envelope) {
                Ok(document) => state.document = Some(Arc::new(document)),
                Err(error) => {
                    tracing::error!(%error, place = %self.place, "provider secret does not open");
                    state.failed = Some(asked);
                    return;
                }
            }
        }
        state.confirmed = Some(asked);
    }
}

/// The cells of all zones in memory: a zone that is read anew finds its secrets as they were.
pub(crate) struct Cells {
    deps: Arc<Deps>,
    cells: papaya::HashMap<String, Arc<Cell>>,
}

impl Cells {
    /// A call waits for the backend for `patience` at most.
    pub fn new(
        custody: Custody,
        keyring: Arc<Keyring>,
        clock: Arc<dyn Clock>,
        patience: Duration,
    ) -> Self {
        Self {
            deps: Arc::new(Deps {
                custody,
                keyring,
                clock,
                patience,
            }),
            cells: papaya::HashMap::new(),
        }
    }

    pub fn custody(&self) -> &Custody {
        &self.deps.custody
    }

    /// The secret behind this reference, as the store had it at `asked`.
    pub fn secret(&self, zone: &ZoneId, place: &str, kept: &Kept, asked: Ticks) -> ProviderSecret {
        let known = match kept {
            Kept::Outside(outside) => outside.clone(),
            // It is on its way out.
            Kept::Here(_) => Outside {
                sha256: kept.sha256(),
                backend: self.deps.custody.backend().to_owned(),
            },
        };
        let cells = self.cells.pin();
        let before = cells.get(place);
        let held = before.filter(|cell| cell.known == known);
        let cell = held.cloned().unwrap_or_else(|| {
            // One that takes the place of another is as much in use.
            let used = before.and_then(|cell| cell.state.lock().used);
            let cell = Arc::new(Cell {
                deps: self.deps.clone(),
                zone: zone.clone(),
                place: place.to_owned(),
                known,
                state: Mutex::new(State {
                    used,
                    ..State::default()
                }),
                asking: tokio::sync::Mutex::default(),
            });
            cells.insert(place.to_owned(), cell.clone());
            cell
        });
        if let Kept::Here(envelope) = kept {
            cell.have(asked, envelope);
        }
        ProviderSecret::Outside(cell)
    }

    /// Confirms what is in use, until told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        while stop
            .run_until_cancelled(async {
                Box::pin(self.turn()).await;
                tokio::time::sleep(TURN).await;
            })
            .await
            .is_some()
        {}
    }

    /// Confirms what is due, and forgets what no zone has any more.
    pub async fn turn(&self) {
        let now = self.deps.clock.ticks();
        let due: Vec<_> = {
            let cells = self.cells.pin();
            cells.retain(|_, cell| Arc::strong_count(cell) > 1);
            let due = cells.values().filter(|cell| cell.is_due(now));
            due.cloned().collect()
        };
        futures_util::stream::iter(due)
            .for_each_concurrent(AT_ONCE, |cell| async move {
                Box::pin(cell.confirm(|cell| cell.is_due(now))).await;
            })
            .await;
    }
}
