//! The command line. Its help is the manual of this program.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand, ValueEnum};

use crate::audit::AuditArgs;
use crate::procs::Watched;

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
      caracal-bench --pids $(pidof -S , caracal)

  What a call, a mint and a Session cost in each service, in Redis and in Postgres, for
  `caracal capacity plan --costs costs.json`. A process is named by what it runs, or by you; the
  children of a process, as Postgres has them, count as it:
      caracal-bench --operations call,mint,session --workers 16 --format json \\
          --pids $(pidof -S , caracal),redis=$(pidof redis-server),postgres=$(head -1 postmaster.pid) \\
          > costs.json

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
  A `session` is a Session that is started and ended, at the Coordinator.
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
    /// What is done over and over; of several, each has all the steps
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Operation::Call])]
    pub operations: Vec<Operation>,
    /// The same as `--operations mint`: no Gateway, no upstream
    #[arg(long, conflicts_with = "operations")]
    pub mint_only: bool,
    /// Application identities; each has a resource, two Sessions and a Delegation of its own
    #[arg(long, default_value_t = 16)]
    pub identities: usize,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1)]
    pub client_threads: usize,

    /// Server processes, each PID or NAME=PID, whose processor time and memory are reported (Linux)
    #[arg(long, value_delimiter = ',', value_parser = Watched::parse)]
    pub pids: Vec<Watched>,
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

/// What a worker does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A mint, and a call through the Gateway with its mandate
    Call,
    /// A mint
    Mint,
    /// A Session that is started and ended
    Session,
}

impl Operation {
    /// Several of them, for people.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Call => "governed calls",
            Self::Mint => "mints",
            Self::Session => "Sessions",
        }
    }
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
    /// What is done.
    pub operation: Operation,
    /// Whether it is reported; a warm-up is not.
    pub counted: bool,
    /// Calls in flight at most.
    pub workers: usize,
    /// Arrivals a second; `None` closes the loop.
    pub rate: Option<u32>,
    /// How long.
    pub lasts: Duration,
}

impl Args {
    /// Checks what clap cannot, and lays out the steps: for each operation its warm-up, then those
    /// that count.
    pub fn steps(&self) -> anyhow::Result<Vec<Step>> {
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
        let loads: Vec<(usize, Option<u32>)> = if self.rate.is_empty() {
            self.workers
                .iter()
                .map(|&workers| (workers, None))
                .collect()
        } else {
            let open = |&rate| (self.max_in_flight, Some(rate));
            self.rate.iter().map(open).collect()
        };
        let last = *loads
            .last()
            .context("give at least one step with --workers or --rate")?;
        let widest = loads.iter().map(|(workers, _)| *workers).max().unwrap_or(1);
        let mut steps = Vec::new();
        for operation in self.operations() {
            let step = |counted, (workers, rate), lasts| Step {
                operation,
                counted,
                workers,
                rate,
                lasts,
            };
            steps.push(step(false, (widest.min(16), None), warm));
            steps.extend(loads.iter().map(|&load| step(true, load, each)));
            steps.push(step(true, last, soak));
        }
        steps.retain(|step| !step.lasts.is_zero());
        Ok(steps)
    }

    /// What is measured, in order.
    fn operations(&self) -> Vec<Operation> {
        if self.mint_only {
            vec![Operation::Mint]
        } else {
            self.operations.clone()
        }
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
        let steps = parse("caracal-bench --yardstick").steps().unwrap();
        let (warm, counted) = steps.split_first().unwrap();
        assert_eq!((warm.lasts, warm.counted), (secs(30), false));
        let shape: Vec<_> = counted
            .iter()
            .map(|s| (s.workers, s.lasts.as_secs()))
            .collect();
        assert_eq!(shape, [(1, 60), (4, 60), (8, 60), (16, 60), (16, 480)]);
    }

    #[test]
    fn a_rate_opens_the_loop() {
        let steps = parse("caracal-bench --rate 100,200 --max-in-flight 9")
            .steps()
            .unwrap();
        let counted = steps.iter().filter(|step| step.counted);
        let shape: Vec<_> = counted.map(|s| (s.workers, s.rate)).collect();
        assert_eq!(shape, [(9, Some(100)), (9, Some(200))]);
    }

    #[test]
    fn each_operation_warms_up_and_has_all_steps() {
        use Operation::{Call, Mint, Session};
        let steps = |line| parse(line).steps().unwrap();
        let all = steps("caracal-bench --operations call,mint,session --workers 2,8");
        let shape: Vec<_> = all.iter().map(|s| (s.operation, s.counted)).collect();
        let of = |operation| [(operation, false), (operation, true), (operation, true)];
        assert_eq!(shape, [of(Call), of(Mint), of(Session)].concat());
        let mints = steps("caracal-bench --mint-only");
        assert!(mints.iter().all(|step| step.operation == Mint));
    }

    #[test]
    fn more_identities_than_a_zone_holds_are_refused_before_anything_is_made() {
        assert!(parse("caracal-bench --identities 30").steps().is_err());
    }
}
