//! Which database: Postgres when `DATABASE_URL` is set, else the SQLite file of the data directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::{Ids, Secret};
use caracal_net::egress::{Secure, Trust};
use caracal_net::settings::{Mistakes, Strings};
use caracal_store::{
    Durability, Encrypt, Encrypted, PgTls, PoolOptions, Store, StoreConfig, StoreError, StoreUrl,
    Stream,
};

use crate::config::{self, Environment};
use crate::home::Home;
use crate::roles::Role;
use crate::term;

/// Between two tries to reach the database.
const AGAIN: Duration = Duration::from_millis(500);

caracal_net::settings! {
    /// Settings of the store. What both families of services name is taken under both names.
    pub struct DatabaseConfig {
        /// The Postgres database; unset means the SQLite file of the data directory.
        pub url: Option<Secret<String>> = var("DATABASE_URL").secret()
            .needed("for `caracal serve`").such_as("postgres://caracal:…@postgres/caracal"),
        /// Most connections of this process; by default the sum of what its services need.
        pub max_conns: Option<usize> = var("DB_MAX_CONNS").also("DB_POOL_MAX").within("1", "10000")
            .such_as("8"),
        /// So many connections are kept open though idle, as far as DB_MAX_CONNS allows.
        pub min_conns: usize = var("DB_MIN_CONNS").or("2").within("0", "10000"),
        // Published are 5 s and 10 s under the two names. Of two defaults for one setting, the one
        // that ends before a caller has given up.
        /// Longest wait for a connection, and longest time to make one.
        pub connect_timeout: Duration = var("DB_CONNECT_TIMEOUT").or("5s")
            .also_millis("DB_CONNECTION_TIMEOUT_MS").within("1ms", "10m"),
        /// Longest run of one statement. Unset is 10 s for the Coordinator and 15 s for the others;
        /// in one process with others, theirs.
        pub statement_timeout: Option<Duration> = var("DB_STATEMENT_TIMEOUT_MS").millis()
            .within("1", "600000").such_as("15000"),
        /// How long a transaction may do nothing before Postgres ends it.
        pub idle_in_tx: Duration = var("DB_IDLE_IN_TX_TIMEOUT_MS").or("30000").millis()
            .within("1", "600000"),
        /// An idle connection is closed after this, unless it is among DB_MIN_CONNS.
        pub idle: Duration = var("DB_MAX_CONN_IDLE").or("5m").also_millis("DB_IDLE_TIMEOUT_MS")
            .within("1ms", "24h"),
        /// A connection as old as this is not used again.
        pub lifetime: Duration = var("DB_MAX_CONN_LIFETIME").or("30m").within("1s", "24h"),
        /// How often idle connections are looked at: closed, or made up for.
        pub look_every: Duration = var("DB_HEALTH_CHECK_PERIOD").or("30s").within("10ms", "1h"),
        /// Roots that are trusted beside those of the system.
        pub extra_ca: Option<PathBuf> = var("CARACAL_TLS_EXTRA_CA_FILE"),
        /// What a commit to SQLite survives: `process` (any kill of it) or `machine` (a power cut).
        pub durability: String = var("CARACAL_STORE_DURABILITY").or("process")
            .one_of(&["process", "machine"]),
    }
}

impl DatabaseConfig {
    /// Reads the settings, and checks that the URL can be used.
    pub fn read(from: &dyn Strings, mistakes: &mut Mistakes) -> Option<Self> {
        Self::load_by(from, mistakes, |config, mistakes| {
            if let Some(url) = &config.url
                && let Err(error) = secured(url, config.extra_ca.as_deref())
            {
                mistakes.add("DATABASE_URL", format!("{error:#}"));
            }
        })
    }

    /// Whether the deployment shares a Postgres.
    pub fn is_postgres(&self) -> bool {
        self.url.is_some()
    }

    fn into_store(self, home: &Home, roles: &[Role]) -> anyhow::Result<StoreConfig> {
        let durability = match self.durability.as_str() {
            "machine" => Durability::Machine,
            _ => Durability::Process,
        };
        let needed = roles
            .iter()
            .map(|role| role.connections())
            .sum::<usize>()
            .max(2);
        let url = match self.url {
            None => StoreUrl::Lite(home.database()),
            Some(url) => {
                let secured = secured(&url, self.extra_ca.as_deref());
                let (url, tls) = secured.context("DATABASE_URL")?;
                let pool = PoolOptions {
                    max: self.max_conns.unwrap_or(needed),
                    // A command opens what it needs.
                    min: if roles.is_empty() { 0 } else { self.min_conns },
                    connect_timeout: self.connect_timeout,
                    statement_timeout: self.statement_timeout.unwrap_or_else(|| longest(roles)),
                    idle_in_tx: self.idle_in_tx,
                    idle: self.idle,
                    lifetime: self.lifetime,
                    look_every: self.look_every,
                };
                StoreUrl::Pg { url, tls, pool }
            }
        };
        Ok(StoreConfig { url, durability })
    }
}

/// The longest statement of these services; of commands, that of most.
fn longest(roles: &[Role]) -> Duration {
    let each = roles.iter().map(|role| role.statement());
    each.max().unwrap_or(Role::Api.statement())
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
        bail!("the file of sslrootcert does not exist");
    }
    let root = root.as_deref().or(extra_ca.filter(|file| file.exists()));
    let trust = match mode.as_deref() {
        None if base.contains("sslmode=") => {
            bail!("for sslmode, use the form postgres://host/database?sslmode=…")
        }
        None | Some("disable") => return Ok((plain, None)),
        Some("prefer" | "allow") => Trust::Anybody,
        Some("require") if root.is_none() => Trust::Anybody,
        Some("require" | "verify-ca") => Trust::Chain,
        Some("verify-full") => Trust::Name,
        Some(_) => {
            bail!("sslmode is one of disable, allow, prefer, require, verify-ca, verify-full")
        }
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
    let config = config::load(environment, DatabaseConfig::read)?;
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
