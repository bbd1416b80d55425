//! Evidence that can never be appended: where it is kept, and what an operator may do with it (spec:
//! audit-and-streams §6 and §10; "better" 2).
//!
//! **Choice.** Distributed, dead letters are entries of their topic, where observers of before look
//! for them. Embedded there is no topic that survives the process, so they are rows of the store,
//! with places of the same form: every route reads both the same way.
//!
//! **Bound.** What is not signed by a holder of the key can be sent by anybody who reaches the bus.
//! Beyond [`MOST`] letters the oldest of those go; what was signed is kept until somebody decides. How
//! far they were looked at is remembered: what is signed must not be read again for every letter.

use std::sync::Arc;
use std::time::Duration;

use caracal_bus::{Bus, BusError, Position};
use caracal_model::change::Fields;
use caracal_model::{Clock, Ticks, Timestamp, Topic};
use caracal_store::{Store, StoreError};
use parking_lot::Mutex;

/// Where poison goes.
pub const DEAD_LETTERS: &str = "caracal.audit.events.dlq";
/// Holds the dead letters for whoever looks at them.
pub const DEAD_LETTER_GROUP: &str = "audit-dlq-observer";
/// Letters beyond which the oldest unsigned ones are dropped (spec: audit-and-streams §2.1).
pub const MOST: u64 = 100_000;

/// The reason of an entry whose signature is missing or wrong.
pub(crate) const UNSIGNED: &str = "hmac_verify_failed";
/// The reason of an entry without a text.
pub(crate) const EMPTY: &str = "missing_data_field";
/// The reason of an event that came again with another text.
pub(crate) const TAMPERED: &str = "tamper_on_replay";
/// The reason of an event that failed too often while others did not.
pub(crate) const TOO_OFTEN: &str = "transient_exceeded_max_deliveries";

/// Letters that are looked at in one go.
const PAGE: usize = 1_000;
/// Letters that are looked at, at most, for those that came last; more than come at a time.
const MOST_LOOKED: usize = 10 * PAGE;
/// How long it is remembered how far they were looked at: a clock that stepped back puts later letters
/// before earlier ones.
const REMEMBERED: Duration = Duration::from_secs(600);
/// What may have come from anybody.
const ANYBODYS: [&str; 2] = [UNSIGNED, EMPTY];
/// Reasons that may no longer hold: the store, not the event, was at fault.
const REPLAYABLE: [&str; 2] = ["transient_exceeded_max_deliveries:", "pg_permanent_error:"];

/// Why dead letters could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum LettersError {
    /// On the bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// In the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Its place.
    pub position: Position,
    /// As the specification names them: `reason`, `src_id`, `received_at`, `src_data`, `src_sig`.
    pub fields: Fields,
}

impl Letter {
    /// Why it is here.
    pub fn reason(&self) -> &str {
        self.field("reason")
    }

    /// The text that could not be appended.
    pub fn text(&self) -> Option<&str> {
        self.fields.get("src_data").map(String::as_str)
    }

    /// Whether trying again may help without anybody having looked.
    pub fn is_replayable(&self) -> bool {
        let reason = self.reason();
        self.text().is_some() && REPLAYABLE.iter().any(|prefix| reason.starts_with(prefix))
    }

    /// Whether it is here for this reason: all of it, or what stands before its first colon.
    pub fn is_for(&self, reason: &str) -> bool {
        let own = self.reason();
        own == reason || own.split(':').next() == Some(reason)
    }

    /// When it was found out.
    pub fn received_at(&self) -> Timestamp {
        let millis = self.field("received_at").parse();
        let millis = millis.unwrap_or(i64::try_from(self.position.millis).unwrap_or(i64::MAX));
        Timestamp::from_unix_micros(millis.saturating_mul(1_000))
    }

    /// A field; empty when it has none of this name.
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// What becomes of an entry that is poison. `source` names where it came from.
pub(crate) fn letter(
    source: impl IntoIterator<Item = (String, String)>,
    src_id: String,
    reason: &str,
    now: Timestamp,
) -> Fields {
    let mut letter: Fields = source
        .into_iter()
        .map(|(name, value)| (format!("src_{name}"), value))
        .collect();
    letter.insert("reason".to_owned(), reason.to_owned());
    letter.insert("src_id".to_owned(), src_id);
    letter.insert("received_at".to_owned(), now.unix_millis().to_string());
    letter
}

/// All dead letters of a deployment. Cheap to clone.
#[derive(Clone)]
pub struct DeadLetters {
    kept: Kept,
    clock: Arc<dyn Clock>,
    most: u64,
    looked: Arc<Mutex<Option<Looked>>>,
}

/// All letters that were before `upto` then stay until somebody decides.
#[derive(Clone, Copy)]
struct Looked {
    upto: Position,
    began_at: Ticks,
}

#[derive(Clone)]
enum Kept {
    OnBus(Bus),
    InStore(Store),
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.kept {
            Kept::OnBus(_) => "DeadLetters(bus)",
            Kept::InStore(_) => "DeadLetters(store)",
        })
    }
}

impl DeadLetters {
    /// Those on the topic of this bus.
    pub fn on_bus(bus: Bus, clock: Arc<dyn Clock>) -> Self {
        Self::kept(Kept::OnBus(bus), clock)
    }

    /// Those in this store.
    pub fn in_store(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self::kept(Kept::InStore(store), clock)
    }

    fn kept(kept: Kept, clock: Arc<dyn Clock>) -> Self {
        Self {
            kept,
            clock,
            most: MOST,
            looked: Arc::default(),
        }
    }

    pub(crate) fn are_on_bus(&self) -> bool {
        matches!(self.kept, Kept::OnBus(_))
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Keeps them; answers with how many older ones had to go for them.
    pub(crate) async fn keep(&self, letters: &[Fields]) -> Result<u64, LettersError> {
        if letters.is_empty() {
            return Ok(0);
        }
        match &self.kept {
            Kept::OnBus(bus) => drop(bus.append(DEAD_LETTERS, letters).await?),
            Kept::InStore(store) => store.keep_audit_dead_letters(letters).await?,
        }
        self.bound().await
    }

    async fn bound(&self) -> Result<u64, LettersError> {
        let over = self.count().await?.saturating_sub(self.most);
        if over == 0 {
            return Ok(0);
        }
        let over = usize::try_from(over).unwrap_or(usize::MAX);
        let mut looked = self.looked();
        let (mut going, mut count) = (Vec::new(), 0);
        while going.len() < over && count < MOST_LOOKED {
            let page = self.list(looked.upto, PAGE).await?;
            for letter in &page {
                if going.len() == over {
                    break;
                }
                looked.upto = letter.position.next();
                if ANYBODYS.iter().any(|reason| letter.is_for(reason)) {
                    going.push(letter.position);
                }
            }
            count += page.len();
            if page.len() < PAGE {
                break;
            }
        }
        let dropped = going.len();
        tracing::error!(over, dropped, "there are too many dead letters");
        let removed = self.remove(&going).await?;
        *self.looked.lock() = Some(looked);
        Ok(removed)
    }

    /// Where to look on.
    fn looked(&self) -> Looked {
        let now = self.clock.ticks();
        let looked = *self.looked.lock();
        let lately = looked.filter(|looked| now.since(looked.began_at) < REMEMBERED);
        lately.unwrap_or(Looked {
            upto: Position::START,
            began_at: now,
        })
    }

    /// At most `limit` from this place on, oldest first.
    ///
    /// # Errors
    /// When they cannot be reached.
    pub async fn list(&self, from: Position, limit: usize) -> Result<Vec<Letter>, LettersError> {
        Ok(match &self.kept {
            Kept::OnBus(bus) => {
                let entries = bus.range(DEAD_LETTERS, from, limit).await?;
                let letter = |entry: caracal_bus::Entry| Letter {
                    position: entry.position,
                    fields: entry.fields,
                };
                entries.into_iter().map(letter).collect()
            }
            Kept::InStore(store) => {
                let limit = u32::try_from(limit).unwrap_or(u32::MAX);
                let rows = store
                    .audit_dead_letters((from.millis, from.seq), limit)
                    .await?;
                let letter = |row: caracal_store::audit_dead_letters::StoredLetter| Letter {
                    position: Position {
                        millis: row.place.0,
                        seq: row.place.1,
                    },
                    fields: row.fields,
                };
                rows.into_iter().map(letter).collect()
            }
        })
    }

    /// The one at this place.
    ///
    /// # Errors
    /// When they cannot be reached.
    pub async fn get(&self, at: Position) -> Result<Option<Letter>, LettersError> {
        let found = self.list(at, 1).await?.pop();
        Ok(found.filter(|letter| letter.position == at))
    }

    /// Removes these; answers with how many there were.
    ///
    /// # Errors
    /// When they cannot be reached.
    pub async fn remove(&self, at: &[Position]) -> Result<u64, LettersError> {
        if at.is_empty() {
            return Ok(0);
        }
        Ok(match &self.kept {
            Kept::OnBus(bus) => bus.remove(DEAD_LETTERS, at).await?,
            Kept::InStore(store) => {
                let places: Vec<_> = at.iter().map(|at| (at.millis, at.seq)).collect();
                store.remove_audit_dead_letters(&places).await?
            }
        })
    }

    /// How many there are.
    ///
    /// # Errors
    /// When they cannot be reached.
    pub async fn count(&self) -> Result<u64, LettersError> {
        Ok(match &self.kept {
            Kept::OnBus(bus) => bus.len(DEAD_LETTERS).await?,
            Kept::InStore(store) => store.count_audit_dead_letters().await?,
        })
    }

    /// How long the oldest has been here.
    ///
    /// # Errors
    /// When they cannot be reached.
    pub async fn oldest_age(&self) -> Result<Duration, LettersError> {
        let oldest = self.list(Position::START, 1).await?.pop();
        Ok(oldest.map_or(Duration::ZERO, |letter| {
            self.now().since(time_of(letter.position))
        }))
    }

    /// Sends these to the topic again, as they came, and removes them here; `None` where there is no
    /// topic, and the ledger takes them directly.
    pub(crate) async fn send_again(
        &self,
        letters: &[&Letter],
    ) -> Result<Option<usize>, LettersError> {
        let Kept::OnBus(bus) = &self.kept else {
            return Ok(None);
        };
        let mut entries = Vec::with_capacity(letters.len());
        let mut places = Vec::with_capacity(letters.len());
        for letter in letters {
            let Some(text) = letter.text() else { continue };
            let mut entry: Fields = [("data".to_owned(), text.to_owned())].into();
            if let Some(sig) = letter.fields.get("src_sig") {
                entry.insert("sig".to_owned(), sig.clone());
            }
            entries.push(entry);
            places.push(letter.position);
        }
        // In this order: twice is a duplicate, not at all is a loss.
        bus.append(Topic::AuditEvents.name(), &entries).await?;
        self.remove(&places).await?;
        Ok(Some(places.len()))
    }
}

/// The time in a position.
pub(crate) fn time_of(position: Position) -> Timestamp {
    let millis = i64::try_from(position.millis).unwrap_or(i64::MAX);
    Timestamp::from_unix_micros(millis.saturating_mul(1_000))
}

#[cfg(test)]
mod tests {
    use caracal_model::TestClock;

    use super::*;

    fn for_reason(reason: &str, now: Timestamp) -> Fields {
        letter([], String::new(), reason, now)
    }

    #[tokio::test]
    async fn beyond_the_bound_the_oldest_unsigned_go_and_what_stays_is_not_read_again() {
        let clock = Arc::new(TestClock::default());
        let bus = Bus::memory(clock.clone());
        let letters = DeadLetters {
            most: 3,
            ..DeadLetters::on_bus(bus, clock.clone())
        };
        let keep = async |reasons: &[&str]| {
            let now = clock.now();
            let some: Vec<_> = reasons.iter().map(|of| for_reason(of, now)).collect();
            letters.keep(&some).await.unwrap()
        };
        let reasons = async || {
            let all = letters.list(Position::START, PAGE).await.unwrap();
            let reasons = all.iter().map(|letter| letter.reason().to_owned());
            reasons.collect::<Vec<_>>()
        };
        let ours = "pg_permanent_error:22P05";
        assert_eq!(keep(&[ours, UNSIGNED, EMPTY]).await, 0);
        assert_eq!(keep(&[ours]).await, 1);
        assert_eq!(reasons().await, [ours, EMPTY, ours]);
        assert_eq!(keep(&[ours, ours, ours]).await, 1);
        assert_eq!(reasons().await, [ours; 5], "ours stay");

        let upto = letters.looked().upto;
        assert!(upto > letters.list(Position::START, PAGE).await.unwrap()[4].position);
        assert_eq!(keep(&[UNSIGNED]).await, 1);
        assert!(letters.looked().upto > upto);
        clock.advance(REMEMBERED);
        assert_eq!(letters.looked().upto, Position::START);
    }
}
