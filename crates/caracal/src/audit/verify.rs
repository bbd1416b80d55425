//! `caracal audit verify`: is every event still what was decided, in the order in which it was
//! decided, with none missing, and is it what was signed?
//!
//! The database is read directly; the API (`--api-url`) and a file (`--export`) are read as lines that
//! verify without either.
//!
//! A chain shows every change behind its head. That its end was cut off, or that all of it was made
//! anew, shows only against something that was kept elsewhere: a checkpoint (`--checkpoint`), or a
//! head that this command printed (`--head`).

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use caracal_audit::{Trust, VerifyError, verify_export, verify_ledger};
use caracal_crypto::mac::HmacKey;
use caracal_ledger::{Checkpoint, Consistency, Head, Receipt, ReceiptError, Sound, Vkey};
use caracal_model::{LogId, Secret, ZoneId};
use caracal_store::Store;
use clap::Args;

use super::live::Reading;
use super::{Reader, live};
use crate::cli::Api;
use crate::config::Environment;
use crate::database;
use crate::exit::Outcome;
use crate::home::{Home, read_secret};
use crate::term;

#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  caracal audit verify                              every log of this deployment, in its database
  caracal audit verify --zone ZONE                  those of one zone
  caracal audit verify --api-url URL --key VKEY     every log of a deployment, through its API
  caracal audit verify --checkpoint kept.txt        that it continues a checkpoint that was kept
  caracal audit verify --key VKEY --export events.ndjson --checkpoint kept.txt
                                                    a file, with nothing but the public key
  caracal audit verify --key VKEY --receipt r.json  that one event is in the ledger

VKEY is what `caracal audit key` prints; take it from somebody whom you trust, not from the file that
you verify. Of keys that were replaced, one is enough: the ledger proves the others, and you are told
which of them signed what. AUDIT_HMAC_KEY (or the data directory's) proves who made the links; it is not needed with
--key, and --without-key leaves it out. Keep checkpoints, or the heads that this command prints, where
the operators of the deployment cannot change them: only against those shows that the end of a ledger
was cut off, or that all of it was made anew.

EXIT CODE
  0 when everything holds, else 1; the first place that does not hold is named. An API that hands out
  nothing of any log leaves nothing to hold: 1")]
pub struct Verify {
    #[command(flatten)]
    api: Api,
    /// Only this zone
    #[arg(long, conflicts_with = "export")]
    zone: Option<String>,
    /// Verify a file written by `caracal audit export`, or all such files of a directory
    #[arg(long, value_name = "FILE|DIR")]
    export: Option<PathBuf>,
    /// A checkpoint that was kept: the ledger must continue it
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// A public key of the deployment's checkpoints; give each that you trust
    #[arg(long = "key", value_name = "VKEY")]
    keys: Vec<Vkey>,
    /// A receipt of the API: its event must be in the ledger that was signed
    #[arg(long = "receipt", value_name = "FILE", requires = "keys")]
    receipts: Vec<PathBuf>,
    /// A consistency proof of the API: one checkpoint must continue the other
    #[arg(long = "consistency", value_name = "FILE", requires = "keys")]
    consistency: Vec<PathBuf>,
    /// A head that was kept: its event must still be there, unchanged
    #[arg(long = "head", value_name = "ZONE:SEQ:HASH", value_parser = kept_head)]
    heads: Vec<(ZoneId, Head)>,
    /// Do not check who made the links
    #[arg(long)]
    without_key: bool,
}

impl Verify {
    pub fn run(&self) -> Outcome {
        let mut held = self.verify_proofs()?;
        let proofs_only = !(self.receipts.is_empty() && self.consistency.is_empty());
        if self.export.is_some() || !proofs_only {
            held &= self.verify_ledgers()?;
        }
        Ok(if held {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn verify_ledgers(&self) -> anyhow::Result<bool> {
        let Some(trust) = self.trust()? else {
            return Ok(false);
        };
        if let Some(path) = &self.export {
            let key = self.key_for_export()?;
            return verify_path(path, key.as_ref(), &trust);
        }
        if self.api.api_url.is_some() {
            let key = self.key_if_any()?;
            return crate::up::small_runtime()?
                .block_on(Box::pin(self.verify_live(key.as_ref(), trust)));
        }
        let (environment, home) = self.api.data.open()?;
        let key = match self.without_key {
            true => None,
            false => Some(audit_key(&environment, &home)?),
        };
        crate::up::small_runtime()?.block_on(async {
            let store = database::open_existing(&environment, &home).await?;
            let verifying = self.verify_store(&store, key.as_ref(), trust);
            let held = term::patiently("reading the ledger", Box::pin(verifying)).await;
            store.shutdown().await;
            held
        })
    }

    /// The key of the links, which whoever has the public key can do without.
    fn key_for_export(&self) -> anyhow::Result<Option<HmacKey>> {
        if self.without_key {
            return Ok(None);
        }
        let found = self
            .api
            .data
            .open()
            .and_then(|(environment, home)| audit_key(&environment, &home));
        match found {
            Err(_) if !self.keys.is_empty() => Ok(None),
            found => found.map(Some),
        }
    }

    /// Another deployment's links are not checked with the key of the one on this machine: it has to
    /// be set.
    fn key_if_any(&self) -> anyhow::Result<Option<HmacKey>> {
        let (environment, home) = self.api.data.open()?;
        let is_set = ["AUDIT_HMAC_KEY", "AUDIT_HMAC_KEY_FILE"]
            .iter()
            .any(|name| environment.get(name).is_some());
        match is_set && !self.without_key {
            true => audit_key(&environment, &home).map(Some),
            false => Ok(None),
        }
    }

    async fn verify_live(&self, key: Option<&HmacKey>, trust: Trust) -> anyhow::Result<bool> {
        let reader = Reader::open(&self.api)?;
        if trust.keys.trusted().is_empty() {
            term::progress("the keys are taken from the deployment itself: give --key for more");
        }
        let live::Logs {
            all: mut logs,
            listed,
        } = live::logs(&reader, self.zone.as_deref()).await?;
        self.add_kept(&mut logs, &trust);
        let (mut all, mut nothing) = (true, 0);
        for log in &logs {
            let is_listed = listed.contains(log);
            let reading = Box::pin(live::verify(&reader, log, is_listed, key, &trust));
            let what = format!("reading {log}");
            all &= match term::patiently(&what, reading).await? {
                Ok(Reading::Nothing) => {
                    nothing += 1;
                    println!("nothing  the API hands out no {}s of {log}", log.entry());
                    true
                }
                Ok(Reading::Holds(sound)) => outcome(log, Ok(*sound))?,
                Err(error) => outcome(log, Err(error))?,
            };
        }
        if nothing > 0 {
            term::progress(&format!(
                "{nothing} logs were not verified: whether they are empty or kept back shows only against \
                 a --checkpoint or a --head that was kept"
            ));
        }
        if nothing == logs.len() {
            println!("nothing was verified");
            return Ok(false);
        }
        Ok(all)
    }

    /// A log that was kept must not pass because it is not listed any more.
    fn add_kept(&self, logs: &mut Vec<LogId>, trust: &Trust) {
        logs.extend(trust.logs());
        logs.retain(|log| {
            self.zone
                .as_ref()
                .is_none_or(|only| log.zone().as_str() == only)
        });
        // Those whose heads can be kept stand last.
        logs.sort_by_key(|log| (log.kind().is_events(), log.zone().clone()));
        logs.dedup();
        if logs.is_empty() {
            println!("no events");
        }
    }

    /// What was kept; `None` when a checkpoint is not of the key.
    fn trust(&self) -> anyhow::Result<Option<Trust>> {
        let mut checkpoints = Vec::new();
        for file in &self.checkpoints {
            let note = read(file)?;
            let opened = match self.keys.is_empty() {
                true => Checkpoint::unverified(&note),
                false => Checkpoint::open(&note, &self.keys),
            };
            match opened {
                Ok(checkpoint) => checkpoints.push(checkpoint),
                Err(error) => {
                    broken(&format!("{}: {error}", file.display()));
                    return Ok(None);
                }
            }
        }
        Ok(Some(Trust {
            keys: self.keys.clone().into(),
            checkpoints,
            heads: self.heads.clone(),
        }))
    }

    fn verify_proofs(&self) -> anyhow::Result<bool> {
        let mut all = true;
        for file in &self.receipts {
            let receipt: Receipt = parse(file, "receipt")?;
            let verified = receipt.verify(&self.keys);
            all &= told(file, verified, |checkpoint| {
                let (event, size) = (receipt.leaf_index + 1, checkpoint.size);
                format!("event {event} of {size} of {}", checkpoint.origin)
            });
        }
        for file in &self.consistency {
            let proof: Consistency = parse(file, "consistency proof")?;
            let verified = proof.verify(&self.keys);
            all &= told(file, verified, |(from, to)| {
                format!("{} events continue {} of {}", to.size, from.size, to.origin)
            });
        }
        Ok(all)
    }

    async fn verify_store(
        &self,
        store: &Store,
        key: Option<&HmacKey>,
        mut trust: Trust,
    ) -> anyhow::Result<bool> {
        if trust.keys.trusted().is_empty() {
            let keys = caracal_tlog::vkeys(store).await;
            let keys = keys.context("the keys of checkpoints cannot be read")?;
            trust.keys = keys.into();
        }
        let mut logs = store
            .audit_logs()
            .await
            .context("the ledger cannot be read")?;
        self.add_kept(&mut logs, &trust);
        let mut all = true;
        for log in &logs {
            let verified = Box::pin(verify_ledger(store, log, key, &trust)).await;
            all &= outcome(log, verified)?;
        }
        Ok(all)
    }
}

/// Tells what was found; an error is none of the ledger.
fn outcome(log: &LogId, verified: Result<Sound, VerifyError>) -> anyhow::Result<bool> {
    match verified {
        Ok(sound) => {
            holds(log, &sound);
            Ok(true)
        }
        Err(VerifyError::Found(finding)) => {
            broken(&finding.to_string());
            Ok(false)
        }
        Err(error) => Err(error).context("the ledger cannot be read"),
    }
}

/// A file, or those of a directory one after another, in the order of their names.
fn verify_path(path: &Path, key: Option<&HmacKey>, trust: &Trust) -> anyhow::Result<bool> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path);
        let entries = entries.with_context(|| format!("{} cannot be read", path.display()))?;
        let entries: Result<Vec<_>, _> = entries.map(|entry| Ok(entry?.path())).collect();
        files = entries.map_err(|error: std::io::Error| error)?;
        files.retain(|file| file.extension().is_some_and(|kind| kind == "ndjson"));
        files.sort();
        ensure!(
            !files.is_empty(),
            "{} holds no .ndjson file",
            path.display()
        );
    }
    let mut export: Box<dyn Read> = Box::new(std::io::empty());
    for file in &files {
        let opened = File::open(file);
        let opened = opened.with_context(|| format!("{} cannot be opened", file.display()))?;
        export = Box::new(export.chain(opened));
    }
    match verify_export(BufReader::new(export), key, trust) {
        Ok(logs) => {
            if trust.keys.trusted().is_empty() {
                term::progress("signatures were not checked: give --key for that");
            }
            logs.iter().for_each(|(log, sound)| holds(log, sound));
            Ok(true)
        }
        Err(VerifyError::Found(finding)) => {
            broken(&finding.to_string());
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))
}

fn parse<T: serde::de::DeserializeOwned>(file: &Path, kind: &str) -> anyhow::Result<T> {
    let parsed = serde_json::from_str(&read(file)?);
    parsed.with_context(|| format!("{} is no {kind}", file.display()))
}

fn told<T>(
    file: &Path,
    verified: Result<T, ReceiptError>,
    what: impl FnOnce(&T) -> String,
) -> bool {
    match &verified {
        Ok(verified) => println!(
            "{}  {}  {}",
            term::green("holds "),
            file.display(),
            what(verified)
        ),
        Err(error) => broken(&format!("{}: {error}", file.display())),
    }
    verified.is_ok()
}

fn holds(log: &LogId, sound: &Sound) {
    let (events, hash) = (sound.head.seq(), sound.head.chain_hash());
    let what = match log.kind().is_events() {
        true => format!("{}:{events}:{hash}", log.zone()),
        false => log.to_string(),
    };
    let told = sound.told(&format!("{}s", log.entry()));
    println!("{}  {told}  {what}", term::green("holds "));
    for named in &sound.named {
        let (checkpoints, size) = (named.checkpoints, named.size);
        println!(
            "        and agrees with {checkpoints} checkpoints, up to {size} events, of a key that your \
             key names: confirm it, then give it too, with --key {}",
            named.key
        );
    }
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
