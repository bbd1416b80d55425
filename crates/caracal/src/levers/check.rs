//! Looks at settings without starting anything.

use std::collections::BTreeSet;

use caracal_crypto::digest::sha256_hex;
use caracal_net::settings::{Mistake, Mistakes};

use super::{UNUSED, near, of};
use crate::config::Environment;
use crate::embedded::offer_defaults;
use crate::home::{Home, SECRETS};
use crate::migrate::Passwords;
use crate::platform::Settings;
use crate::roles::{self, Role};
use crate::serve::Distributed;
use crate::status;

/// Settings of the command line, which no service reads.
const OF_COMMANDS: [&str; 21] = [
    "CARACAL_HOME",
    "CARACAL_ENV_FILE",
    "CARACAL_NO_COLOR",
    "CARACAL_CONFIG",
    "CARACAL_CONFIG_HOME",
    "CARACAL_API_URL",
    "CARACAL_STS_URL",
    "CARACAL_GATEWAY_URL",
    "CARACAL_COORDINATOR_URL",
    "CARACAL_AUDIT_URL",
    "CARACAL_WORKLOAD_ID",
    "CARACAL_WORKLOAD_SECRET",
    "CARACAL_WORKLOAD_SECRET_FILE",
    "CARACAL_ALLOW_INSECURE_CONFIG_URLS",
    "CARACAL_ADMIN_TOKEN",
    "CARACAL_ADMIN_TOKEN_FILE",
    "STS_ADMIN_TOKEN",
    "STS_ADMIN_TOKEN_FILE",
    "NO_COLOR",
    "AWS_PROFILE",
    "HOSTNAME",
];

/// Reads all settings of these services, as `serve` would with them in one process.
pub fn distributed(environment: &Environment, roles: &[Role]) -> Mistakes {
    let mut mistakes = Mistakes::default();
    Distributed::read(environment, roles, &mut mistakes);
    mistakes
}

/// Reads all settings as `up` would.
pub fn embedded(environment: &Environment, home: &Home) -> Mistakes {
    let mut environment = environment.clone();
    for secret in SECRETS {
        if !home.secret(secret.file).exists()
            && environment
                .get(&format!("{}_FILE", secret.setting))
                .is_none()
        {
            // `up` makes it on its first start. Any that is well formed stands for it here.
            let stands_in = sha256_hex(secret.setting.as_bytes());
            environment.offer(secret.setting, stands_in);
        }
    }
    let urls = status::urls(&environment, home);
    offer_defaults(&mut environment, home, &urls);
    let mut mistakes = Mistakes::default();
    Settings::read(&environment, &Role::ALL, &mut mistakes);
    roles::configure(&Role::ALL, &environment, &mut mistakes);
    mistakes
}

/// Names that are set and move nothing here, and names that nearly are a setting.
pub fn warnings(environment: &Environment) -> Vec<Mistake> {
    let known = known();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let told = environment.names().filter_map(|name| {
        let unused = UNUSED.iter().find(|unused| unused.name == name);
        let why = match unused {
            Some(unused) => format!("moves nothing: {}", unused.why),
            None => format!("is no setting; {} is", near::meant(name, &known)?),
        };
        Some(Mistake {
            name: name.to_owned(),
            why,
        })
    });
    told.collect()
}

/// Every name that means something.
fn known() -> BTreeSet<String> {
    let mut known: BTreeSet<String> = OF_COMMANDS.map(str::to_owned).into();
    known.extend(UNUSED.iter().map(|unused| unused.name.to_owned()));
    for password in Passwords::describe() {
        known.insert(format!("{}_FILE", password.var.name));
        known.insert(password.var.name.to_owned());
    }
    for lever in Role::ALL.into_iter().flat_map(of) {
        let var = lever.of.var;
        known.extend(var.also.map(|(name, _)| name.to_owned()));
        if lever.has_file() {
            known.insert(format!("{}_FILE", var.name));
        }
        known.insert(var.name.to_owned());
    }
    known
}
