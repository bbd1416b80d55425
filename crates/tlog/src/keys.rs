//! The keys of checkpoints: kept sealed like the signing keys of zones, and no keys of anything else.
//! One signs; those that it replaced stay, so that what they signed can be verified, and so that each
//! log can be handed over.
//!
//! **Forces.** A key is replaced at one moment, but each log has its next checkpoint at its own, some
//! after months. **Choice.** A log changes keys with its next checkpoint: that one tells of the change
//! and is signed by the key of the checkpoint before, by all that came between, and by the newest. So
//! the log itself proves the change, and nothing else has to be kept.
//!
//! **Consequence.** A key that was replaced is needed until every log has changed keys; then its
//! private half is destroyed ([`forget_replaced`]), and its public half stays. Where the private half is
//! gone before its time, the next checkpoint cannot prove the change: it is signed all the same, by
//! the newest key alone, and whoever signs is told ([`Signed::is_unproven`]).

use std::time::Duration;

use caracal_crypto::digest::hex_encode;
use caracal_crypto::envelope::Keyring;
use caracal_crypto::{NoteKey, NoteVerifyKey};
use caracal_ledger::checkpoint::{self, Checkpoint, Rotation};
use caracal_ledger::note::{Vkey, is_name};
use caracal_model::{Clock, LogId, Rng, Timestamp};
use caracal_store::audit_trees::AuditKey;
use caracal_store::reseal::CHECKPOINT_KEY_AAD;
use caracal_store::{Store, StoreError};

use crate::TlogError;

/// The id of the first key of a deployment; each later one has the next number.
const FIRST: &str = "1";

/// How long a key is needed after it was replaced, at least: another process may have opened it
/// before, and be about to sign with it.
const NEEDED_FOR: Duration = Duration::from_secs(3_600);
/// Logs whose latest checkpoints are looked at together.
const PAGE: u32 = 1_000;

/// What signs checkpoints.
#[derive(Debug)]
pub struct Signer {
    /// The oldest first; the last one signs. Without the private half when that was destroyed.
    keys: Vec<(Vkey, Option<NoteKey>)>,
    /// With whether the private half was there.
    ids: Vec<(String, bool)>,
    deployment: String,
}

impl Signer {
    /// Opens the keys of the deployment, and makes the first one. Its logs are then called `name` for
    /// ever, by default `caracal/` and a random number.
    ///
    /// # Errors
    /// [`TlogError::Key`] when an envelope does not open.
    pub async fn open(
        store: &Store,
        keyring: &Keyring,
        rng: &dyn Rng,
        clock: &dyn Clock,
        name: Option<&str>,
    ) -> Result<Self, TlogError> {
        let mut stored = store.audit_keys().await?;
        if stored.is_empty() {
            let mut random = [0; 8];
            rng.fill(&mut random);
            let deployment = match name.filter(|name| is_name(name)) {
                Some(name) => name.trim_end_matches('/').to_owned(),
                None => format!("caracal/{}", hex_encode(&random)),
            };
            let made = make(keyring, rng, clock, FIRST.to_owned(), deployment)?;
            store.add_audit_key(&made).await?;
            // Another process may have been first.
            stored = store.audit_keys().await?;
        }
        let newest = stored.last().ok_or_else(|| StoreError::Absent {
            kind: "checkpoint key",
            id: FIRST.to_owned(),
        })?;
        let deployment = newest.deployment.clone();
        let keys: Result<Vec<_>, _> = stored.iter().map(|key| unseal(keyring, key)).collect();
        let keys = keys?;
        if keys.last().is_none_or(|(_, private)| private.is_none()) {
            let newest = stored.last().map_or(FIRST, |key| &key.id);
            return Err(corrupt(newest).into());
        }
        Ok(Self {
            keys,
            ids: stored.iter().map(known).collect(),
            deployment,
        })
    }

    /// Whether the deployment still has exactly these keys.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_current(&self, store: &Store) -> Result<bool, StoreError> {
        let stored = store.audit_keys().await?;
        Ok(stored.iter().map(known).eq(self.ids.iter().cloned()))
    }

    /// The key for verifying what is signed now, named after the deployment.
    pub fn vkey(&self) -> Option<&Vkey> {
        self.keys.last().map(|(vkey, _)| vkey)
    }

    /// The keys for verifying whatever was signed, the newest last.
    pub fn vkeys(&self) -> Vec<Vkey> {
        self.keys.iter().map(|(vkey, _)| vkey.clone()).collect()
    }

    /// The name of a log.
    pub fn origin(&self, log: &LogId) -> String {
        checkpoint::origin(&self.deployment, log)
    }

    /// Signs, after the note of the log's last checkpoint if there is one: when that is of an older
    /// key, the new one tells of the change.
    ///
    /// # Errors
    /// [`TlogError::Key`].
    pub fn sign(
        &self,
        mut checkpoint: Checkpoint,
        last: Option<&str>,
    ) -> Result<Signed, TlogError> {
        let newest = self.keys.len().saturating_sub(1);
        let of_last = last.and_then(|note| {
            let by = |(vkey, _): &(Vkey, Option<NoteKey>)| {
                Checkpoint::open(note, std::slice::from_ref(vkey)).is_ok()
            };
            self.keys.iter().rposition(by)
        });
        let can_sign = |place: &usize| matches!(self.keys.get(*place), Some((_, Some(_))));
        let begin = of_last.filter(can_sign);
        let signing = self.keys.get(begin.unwrap_or(newest)..).unwrap_or_default();
        if let [(from, _), .., (to, _)] = signing {
            checkpoint.rotation = Some(Rotation {
                from: from.clone(),
                to: to.clone(),
            });
        }
        let note = checkpoint.sign(signing.iter().filter_map(|(_, key)| key.as_ref()))?;
        Ok(Signed {
            checkpoint,
            note,
            is_unproven: last.is_some() && begin.is_none(),
        })
    }
}

/// A checkpoint that was signed.
#[derive(Clone, Debug)]
pub struct Signed {
    /// What it says.
    pub checkpoint: Checkpoint,
    /// The signed note.
    pub note: String,
    /// Whether it is of another key than the one before, and nothing proves the change, because the
    /// private half of that key is gone: whoever trusts only that key cannot follow.
    pub is_unproven: bool,
}

/// What tells keys apart that changed since they were opened.
fn known(stored: &AuditKey) -> (String, bool) {
    (stored.id.clone(), stored.has_private())
}

fn unseal(keyring: &Keyring, stored: &AuditKey) -> Result<(Vkey, Option<NoteKey>), TlogError> {
    if !stored.has_private() {
        return Ok((vkey(stored)?, None));
    }
    let seed = keyring.open(CHECKPOINT_KEY_AAD, &stored.sealed_private)?;
    let key = NoteKey::from_seed(seed.expose())?;
    if key.public().as_bytes()[..] != stored.public_key[..] {
        // Whoever put another public key there wants its signatures to be believed.
        return Err(corrupt(&stored.id).into());
    }
    Ok((vkey(stored)?, Some(key)))
}

fn make(
    keyring: &Keyring,
    rng: &dyn Rng,
    clock: &dyn Clock,
    id: String,
    deployment: String,
) -> Result<AuditKey, TlogError> {
    let key = NoteKey::generate(rng)?;
    tracing::info!(deployment, id, "a key for checkpoints was made");
    Ok(AuditKey {
        id,
        deployment,
        public_key: key.public().as_bytes().to_vec(),
        sealed_private: keyring.seal(rng, CHECKPOINT_KEY_AAD, key.seed().expose())?,
        created_at: clock.now(),
    })
}

fn corrupt(id: &str) -> StoreError {
    StoreError::Corrupt {
        what: format!("checkpoint key {id}"),
    }
}

fn vkey(stored: &AuditKey) -> Result<Vkey, StoreError> {
    NoteVerifyKey::from_bytes(&stored.public_key)
        .and_then(|public| Vkey::new(stored.deployment.clone(), public))
        .ok_or_else(|| corrupt(&stored.id))
}

/// The keys that checkpoints of this deployment verify with, the newest last, named after it.
///
/// # Errors
/// [`StoreError`].
pub async fn vkeys(store: &Store) -> Result<Vec<Vkey>, StoreError> {
    let listed = list(store).await?;
    Ok(listed.into_iter().map(|(_, vkey)| vkey).collect())
}

/// The keys of checkpoints as they are stored and as they verify, the newest last.
///
/// # Errors
/// [`StoreError`].
pub async fn list(store: &Store) -> Result<Vec<(AuditKey, Vkey)>, StoreError> {
    let with = |key: AuditKey| vkey(&key).map(|vkey| (key, vkey));
    store.audit_keys().await?.into_iter().map(with).collect()
}

/// Makes the next key, which signs from now on: each log with its next checkpoint, which is wished
/// for. `None` when another rotation came first, or there is no key yet.
///
/// # Errors
/// [`TlogError`].
pub async fn rotate(
    store: &Store,
    keyring: &Keyring,
    rng: &dyn Rng,
    clock: &dyn Clock,
) -> Result<Option<(AuditKey, Vkey)>, TlogError> {
    let Some(newest) = store.audit_keys().await?.pop() else {
        return Ok(None);
    };
    let number: u64 = newest.id.parse().map_err(|_| corrupt(&newest.id))?;
    let id = number.saturating_add(1).to_string();
    let made = make(keyring, rng, clock, id, newest.deployment)?;
    let vkey = vkey(&made)?;
    if !store.add_audit_key(&made).await? {
        return Ok(None);
    }
    store.wish_audit_checkpoints().await?;
    Ok(Some((made, vkey)))
}

/// Destroys the private halves of keys that no log needs any more: the latest checkpoint of each is of
/// a later key, so its change is proven and kept. Answers with the ids of those keys.
///
/// For whoever signs. A log in which nothing happened since keeps the key that it was signed with, and
/// a checkpoint of a key that nobody knows keeps them all.
///
/// # Errors
/// [`StoreError`].
pub async fn forget_replaced(store: &Store, now: Timestamp) -> Result<Vec<String>, StoreError> {
    let stored = list(store).await?;
    let Some((newest, _)) = stored.last() else {
        return Ok(Vec::new());
    };
    let is_settled = now >= newest.created_at.plus(NEEDED_FOR);
    let has_private = |(key, _): &(AuditKey, Vkey)| key.has_private();
    if !is_settled || stored.iter().filter(|key| has_private(key)).count() < 2 {
        return Ok(Vec::new());
    }
    let mut forgotten = Vec::new();
    for (key, _) in stored.iter().take(first_needed(store, &stored).await?) {
        if key.has_private() && store.destroy_audit_key(&key.id).await? {
            tracing::info!(
                id = key.id,
                "no log needs this checkpoint key any more: its private half was destroyed"
            );
            forgotten.push(key.id.clone());
        }
    }
    Ok(forgotten)
}

/// The place of the oldest key that some log was signed with last.
async fn first_needed(store: &Store, keys: &[(AuditKey, Vkey)]) -> Result<usize, StoreError> {
    let mut first = keys.len().saturating_sub(1);
    let mut after = String::new();
    loop {
        let page = store.latest_audit_notes(&after, PAGE).await?;
        for (_, note) in &page {
            let by = |(_, vkey): &(AuditKey, Vkey)| {
                Checkpoint::open(note, std::slice::from_ref(vkey)).is_ok()
            };
            first = first.min(keys.iter().rposition(by).unwrap_or_default());
        }
        match page.last() {
            Some((log, _)) if first > 0 => after.clone_from(log),
            _ => return Ok(first),
        }
    }
}
