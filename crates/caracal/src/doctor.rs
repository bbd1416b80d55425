//! `caracal doctor`: looks at everything that a deployment stands on, and says what to fix
//! (operations specification §12).
//!
//! **Choice.** Nothing is changed, and nothing found ends the examination: an operator wants all of
//! it at once. What needs a running deployment is asked through the interfaces that it publishes;
//! what is on this machine, and what its settings name, is looked at directly.

mod backends;
mod here;
mod report;
mod secrets;
mod services;
mod zones;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use caracal_crypto::os::SystemClock;
use caracal_model::{Clock, Secret};
use clap::Args;

use crate::cli::Api;
use crate::config::Environment;
use crate::exit::Outcome;
use crate::home::{Home, SECRETS, Urls, read_secret};
use crate::roles::{Role, in_order};
use crate::web::Web;
use crate::{audit, embedded, status, up};

use self::report::{Checks, Context, Report, Scope, Section};

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal doctor                          the deployment on this machine
  caracal doctor --preflight sts gateway  before these are started here
  caracal doctor --api-url http://api:3000 --admin-token-file token
  caracal doctor --json --strict          for a pipeline: warnings count as well

WHAT IT LOOKS AT
  settings, keys, the data directory and its modes, free disk, ports, evidence that waits; Postgres
  or SQLite with its schema and clock; the secret backend; Redis with its version and persistence;
  then the running services, their numbers, and each zone. Nothing is changed

EXIT CODE
  0 when nothing failed (with --strict: when nothing needs a look), else 1")]
pub struct Doctor {
    #[command(flatten)]
    api: Api,
    /// Roles that this machine runs, or will [default: all]
    roles: Vec<Role>,
    /// Only what must be right before a start; services need not run
    #[arg(long)]
    preflight: bool,
    /// Warnings count as failures
    #[arg(long)]
    strict: bool,
    /// This zone only
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What every examination has at hand.
pub struct Patient {
    pub environment: Environment,
    pub home: Home,
    pub roles: Vec<Role>,
    pub urls: Urls,
    pub clock: Arc<dyn Clock>,
    pub web: Web,
    pub admin: Option<Secret<String>>,
    pub is_preflight: bool,
    /// Whether the deployment, or a part of it, lives on this machine.
    pub is_here: bool,
}

impl Doctor {
    pub fn run(&self) -> Outcome {
        let patient = self.patient()?;
        let (checks, zone_ids) = up::small_runtime()?.block_on(self.examine(&patient));
        let scope = match (&self.zone, self.preflight) {
            (_, true) => Scope::None,
            (Some(_), false) => Scope::Selected,
            (None, false) => Scope::All,
        };
        let context = Context {
            api_url: patient.urls.api.clone(),
            zone_scope: scope,
            zone_ids,
        };
        let report = Report::new(checks, context, self.preflight, self.strict);
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print!("{}", report.table());
        }
        Ok(if report.is_ready() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn patient(&self) -> anyhow::Result<Patient> {
        let (mut environment, home) = self.api.data.open()?;
        let mut urls = status::urls(&environment, &home);
        if let Some(url) = &self.api.api_url {
            url.trim_end_matches('/').clone_into(&mut urls.api);
        }
        let admin = audit::admin_token(&self.api, &environment, &home).ok();
        let is_shared = is_set(&environment, "DATABASE_URL");
        let is_here = is_shared || home.path().exists() || self.preflight;
        if !is_shared {
            // As `up` would have it.
            embedded::offer_defaults(&mut environment, &home, &urls);
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let extra_ca = environment
            .get("CARACAL_TLS_EXTRA_CA_FILE")
            .map(PathBuf::from);
        // A bundle that cannot be used is found by the examination of the settings.
        let web = Web::with_tls(extra_ca.as_deref(), clock.clone()).unwrap_or_else(|_| Web::new());
        let roles = match self.roles.as_slice() {
            [] => Role::ALL.to_vec(),
            some => in_order(some),
        };
        Ok(Patient {
            environment,
            home,
            roles,
            urls,
            clock,
            web,
            admin,
            is_preflight: self.preflight,
            is_here,
        })
    }

    async fn examine(&self, patient: &Patient) -> (Checks, Vec<String>) {
        let mut checks = Checks::default();
        if patient.is_here {
            let settings = here::examine(patient, &mut checks);
            backends::examine(patient, settings.as_ref(), &mut checks).await;
        }
        if self.preflight {
            return (checks, Vec::new());
        }
        if !services::examine(patient, &mut checks).await {
            checks
                .warn(
                    Section::Zones,
                    "zones",
                    "not asked: the API does not answer",
                )
                .advise("see the check `API` above");
            return (checks, Vec::new());
        }
        let zones = zones::examine(patient, self.zone.as_deref(), &mut checks).await;
        (checks, zones)
    }
}

impl Patient {
    /// Whether the services share a Postgres.
    pub fn is_shared(&self) -> bool {
        is_set(&self.environment, "DATABASE_URL")
    }

    /// A secret by its setting: set, in the file that is set, or in the data directory.
    pub fn secret(&self, setting: &str) -> Option<Secret<String>> {
        if let Some(text) = self.environment.get(setting) {
            return Some(Secret::new(text.to_owned()));
        }
        if let Some(file) = self.environment.get(&format!("{setting}_FILE")) {
            return read_secret(file.as_ref()).ok();
        }
        let kept = SECRETS.iter().find(|secret| secret.setting == setting)?;
        read_secret(&self.home.secret(kept.file)).ok()
    }
}

fn is_set(environment: &Environment, name: &str) -> bool {
    environment.get(name).is_some() || environment.get(&format!("{name}_FILE")).is_some()
}
