//! `caracal audit export`: the ledger with its chain as lines of JSON, for keeping elsewhere and
//! for `caracal audit verify --export` without any database.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use caracal_audit::export_chain;
use clap::Args;

use crate::cli::Data;
use crate::exit::Outcome;
use crate::{database, term};

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  caracal audit export --out events.ndjson
  caracal audit verify --export events.ndjson

Each line holds the exact text of an event and its link: anyone can recompute the hashes.")]
pub struct Export {
    #[command(flatten)]
    data: Data,
    /// Only this zone
    #[arg(long)]
    zone: Option<String>,
    /// File to write; it must not exist [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Export {
    pub fn run(&self) -> Outcome {
        let (environment, home) = self.data.open()?;
        let mut out = self.open()?;
        let events = crate::up::small_runtime()?.block_on(async {
            let store = database::open_existing(&environment, &home).await?;
            let zones = store
                .audit_zones()
                .await
                .context("the ledger cannot be read")?;
            let mut events = 0;
            for zone in zones {
                if self.zone.as_ref().is_none_or(|only| zone.as_str() == only) {
                    let what = format!("exporting the events of zone {zone}");
                    let export = export_chain(&store, &zone, &mut *out);
                    events += term::patiently(&what, export)
                        .await
                        .context("the export failed")?;
                }
            }
            store.shutdown().await;
            anyhow::Ok(events)
        })?;
        term::progress(&format!("{events} events"));
        Ok(ExitCode::SUCCESS)
    }

    fn open(&self) -> anyhow::Result<Box<dyn Write + Send>> {
        let Some(file) = &self.out else {
            return Ok(Box::new(BufWriter::new(std::io::stdout())));
        };
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file);
        let opened = opened
            .with_context(|| format!("{} cannot be made; it must not exist yet", file.display()))?;
        Ok(Box::new(BufWriter::new(opened)))
    }
}
