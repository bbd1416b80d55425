//! `caracal migrate`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::cli::Data;
use crate::database::{self, DatabaseConfig};
use crate::exit::Outcome;
use crate::{config, term};

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  DATABASE_URL=postgres://caracal@db/caracal caracal migrate

Only adds; the version before keeps working on the new schema, so migrate first, then roll the
services. Several may run at once. `caracal up` migrates by itself.")]
pub struct Migrate {
    #[command(flatten)]
    data: Data,
    /// Seconds to wait for the database
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    wait: u64,
}

impl Migrate {
    pub fn run(&self) -> Outcome {
        let (environment, home) = self.data.open()?;
        let config = config::load(&environment, DatabaseConfig::read)?;
        crate::up::small_runtime()?.block_on(async {
            if !config.is_postgres() {
                home.prepare(&caracal_crypto::os::OsRng)?;
            }
            let patience = Duration::from_secs(self.wait);
            let store = database::open(config, &home, &[], patience).await?;
            let applied = term::patiently("migrating", store.migrate())
                .await
                .context("the schema could not be brought up to date; nothing of the failed step is kept")?;
            store.shutdown().await;
            if applied.is_empty() {
                println!("the schema is up to date");
            }
            for version in applied {
                println!("applied {version:04}");
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
