//! The key of checkpoints: made once, kept sealed like the signing keys of zones, and no key of
//! anything else.

use caracal_crypto::digest::hex_encode;
use caracal_crypto::envelope::Keyring;
use caracal_crypto::{CryptoError, NoteKey, NoteVerifyKey};
use caracal_ledger::checkpoint::{self, Checkpoint};
use caracal_ledger::note::{Vkey, is_name};
use caracal_model::{Clock, Rng, ZoneId};
use caracal_store::audit_trees::AuditKey;
use caracal_store::reseal::CHECKPOINT_KEY_AAD;
use caracal_store::{Store, StoreError};

use crate::TlogError;

/// The id of the first key of a deployment.
const FIRST: &str = "1";

/// What signs checkpoints.
#[derive(Debug)]
pub struct Signer {
    key: NoteKey,
    deployment: String,
}

impl Signer {
    /// Opens the newest key of the deployment, and makes the first one. Its logs are then called
    /// `name` for ever, by default `caracal/` and a random number.
    ///
    /// # Errors
    /// [`TlogError::Key`] when the envelope does not open.
    pub async fn open(
        store: &Store,
        keyring: &Keyring,
        rng: &dyn Rng,
        clock: &dyn Clock,
        name: Option<&str>,
    ) -> Result<Self, TlogError> {
        let mut keys = store.audit_keys().await?;
        if keys.is_empty() {
            let made = make(keyring, rng, clock, name)?;
            store.add_audit_key(&made).await?;
            // Another process may have been first.
            keys = store.audit_keys().await?;
        }
        let newest = keys.pop().ok_or_else(|| StoreError::Absent {
            kind: "checkpoint key",
            id: FIRST.to_owned(),
        })?;
        let seed = keyring.open(CHECKPOINT_KEY_AAD, &newest.sealed_private)?;
        let key = NoteKey::from_seed(seed.expose())?;
        if key.public().as_bytes()[..] != newest.public_key[..] {
            // Whoever put another public key there wants its signatures to be believed.
            return Err(corrupt(&newest.id).into());
        }
        let deployment = newest.deployment;
        Ok(Self { key, deployment })
    }

    /// The key for verifying, named after the deployment.
    pub fn vkey(&self) -> Option<Vkey> {
        Vkey::new(self.deployment.clone(), self.key.public())
    }

    /// The name of a zone's log.
    pub fn origin(&self, zone: &ZoneId) -> String {
        checkpoint::origin(&self.deployment, zone)
    }

    /// Signs.
    ///
    /// # Errors
    /// [`CryptoError`].
    pub fn sign(&self, checkpoint: &Checkpoint) -> Result<String, CryptoError> {
        checkpoint.sign(&self.key)
    }
}

fn make(
    keyring: &Keyring,
    rng: &dyn Rng,
    clock: &dyn Clock,
    name: Option<&str>,
) -> Result<AuditKey, TlogError> {
    let key = NoteKey::generate(rng)?;
    let mut random = [0; 8];
    rng.fill(&mut random);
    let deployment = match name.filter(|name| is_name(name)) {
        Some(name) => name.trim_end_matches('/').to_owned(),
        None => format!("caracal/{}", hex_encode(&random)),
    };
    tracing::info!(deployment, "a key for checkpoints was made");
    Ok(AuditKey {
        id: FIRST.to_owned(),
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

/// The keys that checkpoints of this deployment verify with, the newest last, named after it.
///
/// # Errors
/// [`StoreError`].
pub async fn vkeys(store: &Store) -> Result<Vec<Vkey>, StoreError> {
    let keys = store.audit_keys().await?;
    let vkey = |key: AuditKey| {
        let public = NoteVerifyKey::from_bytes(&key.public_key);
        public
            .and_then(|public| Vkey::new(key.deployment, public))
            .ok_or_else(|| corrupt(&key.id))
    };
    keys.into_iter().map(vkey).collect()
}
