//! Time and randomness arrive through traits, so that a test owns both.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// A moment in UTC, in microseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// The text is not a time that we accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a time is RFC 3339, such as 2026-01-01T00:00:00.000Z")]
pub struct TimeError;

impl Timestamp {
    /// From microseconds since the Unix epoch, as stored.
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From whole seconds since the Unix epoch, as in JWT claims.
    pub const fn from_unix_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since the Unix epoch.
    pub const fn unix_micros(self) -> i64 {
        self.0
    }

    /// Milliseconds since the Unix epoch, rounded down.
    pub const fn unix_millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// This moment and `by` more.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros))
    }

    /// This moment less `by`.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros))
    }

    /// How much later than `earlier` this is; zero when it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        let micros = self.0.saturating_sub(earlier.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }

    /// `2026-01-01T00:00:00.000Z`, the form of the API and the Coordinator.
    pub fn iso_millis(self) -> String {
        self.rfc3339(3)
    }

    /// `2026-01-01T00:00:00.000000Z`, the form of evidence.
    pub fn iso_micros(self) -> String {
        self.rfc3339(6)
    }

    /// `2026-01-01T00:00:00Z`, the form of the STS.
    pub fn iso_seconds(self) -> String {
        self.rfc3339(0)
    }

    fn rfc3339(self, digits: usize) -> String {
        let moment = jiff::Timestamp::from_microsecond(self.0).unwrap_or(jiff::Timestamp::MAX);
        format!("{moment:.digits$}")
    }

    /// Parses RFC 3339 with any offset and fraction.
    ///
    /// # Errors
    /// [`TimeError`] when the text is not RFC 3339.
    pub fn parse_rfc3339(text: &str) -> Result<Self, TimeError> {
        let moment: jiff::Timestamp = text.parse().map_err(|_| TimeError)?;
        Ok(Self(moment.as_microsecond()))
    }

    /// Parses RFC 3339 that ends in `Z`, the only form that the API and the Coordinator accept.
    ///
    /// # Errors
    /// [`TimeError`] when the text is anything else.
    pub fn parse_utc(text: &str) -> Result<Self, TimeError> {
        if !text.ends_with('Z') {
            return Err(TimeError);
        }
        Self::parse_rfc3339(text)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iso_micros())
    }
}

/// A reading of a clock that never steps back, in microseconds from an arbitrary start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticks(u64);

impl Ticks {
    /// From microseconds since the start of the clock.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the start of the clock.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// UTC, for the wire and for evidence. It may step: never measure with it.
    fn now(&self) -> Timestamp;
    /// Never steps back. For leases, deadlines and lag.
    fn ticks(&self) -> Ticks;
}

/// Where randomness comes from.
pub trait Rng: Send + Sync {
    /// Fills `out` with bytes fit for keys.
    fn fill(&self, out: &mut [u8]);
}

/// A clock that stands still until a test moves it. Starts at 2026-11-23T00:00:00Z.
#[derive(Debug)]
pub struct TestClock {
    now: AtomicI64,
    ticks: AtomicU64,
}

impl Default for TestClock {
    fn default() -> Self {
        Self {
            now: AtomicI64::new(1_795_392_000_000_000),
            ticks: AtomicU64::new(0),
        }
    }
}

impl TestClock {
    /// Moves both readings forward.
    pub fn advance(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.ticks.fetch_add(micros, Ordering::SeqCst);
        let micros = i64::try_from(micros).unwrap_or(i64::MAX);
        self.now.fetch_add(micros, Ordering::SeqCst);
    }

    /// Steps UTC back, as an operator or NTP may; ticks are not affected.
    pub fn step_back(&self, by: Duration) {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        self.now.fetch_sub(micros, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::SeqCst))
    }

    fn ticks(&self) -> Ticks {
        Ticks(self.ticks.load(Ordering::SeqCst))
    }
}

/// A repeatable sequence (SplitMix64), for tests and simulation only: not fit for keys.
#[derive(Debug, Default)]
pub struct TestRng(AtomicU64);

impl Rng for TestRng {
    fn fill(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let step = 0x9e37_79b9_7f4a_7c15;
            let mut z = self.0.fetch_add(step, Ordering::SeqCst).wrapping_add(step);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            for (to, from) in chunk.iter_mut().zip(z.to_le_bytes()) {
                *to = from;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_three_forms_of_the_wire() {
        let at = Timestamp::from_unix_micros(1_779_364_800_123_456);
        assert_eq!(at.iso_millis(), "2026-05-21T12:00:00.123Z");
        assert_eq!(at.iso_micros(), "2026-05-21T12:00:00.123456Z");
        assert_eq!(at.iso_seconds(), "2026-05-21T12:00:00Z");
        assert_eq!(Timestamp::parse_rfc3339(&at.iso_micros()), Ok(at));
    }

    #[test]
    fn offsets_are_read_but_not_where_only_z_is_accepted() {
        let offset = "2026-05-21T14:00:00+02:00";
        let at = Timestamp::from_unix_seconds(1_779_364_800);
        assert_eq!(Timestamp::parse_rfc3339(offset), Ok(at));
        assert_eq!(Timestamp::parse_utc(offset), Err(TimeError));
        assert_eq!(Timestamp::parse_utc("2026-05-21T12:00:00Z"), Ok(at));
        assert_eq!(Timestamp::parse_utc("yesterday Z"), Err(TimeError));
    }
}
