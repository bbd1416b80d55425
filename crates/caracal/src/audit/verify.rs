//! `caracal audit verify`: is every event still what was decided, in the order in which it was
//! decided, with none missing?
//!
//! A chain shows every change behind its head. That its end was cut off shows only against a head
//! that was kept elsewhere: this command prints the heads, and takes them back with `--head`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use caracal_audit::{VerifyError, verify_export, verify_zone};
use caracal_crypto::mac::HmacKey;
use caracal_ledger::Head;
use caracal_model::{Secret, ZoneId};
use caracal_store::Store;
use clap::Args;

use crate::cli::Data;
use crate::config::Environment;
use crate::database;
use crate::exit::Outcome;
use crate::home::{Home, read_secret};
use crate::term;

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal audit verify                            every zone of this deployment
  caracal audit verify --zone ZONE                one of them
  caracal audit verify --export events.ndjson     a file, without any database
  caracal audit verify --head ZONE:1200:9f2c…     against a head that was printed before

The key (AUDIT_HMAC_KEY, or the data directory's) proves who made the links; --without-key checks
only that they fit each other. Keep the heads where the operators of the deployment cannot change
them: only against a kept head shows that the end of a chain was cut off.

EXIT CODE
  0 when every chain holds, else 1; the first broken link of a chain is named")]
pub struct Verify {
    #[command(flatten)]
    data: Data,
    /// Only this zone
    #[arg(long, conflicts_with = "export")]
    zone: Option<String>,
    /// Verify a file written by `caracal audit export`
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// A head that was kept: its event must still be there, unchanged
    #[arg(long = "head", value_name = "ZONE:SEQ:HASH", value_parser = kept_head)]
    heads: Vec<(ZoneId, Head)>,
    /// Do not check who made the links
    #[arg(long)]
    without_key: bool,
}

impl Verify {
    pub fn run(&self) -> Outcome {
        let (environment, home) = self.data.open()?;
        let key = if self.without_key {
            None
        } else {
            Some(audit_key(&environment, &home)?)
        };
        let held = match &self.export {
            Some(file) => self.verify_file(file, key.as_ref())?,
            None => crate::up::small_runtime()?.block_on(async {
                let store = database::open_existing(&environment, &home).await?;
                let verifying = self.verify_store(&store, key.as_ref());
                let held = term::patiently("reading the ledger", verifying).await;
                store.shutdown().await;
                held
            })?,
        };
        Ok(if held {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn verify_file(&self, file: &Path, key: Option<&HmacKey>) -> anyhow::Result<bool> {
        let opened =
            File::open(file).with_context(|| format!("{} cannot be opened", file.display()))?;
        match verify_export(BufReader::new(opened), key, &self.heads) {
            Ok(heads) => {
                heads.iter().for_each(|(zone, head)| holds(zone, head));
                Ok(true)
            }
            Err(VerifyError::Found(finding)) => {
                broken(&finding.to_string());
                Ok(false)
            }
            Err(error) => Err(error).with_context(|| file.display().to_string()),
        }
    }

    async fn verify_store(&self, store: &Store, key: Option<&HmacKey>) -> anyhow::Result<bool> {
        let mut zones = store
            .audit_zones()
            .await
            .context("the ledger cannot be read")?;
        // A zone whose events are all gone must not pass because it is not listed any more.
        zones.extend(self.heads.iter().map(|(zone, _)| zone.clone()));
        zones.sort();
        zones.dedup();
        zones.retain(|zone| self.zone.as_ref().is_none_or(|only| zone.as_str() == only));
        if zones.is_empty() {
            println!("no events");
        }
        let mut all = true;
        for zone in &zones {
            all &= self.verify_one(store, zone, key).await?;
        }
        Ok(all)
    }

    async fn verify_one(
        &self,
        store: &Store,
        zone: &ZoneId,
        key: Option<&HmacKey>,
    ) -> anyhow::Result<bool> {
        match verify_zone(store, zone, key).await {
            Ok(head) => {
                for (_, kept) in self.heads.iter().filter(|(of, _)| of == zone) {
                    if !leads_through(store, zone, kept).await? {
                        broken(&format!(
                            "zone {zone}: it does not lead to the kept head at {}",
                            kept.seq()
                        ));
                        return Ok(false);
                    }
                }
                holds(zone, &head);
                Ok(true)
            }
            Err(VerifyError::Found(finding)) => {
                broken(&finding.to_string());
                Ok(false)
            }
            Err(error) => Err(error).context("the ledger cannot be read"),
        }
    }
}

/// Whether the verified chain has this head at its place.
async fn leads_through(store: &Store, zone: &ZoneId, kept: &Head) -> anyhow::Result<bool> {
    let Some(before) = kept.seq().checked_sub(1) else {
        return Ok(true);
    };
    let at = store
        .zone(zone)
        .audit()
        .chain(before, 1)
        .await
        .context("the ledger cannot be read")?;
    Ok(at.first().is_some_and(|event| {
        event.chain_seq == kept.seq() && event.chain_hash == kept.chain_hash()
    }))
}

fn holds(zone: &ZoneId, head: &Head) {
    let events = head.seq();
    println!(
        "{}  {events} events  {zone}:{events}:{}",
        term::green("holds "),
        head.chain_hash()
    );
}

fn broken(what: &str) {
    println!("{}  {what}", term::red("BROKEN"));
}

/// `ZONE:SEQ:HASH`, as [`holds`] prints it. A zone's id may hold colons itself.
fn kept_head(text: &str) -> Result<(ZoneId, Head), String> {
    let parts = || {
        let (rest, hash) = text.rsplit_once(':')?;
        let (zone, seq) = rest.rsplit_once(':')?;
        Some((
            ZoneId::parse(zone).ok()?,
            Head::stored(seq.parse().ok()?, hash)?,
        ))
    };
    parts().ok_or_else(|| "a head is ZONE:SEQ:HASH, as `caracal audit verify` prints it".to_owned())
}

fn audit_key(environment: &Environment, home: &Home) -> anyhow::Result<HmacKey> {
    let text = match (
        environment.get("AUDIT_HMAC_KEY"),
        environment.get("AUDIT_HMAC_KEY_FILE"),
    ) {
        (Some(key), _) => Secret::new(key.to_owned()),
        (None, Some(file)) => read_secret(file.as_ref())?,
        (None, None) => read_secret(&home.secret("auditHmacKey")).context(
            "no AUDIT_HMAC_KEY: set it, or give the --data-dir that has it, or --without-key",
        )?,
    };
    match HmacKey::from_hex(text.expose()) {
        Ok(key) => Ok(key),
        Err(error) => bail!("AUDIT_HMAC_KEY: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_head_is_read_back() {
        let hash = "ab".repeat(32);
        let (zone, head) = kept_head(&format!("a:b:12:{hash}")).unwrap();
        assert_eq!(
            (zone.as_str(), head.seq(), head.chain_hash()),
            ("a:b", 12, hash.clone())
        );
        for wrong in [
            "",
            "zone",
            "zone:1",
            "zone:x:00",
            &format!("zone:-1:{hash}"),
        ] {
            assert!(kept_head(wrong).is_err(), "{wrong}");
        }
    }
}
