//! `caracal up`: all five services in this process, on SQLite and in memory; or in a process of its
//! own, with `--detach`.

use std::fs::OpenOptions;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::runtime::{Builder, Runtime};

use crate::cli::Data;
use crate::config::Environment;
use crate::exit::Outcome;
use crate::home::{Home, Urls};
use crate::status::{self, PORTS};
use crate::{embedded, telemetry, term};

/// How long a detached start may take.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// At first; `/ready` admits 120 questions a minute.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOK_EVERY_LATER: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal up                             in this terminal; Ctrl-C stops it
  caracal up --detach                    in the background; `caracal down` stops it
  caracal up --ports-from 7000           api 7000, sts 7001, gateway 7002, coordinator 7003, audit 7004
  caracal up --data-dir ./trial          a deployment of its own

The data directory holds the database, the evidence that is not in the ledger yet, and the secrets,
made on the first start and readable by you alone. Keep secrets/secretStoreKek: without it no
stored credential can be read. REDIS_URL mirrors the published streams to a Redis.")]
pub struct Up {
    #[command(flatten)]
    data: Data,
    /// Address to listen on; 0.0.0.0 admits other machines
    #[arg(long, default_value = "127.0.0.1", env = "HOST")]
    host: IpAddr,
    /// Five ports in a row: api, sts, gateway, coordinator, audit
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65531))]
    ports_from: Option<u16>,
    /// [default: 3000]
    #[arg(long, value_name = "PORT")]
    api_port: Option<u16>,
    /// [default: 8080]
    #[arg(long, value_name = "PORT")]
    sts_port: Option<u16>,
    /// [default: 8081]
    #[arg(long, value_name = "PORT")]
    gateway_port: Option<u16>,
    /// [default: 4000]
    #[arg(long, value_name = "PORT")]
    coordinator_port: Option<u16>,
    /// [default: 9090]
    #[arg(long, value_name = "PORT")]
    audit_port: Option<u16>,
    /// Run in the background, and return when all is ready
    #[arg(long, conflicts_with = "foreground")]
    detach: bool,
    /// Run in this terminal; the default
    #[arg(long)]
    foreground: bool,
}

/// Where each service of an embedded deployment listens: api, sts, gateway, coordinator, audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    pub host: IpAddr,
    pub ports: [u16; 5],
}

impl Listen {
    /// URLs for this machine. `localhost`, as the published clients say by default: the issuer in
    /// every mandate is compared letter by letter.
    pub fn urls(&self) -> Urls {
        let host = match self.host {
            host if host.is_loopback() || host.is_unspecified() => "localhost".to_owned(),
            IpAddr::V4(host) => host.to_string(),
            IpAddr::V6(host) => format!("[{host}]"),
        };
        Urls::at(&host, self.ports)
    }
}

impl Up {
    pub fn run(&self) -> Outcome {
        let (environment, home) = self.data.open()?;
        if self.detach {
            return self.start_apart(&environment, &home);
        }
        telemetry::start(&environment);
        embedded::run(environment, &home, self.listen())
    }

    fn listen(&self) -> Listen {
        let own = [
            self.api_port,
            self.sts_port,
            self.gateway_port,
            self.coordinator_port,
            self.audit_port,
        ];
        let mut ports = PORTS;
        for ((port, own), n) in ports.iter_mut().zip(own).zip(0u16..) {
            *port = own
                .or(self.ports_from.map(|first| first + n))
                .unwrap_or(*port);
        }
        Listen {
            host: self.host,
            ports,
        }
    }

    /// Starts this program again as the owner of itself, and waits until it is ready.
    fn start_apart(&self, environment: &Environment, home: &Home) -> Outcome {
        if home.owner()?.is_some() {
            return Err(home.already_running());
        }
        std::fs::create_dir_all(home.path()).with_context(|| {
            format!(
                "{} cannot be made; choose another --data-dir",
                home.path().display()
            )
        })?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(home.log())
            .with_context(|| format!("{} cannot be written", home.log().display()))?;
        let arguments = std::env::args_os()
            .skip(1)
            .filter(|argument| argument != "--detach");
        let child =
            Command::new(std::env::current_exe().context("this program cannot find itself")?)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                // Ctrl-C in this terminal is not meant for it.
                .process_group(0)
                .spawn()
                .context("the background process cannot be started")?;
        small_runtime()?.block_on(term::patiently(
            "starting",
            wait_ready(child, environment, home),
        ))?;
        embedded::tell(home, &self.listen().urls(), true);
        Ok(ExitCode::SUCCESS)
    }
}

async fn wait_ready(
    mut child: Child,
    environment: &Environment,
    home: &Home,
) -> anyhow::Result<()> {
    let mut waited = Duration::ZERO;
    let mut missing = "nothing answers yet".to_owned();
    while waited < READY_WITHIN {
        if let Some(status) = child.try_wait()? {
            bail!("it ended with {status}. Its log says:\n{}", log_tail(home));
        }
        if let Some(runtime) = home.runtime().filter(|runtime| runtime.pid == child.id()) {
            let urls = status::operated(runtime.urls, environment);
            let report = status::probe(&urls, true, &[]).await;
            if report.is_ok() {
                return Ok(());
            }
            missing = report.missing();
        }
        let early = waited < Duration::from_secs(2);
        let pause = if early { LOOK_EVERY } else { LOOK_EVERY_LATER };
        tokio::time::sleep(pause).await;
        waited += pause;
    }
    let seconds = READY_WITHIN.as_secs();
    // What nobody was told of must not go on running.
    drop(crate::down::ask(child.id()));
    bail!(
        "not ready after {seconds} s: {missing}. Its log says:\n{}",
        log_tail(home)
    )
}

fn log_tail(home: &Home) -> String {
    let log = std::fs::read_to_string(home.log()).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines
        .get(lines.len().saturating_sub(8)..)
        .unwrap_or_default()
        .join("\n")
}

/// For commands that wait more than they work.
pub fn small_runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        up: Up,
    }

    fn ports(line: &str) -> [u16; 5] {
        Line::try_parse_from(line.split_whitespace())
            .unwrap()
            .up
            .listen()
            .ports
    }

    #[test]
    fn ports_are_the_published_ones_unless_moved_together_or_one_by_one() {
        assert_eq!(ports("up"), [3000, 8080, 8081, 4000, 9090]);
        assert_eq!(
            ports("up --ports-from 7000"),
            [7000, 7001, 7002, 7003, 7004]
        );
        assert_eq!(
            ports("up --ports-from 7000 --sts-port 8080"),
            [7000, 8080, 7002, 7003, 7004]
        );
        assert!(Line::try_parse_from(["up", "--ports-from", "65532"]).is_err());
    }

    #[test]
    fn urls_say_localhost_for_whatever_this_machine_can_only_reach_itself_by() {
        let urls = |host: &str| {
            Listen {
                host: host.parse().unwrap(),
                ports: PORTS,
            }
            .urls()
            .sts
        };
        assert_eq!(urls("127.0.0.1"), "http://localhost:8080");
        assert_eq!(urls("0.0.0.0"), "http://localhost:8080");
        assert_eq!(urls("10.0.0.7"), "http://10.0.0.7:8080");
    }
}
