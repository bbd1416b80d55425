//! Processor time and memory of processes, from `/proc`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// Linux counts in ticks of 10 ms towards user space, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processes that are watched together.
#[derive(Clone, Debug)]
pub struct Procs(Vec<u32>);

/// What they have used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time, all threads.
    pub cpu_seconds: f64,
    /// Sum of the peaks of resident memory.
    pub peak_rss_bytes: u64,
    /// Resident memory now.
    pub rss_bytes: u64,
}

/// Between two looks at whether the processes have come to rest.
const LOOK: Duration = Duration::from_millis(250);
/// Processor time between two looks up to which they rest: timers and heartbeats.
const REST_SECONDS: f64 = 0.02;
/// Looks that they are waited for at most.
const LOOKS: usize = 240;

impl Procs {
    /// Checks that the processes can be read.
    pub fn new(pids: Vec<u32>) -> anyhow::Result<Self> {
        if !pids.is_empty() && !Path::new("/proc/self/stat").exists() {
            bail!("--pids and --spawn read /proc, which this system does not have; leave them out");
        }
        let procs = Self(pids);
        procs.usage()?;
        Ok(procs)
    }

    pub fn watches_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Their usage now.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = Usage::default();
        for pid in &self.0 {
            let of = |file: &str| {
                let path = format!("/proc/{pid}/{file}");
                std::fs::read_to_string(&path).with_context(|| {
                    format!("process {pid} cannot be read ({path}); is it running?")
                })
            };
            sum.cpu_seconds += cpu_seconds(&of("stat")?)
                .with_context(|| format!("/proc/{pid}/stat has an unknown form"))?;
            // Kernel threads and zombies have no VmHWM.
            let status = of("status")?;
            sum.peak_rss_bytes += memory(&status, "VmHWM:").unwrap_or(0);
            sum.rss_bytes += memory(&status, "VmRSS:").unwrap_or(0);
        }
        Ok(sum)
    }

    /// Waits until what the load has left to do is done: it belongs to the cost of the load.
    pub async fn rest(&self) -> anyhow::Result<()> {
        let mut before = self.usage()?.cpu_seconds;
        let mut resting = 0;
        for _ in 0..if self.watches_any() { LOOKS } else { 0 } {
            tokio::time::sleep(LOOK).await;
            let now = self.usage()?.cpu_seconds;
            resting = if now - before > REST_SECONDS {
                0
            } else {
                resting + 1
            };
            if resting == 2 {
                break;
            }
            before = now;
        }
        Ok(())
    }
}

/// Seconds of processor time of this program; 0 where it cannot be known.
pub fn own_cpu_seconds() -> f64 {
    std::fs::read_to_string("/proc/self/stat")
        .ok()
        .as_deref()
        .and_then(cpu_seconds)
        .unwrap_or(0.0)
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name of the command may hold spaces and brackets; fields count from its last bracket.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let user: u32 = fields.nth(11)?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / TICKS_PER_SECOND)
}

fn memory(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_brackets_in_its_name_is_read() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 5 0 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("nonsense"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t  12 kB\nVmRSS:\t 3 kB\n";
        assert_eq!(memory(status, "VmHWM:"), Some(12 * 1024));
        assert_eq!(memory(status, "VmRSS:"), Some(3 * 1024));
        assert_eq!(memory("Name:\tx\n", "VmHWM:"), None);
    }
}
