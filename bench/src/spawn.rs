//! `--spawn`: a server of our own, with raised limits, timed from start to ready.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use http::Method;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::wire::{Base, Conn};

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(40);
/// api, sts, gateway, coordinator, audit: the order of `--ports-from`.
const SERVICES: u16 = 5;

/// Limits that would otherwise be measured instead of the machine.
const RAISED: [(&str, &str); 5] = [
    ("STS_MINT_RATE_LIMIT_PER_MIN", "1000000"),
    ("MAX_AGENTS_PER_ZONE", "1000"),
    ("API_V1_RATE_LIMIT_PER_MIN", "0"),
    ("COORDINATOR_RATE_LIMIT_PER_MIN", "0"),
    ("READY_RATE_LIMIT_PER_MIN", "0"),
];

/// A server that we started.
pub struct Spawned {
    child: Child,
    home: PathBuf,
    pub pid: u32,
    pub api: String,
    pub sts: String,
    pub gateway: String,
    pub coordinator: String,
    pub token_file: PathBuf,
    pub start_to_ready: Duration,
}

impl Spawned {
    /// Starts `binary up` in a scratch directory below `scratch` and waits until all is ready.
    pub async fn start(binary: &Path, scratch: Option<&Path>, stock: bool) -> anyhow::Result<Self> {
        let home = scratch
            .map_or_else(std::env::temp_dir, Path::to_path_buf)
            .join(format!("caracal-bench-{}", std::process::id()));
        std::fs::create_dir_all(&home).with_context(|| {
            format!(
                "{} cannot be made; choose another --scratch",
                home.display()
            )
        })?;
        let first = free_ports()?;
        let log = std::fs::File::create(home.join("server.log"))?;
        let mut command = Command::new(binary);
        command
            .args([
                "up",
                "--host",
                "127.0.0.1",
                "--ports-from",
                &first.to_string(),
                "--data-dir",
            ])
            .arg(home.join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        if !stock {
            command.envs(RAISED);
        }
        let began = Instant::now();
        let child = command.spawn().with_context(|| {
            format!(
                "{} cannot be started; build it: cargo build --release",
                binary.display()
            )
        })?;
        let url = |n: u16| format!("http://127.0.0.1:{}", first + n);
        let mut spawned = Self {
            pid: child.id().context("the server ended at once")?,
            child,
            token_file: home.join("data/secrets/caracalAdminToken"),
            home,
            api: url(0),
            sts: url(1),
            gateway: url(2),
            coordinator: url(3),
            start_to_ready: Duration::ZERO,
        };
        // Liveness may be asked as often as one likes; readiness is limited with stock limits.
        for (path, pause) in [("/health", 1), ("/ready", 10)] {
            for n in 0..SERVICES {
                let url = format!("{}{path}", url(n));
                spawned
                    .answers(&url, Duration::from_millis(pause), began)
                    .await?;
            }
        }
        spawned.start_to_ready = began.elapsed();
        Ok(spawned)
    }

    async fn answers(&mut self, url: &str, pause: Duration, began: Instant) -> anyhow::Result<()> {
        let base = Base::parse(url)?;
        let path = base.at("");
        let mut conn = Conn::new(&base);
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the server ended with {status}. Its log says:\n{}",
                    self.log_tail()
                );
            }
            let answer = conn
                .send(Method::GET, &path, &[], bytes::Bytes::new())
                .await;
            if answer.is_ok_and(|answer| answer.status.is_success()) {
                return Ok(());
            }
            if began.elapsed() > READY_WITHIN {
                bail!(
                    "{url} is not 200 after 60 s. The server's log says:\n{}",
                    self.log_tail()
                );
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.home.join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines
            .get(lines.len().saturating_sub(12)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// Asks the server to stop, waits, and removes the scratch directory.
    pub async fn stop(mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let asked = i32::try_from(self.pid)
            .ok()
            .and_then(Pid::from_raw)
            .is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
        if !asked {
            self.child.kill().await?;
        } else if tokio::time::timeout(STOPPED_WITHIN, self.child.wait())
            .await
            .is_err()
        {
            self.child.kill().await?;
            bail!("the server did not stop within 40 s of SIGTERM; it was killed");
        }
        let took = began.elapsed();
        std::fs::remove_dir_all(&self.home)
            .with_context(|| format!("{} cannot be removed", self.home.display()))?;
        Ok(took)
    }
}

/// The first of five neighbouring ports that are free now.
fn free_ports() -> anyhow::Result<u16> {
    for _ in 0..200 {
        let first = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let Some(last) = first.checked_add(SERVICES - 1) else {
            continue;
        };
        if (first..=last).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Ok(first);
        }
    }
    bail!("no five neighbouring free ports; stop something that holds many ports")
}
