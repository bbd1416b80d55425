//! `caracal audit keys`: the keys that checkpoints are signed with.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Reader, items};
use crate::cli::Api;
use crate::exit::Outcome;
use crate::web::text;

/// List and replace the keys that checkpoints are signed with.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// List the keys: which signs, and which were replaced
    #[command(after_help = "EXAMPLE\n  caracal audit keys list")]
    List(Of),
    /// Make the next key, which signs from now on
    #[command(after_help = "\
EXAMPLE
  caracal audit keys rotate

Every log changes keys with its next checkpoint, which the old key signs as well: whoever has the old
key is told the new one by it, and `caracal audit verify` follows. Old keys stay listed, and what they
signed stays verifiable. Give auditors the new key as you gave them the first.")]
    Rotate(Of),
}

#[derive(Debug, Args)]
pub struct Of {
    #[command(flatten)]
    api: Api,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Keys {
    pub fn run(&self) -> Outcome {
        crate::up::small_runtime()?.block_on(async {
            match self {
                Self::List(of) => {
                    let keys = Reader::open(&of.api)?.get("/v1/audit-keys").await?;
                    of.tell(&keys, list)
                }
                Self::Rotate(of) => {
                    let key = Reader::open(&of.api)?.post("/v1/audit-keys/rotate").await?;
                    of.tell(&key, |key| {
                        println!("{}", text(key, "key")?);
                        Ok(())
                    })
                }
            }
        })
    }
}

impl Of {
    fn tell(&self, value: &Value, text: impl Fn(&Value) -> anyhow::Result<()>) -> Outcome {
        if self.json {
            println!("{value}");
        } else {
            text(value)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn list(keys: &Value) -> anyhow::Result<()> {
    let titles = ("ID", "STATUS", "PRIVATE", "MADE AT");
    println!(
        "{:<4} {:<9} {:<10} {:<25} KEY",
        titles.0, titles.1, titles.2, titles.3
    );
    for key in items(keys) {
        println!(
            "{:<4} {:<9} {:<10} {:<25} {}",
            text(key, "id")?,
            text(key, "status")?,
            text(key, "private_key")?,
            text(key, "created_at")?,
            text(key, "key")?,
        );
    }
    Ok(())
}
