//! Identifiers. Opaque text on the wire (`^[A-Za-z0-9_.\-:]{1,128}$`, spec README, conventions);
//! ours are UUIDv7 made of the [`Clock`] and the [`Rng`], so that they sort by time.

use std::borrow::Borrow;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize};

use crate::time::{Clock, Rng};

/// Longest id that any endpoint accepts, in bytes.
pub const MAX_ID_LEN: usize = 128;

/// The text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is 1 to 128 letters, digits, `_`, `.`, `-` or `:`")]
pub struct IdError;

/// Whether `text` matches the id pattern of the wire.
pub fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_ID_LEN
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b':'))
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks text from outside.
            ///
            /// # Errors
            /// [`IdError`] when the text does not match the id pattern.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                if is_id(text) { Ok(Self(text.into())) } else { Err(IdError) }
            }

            /// Takes text that was checked when it was stored, or that we made ourselves.
            pub fn trusted(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The id as it stands on the wire.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), &self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(input)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    )+};
}

ids! {
    /// A tenant: every other object belongs to exactly one zone.
    ZoneId;
    /// An application, the principal of policy (`client_id`).
    ApplicationId;
    /// A workload: the identity of a launcher (`caracal run`).
    WorkloadId;
    /// The row id of a resource (not its identifier, which is a URI).
    ResourceId;
    /// A credential provider.
    ProviderId;
    /// A governed Session (`agent_session_id` on the wire).
    SessionId;
    /// A Delegation (`delegation_edge_id` on the wire).
    DelegationId;
    /// An authority record (`sid`, `root_sid`; `session_id` in forms and streams).
    RecordId;
    /// The unique id of one mandate; it can be claimed once.
    Jti;
    /// The id of a zone's signing key.
    Kid;
    /// The id of an evidence event.
    EventId;
    /// A hold that waits for a human (`approval_id`). Ours are random: who knows one may wait for it.
    ApprovalId;
}

/// The id of one request: 1 to 128 visible ASCII characters (STS and Gateway accept more than the
/// id pattern; spec README, conventions).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Keeps a caller's id when it is 1 to 128 visible ASCII characters.
    pub fn visible_ascii(text: &str) -> Option<Self> {
        let fits = (1..=MAX_ID_LEN).contains(&text.len());
        (fits && text.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(text.into()))
    }

    /// Keeps a caller's id when it matches the id pattern (API and Coordinator).
    pub fn id_pattern(text: &str) -> Option<Self> {
        is_id(text).then(|| Self(text.into()))
    }

    /// An id that we made.
    pub fn trusted(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The id as it stands in headers, bodies and evidence.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes UUIDv7 text that never goes backwards within a process, nor below `floor_ms`.
///
/// The 12 bits after the milliseconds count within one millisecond, so ids made in sequence sort
/// in sequence (RFC 9562, section 6.2, method 1). The floor is what makes a mandate from before a
/// restart recognisable by its `jti` (architecture section 4, claims).
pub struct Ids {
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    /// Milliseconds in the upper 52 bits, the counter in the lower 12.
    last: AtomicU64,
    drawn: Mutex<Drawn>,
}

/// Random bits for the next ids, so that the generator is asked once for many: it takes as long for
/// eight bytes as for hundreds.
struct Drawn(Vec<u64>);

impl Drawn {
    fn next(&mut self, rng: &dyn Rng) -> u64 {
        loop {
            if let Some(bits) = self.0.pop() {
                return bits;
            }
            let mut bytes = [0u8; 64 * 8];
            rng.fill(&mut bytes);
            let (chunks, _) = bytes.as_chunks::<8>();
            self.0
                .extend(chunks.iter().map(|chunk| u64::from_be_bytes(*chunk)));
        }
    }
}

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ids(..)")
    }
}

impl Ids {
    /// Ids of this clock and this randomness.
    pub fn new(clock: Arc<dyn Clock>, rng: Arc<dyn Rng>) -> Self {
        Self::above(clock, rng, 0)
    }

    /// As [`Ids::new`], every id with a time later than `floor_ms` (Unix milliseconds).
    pub fn above(clock: Arc<dyn Clock>, rng: Arc<dyn Rng>, floor_ms: u64) -> Self {
        Self {
            clock,
            rng,
            last: AtomicU64::new((floor_ms << 12) | 0xfff),
            drawn: Mutex::new(Drawn(Vec::new())),
        }
    }

    /// The next UUIDv7, as lowercase text.
    pub fn uuid(&self) -> String {
        let now = u64::try_from(self.clock.now().unix_millis()).unwrap_or(0) << 12;
        let step = |last: u64| Some(now.max(last + 1));
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step)
            .unwrap_or(0);
        let stamp = now.max(last + 1);
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let random = drawn.next(self.rng.as_ref());
        drop(drawn);
        let high = ((stamp >> 12) << 16) | 0x7000 | (stamp & 0x0fff);
        let low = (random & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000;
        text(uuid::Uuid::from_u64_pair(high, low))
    }

    /// The time (Unix milliseconds) of the latest id made so far; the floor before the first.
    pub fn last_ms(&self) -> u64 {
        self.last.load(Ordering::Relaxed) >> 12
    }

    /// A random UUIDv4, for ids that must not be guessable (approvals).
    pub fn uuid4(&self) -> String {
        let mut bytes = [0u8; 16];
        self.rng.fill(&mut bytes);
        text(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }
}

fn text(id: uuid::Uuid) -> String {
    let mut buffer = uuid::Uuid::encode_buffer();
    id.hyphenated().encode_lower(&mut buffer).to_owned()
}

/// The Unix milliseconds inside a UUIDv7; `None` for any other text.
pub fn uuid7_millis(text: &str) -> Option<u64> {
    let id = uuid::Uuid::try_parse(text).ok()?;
    (id.get_version_num() == 7).then(|| id.as_u64_pair().0 >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{TestClock, TestRng};

    #[test]
    fn ids_sort_in_the_order_they_were_made_even_when_the_clock_steps_back() {
        let clock = Arc::new(TestClock::default());
        let ids = Ids::new(clock.clone(), Arc::new(TestRng::default()));
        let mut made = Vec::new();
        for round in 0..10_000 {
            if round == 5_000 {
                clock.step_back(std::time::Duration::from_secs(60));
            }
            made.push(ids.uuid());
        }
        assert!(made.is_sorted());
        assert!(made.iter().all(|id| is_id(id)));
    }

    #[test]
    fn no_two_ids_share_their_random_bits() {
        let ids = Ids::new(Arc::new(TestClock::default()), Arc::new(TestRng::default()));
        let random = |id: String| id.get(19..).map(str::to_owned).unwrap();
        let seen: std::collections::HashSet<_> = (0..200).map(|_| random(ids.uuid())).collect();
        assert_eq!(seen.len(), 200);
    }

    #[test]
    fn every_id_is_above_the_floor() {
        let clock = Arc::new(TestClock::default());
        let floor = u64::try_from(clock.now().unix_millis()).unwrap() + 5_000;
        let ids = Ids::above(clock, Arc::new(TestRng::default()), floor);
        assert!(uuid7_millis(&ids.uuid()).unwrap() > floor);
    }

    #[test]
    fn the_latest_time_is_that_of_the_latest_id_and_never_falls() {
        let clock = Arc::new(TestClock::default());
        let ids = Ids::above(clock.clone(), Arc::new(TestRng::default()), 7);
        assert_eq!(ids.last_ms(), 7);
        let made = uuid7_millis(&ids.uuid()).unwrap();
        assert_eq!(ids.last_ms(), made);
        clock.step_back(std::time::Duration::from_secs(60));
        ids.uuid();
        assert!(ids.last_ms() >= made);
    }

    #[test]
    fn only_the_pattern_of_the_wire_is_an_id() {
        for good in ["a", "provider-none-z1", "a.b:c_d", &"x".repeat(128)] {
            assert!(is_id(good), "{good}");
        }
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(129)] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
