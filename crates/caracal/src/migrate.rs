//! `caracal migrate`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use caracal_model::Secret;
use caracal_net::settings::Mistakes;
use caracal_store::Store;
use caracal_store::db_roles::Service;
use clap::Args;

use crate::cli::Data;
use crate::database::{self, DatabaseConfig};
use crate::exit::Outcome;
use crate::{config, term};

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  DATABASE_URL=postgres://caracal@db/caracal caracal migrate
  CARACAL_GATEWAY_DB_PASSWORD_FILE=… caracal migrate --roles    and a role for each service

Only adds; the version before keeps working on the new schema, so migrate first, then roll the
services. Several may run at once. `caracal up` migrates by itself.

ROLES
  --roles makes the roles caracalapi, caracalsts, caracalgateway, caracalcoordinator and caracalaudit,
  each with what its service needs and no more, and takes away what else they had on the tables. Whoever
  migrates must own the tables and may create roles. CARACAL_<SERVICE>_DB_PASSWORD, or …_FILE, lets a role
  log in with that password; without it, a role keeps the one that it has.")]
pub struct Migrate {
    #[command(flatten)]
    data: Data,
    /// Seconds to wait for the database
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    wait: u64,
    /// Make a role for each service as well
    #[arg(long)]
    roles: bool,
    /// What the names of the roles begin with; two deployments on one server need two
    #[arg(long, default_value = "caracal", requires = "roles", value_parser = prefix)]
    role_prefix: String,
}

caracal_net::settings! {
    /// What the roles of the services log in with.
    pub struct Passwords {
        /// Of the API.
        api: Option<Secret<String>> = var("CARACAL_API_DB_PASSWORD").secret(),
        /// Of the STS.
        sts: Option<Secret<String>> = var("CARACAL_STS_DB_PASSWORD").secret(),
        /// Of the Gateway.
        gateway: Option<Secret<String>> = var("CARACAL_GATEWAY_DB_PASSWORD").secret(),
        /// Of the Coordinator.
        coordinator: Option<Secret<String>> = var("CARACAL_COORDINATOR_DB_PASSWORD").secret(),
        /// Of Audit.
        audit: Option<Secret<String>> = var("CARACAL_AUDIT_DB_PASSWORD").secret(),
    }
}

impl Passwords {
    /// Those that are set.
    fn set(self) -> Vec<(Service, Secret<String>)> {
        let each = [
            (Service::Api, self.api),
            (Service::Sts, self.sts),
            (Service::Gateway, self.gateway),
            (Service::Coordinator, self.coordinator),
            (Service::Audit, self.audit),
        ];
        let each = each.into_iter();
        each.filter_map(|(service, password)| Some((service, password?)))
            .collect()
    }
}

/// The beginning of a name that needs no quotes, and leaves room for the longest service.
fn prefix(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let fits = (1..=40).contains(&text.len()) && text.starts_with(|c: char| c.is_ascii_lowercase());
    if fits && text.chars().all(legal) {
        Ok(text.to_owned())
    } else {
        Err("1 to 40 small letters, digits and underscores, a letter first".to_owned())
    }
}

impl Migrate {
    pub fn run(&self) -> Outcome {
        let (environment, home) = self.data.open()?;
        let (config, passwords) = config::load(&environment, |from, mistakes: &mut Mistakes| {
            let config = DatabaseConfig::read(from, mistakes);
            let passwords = Passwords::load(from, mistakes);
            Some((config?, passwords?))
        })?;
        if self.roles && !config.is_postgres() {
            bail!("--roles is for Postgres; set DATABASE_URL");
        }
        crate::up::small_runtime()?.block_on(async {
            if !config.is_postgres() {
                home.prepare(&caracal_crypto::os::OsRng)?;
            }
            let patience = Duration::from_secs(self.wait);
            let store = database::open(config, &home, &[], patience).await?;
            let applied = term::patiently("migrating", store.migrate())
                .await
                .context("the schema could not be brought up to date; nothing of the failed step is kept")?;
            let granted = if self.roles {
                self.grant(&store, passwords).await?
            } else {
                Vec::new()
            };
            store.shutdown().await;
            if applied.is_empty() {
                println!("the schema is up to date");
            }
            for version in applied {
                println!("applied {version:04}");
            }
            for line in granted {
                println!("{line}");
            }
            Ok(ExitCode::SUCCESS)
        })
    }

    /// Makes the roles, and says what can log in.
    async fn grant(&self, store: &Store, passwords: Passwords) -> anyhow::Result<Vec<String>> {
        let granted = store.grant_roles(&self.role_prefix, &passwords.set()).await;
        let granted = granted.context(
            "the roles of the services could not be made; nothing of it is kept. Whoever migrates must \
             own the tables, and have CREATEROLE",
        )?;
        let line = |one: &caracal_store::db_roles::Granted| {
            let password = if one.password {
                "its password is set"
            } else {
                "its password was left as it is"
            };
            format!("role {}: granted, {password}", one.role)
        };
        Ok(granted.iter().map(line).collect())
    }
}
