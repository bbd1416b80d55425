//! The credential that a provider injects, whoever asks for it: the exchange of a call, or a
//! workload that injects it at its start (spec: sts §6, §12).
//!
//! **Forces.** A warm exchange may wait for nothing; a credential that has to be fetched takes a
//! round trip to a stranger, in which zone, policy and authority may change. **Choice.**
//! [`at_hand`] answers from memory. What is not at hand is [obtained](obtain), and then the
//! exchange is decided anew, from the zone as it is by then. **Consequence.** No lock and no
//! decision is held across a fetch, and none of what it waited for can be stale.

mod circuit;
mod connection;
mod service;

use std::sync::Arc;
use std::time::Duration;

use caracal_authority::decide::CredentialFault;
use caracal_crypto::CryptoError;
use caracal_model::{ProviderId, Refusal, Refused, Secret, Timestamp, ZoneId};
use caracal_oauth::TokenError;
use caracal_view::{Provider, SecretAtHand, ZoneView};
use serde::Deserialize;
use serde_json::Value;

use crate::Sts;
use crate::patience::Patience;

pub use service::ServiceTokens;

/// A credential at hand.
#[derive(Debug)]
pub struct Credential {
    /// What is injected, without its scheme.
    pub token: Secret<String>,
    /// When it ends, where that is known.
    pub expires_at: Option<Timestamp>,
    /// The subject's connection that it belongs to.
    pub connection: Option<String>,
}

impl Credential {
    fn lasting(token: Secret<String>) -> Self {
        Self {
            token,
            expires_at: None,
            connection: None,
        }
    }
}

/// What memory says of a credential.
#[derive(Debug)]
pub enum AtHand {
    /// The provider injects none of its own.
    NotNeeded,
    /// It is here.
    Ready(Credential),
    /// It is known not to be had: the call is denied before policy is asked.
    Fault(CredentialFault),
    /// The subject's connection, or the stored secret, is due: obtain it before anything is decided.
    Due,
    /// A token of the service has to be fetched, once the call is granted.
    Fetch,
    /// It was fetched for this call, in vain.
    Failed,
}

impl AtHand {
    /// The fault, as the kernel takes it.
    pub const fn fault(&self) -> Option<CredentialFault> {
        match self {
            Self::Fault(fault) => Some(*fault),
            _ => None,
        }
    }
}

/// What came of obtaining a credential, and for which state of which provider.
#[derive(Debug)]
pub struct Obtained {
    provider: ProviderId,
    fingerprint: [u8; 32],
    subject: String,
    outcome: Result<Credential, CredentialFault>,
}

impl Obtained {
    fn is_for(&self, provider: &Provider, subject: &str) -> bool {
        let same = self.provider == provider.id && self.fingerprint == provider.fingerprint;
        same && self.subject == subject
    }
}

/// The secret document of a provider; what a kind does not use is absent (spec: sts §6.1).
#[derive(Default, Deserialize)]
#[serde(default)]
struct SecretDocument {
    api_key: String,
    bearer_token: String,
    password: String,
}

/// The credential for a call of this subject: from memory, or as it was just obtained.
///
/// # Errors
/// 503 when the subject's connection cannot be read.
pub async fn at_hand(
    sts: &Sts,
    zone: &ZoneId,
    provider: &Provider,
    subject: &str,
    obtained: Option<Obtained>,
) -> Result<AtHand, Refused> {
    let obtained = obtained.filter(|obtained| obtained.is_for(provider, subject));
    let obtained = obtained.map(|obtained| obtained.outcome);
    let missing = || AtHand::Fault(CredentialFault::ProviderUnavailable);
    Ok(match &*provider.kind {
        "none" | "caracal_mandate" => AtHand::NotNeeded,
        "oauth2_client_credentials" => match obtained {
            Some(Ok(credential)) => AtHand::Ready(credential),
            Some(Err(_)) => AtHand::Failed,
            None => match sts.service_tokens.held(provider, sts.clock.now()) {
                Some(credential) => AtHand::Ready(credential),
                None => AtHand::Fetch,
            },
        },
        "oauth2_authorization_code" => match obtained {
            Some(Ok(credential)) => AtHand::Ready(credential),
            Some(Err(fault)) => AtHand::Fault(fault),
            None => connection::at_hand(sts, zone, provider, subject).await?,
        },
        _ => match (obtained, provider.secret.at_hand()) {
            (_, SecretAtHand::Ready(document)) => {
                stored(provider, &document).map_or_else(missing, AtHand::Ready)
            }
            (Some(Ok(credential)), _) => AtHand::Ready(credential),
            (Some(Err(fault)), _) => AtHand::Fault(fault),
            (_, SecretAtHand::Due) => AtHand::Due,
            (_, SecretAtHand::None | SecretAtHand::Lost) => missing(),
        },
    })
}

/// Obtains what was [due](AtHand::Due), or has to be [fetched](AtHand::Fetch). What takes longer than
/// the caller waits is not to be had.
pub async fn obtain(
    sts: &Sts,
    zone: &ZoneId,
    provider: &Arc<Provider>,
    subject: &str,
    patience: Patience,
) -> Obtained {
    let outcome = match &*provider.kind {
        "oauth2_client_credentials" => {
            Box::pin(service::fetch(sts, zone, provider, patience)).await
        }
        "oauth2_authorization_code" => {
            Box::pin(connection::renew(sts, zone, provider, subject, patience)).await
        }
        _ => kept(sts, provider, patience).await,
    };
    Obtained {
        provider: provider.id.clone(),
        fingerprint: provider.fingerprint,
        subject: subject.to_owned(),
        outcome,
    }
}

/// The credential of a provider that acts for no user: the stored one, or one fetched for the
/// service. Kinds that have none (`none`, `caracal_mandate`) or need a user
/// (`oauth2_authorization_code`) are refused. Whoever injects it decides anew when this took time.
///
/// # Errors
/// 502 `http_request_failed` when there is none at hand.
pub async fn without_user(
    sts: &Sts,
    zone: &ZoneView,
    provider: &Arc<Provider>,
    patience: Patience,
) -> Result<Credential, Refused> {
    if &*provider.kind != "oauth2_client_credentials" {
        let kept = kept(sts, provider, patience).await;
        return kept.map_err(|_| unavailable());
    }
    if let Some(credential) = sts.service_tokens.held(provider, sts.clock.now()) {
        return Ok(credential);
    }
    let fetched = Box::pin(service::fetch(sts, &zone.id, provider, patience)).await;
    fetched.map_err(|_| unavailable())
}

/// The credential of a kind that is used as it is stored, from where it is kept.
async fn kept(
    sts: &Sts,
    provider: &Provider,
    patience: Patience,
) -> Result<Credential, CredentialFault> {
    let unavailable = CredentialFault::ProviderUnavailable;
    let left = patience.left(sts.clock.as_ref());
    let document = provider.secret.obtain(left).await;
    let document = document.map_err(|_| unavailable)?;
    let found = document.and_then(|document| stored(provider, &document));
    found.ok_or(unavailable)
}

/// The credential of a kind that is used as it is stored.
fn stored(provider: &Provider, document: &Secret<Vec<u8>>) -> Option<Credential> {
    let mut document: SecretDocument = serde_json::from_slice(document.expose()).ok()?;
    let token = match &*provider.kind {
        "api_key" => std::mem::take(&mut document.api_key),
        "bearer_token" => std::mem::take(&mut document.bearer_token),
        "http_basic" => basic(&provider.config, &Secret::new(document.password))?,
        _ => return None,
    };
    (!token.is_empty()).then(|| Credential::lasting(Secret::new(token)))
}

/// Standard base64 of `username:password` (RFC 7617).
fn basic(config: &Value, password: &Secret<String>) -> Option<String> {
    let username = config.get("username").and_then(Value::as_str)?;
    let complete = !username.is_empty() && !password.expose().is_empty();
    complete.then(|| {
        let pair = Secret::new(format!("{username}:{}", password.expose()));
        caracal_crypto::digest::base64_encode(pair.expose().as_bytes())
    })
}

/// How long work that outlasts its caller waits for a backend: its own limit is shorter.
const BACKEND: Duration = Duration::from_secs(60);

/// 502: the credential is not at hand.
pub fn unavailable() -> Refused {
    Refusal::ProviderCredential.because("the provider's credential is not available")
}

/// When a token ends: as the provider says, and never later than any mandate could.
fn ends(sts: &Sts, expires_in: Option<u64>, now: Timestamp) -> Timestamp {
    let most = u64::try_from(sts.config.max_grant_ttl).unwrap_or(0);
    let seconds = expires_in.map_or(most, |said| said.min(most));
    now.plus(Duration::from_secs(seconds))
}

/// Notes a failure for the log and the metrics. A [`TokenError`] holds nothing that is secret.
fn failed(sts: &Sts, zone: &ZoneId, provider: &Provider, error: &TokenError) {
    sts.metrics.provider.errors.inc();
    tracing::warn!(%zone, provider = %provider.id, %error, "no token from the provider");
}

/// A connection that cannot be sealed or opened is ours to mend.
fn unsealable(error: &CryptoError) -> CredentialFault {
    tracing::error!(%error, "tokens of a connection cannot be sealed or opened");
    CredentialFault::RefreshFailed
}

#[cfg(test)]
mod tests;
