//! What the workers of one step saw.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

/// Microseconds up to a minute, three significant digits.
const LONGEST_US: u64 = 60_000_000;

/// Latencies of one kind of call.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Latency {
    /// An empty record.
    ///
    /// # Errors
    /// Never for these bounds; the type of the library says otherwise.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, LONGEST_US, 3)?))
    }

    /// Notes one call.
    pub fn note(&mut self, took: std::time::Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(LONGEST_US);
        self.0.saturating_record(us.max(1));
    }

    pub fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that `percent` of the calls did not exceed, in milliseconds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds of a minute fit 52 bits"
    )]
    pub fn ms(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1000.0
    }
}

/// The counts and latencies of one worker, or of a whole step.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Whole calls that succeeded, from their (intended) start.
    pub calls: Latency,
    /// The mint part of them.
    pub mints: Latency,
    /// The Gateway part of them.
    pub gateway: Latency,
    /// Starts of Sessions.
    pub starts: Latency,
    /// Ends of Sessions.
    pub ends: Latency,
    /// What failed: `mint 429 provider_rate_limited`, `gateway connection broke`.
    pub errors: BTreeMap<String, u64>,
    /// Mints that were answered with a mandate, also when the call failed later.
    pub minted: u64,
}

impl Tally {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            calls: Latency::new()?,
            mints: Latency::new()?,
            gateway: Latency::new()?,
            starts: Latency::new()?,
            ends: Latency::new()?,
            errors: BTreeMap::new(),
            minted: 0,
        })
    }

    pub fn failed(&mut self, what: String) {
        *self.errors.entry(what).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.calls.add(&other.calls)?;
        self.mints.add(&other.mints)?;
        self.gateway.add(&other.gateway)?;
        self.starts.add(&other.starts)?;
        self.ends.add(&other.ends)?;
        self.minted += other.minted;
        for (what, count) in &other.errors {
            *self.errors.entry(what.clone()).or_default() += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn tallies_add_up() {
        let (mut a, mut b) = (Tally::new().unwrap(), Tally::new().unwrap());
        for ms in 1..=100 {
            a.calls.note(Duration::from_millis(ms));
        }
        b.calls.note(Duration::from_secs(3600));
        b.failed("mint timeout".to_owned());
        a.failed("mint timeout".to_owned());
        a.add(&b).unwrap();
        assert_eq!(a.calls.count(), 101);
        assert_eq!(a.errors.get("mint timeout"), Some(&2));
        assert!(
            (a.calls.ms(50.0) - 51.0).abs() < 0.2,
            "{}",
            a.calls.ms(50.0)
        );
        assert!(
            a.calls.ms(100.0) >= 59_000.0,
            "beyond the longest counts as the longest"
        );
    }
}
