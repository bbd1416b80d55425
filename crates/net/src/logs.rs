//! What became of log lines, counted for `/metrics` (spec: operations §2.6, §4). Whoever writes the
//! log counts here; every service of the process shows the same numbers.

use std::sync::atomic::{AtomicU64, Ordering};

static EMITTED: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);
static SAMPLED: AtomicU64 = AtomicU64::new(0);

/// Lines since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounts {
    /// Handed to the writer.
    pub emitted: u64,
    /// Lost, because the queue of the writer was full.
    pub dropped: u64,
    /// Left out on purpose (`CARACAL_LOG_SAMPLE_DEBUG`).
    pub sampled: u64,
}

/// What was counted so far.
#[must_use]
pub fn counts() -> LogCounts {
    LogCounts {
        emitted: EMITTED.load(Ordering::Relaxed),
        dropped: DROPPED.load(Ordering::Relaxed),
        sampled: SAMPLED.load(Ordering::Relaxed),
    }
}

/// Counts a line that was handed to the writer.
pub fn emitted() {
    EMITTED.fetch_add(1, Ordering::Relaxed);
}

/// Counts a line that was lost.
pub fn dropped() {
    DROPPED.fetch_add(1, Ordering::Relaxed);
}

/// Counts a line that was left out.
pub fn sampled() {
    SAMPLED.fetch_add(1, Ordering::Relaxed);
}
