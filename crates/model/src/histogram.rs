//! Counting things by size without a lock: it is done on the path of every call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of durations in nanoseconds: 25 µs to 30 s. Steps of about two, so that a quantile
/// that is read off a bucket is wrong by half its value at most.
const DURATIONS: [u64; 19] = [
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];
/// Upper bounds of counts.
const SIZES: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000];

/// A histogram of durations, or of sizes. Clones share their counts.
#[derive(Clone, Debug)]
pub struct Histogram(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    bounds: &'static [u64],
    /// How many units of a bound are one of what is shown.
    per: f64,
    /// One for each bound, and one for what is above them all.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// What a histogram holds, in seconds or in things.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Upper bound and count of each bucket, each thing in one of them; the last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// Of everything.
    pub sum: f64,
    /// Of things.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::durations()
    }
}

impl Histogram {
    /// Of durations, shown in seconds.
    pub fn durations() -> Self {
        Self::with(&DURATIONS, 1e9)
    }

    /// Of counts.
    pub fn sizes() -> Self {
        Self::with(&SIZES, 1.0)
    }

    fn with(bounds: &'static [u64], per: f64) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Counts {
            bounds,
            per,
            buckets,
            sum: AtomicU64::new(0),
        }))
    }

    /// Counts one duration.
    pub fn took(&self, duration: Duration) {
        self.observe(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts one thing of this size: in nanoseconds, or in things.
    pub fn observe(&self, size: u64) {
        let at = self.0.bounds.partition_point(|bound| *bound < size);
        if let Some(bucket) = self.0.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
            self.0.sum.fetch_add(size, Ordering::Relaxed);
        }
    }

    /// What has been counted so far.
    pub fn held(&self) -> Held {
        // Divided, not multiplied: 30 s are to be 30.0.
        let bounds = self.0.bounds.iter().map(|bound| float(*bound) / self.0.per);
        let counts = self.0.buckets.iter().map(|n| n.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.chain([f64::INFINITY]).zip(counts).collect();
        Held {
            count: buckets.iter().map(|(_, count)| count).sum(),
            sum: float(self.0.sum.load(Ordering::Relaxed)) / self.0.per,
            buckets,
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a sum that is shown need not be exact"
)]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::durations();
        for micros in [0, 25, 26, 2_000, 100_000_000] {
            histogram.took(Duration::from_micros(micros));
        }
        let held = histogram.held();
        let filled: Vec<_> = held.buckets.iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(filled.len(), 4, "{filled:?}");
        assert_eq!(held.buckets.first().unwrap().1, 2);
        assert_eq!(*held.buckets.last().unwrap(), (f64::INFINITY, 1));
        assert_eq!(held.count, 5);
        assert!((held.sum - 100.002_051).abs() < 1e-6, "{}", held.sum);
    }

    #[test]
    fn sizes_are_counted_as_they_are() {
        let histogram = Histogram::sizes();
        for size in [1, 3, 1_000, 9_999] {
            histogram.observe(size);
        }
        let held = histogram.held();
        assert_eq!((held.count, held.sum), (4, 11_003.0));
        assert_eq!(held.buckets.first(), Some(&(1.0, 1)));
    }
}
