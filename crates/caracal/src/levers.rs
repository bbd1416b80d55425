//! The levers of the services: every setting, told from the tables that read them.
//!
//! **Forces.** What a setting is called, takes and does is asked by operators, by the reference page,
//! by the chart's values and by `doctor`; told in several places, it soon differs. **Choice.** The
//! tables of `settings!` are the only source. Here they are put together by service; `config explain`,
//! the page `docs/reference/configuration.md` and the JSON for other tools are made from that. Tests
//! hold us to it: that every field of a table is used, and every published name is either a lever or
//! among those that are told to be none ([`UNUSED`]).

mod check;
mod command;
mod json;
mod near;
mod page;
mod template;
#[cfg(test)]
mod tests;
mod text;
mod unused;

use caracal_net::settings::Described;

use crate::addresses::Addresses;
use crate::config::Environment;
use crate::database::DatabaseConfig;
use crate::platform::Settings;
use crate::roles::Role;
use crate::streams::StreamSettings;
use crate::telemetry::LogSettings;
use crate::term;

pub use self::check::warnings;
pub use self::command::Config;
pub use self::unused::UNUSED;

/// One setting of one service.
#[derive(Clone, Debug)]
pub struct Lever {
    /// The service.
    pub role: Role,
    /// What it is about.
    pub group: Group,
    /// Its declaration.
    pub of: Described,
    /// Used when unset, as this service has it.
    pub default: Option<String>,
    /// When it is required, if not always.
    pub needed: Option<String>,
}

/// What settings are about; in the order in which they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The service itself.
    Own,
    /// Every process.
    Process,
    /// Where it listens.
    Listening,
    /// Postgres.
    Postgres,
    /// Redis, and what goes through it.
    Streams,
    /// Logs.
    Logs,
    /// The export of evidence.
    Export,
    /// Where sealed secrets are kept; of one backend, with its name.
    Secrets(Option<&'static str>),
}

impl Group {
    /// Its heading; `Own` has the name of its service.
    pub fn title(self) -> String {
        let title = match self {
            Self::Own => "Of its own",
            Self::Process => "Deployment, keys and evidence",
            Self::Listening => "Where it listens",
            Self::Postgres => "Postgres",
            Self::Streams => "Redis, streams and the outbox",
            Self::Logs => "Logs",
            Self::Export => "Export of evidence",
            Self::Secrets(None) => "Secret backend",
            Self::Secrets(Some(backend)) => return format!("Secret backend {backend}"),
        };
        title.to_owned()
    }
}

impl Lever {
    /// Whether `NAME_FILE` is read.
    pub const fn has_file(&self) -> bool {
        self.of.var.secret
    }

    /// Least and greatest value.
    pub const fn bounds(&self) -> Option<(&'static str, &'static str)> {
        self.of.var.bounds
    }
}

/// Every setting of a service, each once.
pub fn of(role: Role) -> Vec<Lever> {
    let mut tables = vec![
        (Group::Process, Settings::describe()),
        (Group::Listening, Addresses::describe()),
        (Group::Postgres, DatabaseConfig::describe()),
        (Group::Streams, StreamSettings::describe()),
        (Group::Logs, LogSettings::describe()),
        (Group::Own, own(role)),
    ];
    if role == Role::Audit {
        tables.push((Group::Export, caracal_audit_export::Config::describe()));
    }
    if matches!(role, Role::Api | Role::Sts) {
        let backends = caracal_vaults::describe().into_iter();
        tables.extend(backends.map(|(backend, table)| (Group::Secrets(backend), table)));
    }
    let mut levers: Vec<Lever> = Vec::new();
    for (group, table) in tables {
        for described in table {
            let services = described.var.services;
            let meant = services.is_empty() || services.contains(&role.name());
            let told = |lever: &Lever| lever.of.var.name == described.var.name;
            if meant && !levers.iter().any(told) {
                levers.push(lever(role, group, described));
            }
        }
    }
    levers.sort_by_key(|lever| lever.group);
    levers
}

fn own(role: Role) -> Vec<Described> {
    match role {
        Role::Api => caracal_api::Config::describe(),
        Role::Sts => caracal_sts::Config::describe(),
        Role::Gateway => caracal_gateway::Settings::describe(),
        Role::Coordinator => caracal_coordinator::Config::describe(),
        Role::Audit => caracal_audit::Config::describe(),
    }
}

fn lever(role: Role, group: Group, mut of: Described) -> Lever {
    let default = of.var.default.filter(|text| !text.trim().is_empty());
    // What depends on the service has no default in its table.
    let default = match of.var.name {
        "DB_MAX_CONNS" => Some(role.connections().to_string()),
        "DB_STATEMENT_TIMEOUT_MS" => Some(role.statement().as_millis().to_string()),
        "SHUTDOWN_GRACE_MS" => Some(role.drain().as_millis().to_string()),
        _ => default.map(str::to_owned),
    };
    let mut needed = of.var.needed.map(str::to_owned);
    if let (true, Group::Secrets(Some(backend))) = (of.required, group) {
        of.required = false;
        needed = needed.or_else(|| Some(format!("when CARACAL_SECRET_BACKEND is {backend}")));
    }
    Lever {
        role,
        group,
        of,
        default,
        needed,
    }
}

/// Warns of names that are set and move nothing here, or nearly are a setting.
pub fn warn_of_unused(environment: &Environment) {
    for warning in check::warnings(environment) {
        tracing::warn!(setting = warning.name, "{}", warning.why);
        if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            term::progress(&format!("{}: {}", warning.name, warning.why));
        }
    }
}
