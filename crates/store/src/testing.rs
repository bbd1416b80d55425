//! Both engines, for tests: SQLite always, Postgres when `CARACAL_TEST_POSTGRES` holds the URL of a
//! server where the user may create databases. Every test has a database of its own.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot have its store has failed"
)]

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use caracal_crypto::os::{OsRng, SystemClock};
use caracal_model::{Clock, Ids, Secret};
use futures_util::FutureExt;

use crate::{Durability, PoolOptions, Sql, Store, StoreConfig, StoreUrl};

/// A test for each engine: `on_each_engine! { async fn a_sentence(store: Store) { … } }`. The
/// store is migrated; it is gone after the test.
#[macro_export]
macro_rules! on_each_engine {
    ($($(#[$meta:meta])* async fn $name:ident($store:ident: Store) $body:block)+) => {$(
        $(#[$meta])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $crate::testing::on_each_engine(stringify!($name), |$store: $crate::Store| async move $body)
                .await;
        }
    )+};
}

/// A statement of a test's own, of one text for both engines.
pub const fn raw(text: &'static str) -> Sql {
    Sql {
        name: "test",
        pg: text,
        lite: text,
    }
}

/// Who owns the databases of tests: row security holds everybody but a superuser, which the user of
/// a test server usually is.
const ROLE: &str = "DO $$ BEGIN CREATE ROLE caracal_test NOLOGIN;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$";

/// A database of a test's own.
pub struct Database {
    /// What to open.
    place: Place,
}

enum Place {
    Lite(PathBuf),
    Pg { server: String, name: String },
}

impl Database {
    /// One for each engine at hand.
    pub async fn each(test: &str) -> Vec<Self> {
        let id = ids().uuid();
        let file = std::env::temp_dir()
            .join(format!("caracal-test-{id}"))
            .join("store.db");
        let mut databases = vec![Self {
            place: Place::Lite(file),
        }];
        #[expect(
            clippy::disallowed_methods,
            reason = "how tests are told of their servers"
        )]
        match std::env::var("CARACAL_TEST_POSTGRES") {
            Ok(server) => {
                let name = format!("caracal_{}", id.replace('-', "_"));
                on_server(&server, ROLE).await;
                on_server(
                    &server,
                    &format!("CREATE DATABASE {name} OWNER caracal_test"),
                )
                .await;
                databases.push(Self {
                    place: Place::Pg { server, name },
                });
            }
            Err(_) => eprintln!("{test}: skipped on Postgres, CARACAL_TEST_POSTGRES is unset"),
        }
        databases
    }

    /// What a process of its own opens it by; only of Postgres.
    pub fn url(&self) -> Option<Secret<String>> {
        match &self.place {
            Place::Lite(_) => None,
            Place::Pg { server, name } => {
                let (base, _) = server.rsplit_once('/').expect("a URL with a database");
                let role = "options=-c%20role%3Dcaracal_test";
                Some(Secret::new(format!("{base}/{name}?{role}")))
            }
        }
    }

    /// Opens it, not yet migrated.
    pub async fn open(&self) -> Store {
        self.open_with(Arc::new(SystemClock::default())).await
    }

    /// Opens it with this clock, not yet migrated.
    pub async fn open_with(&self, clock: Arc<dyn Clock>) -> Store {
        let pool = PoolOptions {
            max: 16,
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            ..PoolOptions::default()
        };
        self.open_pool(clock, pool).await
    }

    /// Opens it with this clock and, of Postgres, these connections; not yet migrated.
    pub async fn open_pool(&self, clock: Arc<dyn Clock>, pool: PoolOptions) -> Store {
        let url = match (&self.place, self.url()) {
            (_, Some(url)) => StoreUrl::Pg {
                url,
                tls: None,
                pool,
            },
            (Place::Lite(file), _) => StoreUrl::Lite(file.clone()),
            (Place::Pg { .. }, None) => unreachable!("Postgres has a URL"),
        };
        let config = StoreConfig {
            url,
            durability: Durability::Process,
        };
        Store::open(config, clock, Arc::new(ids()))
            .await
            .expect("the store opens")
    }

    /// Removes it.
    pub async fn remove(self) {
        match self.place {
            Place::Lite(file) => {
                let directory = file.parent().expect("a directory of its own");
                std::fs::remove_dir_all(directory).expect("the directory is ours");
            }
            Place::Pg { server, name } => {
                on_server(&server, &format!("DROP DATABASE {name} WITH (FORCE)")).await;
            }
        }
    }
}

fn ids() -> Ids {
    Ids::new(Arc::new(SystemClock::default()), Arc::new(OsRng))
}

async fn on_server(url: &str, statement: &str) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .expect("the server answers");
    let work = async {
        let done = client.batch_execute(statement).await;
        drop(client);
        done
    };
    let (done, _) = futures_util::join!(work, connection);
    done.expect("the user may create databases");
}

/// Runs `test` with a migrated store of each engine.
pub async fn on_each_engine<F, T>(name: &str, test: F)
where
    F: Fn(Store) -> T,
    T: Future<Output = ()>,
{
    for database in Database::each(name).await {
        let store = database.open().await;
        let engine = format!("{store:?}");
        store.migrate().await.expect("the schema applies");
        let outcome = AssertUnwindSafe(test(store.clone())).catch_unwind().await;
        store.shutdown().await;
        drop(store);
        database.remove().await;
        if let Err(panic) = outcome {
            eprintln!("{name}: failed on {engine}");
            std::panic::resume_unwind(panic);
        }
    }
}
