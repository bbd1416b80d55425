//! `caracal capacity`: names the bottleneck of a running deployment, or sizes one that is yet to be
//! (operations specification §3).
//!
//! **Choice.** What is judged is what a scraper would see: the services' own `/metrics`, or what a
//! Prometheus server keeps of it. Where `DATABASE_URL` and `REDIS_URL` are set, Postgres and Redis are
//! asked as well, since only they know what they wait for. Nothing is changed anywhere.

mod backends;
mod plan;
mod prometheus;
mod services;
mod watch;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use caracal_capacity::{Observation, Report, Service, Summary, Thresholds, record};
use caracal_crypto::os::SystemClock;
use caracal_model::{Clock, Secret};
use clap::{Args, Subcommand};

use crate::cli::Data;
use crate::config::Environment;
use crate::exit::Outcome;
use crate::home::{Home, SECRETS, read_secret};
use crate::web::Web;
use crate::{status, term, up};

/// Nothing could be looked at, so there is no verdict.
const BLIND: u8 = 3;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
EXAMPLES
  caracal capacity                                   the deployment on this machine
  caracal capacity --prometheus http://prometheus:9090 --select 'namespace=\"caracal\"'
  caracal capacity --target sts=http://sts-0:8080 --target sts=http://sts-1:8080 …
  caracal capacity --json > before.json              keep a look, then change one thing
  caracal capacity --baseline before.json --watch --record docs/capacity.md
  caracal capacity plan --rps 500 --sessions 400     how large must it be?

THE PROCEDURE
  1 the first saturated resource   2 replicas, only while Postgres and Redis are healthy
  3 Postgres and Redis before pools   4 check again after each single change   5 write it down

EXIT CODE
  0 nothing is short (with --watch: settled), 1 something is, 2 the command line is not understood,
  3 nothing could be looked at"
)]
pub struct Capacity {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    check: Check,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Size every part for a load, with the arithmetic, and say what ends first as it grows
    Plan(plan::PlanArgs),
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    data: Data,
    /// Prometheus server that scrapes the deployment, instead of the services themselves
    #[arg(long, value_name = "URL", conflicts_with = "target")]
    prometheus: Option<String>,
    /// File with the bearer token of the Prometheus server
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    prometheus_token_file: Option<PathBuf>,
    /// Label matchers of this deployment at the Prometheus server, such as 'namespace="caracal"'
    #[arg(long, value_name = "MATCHERS", requires = "prometheus")]
    select: Option<String>,
    /// A replica, as SERVICE=URL; all of them, once each [default: one of each service, as `status`]
    #[arg(long, value_name = "SERVICE=URL", value_parser = target)]
    target: Vec<(Service, String)>,
    /// File with METRICS_BEARER [default: METRICS_BEARER, or the running `up`'s]
    #[arg(long, value_name = "FILE")]
    bearer_file: Option<PathBuf>,
    /// How long to look [default: 5s; at a Prometheus server, the last 5m]
    #[arg(long, value_parser = span)]
    over: Option<Duration>,
    /// Processors that a replica may use [default: this machine's, for services on it]
    #[arg(long, value_name = "N")]
    cores: Option<f64>,
    /// Another threshold for a signal, such as audit_lag=5000
    #[arg(long, value_name = "SIGNAL=VALUE", value_parser = threshold)]
    threshold: Vec<(String, f64)>,
    /// An earlier look (the file of --json) to compare with
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Do not ask Postgres and Redis, even if DATABASE_URL and REDIS_URL are set
    #[arg(long)]
    no_backends: bool,
    /// Look again until readiness, lag, replay backlog and dead letters are well and stay so
    #[arg(long)]
    watch: bool,
    /// With --watch: for how long they must be well
    #[arg(long, default_value = "60s", value_parser = span)]
    stable_for: Duration,
    /// With --watch: give up after this
    #[arg(long, default_value = "10m", value_parser = span)]
    within: Duration,
    /// Append what was found, with the limit and its alert threshold, to this Markdown file
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// `sts=http://sts-0:8080`.
fn target(text: &str) -> Result<(Service, String), String> {
    let wrong =
        || "SERVICE=URL, where SERVICE is api, sts, gateway, audit or coordinator".to_owned();
    let (name, url) = text.split_once('=').ok_or_else(wrong)?;
    let service = Service::named(name).ok_or_else(wrong)?;
    let parsed = url::Url::parse(url).map_err(|_| format!("`{url}` is not a URL"))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
        return Err(format!("`{url}` is not an http URL"));
    }
    Ok((service, url.trim_end_matches('/').to_owned()))
}

/// `audit_lag=5000`.
fn threshold(text: &str) -> Result<(String, f64), String> {
    let (name, value) = text.split_once('=').ok_or("SIGNAL=VALUE")?;
    let number = value.parse();
    let value = number.map_err(|_| format!("`{value}` is not a number"))?;
    Thresholds::default().set(name, value)?;
    Ok((name.to_owned(), value))
}

/// `500ms`, `5s`, `10m`, `1h`.
pub fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "a whole number and ms, s, m or h, such as 5s".to_owned();
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let each = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = number.checked_mul(each).filter(|&millis| millis > 0);
    millis.map(Duration::from_millis).ok_or_else(wrong)
}

/// Where numbers come from, and all that is needed to get them.
struct Eye {
    environment: Environment,
    home: Home,
    clock: Arc<dyn Clock>,
    web: Web,
    from: Source,
    over: Duration,
    cores: Option<f64>,
    backends: bool,
}

enum Source {
    Services {
        targets: Vec<(Service, String)>,
        bearer: Option<Secret<String>>,
    },
    Prometheus(prometheus::Server),
}

impl Eye {
    async fn look(&self) -> anyhow::Result<Observation> {
        let mut observation = match &self.from {
            Source::Services { targets, bearer } => {
                let looking = services::look(self, targets, bearer.as_ref());
                let asking = backends::look(self);
                let (mut seen, (postgres, redis)) =
                    futures_util::future::join(looking, asking).await;
                (seen.postgres, seen.redis) = (postgres, redis);
                seen
            }
            Source::Prometheus(server) => prometheus::look(self, server).await?,
        };
        observation.cores = self.cores;
        blind(&observation)?;
        Ok(observation)
    }

    fn source(&self) -> String {
        match &self.from {
            Source::Services { targets, .. } => {
                format!("{} services asked directly", targets.len())
            }
            Source::Prometheus(server) => format!("Prometheus at {}", server.url),
        }
    }
}

/// Refuses to judge what was not seen: a deployment that keeps its numbers to itself is not short of
/// anything that we know of.
fn blind(observation: &Observation) -> anyhow::Result<()> {
    if observation.targets.is_empty() {
        bail!("there are no services of Caracal among these metrics; see --select");
    }
    let refused = observation.targets.iter().filter(|target| {
        let why = target.silent.as_deref();
        why.is_some_and(|why| why.starts_with(services::REFUSED))
    });
    let refused: Vec<&str> = refused.map(|target| target.instance.as_str()).collect();
    if !refused.is_empty() {
        bail!(
            "no verdict without the metrics of {}: give METRICS_BEARER, METRICS_BEARER_FILE or \
             --bearer-file; a service without METRICS_BEARER shows none outside of CARACAL_MODE=dev",
            refused.join(", ")
        );
    }
    Ok(())
}

impl Capacity {
    pub fn run(&self) -> Outcome {
        match &self.other {
            Some(Other::Plan(plan)) => plan.run(),
            None => self.check.run(),
        }
    }
}

impl Check {
    fn run(&self) -> Outcome {
        match self.verdict() {
            Ok(code) => Ok(code),
            Err(error) => {
                let told = crate::exit::masked(&format!("{error:#}"));
                eprintln!("{} {told}", term::red("error:"));
                Ok(ExitCode::from(BLIND))
            }
        }
    }

    fn verdict(&self) -> Outcome {
        let thresholds = self.thresholds()?;
        let before = self.before()?;
        let eye = self.eye()?;
        if let Some(file) = &self.record {
            // Found out now, not after ten minutes of watching.
            appended(file)?;
        }
        let (seen, settled) = up::small_runtime()?.block_on(async {
            if self.watch {
                let (seen, settled) =
                    watch::until_settled(&eye, &thresholds, self.stable_for, self.within).await?;
                Ok((seen, Some(settled)))
            } else {
                let what = "looking at the services";
                let seen = term::patiently(what, eye.look()).await?;
                anyhow::Ok((seen, None))
            }
        })?;
        let report = Report::of(&seen, &thresholds, before.as_ref());
        self.tell(&report, settled.as_ref())?;
        if let Some(file) = &self.record {
            let checks = settled.as_ref().map(|settled| &settled.checks);
            let at = eye.clock.now().iso_seconds();
            let section = record::section(&report, &at, &eye.source(), checks);
            let written = appended(file)?.write_all(section.as_bytes());
            written.with_context(|| format!("{} cannot be written", file.display()))?;
            eprintln!("{}", term::dim(&format!("recorded in {}", file.display())));
        }
        let well = match &settled {
            Some(settled) => settled.settled && report.healthy,
            None => report.healthy,
        };
        Ok(if well {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn tell(&self, report: &Report, settled: Option<&watch::Settled>) -> anyhow::Result<()> {
        if self.json {
            let mut json = serde_json::to_value(report)?;
            if let (Some(settled), Some(json)) = (settled, json.as_object_mut()) {
                json.insert("watch".to_owned(), serde_json::to_value(settled)?);
            }
            println!("{json}");
            return Ok(());
        }
        if let Some(settled) = settled {
            println!("{}", settled.told());
        }
        print!("{}", report.text());
        Ok(())
    }

    fn thresholds(&self) -> anyhow::Result<Thresholds> {
        let mut thresholds = Thresholds::default();
        for (name, value) in &self.threshold {
            thresholds.set(name, *value).map_err(|why| anyhow!(why))?;
        }
        Ok(thresholds)
    }

    fn before(&self) -> anyhow::Result<Option<Summary>> {
        #[derive(serde::Deserialize)]
        struct Earlier {
            summary: Summary,
        }
        let Some(file) = &self.baseline else {
            return Ok(None);
        };
        let name = file.display();
        let text = std::fs::read(file).with_context(|| format!("{name} cannot be read"))?;
        let earlier: Earlier = serde_json::from_slice(&text)
            .with_context(|| format!("{name} is not what `caracal capacity --json` writes"))?;
        Ok(Some(earlier.summary))
    }

    fn eye(&self) -> anyhow::Result<Eye> {
        let (environment, home) = self.data.open()?;
        if self
            .cores
            .is_some_and(|cores| !(cores.is_finite() && cores > 0.0))
        {
            bail!("--cores must be a number above 0");
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let extra_ca = environment
            .get("CARACAL_TLS_EXTRA_CA_FILE")
            .map(PathBuf::from);
        // Services are asked in the clear; only a Prometheus server behind HTTPS needs roots of trust.
        let web = match (
            Web::with_tls(extra_ca.as_deref(), clock.clone()),
            &self.prometheus,
        ) {
            (Ok(web), _) => web,
            (Err(error), Some(url)) if url.starts_with("https") => return Err(error),
            (Err(_), _) => Web::new(),
        };
        let from = match &self.prometheus {
            Some(url) => Source::Prometheus(self.server(url)?),
            None => Source::Services {
                targets: self.targets(&environment, &home),
                bearer: self.bearer(&environment, &home)?,
            },
        };
        let (over, cores) = match &from {
            Source::Services { targets, .. } => (Duration::from_secs(5), own_cores(targets)),
            Source::Prometheus(_) => (Duration::from_secs(300), None),
        };
        Ok(Eye {
            environment,
            home,
            clock,
            web,
            from,
            over: self.over.unwrap_or(over),
            cores: self.cores.or(cores),
            backends: !self.no_backends,
        })
    }

    fn server(&self, url: &str) -> anyhow::Result<prometheus::Server> {
        let token = match &self.prometheus_token_file {
            Some(file) => Some(read_secret(file)?),
            None => None,
        };
        prometheus::Server::new(url, token, self.select.as_deref())
    }

    fn targets(&self, environment: &Environment, home: &Home) -> Vec<(Service, String)> {
        if !self.target.is_empty() {
            return self.target.clone();
        }
        let urls = status::operated(status::urls(environment, home), environment);
        let named = urls.named().into_iter();
        named
            .filter_map(|(name, url)| Some((Service::named(name)?, url.to_owned())))
            .collect()
    }

    fn bearer(
        &self,
        environment: &Environment,
        home: &Home,
    ) -> anyhow::Result<Option<Secret<String>>> {
        const NAME: &str = "METRICS_BEARER";
        if let Some(file) = &self.bearer_file {
            return read_secret(file).map(Some);
        }
        if let Some(text) = environment.get(NAME) {
            return Ok(Some(Secret::new(text.to_owned())));
        }
        if let Some(file) = environment.get("METRICS_BEARER_FILE") {
            return read_secret(file.as_ref()).map(Some);
        }
        let kept = SECRETS.iter().find(|secret| secret.setting == NAME);
        Ok(kept.and_then(|kept| read_secret(&home.secret(kept.file)).ok()))
    }
}

/// The processors of this machine, when all services are on it.
fn own_cores(targets: &[(Service, String)]) -> Option<f64> {
    let is_here = |url: &str| {
        let url = url::Url::parse(url).ok()?;
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        let address = host.parse::<std::net::IpAddr>();
        Some(host == "localhost" || address.is_ok_and(|address| address.is_loopback()))
    };
    if !targets.iter().all(|(_, url)| is_here(url) == Some(true)) {
        return None;
    }
    let cores = std::thread::available_parallelism().ok()?;
    u32::try_from(cores.get()).ok().map(f64::from)
}

fn appended(file: &std::path::Path) -> anyhow::Result<std::fs::File> {
    let opened = OpenOptions::new().create(true).append(true).open(file);
    opened.with_context(|| format!("{} cannot be written", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_name_a_service_and_a_url() {
        let sts = target("sts=http://sts-0:8080/").unwrap();
        assert_eq!(sts, (Service::Sts, "http://sts-0:8080".to_owned()));
        for wrong in [
            "http://sts-0:8080",
            "web=http://a",
            "sts=sts-0:8080",
            "sts=ftp://a",
        ] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_have_units() {
        assert_eq!(span("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(span("10m"), Ok(Duration::from_secs(600)));
        for wrong in ["10", "s", "0s", "1d", "-1s", ""] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cores_are_known_of_this_machine_only() {
        let here = vec![(Service::Sts, "http://127.0.0.1:8080".to_owned())];
        assert!(own_cores(&here).is_some());
        let there = vec![(Service::Sts, "http://sts-0:8080".to_owned())];
        assert_eq!(own_cores(&there), None);
    }
}
