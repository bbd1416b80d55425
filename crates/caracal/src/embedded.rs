//! The embedded deployment: settings with the data directory's defaults below them, all five roles,
//! and what a person is told when they are ready.

use std::net::SocketAddr;

use anyhow::bail;
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::Clock as _;
use caracal_net::settings::Mistakes;

use crate::adapters::Adapters;
use crate::config::{self, Environment};
use crate::exit::Outcome;
use crate::home::{Home, Runtime, SECRETS, Urls};
use crate::platform::Settings;
use crate::process;
use crate::roles::{self, Role};
use crate::up::Listen;
use crate::{levers, term, version};

/// Runs all five services until told to stop.
pub fn run(mut environment: Environment, home: &Home, listen: Listen) -> Outcome {
    if environment
        .get("DATABASE_URL")
        .or(environment.get("DATABASE_URL_FILE"))
        .is_some()
    {
        bail!(
            "DATABASE_URL is set, but `up` keeps its data in {}. Unset it, or run `caracal serve` \
             on that database",
            home.path().display()
        );
    }
    home.prepare(&OsRng)?;
    let _owned = home.own()?;
    let urls = listen.urls();
    offer_defaults(&mut environment, home, &urls);
    let (settings, configs) = config::load(&environment, |from, mistakes: &mut Mistakes| {
        let settings = Settings::read(from, &Role::ALL, mistakes);
        let configs = roles::configure(&Role::ALL, from, mistakes);
        settings.zip(configs)
    })?;
    levers::warn_of_unused(&environment);
    let home = home.clone();
    let background = process::background()?;
    process::runtime()?.block_on(Box::pin(async {
        let addresses =
            Role::ALL.map(|role| (role, SocketAddr::new(listen.host, role.of(&listen))));
        // Taken before anything else is done, so that a port in use is told at once.
        let listeners = process::bind(&addresses).await?;
        let adapters = Box::pin(Adapters::embedded(
            &environment,
            &home,
            &settings,
            background.handle(),
        ))
        .await?;
        let announce = || {
            home.write_runtime(&Runtime {
                version: version::VERSION.to_owned(),
                updated_at: SystemClock::new().now().iso_millis(),
                pid: std::process::id(),
                urls: urls.clone(),
            })?;
            tell(&home, &urls, false);
            Ok(())
        };
        let served = process::serve(configs, &settings, adapters, listeners, announce).await;
        home.forget_runtime();
        served
    }))
}

/// What the data directory and the ports give; whatever is set wins.
pub fn offer_defaults(environment: &mut Environment, home: &Home, urls: &Urls) {
    for secret in SECRETS {
        let by_file = format!("{}_FILE", secret.setting);
        if environment.get(secret.setting).is_none() {
            environment.offer(by_file, home.secret(secret.file).display().to_string());
        }
    }
    environment.offer("AUDIT_REPLAY_DIR", home.evidence().display().to_string());
    environment.offer("ISSUER_URL", urls.sts.clone());
    environment.offer("STS_URL", urls.sts.clone());
    environment.offer("CARACAL_GATEWAY_URL", urls.gateway.clone());
    environment.offer("CARACAL_COORDINATOR_URL", urls.coordinator.clone());
}

/// What a person wants to know next.
pub fn tell(home: &Home, urls: &Urls, detached: bool) {
    let binary = std::env::args()
        .next()
        .unwrap_or_else(|| "caracal".to_owned());
    let data = data_dir_option(home);
    println!("{}", term::bold("Caracal is ready"));
    for (name, url) in urls.named() {
        println!("  {name:<12} {url}");
    }
    println!("  {:<12} {}", "data", home.path().display());
    println!(
        "  {:<12} {}",
        "admin token",
        home.admin_token_file().display()
    );
    if detached {
        println!("  {:<12} {}", "log", home.log().display());
    }
    println!("\nNext:");
    for (command, what) in [
        ("demo --keep", "a call allowed, one denied, one cut off"),
        ("audit tail", "evidence as it arrives"),
        if detached {
            ("down", "stop")
        } else {
            (
                "status --ready",
                "how the services are; Ctrl-C here stops them",
            )
        },
    ] {
        println!(
            "  {:<46} {}",
            format!("{binary} {command}{data}"),
            term::dim(what)
        );
    }
}

/// The option that names this deployment, when the next command would not find it by itself.
fn data_dir_option(home: &Home) -> String {
    let usual = Environment::of_process().and_then(|environment| Home::find(None, &environment));
    match usual {
        Ok(usual) if usual.path() == home.path() => String::new(),
        _ => format!(" --data-dir {}", home.path().display()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_set_wins_over_the_data_directory() {
        let mut environment = Environment::of_pairs(&[
            ("CARACAL_ADMIN_TOKEN", "mine"),
            ("STREAMS_HMAC_KEY_FILE", "/run/secrets/streams"),
            ("ISSUER_URL", "https://sts.example"),
        ]);
        let home = Home::find(Some(Path::new("/data")), &environment).unwrap();
        offer_defaults(
            &mut environment,
            &home,
            &Urls::at("localhost", [1, 2, 3, 4, 5]),
        );
        assert_eq!(
            environment.get("CARACAL_ADMIN_TOKEN_FILE"),
            None,
            "a value needs no file"
        );
        assert_eq!(
            environment.get("STREAMS_HMAC_KEY_FILE"),
            Some("/run/secrets/streams")
        );
        assert_eq!(
            environment.get("AUDIT_HMAC_KEY_FILE"),
            Some("/data/secrets/auditHmacKey")
        );
        assert_eq!(environment.get("ISSUER_URL"), Some("https://sts.example"));
        assert_eq!(environment.get("STS_URL"), Some("http://localhost:2"));
    }
}
