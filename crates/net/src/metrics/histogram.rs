//! A histogram of seconds without a lock: it is observed on the path of every call.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Upper bounds, in microseconds: from 0.25 ms to 8 s in steps of two, and everything above.
const BOUNDS: [u64; 17] = [
    250,
    500,
    1_000,
    2_000,
    4_000,
    8_000,
    16_000,
    32_000,
    64_000,
    128_000,
    256_000,
    512_000,
    1_024_000,
    2_048_000,
    4_096_000,
    8_192_000,
    u64::MAX,
];

/// Counts durations by size. Clones share their counts.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    buckets: [AtomicU64; BOUNDS.len()],
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one duration, in seconds.
    pub fn observe(&self, seconds: f64) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "such casts saturate, and that is what is wanted"
        )]
        let micros = (seconds * 1e6) as u64;
        let bucket = BOUNDS
            .iter()
            .zip(&self.0.buckets)
            .find(|(bound, _)| micros <= **bound);
        if let Some((_, count)) = bucket {
            count.fetch_add(1, Ordering::Relaxed);
            self.0.micros.fetch_add(micros, Ordering::Relaxed);
        }
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = self
            .0
            .buckets
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed));
        let bound = |micros: u64| {
            if micros == u64::MAX {
                f64::INFINITY
            } else {
                seconds(micros)
            }
        };
        let buckets: Vec<(f64, u64)> = BOUNDS
            .into_iter()
            .map(bound)
            .zip(counts.iter().copied())
            .collect();
        let sum = seconds(self.0.micros.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a sum of durations need not be exact"
)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use crate::metrics::Registry;

    #[tokio::test]
    async fn durations_are_counted_in_their_bucket_and_all_above() {
        let registry = Registry::new("caracal_gateway");
        let histogram = registry.seconds("request_duration_seconds", "Requests");
        for seconds in [0.0001, 0.001, 0.0011, 100.0, -1.0, f64::NAN] {
            histogram.observe(seconds);
        }
        let text = registry.render().await;
        for line in [
            "# TYPE caracal_gateway_request_duration_seconds histogram",
            "caracal_gateway_request_duration_seconds_sum 100.0022",
            "caracal_gateway_request_duration_seconds_count 6",
            "caracal_gateway_request_duration_seconds_bucket{le=\"0.00025\"} 3",
            "caracal_gateway_request_duration_seconds_bucket{le=\"0.001\"} 4",
            "caracal_gateway_request_duration_seconds_bucket{le=\"0.002\"} 5",
            "caracal_gateway_request_duration_seconds_bucket{le=\"8.192\"} 5",
            "caracal_gateway_request_duration_seconds_bucket{le=\"+Inf\"} 6",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
    }
}
