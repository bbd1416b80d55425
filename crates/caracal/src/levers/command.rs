//! `caracal config`: what can be set, and whether what is set can be used.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Lever, check, json, of, page, template, text};
use crate::cli::Data;
use crate::config::{self, Environment};
use crate::exit::Outcome;
use crate::home::Home;
use crate::roles::{Role, in_order};
use crate::term;

/// What `check` ends with when something is wrong.
const WRONG: u8 = 2;

#[derive(Debug, Subcommand)]
pub enum Config {
    /// List every setting: type, bounds, default, what it does, and what it is set to
    Explain(Explain),
    /// Look at the settings without starting anything, and tell every mistake
    Check(Check),
}

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal config explain sts             the settings of the STS, and what they are set to here
  caracal config explain --markdown      the reference page
  caracal config explain --json          for tools: one object a setting and service
  caracal config explain --template > $CARACAL_HOME/caracal.env")]
pub struct Explain {
    /// Services [default: all]
    services: Vec<Role>,
    /// As JSON; without what is set
    #[arg(long)]
    json: bool,
    /// As the reference page; without what is set
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// As a file of settings in which none is set yet
    #[arg(long, conflicts_with_all = ["json", "markdown"])]
    template: bool,
    #[command(flatten)]
    data: Data,
}

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal config check                          as `caracal up` would start, or, where DATABASE_URL
                                                is set, as `caracal serve` with all services
  caracal config check sts gateway              as `caracal serve sts gateway` would start
  caracal config check sts --env-file sts.env   what is in the file, and nothing of this environment

Nothing is started, asked or written. Files that settings name are read.

EXIT CODE
  0 when everything can be used, 2 when there are mistakes, 1 when the file cannot be read")]
pub struct Check {
    /// Services of one process
    services: Vec<Role>,
    /// Look at this file of NAME=value lines instead of this environment
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: Data,
}

impl Config {
    pub fn run(&self) -> Outcome {
        match self {
            Self::Explain(explain) => explain.run(),
            Self::Check(check) => check.run(),
        }
    }
}

impl Explain {
    fn run(&self) -> Outcome {
        let roles = match self.services.as_slice() {
            [] => Role::ALL.to_vec(),
            some => in_order(some),
        };
        let levers: Vec<Lever> = roles.iter().copied().flat_map(of).collect();
        if self.json {
            println!(
                "{}",
                serde_json::to_string_pretty(&json::Export::new(&levers))?
            );
        } else if self.markdown {
            print!("{}", page::page(&levers));
        } else if self.template {
            print!("{}", template::template(&levers));
        } else {
            let (environment, _) = self.data.open()?;
            let each = roles
                .iter()
                .map(|role| text::service(*role, &of(*role), &environment));
            print!(
                "{}{}",
                each.collect::<Vec<_>>().join("\n"),
                text::unused(&roles)
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Check {
    fn run(&self) -> Outcome {
        let (environment, home) = self.environment()?;
        let is_set = |name: &str| environment.get(name).is_some();
        let shared = is_set("DATABASE_URL") || is_set("DATABASE_URL_FILE");
        let (mistakes, as_what) = if self.services.is_empty() && !shared {
            (
                check::embedded(&environment, &home),
                "`caracal up`".to_owned(),
            )
        } else {
            let roles = match self.services.as_slice() {
                [] => Role::ALL.to_vec(),
                some => in_order(some),
            };
            let names: Vec<_> = roles.iter().map(|role| role.name()).collect();
            let as_what = format!("`caracal serve {}`", names.join(" "));
            (check::distributed(&environment, &roles), as_what)
        };
        let told = config::told(&mistakes);
        let warnings = check::warnings(&environment);
        if self.json {
            let pair = |name: &str, why: &str| json!({ "name": name, "why": why });
            let mistakes: Vec<_> = told.iter().map(|(name, why)| pair(name, why)).collect();
            let warnings: Vec<_> = warnings
                .iter()
                .map(|one| pair(&one.name, &one.why))
                .collect();
            let ok = mistakes.is_empty();
            let report =
                json!({ "ok": ok, "as": as_what, "mistakes": mistakes, "warnings": warnings });
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            for warning in &warnings {
                eprintln!(
                    "{} {}: {}",
                    term::dim("warning:"),
                    warning.name,
                    warning.why
                );
            }
            if told.is_empty() {
                println!("everything that {as_what} needs is set and can be used");
            } else {
                eprintln!("{} {}", term::red("error:"), config::complaint(&mistakes));
            }
        }
        Ok(if told.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(WRONG)
        })
    }

    fn environment(&self) -> anyhow::Result<(Environment, Home)> {
        let (environment, home) = self.data.open()?;
        match &self.env_file {
            None => Ok((environment, home)),
            Some(file) => {
                let mut alone = Environment::default();
                alone.offer_file(file)?;
                Ok((alone, home))
            }
        }
    }
}
