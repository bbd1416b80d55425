//! The command line. Its help is the manual of this program.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand, ValueEnum};

use crate::audit::AuditArgs;

const TEACH: &str = "\
WHAT IS MEASURED
  A governed call is one uncached mint at the STS (application secret, Session, Delegation) and
  one call through the Gateway to a mock HTTP upstream, which this program starts itself. The
  zone, 16 applications, one resource each, one policy set, and for each application two Sessions
  and one Delegation are made through the public API before the clock runs, renewed while it
  runs, and removed at the end.

EXAMPLES
  A running `caracal up`, with its token file in the usual place:
      caracal-bench

  Start a fresh server with raised limits, measure it, stop it:
      caracal-bench --spawn target/release/caracal

  The published yardstick: warm 30 s, 60 s at each step, then 8 minutes at 16 workers:
      caracal-bench --yardstick

  How late do answers come at a fixed arrival rate? (latency counts from the intended start)
      caracal-bench --rate 500,1000,2000 --duration 30s

  Processor time and memory of a server that you started yourself:
      caracal-bench --pids $(pidof caracal)

  The ledger by itself, on SQLite and on an empty Postgres database:
      caracal-bench audit --events 1000000
      caracal-bench audit --events 1000000 --postgres postgres://localhost/bench

  For a page or a script:
      caracal-bench --format markdown > result.md
      caracal-bench --format json | jq '.steps[].per_second'

READING THE RESULT
  Stock limits hold one (zone, resource, application) to 1000 mints a minute: 16 identities reach
  267 calls a second and then see `429 provider_rate_limited`. Raise STS_MINT_RATE_LIMIT_PER_MIN on
  the server to measure the machine and not the limiter; --spawn does.
  `client` is the share of its threads that this program used. Above 80 % the client is the limit.
";

/// Load and measurement for Caracal, over the public wire only.
#[derive(Debug, Parser)]
#[command(
    name = "caracal-bench",
    version,
    after_long_help = TEACH,
    args_conflicts_with_subcommands = true
)]
pub struct Args {
    /// Something else than governed calls
    #[command(subcommand)]
    pub other: Option<Other>,
    /// Where the management API listens
    #[arg(long, default_value = "http://127.0.0.1:3000", env = "CARACAL_API_URL")]
    pub api: String,
    /// Where the STS listens
    #[arg(long, default_value = "http://127.0.0.1:8080", env = "CARACAL_STS_URL")]
    pub sts: String,
    /// Where the Gateway listens
    #[arg(
        long,
        default_value = "http://127.0.0.1:8081",
        env = "CARACAL_GATEWAY_URL"
    )]
    pub gateway: String,
    /// Where the Coordinator listens
    #[arg(
        long,
        default_value = "http://127.0.0.1:4000",
        env = "CARACAL_COORDINATOR_URL"
    )]
    pub coordinator: String,
    /// Admin token; better given by file
    #[arg(long, env = "CARACAL_ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,
    /// File with the admin token [default: the one that `caracal up` wrote]
    #[arg(long, env = "CARACAL_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Closed loop: one step for each number of workers, one call in flight per worker
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 8, 16])]
    pub workers: Vec<usize>,
    /// Open loop instead: one step for each arrival rate, in calls a second
    #[arg(long, value_delimiter = ',')]
    pub rate: Vec<u32>,
    /// Open loop: most calls in flight; later arrivals wait, and the wait counts
    #[arg(long, default_value_t = 128)]
    pub max_in_flight: usize,
    /// Length of each step, such as 10s or 2m
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// Load that is not counted, before the first step
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub warm_up: Duration,
    /// One more step at the last setting
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub soak: Duration,
    /// Warm 30 s, 60 s a step, 8 minutes of soak (operations specification §14)
    #[arg(long)]
    pub yardstick: bool,
    /// Mint only: no Gateway, no upstream
    #[arg(long)]
    pub mint_only: bool,
    /// Application identities; each has a resource, two Sessions and a Delegation of its own
    #[arg(long, default_value_t = 16)]
    pub identities: usize,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1)]
    pub client_threads: usize,

    /// Server processes whose processor time (with that of all they start) and peak memory are
    /// reported (Linux)
    #[arg(long, value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// Start this caracal binary on free ports in a scratch directory, with raised limits
    #[arg(long, value_name = "CARACAL", conflicts_with = "pids")]
    pub spawn: Option<PathBuf>,
    /// With --spawn: where the scratch directory is made [default: the system's]
    #[arg(long, requires = "spawn")]
    pub scratch: Option<PathBuf>,
    /// With --spawn: keep the stock limits
    #[arg(long, requires = "spawn")]
    pub stock_limits: bool,

    /// Host name under which the Gateway reaches this program's upstream
    #[arg(long, default_value = "127.0.0.1")]
    pub upstream_host: String,
    /// Bytes of the upstream's answer
    #[arg(long, default_value_t = 13)]
    pub upstream_bytes: usize,
    /// Do not count the audit events of the run
    #[arg(long)]
    pub no_evidence: bool,
    /// Leave the zone in place
    #[arg(long)]
    pub keep: bool,
    /// How the report is written to standard output
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// What else is measured.
#[derive(Debug, Subcommand)]
pub enum Other {
    /// Measure the ledger: ingestion, bytes an event, reads; no server is needed
    Audit(AuditArgs),
}

/// The form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a terminal
    Table,
    /// For a program
    Json,
    /// For a page
    Markdown,
}

/// One stretch of load with settings of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Calls in flight at most.
    pub workers: usize,
    /// Arrivals a second; `None` closes the loop.
    pub rate: Option<u32>,
    /// How long.
    pub lasts: Duration,
}

impl Args {
    /// Checks what clap cannot, and lays out the steps: warm-up first, then the counted ones.
    pub fn steps(&self) -> anyhow::Result<(Option<Step>, Vec<Step>)> {
        if self.identities == 0 || self.identities > 20 {
            bail!("--identities must be 1 to 20: a zone holds 50 live Sessions by default");
        }
        if self.client_threads == 0 || self.max_in_flight == 0 || self.workers.contains(&0) {
            bail!("--workers, --max-in-flight and --client-threads must be at least 1");
        }
        if self.rate.contains(&0) {
            bail!("--rate must be at least 1 call a second");
        }
        let (warm, each, soak) = if self.yardstick {
            (secs(30), secs(60), secs(480))
        } else {
            (self.warm_up, self.duration, self.soak)
        };
        if each.is_zero() {
            bail!("--duration must be longer than nothing");
        }
        let mut steps: Vec<Step> = if self.rate.is_empty() {
            self.workers
                .iter()
                .map(|&workers| Step {
                    workers,
                    rate: None,
                    lasts: each,
                })
                .collect()
        } else {
            let workers = self.max_in_flight;
            self.rate
                .iter()
                .map(|&rate| Step {
                    workers,
                    rate: Some(rate),
                    lasts: each,
                })
                .collect()
        };
        let last = *steps
            .last()
            .context("give at least one step with --workers or --rate")?;
        if !soak.is_zero() {
            steps.push(Step {
                lasts: soak,
                ..last
            });
        }
        let widest = steps.iter().map(|step| step.workers).max().unwrap_or(1);
        let warm_up = Step {
            workers: widest.min(16),
            rate: None,
            lasts: warm,
        };
        Ok(((!warm.is_zero()).then_some(warm_up), steps))
    }
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// `500ms`, `10s`, `2m`, or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let n: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is not a duration such as 10s or 2m"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(n)),
        "" | "s" => Ok(secs(n)),
        "m" => Ok(secs(n.saturating_mul(60))),
        _ => Err(format!("`{unit}` is not a unit; use ms, s or m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Args {
        Args::try_parse_from(line.split_whitespace()).unwrap()
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("8m"), Ok(secs(480)));
        assert_eq!(duration("7"), Ok(secs(7)));
        assert!(duration("1h").is_err());
        assert!(duration("soon").is_err());
    }

    #[test]
    fn the_yardstick_warms_steps_and_soaks() {
        let (warm, steps) = parse("caracal-bench --yardstick").steps().unwrap();
        assert_eq!(warm.unwrap().lasts, secs(30));
        let shape: Vec<_> = steps
            .iter()
            .map(|s| (s.workers, s.lasts.as_secs()))
            .collect();
        assert_eq!(shape, [(1, 60), (4, 60), (8, 60), (16, 60), (16, 480)]);
    }

    #[test]
    fn a_rate_opens_the_loop() {
        let (_, steps) = parse("caracal-bench --rate 100,200 --max-in-flight 9")
            .steps()
            .unwrap();
        let shape: Vec<_> = steps.iter().map(|s| (s.workers, s.rate)).collect();
        assert_eq!(shape, [(9, Some(100)), (9, Some(200))]);
    }

    #[test]
    fn more_identities_than_a_zone_holds_are_refused_before_anything_is_made() {
        assert!(parse("caracal-bench --identities 30").steps().is_err());
    }
}
