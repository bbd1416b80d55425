//! Which database: Postgres when `DATABASE_URL` is set, else the SQLite file of the data directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::{Ids, Secret};
use caracal_net::egress::{Secure, Trust};
use caracal_store::{
    Durability, Encrypt, Encrypted, PgTls, Store, StoreConfig, StoreError, StoreUrl, Stream,
};

use crate::config::{self, Environment};
use crate::home::Home;
use crate::roles::Role;
use crate::term;

/// Between two tries to reach the database.
const AGAIN: Duration = Duration::from_millis(500);

caracal_net::settings! {
    /// Settings of the store. The pool may be named as either family of services names it.
    pub struct DatabaseConfig {
        /// The Postgres database; unset means the SQLite file of the data directory.
        pub url: Option<Secret<String>> = var("DATABASE_URL").secret(),
        /// Most connections of this process; by default the sum of what its roles need.
        pub pool_max: Option<usize> = var("DB_POOL_MAX").within("1", "10000"),
        /// The same, under its other name.
        pub max_conns: Option<usize> = var("DB_MAX_CONNS").within("1", "10000"),
        /// Longest wait for a connection.
        pub connect_timeout: Duration = var("DB_CONNECTION_TIMEOUT_MS").or("5000").millis().within("1", "600000"),
        /// Longest run of one statement.
        pub statement_timeout: Duration = var("DB_STATEMENT_TIMEOUT_MS").or("15000").millis().within("1", "600000"),
        /// Roots that are trusted beside those of the system.
        pub extra_ca: Option<PathBuf> = var("CARACAL_TLS_EXTRA_CA_FILE"),
        /// What a commit to SQLite survives: `process` (any kill of it) or `machine` (a power cut).
        pub durability: String = var("CARACAL_STORE_DURABILITY").or("process"),
    }
}

impl DatabaseConfig {
    /// Whether the deployment shares a Postgres.
    pub fn is_postgres(&self) -> bool {
        self.url.is_some()
    }

    fn into_store(self, home: &Home, roles: &[Role]) -> anyhow::Result<StoreConfig> {
        let durability = match self.durability.as_str() {
            "process" => Durability::Process,
            "machine" => Durability::Machine,
            _ => bail!("CARACAL_STORE_DURABILITY is either process or machine"),
        };
        let needed = roles
            .iter()
            .map(|role| role.connections())
            .sum::<usize>()
            .max(2);
        let url = match self.url {
            None => StoreUrl::Lite(home.database()),
            Some(url) => {
                let (url, tls) = secured(&url, self.extra_ca.as_deref())?;
                StoreUrl::Pg {
                    url,
                    tls,
                    max_conns: self.max_conns.or(self.pool_max).unwrap_or(needed),
                    connect_timeout: self.connect_timeout,
                    statement_timeout: self.statement_timeout,
                }
            }
        };
        Ok(StoreConfig { url, durability })
    }
}

/// The URL as the driver takes it, and how its connections are made secure. `sslmode` means what it
/// means to other clients of Postgres, but without one nothing is encrypted.
fn secured(
    url: &Secret<String>,
    extra_ca: Option<&Path>,
) -> anyhow::Result<(Secret<String>, Option<PgTls>)> {
    let (base, query) = url.expose().split_once('?').unwrap_or((url.expose(), ""));
    let mut rest = url::form_urlencoded::Serializer::new(String::new());
    let (mut mode, mut root) = (None, None);
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "sslmode" => mode = Some(value.into_owned()),
            "sslrootcert" => root = Some(PathBuf::from(value.into_owned())),
            _ => drop(rest.append_pair(&name, &value)),
        }
    }
    // The driver reads a plus sign as itself.
    let rest = rest.finish().replace('+', "%20");
    let plain = Secret::new(if rest.is_empty() {
        base.to_owned()
    } else {
        format!("{base}?{rest}")
    });
    if root.as_ref().is_some_and(|root| !root.exists()) {
        bail!("DATABASE_URL: the file of sslrootcert does not exist");
    }
    let root = root.as_deref().or(extra_ca.filter(|file| file.exists()));
    let trust = match mode.as_deref() {
        None if base.contains("sslmode=") => {
            bail!("DATABASE_URL: for sslmode, use the form postgres://host/database?sslmode=…")
        }
        None | Some("disable") => return Ok((plain, None)),
        Some("prefer" | "allow") => Trust::Anybody,
        Some("require") if root.is_none() => Trust::Anybody,
        Some("require" | "verify-ca") => Trust::Chain,
        Some("verify-full") => Trust::Name,
        Some(_) => bail!(
            "DATABASE_URL: sslmode is one of disable, allow, prefer, require, verify-ca, verify-full"
        ),
    };
    let secure = Secure::new(trust, root).context("the roots of trust cannot be read")?;
    let required = !matches!(mode.as_deref(), Some("prefer" | "allow"));
    Ok((
        plain,
        Some(PgTls {
            encrypt: Arc::new(Tls(secure)),
            required,
        }),
    ))
}

/// The TLS of the HTTP kit, as the store takes it.
struct Tls(Secure);

impl Encrypt for Tls {
    fn encrypt(&self, host: &str, connection: Box<dyn Stream>) -> Encrypted {
        let (secure, host) = (self.0.clone(), host.to_owned());
        Box::pin(async move {
            let secured = secure.connect(&host, connection).await?;
            Ok(Box::new(secured) as Box<dyn Stream>)
        })
    }
}

/// Opens the store for these roles, and waits until it answers, at most `patience`.
pub async fn open(
    config: DatabaseConfig,
    home: &Home,
    roles: &[Role],
    patience: Duration,
) -> anyhow::Result<Store> {
    let postgres = config.is_postgres();
    let config = config.into_store(home, roles)?;
    // Only ids of outbox rows come from these; they need no floor.
    let clock = Arc::new(SystemClock::new());
    let ids = Arc::new(Ids::new(clock.clone(), Arc::new(OsRng)));
    let advice = || {
        if postgres {
            "is Postgres running, and is DATABASE_URL right?".to_owned()
        } else {
            format!(
                "see whether {} can be written and has space",
                home.path().display()
            )
        }
    };
    let store = Store::open(config, clock, ids)
        .await
        .with_context(|| format!("the store cannot be opened; {}", advice()))?;
    let answered = term::patiently("waiting for the database", ping(&store, patience)).await;
    answered.with_context(|| format!("the store does not answer; {}", advice()))?;
    Ok(store)
}

async fn ping(store: &Store, patience: Duration) -> Result<(), StoreError> {
    let mut waited = Duration::ZERO;
    loop {
        match store.ping().await {
            Err(StoreError::Unreachable { .. }) if waited < patience => {
                tokio::time::sleep(AGAIN).await;
                waited += AGAIN;
            }
            answer => return answer,
        }
    }
}

/// Opens the store of a deployment that exists already, to read in it.
pub async fn open_existing(environment: &Environment, home: &Home) -> anyhow::Result<Store> {
    let config = config::load(environment, DatabaseConfig::load)?;
    if !config.is_postgres() && !home.database().exists() {
        bail!(
            "there is no database: DATABASE_URL is not set, and {} does not exist. Give --data-dir, \
             or start a deployment with `caracal up`",
            home.database().display()
        );
    }
    open(config, home, &[], Duration::ZERO).await
}

#[cfg(test)]
mod tests;
