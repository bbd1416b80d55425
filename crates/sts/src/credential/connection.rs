//! The subject's own account at a provider, and its refresh (spec: sts §6.3).
//!
//! **Forces.** A refresh token may be good for one use: two replicas that refresh one connection
//! at a time lose it. The winner's tokens must reach the others, and must not travel in the clear.
//!
//! **Choice.** A lease on the bus, renewed while the refresh runs; the others wait for the
//! connection itself to change, which the feed tells them of, so tokens travel only sealed and
//! through the store. A failure is posted for as long as those who waited may come to ask.
//! INVARIANT (version), in the store, holds when a lease is lost all the same. A refresh that began is
//! carried on with when its caller waits no longer: cut between the answer and the store, the
//! subject would have to connect anew.

use std::sync::Arc;
use std::time::Duration;

use caracal_authority::decide::CredentialFault;
use caracal_bus::BusError;
use caracal_model::{Refused, Secret, Timestamp, ZoneId};
use caracal_oauth::{Client, Grant, TokenAnswer, TokenError};
use caracal_store::connections::{ACCESS_TOKEN_AAD, Connection, REFRESH_TOKEN_AAD, SealedTokens};
use caracal_view::{Provider, UserConnection};

use super::circuit::Circuit;
use super::{AtHand, BACKEND, Credential, ends, failed, unsealable};
use crate::Sts;
use crate::authenticate::unavailable;
use crate::patience::Patience;

/// A token is refreshed when it has no longer to live than this.
const EARLY: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(15);
/// How often the lease is renewed.
const RENEW: Duration = Duration::from_secs(5);
/// How long a failure stands for those who waited for it.
const SHARED: Duration = Duration::from_secs(5);
/// Between two looks of a waiter; up to as much again is added.
const LOOK: Duration = Duration::from_millis(50);
/// Tries against other writers.
const TRIES: usize = 3;

/// Whether a token that another has just obtained may be used, however short it lives: asking again
/// would only get its like.
fn is_new(version: i64, expires_at: Option<Timestamp>, before: i64, now: Timestamp) -> bool {
    version > before && expires_at.is_none_or(|at| at > now)
}

fn is_due(expires_at: Option<Timestamp>, now: Timestamp) -> bool {
    expires_at.is_some_and(|at| at <= now.plus(EARLY))
}

/// What memory says of the subject's connection.
///
/// # Errors
/// 503 when it can be read neither from memory nor from the store.
pub async fn at_hand(
    sts: &Sts,
    zone: &ZoneId,
    provider: &Provider,
    subject: &str,
) -> Result<AtHand, Refused> {
    let found = sts.views.connection(zone, &provider.id, subject).await;
    let Some(found) = found.map_err(|error| unavailable(&error))? else {
        return Ok(AtHand::Fault(CredentialFault::NotProvisioned));
    };
    let now = sts.clock.now();
    if found.renewable && is_due(found.expires_at, now) {
        return Ok(AtHand::Due);
    }
    if found.expires_at.is_some_and(|at| at <= now) {
        mark_expired(sts, zone, provider, &found.subject).await;
        return Ok(AtHand::Fault(CredentialFault::Expired));
    }
    Ok(match credential(&found) {
        Some(credential) => AtHand::Ready(credential),
        None => AtHand::Fault(CredentialFault::RefreshFailed),
    })
}

fn credential(of: &UserConnection) -> Option<Credential> {
    Some(Credential {
        token: Secret::new(of.token.as_ref()?.expose().clone()),
        expires_at: of.expires_at,
        connection: Some(of.id.clone()),
    })
}

/// Best effort: the connection is refused whether or not it is marked.
async fn mark_expired(sts: &Sts, zone: &ZoneId, provider: &Provider, subject: &str) {
    let marking = async {
        let connections = sts.store.zone(zone).connections();
        let Some(row) = connections.active(&provider.id, subject).await? else {
            return Ok(());
        };
        let now = sts.clock.now();
        if row.refresh_token.is_some() || row.expires_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        let mut tx = sts.store.begin("marking an expired connection").await?;
        tx.connections(zone).expire(&row, now).await?;
        tx.commit().await
    };
    match marking.await {
        Ok(()) => sts.announce.announce().await,
        Err(error) => tracing::warn!(%error, "an expired connection is not marked"),
    }
}

/// One refresh of one state of a connection.
struct Refresh {
    sts: Arc<Sts>,
    zone: ZoneId,
    provider: Arc<Provider>,
    found: Arc<UserConnection>,
    lock: String,
    holder: String,
}

/// The connection's token, refreshed by this replica or by another.
///
/// # Errors
/// [`CredentialFault`].
pub async fn renew(
    sts: &Sts,
    zone: &ZoneId,
    provider: &Arc<Provider>,
    subject: &str,
    patience: Patience,
) -> Result<Credential, CredentialFault> {
    let me = sts.me.upgrade().ok_or(CredentialFault::RefreshFailed)?;
    let holder = sts.ids.uuid();
    let mut waited = false;
    let mut before = None;
    while !patience.left(sts.clock.as_ref()).is_zero() {
        let found = look(sts, zone, provider, subject).await?;
        let (now, before) = (sts.clock.now(), *before.get_or_insert(found.version));
        let renewed = is_new(found.version, found.expires_at, before, now);
        if renewed || !is_due(found.expires_at, now) {
            if waited {
                sts.metrics.provider.shared.inc();
            }
            return credential(&found).ok_or(CredentialFault::RefreshFailed);
        }
        let refresh = Refresh {
            sts: Arc::clone(&me),
            zone: zone.clone(),
            provider: Arc::clone(provider),
            lock: format!("provider-refresh:{}:lock", found.id),
            holder: holder.clone(),
            found,
        };
        let attempt = async move { refresh.attempt().await };
        let outcome = sts.outlasting(patience, "provider refresh", attempt).await;
        if let Some(outcome) = outcome.ok_or(CredentialFault::RefreshFailed)?? {
            return outcome;
        }
        if !waited {
            waited = true;
            sts.metrics.provider.waited.inc();
        }
        tokio::time::sleep(jittered(sts)).await;
    }
    Err(CredentialFault::RefreshFailed)
}

async fn look(
    sts: &Sts,
    zone: &ZoneId,
    provider: &Provider,
    subject: &str,
) -> Result<Arc<UserConnection>, CredentialFault> {
    let found = sts.views.connection(zone, &provider.id, subject).await;
    let found = found.map_err(|error| {
        tracing::warn!(%error, "a connection cannot be read");
        CredentialFault::ProviderUnavailable
    })?;
    found.ok_or(CredentialFault::NotProvisioned)
}

fn jittered(sts: &Sts) -> Duration {
    let mut byte = [0u8; 1];
    sts.rng.fill(&mut byte);
    LOOK + LOOK.mul_f64(f64::from(byte[0]) / 255.0)
}

fn bus_out(error: &BusError) -> CredentialFault {
    tracing::warn!(%error, "a refresh cannot be coordinated");
    CredentialFault::ProviderUnavailable
}

impl Refresh {
    fn board(&self) -> String {
        let (id, version) = (&self.found.id, self.found.version);
        format!("provider-refresh:{id}:{version}:result")
    }

    /// The outcome, unless another refreshes just now.
    async fn attempt(
        &self,
    ) -> Result<Option<Result<Credential, CredentialFault>>, CredentialFault> {
        let bus = &self.sts.bus;
        let posted = bus.posts(&self.board()).await.map_err(|e| bus_out(&e))?;
        if !posted.is_empty() {
            return Ok(Some(Err(CredentialFault::RefreshFailed)));
        }
        let leads = bus.lead(&self.lock, &self.holder, LEASE).await;
        if !leads.map_err(|error| bus_out(&error))? {
            return Ok(None);
        }
        self.sts.metrics.provider.leased.inc();
        let outcome = self.leased().await;
        if outcome.is_err() {
            let told = bus.post(&self.board(), "failed", "", SHARED).await;
            if let Err(error) = told {
                bus_out(&error);
            }
        }
        // Gives the lease back: renewed for no time at all.
        let given_back = bus.lead(&self.lock, &self.holder, Duration::from_millis(1));
        if let Err(error) = given_back.await {
            bus_out(&error);
        }
        Ok(Some(outcome))
    }

    /// Refreshes while the lease is renewed beside it. A lease that is lost ends nothing: the provider
    /// may have taken the refresh token by then, and what it answers is all that is left of the
    /// connection. INVARIANT (version) keeps out whichever of two that refresh is second.
    async fn leased(&self) -> Result<Credential, CredentialFault> {
        let renew = || async {
            let renewed = self.sts.bus.lead(&self.lock, &self.holder, LEASE).await;
            if !matches!(renewed, Ok(true)) {
                let connection = &self.found.id;
                tracing::warn!(%connection, ?renewed, "a refresh goes on without its lease");
            }
        };
        beside(Box::pin(self.work()), RENEW, renew).await
    }

    async fn work(&self) -> Result<Credential, CredentialFault> {
        for _ in 0..TRIES {
            let row = self.read().await?;
            let (now, before) = (self.sts.clock.now(), self.found.version);
            let renewed = is_new(row.version, row.expires_at, before, now);
            if renewed || !is_due(row.expires_at, now) {
                // Somebody connected anew or refreshed since memory was read.
                return self.as_stored(&row);
            }
            let answer = self.ask(&row).await?;
            if let Some(credential) = self.store(&row, answer).await? {
                return Ok(credential);
            }
        }
        Err(CredentialFault::RefreshFailed)
    }

    async fn read(&self) -> Result<Connection, CredentialFault> {
        let connections = self.sts.store.zone(&self.zone).connections();
        let row = connections
            .active(&self.provider.id, &self.found.subject)
            .await;
        let row = row.map_err(|error| {
            tracing::warn!(%error, "a connection cannot be read");
            CredentialFault::ProviderUnavailable
        })?;
        row.ok_or(CredentialFault::NotProvisioned)
    }

    fn as_stored(&self, row: &Connection) -> Result<Credential, CredentialFault> {
        let token = self.open(ACCESS_TOKEN_AAD, &row.access_token)?;
        Ok(Credential {
            token,
            expires_at: row.expires_at,
            connection: Some(row.id.clone()),
        })
    }

    fn open(&self, aad: &str, envelope: &[u8]) -> Result<Secret<String>, CredentialFault> {
        let opened = self.sts.keyring.open(aad, envelope);
        let opened = opened.map_err(|error| unsealable(&error))?;
        String::from_utf8(opened.expose().clone())
            .map(Secret::new)
            .map_err(|_| CredentialFault::RefreshFailed)
    }

    fn seal(&self, aad: &str, token: &Secret<String>) -> Result<Vec<u8>, CredentialFault> {
        let sts = &self.sts;
        sts.keyring
            .seal(sts.rng.as_ref(), aad, token.expose().as_bytes())
            .map_err(|error| unsealable(&error))
    }

    async fn ask(&self, row: &Connection) -> Result<TokenAnswer, CredentialFault> {
        let (sts, provider) = (&*self.sts, &*self.provider);
        let sealed = row.refresh_token.as_ref().ok_or(CredentialFault::Expired)?;
        let refresh = self.open(REFRESH_TOKEN_AAD, sealed)?;
        let circuit = Circuit::of(sts, &provider.id).await;
        let circuit = circuit.map_err(|error| bus_out(&error))?;
        if circuit.is_open() {
            return Err(CredentialFault::ProviderUnavailable);
        }
        let secret = provider.secret.obtain(BACKEND).await;
        let secret = secret.map_err(|_| CredentialFault::ProviderUnavailable)?;
        let secret = secret.as_ref().map(|secret| &**secret.expose());
        let asked = async {
            let client = Client::read(&provider.config, secret)?;
            let (now, rng) = (sts.clock.now(), sts.rng.as_ref());
            let grant = Grant::Refresh(&refresh);
            Box::pin(client.ask(&sts.fetch, grant, now, rng)).await
        };
        match asked.await {
            Ok(answer) => {
                circuit.succeeded(sts).await;
                Ok(answer)
            }
            Err(error) => {
                failed(sts, &self.zone, provider, &error);
                if error.is_failure() && !is_of_the_subject(&error) {
                    circuit.failed(sts).await;
                }
                Err(CredentialFault::RefreshFailed)
            }
        }
    }

    /// Stores the new tokens, unless the connection has changed meanwhile.
    async fn store(
        &self,
        row: &Connection,
        answer: TokenAnswer,
    ) -> Result<Option<Credential>, CredentialFault> {
        let sts = &*self.sts;
        let now = sts.clock.now();
        let expires_at = Some(ends(sts, answer.expires_in, now));
        let access = self.seal(ACCESS_TOKEN_AAD, &answer.access_token)?;
        let refresh = match (&answer.refresh_token, &row.refresh_token) {
            (Some(token), _) => Some(self.seal(REFRESH_TOKEN_AAD, token)?),
            (None, Some(old)) => {
                let old = self.open(REFRESH_TOKEN_AAD, old)?;
                Some(self.seal(REFRESH_TOKEN_AAD, &old)?)
            }
            (None, None) => None,
        };
        let tokens = SealedTokens {
            access: &access,
            refresh: refresh.as_deref(),
            expires_at,
        };
        let storing = async {
            let mut tx = sts.store.begin("storing refreshed tokens").await?;
            let stored = tx.connections(&self.zone).refresh(row, tokens, now).await?;
            tx.commit().await?;
            Ok::<_, caracal_store::StoreError>(stored)
        };
        let stored = storing.await.map_err(|error| {
            tracing::error!(%error, connection = %row.id, "refreshed tokens are not stored");
            CredentialFault::RefreshFailed
        })?;
        sts.announce.announce().await;
        Ok(stored.then(|| Credential {
            token: answer.access_token,
            expires_at,
            connection: Some(row.id.clone()),
        }))
    }
}

/// Does `work` to its end, and a chore beside it every so often, which cannot end it.
async fn beside<T, C: Future<Output = ()>>(
    mut work: impl Future<Output = T> + Unpin,
    every: Duration,
    chore: impl Fn() -> C,
) -> T {
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(every) => chore().await,
        }
    }
}

/// A refresh token that is no longer good says nothing about the provider: one subject must not
/// open the circuit of all.
fn is_of_the_subject(error: &TokenError) -> bool {
    error.code() == Some("invalid_grant")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_chore_beside_work_does_not_end_it() {
        let (chores, enough) = (AtomicU32::new(0), tokio::sync::Notify::new());
        let work = Box::pin(async {
            enough.notified().await;
            "done"
        });
        let chore = || async {
            if chores.fetch_add(1, Ordering::SeqCst) == 2 {
                enough.notify_one();
            }
        };
        assert_eq!(beside(work, Duration::from_millis(1), chore).await, "done");
    }
}
