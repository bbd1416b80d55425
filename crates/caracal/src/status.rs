//! `caracal status`: asks the services, all at once.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use serde::Serialize;

use crate::cli::Data;
use crate::config::Environment;
use crate::exit::Outcome;
use crate::home::{Home, Urls};
use crate::roles::Role;
use crate::term;
use crate::web::{Call, Web};

/// How long a service may take to answer (operations specification §12).
const PROBE: Duration = Duration::from_millis(1500);

/// The ports that the services have when nobody says otherwise: api, sts, gateway, coordinator,
/// audit.
pub const PORTS: [u16; 5] = [3000, 8080, 8081, 4000, 9090];

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal status --ready        all five
  caracal status --ready sts    one of them: the health check of a container

EXIT CODE
  0 when every service that was asked answers well, else 1")]
pub struct Status {
    /// Which services [default: all]
    roles: Vec<Role>,
    /// Ask whether they can serve traffic, not only whether they live
    #[arg(long)]
    ready: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: Data,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    mode: &'static str,
    services: Vec<Service>,
}

/// One service's answer.
#[derive(Debug, Serialize)]
pub struct Service {
    name: &'static str,
    port: u16,
    url: String,
    ok: bool,
    detail: String,
}

impl Report {
    pub fn is_ok(&self) -> bool {
        self.services.iter().all(|service| service.ok)
    }

    /// Names of the services that are not well, with the reasons.
    pub fn missing(&self) -> String {
        let missing = self.services.iter().filter(|service| !service.ok);
        missing
            .map(|service| format!("{} ({})", service.name, service.detail))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Asks the services at `urls`: those of `roles`, or all when there are none.
pub async fn probe(urls: &Urls, ready: bool, roles: &[Role]) -> Report {
    let web = Web::new();
    let path = if ready { "/ready" } else { "/health" };
    let wanted = |name| roles.is_empty() || roles.iter().any(|role| role.name() == name);
    let services = urls.named().into_iter().filter(|(name, _)| wanted(*name));
    let asked = services.map(|(name, base)| {
        let (web, url) = (web.clone(), format!("{base}{path}"));
        async move {
            let (ok, detail) = match web.send(Call::get(&url), PROBE).await {
                Ok(answer) if answer.status.is_success() => {
                    (true, answer.status.as_u16().to_string())
                }
                Ok(answer) => {
                    let detail = format!("{} {}", answer.status.as_u16(), answer.code());
                    (false, detail.trim_end().to_owned())
                }
                Err(none) => (false, none.to_string()),
            };
            let port = url::Url::parse(&url)
                .ok()
                .and_then(|url| url.port_or_known_default());
            Service {
                name,
                port: port.unwrap_or(0),
                url,
                ok,
                detail,
            }
        }
    });
    Report {
        mode: if ready { "ready" } else { "health" },
        services: join_all(asked).await,
    }
}

/// Where the services are: as set, as the running `up` says, or at the published ports.
pub fn urls(environment: &Environment, home: &Home) -> Urls {
    let told = home.runtime().map(|runtime| runtime.urls);
    let mut urls = told.unwrap_or_else(|| Urls::at("localhost", PORTS));
    for (name, url) in [
        ("CARACAL_API_URL", &mut urls.api),
        ("CARACAL_STS_URL", &mut urls.sts),
        ("CARACAL_GATEWAY_URL", &mut urls.gateway),
        ("CARACAL_COORDINATOR_URL", &mut urls.coordinator),
        ("CARACAL_AUDIT_URL", &mut urls.audit),
    ] {
        if let Some(set) = environment.get(name) {
            set.trim_end_matches('/').clone_into(url);
        }
    }
    urls
}

/// The same, as asked about themselves: the Gateway may have a prefix before those paths.
pub fn operated(mut urls: Urls, environment: &Environment) -> Urls {
    if let Some(prefix) = environment.get("GATEWAY_OPERATOR_PREFIX")
        && !urls.gateway.ends_with(prefix)
    {
        urls.gateway.push_str(prefix);
    }
    urls
}

impl Status {
    pub fn run(&self) -> Outcome {
        let (environment, home) = self.data.open()?;
        let urls = operated(urls(&environment, &home), &environment);
        let asking = probe(&urls, self.ready, &self.roles);
        let report = crate::up::small_runtime()?.block_on(asking);
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            for service in &report.services {
                let mark = if service.ok {
                    term::green("ok  ")
                } else {
                    term::red("FAIL")
                };
                println!(
                    "{mark}  {:<12} {:<36} {}",
                    service.name, service.url, service.detail
                );
            }
            if !report.is_ok() {
                eprintln!(
                    "{}",
                    term::dim("start them with `caracal up`; the reasons are in its log")
                );
            }
        }
        Ok(if report.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_listening_is_unreachable_and_not_an_error() {
        // Port 9 is discard: nobody listens there.
        let report = probe(&Urls::at("127.0.0.1", [9; 5]), true, &[]).await;
        assert!(!report.is_ok());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["mode"], "ready");
        assert_eq!(
            json["services"][1],
            serde_json::json!({
                "name": "sts", "port": 9, "url": "http://127.0.0.1:9/ready",
                "ok": false, "detail": "unreachable",
            })
        );
    }

    #[test]
    fn the_gateway_is_asked_below_its_prefix() {
        let asked = |urls: Urls, pairs: &[(&str, &str)]| {
            operated(urls, &Environment::of_pairs(pairs)).gateway
        };
        let plain = Urls::at("localhost", PORTS);
        assert_eq!(asked(plain.clone(), &[]), "http://localhost:8081");
        let prefix = [("GATEWAY_OPERATOR_PREFIX", "/ops")];
        assert_eq!(asked(plain.clone(), &prefix), "http://localhost:8081/ops");
        let mut given = plain;
        given.gateway.push_str("/ops");
        assert_eq!(asked(given, &prefix), "http://localhost:8081/ops");
    }

    #[tokio::test]
    async fn only_the_named_services_are_asked() {
        let report = probe(&Urls::at("127.0.0.1", [9; 5]), false, &[Role::Audit]).await;
        assert_eq!(report.missing(), "audit (unreachable)");
    }
}
