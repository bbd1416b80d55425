//! Processor time and memory of processes, from `/proc`.
//!
//! A process counts with all that it started: a database server answers in processes of its own.

use std::collections::{BTreeSet, HashMap};
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
    /// User and system time, all threads, of the processes and of their children, ended ones too.
    pub cpu_seconds: f64,
    /// Sum of the peaks of resident memory, without children: what they share would count again.
    pub peak_rss_bytes: u64,
    /// Resident memory now, without children.
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
        let mut counted = BTreeSet::new();
        let families = if self.watches_any() {
            children()?
        } else {
            HashMap::new()
        };
        for pid in &self.0 {
            let path = format!("/proc/{pid}/status");
            let status = std::fs::read_to_string(&path).with_context(|| {
                format!("process {pid} cannot be read ({path}); is it running?")
            })?;
            sum.cpu_seconds += family_seconds(*pid, &families, &mut counted);
            // Kernel threads and zombies have no VmHWM.
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

/// What `/proc` tells of a process.
struct Stat {
    parent: u32,
    /// Its own seconds of processor time.
    own: f64,
    /// Those of its children that have ended and were waited for.
    ended: f64,
}

/// The processes that run, by their parents.
fn children() -> anyhow::Result<HashMap<u32, Vec<u32>>> {
    let mut families: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").context("/proc cannot be listed")? {
        let name = entry.context("/proc cannot be listed")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that ended since the folder was listed is no error.
        if let Some(stat) = stat_of(pid) {
            families.entry(stat.parent).or_default().push(pid);
        }
    }
    Ok(families)
}

/// Seconds of a process and of all below it, each once.
fn family_seconds(pid: u32, families: &HashMap<u32, Vec<u32>>, counted: &mut BTreeSet<u32>) -> f64 {
    if !counted.insert(pid) {
        return 0.0;
    }
    let own = stat_of(pid).map_or(0.0, |stat| stat.own + stat.ended);
    let below = families.get(&pid).into_iter().flatten();
    own + below
        .map(|child| family_seconds(*child, families, counted))
        .sum::<f64>()
}

fn stat_of(pid: u32) -> Option<Stat> {
    stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Seconds of processor time of this program; 0 where it cannot be known.
pub fn own_cpu_seconds() -> f64 {
    let own = std::fs::read_to_string("/proc/self/stat");
    own.ok()
        .and_then(|text| stat(&text))
        .map_or(0.0, |stat| stat.own)
}

fn stat(text: &str) -> Option<Stat> {
    // The name of the command may hold spaces and brackets; fields count from its last bracket.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let mut ticks = fields.skip(9).map(|field| field.parse::<u32>().ok());
    let mut seconds = || Some(f64::from(ticks.next()??) / TICKS_PER_SECOND);
    let own = seconds()? + seconds()?;
    let ended = seconds()? + seconds()?;
    Some(Stat { parent, own, ended })
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
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 0 0 0 150 50 3 4 20 0 5 0 1 2 3";
        let stat = stat(text).unwrap();
        assert_eq!((stat.parent, stat.own, stat.ended), (7, 2.0, 0.07));
        assert!(super::stat("nonsense").is_none());
    }

    #[test]
    fn a_child_belongs_to_its_parent_and_counts_once() {
        let mut child = std::process::Command::new("cat");
        let mut child = child.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let families = children().unwrap();
        assert!(families[&std::process::id()].contains(&child.id()));
        let mut counted = BTreeSet::new();
        family_seconds(std::process::id(), &families, &mut counted);
        assert!(counted.contains(&child.id()));
        assert_eq!(family_seconds(child.id(), &families, &mut counted), 0.0);
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t  12 kB\nVmRSS:\t 3 kB\n";
        assert_eq!(memory(status, "VmHWM:"), Some(12 * 1024));
        assert_eq!(memory(status, "VmRSS:"), Some(3 * 1024));
        assert_eq!(memory("Name:\tx\n", "VmHWM:"), None);
    }
}
