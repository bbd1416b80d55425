//! After the key-encryption key was replaced: seals again what the previous key sealed, so that the
//! previous key can go (spec: sts §13; docs/operations.md).
//!
//! **Forces.** A secret sealed under a key that was removed is lost; nobody can wait for each to be
//! written anew. The verifiers of generated secrets hang on the key as well: they are keyed hashes
//! under a pepper that derives from it. **Choice.** One replica at a time reads every envelope that
//! does not name the current key, seals it again and puts it in the place of the very one that it
//! read. A client secret in custody is opened anyway, so its verifier is made anew with it; what is
//! in nobody's custody is made anew when it is used.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use caracal_crypto::envelope::Keyring;
use caracal_crypto::verifier::SecretVerifier;
use caracal_model::{Rng, Secret};
use caracal_store::custody::{Custody, CustodyError};
use caracal_store::reseal::{Place, Sealed};
use caracal_store::{Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::application_secrets::PEPPER;
use crate::service::Api;

const BATCH: u32 = 100;
/// Replicas of before the rotation may go on sealing under their key while it is rolled out.
const AGAIN: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(30);
const LEAD: Duration = Duration::from_secs(120);
const LEADER: &str = "caracal:reseal";

/// What a sweep came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Envelopes sealed again.
    pub resealed: u64,
    /// Verifiers of client secrets made anew.
    pub rehashed: u64,
    /// Envelopes that neither key opens.
    pub unopened: u64,
}

/// How many envelopes are left that need the previous key, for metrics; below zero when unknown.
#[derive(Debug)]
pub struct Left(AtomicI64);

impl Default for Left {
    fn default() -> Self {
        Self(AtomicI64::new(-1))
    }
}

impl Left {
    /// The number.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sweeps while there is a previous key. Ends at once when there is none.
pub async fn run(api: Arc<Api>, stop: CancellationToken) {
    if api.keyring.derive_previous(PEPPER).is_none() {
        api.reseal_left.0.store(0, Ordering::Relaxed);
        return;
    }
    let holder = api.ids.uuid();
    while !stop.is_cancelled() {
        let pause = match api.bus.lead(LEADER, &holder, LEAD).await {
            Ok(true) => turn(&api).await,
            Ok(false) => RETRY,
            Err(error) => {
                tracing::warn!(%error, "re-seal: nobody can be chosen to sweep");
                RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn turn(api: &Api) -> Duration {
    match Box::pin(sweep(
        &api.store,
        &api.custody,
        &api.keyring,
        api.rng.as_ref(),
    ))
    .await
    {
        Ok(swept) => {
            let left = i64::try_from(swept.unopened).unwrap_or(i64::MAX);
            api.reseal_left.0.store(left, Ordering::Relaxed);
            if swept.rehashed > 0 || (swept.resealed > 0 && api.custody.is_outside()) {
                api.announce().await;
                api.custody.is_due();
            }
            match swept {
                Swept {
                    unopened: 0,
                    resealed,
                    rehashed,
                } => tracing::info!(
                    resealed,
                    rehashed,
                    "re-seal: nothing that is stored needs SECRET_STORE_KEK_PREVIOUS any more"
                ),
                swept => tracing::error!(?swept, "re-seal: some envelopes open with neither key"),
            }
            AGAIN
        }
        Err(error) => {
            tracing::warn!(%error, "re-seal: interrupted, tried again");
            RETRY
        }
    }
}

/// One sweep over everything that is sealed.
///
/// # Errors
/// When store or backend do not answer; what was sealed again until then stays so.
pub async fn sweep(
    store: &Store,
    custody: &Custody,
    keyring: &Keyring,
    rng: &dyn Rng,
) -> Result<Swept, CustodyError> {
    let mut swept = Swept::default();
    let current = keyring.prefix();
    for place in Place::ALL {
        let mut after = String::new();
        loop {
            let batch = store
                .sealed_otherwise(place, &current, &after, BATCH)
                .await?;
            let Some(last) = batch.last() else { break };
            after.clone_from(&last.id);
            for sealed in &batch {
                match whole(custody, sealed).await? {
                    Whole::Envelope(whole) => {
                        one(store, keyring, rng, (sealed, &whole), &mut swept).await?;
                    }
                    Whole::Forgotten => {}
                    Whole::Lost => swept.unopened += 1,
                }
            }
        }
    }
    Ok(swept)
}

/// The whole envelope, from the backend if that has it.
async fn whole<'s>(custody: &Custody, sealed: &'s Sealed) -> Result<Whole<'s>, CustodyError> {
    if sealed.outside.is_none() {
        return Ok(Whole::Envelope(Cow::Borrowed(&sealed.envelope)));
    }
    match custody.read(&sealed.zone, &sealed.id).await {
        Ok(Some(envelope)) => Ok(Whole::Envelope(Cow::Owned(envelope))),
        Ok(None) => Ok(Whole::Forgotten),
        Err(CustodyError::Astray { .. }) => {
            tracing::error!(
                ?sealed,
                "re-seal: the secret backend does not hold an envelope"
            );
            Ok(Whole::Lost)
        }
        Err(error) => Err(error),
    }
}

/// What there is of an envelope.
enum Whole<'s> {
    Envelope(Cow<'s, [u8]>),
    Forgotten,
    Lost,
}

async fn one(
    store: &Store,
    keyring: &Keyring,
    rng: &dyn Rng,
    (sealed, whole): (&Sealed, &[u8]),
    swept: &mut Swept,
) -> Result<(), StoreError> {
    let opened = keyring.open(sealed.aad(), whole);
    let renewed = opened.and_then(|plain| {
        let envelope = keyring.seal(rng, sealed.aad(), plain.expose())?;
        Ok((plain, envelope))
    });
    let (plain, envelope) = match renewed {
        Ok(renewed) => renewed,
        Err(error) => {
            tracing::error!(%error, ?sealed, "re-seal: an envelope does not open");
            swept.unopened += 1;
            return Ok(());
        }
    };
    let mut tx = store.begin("sealing a secret again").await?;
    if tx.reseal(sealed, &envelope).await? {
        swept.resealed += 1;
    }
    if let (Some(application), Some((old, new))) =
        (sealed.client_secret_of(), verifiers(keyring, &plain))
        && tx
            .upgrade_client_secret(&sealed.zone, &application, &old, &new)
            .await?
    {
        swept.rehashed += 1;
    }
    tx.commit().await
}

/// What was stored of a secret under the previous key, and what is under the current one.
fn verifiers(keyring: &Keyring, secret: &Secret<Vec<u8>>) -> Option<(String, String)> {
    let secret = std::str::from_utf8(secret.expose()).ok()?;
    let under = |pepper| SecretVerifier::for_generated(pepper, secret).to_string();
    let previous = keyring.derive_previous(PEPPER)?;
    Some((under(&previous), under(&keyring.derive(PEPPER))))
}
