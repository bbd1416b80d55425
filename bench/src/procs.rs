//! Processor time and memory of processes, from `/proc`.
//!
//! A process counts with all that it started, but for what is watched itself: a database server answers
//! in processes of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// Linux counts in ticks of 10 ms towards user space, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// How it is told; `None` before it was looked at.
    name: Option<String>,
    pid: u32,
}

impl Watched {
    /// `PID`, or `NAME=PID`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, pid) = match text.split_once('=') {
            Some((name, pid)) if !name.is_empty() => (Some(name.to_owned()), pid),
            Some(_) => return Err(format!("`{text}` has no name before its `=`")),
            None => (None, text),
        };
        let pid = pid.parse();
        let pid = pid.map_err(|_| format!("`{text}` is neither PID nor NAME=PID"))?;
        Ok(Self { name, pid })
    }

    /// The server that this program started.
    pub fn server(pid: u32) -> Self {
        Self {
            name: Some("server".to_owned()),
            pid,
        }
    }
}

/// Processes that are watched together, each with those that it started.
#[derive(Clone, Debug)]
pub struct Procs(Vec<(String, u32)>);

/// What they have used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time, all threads, and all children, also those that have ended.
    pub cpu_seconds: f64,
    /// Sum of the peaks of resident memory; of the processes that were named, without children.
    pub peak_rss_bytes: u64,
    /// Resident memory now; of children what they share with nobody.
    pub rss_bytes: u64,
}

impl Usage {
    fn add(&mut self, other: Self) {
        self.cpu_seconds += other.cpu_seconds;
        self.peak_rss_bytes += other.peak_rss_bytes;
        self.rss_bytes += other.rss_bytes;
    }
}

/// Between two looks at whether the processes have come to rest.
const LOOK: Duration = Duration::from_millis(250);
/// Processor time between two looks up to which they rest: timers and heartbeats.
const REST_SECONDS: f64 = 0.02;
/// Looks that they are waited for at most.
const LOOKS: usize = 240;

impl Procs {
    /// Checks that the processes can be read, and names those that have no name: by the role that
    /// they serve, or by their program.
    pub fn new(watched: &[Watched]) -> anyhow::Result<Self> {
        if !watched.is_empty() && !Path::new("/proc/self/stat").exists() {
            bail!("--pids and --spawn read /proc, which this system does not have; leave them out");
        }
        let named = watched.iter().map(|one| {
            let name = one.name.clone().map_or_else(|| name_of(one.pid), Ok)?;
            Ok((name, one.pid))
        });
        let procs = Self(named.collect::<anyhow::Result<_>>()?);
        procs.usage()?;
        Ok(procs)
    }

    pub fn watches_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Their usage now, all together.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = Usage::default();
        for one in self.each()?.into_values() {
            sum.add(one);
        }
        Ok(sum)
    }

    /// Their usage now, by name.
    pub fn each(&self) -> anyhow::Result<BTreeMap<String, Usage>> {
        let mut by_name: BTreeMap<String, Usage> = BTreeMap::new();
        let children = self.children();
        for (name, pid) in &self.0 {
            let sum = by_name.entry(name.clone()).or_default();
            let stat = Stat::parse(&read(*pid, "stat")?)
                .with_context(|| format!("/proc/{pid}/stat has an unknown form"))?;
            // Kernel threads and zombies have no VmHWM.
            let status = read(*pid, "status")?;
            sum.add(Usage {
                cpu_seconds: stat.cpu_seconds + stat.ended_children_seconds,
                peak_rss_bytes: memory(&status, "VmHWM:").unwrap_or(0),
                rss_bytes: memory(&status, "VmRSS:").unwrap_or(0),
            });
            let below = descendants(*pid, &children, |child| {
                self.0.iter().all(|(_, watched)| *watched != child)
            });
            for (child, stat) in below {
                let status = read(child, "status").unwrap_or_default();
                sum.add(Usage {
                    cpu_seconds: stat.cpu_seconds + stat.ended_children_seconds,
                    peak_rss_bytes: 0,
                    rss_bytes: memory(&status, "RssAnon:").unwrap_or(0),
                });
            }
        }
        Ok(by_name)
    }

    /// Every process there is, by its parent; of a process that ends meanwhile there is nothing.
    fn children(&self) -> Children {
        let mut children = Children::new();
        let entries = std::fs::read_dir("/proc")
            .ok()
            .filter(|_| self.watches_any());
        for entry in entries.into_iter().flatten().flatten() {
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let stat = pid.and_then(|pid: u32| {
                let stat = Stat::parse(&read(pid, "stat").ok()?)?;
                Some((pid, stat))
            });
            if let Some((pid, stat)) = stat {
                children.entry(stat.parent).or_default().push((pid, stat));
            }
        }
        children
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
        .and_then(Stat::parse)
        .map_or(0.0, |stat| stat.cpu_seconds)
}

/// What is read of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stat {
    parent: u32,
    cpu_seconds: f64,
    /// Of children that have ended and were waited for.
    ended_children_seconds: f64,
}

impl Stat {
    fn parse(stat: &str) -> Option<Self> {
        // The name of the command may hold spaces and brackets; fields count from its last bracket.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let mut seconds = |skip| {
            let ticks: u32 = fields.nth(skip)?.parse().ok()?;
            Some(f64::from(ticks) / TICKS_PER_SECOND)
        };
        Some(Self {
            parent,
            cpu_seconds: seconds(9)? + seconds(0)?,
            ended_children_seconds: seconds(0)? + seconds(0)?,
        })
    }
}

type Children = BTreeMap<u32, Vec<(u32, Stat)>>;

/// The children of a process, and theirs, as far as they count.
fn descendants(of: u32, children: &Children, counts: impl Fn(u32) -> bool) -> Vec<(u32, Stat)> {
    let mut found: Vec<(u32, Stat)> = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        let below = children.get(&parent).into_iter().flatten();
        for (pid, stat) in below.filter(|(pid, _)| counts(*pid)) {
            parents.push(*pid);
            found.push((*pid, *stat));
        }
    }
    found
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/{file}");
    let text = std::fs::read_to_string(&path);
    text.with_context(|| format!("process {pid} cannot be read ({path}); is it running?"))
}

/// `sts` for `caracal serve sts`, the name of the program for any other.
fn name_of(pid: u32) -> anyhow::Result<String> {
    let line = read(pid, "cmdline")?;
    Ok(role_of(&line)
        .map_or_else(|| read(pid, "comm"), |role| Ok(role.to_owned()))?
        .trim()
        .to_owned())
}

fn role_of(command_line: &str) -> Option<&str> {
    let mut words = command_line.split('\0').skip_while(|word| *word != "serve");
    words.nth(1).filter(|role| !role.is_empty())
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
        let stat = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 0 0 0 150 50 30 20 20 0 5 0 1 2 3";
        let read = Stat {
            parent: 7,
            cpu_seconds: 2.0,
            ended_children_seconds: 0.5,
        };
        assert_eq!(Stat::parse(stat), Some(read));
        assert_eq!(Stat::parse("nonsense"), None);
    }

    #[test]
    fn a_process_is_named_by_its_role_or_by_whoever_asks() {
        assert_eq!(role_of("/bin/caracal\0serve\0sts\0"), Some("sts"));
        assert_eq!(role_of("/bin/caracal\0up\0"), None);
        let own = std::process::id();
        let watched = Watched::parse(&format!("itself={own}")).unwrap();
        let procs = Procs::new(&[watched, Watched::parse(&own.to_string()).unwrap()]).unwrap();
        let each = procs.each().unwrap();
        assert_eq!(each.len(), 2, "{each:?}");
        assert!(each["itself"].rss_bytes > 0);
        assert!(Watched::parse("=1").is_err() && Watched::parse("sts=x").is_err());
    }

    #[test]
    fn what_a_child_uses_counts_as_its_parents() {
        let stat = |parent| Stat {
            parent,
            cpu_seconds: 1.0,
            ended_children_seconds: 0.0,
        };
        let children = Children::from([
            (1, vec![(2, stat(1)), (3, stat(1))]),
            (3, vec![(4, stat(3))]),
            (9, vec![(10, stat(9))]),
        ]);
        let below = |counts: fn(u32) -> bool| {
            let found = descendants(1, &children, counts);
            let mut found: Vec<u32> = found.iter().map(|(pid, _)| *pid).collect();
            found.sort_unstable();
            found
        };
        assert_eq!(below(|_| true), [2, 3, 4]);
        assert_eq!(below(|pid| pid != 3), [2], "what is watched itself");
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t  12 kB\nVmRSS:\t 3 kB\n";
        assert_eq!(memory(status, "VmHWM:"), Some(12 * 1024));
        assert_eq!(memory(status, "VmRSS:"), Some(3 * 1024));
        assert_eq!(memory("Name:\tx\n", "VmHWM:"), None);
    }
}
