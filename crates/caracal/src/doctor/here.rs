//! This machine: settings, the data directory and its modes, disk, ports, and evidence that waits.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caracal_net::egress::{client_config, expiry, server_config};
use caracal_net::settings::{Mistakes, Mode};

use crate::addresses::Addresses;
use crate::home::SECRETS;
use crate::platform::Settings;
use crate::roles::{self, Role};
use crate::serve::Distributed;
use crate::status::PORTS;
use crate::{config, levers};

use super::Patient;
use super::report::{Checks, Section};

const AT: Section = Section::Preflight;
/// Below these, in bytes, a disk is nearly full, and then as good as full.
const LITTLE_DISK: u64 = 1 << 30;
const NO_DISK: u64 = 128 << 20;
/// A certificate that ends within this needs a look (operations specification §12).
const EXPIRES_SOON: Duration = Duration::from_secs(30 * 86_400);
/// Evidence that is older than this is not being delivered (audit specification §14).
const OLD_EVIDENCE: Duration = Duration::from_secs(300);

/// Looks at all of it; answers with the settings when they can be used.
pub fn examine(patient: &Patient, checks: &mut Checks) -> Option<Settings> {
    let is_new = !patient.is_shared() && !patient.home.database().exists();
    if is_new {
        let place = patient.home.path().display();
        checks.ok(
            AT,
            "data directory",
            format!("{place}: nothing is there yet; `caracal up` makes it"),
        );
    } else if !patient.is_shared() {
        data_directory(patient, checks);
    }
    let settings = settings(patient, is_new, checks);
    certificates(patient, checks);
    for (name, place) in places(patient, settings.as_ref()) {
        disk(name, &place, checks);
    }
    if let Some(settings) = &settings {
        evidence(patient, &settings.replay_dir, checks);
    }
    ports(patient, checks);
    settings
}

/// Every mistake is a check of its own.
fn settings(patient: &Patient, is_new: bool, checks: &mut Checks) -> Option<Settings> {
    if is_new {
        // The keys are made on the first start; what is set otherwise is looked at without them.
        checks.ok(
            AT,
            "settings",
            "keys and tokens are made on the first start",
        );
        return None;
    }
    let mut mistakes = Mistakes::default();
    let settings = read(patient, &mut mistakes);
    for (name, why) in config::told(&mistakes) {
        let failed = checks.fail(AT, format!("setting {name}"), why);
        failed.advise("`caracal config explain` lists settings; NAME_FILE gives a secret by file");
    }
    for warning in levers::warnings(&patient.environment) {
        checks
            .warn(AT, format!("setting {}", warning.name), warning.why)
            .advise("leave it out, or set what does what you want");
    }
    let settings = settings?;
    if mistakes.is_empty() {
        let names: Vec<&str> = patient.roles.iter().map(|role| role.name()).collect();
        checks.ok(AT, "settings", format!("complete for {}", names.join(", ")));
    }
    if settings.mode == Mode::Dev {
        checks
            .warn(
                AT,
                "mode",
                "CARACAL_MODE is dev: keys are optional, metrics open, insecurity allowed",
            )
            .advise("leave CARACAL_MODE unset for anything that is not development");
    } else {
        checks.ok(AT, "mode", "stable posture");
    }
    // One that cannot be used was told above.
    match settings.keyring() {
        Ok(Some(_)) => checks.ok(AT, "key-encryption key", "32 bytes"),
        Ok(None) if patient.roles.contains(&Role::Audit) => checks
            .warn(
                AT,
                "key-encryption key",
                "none: this Audit verifies the ledger, and signs no checkpoint of it",
            )
            .advise("give Audit the SECRET_STORE_KEK that API and STS have"),
        Ok(None) | Err(_) => {}
    }
    Some(settings)
}

fn data_directory(patient: &Patient, checks: &mut Checks) {
    let home = patient.home.path();
    let mut open = Vec::new();
    let mut foreign = Vec::new();
    let own = rustix::process::geteuid().as_raw();
    let files = SECRETS
        .iter()
        .map(|secret| patient.home.secret(secret.file));
    let directories = [
        home.to_owned(),
        home.join("secrets"),
        patient.home.evidence(),
    ];
    for path in directories
        .into_iter()
        .chain(files)
        .chain([patient.home.database()])
    {
        let Ok(found) = std::fs::metadata(&path) else {
            checks
                .fail(
                    AT,
                    "data directory",
                    format!("{} cannot be read", path.display()),
                )
                .advise("run doctor as the user who runs `caracal up`, or restore the file");
            continue;
        };
        // The database itself lies in a directory that is closed to others.
        if found.mode() & 0o077 != 0 && path != patient.home.database() {
            open.push(path.display().to_string());
        }
        if found.uid() != own && own != 0 {
            foreign.push(path.display().to_string());
        }
    }
    if !open.is_empty() {
        checks
            .fail(
                AT,
                "data directory modes",
                format!("others may look into {}", open.join(", ")),
            )
            .advise("chmod 700 the directories and 600 the files; rotate what may have been read");
    }
    if !foreign.is_empty() {
        checks
            .warn(
                AT,
                "data directory owner",
                format!("not ours: {}", foreign.join(", ")),
            )
            .advise("run doctor and `caracal up` as one user");
    }
    if open.is_empty() && foreign.is_empty() {
        checks.ok(
            AT,
            "data directory",
            format!("{}, for its owner alone", home.display()),
        );
    }
}

/// Where this deployment writes on this machine.
fn places(patient: &Patient, settings: Option<&Settings>) -> Vec<(&'static str, PathBuf)> {
    let replay = settings.map(|settings| settings.replay_dir.clone());
    let mut places = Vec::new();
    if !patient.is_shared() {
        places.push(("disk of the data directory", patient.home.path().to_owned()));
    }
    places.extend(replay.map(|place| ("disk of the evidence log", place)));
    places
}

fn disk(name: &str, place: &Path, checks: &mut Checks) {
    // Not made yet: the disk is that of what is there.
    let mut at = place;
    while !at.exists() {
        let Some(above) = at.parent() else { break };
        at = above;
    }
    let shown = place.display();
    let free = match rustix::fs::statvfs(at) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
        Err(error) => {
            checks
                .fail(AT, name, format!("{shown}: {error}"))
                .advise("make the directory, owned by whoever runs the services");
            return;
        }
    };
    let detail = format!("{shown}: {} MiB free", free >> 20);
    let advice = "free space, or move it to a larger disk: without it nothing is allowed, \
                  because nothing can be recorded";
    match free {
        free if free < NO_DISK => checks.fail(AT, name, detail).advise(advice),
        free if free < LITTLE_DISK => checks.warn(AT, name, detail).advise(advice),
        _ => checks.ok(AT, name, detail),
    }
}

/// Certificates that this machine serves or trusts by file.
fn certificates(patient: &Patient, checks: &mut Checks) {
    let file = |name: &str| patient.environment.get(name).map(PathBuf::from);
    if let Err(error) = client_config(file("CARACAL_TLS_EXTRA_CA_FILE").as_deref()) {
        checks
            .fail(AT, "extra roots", error.to_string())
            .advise("CARACAL_TLS_EXTRA_CA_FILE is a PEM bundle of certificates");
    }
    let (Some(chain), Some(key)) = (file("TLS_CERT_FILE"), file("TLS_KEY_FILE")) else {
        return;
    };
    let name = "certificate of the Gateway";
    if let Err(error) = server_config(&chain, &key) {
        checks
            .fail(AT, name, error.to_string())
            .advise("TLS_CERT_FILE and TLS_KEY_FILE are PEM files of one certificate");
        return;
    }
    match expiry(&chain) {
        Err(error) => checks
            .fail(AT, name, error.to_string())
            .advise("see TLS_CERT_FILE"),
        Ok(until) => {
            let now = patient.clock.now();
            let shown = format!("valid until {}", until.iso_millis());
            if until <= now {
                checks
                    .fail(AT, name, shown)
                    .advise("renew it; clients refuse it");
            } else if until <= now.plus(EXPIRES_SOON) {
                checks.warn(AT, name, shown).advise("renew it");
            } else {
                checks.ok(AT, name, shown);
            }
        }
    }
}

fn evidence(patient: &Patient, place: &Path, checks: &mut Checks) {
    let name = "evidence that waits";
    let logs = match caracal_evidence::waiting(place) {
        Ok(logs) => logs,
        Err(error) => {
            checks
                .fail(AT, name, error.to_string())
                .advise("see AUDIT_REPLAY_DIR; the directory belongs to whoever runs the services");
            return;
        }
    };
    let events: u64 = logs.iter().map(|log| log.events).sum();
    let oldest = logs.iter().filter_map(|log| log.oldest).min();
    let age = oldest.map_or(Duration::ZERO, |oldest| patient.clock.now().since(oldest));
    let detail = format!(
        "{events} events in {} logs, the oldest {} s old",
        logs.len(),
        age.as_secs()
    );
    if events > 0 && age > OLD_EVIDENCE {
        checks.warn(AT, name, detail).advise(
            "it is not being delivered: start the services of this machine, and see whether Redis \
             (or the data directory) takes writes",
        );
    } else {
        checks.ok(AT, name, detail);
    }
}

/// Whether the ports are free, unless a deployment of ours has them.
fn ports(patient: &Patient, checks: &mut Checks) {
    let is_running = patient.home.owner().ok().flatten().is_some();
    if is_running && !patient.is_shared() {
        checks.ok(AT, "ports", "held by the running `caracal up`");
        return;
    }
    if patient.is_shared() && !patient.is_preflight {
        // Whoever has them may well be ours; whether it answers is asked below.
        return;
    }
    let host = patient
        .environment
        .get("HOST")
        .and_then(|host| host.parse().ok());
    let host = host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let alone = patient.roles.len() == 1;
    let mut taken = Vec::new();
    for role in &patient.roles {
        let port = port(patient, *role, alone);
        if let Err(error) = TcpListener::bind(SocketAddr::new(host, port)) {
            taken.push(format!("{} ({port}: {error})", role.name()));
        }
    }
    if taken.is_empty() {
        checks.ok(AT, "ports", "free");
    } else {
        checks
            .fail(AT, "ports", taken.join(", "))
            .advise("stop what has them, or choose others: --ports-from, or NAME_PORT for `serve`");
    }
}

fn port(patient: &Patient, role: Role, alone: bool) -> u16 {
    if !patient.is_shared() {
        let url = patient
            .urls
            .named()
            .into_iter()
            .find(|(name, _)| *name == role.name());
        let port = url.and_then(|(_, url)| url::Url::parse(url).ok()?.port_or_known_default());
        let [api, sts, gateway, coordinator, audit] = PORTS;
        return port.unwrap_or(match role {
            Role::Api => api,
            Role::Sts => sts,
            Role::Gateway => gateway,
            Role::Coordinator => coordinator,
            Role::Audit => audit,
        });
    }
    let addresses = Addresses::read(
        &patient.environment,
        &patient.roles,
        &mut Mistakes::default(),
    );
    addresses.map_or(role.port(), |addresses| addresses.of(role, alone).port())
}

/// As whoever starts these services would read them: `serve` on a database, else `up`.
fn read(patient: &Patient, mistakes: &mut Mistakes) -> Option<Settings> {
    let (from, roles) = (&patient.environment, &patient.roles);
    if patient.is_shared() {
        return Distributed::read(from, roles, mistakes).map(|read| read.settings);
    }
    let settings = Settings::read(from, roles, mistakes);
    let configured = roles::configure(roles, from, mistakes);
    settings.filter(|_| configured.is_some())
}
