//! `caracal serve`: some of the services, on Postgres and Redis.

use std::io::IsTerminal as _;

use caracal_net::settings::{Mistakes, Strings};
use clap::Args;

use crate::adapters::Adapters;
use crate::addresses::Addresses;
use crate::cli::Data;
use crate::exit::Outcome;
use crate::platform::Settings;
use crate::roles::{self, Configured, Role};
use crate::{config, levers, process, telemetry, term};

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal serve api sts gateway coordinator audit    all of them, on Postgres and Redis
  caracal serve sts                                  one of them, as in a container

NEEDS
  DATABASE_URL   postgres://…; run `caracal migrate` once before
  REDIS_URL      redis://…; noeviction, AOF
  keys           AUDIT_HMAC_KEY, STREAMS_HMAC_KEY, GATEWAY_STS_HMAC_KEY, SECRET_STORE_KEK,
                 IDEMPOTENCY_HMAC_KEY: hex, the same in every process; NAME_FILE reads a file
  ISSUER_URL     the iss of every mandate
  STS_URL        where the Gateway finds the STS, unless both run in this process
  AUDIT_REPLAY_DIR   a directory on a disk, of this process alone

API_PORT, STS_PORT, GATEWAY_PORT, COORDINATOR_PORT and AUDIT_PORT move the port of each; PORT moves
that of API or Coordinator when it runs alone. HOST is the address to listen on.

`caracal config check sts gateway` looks at the settings without starting anything;
`caracal config explain sts` lists them.")]
pub struct Serve {
    /// Which services
    #[arg(required = true)]
    roles: Vec<Role>,
    #[command(flatten)]
    data: Data,
}

/// What the services of a process are set to.
pub struct Distributed {
    pub settings: Settings,
    pub addresses: Addresses,
    pub configs: Vec<Configured>,
}

impl Distributed {
    /// Reads everything that a process with these roles needs; adds every mistake.
    pub fn read(from: &dyn Strings, roles: &[Role], mistakes: &mut Mistakes) -> Option<Self> {
        for (name, example, otherwise) in [
            (
                "DATABASE_URL",
                "postgres://caracal@postgres/caracal",
                ". Without a database to set up, use `caracal up`",
            ),
            ("REDIS_URL", "redis://redis:6379", ""),
        ] {
            let set = |name: &str| from.get(name).is_some_and(|text| !text.trim().is_empty());
            if !set(name) && !set(&format!("{name}_FILE")) {
                mistakes.add(
                    name,
                    format!("is required, for example {example}{otherwise}"),
                );
            }
        }
        let settings = Settings::read(from, roles, mistakes);
        let addresses = Addresses::read(from, roles, mistakes);
        let configs = roles::configure(roles, from, mistakes);
        Some(Self {
            settings: settings?,
            addresses: addresses?,
            configs: configs?,
        })
    }
}

impl Serve {
    pub fn run(&self) -> Outcome {
        let (environment, home) = self.data.open()?;
        telemetry::start(&environment);
        let roles = roles::in_order(&self.roles);
        let loaded = config::load(&environment, |from, mistakes: &mut Mistakes| {
            Distributed::read(from, &roles, mistakes)
        });
        let Distributed {
            settings,
            addresses,
            configs,
        } = loaded?;
        levers::warn_of_unused(&environment);
        process::runtime()?.block_on(Box::pin(async {
            let alone = roles.len() == 1;
            let addresses: Vec<_> = roles
                .iter()
                .map(|&role| (role, addresses.of(role, alone)))
                .collect();
            let listeners = process::bind(&addresses).await?;
            let adapters = Adapters::distributed(&environment, &home, &settings, &roles);
            let adapters = Box::pin(adapters).await?;
            let ready = || {
                for (role, address) in &addresses {
                    tracing::info!(service = role.name(), %address, "listening");
                    if std::io::stderr().is_terminal() {
                        term::progress(&format!("{} on {address}", role.name()));
                    }
                }
                Ok(())
            };
            process::serve(configs, &settings, adapters, listeners, ready).await
        }))
    }
}
