//! The credential that a provider injects, whoever asks for it: the exchange of a call, or a
//! workload that injects it at its start (spec: sts §6, §12).

use caracal_model::{Refusal, Refused, Secret, Timestamp};
use caracal_view::{Provider, ZoneView};
use serde::Deserialize;

use crate::Sts;

/// A credential at hand.
#[derive(Debug)]
pub struct Credential {
    /// What is injected, without its scheme.
    pub token: Secret<String>,
    /// When it ends, where that is known.
    pub expires_at: Option<Timestamp>,
}

impl Credential {
    fn lasting(token: Secret<String>) -> Self {
        Self {
            token,
            expires_at: None,
        }
    }
}

/// The secret document of a provider; what a kind does not use is absent (spec: sts §6.1).
#[derive(Default, Deserialize)]
#[serde(default)]
struct SecretDocument {
    api_key: String,
    bearer_token: String,
}

/// The credential of a provider that acts for no user: the stored one, or one fetched for the
/// service. Kinds that have none (`none`, `caracal_mandate`) or need a user
/// (`oauth2_authorization_code`) are refused.
///
/// # Errors
/// 502 `http_request_failed` when there is none at hand.
#[expect(
    clippy::unused_async,
    reason = "kinds that are fetched come through here"
)]
pub async fn without_user(
    _sts: &Sts,
    _zone: &ZoneView,
    provider: &Provider,
) -> Result<Credential, Refused> {
    stored(provider).ok_or_else(unavailable)
}

/// The credential of a kind that is used as it is stored.
pub fn stored(provider: &Provider) -> Option<Credential> {
    let document = provider.secret.as_ref()?;
    let mut document: SecretDocument = serde_json::from_slice(document.expose()).ok()?;
    let token = match &*provider.kind {
        "api_key" => std::mem::take(&mut document.api_key),
        "bearer_token" => std::mem::take(&mut document.bearer_token),
        _ => return None,
    };
    (!token.is_empty()).then(|| Credential::lasting(Secret::new(token)))
}

/// 502: the credential is not at hand.
pub fn unavailable() -> Refused {
    Refusal::ProviderCredential.because("the provider's credential is not available")
}
