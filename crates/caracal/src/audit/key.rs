//! `caracal audit key`: what somebody outside needs to verify this deployment's ledger.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use caracal_store::Store;
use caracal_tlog::ZoneLog;
use clap::Args;

use crate::cli::Data;
use crate::database;
use crate::exit::Outcome;
use crate::term;

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal audit key                          the public key, for `caracal audit verify --key`
  caracal audit key --checkpoints kept/      also the latest checkpoint of each zone, as a file each

Give the key to auditors once, and checkpoints regularly: on a schedule, to a place that the operators
of the deployment cannot change.")]
pub struct Key {
    #[command(flatten)]
    data: Data,
    /// Directory to write the latest checkpoint of each log to, as SIZE-ZONE.txt and SIZE-ZONE~admin.txt
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
}

impl Key {
    pub fn run(&self) -> Outcome {
        let (environment, home) = self.data.open()?;
        crate::up::small_runtime()?.block_on(async {
            let store = database::open_existing(&environment, &home).await?;
            let shown = self.show(&store).await;
            store.shutdown().await;
            shown
        })?;
        Ok(ExitCode::SUCCESS)
    }

    async fn show(&self, store: &Store) -> anyhow::Result<()> {
        let keys = caracal_tlog::vkeys(store).await;
        let keys = keys.context("the keys of checkpoints cannot be read")?;
        if keys.is_empty() {
            bail!(
                "no checkpoint was ever signed. Run the role audit with SECRET_STORE_KEK; `caracal up` \
                 does"
            );
        }
        for key in keys {
            println!("{key}");
        }
        let Some(directory) = &self.checkpoints else {
            return Ok(());
        };
        let made = std::fs::create_dir_all(directory);
        made.with_context(|| format!("{} cannot be made", directory.display()))?;
        let logs = store
            .audit_logs()
            .await
            .context("the ledger cannot be read")?;
        for log in logs {
            let latest = ZoneLog::of(store, &log).rows().latest().await;
            if let Some(latest) = latest.context("checkpoints cannot be read")? {
                let of = log.key().as_str().replace('/', "");
                let file = directory.join(format!("{}-{of}.txt", latest.size));
                write(&file, &latest.note)?;
            }
        }
        Ok(())
    }
}

fn write(file: &Path, note: &str) -> anyhow::Result<()> {
    std::fs::write(file, note).with_context(|| format!("{} cannot be written", file.display()))?;
    term::progress(&file.display().to_string());
    Ok(())
}
