//! The command line. Its help is meant to teach: every command says what it does, what it needs
//! and shows how it is used.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::exit::Outcome;
use crate::home::Home;
use crate::{
    audit, capacity, config, demo, doctor, down, keys, levers, metrics, migrate, policy, run,
    serve, status, up, version,
};

const TEACH: &str = "\
START
  caracal up --detach        five services on this machine, no database to install
  caracal status --ready     are they ready, and if not, why
  caracal demo               one call allowed, one denied, one cut off, each explained
  caracal down               stop them

OPERATE
  caracal doctor             look at everything, and say what to fix
  caracal capacity           what is short, what to do first, what to expect
  caracal config check       look at the settings without starting anything
  caracal migrate            prepare a Postgres database (DATABASE_URL)
  caracal serve sts gateway  run some of the services, on Postgres and Redis
  caracal audit explain ID   why a request was decided so, and what would have to change
  caracal policy replay      what another policy would have decided about recorded requests
  caracal run -- COMMAND     give a command its credentials, and nothing else
  caracal audit verify       prove that no evidence was changed, dropped or reordered
  caracal keys rotate        give a zone its next signing key
  caracal metrics catalogue  every metric and capacity signal, for dashboards and alerts

SETTINGS come from the environment, then from the file that CARACAL_ENV_FILE names, then from
caracal.env in the data directory. NAME_FILE gives a secret by file. `caracal config explain` lists
them. NO_COLOR is respected.
";

/// Authorization for AI agents: who may call what, proven for every call.
#[derive(Debug, Parser)]
#[command(name = "caracal", version, after_help = TEACH, disable_version_flag = true)]
pub struct Cli {
    /// Print the version
    #[arg(short = 'v', long = "version", action = clap::ArgAction::Version)]
    version: (),
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run all five services in one process, on SQLite, with nothing else to install
    Up(up::Up),
    /// Stop what `up` started
    Down(Data),
    /// Ask the five services how they are
    Status(status::Status),
    /// Look at settings, machine, backends, services and zones, and say what to fix
    Doctor(doctor::Doctor),
    /// Name the bottleneck of a running deployment and the first action; size one (`plan`)
    Capacity(Box<capacity::Capacity>),
    /// Run the named services in this process, on Postgres and Redis
    Serve(serve::Serve),
    /// List the settings of the services, and look at what is set
    #[command(subcommand)]
    Config(levers::Config),
    /// Bring a database's schema up to date
    Migrate(migrate::Migrate),
    /// Read, export and verify evidence
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Try policy before it is in force
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Run a command with the credentials that a workload is bound to
    Run(run::Run),
    /// List and rotate the keys that sign mandates
    #[command(subcommand)]
    Keys(keys::Keys),
    /// What the five services measure
    #[command(subcommand)]
    Metrics(metrics::Metrics),
    /// See it work: a call allowed, one denied, one cut off by a revocation
    Demo(demo::Demo),
    /// Print completions for a shell
    #[command(after_help = "EXAMPLE\n  caracal completions bash > /etc/bash_completion.d/caracal")]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the version
    Version(version::Version),
}

/// Which deployment on this machine a command is about.
#[derive(Clone, Debug, Args)]
pub struct Data {
    /// Data directory [default: $CARACAL_HOME, or the user's directory for application data]
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
}

/// The management API that a command asks.
#[derive(Clone, Debug, Args)]
pub struct Api {
    #[command(flatten)]
    pub data: Data,
    /// URL of the management API [default: the running `up`'s]
    #[arg(long, value_name = "URL")]
    pub api_url: Option<String>,
    /// Certificate authorities to trust for an https URL besides the system's, PEM
    /// [default: CARACAL_TLS_EXTRA_CA_FILE]
    #[arg(long, value_name = "FILE")]
    pub api_ca_file: Option<PathBuf>,
    /// File with an admin token [default: CARACAL_ADMIN_TOKEN, or the running `up`'s]
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
}

impl Data {
    /// The settings and the data directory; the directory's own settings file counts last.
    pub fn open(&self) -> anyhow::Result<(config::Environment, Home)> {
        let mut environment = config::Environment::of_process()?;
        let home = Home::find(self.data_dir.as_deref(), &environment)?;
        let file = home.path().join("caracal.env");
        if file.exists() {
            environment.offer_file(&file)?;
        }
        Ok((environment, home))
    }
}

impl Cli {
    /// Does what the command line asks for.
    pub fn run(self) -> Outcome {
        match self.command {
            Command::Up(up) => up.run(),
            Command::Down(data) => down::run(&data),
            Command::Status(status) => status.run(),
            Command::Doctor(doctor) => doctor.run(),
            Command::Capacity(capacity) => capacity.run(),
            Command::Serve(serve) => serve.run(),
            Command::Config(config) => config.run(),
            Command::Migrate(migrate) => migrate.run(),
            Command::Audit(audit) => audit.run(),
            Command::Policy(policy) => policy.run(),
            Command::Run(run) => run.run(),
            Command::Keys(keys) => keys.run(),
            Command::Metrics(metrics) => metrics.run(),
            Command::Demo(demo) => demo.run(),
            Command::Completions { shell } => {
                clap_complete::generate(
                    shell,
                    &mut Self::command(),
                    "caracal",
                    &mut std::io::stdout(),
                );
                Ok(ExitCode::SUCCESS)
            }
            Command::Version(version) => version.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        let mut silent = Vec::new();
        let mut look = vec![Cli::command()];
        while let Some(command) = look.pop() {
            if command.get_about().is_none() {
                silent.push(command.get_name().to_owned());
            }
            look.extend(command.get_subcommands().cloned());
        }
        assert_eq!(silent, Vec::<String>::new());
    }
}
