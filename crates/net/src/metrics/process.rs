//! What the process itself takes, and what it logs.

use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use super::{Counter, FloatCounter, FloatGauge, Gauge, Registry, show, whole};
use crate::logs;

/// Ticks of a second in `/proc/self/stat`: `USER_HZ`, which Linux never changes.
const TICKS: f64 = 100.0;
/// Bytes of a page in `/proc/self/statm`, where the kernel does not say in `status`.
const KIB: u64 = 1_024;

/// Puts them under their names.
pub(super) fn register(registry: &Registry) {
    let counter = |name: &str| registry.register_as(name, Counter::default());
    let counters = ["emitted", "dropped", "sampled"];
    let counters = counters.map(|what| counter(&format!("caracal_log_{what}")));
    let gauge = |name| registry.register_as(name, Gauge::<i64>::default());
    let memory = gauge("process_resident_memory_bytes");
    let (open, most) = (gauge("process_open_fds"), gauge("process_max_fds"));
    let cpu = registry.register_as("process_cpu_seconds", FloatCounter::default());
    let started = FloatGauge::default();
    registry.register_as("process_start_time_seconds", started.clone());
    started.set(started_at(registry));
    registry.on_scrape(move || {
        let lines = logs::counts();
        let seen = [lines.emitted, lines.dropped, lines.sampled];
        for (counter, count) in counters.iter().zip(seen) {
            show(counter, count);
        }
        let seen = Seen::now();
        memory.set(whole(seen.resident));
        open.set(whole(seen.descriptors));
        most.set(whole(seen.most_descriptors));
        cpu.inner().store(seen.cpu.to_bits(), Ordering::Relaxed);
        async {}
    });
}

/// When the first registry of the process was made, which is when its services were set up.
fn started_at(registry: &Registry) -> f64 {
    static MILLIS: OnceLock<i64> = OnceLock::new();
    let millis = *MILLIS.get_or_init(|| registry.clock().now().unix_millis());
    #[expect(
        clippy::cast_precision_loss,
        reason = "milliseconds since 1970 are exact"
    )]
    let seconds = millis as f64 / 1e3;
    seconds
}

/// What the kernel says; nought where it does not say so.
#[derive(Debug, Default)]
struct Seen {
    resident: u64,
    cpu: f64,
    descriptors: u64,
    most_descriptors: u64,
}

impl Seen {
    fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let descriptors = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Self {
            resident: resident(&read("/proc/self/status")).unwrap_or(0),
            cpu: cpu(&read("/proc/self/stat")).unwrap_or(0.0),
            descriptors: u64::try_from(descriptors).unwrap_or(0),
            most_descriptors: most_descriptors(&read("/proc/self/limits")).unwrap_or(0),
        }
    }
}

fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * KIB)
}

/// The name of the program is in parentheses and may hold anything; the times are the twelfth and
/// thirteenth field after it.
fn cpu(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut times = rest.split_whitespace().skip(11);
    let user: f64 = times.next()?.parse().ok()?;
    let system: f64 = times.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

fn most_descriptors(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t  2048 kB\n"), Some(2_097_152));
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0";
        assert_eq!(cpu(stat), Some(3.0));
        let limits = "Limit  Soft  Hard  Units\nMax open files            1024   4096   files\n";
        assert_eq!(most_descriptors(limits), Some(1_024));
    }

    #[test]
    fn this_process_has_memory_and_descriptors() {
        let seen = Seen::now();
        assert!(
            seen.resident > 0 && seen.descriptors > 0 && seen.most_descriptors > 0,
            "{seen:?}"
        );
    }
}
