//! Tokens of the service itself, by the client credentials or the assertion of a provider's
//! configuration (spec: sts §6.2).
//!
//! **Choice.** Held in this process only: a secret that is fetched again costs a round trip, one
//! that is passed around costs trust. One fetch at a time for each provider; whoever waited takes
//! its outcome, the failure as well, so that a dead endpoint is waited out once and not by each
//! caller in turn. A fetch goes on when its caller has been answered: an endpoint that is slower
//! than a call may be serves the next one.

use std::sync::Arc;
use std::time::Duration;

use caracal_authority::decide::CredentialFault;
use caracal_model::{ProviderId, Secret, Ticks, Timestamp, ZoneId};
use caracal_oauth::{Client, Grant, TokenError};
use caracal_view::Provider;
use parking_lot::Mutex;

use super::circuit::Circuit;
use super::{BACKEND, Credential, ends, failed};
use crate::Sts;
use crate::patience::Patience;

/// A token is not used in its last seconds: it has to arrive while it is valid.
const EARLY: Duration = Duration::from_secs(30);
/// Providers whose tokens are held at one time.
const MOST: usize = 4096;

/// The tokens that are held.
#[derive(Default)]
pub struct ServiceTokens {
    slots: papaya::HashMap<ProviderId, Arc<Slot>>,
}

struct Slot {
    fingerprint: [u8; 32],
    token: Mutex<Option<Arc<Token>>>,
    /// Held by the fetch; remembers when the last one that failed began.
    fetching: Arc<tokio::sync::Mutex<Option<Ticks>>>,
}

struct Token {
    token: Secret<String>,
    expires_at: Timestamp,
}

impl Slot {
    fn valid(&self, now: Timestamp) -> Option<Credential> {
        let token = self.token.lock().clone()?;
        (token.expires_at > now.plus(EARLY)).then(|| token.credential())
    }
}

impl Token {
    fn credential(&self) -> Credential {
        Credential {
            token: Secret::new(self.token.expose().clone()),
            expires_at: Some(self.expires_at),
            connection: None,
        }
    }
}

impl ServiceTokens {
    /// The token of this state of the provider, while it is good.
    pub fn held(&self, provider: &Provider, now: Timestamp) -> Option<Credential> {
        let slots = self.slots.pin();
        let slot = slots.get(&provider.id)?;
        (slot.fingerprint == provider.fingerprint)
            .then(|| slot.valid(now))
            .flatten()
    }

    fn slot(&self, provider: &Provider, now: Timestamp) -> Arc<Slot> {
        let slots = self.slots.pin();
        if let Some(slot) = slots.get(&provider.id)
            && slot.fingerprint == provider.fingerprint
        {
            return Arc::clone(slot);
        }
        if slots.len() >= MOST {
            slots.retain(|_, slot| slot.valid(now).is_some());
        }
        let slot = Arc::new(Slot {
            fingerprint: provider.fingerprint,
            token: Mutex::default(),
            fetching: Arc::default(),
        });
        slots.insert(provider.id.clone(), Arc::clone(&slot));
        slot
    }
}

/// A token: the one that is held, or a new one.
///
/// # Errors
/// [`CredentialFault::ProviderUnavailable`].
pub async fn fetch(
    sts: &Sts,
    zone: &ZoneId,
    provider: &Arc<Provider>,
    patience: Patience,
) -> Result<Credential, CredentialFault> {
    let unavailable = CredentialFault::ProviderUnavailable;
    let clock = sts.clock.as_ref();
    let slot = sts.service_tokens.slot(provider, clock.now());
    let arrived = clock.ticks();
    let waiting = Arc::clone(&slot.fetching).lock_owned();
    let mut failure = patience.wait(clock, waiting).await.ok_or(unavailable)?;
    if let Some(credential) = slot.valid(clock.now()) {
        sts.metrics.provider.shared.inc();
        return Ok(credential);
    }
    // A fetch that began after we came has failed for us too.
    if failure.is_some_and(|began| began > arrived) {
        sts.metrics.provider.waited.inc();
        return Err(unavailable);
    }
    let me = sts.me.upgrade().ok_or(unavailable)?;
    let (zone, provider) = (zone.clone(), Arc::clone(provider));
    let fetching = async move {
        let began = me.clock.ticks();
        match Box::pin(ask(&me, &zone, &provider)).await {
            Ok(token) => {
                let token = Arc::new(token);
                *slot.token.lock() = Some(Arc::clone(&token));
                Ok(token.credential())
            }
            Err(fault) => {
                *failure = Some(began);
                Err(fault)
            }
        }
    };
    let fetched = sts.outlasting(patience, "provider token", fetching).await;
    fetched.unwrap_or(Err(unavailable))
}

async fn ask(sts: &Sts, zone: &ZoneId, provider: &Provider) -> Result<Token, CredentialFault> {
    let unavailable = CredentialFault::ProviderUnavailable;
    let circuit = Circuit::of(sts, &provider.id).await.map_err(|error| {
        tracing::warn!(%error, "the circuit of a provider cannot be read");
        unavailable
    })?;
    if circuit.is_open() {
        return Err(unavailable);
    }
    // A secret of ours that is not to be had says nothing about the provider.
    let secret = provider.secret.obtain(BACKEND).await;
    let secret = secret.map_err(|_| unavailable)?;
    sts.metrics.provider.leased.inc();
    let now = sts.clock.now();
    match Box::pin(token(sts, provider, secret.as_deref(), now)).await {
        Ok(token) => {
            circuit.succeeded(sts).await;
            Ok(token)
        }
        Err(error) => {
            failed(sts, zone, provider, &error);
            if error.is_failure() {
                circuit.failed(sts).await;
            }
            Err(unavailable)
        }
    }
}

async fn token(
    sts: &Sts,
    provider: &Provider,
    secret: Option<&Secret<Vec<u8>>>,
    now: Timestamp,
) -> Result<Token, TokenError> {
    let secret = secret.map(|secret| &**secret.expose());
    let client = Client::read(&provider.config, secret)?;
    let rng = sts.rng.as_ref();
    let answer = client.ask(&sts.fetch, Grant::Service, now, rng).await?;
    Ok(Token {
        token: answer.access_token,
        expires_at: ends(sts, answer.expires_in, now),
    })
}
