//! `caracal audit export`: the ledger with its chain as lines of JSON, for keeping elsewhere and
//! for `caracal audit verify --export` without any database; or as Parquet, for analysis.

use std::fs::OpenOptions;
use std::io::{BufWriter, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use caracal_audit::export_chain;
use caracal_audit_export::Table;
use caracal_model::LogId;
use caracal_store::Store;
use clap::Args;

use crate::cli::Data;
use crate::exit::Outcome;
use crate::{database, term};

/// Events that are read at a time.
const PAGE: u32 = 1_000;

type Out = Box<dyn Write + Send>;

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal audit export --out events.ndjson
  caracal audit verify --export events.ndjson
  caracal audit export --parquet --dir exported    a file for each zone
  duckdb -c \"select decision, count(*) from 'exported/*.parquet' group by 1\"

A line of JSON holds the exact text of an event and its link: anyone can recompute the hashes. Before
the entries stand the checkpoints that were signed of them; what administrators did is there as well. Parquet has the columns of the hourly
export, without the exact text.")]
pub struct Export {
    #[command(flatten)]
    data: Data,
    /// Only this zone
    #[arg(long)]
    zone: Option<String>,
    /// File to write; it must not exist [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Directory for a file of each zone, which must not exist
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    dir: Option<PathBuf>,
    /// Parquet instead of lines of JSON
    #[arg(long)]
    parquet: bool,
}

impl Export {
    pub fn run(&self) -> Outcome {
        let (environment, home) = self.data.open()?;
        let events = crate::up::small_runtime()?.block_on(async {
            let store = database::open_existing(&environment, &home).await?;
            let mut logs = store
                .audit_logs()
                .await
                .context("the ledger cannot be read")?;
            logs.retain(|log| {
                self.zone
                    .as_ref()
                    .is_none_or(|only| log.zone().as_str() == only)
            });
            // Parquet has the columns of events.
            logs.retain(|log| !self.parquet || log.kind().is_events());
            let events = self.write(&store, &logs).await;
            store.shutdown().await;
            events
        })?;
        term::progress(&format!("{events} events"));
        Ok(ExitCode::SUCCESS)
    }

    async fn write(&self, store: &Store, logs: &[LogId]) -> anyhow::Result<u64> {
        let Some(dir) = &self.dir else {
            return self.write_all(store, logs, self.open()?).await;
        };
        std::fs::create_dir_all(dir)
            .with_context(|| format!("{} cannot be made", dir.display()))?;
        let mut events = 0;
        for log in logs {
            let file = dir.join(self.file_name(log));
            let log = std::slice::from_ref(log);
            events += self.write_all(store, log, create(&file)?).await?;
        }
        Ok(events)
    }

    async fn write_all(&self, store: &Store, logs: &[LogId], out: Out) -> anyhow::Result<u64> {
        if self.parquet {
            return parquet(store, logs, out).await;
        }
        let mut out = out;
        let mut events = 0;
        for log in logs {
            let what = format!("exporting {log}");
            let export = export_chain(store, log, &mut *out);
            events += term::patiently(&what, export)
                .await
                .context("the export failed")?;
        }
        Ok(events)
    }

    fn open(&self) -> anyhow::Result<Out> {
        if let Some(file) = &self.out {
            return create(file);
        }
        if self.parquet && std::io::stdout().is_terminal() {
            bail!("Parquet is nothing for a terminal; give --out FILE or --dir DIR");
        }
        Ok(Box::new(BufWriter::new(std::io::stdout())))
    }

    /// Ids of zones come from whoever wrote evidence: only what is plain stays as it is.
    fn file_name(&self, log: &LogId) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let stem: String = log
            .zone()
            .as_str()
            .chars()
            .map(|c| {
                if plain(c) {
                    c.to_string()
                } else {
                    format!("%{:02X}", u32::from(c))
                }
            })
            .collect();
        let kind = if self.parquet { "parquet" } else { "ndjson" };
        match log.kind().is_events() {
            true => format!("{stem}.{kind}"),
            false => format!("{stem}~admin.{kind}"),
        }
    }
}

async fn parquet(store: &Store, logs: &[LogId], out: Out) -> anyhow::Result<u64> {
    let mut table = Table::new(out)?;
    let mut events = 0;
    for zone in logs.iter().map(LogId::zone) {
        let what = format!("exporting the events of zone {zone}");
        let table = &mut table;
        let export = async {
            let (mut at, mut count) = (0, 0);
            loop {
                let page = store.zone(zone).audit().chain(at, PAGE).await?;
                let Some(last) = page.last() else {
                    return anyhow::Ok(count);
                };
                at = last.chain_seq;
                for event in &page {
                    table.push(event)?;
                    count += 1;
                }
            }
        };
        events += term::patiently(&what, export)
            .await
            .context("the export failed")?;
    }
    table.finish()?.flush().context("the export failed")?;
    Ok(events)
}

fn create(file: &Path) -> anyhow::Result<Out> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file);
    let opened = opened
        .with_context(|| format!("{} cannot be made; it must not exist yet", file.display()))?;
    Ok(Box::new(BufWriter::new(opened)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::ZoneId;

    #[test]
    fn no_zone_can_name_a_file_elsewhere() {
        let export = Export {
            data: Data { data_dir: None },
            zone: None,
            out: None,
            dir: None,
            parquet: true,
        };
        for (zone, file) in [
            ("0198c0de-6f1e", "0198c0de-6f1e.parquet"),
            ("a:b", "a%3Ab.parquet"),
            ("../up", "%2E%2E%2Fup.parquet"),
        ] {
            let log = LogId::events(ZoneId::trusted(zone));
            assert_eq!(export.file_name(&log), file);
        }
        for (zone, file) in [("a", "a~admin.parquet"), ("", "~admin.parquet")] {
            let log = LogId::admin(ZoneId::trusted(zone));
            assert_eq!(export.file_name(&log), file);
        }
    }
}
