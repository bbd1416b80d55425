//! Which database: Postgres when `DATABASE_URL` is set, else the SQLite file of the data directory.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::{Ids, Secret};
use caracal_store::{Durability, Store, StoreConfig, StoreError, StoreUrl};

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
            Some(url) => StoreUrl::Pg {
                url,
                max_conns: self.max_conns.or(self.pool_max).unwrap_or(needed),
                connect_timeout: self.connect_timeout,
                statement_timeout: self.statement_timeout,
            },
        };
        Ok(StoreConfig { url, durability })
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
