//! `caracal capacity plan`: from a load to sizes, all arithmetic shown.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use caracal_capacity::Service;
use caracal_capacity::plan::{Costs, Fleet, Load, Plan};
use clap::Args;
use serde_json::Value;

use super::span;
use crate::exit::Outcome;

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal capacity plan --rps 500 --sessions 400 --zones 10 --identities 100
  caracal capacity plan --rps 2000 --sessions 1000 --max-connections 300 --replicas sts=12
  caracal-bench --spawn caracal --format json > run.json
  caracal capacity plan --rps 500 --sessions 400 --costs run.json   with your own figures

COSTS
  Of docs/benchmarks.md, unless --costs gives others: the JSON of caracal-bench, of `caracal-bench
  audit`, of `caracal capacity --json` made under load (which knows each service's part), or
  {\"costs\": {NAME: NUMBER}}. Each figure is shown with its source

EXIT CODE
  0 the load fits, 1 something is too small for it, 2 the command line is not understood")]
pub struct PlanArgs {
    /// Governed calls a second
    #[arg(long, value_name = "N", value_parser = positive)]
    rps: f64,
    /// Sessions that live at the same time
    #[arg(long, value_name = "N", value_parser = positive)]
    sessions: f64,
    /// Zones that they are spread over
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    zones: f64,
    /// Different (zone, resource, application) that call [default: one for each live Session]
    #[arg(long, value_name = "N", value_parser = positive)]
    identities: Option<f64>,
    /// How long a Session lives
    #[arg(long, default_value = "17m", value_parser = span)]
    session_life: Duration,
    /// How long a mandate lives
    #[arg(long, default_value = "15m", value_parser = span)]
    mandate_life: Duration,
    /// How long evidence is kept (AUDIT_RETENTION_DAYS)
    #[arg(long, value_name = "DAYS", default_value = "365", value_parser = positive)]
    retention_days: f64,
    /// Redis holds the evidence of an outage of Audit or Postgres this long
    #[arg(long, default_value = "10m", value_parser = span)]
    outage: Duration,
    /// How much of anything may be used, percent
    #[arg(long, value_name = "PERCENT", default_value = "60", value_parser = percent)]
    utilization: f64,
    /// Processors of a replica
    #[arg(long, value_name = "N", default_value = "2", value_parser = positive)]
    cores: f64,
    /// Processors of Postgres
    #[arg(long, value_name = "N", default_value = "4", value_parser = positive)]
    postgres_cores: f64,
    /// max_connections of Postgres
    #[arg(long, value_name = "N", default_value = "100", value_parser = positive)]
    max_connections: f64,
    /// Disk of Postgres, GiB
    #[arg(long, value_name = "GIB", value_parser = positive)]
    postgres_disk: Option<f64>,
    /// maxmemory of Redis, MiB
    #[arg(long, value_name = "MIB", default_value = "512", value_parser = positive)]
    redis_memory: f64,
    /// STS_MINT_RATE_LIMIT_PER_MIN
    #[arg(long, value_name = "N", default_value = "1000", value_parser = positive)]
    mint_limit: f64,
    /// MAX_AGENTS_PER_ZONE
    #[arg(long, value_name = "N", default_value = "50", value_parser = positive)]
    sessions_per_zone: f64,
    /// Most replicas of a service, such as sts=12 [default: those of the chart]
    #[arg(long, value_name = "SERVICE=N", value_parser = of_service)]
    replicas: Vec<(Service, f64)>,
    /// DB_POOL_MAX of a service, such as api=20 [default: those of the services]
    #[arg(long, value_name = "SERVICE=N", value_parser = of_service)]
    pool: Vec<(Service, f64)>,
    /// File with measured costs; may be given several times, the last one wins
    #[arg(long, value_name = "FILE")]
    costs: Vec<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "a number above 0".to_owned())?;
    if number.is_finite() && number > 0.0 && number <= 1e12 {
        Ok(number)
    } else {
        Err("a number above 0".to_owned())
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let number = positive(text)?;
    if (1.0..=100.0).contains(&number) {
        Ok(number / 100.0)
    } else {
        Err("a percentage from 1 to 100".to_owned())
    }
}

fn of_service(text: &str) -> Result<(Service, f64), String> {
    let wrong = || "SERVICE=N, where SERVICE is api, sts, gateway, audit or coordinator".to_owned();
    let (name, number) = text.split_once('=').ok_or_else(wrong)?;
    Ok((Service::named(name).ok_or_else(wrong)?, positive(number)?))
}

impl PlanArgs {
    pub fn run(&self) -> Outcome {
        let mut costs = Costs::default();
        for file in &self.costs {
            let name = file.display();
            let text = std::fs::read(file).with_context(|| format!("{name} cannot be read"))?;
            let json: Value =
                serde_json::from_slice(&text).with_context(|| format!("{name} is not JSON"))?;
            let taken = costs.learn(&json, &name.to_string());
            taken.map_err(|why| anyhow!("{name}: {why}"))?;
        }
        let plan = Plan::of(self.load(), self.fleet(), costs);
        if self.json {
            println!("{}", serde_json::to_string(&plan)?);
        } else {
            print!("{}", plan.text());
        }
        Ok(if plan.fits {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn load(&self) -> Load {
        Load {
            calls_per_second: self.rps,
            sessions: self.sessions,
            zones: self.zones,
            identities: self.identities.unwrap_or(self.sessions),
            session_seconds: self.session_life.as_secs_f64(),
            mandate_seconds: self.mandate_life.as_secs_f64(),
            retention_days: self.retention_days,
            outage_minutes: self.outage.as_secs_f64() / 60.0,
            utilization: self.utilization,
        }
    }

    fn fleet(&self) -> Fleet {
        let mut fleet = Fleet {
            cores: self.cores,
            postgres_cores: self.postgres_cores,
            max_connections: self.max_connections,
            postgres_disk: self.postgres_disk.unwrap_or(0.0) * 1024f64.powi(3),
            redis_memory: self.redis_memory * 1024f64.powi(2),
            mint_limit: self.mint_limit,
            sessions_per_zone: self.sessions_per_zone,
            ..Fleet::default()
        };
        fleet.most.extend(self.replicas.iter().copied());
        fleet.pools.extend(self.pool.iter().copied());
        fleet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_above_nought() {
        assert_eq!(positive("2.5"), Ok(2.5));
        for wrong in ["0", "-1", "NaN", "inf", "many", "1e13"] {
            assert!(positive(wrong).is_err(), "{wrong}");
        }
        assert_eq!(percent("60"), Ok(0.6));
        assert!(percent("0.5").is_err() && percent("101").is_err());
        assert_eq!(of_service("sts=12"), Ok((Service::Sts, 12.0)));
        assert!(of_service("web=1").is_err());
    }
}
