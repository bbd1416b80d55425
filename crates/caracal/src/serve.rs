//! `caracal serve`: some of the services, on Postgres and Redis.

use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::bail;
use caracal_net::settings::{Mistakes, Mode};
use clap::Args;

use crate::adapters::Adapters;
use crate::cli::Data;
use crate::exit::Outcome;
use crate::platform::Settings;
use crate::roles::{self, Role};
use crate::{config, process, telemetry, term};

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal serve api sts gateway coordinator audit    all of them, on Postgres and Redis
  PORT=8080 caracal serve sts                        one of them, as in a container

NEEDS
  DATABASE_URL   postgres://…; run `caracal migrate` once before
  REDIS_URL      redis://…; noeviction, AOF
  keys           AUDIT_HMAC_KEY, STREAMS_HMAC_KEY, GATEWAY_STS_HMAC_KEY, SECRET_STORE_KEK,
                 IDEMPOTENCY_HMAC_KEY: hex, the same in every process; NAME_FILE reads a file
  ISSUER_URL     the iss of every mandate
  STS_URL        where the Gateway finds the STS, unless both run in this process
  AUDIT_REPLAY_DIR   a directory on a disk, of this process alone

PORT moves the port of a process with one role; API_PORT, STS_PORT, GATEWAY_PORT, COORDINATOR_PORT
and AUDIT_PORT move each. HOST is the address to listen on.")]
pub struct Serve {
    /// Which services
    #[arg(required = true)]
    roles: Vec<Role>,
    #[command(flatten)]
    data: Data,
}

caracal_net::settings! {
    /// Where a process listens.
    struct Addresses {
        /// Address to listen on.
        host: Option<IpAddr> = var("HOST"),
        /// Port of a process with one role.
        port: Option<u16> = var("PORT").within("1", "65535"),
        /// Port of the API.
        api: Option<u16> = var("API_PORT").within("1", "65535"),
        /// Port of the STS.
        sts: Option<u16> = var("STS_PORT").within("1", "65535"),
        /// Port of the Gateway.
        gateway: Option<u16> = var("GATEWAY_PORT").within("1", "65535"),
        /// Port of the Coordinator.
        coordinator: Option<u16> = var("COORDINATOR_PORT").within("1", "65535"),
        /// Port of Audit.
        audit: Option<u16> = var("AUDIT_PORT").within("1", "65535"),
        /// Whether this is a published deployment: those listen for other machines by default.
        mode: Option<Mode> = var("CARACAL_MODE"),
    }
}

impl Addresses {
    fn of(&self, role: Role, alone: bool) -> SocketAddr {
        let own = match role {
            Role::Api => self.api,
            Role::Sts => self.sts,
            Role::Gateway => self.gateway,
            Role::Coordinator => self.coordinator,
            Role::Audit => self.audit,
        };
        let port = own.or(self.port.filter(|_| alone)).unwrap_or(role.port());
        let local = matches!(role, Role::Api | Role::Coordinator)
            && matches!(self.mode, None | Some(Mode::Dev));
        let unset = if local {
            Ipv4Addr::LOCALHOST
        } else {
            Ipv4Addr::UNSPECIFIED
        };
        SocketAddr::new(self.host.unwrap_or(IpAddr::V4(unset)), port)
    }
}

impl Serve {
    pub fn run(&self) -> Outcome {
        let (environment, home) = self.data.open()?;
        telemetry::start(&environment);
        if environment
            .get("DATABASE_URL")
            .or(environment.get("DATABASE_URL_FILE"))
            .is_none()
        {
            bail!("DATABASE_URL is required. Without a database to set up, use `caracal up`");
        }
        let mut roles = self.roles.clone();
        roles.sort();
        roles.dedup();
        let loaded = config::load(&environment, |from, mistakes: &mut Mistakes| {
            let settings = Settings::read(from, &roles, mistakes);
            let addresses = Addresses::load(from, mistakes);
            let configs = roles::configure(&roles, from, mistakes);
            settings.zip(addresses).zip(configs)
        });
        let ((settings, addresses), configs) = loaded?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn at(role: Role, alone: bool, pairs: &[(&str, &str)]) -> String {
        let from: BTreeMap<String, String> = pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        Addresses::load(&from, &mut Mistakes::default())
            .unwrap()
            .of(role, alone)
            .to_string()
    }

    #[test]
    fn a_single_role_takes_port_and_each_role_takes_its_own() {
        assert_eq!(at(Role::Sts, true, &[]), "0.0.0.0:8080");
        assert_eq!(at(Role::Sts, true, &[("PORT", "9")]), "0.0.0.0:9");
        assert_eq!(at(Role::Sts, false, &[("PORT", "9")]), "0.0.0.0:8080");
        assert_eq!(
            at(Role::Sts, false, &[("STS_PORT", "9"), ("HOST", "10.0.0.1")]),
            "10.0.0.1:9"
        );
    }

    #[test]
    fn the_control_plane_of_an_undeclared_deployment_listens_for_this_machine_only() {
        assert_eq!(at(Role::Api, true, &[]), "127.0.0.1:3000");
        assert_eq!(
            at(Role::Coordinator, true, &[("CARACAL_MODE", "dev")]),
            "127.0.0.1:4000"
        );
        assert_eq!(
            at(Role::Api, true, &[("CARACAL_MODE", "stable")]),
            "0.0.0.0:3000"
        );
    }
}
