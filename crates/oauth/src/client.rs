//! A provider's configuration, read for use.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use caracal_crypto::{Certificate, ClientKey};
use caracal_model::{Rng, Secret, Timestamp};
use caracal_net::egress::{Bounds, Fetcher};
use http::{Request, Response};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::answer::{self, TokenAnswer, TokenError};
use crate::request::Grant;

/// Before the second attempt; up to as much again is added.
const BACKOFF: Duration = Duration::from_millis(100);

/// How we authenticate at the token endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum AuthMethod {
    /// The secret in the `Authorization` header.
    #[default]
    #[serde(rename = "client_secret_basic")]
    Basic,
    /// The secret in the form.
    #[serde(rename = "client_secret_post")]
    Post,
    /// Not at all.
    #[serde(rename = "none")]
    None,
    /// With an assertion that a key of ours signs.
    #[serde(rename = "private_key_jwt")]
    PrivateKeyJwt,
}

/// How a service gets its token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceGrant {
    /// RFC 6749 §4.4.
    #[default]
    ClientCredentials,
    /// RFC 7523 §2.1.
    JwtBearer,
}

/// The public configuration, as the API has stored it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub token_endpoint: String,
    pub authorization_endpoint: String,
    pub revocation_endpoint: Option<String>,
    pub redirect_uri: String,
    pub client_id: String,
    pub client_auth_method: AuthMethod,
    pub grant_type: ServiceGrant,
    pub scopes: Vec<String>,
    pub audience: Option<String>,
    pub resource: Option<String>,
    pub assertion_subject: Option<String>,
    pub assertion_audience: Option<String>,
    pub key_id: Option<String>,
    pub certificate: Option<String>,
    pub auth_scheme: Option<String>,
    pub allowed_token_hosts: Vec<String>,
    pub token_params: BTreeMap<String, String>,
    pub authorization_params: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SecretConfig {
    client_secret: String,
    private_key: String,
}

/// Us, at one provider.
#[derive(Debug)]
pub struct Client {
    pub(crate) config: Config,
    pub(crate) secret: Option<Secret<String>>,
    pub(crate) key: Option<ClientKey>,
    pub(crate) certificate: Option<Certificate>,
}

impl Client {
    /// From the stored configuration and the secret document that belongs to it.
    ///
    /// # Errors
    /// [`TokenError::Config`], with what is wrong.
    pub fn read(config: &Value, secret: Option<&[u8]>) -> Result<Self, TokenError> {
        let unreadable = |_| TokenError::Config("the configuration cannot be read");
        let config = Config::deserialize(config).map_err(unreadable)?;
        let secret = secret.unwrap_or(b"{}");
        let secret: SecretConfig = serde_json::from_slice(secret)
            .map_err(|_| TokenError::Config("the stored secret cannot be read"))?;
        let key = match secret.private_key.as_str() {
            "" => None,
            pem => Some(
                ClientKey::from_pem(pem)
                    .map_err(|_| TokenError::Config("the private key cannot be used"))?,
            ),
        };
        let certificate = config.certificate.as_deref().map(Certificate::from_pem);
        let certificate = certificate
            .transpose()
            .map_err(|_| TokenError::Config("the certificate cannot be used"))?;
        let client_secret = Secret::new(secret.client_secret);
        Ok(Self {
            config,
            secret: (!client_secret.expose().is_empty()).then_some(client_secret),
            key,
            certificate,
        })
    }

    /// How the service gets its token.
    pub fn service_grant(&self) -> ServiceGrant {
        self.config.grant_type
    }

    /// The endpoint, when it is https and its host one that may see our credential.
    pub(crate) fn permitted(&self, endpoint: &str) -> Result<Url, TokenError> {
        let url = Url::parse(endpoint).map_err(|_| TokenError::Config("an endpoint is no URL"))?;
        let plain = url.username().is_empty() && url.password().is_none();
        if url.scheme() != "https" || !plain {
            return Err(TokenError::Config("an endpoint is not https"));
        }
        let host = url.host_str().unwrap_or_default();
        let listed = &self.config.allowed_token_hosts;
        if listed.iter().any(|one| one.eq_ignore_ascii_case(host)) {
            Ok(url)
        } else {
            Err(TokenError::NotAllowed)
        }
    }

    /// Asks the token endpoint; twice, when the first attempt found nobody.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn ask(
        &self,
        fetcher: &Fetcher,
        grant: Grant<'_>,
        now: Timestamp,
        rng: &dyn Rng,
    ) -> Result<TokenAnswer, TokenError> {
        self.permitted(&self.config.token_endpoint)?;
        let first = self.once(fetcher, grant, now, rng).await;
        match first {
            Err(error) if error.is_transient() && grant.may_repeat() => {}
            outcome => return outcome,
        }
        tokio::time::sleep(jittered(BACKOFF, rng)).await;
        self.once(fetcher, grant, now, rng).await
    }

    async fn once(
        &self,
        fetcher: &Fetcher,
        grant: Grant<'_>,
        now: Timestamp,
        rng: &dyn Rng,
    ) -> Result<TokenAnswer, TokenError> {
        let request = self.token_request(grant, now, rng)?;
        let response = fetch(fetcher, request, Bounds::default()).await?;
        answer::read(&response, self.config.auth_scheme.is_some())
    }

    /// One attempt with these bounds, whatever is answered: for a test of the configuration.
    ///
    /// # Errors
    /// [`TokenError`], never [`TokenError::Refused`].
    pub async fn probe(
        &self,
        fetcher: &Fetcher,
        grant: Grant<'_>,
        now: Timestamp,
        rng: &dyn Rng,
        bounds: Bounds,
    ) -> Result<Response<Bytes>, TokenError> {
        self.permitted(&self.config.token_endpoint)?;
        let request = self.token_request(grant, now, rng)?;
        fetch(fetcher, request, bounds).await
    }

    /// Asks the provider to forget a token (RFC 7009): `None` when it offers no such endpoint.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn revoke(
        &self,
        fetcher: &Fetcher,
        token: &Secret<String>,
        hint: &str,
        now: Timestamp,
        rng: &dyn Rng,
    ) -> Result<Option<()>, TokenError> {
        let Some(endpoint) = &self.config.revocation_endpoint else {
            return Ok(None);
        };
        let endpoint = self.permitted(endpoint)?;
        let request = self.revocation_request(&endpoint, token, hint, now, rng)?;
        let response = fetch(fetcher, request, Bounds::default()).await?;
        match response.status().as_u16() {
            200 => Ok(Some(())),
            _ => Err(answer::refused(&response)),
        }
    }
}

async fn fetch(
    fetcher: &Fetcher,
    request: Request<Bytes>,
    bounds: Bounds,
) -> Result<Response<Bytes>, TokenError> {
    let fetching = Box::pin(fetcher.fetch(request, bounds));
    fetching.await.map_err(TokenError::Fetch)
}

fn jittered(base: Duration, rng: &dyn Rng) -> Duration {
    let mut byte = [0u8; 1];
    rng.fill(&mut byte);
    base + base.mul_f64(f64::from(byte[0]) / 255.0)
}
